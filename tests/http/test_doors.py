"""
The same fact costs the same at every door: gate, authorize and settle over HTTP, ingest, and a correction.

A fact is one request: what was called, what it used, how it ended. Each door books it in its own way; the record
must say the same route, cost, state and price.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import pytest

from tests.http.conftest import OPERATOR_KEY, Api
from tollkeeper import Admission, Denial, Outcome, Usage, testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.catalog.declaration import apply_declaration, parse_declaration
from tollkeeper.clock import SystemClock
from tollkeeper.domain.events import Record
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation
from tollkeeper.record_columns import records_of

CATALOG: Final = """
[[routes]]
id = "chat"
method = "POST"
path = "/v1/chat"
price_nanos = 11
credits = 3
[[routes]]
id = "scan"
method = "POST"
path = "/v1/scan/{id}"
price_nanos = 700
[[routes]]
id = "status"
method = "GET"
path = "/v1/status"
free = true
[[prices]]
id = "m1"
model = "m1"
prompt_nanos_per_million = 3_000_000
[[prices]]
id = "image"
model = "image"
request_nanos = 40_000_000
[[plans]]
slug = "one"
[[plans.limits]]
name = "one"
amount = 1
window = "365d"
[[plans]]
slug = "broke"
[[plans.budgets]]
name = "spend"
amount = 10
"""


class Fact(NamedTuple):
    """One request; `refused` says by what."""

    method: str
    path: str
    model: str = ""
    prompt_tokens: int = 0
    status: int = 200
    cache: str = ""
    refused: str = ""


class Booked(NamedTuple):
    """What the record of a fact must say."""

    route: str
    cost_nanos: int
    cost_state: str
    price_version: str
    credits: int = 0


def said(record: Record) -> Booked:
    return Booked(record.route, record.cost_nanos, record.cost_state, record.price_version, record.credits)


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore
) -> Iterator[Installation]:
    """One that admits requests to unknown routes and of unknown models."""
    directory = tmp_path_factory.mktemp("doors")
    options: dict[str, Any] = {"unknown_route": "allow", "unknown_price": "allow"}
    with testing.installation(directory, clock=SystemClock(), store=usage_store, **options) as opened:
        ensure_operator_key(opened, OPERATOR_KEY)
        apply_declaration(parse_declaration(CATALOG), opened.manage, dry_run=False)
        yield opened


@pytest.fixture(scope="module")
def api(installation: Installation) -> Iterator[Api]:
    app = build_app(installation)
    yield Api(app)
    app.close()


class Caller:
    """A fresh account with an api key, over all doors."""

    def __init__(self, installation: Installation, api: Api, account: str, plan: str | None) -> None:
        self.installation, self.api, self.account = installation, api, account
        issued = api("POST", "/tk/v1/keys", {"account": account} | ({"plan": plan} if plan else {})).json()
        self.key_id, self.secret = issued["entry"]["id"], issued["secret"]

    def deliver(self) -> None:
        """Wait until the usage store has the account's events; its first insert takes long on a busy machine."""
        assert any(self.installation.delivery.fresh(self.account) for _ in range(10))

    def stored(self, id_: str) -> Record:
        self.deliver()
        return self.installation.store.records([(self.account, id_)])[self.account, id_]

    def denied(self) -> Record:
        """Return the one denied record of the account."""
        self.deliver()
        pieces = self.installation.store.export(self.account, 0, 2**62)
        found = [record for piece in pieces for record in records_of(piece) if record.denied_reason]
        assert len(found) == 1
        return found[0]

    def exhaust(self, fact: Fact) -> None:
        """Use up the limit that is to refuse *fact*."""
        if fact.refused == "rate_limited":
            warm = self.installation.holds.admit(self.secret, "GET", "/v1/status")
            assert isinstance(warm, Admission)
            self.installation.holds.settle(warm, Outcome())

    def event(self, fact: Fact) -> dict[str, Any]:
        body = {
            "id": uuid.uuid4().hex,
            "time": "2026-01-31T09:30:00Z",
            "key_id": self.key_id,
            "method": fact.method,
            "route": fact.path,
        }
        return body | changes_of(fact)


def changes_of(fact: Fact) -> dict[str, Any]:
    """Return the fields of a fact that a correction may state."""
    body: dict[str, Any] = {"status": fact.status, "model": fact.model}
    body["tokens"] = {"prompt": fact.prompt_tokens}
    body |= {"cache": fact.cache} if fact.cache else {}
    return body | ({"denied_reason": fact.refused} if fact.refused else {})


def gate(caller: Caller, fact: Fact) -> Record:
    caller.exhaust(fact)
    expected = Usage(fact.prompt_tokens, model=fact.model)
    found = caller.installation.holds.admit(caller.secret, fact.method, fact.path, expected)
    if fact.refused:
        assert isinstance(found, Denial)
        assert found.reason == fact.refused
        return caller.denied()
    assert isinstance(found, Admission)
    outcome = Outcome(fact.status, expected, cache=fact.cache)  # type: ignore[arg-type]
    record = caller.installation.holds.settle(found, outcome)
    assert caller.stored(record.id) == record
    return record


