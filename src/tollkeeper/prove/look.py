"""What the server says of one round when its traffic is through: asked over HTTP, as any customer would."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from decimal import Decimal
from http.client import HTTPException
from typing import Any, Final, NamedTuple

from tollkeeper.console.server_client import Server
from tollkeeper.errors import Unavailable
from tollkeeper.prove.amounts import MICROS, Measures
from tollkeeper.prove.plan import Bound, Round, accounts_of, label_of

QUIET_S_MAX: Final = 180
"""By then the last hold has expired and all events are delivered."""
_POLL_S: Final = 0.2
"""An answer with metrics takes 10 ms of CPU, and holds expire once a second."""
_PAGE_SIZE: Final = 50_000
_MEASURES: Final = (
    "requests,denied,cost_nanos,provider_cost_nanos,tokens,quantity.seconds,quantity.images,adjustments_nanos"
)


class Counted(NamedTuple):
    """How many events count, and what they cost."""

    events: int
    cost_nanos: int


class CreditSeen(NamedTuple):
    """An account's credit balance, and what is spent of it."""

    balance_nanos: int
    spent_nanos: int


class BudgetSeen(NamedTuple):
    """What a budget has: *allowed* with its top-ups. Seconds are in millionths."""

    allowed: int
    used: int


class Seen(NamedTuple):
    """
    The answers.

    Attributes:
        events: Every event that counts, by its tag `op`; "" are those without. From the events themselves.
        adjustments: Every adjustment that counts, by its reason, in the same way.
        keys: All of them per api key, from the rollups.
        budgets: By their labels (`plan.label_of`), or by their ids.
        credit: Account → its balance and what is spent of it.
        grants: Id of each grant of the round's accounts → its amount in nanos.
        holds_open: Holds that never ended.
    """

    events: Mapping[str, Measures]
    adjustments: Mapping[str, Measures]
    keys: Mapping[str, Measures]
    budgets: Mapping[str, BudgetSeen]
    credit: Mapping[str, CreditSeen]
    grants: Mapping[str, int]
    holds_open: int


def look(server: Server, key: str, plan: Round) -> Seen:
    """
    Return what *server* says of a round, once no hold is open any more.

    Args:
        key: The operator key, for the metrics.

    Raises:
        Unavailable: Its usage answers do not become complete.
        Failure: It does not answer.
    """
    holds_open = wait_for_holds(server.url, key)
    accounts = accounts_of(plan.number)
    budgets: dict[str, BudgetSeen] = {}
    for bound in plan.bounds:
        budgets |= _budgets(server, bound, plan.number)
    balances = {account: server.call("GET", f"/accounts/{account}/balance") for account in accounts}
    # A filter that no rollup has: the answer is from the events.
    of_events = [("denied_reason", "")]
    return Seen(
        events=_measured(server, accounts, "tag.op", of_events),
        adjustments=_measured(server, accounts, "tag.reason", of_events),
        keys=_measured(server, accounts, "key", []),
        budgets=budgets,
        credit={
            account: CreditSeen(int(balance["balance_nanos"]), int(balance["spent_nanos"]))
            for account, balance in balances.items()
        },
        grants={g["id"]: int(g["amount_nanos"]) for balance in balances.values() for g in balance["grants"]},
        holds_open=holds_open,
    )


def _budgets(server: Server, bound: Bound, number: int) -> Iterator[tuple[str, BudgetSeen]]:
    """Yield the budgets of the key of a bound; of those that count users apart, the one that *bound* is."""
    query = [("tag.user", bound.user)] if bound.user else []
    for state in server.call("GET", f"/keys/{bound.keys[0]}/state", query=query)["budgets"]:
        label = label_of(bound, number) if bound.user else state["name"]
        as_int = _micros if state["unit"] == "quantity.seconds" else int
        yield label, BudgetSeen(as_int(state["allowed"]), as_int(state["used"]))


def _measured(
    server: Server, accounts: tuple[str, ...], group: str, filters: list[tuple[str, str]]
) -> dict[str, Measures]:
    return {
        value: Measures(
            row["requests"] - row["denied"],
            int(row["cost_nanos"]),
            int(row["provider_cost_nanos"]),
            row["tokens"],
            _micros(row["quantity.seconds"]),
            _micros(row["quantity.images"]),
            int(row["adjustments_nanos"]),
        )
        for value, row in _rows(server, accounts, group, _MEASURES, filters, False)
    }


def _micros(text: str) -> int:
    return int(Decimal(text) * MICROS)


def verify(server: Server) -> tuple[str, ...]:
    """Return every difference that the server's own `verify` finds."""
    verdict = server.call("POST", "/verify")
    found = [
        f"{d['account']}: {d['what']}: expected {d['expected']}, found {d['found']}"
        for d in verdict["differences"]
    ]
    found += verdict["store_differences"]
    return tuple(found) if found or verdict["ok"] else ("verify is not ok, and does not say why",)


def usage(
    server: Server,
    accounts: tuple[str, ...],
    group: str,
    filters: list[tuple[str, str]],
    *,
    incomplete: bool = False,
) -> Iterator[tuple[str, Counted]]:
    """
    Yield each group of the usage of *accounts*, from answers that are complete; *incomplete* takes the others too.

    Raises:
        Unavailable: They do not become complete.
    """
    for value, row in _rows(server, accounts, group, "requests,denied,cost_nanos", filters, incomplete):
        yield value, Counted(row["requests"] - row["denied"], int(row["cost_nanos"]))


def _rows(
    server: Server,
    accounts: tuple[str, ...],
    group: str,
    measures: str,
    filters: list[tuple[str, str]],
    incomplete: bool,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the value and the row of each group."""
    offset: int | None = 0
    until = time.monotonic() + QUIET_S_MAX
    while offset is not None:
        query = [("account", ",".join(accounts)), ("group_by", group), ("limit", str(_PAGE_SIZE))]
        query += [("measures", measures), ("offset", str(offset)), *filters]
        page = server.call("GET", "/usage", query=query)
        if not page["complete"] and not incomplete:
            if time.monotonic() > until:
                raise Unavailable("The usage answer does not become complete.")
            time.sleep(_POLL_S)
            continue
        for row in page["rows"]:
            yield row[group.replace(".", ":")], row
        offset = page["next_offset"]


def becomes_complete(server: Server, accounts: tuple[str, ...], within_s: float) -> bool:
    """Return whether the usage of *accounts* is complete within *within_s* seconds."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if server.call("GET", "/usage", query=[("account", ",".join(accounts)), ("group_by", "key")])[
            "complete"
        ]:
            return True
        time.sleep(_POLL_S)
    return False


def outbox_records(url: str, key: str) -> int:
    """Return how many records the usage store has not got yet."""
    return _metric(url, key, "tollkeeper_outbox_records")


def wait_for_holds(url: str, key: str) -> int:
    """Return how many holds are open when none is, or when their time is long over."""
    until = time.monotonic() + QUIET_S_MAX
    while True:
        count = _metric(url, key, "tollkeeper_holds_open")
        if count == 0 or time.monotonic() > until:
            return count
        time.sleep(_POLL_S)


def _metric(url: str, key: str, name: str) -> int:
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=QUIET_S_MAX) as answer:
            found = re.search(rf"^{name} (\d+)", answer.read().decode(), re.MULTILINE)
    except (OSError, HTTPException) as exc:
        raise Unavailable(f"The server's metrics cannot be read: {exc}") from None
    if found is None:
        raise Unavailable(f"The server's metrics do not have {name}.")
    return int(found[1])
