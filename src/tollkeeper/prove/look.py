"""What the server says of one round when its traffic is through: asked over HTTP, as any customer would."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from typing import Final, NamedTuple

from tollkeeper.console.server_client import Server
from tollkeeper.errors import Unavailable
from tollkeeper.prove.plan import Round, accounts_of

QUIET_S_MAX: Final = 60
"""By then the last hold has expired and all events are delivered."""
_PAGE_SIZE: Final = 50_000


class Counted(NamedTuple):
    """How many events count, and what they cost."""

    events: int
    cost_nanos: int


class Seen(NamedTuple):
    """
    The answers.

    Attributes:
        events: Every event that counts, by its tag `op`; "" are those without. From the events themselves.
        keys: The same per api key, from the rollups.
        used: Budget name → what its counter has.
        spent_nanos: Of the credit balance that the round's keys draw on.
        grants: Id of each grant of the round's accounts → its amount in nanos.
        holds_open: Holds that never ended.
    """

    events: Mapping[str, Counted]
    keys: Mapping[str, Counted]
    used: Mapping[str, int]
    spent_nanos: int
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
    holds_open = _wait_for_holds(server.url, key)
    accounts = accounts_of(plan.number)
    used: dict[str, int] = {}
    for key_id in (
        *dict.fromkeys(key_id for bound in plan.bounds for key_id in bound.keys),
        f"meter-{plan.number}",
    ):
        used |= {b["name"]: int(b["used"]) for b in server.call("GET", f"/keys/{key_id}/state")["budgets"]}
    balances = [server.call("GET", f"/accounts/{account}/balance") for account in accounts]
    return Seen(
        events=dict(usage(server, accounts, "tag.op", [("denied_reason", "")])),
        keys=dict(usage(server, accounts, "key", [])),
        used=used,
        spent_nanos=int(balances[1]["spent_nanos"]),
        grants={grant["id"]: int(grant["amount_nanos"]) for b in balances for grant in b["grants"]},
        holds_open=holds_open,
    )


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
    offset: int | None = 0
    until = time.monotonic() + QUIET_S_MAX
    while offset is not None:
        query = [("account", ",".join(accounts)), ("group_by", group), ("limit", str(_PAGE_SIZE))]
        query += [("measures", "requests,denied,cost_nanos"), ("offset", str(offset)), *filters]
        page = server.call("GET", "/usage", query=query)
        if not page["complete"] and not incomplete:
            if time.monotonic() > until:
                raise Unavailable("The usage answer does not become complete.")
            continue
        for row in page["rows"]:
            yield (
                row[group.replace(".", ":")],
                Counted(row["requests"] - row["denied"], int(row["cost_nanos"])),
            )
        offset = page["next_offset"]


def becomes_complete(server: Server, accounts: tuple[str, ...], within_s: float) -> bool:
    """Return whether the usage of *accounts* is complete within *within_s* seconds."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if server.call("GET", "/usage", query=[("account", ",".join(accounts)), ("group_by", "key")])[
            "complete"
        ]:
            return True
        time.sleep(0.1)
    return False


def outbox_records(url: str, key: str) -> int:
    """Return how many records the usage store has not got yet."""
    return _metric(url, key, "tollkeeper_outbox_records")


def _wait_for_holds(url: str, key: str) -> int:
    """Return how many holds are open when none is, or when their time is long over."""
    until = time.monotonic() + QUIET_S_MAX
    while True:
        count = _metric(url, key, "tollkeeper_holds_open")
        if count == 0 or time.monotonic() > until:
            return count
        time.sleep(0.05)


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
