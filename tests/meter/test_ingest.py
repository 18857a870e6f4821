"""Each event counts once, whole, at its price and in its period, however often and in what order it comes."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.effort import effort
from tollkeeper import Admission, Outcome, Tollkeeper, Usage, UsageQuery
from tollkeeper.domain.catalog import Price
from tollkeeper.domain.events import ID_CHARS_MAX, Record
from tollkeeper.domain.instants import from_us, to_text, to_us
from tollkeeper.domain.periods import period_of
from tollkeeper.domain.quantities import quantities_json
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import Batch, Draft
from tollkeeper.meter import amend
from tollkeeper.meter.charges import charge_columns
from tollkeeper.meter.decode import decode_events
from tollkeeper.meter.ingest import IngestResult
from tollkeeper.meter.resolve import resolve
from tollkeeper.record_columns import records_of, table_of

NOW = datetime(2026, 5, 15, 12, 0, tzinfo=UTC)
NOW_US = to_us(NOW)
ALL = (0, to_us(datetime(2200, 1, 1, tzinfo=UTC)))
MEASURES = ("requests", "errors", "denied", "tokens", "cost_nanos", "credits", "unpriced")
PER_EXAMPLE = settings(
    max_examples=effort(8, 20), deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)

_names = itertools.count()


class StandingClock:
    """Time stands still, so that a test knows each period."""

    def now(self) -> datetime:
        return NOW

    def now_us(self) -> int:
        return NOW_US


SETUP = """
[[routes]]
id = "scan"
method = "POST"
path = "/v1/scan/{id}"
event_kind = "scan"
price_nanos = 700
credits = 3
[[routes]]
id = "chat"
method = "POST"
path = "/v1/chat"
price_nanos = 11
credits = 1
[[routes]]
id = "free"
method = "GET"
path = "/v1/status"
free = true
[[prices]]
id = "m1"
model = "m1"
prompt_nanos_per_million = 1_500_000
cached_prompt_nanos_per_million = 500_000
completion_nanos_per_million = 2_499_999
request_nanos = 5
[[prices]]
id = "image"
model = "image"
request_nanos = 40_000_000
[[prices]]
id = "m1-later"
model = "m1"
effective_at = 2026-05-14T12:00:00Z
prompt_nanos_per_million = 3_000_000
[[plans]]
slug = "pro"
[[plans.budgets]]
name = "spend"
amount = 1_000_000_000_000
period = "5h_aligned"
per = "key"
"""


@pytest.fixture(scope="module")
def toll(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tollkeeper]:
    """One engine for the module: chDB opens one path per process. Tests keep apart by account."""
    with Tollkeeper.open(str(tmp_path_factory.mktemp("ingest")), clock=StandingClock()) as toll:
        toll.apply(SETUP)
        yield toll
        verified(toll)


class Tenant:
    """A fresh account with a project, a key of each type and budgets of every kind."""

    def __init__(self, toll: Tollkeeper, setup: str = "", *, account: str = "") -> None:
        self.toll = toll
        self.id = a = f"acct{next(_names)}"
        issued = toll.apply(f"""
            [[accounts]]
            id = "{a}"
            name = "A"
            {account}
            [[projects]]
            id = "p1"
            account = "{a}"
            [[projects]]
            id = "p2"
            account = "{a}"
            [[keys]]
            id = "{a}.key"
            account = "{a}"
            project = "p1"
            plan = "pro"
            [[keys]]
            id = "{a}.credit"
            account = "{a}"
            type = "credit"
            [[grants]]
            id = "g1"
            account = "{a}"
            amount_nanos = 1_000_000_000_000
            [[budgets]]
            id = "daily"
            account = "{a}"
            amount = 1_000_000_000_000
            period = "day"
            time_zone = "America/St_Johns"
            [[budgets]]
            id = "requests"
            account = "{a}"
            amount = 1_000_000_000
            unit = "requests"
            period = "week"
            [[budgets]]
            id = "tokens"
            account = "{a}"
            project = "p1"
            amount = 1_000_000_000
            unit = "tokens"
            period = "30d"
            [[budgets]]
            id = "credits"
            account = "{a}"
            key = "{a}.credit"
            amount = 1_000_000_000
            unit = "credits"
            period = "total"
            [[budgets]]
            id = "seconds"
            account = "{a}"
            amount = 1_000_000
            unit = "quantity.seconds"
            period = "5h_aligned"
            {setup}
        """).issued
        self.secrets = {key.entry.id.removeprefix(f"{a}."): key.secret or "" for key in issued}
        self.key, self.credit_key = f"{a}.key", f"{a}.credit"

    def event(self, id_: str, **fields: Any) -> dict[str, Any]:
        body = {"id": id_, "time": "2026-05-15T10:00:00Z"} | fields
        return body if "key_id" in body or "account" in body else body | {"account": self.id}

    def record(self, *events: dict[str, Any]) -> IngestResult:
        return self.toll.record(events)

    def totals(self, *measures: str, **query: Any) -> dict[str, Any]:
        asked = {"from_us": ALL[0], "to_us": ALL[1], "measures": measures or MEASURES} | query
        report = self.toll.usage(UsageQuery(account_id=self.id, **asked))
        assert report.complete
        return report.totals

    def counters(self) -> dict[tuple[str, int], int]:
        return {at: used for at, used in self.toll.installation.ledger.counter_rows(self.id).items() if used}

    def booked(self, id_: str) -> Record:
        assert self.toll.installation.delivery.fresh(self.id)
        return self.toll.installation.store.records([(self.id, id_)])[self.id, id_]


@pytest.fixture
def tenant(toll: Tollkeeper) -> Tenant:
    return Tenant(toll)


def verified(toll: Tollkeeper) -> None:
    verdict = toll.verify()
    assert verdict.ok, verdict


# -- exactly once -----------------------------------------------------------------------------------------

bodies = st.fixed_dictionaries(
    {
        "time": st.datetimes(datetime(2026, 4, 20), datetime(2026, 5, 15, 12)).map(
            lambda at: to_text(at.replace(tzinfo=UTC))
        ),
        "cost_nanos": st.none() | st.integers(0, 10**12),
        "method": st.just("POST"),
        "route": st.sampled_from(["/v1/scan/7", "/v1/chat"]),
        "status": st.sampled_from([200, 500]),
        "prompt": st.integers(0, 10**6),
        "key": st.sampled_from(["key", "credit", None]),
    }
)


def sent(tenant: Tenant, index: int, body: dict[str, Any]) -> dict[str, Any]:
    """The event of a drawn body."""
    event = {name: body[name] for name in ("time", "method", "route", "status")}
    event |= {"id": f"e{index}", "tokens": {"prompt": body["prompt"]}}
    if body["cost_nanos"] is not None:
        event["cost_nanos"] = body["cost_nanos"]
    if body["key"] is None:
        return event | {"account": tenant.id}
    return event | {"key_id": f"{tenant.id}.{body['key']}"}


def expected_cost(body: dict[str, Any]) -> int:
    if body["cost_nanos"] is not None:
        return int(body["cost_nanos"])
    return 0 if body["status"] >= 400 else 700 if "scan" in body["route"] else 11


def expected_counters(tenant: Tenant, drawn: Sequence[dict[str, Any]]) -> Counter[tuple[str, int]]:
    """What the budgets have been charged, by a plain reading of their definition."""
    charged: Counter[tuple[str, int]] = Counter()

    def charge(counter_id: str, body: dict[str, Any], amount: int, period: str, **zone: Any) -> None:
        at = datetime.fromisoformat(body["time"].replace("Z", "+00:00"))
        start_us = to_us(period_of(at, period, **zone).start_at)
        # A budget counts from the period on in which it was set.
        if amount and start_us >= to_us(period_of(NOW, period, **zone).start_at):
            charged[counter_id, start_us] += amount

    for body in drawn:
        cost = expected_cost(body)
        charge("budget:daily", body, cost, "day", time_zone="America/St_Johns")
        charge("budget:requests", body, 1, "week")
        if body["key"] == "key":
            charge("budget:tokens", body, body["prompt"], "30d")
            charge(f"plan:pro/spend:key:{tenant.key}", body, cost, "5h_aligned")
        if body["key"] == "credit":
            credits = 0 if body["status"] >= 400 else 3 if "scan" in body["route"] else 1
            charge("budget:credits", body, credits, "total")
            if cost:
                charged["credit", 0] += cost
    return charged


@PER_EXAMPLE
@given(drawn=st.lists(bodies, min_size=1, max_size=30), chance=st.randoms(use_true_random=False))
def test_split_reordered_and_retried_the_totals_are_the_same(
    toll: Tollkeeper, drawn: list[dict[str, Any]], chance: random.Random
) -> None:
    """A sender that lost an answer sends again, perhaps cut and ordered otherwise: all counts once."""
    tenant = Tenant(toll)
    events = [sent(tenant, index, body) for index, body in enumerate(drawn)]
    once = chance.sample(events, len(events))
    again = chance.choices(events, k=chance.randrange(20))
    left = once + again
    chance.shuffle(left)
    accepted = duplicates = 0
    while left:
        size = chance.randint(1, len(left))
        batch, left = left[:size], left[size:]
        result = tenant.record(*batch)
        assert result.rejections == []
        accepted += result.accepted
        duplicates += result.duplicates
        if chance.random() < 0.3:
            assert tenant.record(*batch) == IngestResult(0, len(batch), [], 0)
    assert (accepted, duplicates) == (len(events), len(again))
    totals = tenant.totals()
    assert totals["requests"] == len(drawn)
    assert totals["cost_nanos"] == sum(expected_cost(body) for body in drawn)
    assert totals["tokens"] == sum(body["prompt"] for body in drawn)
    assert totals["errors"] == sum(body["status"] >= 400 for body in drawn)
    assert tenant.counters() == expected_counters(tenant, drawn)
    spent = tenant.toll.installation.ledger.book(tenant.id)[0].spent_nanos
    assert spent == sum(expected_cost(body) for body in drawn if body["key"] == "credit")


def test_everything_that_was_ingested_is_reconciled(toll: Tollkeeper) -> None:
    """Counter = ledger = sum of events, over all that the tests above left, and after a rebuild."""
    verified(toll)
    before = toll.usage(UsageQuery(account_id=None, from_us=ALL[0], to_us=ALL[1], group_by=("account",)))
    toll.rebuild()
    verified(toll)
    after = toll.usage(UsageQuery(account_id=None, from_us=ALL[0], to_us=ALL[1], group_by=("account",)))
    assert after.rows == before.rows


def test_a_batch_that_holds_an_event_twice_counts_it_once(tenant: Tenant) -> None:
    """Senders merge buffers."""
    one, two = tenant.event("a", cost_nanos=5), tenant.event("b", cost_nanos=7)
    assert tenant.record(one, two, one, one) == IngestResult(2, 2, [], 0)
    assert tenant.totals("requests", "cost_nanos") == {"requests": 2, "cost_nanos": 12}


def test_an_id_of_another_account_is_another_event(toll: Tollkeeper, tenant: Tenant) -> None:
    """Ids are the caller's own: those of two customers may well be the same."""
    other = Tenant(toll)
    assert tenant.record(tenant.event("a", cost_nanos=5)).accepted == 1
    assert other.record(other.event("a", cost_nanos=6)).accepted == 1
    assert (tenant.totals()["cost_nanos"], other.totals()["cost_nanos"]) == (5, 6)