def over_http(caller: Caller, fact: Fact) -> Record:
    caller.exhaust(fact)
    used = {"model": fact.model, "tokens": {"prompt": fact.prompt_tokens}}
    asked = {"key": caller.secret, "method": fact.method, "path": fact.path, **used}
    found = caller.api("POST", "/tk/v1/authorize", asked)
    if fact.refused:
        assert found.json()["code"] == fact.refused
        return caller.denied()
    assert found.status_code == 200, found.text
    outcome = {"hold_id": found.json()["hold_id"], "status": fact.status, **used}
    settled = caller.api("POST", "/tk/v1/settle", outcome | ({"cache": fact.cache} if fact.cache else {}))
    assert settled.status_code == 200, settled.text
    return caller.stored(settled.json()["event_id"])


def ingest(caller: Caller, fact: Fact) -> Record:
    event = caller.event(fact)
    assert caller.api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    return caller.stored(event["id"])


def amend(caller: Caller, fact: Fact) -> Record:
    """Book another fact of the same call, then correct it to this one."""
    event = caller.event(Fact(fact.method, fact.path, status=404))
    assert caller.api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    corrected = caller.api("POST", f"/tk/v1/events/{event['id']}/amend", changes_of(fact))
    assert corrected.status_code == 200, corrected.text
    return caller.stored(event["id"])


Door = Callable[[Caller, Fact], Record]
DOORS: Final[tuple[Door, ...]] = (gate, over_http, ingest, amend)

CASES: Final[list[tuple[Fact, Booked]]] = [
    # No route knows the path: free unless a model is charged, and counted under the path as it was called.
    (Fact("POST", "/elsewhere/7"), Booked("/elsewhere/7", 0, "free", "")),
    (Fact("POST", "/elsewhere", status=500), Booked("/elsewhere", 0, "free", "")),
    (Fact("POST", "/elsewhere", cache="hit"), Booked("/elsewhere", 0, "free", "")),
    (Fact("DELETE", "/v1/chat"), Booked("/v1/chat", 0, "free", "")),
    (Fact("POST", "/elsewhere", "m1", 1_000_000), Booked("/elsewhere", 3_000_000, "priced", "prices:m1")),
    (
        Fact("POST", "/elsewhere", "m1", 1_000_000, 500),
        Booked("/elsewhere", 3_000_000, "priced", "prices:m1"),
    ),
    (Fact("POST", "/elsewhere", "m1", 0, 500), Booked("/elsewhere", 0, "free", "")),
    (Fact("POST", "/elsewhere", "image"), Booked("/elsewhere", 40_000_000, "priced", "prices:image")),
    (Fact("POST", "/elsewhere", "no-such-model", 5), Booked("/elsewhere", 0, "unpriced", "")),
    # The same on a priced route.
    (Fact("POST", "/v1/chat"), Booked("/v1/chat", 11, "priced", "route:chat", 3)),
    (Fact("POST", "/v1/scan/9"), Booked("/v1/scan/{id}", 700, "priced", "route:scan")),
    (Fact("POST", "/v1/chat", status=500), Booked("/v1/chat", 0, "priced", "route:chat")),
    (Fact("POST", "/v1/chat", "image"), Booked("/v1/chat", 40_000_011, "priced", "prices:image", 3)),
    (Fact("POST", "/v1/chat", "no-such-model", 5), Booked("/v1/chat", 11, "unpriced", "", 3)),
    (Fact("GET", "/v1/status", "m1", 5), Booked("/v1/status", 0, "free", "")),
    # Refused by a limit: free, whatever was asked for.
    (Fact("POST", "/v1/chat", status=429, refused="rate_limited"), Booked("/v1/chat", 0, "free", "")),
    (
        Fact("POST", "/v1/scan/9", status=429, refused="rate_limited"),
        Booked("/v1/scan/{id}", 0, "free", ""),
    ),
    (Fact("POST", "/v1/chat", "image", 0, 429, refused="rate_limited"), Booked("/v1/chat", 0, "free", "")),
    (Fact("GET", "/v1/status", status=429, refused="rate_limited"), Booked("/v1/status", 0, "free", "")),
    (Fact("POST", "/elsewhere", status=429, refused="rate_limited"), Booked("/elsewhere", 0, "free", "")),
    (Fact("POST", "/v1/chat", status=402, refused="budget_exhausted"), Booked("/v1/chat", 0, "free", "")),
    (
        Fact("POST", "/elsewhere", "image", 0, 402, refused="budget_exhausted"),
        Booked("/elsewhere", 0, "free", ""),
    ),
]


@pytest.mark.drawn(22)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
@pytest.mark.parametrize(("fact", "booked"), CASES, ids=lambda case: "-".join(filter(None, map(str, case))))
def test_a_fact_is_booked_alike_at_every_door(
    installation: Installation, api: Api, account: str, door: Door, fact: Fact, booked: Booked
) -> None:
    """What a request costs must not depend on how its provider tells us of it."""
    plan = {"rate_limited": "one", "budget_exhausted": "broke"}.get(fact.refused)
    record = door(Caller(installation, api, account, plan), fact)
    # A correction leaves the credits as they were booked.
    expected = booked._replace(credits=0) if door is amend else booked
    assert said(record) == expected


@pytest.mark.parametrize("door", [ingest, amend])
def test_what_a_refused_request_asked_for_is_not_charged(
    installation: Installation, api: Api, account: str, door: Door
) -> None:
    """Senders state the tokens that a refused request would have used."""
    fact = Fact("POST", "/v1/chat", "m1", 1_000_000, 429, refused="rate_limited")
    assert said(door(Caller(installation, api, account, None), fact)) == Booked("/v1/chat", 0, "free", "")
