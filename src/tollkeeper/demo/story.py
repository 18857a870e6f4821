"""What the demonstration shows when its traffic is through, and the commands to go on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from tollkeeper.api.paths import PREFIX
from tollkeeper.console.output import Column, money, print_table
from tollkeeper.console.program import program
from tollkeeper.console.usage_table import print_report
from tollkeeper.console.verify_table import print_verdict, with_store_differences
from tollkeeper.demo.client import ApiClient
from tollkeeper.demo.traffic import Tally
from tollkeeper.http.page import built_files

_SINCE: Final = "2000-01-01"


def tell(api: ApiClient, tally: Tally) -> bool:
    """
    Show what happened: usage by key, refusals, money, and whether everything agrees; return whether it does.

    Raises:
        Unavailable: The server does not answer.
    """
    columns = ["account", "key", "requests", "errors", "denied", "tokens", "cost_nanos", "latency_ms_p95"]
    query = {"from": _SINCE, "group_by": "account,key", "measures": ",".join(columns[2:])}
    print()
    usage = api.get("GET", f"/usage?{urlencode(query)}")
    print_report(columns, usage, offset=0, title="Usage by key, money in USD")
    _tell_refusals(tally)
    _tell_money(api)
    print()
    verdict = api.get("POST", "/verify")
    print_verdict(with_store_differences(verdict))
    return bool(verdict["ok"])


def _tell_refusals(tally: Tally) -> None:
    rows = [
        [refusal.status, refusal.reason, refusal.key_id, count, tally.details[refusal]]
        for refusal, count in sorted(tally.refused.items(), key=lambda item: (item[0].status, item[0]))
    ]
    headings = [
        Column("HTTP", True),
        Column("reason"),
        Column("key"),
        Column("count", True),
        Column("in the gate's words"),
    ]
    print()
    print_table(headings, rows, title="Refused by the gate")


def _tell_money(api: ApiClient) -> None:
    rows = []
    for key_id, account in (("assistant-live", "northwind"), ("research-lab", "northwind")):
        state = api.get("GET", f"/keys/{key_id}/state?account={account}")
        rows += [
            [account, f"budget {b['name']}", money(b["allowed"]), money(b["used"]), money(b["remaining"])]
            for b in state["budgets"]
            if b["unit"] == "nanos"
        ]
    balance = api.get("GET", "/accounts/papertrail/balance")
    rows += [
        ["papertrail", f"grant {g['id']}", money(g["amount_nanos"]), _spent(g), money(g["remaining_nanos"])]
        for g in balance["grants"]
    ]
    unique = list(dict.fromkeys(tuple(row) for row in rows))
    headings = [
        Column("account"),
        Column("of"),
        Column("amount", True),
        Column("used", True),
        Column("left", True),
    ]
    print()
    print_table(headings, unique, title="Money, in USD")


def _spent(grant: Mapping[str, Any]) -> str:
    return money(int(grant["amount_nanos"]) - int(grant["remaining_nanos"]))


def commands(url: str, operator_key: str, secrets: Mapping[str, str]) -> list[str]:
    """Return the commands to go on with, each on its line, below a comment that says what it shows."""
    api = url + PREFIX
    ours = program()
    own, account = secrets["research-lab"], secrets["northwind-admin"]

    def curl(key: str, path: str) -> str:
        return f"curl -s -H 'Authorization: Bearer {key}' '{api}{path}'"

    return [
        "# One key asks what it used, and what it has left:",
        curl(own, "/usage?group_by=model"),
        curl(own, "/keys/research-lab/state"),
        "# An account's management key sees all of its keys, and nothing of other accounts:",
        curl(account, "/usage?group_by=project,key&granularity=day"),
        f"{ours} usage --url {url} --key {account} --group-by project,key,model",
        "# The operator sees everything:",
        curl(operator_key, "/usage?group_by=account,denied_reason&format=csv"),
        f"{ours} usage --url {url} --key {operator_key} --group-by account,status --granularity hour",
        f"{ours} verify --url {url} --key {operator_key}",
        "# The gate decides about the next request:",
        f"curl -s -H 'Authorization: Bearer {operator_key}' '{api}/authorize' -d "
        f"""'{{"key":"{secrets["assistant-live"]}","method":"POST","path":"/v1/chat/completions","""
        """"model":"gpt-4o-mini","tokens":{"prompt":1000,"completion":120}}'""",
    ]


def page_lines(url: str, logins: Mapping[str, str]) -> list[str]:
    """Return where the page is, and a key for each of *logins* (whom one is there → the key)."""
    if not built_files():
        return [
            "# The page is not built in this installation: `make ui` builds it, in a clone of the repository.",
            "",
        ]
    width = max(map(len, logins))
    return [
        "# The page. Open it in a browser:",
        f"{url}/",
        "# and log in with the key of one of these:",
        *(f"{who:<{width}}  {key}" for who, key in logins.items()),
        "",
    ]


def commands_on_data(data_dir: str, port: int) -> list[str]:
    """Return the commands for when the server has stopped."""
    ours = program()
    return [
        "# The server has stopped; its data is kept. Ask it directly:",
        f"{ours} usage --data {data_dir} --account northwind --group-by project,key",
        f"{ours} usage --data {data_dir} --group-by account,denied_reason --format csv",
        f"{ours} verify --data {data_dir}",
        "# Or serve it again, and then:",
        f"{ours} serve --data {data_dir} --port {port}",
    ]
