"""
What the world sends is priced right to the nano, through gate, HTTP, ingest and a correction: the cases of
`../shared/cases/money.md` on prices, with their neighbours.
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
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.quantities import parse_quantities
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation

CATALOG: Final = """
[[routes]]
id = "any"
method = "POST"
path = "/v1/*"
[[prices]]
id = "dall-e-3"
model = "dall-e-3"
request_nanos = 40_000_000
[[prices]]
id = "audio"
model = "gpt-4o-audio-preview"
prompt_nanos_per_million = 2_500_000_000
completion_nanos_per_million = 10_000_000_000
audio_prompt_nanos_per_million = 40_000_000_000
audio_completion_nanos_per_million = 80_000_000_000
[[prices]]
id = "speech"
model = "our-transcriber"
rates = { seconds = "0.006/60" }
[[prices]]
id = "voice"
model = "our-voice"
rates = { characters = "15.00/1000000", own_credits = "1.00/1", pages = 1_000_000_000 }
[[prices]]
id = "long"
model = "our-long"
prompt_nanos_per_million = 1_000_000_000
tiers = [{ over = 1000, prompt_nanos_per_million = 2_000_000_000 }]
[[prices]]
id = "half"
model = "our-*"
variant = "batch"
factor = "0.5"
[[plans]]
slug = "p"
[[plans]]
slug = "images"
[[plans.budgets]]
name = "spend"
amount = 1_000_000_000
period = "day"
[[markups]]
id = "p35"
plan = "p"
model = "claude-*"
factor = "1.35"
"""


class Fact(NamedTuple):
    """What one request used."""

    model: str
    tokens: tuple[int, int, int] = (0, 0, 0)
    quantities: dict[str, Any] = {}
    variant: str = ""


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore
) -> Iterator[Installation]:
    directory = tmp_path_factory.mktemp("door_prices")
    options: dict[str, Any] = {"unknown_price": "allow"}
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
    """An account with an api key, over all doors."""

    def __init__(self, installation: Installation, api: Api, account: str, plan: str = "") -> None:
        self.installation, self.api, self.account = installation, api, account
        issued = api("POST", "/tk/v1/keys", {"account": account} | ({"plan": plan} if plan else {})).json()
        self.key_id, self.secret = issued["entry"]["id"], issued["secret"]

    def stored(self, id_: str) -> Record:
        assert any(self.installation.delivery.fresh(self.account) for _ in range(10))
        return self.installation.store.records([(self.account, id_)])[self.account, id_]

    def event(self, fact: Fact) -> dict[str, Any]:
        now = to_text(from_us(SystemClock().now_us()))
        return {"id": uuid.uuid4().hex, "time": now, "key_id": self.key_id, "status": 200, **used(fact)}


def used(fact: Fact) -> dict[str, Any]:
    prompt, cached, completion = fact.tokens
    body: dict[str, Any] = {
        "model": fact.model,
        "tokens": {"prompt": prompt, "cached_prompt": cached, "completion": completion},
    }
    body |= {"quantities": fact.quantities} if fact.quantities else {}
    return body | ({"variant": fact.variant} if fact.variant else {})


def gate(caller: Caller, fact: Fact) -> Record:
    usage = Usage(*fact.tokens, model=fact.model, quantities=fact.quantities, variant=fact.variant)
    found = caller.installation.holds.admit(caller.secret, "POST", "/v1/x", usage)
    assert isinstance(found, Admission)
    # Model and variant are those of the hold where the outcome leaves them out.
    record = caller.installation.holds.settle(found, Outcome(usage=usage._replace(model="", variant="")))
    assert found.amounts.nanos == record.cost_nanos
    assert caller.stored(record.id) == record
    return record


def over_http(caller: Caller, fact: Fact) -> Record:
    asked = {"key": caller.secret, "method": "POST", "path": "/v1/x", **used(fact)}
    found = caller.api("POST", "/tk/v1/authorize", asked)
    assert found.status_code == 200, found.text
    settled = caller.api("POST", "/tk/v1/settle", {"hold_id": found.json()["hold_id"], **used(fact)})
    assert settled.status_code == 200, settled.text
    return caller.stored(settled.json()["event_id"])


def ingest(caller: Caller, fact: Fact) -> Record:
    event = caller.event(fact)
    assert caller.api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    return caller.stored(event["id"])


def amend(caller: Caller, fact: Fact) -> Record:
    event = caller.event(Fact("no-such-model"))
    assert caller.api("POST", "/tk/v1/events", event).json()["accepted"] == 1
    corrected = caller.api("POST", f"/tk/v1/events/{event['id']}/amend", used(fact))
    assert corrected.status_code == 200, corrected.text
    return caller.stored(event["id"])


Door = Callable[[Caller, Fact], Record]
DOORS: Final[tuple[Door, ...]] = (gate, over_http, ingest, amend)

CASES: Final[list[tuple[str, Fact, int | None]]] = [
    ("M2 per request", Fact("dall-e-3"), 40_000_000),
    ("M2 no price, no tokens", Fact("whisper-1"), None),
    ("M2 no price at all", Fact("no-such-model"), None),
    (
        "M3 Anthropic",
        Fact(
            "claude-sonnet-4-5-20250929",
            (12, 20_000, 350),
            {"cache_write_tokens": 4000, "cache_write_1h_tokens": 6000},
        ),
        62_286_000,
    ),
    ("M3 OpenAI", Fact("gpt-5.6", (600, 2000, 300), {"cache_write_tokens": "400"}), 11_200_000),
    ("M4 list", Fact("gemini-2.5-flash", (8, 0, 200), {"audio_prompt_tokens": 19_200}), 19_702_400),
    (
        "M4 own",
        Fact(
            "gpt-4o-audio-preview",
            (100, 0, 50),
            {"audio_prompt_tokens": 1100, "audio_completion_tokens": 850},
        ),
        112_750_000,
    ),
    ("M6 standard", Fact("gpt-5", (1000, 0, 1000), {}, "default"), 11_250_000),
    ("M6 flex", Fact("gpt-5", (1000, 0, 1000), {}, "flex"), 5_625_000),
    ("M6 batch", Fact("gpt-5", (1000, 0, 1000), {}, "batch"), 5_625_000),
    ("M6 priority", Fact("gpt-5", (1000, 0, 1000), {}, "priority"), 22_500_000),
    ("M6 fast", Fact("claude-opus-4-8", (1000, 0, 1000), {}, "fast"), 60_000_000),
    ("M6 a tier that its maker does not sell", Fact("gpt-4o", (1000, 0, 1000), {}, "flex"), None),
    ("M6 own factor", Fact("our-long", (500, 0, 0), {}, "batch"), 250_000),
    ("M7 list", Fact("claude-sonnet-4-5", (1000, 0, 200), {"searches": 3}), 36_000_000),
    ("M10 seconds", Fact("our-transcriber", (), {"seconds": "61.5"}), 6_150_000),  # type: ignore[arg-type]
    ("M10 seconds by the list", Fact("whisper-1", (), {"seconds": 61.5}), 6_150_000),  # type: ignore[arg-type]
    ("M10 characters", Fact("our-voice", (), {"characters": 1234}), 18_510_000),  # type: ignore[arg-type]
    ("M10 own unit", Fact("our-voice", (), {"own_credits": "0.25"}), 250_000_000),  # type: ignore[arg-type]
    ("units of no rate are counted and free", Fact("gpt-4o", (1000, 0, 0), {"bytes": 7}), 2_500_000),
    ("long context", Fact("our-long", (600, 400, 0), {}), 1_000_000),
    ("longer", Fact("our-long", (600, 400, 0), {"cache_write_tokens": 1}), 2_002_000),
]
CASES[:] = [(name, fact._replace(tokens=fact.tokens or (0, 0, 0)), nanos) for name, fact, nanos in CASES]


@pytest.mark.drawn(22)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
@pytest.mark.parametrize(("fact", "nanos"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_request_costs_what_it_must_at_every_door(
    installation: Installation, api: Api, account: str, door: Door, fact: Fact, nanos: int | None
) -> None:
    record = door(Caller(installation, api, account), fact)
    assert (record.cost_nanos, record.provider_cost_nanos) == (nanos or 0, nanos or 0)
    assert record.cost_state == ("unpriced" if nanos is None else "priced")
    assert record.quantities == parse_quantities(fact.quantities)
    assert (record.model, record.variant) == (fact.model, fact.variant)


def test_forty_images_of_four_cents_fit_a_budget_of_one_twenty_five_times(
    installation: Installation, api: Api, account: str
) -> None:
    """M2: a price per request is held and booked, without a token."""
    caller = Caller(installation, api, account, "images")
    passed = 0
    for _ in range(40):
        found = installation.holds.admit(caller.secret, "POST", "/v1/x", Usage(model="dall-e-3"))
        if isinstance(found, Denial):
            assert found.status == 402
            continue
        assert found.amounts.nanos == 40_000_000
        assert installation.holds.settle(found, Outcome()).cost_nanos == 40_000_000
        passed += 1
    assert passed == 25


@pytest.mark.drawn(8)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
@pytest.mark.parametrize(
    ("own", "plan", "model", "factor"),
    [
        (True, "", "claude-sonnet-4-5", 120),
        (True, "p", "claude-sonnet-4-5", 120),
        (False, "p", "claude-sonnet-4-5", 135),
        (False, "p", "anthropic/claude-sonnet-4-5", 135),
        (False, "p", "gpt-4o", 100),
        (False, "", "claude-sonnet-4-5", 100),
    ],
)
def test_a_mark_up_is_paid_by_whom_it_is_for(
    installation: Installation,
    api: Api,
    account: str,
    door: Door,
    own: bool,
    plan: str,
    model: str,
    factor: int,
) -> None:
    """M9: exact to the nano, one rounding; the list's price is the provider's cost."""
    if own:
        markup = {"account": account, "factor": "1.2"}
        assert api("PUT", f"/tk/v1/markups/own-{account}", markup).status_code == 201
    record = door(Caller(installation, api, account, plan), Fact(model, (333, 0, 1)))
    listed = 333 * 3_000 + 15_000 if "claude" in model else 333 * 2_500 + 10_000
    assert record.provider_cost_nanos == listed
    assert record.cost_nanos == (listed * factor + 50) // 100


@pytest.mark.parametrize("by", ["key", "subscription", "account", "no key"])
def test_the_plan_is_that_of_the_key_else_of_its_subscription_else_of_the_account(
    installation: Installation, api: Api, account: str, by: str
) -> None:
    fact = Fact("claude-sonnet-4-5", (1000, 0, 0))
    caller = Caller(installation, api, account, "p" if by == "key" else "")
    key = f"/tk/v1/keys/{caller.key_id}"
    if by == "subscription":
        body = {"id": "s", "account": account, "plan": "p", "started_at": "2026-01-01T00:00:00Z"}
        assert api("POST", "/tk/v1/subscriptions", body).status_code == 201
        assert api("PUT", key, {**api("GET", key).json(), "subscription": "s"}).status_code == 200
    elif by != "key":
        plan = {**api("GET", f"/tk/v1/accounts/{account}").json(), "plan": "p"}
        assert api("PUT", f"/tk/v1/accounts/{account}", plan).status_code == 200
    if by == "no key":
        event = caller.event(fact) | {"account": account}
        del event["key_id"]
        assert api("POST", "/tk/v1/events", event).json()["accepted"] == 1
        found = [caller.stored(event["id"])]
    else:
        found = [gate(caller, fact), ingest(caller, fact), amend(caller, fact)]
    assert {(record.cost_nanos, record.provider_cost_nanos) for record in found} == {(4_050_000, 3_000_000)}


def test_old_usage_keeps_its_price_and_a_mark_up_can_be_changed(
    installation: Installation, api: Api, account: str
) -> None:
    caller = Caller(installation, api, account)
    before = ingest(caller, Fact("gpt-4o", (1000, 0, 0)))
    path = f"/tk/v1/markups/later-{account}"
    for factor, nanos in (("2", 5_000_000), ("3", 7_500_000)):
        assert api("PUT", path, {"account": account, "factor": factor}).status_code in (200, 201)
        assert ingest(caller, Fact("gpt-4o", (1000, 0, 0))).cost_nanos == nanos
    assert api("DELETE", path).status_code == 200
    assert ingest(caller, Fact("gpt-4o", (1000, 0, 0))).cost_nanos == 2_500_000
    assert caller.stored(before.id) == before
    assert before.cost_nanos == 2_500_000


def test_a_variant_that_gets_a_price_is_priced_then(
    installation: Installation, api: Api, account: str
) -> None:
    """Unpriced usage is kept, and priced when a price of its variant arrives."""
    caller = Caller(installation, api, account)
    model = f"m-{account}"
    assert (
        api("PUT", f"/tk/v1/prices/s-{account}", {"model": model, "request_nanos": "10"}).status_code == 201
    )
    record = ingest(caller, Fact(model, (0, 0, 0), {}, "flex"))
    assert (record.cost_state, record.cost_nanos) == ("unpriced", 0)
    price = {"model": model, "variant": "flex", "factor": "0.5"}
    assert api("PUT", f"/tk/v1/prices/f-{account}", price).status_code == 201
    record = caller.stored(record.id)
    assert (record.cost_state, record.cost_nanos) == ("priced", 5)


@pytest.mark.parametrize(
    ("kind", "body", "field", "hint"),
    [
        ("markups", {"factor": 1.2}, "factor", '"1.2"'),
        ("prices", {"model": "m", "rates": {"images": 0.04}}, "rates.images", '"0.006/60"'),
        ("prices", {"model": "m", "rates": {"images": "0.04"}}, "rates.images", '"0.006/60"'),
        ("prices", {"model": "m", "rates": {"images": True}}, "rates.images", "whole number"),
        ("prices", {"model": "m", "tiers": [{"over": 5, "x": 1}]}, "tiers[...]", "unknown field"),
    ],
)
def test_what_is_wrong_with_a_price_is_said(
    api: Api, account: str, kind: str, body: dict[str, Any], field: str, hint: str
) -> None:
    answer = api("PUT", f"/tk/v1/{kind}/bad-{account}", body)
    assert answer.status_code == 400, answer.text
    assert hint in answer.json()["detail"]
    assert answer.json()["field"].split("[")[0] == field.split("[")[0]
