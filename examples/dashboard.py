"""
A page with an account's usage of the last 30 days, read from a running `tollkeeper serve` with its management key.

    export TOLLKEEPER_URL=http://127.0.0.1:8080 TOLLKEEPER_KEY=$SECRET_OF_ACME_DASHBOARD
    uvicorn --app-dir examples --port 8001 dashboard:app
"""

import os
import time
from decimal import Decimal
from html import escape

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

from tollkeeper import UsageQuery, remote

DAY_US = 86_400_000_000
COLUMNS = ("day", "model", "requests", "errors", "tokens", "cost")
toll = remote.Tollkeeper(os.environ["TOLLKEEPER_URL"], key=os.environ["TOLLKEEPER_KEY"])
app = FastAPI()


def rows(account):
    """Return a row per day and model, newest first, with money in whole units."""
    now_us = int(time.time() * 1e6)
    query = UsageQuery(
        account_id=account,
        from_us=now_us - 30 * DAY_US,
        to_us=now_us + DAY_US,
        granularity="day",
        group_by=("model",),
        measures=("requests", "errors", "tokens", "cost_nanos"),
        sort=("-time", "model"),
    )
    for row in toll.usage(query).rows:
        cost = Decimal(row["cost_nanos"]) / 10**9
        yield row["time"][:10], row["model"], row["requests"], row["errors"], row["tokens"], f"{cost:.4f}"


@app.get("/", response_class=HTMLResponse)
def page(account: str = "acme"):
    lines = (
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows(account)
    )
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    return f"<h1>Usage of {escape(account)}</h1><table><tr>{head}</tr>{''.join(lines)}</table>"
