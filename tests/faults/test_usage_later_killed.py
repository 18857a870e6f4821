"""A process that is killed between the end of a response and the statement of its usage: the request is booked once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from tollkeeper.metering import NOT_STATED

ENTRIES: Final = """
[[accounts]]
id = "acme"
name = "Acme"
[[keys]]
id = "acme-k"
account = "acme"
[[budgets]]
id = "month"
account = "acme"
amount = 1000
[[routes]]
id = "job"
method = "POST"
path = "/job"
price_nanos = 100
"""
CHILD: Final = """
import asyncio, os, signal, sys
from tollkeeper import Tollkeeper
toll = Tollkeeper.open(sys.argv[1])
secret = toll.apply(sys.stdin.read()).issued[0].secret
async def app(scope, receive, send):
    scope["state"]["tollkeeper"].settle_later(2)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
async def send(message):
    if message["type"] == "http.response.body":
        # The client has its whole answer.
        os.kill(os.getpid(), signal.SIGKILL)
headers = [(b"authorization", b"Bearer " + secret.encode())]
scope = {"type": "http", "method": "POST", "path": "/job", "query_string": b"", "headers": headers}
asyncio.run(toll.middleware(app)(scope, None, send))
"""


def test_it_is_booked_without_usage_after_the_next_start(tmp_path: Path) -> None:
    """What was answered in full is in the ledger, `kill -9` included."""
    data = str(tmp_path / "data")
    child = subprocess.run(
        [sys.executable, "-c", CHILD, data], input=ENTRIES.encode(), check=False, timeout=100
    )
    assert child.returncode == -signal.SIGKILL
    assert _totals_after(data) == [(NOT_STATED, 1, 100)]


def _totals_after(data: str) -> list[tuple[str, int, int]]:
    """Return error type, requests and cost of what is booked, in a process of its own: it opens the stores."""
    code = f"""
import json, time
from tollkeeper import Tollkeeper, UsageQuery
with Tollkeeper.open({data!r}) as toll:
    query = UsageQuery(account_id="acme", from_us=0, to_us=4 * 10**15, group_by=("error_type",))
    until = time.monotonic() + 30
    while not (rows := toll.usage(query).rows) and time.monotonic() < until:
        time.sleep(0.2)
    assert toll.verify().ok
    print(json.dumps([[row["error_type"], row["requests"], row["cost_nanos"]] for row in rows]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=100).stdout
    return [tuple(row) for row in json.loads(out)]