@pytest.mark.parametrize("delivered", [False, True])
def test_the_same_id_with_another_body_is_a_conflict(tenant: Tenant, delivered: bool) -> None:
    """The first one counts, whether still in the outbox or long stored; the other is named by its index."""
    tenant.record(tenant.event("a", cost_nanos=5))
    if delivered:
        tenant.totals()
    result = tenant.record(
        tenant.event("b", cost_nanos=1),
        tenant.event("a", cost_nanos=6),
        tenant.event("a", cost_nanos=5),
        tenant.event("a", cost_nanos=5, time="2026-05-15T10:00:01Z"),
    )
    assert (result.accepted, result.duplicates) == (1, 1)
    assert [(r.index, r.field, r.code) for r in result.rejections] == [
        (1, "id", "event_conflict"),
        (3, "id", "event_conflict"),
    ]
    assert tenant.totals("requests", "cost_nanos") == {"requests": 2, "cost_nanos": 6}


def test_a_retry_years_later_is_still_a_duplicate(tenant: Tenant) -> None:
    """There is no time window after which an id is forgotten."""
    old = tenant.event("a", time="2020-01-01T00:00:00Z", cost_nanos=5)
    tenant.record(old)
    tenant.totals()
    assert tenant.record(old) == IngestResult(0, 1, [], 0)


def test_a_price_that_changed_makes_no_conflict_of_a_retry(toll: Tollkeeper, tenant: Tenant) -> None:
    """What an event costs is ours to say: the sender repeats what it said."""
    event = tenant.event("a", model=f"{tenant.id}-m", tokens={"prompt": 1_000_000})
    tenant.record(event)
    toll.manage.put(Price(id=f"{tenant.id}-m", model=f"{tenant.id}-m", prompt_nanos_per_million=9))
    assert tenant.record(event) == IngestResult(0, 1, [], 0)
    assert tenant.totals("cost_nanos", "requests") == {"cost_nanos": 9, "requests": 1}


def test_two_threads_with_overlapping_batches_book_each_id_once(tenant: Tenant) -> None:
    """The look-up and the commit are one step."""
    results: list[IngestResult] = []
    start = threading.Barrier(4)

    def send(seed: int) -> None:
        chance = random.Random(seed)
        start.wait()
        for _ in range(10):
            chosen = chance.sample(range(200), 40)
            results.append(tenant.record(*(tenant.event(f"e{i}", cost_nanos=2**i % 997) for i in chosen)))

    threads = [threading.Thread(target=send, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = tenant.record(*(tenant.event(f"e{i}", cost_nanos=2**i % 997) for i in range(200)))
    assert [r for result in results for r in result.rejections] == last.rejections == []
    assert sum(result.accepted for result in results) + last.accepted == 200
    totals = tenant.totals("requests", "cost_nanos")
    assert totals == {"requests": 200, "cost_nanos": sum(2**i % 997 for i in range(200))}


def test_the_id_of_an_open_hold_is_taken(toll: Tollkeeper, tenant: Tenant) -> None:
    """Settling the hold makes the event of that id: another one of the same id would count beside it."""
    from tollkeeper.domain.requests import NO_USAGE
    from tollkeeper.ledger.commit_future import CommitFuture

    holds = toll.installation.holds
    found = holds.authorize(tenant.secrets["key"], "POST", "/v1/chat", NO_USAGE, CommitFuture(), hold_id="h1")
    assert isinstance(found, tuple)
    found[1].wait()
    result = tenant.record(tenant.event("h1", cost_nanos=5))
    assert [r.code for r in result.rejections] == ["event_conflict"]
    _, future = holds.settle_hold("h1", Outcome(usage=Usage(cost_nanos=9)), CommitFuture())
    assert future is not None
    future.wait()
    result = tenant.record(tenant.event("h1", cost_nanos=5))
    assert [r.code for r in result.rejections] == ["event_conflict"]
    assert tenant.totals("requests", "cost_nanos") == {"requests": 1, "cost_nanos": 9}


# -- whose event it is ------------------------------------------------------------------------------------


def test_what_has_no_owner_is_rejected_and_nothing_else(toll: Tollkeeper, tenant: Tenant) -> None:
    """A bad event never sinks the others: the answer names each with its index and field."""
    other = Tenant(toll)
    result = tenant.record(
        tenant.event("ok1", cost_nanos=1),
        tenant.event("x1", account="nobody"),
        tenant.event("x2", key_id="no-key"),
        tenant.event("x3", key_id=other.key, account=tenant.id),
        tenant.event("x4", project="no-project"),
        tenant.event("x5", key_id=tenant.key, project="p2"),
        {"id": "x6"},
        tenant.event("ok2", key_id=tenant.credit_key, project="p2", cost_nanos=1),
        tenant.event("ok3", key_id=tenant.key, project="p1", account=tenant.id, cost_nanos=1),
    )
    assert result.accepted == 3
    assert [(r.index, r.field, r.code) for r in result.rejections] == [
        (1, "account", "unknown_account"),
        (2, "key_id", "unknown_key"),
        (3, "key_id", "unknown_key"),
        (4, "project", "unknown_project"),
        (5, "project", "wrong_project"),
        (6, "time", "missing_field"),
    ]
    assert tenant.totals("requests")["requests"] == 3
    assert other.totals("requests")["requests"] == 0
    assert tenant.booked("ok3").project_id == "p1"


def test_an_account_created_later_is_found(toll: Tollkeeper) -> None:
    """That it did not exist must not be remembered."""
    name = f"late{next(_names)}"
    event = {"id": "a", "time": "2026-05-15T10:00:00Z", "account": name}
    assert [r.code for r in toll.record([event]).rejections] == ["unknown_account"]
    toll.apply(f'[[accounts]]\nid = "{name}"\nname = "Late"')
    assert toll.record([event]).accepted == 1


def test_a_management_key_sees_and_books_only_its_own(toll: Tollkeeper, tenant: Tenant) -> None:
    """Nor may an answer tell whether somebody else's key, account or event exists."""
    other = Tenant(toll)
    other.record(other.event("theirs", cost_nanos=5))
    ingest = toll.installation.ingest

    def take(*events: dict[str, Any]) -> IngestResult:
        return ingest.take(decode_events(events, now_us=NOW_US), account_id=tenant.id)

    theirs = take(other.event("a"), other.event("b", key_id=other.key), tenant.event("c", account=other.id))
    none = take(
        tenant.event("a", account="nobody"),
        tenant.event("b", key_id="no-key"),
        tenant.event("c", account="nobody"),
    )
    assert theirs.accepted == none.accepted == 0
    assert [(r.index, r.field, r.code) for r in theirs.rejections] == [
        (r.index, r.field, r.code) for r in none.rejections
    ]
    assert take(tenant.event("theirs", cost_nanos=7)).accepted == 1
    assert other.totals("cost_nanos", "requests") == {"cost_nanos": 5, "requests": 1}


# -- charges and prices: the batch agrees with the single event ---------------------------------------------

BOUNDS = [
    to_us(at) + shift
    for at in (
        datetime(2026, 5, 15, 2, 30, tzinfo=UTC),  # Midnight in St. John's.
        datetime(2026, 5, 11, tzinfo=UTC),  # Monday.
        datetime(2026, 5, 15, 10, tzinfo=UTC),  # A 5h span ends.
        datetime(2026, 5, 15, tzinfo=UTC),
    )
    for shift in (-1, 0, 1)
]
QUANTITIES = ({}, {"seconds": 10**18}, {"cache_write_tokens": 7 * 10**6, "own": 3, "seconds": 1})
"""Of the greatest, ten pass 64 bits."""
moments = st.integers(NOW_US - 40 * 86_400_000_000, NOW_US) | st.sampled_from(BOUNDS)


@settings(PER_EXAMPLE, max_examples=effort(24, 120))
@given(
    drawn=st.lists(
        st.tuples(
            moments,
            st.sampled_from(["key", "credit", ""]),
            st.sampled_from(["", "p1", "p2"]),
            st.sampled_from([1, 1, 1, -1]),
            st.sampled_from(["", "", "rate_limited"]),
            st.integers(0, 10**15),
            st.integers(0, 10**9),
            st.integers(0, 10**6),
            st.sampled_from(QUANTITIES),
        ),
        max_size=40,
    )
)
@example(
    drawn=[
        (at_us, key, "p1", 1, "", 5, 7, 9, QUANTITIES[2]) for at_us in BOUNDS for key in ("key", "credit", "")
    ]
)
def test_a_batch_charges_what_its_records_charge(toll: Tollkeeper, drawn: list[tuple[Any, ...]]) -> None:
    """`charge_columns` is the sum of `Directory.charges_of`, period by period."""
    tenants = _fixed_tenants(toll)
    records = [
        blank(tenants[index % 2], at_us)._replace(
            key_id=f"{tenants[index % 2].id}.{key}" if key else "",
            project_id=project,
            sign=sign,
            denied_reason=denied,
            cost_nanos=cost,
            prompt_tokens=tokens,
            reasoning_tokens=tokens // 3,
            credits=credits,
            adjustment_nanos=0 if index % 3 else cost % 101 - 50,
            quantities=quantities,
        )
        for index, (at_us, key, project, sign, denied, cost, tokens, credits, quantities) in enumerate(drawn)
    ]
    installation = toll.installation
    batch = charge_columns(table_of(records), installation.directory)
    together = Draft(0, installation.pending, 0, installation.directory.charges_of)
    Batch(
        table_of(records),
        b"",
        [],
        set(),
        batch.budgets,
        0,
        CommitFuture(),
        draws=batch.draws,
        corrections=True,
    ).add(together)
    singly = Draft(0, installation.pending, 0, installation.directory.charges_of)
    for at, used in installation.directory.charges_of_all(records).items():
        singly.charge(at, used, counted=False)
    one, other = together.group, singly.group
    assert _without_zeros(one.charges) == _without_zeros(other.charges)
    # A span per draw: whatever grants there are, both draw on the same ones.
    times = sorted({record.occurred_at_us for record in records})
    assert one.draws.keys() == other.draws.keys()
    for account_id, draws in one.draws.items():
        assert draws.between(times) == other.draws[account_id].between(times)


def _without_zeros(charges: dict[Any, int]) -> dict[Any, int]:
    return {at: used for at, used in charges.items() if used}


_tenants: list[Tenant] = []


def _fixed_tenants(toll: Tollkeeper) -> list[Tenant]:
    if not _tenants or _tenants[0].toll is not toll:
        without_key = 'plan = "pro"\nkeyless_credit_at = 2026-05-15T00:00:00Z'
        _tenants[:] = [Tenant(toll), Tenant(toll, account=without_key)]
    return _tenants


def blank(tenant: Tenant, at_us: int) -> Record:
    return Record(
        tenant.id, "", "", at_us, NOW_US, "e", 0, 1, "", "request", "GET", "/", 200, "", "", None, 0, "",
        0, 0, 0, 0, "", 0, 0, 0, "given", "", {},
    )  # fmt: skip


counts = st.integers(0, 3) | st.integers(0, 10**9)


@settings(PER_EXAMPLE, max_examples=effort(20, 100))
@given(
    path=st.sampled_from(["POST /v1/scan/9", "POST /v1/chat", "GET /v1/status"]),
    model=st.sampled_from(["", "m1", "image", "gpt-4o", "no-such-model"]),
    tokens=st.tuples(counts, counts, counts, counts) | st.just((0, 0, 0, 0)),
    status=st.sampled_from([200, 204, 399, 400, 429, 500]),
    cache=st.sampled_from(["", "hit", "miss", "none"]),
    cost=st.none() | st.integers(0, 10**15),
    credits=st.none() | st.integers(0, 10**9),
    tags=st.dictionaries(st.sampled_from("ab"), st.text("xy", max_size=2)),
    quantities=st.sampled_from(QUANTITIES),
    variant=st.sampled_from(["", "batch"]),
)
def test_the_meter_prices_an_event_as_the_gate_prices_the_request(
    toll: Tollkeeper,
    path: str,
    model: str,
    tokens: tuple[int, int, int, int],
    status: int,
    cache: Any,
    cost: int | None,
    credits: int | None,
    tags: dict[str, str],
    quantities: dict[str, int],
    variant: str,
) -> None:
    """The same request costs the same, whether it passed the gate or was reported afterwards."""
    tenant = _fixed_tenants(toll)[0]
    method, route = path.split()
    admission = toll.admit(tenant.secrets["key"], method, route)
    assert isinstance(admission, Admission)
    usage = Usage(
        *tokens,
        model=model,
        cost_nanos=cost,
        credits=credits,
        quantities=quantities_json(quantities),
        variant=variant,
    )
    outcome = Outcome(status, usage, cache=cache, tags=tags, latency_us=1500, bytes_out=7)
    gated = toll.installation.gate.record_of(admission, outcome, NOW_US)
    toll.void(admission)
    event: dict[str, Any] = {
        "id": admission.id,
        "time": to_text(from_us(admission.at_us)),
        "key_id": tenant.key,
        "method": method,
        "route": route,
        "status": status,
        "model": model,
        "tokens": dict(zip(("prompt", "cached_prompt", "completion", "reasoning"), tokens, strict=True)),
        "latency_ms": 1.5,
        "bytes_out": 7,
        "tags": tags,
        "quantities": quantities_json(quantities),
        "variant": variant,
    }
    event |= {"cache": cache} if cache else {}
    event |= {"cost_nanos": cost} if cost is not None else {}
    event |= {"credits": credits} if credits is not None else {}
    resolved = resolve(decode_events([event], now_us=NOW_US), toll.installation.directory, NOW_US)
    (metered,) = records_of(resolved.table)
    # The gate keeps what it held as the estimate; nobody estimated the event. It notes the path as called.
    assert metered == gated._replace(estimated_cost_nanos=0, route=metered.route)


@pytest.mark.drawn(8)
@pytest.mark.parametrize(
    ("fields", "cost", "credits", "state"),
    [
        ({"method": "GET", "route": "/v1/status"}, 0, 0, "free"),
        ({"method": "GET", "route": "/v1/status", "model": "m1", "tokens": {"prompt": 10**6}}, 0, 0, "free"),
        ({"method": "POST", "route": "/v1/chat"}, 11, 1, "priced"),
        ({"method": "POST", "route": "/v1/chat", "cache": "hit"}, 0, 1, "free"),
        ({"method": "POST", "route": "/v1/chat", "status": 500}, 0, 0, "priced"),
        ({"method": "POST", "route": "/v1/chat", "denied_reason": "rate_limited"}, 0, 0, "free"),
        ({"method": "POST", "route": "/v1/chat", "cost_nanos": 0}, 0, 1, "given"),
        ({"method": "POST", "route": "/v1/chat", "estimated_cost_nanos": 9}, 9, 1, "estimated"),
        ({"method": "POST", "route": "/v1/chat", "estimated_cost_nanos": 9, "cost_nanos": 8}, 8, 1, "given"),
        ({"method": "POST", "route": "/elsewhere"}, 0, 0, "free"),
        ({"model": "m1", "tokens": {"prompt": 1_000_000}}, 3_000_000, 0, "priced"),
        (
            {"model": "m1", "tokens": {"prompt": 1_000_000}, "time": "2026-05-14T11:59:59.999999Z"},
            1_500_005,
            0,
            "priced",
        ),
        ({"model": "m1", "tokens": {"completion": 1}, "time": "2026-05-14T00:00:00Z"}, 7, 0, "priced"),
        (
            {"method": "POST", "route": "/v1/chat", "model": "none", "tokens": {"prompt": 1}},
            11,
            1,
            "unpriced",
        ),
        ({"method": "POST", "route": "/v1/chat", "model": "none"}, 11, 1, "unpriced"),
        ({"model": "none"}, 0, 0, "unpriced"),
        ({"model": "none", "status": 500}, 0, 0, "free"),
        ({"model": "none", "denied_reason": "rate_limited"}, 0, 0, "free"),
        ({"model": "image"}, 40_000_000, 0, "priced"),
        ({"model": "image", "status": 500}, 0, 0, "free"),
        ({"model": "image", "denied_reason": "budget_exhausted"}, 0, 0, "free"),
        ({"model": "image", "cache": "hit"}, 0, 0, "free"),
        ({"model": "image", "method": "POST", "route": "/v1/chat"}, 40_000_011, 1, "priced"),
        ({"model": "image", "method": "GET", "route": "/v1/status"}, 0, 0, "free"),
        ({"model": "image", "tokens": {"prompt": 0}}, 40_000_000, 0, "priced"),
    ],
)
def test_what_an_event_costs(
    tenant: Tenant, fields: dict[str, Any], cost: int, credits: int, state: str
) -> None:
    """Free routes and cache hits cost nothing, failures no route price, and a stated cost stands."""
    tenant.record(tenant.event("a", **fields))
    record = tenant.booked("a")
    assert (record.cost_nanos, record.credits, record.cost_state) == (cost, credits, state)


def test_paths_are_counted_under_their_template(tenant: Tenant) -> None:
    """Or ids in paths would make a rollup row each."""
    tenant.record(*(tenant.event(f"e{i}", method="POST", route=f"/v1/scan/{i}") for i in range(5)))
    report = tenant.toll.usage(
        UsageQuery(account_id=tenant.id, from_us=ALL[0], to_us=ALL[1], group_by=("route", "kind"))
    )
    assert [(row["route"], row["kind"], row["requests"]) for row in report.rows] == [
        ("/v1/scan/{id}", "scan", 5)
    ]


# -- events without a price, and late ones -------------------------------------------------------------------


def test_an_event_without_a_price_is_kept_and_priced_when_the_price_comes(
    toll: Tollkeeper, tenant: Tenant
) -> None:
    """The meter loses nothing for want of a price; every total follows when it is known."""
    model = f"{tenant.id}-new"
    tenant.record(
        *(
            tenant.event(f"e{i}", key_id=tenant.credit_key, model=model, tokens={"prompt": i * 10**6})
            for i in range(4)
        ),
        tenant.event("given", key_id=tenant.credit_key, model=model, tokens={"prompt": 5}, cost_nanos=77),
    )
    # One without tokens too: the price may be per request.
    assert tenant.totals("requests", "unpriced", "cost_nanos") == {
        "requests": 5,
        "unpriced": 4,
        "cost_nanos": 77,
    }
    toll.manage.put(Price(id=model, model=model, prompt_nanos_per_million=100))
    assert tenant.totals("requests", "unpriced", "cost_nanos") == {
        "requests": 5,
        "unpriced": 0,
        "cost_nanos": 677,
    }
    counters = tenant.counters()
    assert counters["credit", 0] == 677
    assert toll.installation.ledger.book(tenant.id)[0].spent_nanos == 677
    assert tenant.booked("e3").price_version == f"prices:{model}"
    assert toll.installation.amend.price_unpriced() == 0


def test_late_pricing_shares_no_id_with_a_caller_nor_with_itself(toll: Tollkeeper, tenant: Tenant) -> None:
    """The corrections that price events have ids too: none that a caller can give, and each its own."""
    model = f"{tenant.id}-new"
    long = "x" * (ID_CHARS_MAX - 1)
    ids = ("e", "f", long + "1", long + "2")
    taken = ["price:e:1", "price:1:e"]
    tenant.record(
        *(tenant.event(id_, model=model, tokens={"prompt": 10**6}) for id_ in ids),
        *(tenant.event(id_, cost_nanos=1) for id_ in taken),
    )
    toll.manage.put(Price(id=model, model=model, prompt_nanos_per_million=100))
    assert tenant.totals("unpriced", "cost_nanos") == {"unpriced": 0, "cost_nanos": 400 + len(taken)}
    later = ["price:f:1", "price:1:f"]
    tenant.record(*(tenant.event(id_, cost_nanos=1) for id_ in later))
    assert tenant.totals("cost_nanos") == {"cost_nanos": 400 + len(taken) + len(later)}


def test_events_that_stay_without_a_price_do_not_hide_others(
    toll: Tollkeeper, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than one step reads must not keep the price from those that it is for."""
    monkeypatch.setattr(amend, "UNPRICED_BATCH", 3)
    never, found = f"{tenant.id}-never", f"{tenant.id}-found"
    unpriceable = [
        tenant.event(f"n{i}", time="2026-05-01T00:00:00Z", model=never, tokens={"prompt": 1})
        for i in range(7)
    ]
    tenant.record(*unpriceable, tenant.event("f", model=found, tokens={"prompt": 10**6}))
    toll.manage.put(Price(id=found, model=found, prompt_nanos_per_million=100))
    assert tenant.totals("unpriced", "cost_nanos") == {"unpriced": 7, "cost_nanos": 100}


def test_a_price_is_for_events_from_its_start_and_of_its_account(toll: Tollkeeper, tenant: Tenant) -> None:
    """A price must not reach back further than it says, nor to other customers."""
    other = Tenant(toll)
    model = f"{tenant.id}-own"
    for owner in (tenant, other):
        owner.record(
            owner.event("old", time="2026-05-01T00:00:00Z", model=model, tokens={"prompt": 10**6}),
            owner.event("new", time="2026-05-10T00:00:00Z", model=model, tokens={"prompt": 10**6}),
        )
    toll.manage.put(
        Price(
            id=model,
            model=model,
            account=tenant.id,
            effective_at=datetime(2026, 5, 10, tzinfo=UTC),
            prompt_nanos_per_million=5,
        )
    )
    assert tenant.totals("unpriced", "cost_nanos") == {"unpriced": 1, "cost_nanos": 5}
    assert other.totals("unpriced", "cost_nanos") == {"unpriced": 2, "cost_nanos": 0}


def test_a_late_event_lands_in_the_bucket_of_its_time(tenant: Tenant) -> None:
    """A past answer changes; today's does not."""

    def days() -> dict[str, int]:
        report = tenant.toll.usage(
            UsageQuery(account_id=tenant.id, from_us=ALL[0], to_us=ALL[1], granularity="day")
        )
        return {row["time"][:10]: row["cost_nanos"] for row in report.rows}

    tenant.record(
        tenant.event("a", cost_nanos=1), tenant.event("b", cost_nanos=2, time="2026-03-01T00:00:00Z")
    )
    assert days() == {"2026-03-01": 2, "2026-05-15": 1}
    late = tenant.event("c", cost_nanos=40, time="2026-02-28T23:59:59.999999-01:00")
    assert tenant.record(late).accepted == 1
    assert days() == {"2026-03-01": 42, "2026-05-15": 1}
    assert sum(used for (counter, _), used in tenant.counters().items() if counter == "budget:daily") == 1


def test_the_future_is_refused(tenant: Tenant) -> None:
    """A sender's clock that is hours ahead would fill periods that nobody looks at yet."""
    near, far = (to_text(NOW + timedelta(seconds=s)) for s in (299, 301))
    result = tenant.record(tenant.event("near", time=near), tenant.event("far", time=far))
    assert (result.accepted, [(r.index, r.code) for r in result.rejections]) == (1, [(1, "time_in_future")])
