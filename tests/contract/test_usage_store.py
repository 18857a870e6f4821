"""The usage store answers what a plain reading of the records says, whatever was corrected or repeated."""

from __future__ import annotations

import itertools
import random
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pyarrow as pa
import pytest

from tollkeeper.adapters.clickhouse import ClickHouseUsageStore, queries, tiers
from tollkeeper.domain.events import Record
from tollkeeper.domain.increments import apply_increment
from tollkeeper.domain.instants import from_us, to_text, to_us
from tollkeeper.domain.periods import period_of
from tollkeeper.domain.rollups import latency_bin, percentile_us
from tollkeeper.domain.usage import DIMENSIONS, UsageQuery, UsageReport
from tollkeeper.domain.usage import MEASURES as MEASURE_NAMES
from tollkeeper.errors import BadParameter, Unavailable
from tollkeeper.ports import CostSum, ReportRows
from tollkeeper.record_columns import SCHEMA, records_of, table_of

FROM_US = to_us(datetime(2026, 3, 20, tzinfo=UTC))
TO_US = to_us(datetime(2026, 4, 10, tzinfo=UTC))
ALL_US = (0, to_us(datetime(2200, 1, 1, tzinfo=UTC)))
HOSTILE = ("'; DROP TABLE events; --", "a\\", "{account_id:String}", "%s \t\n\x00", "') OR 1=1 --", "ü–✓")
MEASURES = (
    *MEASURE_NAMES,
    "quantity.seconds",
    "quantity.cache_write_tokens",
    "quantity.own",
    "quantity.absent",
)
BOTH = {"account": ("acct_oracle", "acct_other")}
"""The accounts of `history`, for questions about all accounts."""
SUMS = [
    name
    for name in MEASURES
    if not name.startswith(("latency_ms_", "peak_")) and name not in ("kinds", "first_at", "last_at")
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseUsageStore]:
    """One engine for the module: chDB opens one path per process. Tests keep apart by account."""
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path_factory.mktemp('usage')}", memory_bytes_max=2 << 30)
    yield store
    store.close()


@pytest.fixture
def account() -> str:
    return f"acct_{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def history(store: ClickHouseUsageStore) -> list[Record]:
    """Random records of two accounts, corrected at random, as a store has them after several appends."""
    rows = random_history(random.Random(7), ["acct_oracle", "acct_other"], 300)
    for start in range(0, len(rows), 97):
        store.append(table_of(rows[start : start + 97]), f"history-{start}")
    return rows


def record(account: str, **fields: Any) -> Record:
    at_us = fields.pop("occurred_at_us", FROM_US + 3_600_000_000)
    blank = Record(
        account_id=account,
        project_id="",
        key_id="key_1",
        occurred_at_us=at_us,
        received_at_us=at_us + 1_000_000,
        id=str(uuid.uuid4()),
        revision=0,
        sign=1,
        amendment_id="",
        kind="request",
        method="GET",
        route="/v1/x",
        status=200,
        error_type="",
        denied_reason="",
        latency_us=None,
        bytes_out=0,
        model="",
        prompt_tokens=0,
        cached_prompt_tokens=0,
        completion_tokens=0,
        reasoning_tokens=0,
        cache="none",
        credits=0,
        cost_nanos=0,
        estimated_cost_nanos=0,
        cost_state="free",
        price_version="",
        tags={},
    )
    return blank._replace(**fields)


def amended(old: Record, amendment_id: str = "", **fields: Any) -> list[Record]:
    """The rows that an amendment appends."""
    new = old._replace(revision=old.revision + 1, amendment_id=amendment_id, **fields)
    return [old._replace(sign=-1, amendment_id=amendment_id), new]


def voided(old: Record, amendment_id: str = "") -> list[Record]:
    """The row that a void appends."""
    return [old._replace(sign=-1, amendment_id=amendment_id)]


def random_record(rng: random.Random, account: str) -> Record:
    # Few hours, among them those around the clock changes of Berlin and New York, and few minutes in them.
    hours = [
        datetime(2026, 3, 20, 4, tzinfo=UTC),
        datetime(2026, 3, 28, 22, tzinfo=UTC),
        datetime(2026, 3, 29, 0, tzinfo=UTC),
        datetime(2026, 3, 29, 1, tzinfo=UTC),
        datetime(2026, 3, 31, 18, tzinfo=UTC),
        datetime(2026, 3, 31, 23, tzinfo=UTC),
        datetime(2026, 11, 1, 5, tzinfo=UTC),
        datetime(2026, 11, 1, 6, tzinfo=UTC),
        datetime(2026, 10, 25, 0, tzinfo=UTC),
        datetime(2026, 10, 25, 1, tzinfo=UTC),
    ]
    offset = timedelta(minutes=rng.choice([0, 1, 29, 30, 59]), microseconds=rng.choice([0, 1, 999_999]))
    model = rng.choice(["", "gpt-5", "claude", HOSTILE[0]])
    state = rng.choice(["given", "priced", "estimated", "unpriced", "free"])
    latency = rng.choice([None, 0, 1, 50, rng.randrange(1, 10_000_000), round(1.02 ** rng.randrange(400))])
    if rng.random() < 0.1:
        return record(
            account,
            occurred_at_us=to_us(rng.choice(hours) + offset),
            key_id=rng.choice(["", "key_1"]),
            kind=rng.choice(["adjustment", "request"]),
            status=0,
            adjustment_nanos=rng.choice([-5, 1, 10**15, -(10**15)]),
        )
    return record(
        account,
        project_id=rng.choice(["", "proj_a", "proj_b"]),
        key_id=rng.choice(["", "key_1", "key_2", HOSTILE[1]]),
        occurred_at_us=to_us(rng.choice(hours) + offset),
        kind=rng.choice(["request", "scan", "export"]),
        method=rng.choice(["", "GET", "POST"]),
        route=rng.choice(["", "/v1/chat", "/v1/scan/{id}"]),
        status=rng.choice([0, 200, 201, 404, 429, 500]),
        error_type=rng.choice(["", "", "timeout"]),
        denied_reason=rng.choice(["", "", "rate_limited"]),
        latency_us=latency,
        bytes_out=rng.randrange(10**6),
        model=model,
        prompt_tokens=rng.randrange(5000),
        cached_prompt_tokens=rng.randrange(500),
        completion_tokens=rng.randrange(5000),
        reasoning_tokens=rng.choice([0, rng.randrange(10**9)]),
        cache=rng.choice(["none", "hit", "miss", ""]),
        credits=rng.randrange(10),
        cost_nanos=0 if state in ("unpriced", "free") else rng.randrange(10**15),
        estimated_cost_nanos=rng.choice([0, 5]),
        cost_state=state,
        quantities=random_quantities(rng),
        provider_cost_nanos=rng.choice([0, 0, rng.randrange(10**15)]),
        variant=rng.choice(["", "batch"]),
        tags=rng.choice([{}, {"team": "x"}, {"team": "y", "env": "prod"}, {HOSTILE[0]: HOSTILE[1]}]),
    )


def random_quantities(rng: random.Random) -> dict[str, int]:
    """Few or none; sums of the greatest pass 64 bits."""
    names = rng.sample(
        ["cache_write_tokens", "image_completion_tokens", "own", "seconds"], rng.choice([0, 0, 1, 3])
    )
    return {
        name: rng.randrange(1, 10**9) * 10**6 if name.endswith("_tokens") else rng.choice([1, 10**18])
        for name in sorted(names)
    }


def random_history(rng: random.Random, accounts: Sequence[str], count: int) -> list[Record]:
    """Rows of *count* events, some amended once or twice (at times to another hour), some voided."""
    rows = []
    for number in range(count):
        current = random_record(rng, rng.choice(accounts))
        rows.append(current)
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            again = random_record(rng, current.account_id)
            kept = {"id": current.id, "revision": current.revision}
            if rng.random() < 0.7:
                kept["occurred_at_us"] = current.occurred_at_us
            new = again._replace(**kept)._asdict()
            rows += amended(
                current,
                f"am_{number}_{current.revision}",
                **{
                    name: value
                    for name, value in new.items()
                    if name not in ("id", "revision", "sign", "amendment_id")
                },
            )
            current = rows[-1]
        if rng.random() < 0.15:
            rows += voided(current, f"void_{number}")
    return rows


# The oracle: every measure from the list of records that stand, one at a time.


def limit_status(rows: Sequence[Record]) -> list[Record]:
    net: Counter[tuple[str, str, int]] = Counter()
    for row in rows:
        net[row.account_id, row.id, row.revision] += row.sign
    return [row for row in rows if row.sign == 1 and net[row.account_id, row.id, row.revision] == 1]


def dimension(row: Record, name: str) -> Any:
    if name.startswith("tag:"):
        return row.tags.get(name.removeprefix("tag:"), "")
    if name == "endpoint":
        return f"{row.method} {row.route}".strip()
    return getattr(row, f"{name}_id" if name in ("account", "project", "key") else name)


def bucket(row: Record, query: UsageQuery) -> tuple[datetime, str]:
    zone = ZoneInfo(query.time_zone)
    local = from_us(row.occurred_at_us).astimezone(zone)
    if query.granularity == "minute":
        start = local.replace(second=0, microsecond=0)
    elif query.granularity == "hour":
        start = local.replace(minute=0, second=0, microsecond=0)
    else:
        period = period_of(
            local, str(query.granularity), time_zone=query.time_zone, week_start=query.week_start
        )
        start = period.start_at.astimezone(zone)
    text = start.isoformat()
    return start.astimezone(UTC), text.replace("+00:00", "Z") if query.time_zone == "UTC" else text


def measured(rows: Sequence[Record], name: str) -> Any:
    if name == "adjustments_nanos":
        return sum(row.adjustment_nanos for row in rows)
    rows = [row for row in rows if not row.adjustment_nanos]
    if name.startswith("quantity."):
        return sum(row.quantities.get(name.removeprefix("quantity."), 0) for row in rows)
    latencies = [row.latency_us for row in rows if row.latency_us is not None]
    if name == "requests":
        return len(rows)
    if name == "errors":
        return sum(row.status >= 400 or row.error_type != "" for row in rows)
    if name == "failed":
        return sum(row.status >= 400 for row in rows)
    if name == "denied":
        return sum(row.denied_reason != "" for row in rows)
    if name == "tokens":
        own = sum(
            row.prompt_tokens + row.cached_prompt_tokens + row.completion_tokens + row.reasoning_tokens
            for row in rows
        )
        classes = ("cache_write_tokens", "image_completion_tokens")
        return own + sum(row.quantities.get(name, 0) for row in rows for name in classes) // 10**6
    if name == "estimated_cost_nanos":
        return sum(row.cost_nanos for row in rows if row.cost_state == "estimated")
    if name == "unpriced":
        return sum(row.cost_state == "unpriced" for row in rows)
    if name in ("cache_hits", "cache_misses"):
        return sum(row.cache == {"cache_hits": "hit", "cache_misses": "miss"}[name] for row in rows)
    if name == "kinds":
        return dict(Counter(row.kind for row in rows))
    if name.startswith("peak_requests_per_"):
        width = {"minute": 60, "hour": 3600}[name.removeprefix("peak_requests_per_")] * 1_000_000
        return max(Counter(row.occurred_at_us // width for row in rows).values(), default=0)
    if name in ("first_at", "last_at"):
        times = [row.occurred_at_us for row in rows]
        return to_text(from_us({"first_at": min, "last_at": max}[name](times))) if times else None
    if name.startswith("latency_ms_"):
        if not latencies:
            return None
        if name == "latency_ms_avg":
            return sum(latencies) / len(latencies) / 1000
        if name == "latency_ms_max":
            return max(latencies) / 1000
        value = percentile_us(Counter(map(latency_bin, latencies)), int(name[-2:]) / 100)
        return None if value is None else value / 1000
    return sum(getattr(row, name) for row in rows)


def expected(rows: Sequence[Record], query: UsageQuery) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows of the answer in the order of time and groups, and the totals."""
    chosen = [
        row
        for row in limit_status(rows)
        if query.account_id in (None, row.account_id)
        and query.from_us <= row.occurred_at_us < query.to_us
        and all(any(matches(row, name, value) for value in values) for name, values in query.filters.items())
        and (not row.adjustment_nanos or "adjustments_nanos" in query.measures)
    ]
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for row in chosen:
        time = bucket(row, query) if query.granularity else ()
        groups[(time, *(dimension(row, name) for name in query.group_by))].append(row)
    names = [*(["time"] if query.granularity else []), *query.group_by]
    answer = []
    for key in sorted(groups, key=lambda key: (key[0], *map(in_order, key[1:]))):
        shown = [*([key[0][1]] if query.granularity else []), *key[1:]]
        answer.append(
            dict(zip(names, shown, strict=True))
            | {name: measured(groups[key], name) for name in query.measures}
        )
    return answer, {name: measured(chosen, name) for name in query.measures}


def matches(row: Record, name: str, value: str) -> bool:
    return str(dimension(row, name)) == ("0" if name == "status" and value == "" else value)


def in_order(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def ask(account: str | None, **fields: Any) -> UsageQuery:
    return UsageQuery(**{"account_id": account, "from_us": ALL_US[0], "to_us": ALL_US[1], **fields})


def check(
    store: ClickHouseUsageStore,
    history: Sequence[Record],
    query: UsageQuery,
    with_pending: Sequence[Record] = (),
) -> None:
    answer = store.report(query, with_pending)
    rows, totals = expected(history, query)
    assert answer.rows == rows
    assert answer.totals == totals
    assert answer.row_count == len(rows)


NOT_ADDED = {"kinds", "latency_ms_avg", "peak_requests_per_minute", "peak_requests_per_hour"} | {
    name for name in MEASURES if name.startswith("latency_ms_p")
}

# Append


def test_a_repeated_append_changes_nothing(store: ClickHouseUsageStore, account: str) -> None:
    """The relay repeats after a lost answer; rollups and ids must not count twice either."""
    rng = random.Random(1)
    batches = [random_history(rng, [account], 20) for _ in range(4)]
    query = ask(account, group_by=("key",), granularity="hour", measures=MEASURES)
    for number, batch in enumerate(batches):
        store.append(table_of(batch), f"{account}-{number}")
        store.append(table_of(batch), f"{account}-{number}")
    once = store.report(query)
    for number, batch in enumerate(batches):  # However late, and others in between.
        store.append(table_of(batch), f"{account}-{number}")
    assert store.report(query) == once
    check(store, list(itertools.chain(*batches)), query)
    assert sum(piece.num_rows for piece in store.export(account, *ALL_US)) == sum(map(len, batches))
    assert store.differences() == []


@pytest.mark.parametrize("view", ["usage_rollups_of_events", "event_ids_of_events"])
def test_a_repeat_completes_what_a_crash_left_half_way(
    store: ClickHouseUsageStore, account: str, view: str
) -> None:
    """The records may be on disk and their rollups not: the repeat adds these and nothing else."""
    rows = random_history(random.Random(2), [account], 20)
    with store._engine.scans.lend() as client:
        client.command(f"DETACH TABLE {view}")
        store.append(table_of(rows), f"{account}-1")
        client.command(f"ATTACH TABLE {view}")
    assert store.differences() != []
    store.append(table_of(rows), f"{account}-1")
    assert store.differences() == []
    check(store, rows, ask(account, measures=MEASURES))


def test_the_same_rows_under_another_token_are_other_rows(store: ClickHouseUsageStore, account: str) -> None:
    """The token names the append, not what is in it: two equal batches are the caller's to tell apart."""
    rows = table_of([record(account)])
    store.append(rows, f"{account}-a")
    store.append(rows, f"{account}-b")
    assert store.report(ask(account)).totals["requests"] == 2


def test_an_append_may_touch_hundreds_of_months(store: ClickHouseUsageStore, account: str) -> None:
    """Late events of any age may come in one batch, in many Arrow chunks."""
    start = datetime(2000, 1, 5, tzinfo=UTC)
    rows = [record(account, occurred_at_us=to_us(start + timedelta(days=31 * n))) for n in range(120)]
    table = pa.concat_tables([table_of(rows[:7]), table_of(rows[7:200]), table_of(rows[200:])])
    store.append(table.unify_dictionaries(), f"{account}-1")
    store.append(table.unify_dictionaries(), f"{account}-1")
    assert store.report(ask(account)).totals["requests"] == 120


def test_an_empty_append_is_no_append(store: ClickHouseUsageStore) -> None:
    store.append(SCHEMA.empty_table(), "empty")
    assert store.known_ids(SCHEMA.empty_table()).num_rows == 0
    assert store.records([]) == {}


# Ids and records


def test_known_ids_are_those_of_events_and_amendments(store: ClickHouseUsageStore, account: str) -> None:
    """Pairs, not ids: the same id under another account is another event."""
    kept, changed, gone = (record(account, id=f"{account}-{name}") for name in "abc")
    rows = [kept, changed, *amended(changed, "am_1", cost_nanos=5), gone, *voided(gone, "void_1")]
    store.append(table_of(rows), f"{account}-1")
    ids = [kept.id, changed.id, gone.id, "am_1", "void_1", "never", *HOSTILE]
    pairs = [(owner, id_) for owner in (account, f"{account}-other", *HOSTILE) for id_ in ids]
    keys = pa.table({"account_id": [owner for owner, _ in pairs], "id": [id_ for _, id_ in pairs]})
    known = store.known_ids(keys).to_pylist()
    assert {pair["id"] for pair in known} == set(ids[:5])
    assert {pair["account_id"] for pair in known} == {account}


@pytest.mark.parametrize("count", [50, 5_000])
def test_ids_are_looked_up_in_any_number(store: ClickHouseUsageStore, account: str, count: int) -> None:
    """The committer hands over its batch: dictionary columns, in chunks."""
    rows = [record(account) for _ in range(count)]
    store.append(table_of(rows[: count // 2]), f"{account}-1")
    keys = pa.concat_tables([table_of(rows[:3]), table_of(rows[3:])]).select(["account_id", "id"])
    known = store.known_ids(keys).to_pylist()
    assert sorted(pair["id"] for pair in known) == sorted(row.id for row in rows[: count // 2])
    ids = [(row.account_id, row.id) for row in rows]
    assert store.records(ids) == {(account, row.id): row for row in rows[: count // 2]}
    found = records_of(store.record_columns(keys.combine_chunks()))
    assert sorted(found) == sorted(rows[: count // 2])


def test_the_greatest_id_and_its_neighbours_are_told_apart(store: ClickHouseUsageStore, account: str) -> None:
    """Ids that are greater than all that are stored are new without a look: the greatest itself is not."""
    greatest, amendment = f"\U0010ffff{account}", f"\U0010ffff{account}~"
    row = record(account, id=greatest)
    for number, (rows, newest) in enumerate([([row], greatest), (amended(row, amendment), amendment)]):
        store.append(table_of(rows), f"{account}-{number}")
        ids = [newest[:-1], newest, f"{newest}~"]
        known = [
            store.known_ids(pa.table({"account_id": [account], "id": [id_]})).num_rows > 0 for id_ in ids
        ]
        # The first is an id too when it is the event whose amendment is the second.
        assert known == [ids[0] == greatest, True, False]


def test_records_are_the_last_revision(store: ClickHouseUsageStore, account: str) -> None:
    """What an amendment replaces is gone; what a void ends is there with sign -1."""
    moved = {"occurred_at_us": FROM_US + 9 * 86_400_000_000}
    plain, changed, gone, both = (
        record(account, id=f"{account}-{name}", latency_us=5, tags={HOSTILE[0]: HOSTILE[3]})
        for name in "abcd"
    )
    change = amended(changed, "am_1", cost_nanos=5, **moved)
    changes = amended(both, "am_2", cost_nanos=6)
    end = voided(changes[1], "void_2")
    rows = [plain, changed, *change, gone, *voided(gone, "void_1"), both, *changes, *end]
    for number, row in enumerate(rows):  # One append each: a current record must not depend on blocks.
        store.append(table_of([row]), f"{account}-{number}")
    found = store.records(
        [(account, row.id) for row in rows] + [(account, "no"), ("no", plain.id), (account, "am_1")]
    )
    assert found == {
        (account, plain.id): plain,
        (account, changed.id): change[1],
        (account, gone.id): voided(gone, "void_1")[0],
        (account, both.id): end[0],
    }


def test_owners_are_the_accounts_with_an_event_of_the_id(store: ClickHouseUsageStore, account: str) -> None:
    """An id belongs to its account: two may use the same. An amendment's id is no event's."""
    first = record(f"{account}-a", id=account)
    second = record(f"{account}-b", id=account)
    store.append(table_of([second, first, *voided(second, f"{account}-void")]), f"{account}-1")
    assert store.owners(account) == [f"{account}-a", f"{account}-b"]
    assert store.owners(f"{account}-void") == []


def test_unpriced_records_come_oldest_first(store: ClickHouseUsageStore, account: str) -> None:
    """Those that a correction priced, or took back, are no longer among them."""
    model = f"model-{account}"
    rows = [
        record(account, model=model, cost_state="unpriced", occurred_at_us=FROM_US + n * 1_000)
        for n in range(6)
    ]
    extra = amended(rows[1], cost_state="priced", cost_nanos=9) + voided(rows[2])
    other = record(account, model=f"{model}-2", cost_state="unpriced")
    store.append(table_of([*reversed(rows), *extra, other]), f"{account}-1")
    assert store.unpriced(model, 100) == [rows[0], *rows[3:]]
    assert store.unpriced(model, 2) == [rows[0], rows[3]]
    assert store.unpriced(model, 100, after=rows[3]) == rows[4:]
    assert {row.model for row in store.unpriced(None, 1_000)} >= {model, f"{model}-2"}


def test_export_yields_every_revision_once(
    store: ClickHouseUsageStore, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of any size, in the schema of the record batches."""
    monkeypatch.setattr("tollkeeper.adapters.clickhouse.store._EXPORT_ROWS", 7)
    rows = random_history(random.Random(3), [account], 40)
    store.append(table_of(rows), f"{account}-1")
    pieces = list(store.export(account, *ALL_US))
    assert all(piece.schema == SCHEMA and piece.num_rows <= 7 for piece in pieces)
    exported = [row for piece in pieces for row in records_of(piece)]
    assert sorted(map(repr, exported)) == sorted(map(repr, rows))
    some = [row for row in rows if FROM_US <= row.occurred_at_us < TO_US]
    pieces = list(store.export(account, FROM_US, TO_US))
    assert sum(piece.num_rows for piece in pieces) == len(some)
    assert 0 < len(some) < len(rows)


def test_charged_sums_the_records_of_a_scope(store: ClickHouseUsageStore, history: list[Record]) -> None:
    """Budgets start from this sum, so it must be that of the records, per span, project and key."""
    for project, keys in itertools.product([None, "", "proj_a"], [None, ["key_1", HOSTILE[1]], []]):
        rows = [
            row
            for row in limit_status(history)
            if row.account_id == "acct_oracle"
            and FROM_US <= row.occurred_at_us < TO_US
            and project in (None, row.project_id)
            and (keys is None or row.key_id in keys)
        ]
        found = store.charged("acct_oracle", from_us=FROM_US, to_us=TO_US, project_id=project, key_ids=keys)
        assert found == (
            len(rows),
            sum(row.denied_reason == "" and not row.adjustment_nanos for row in rows),
            measured(rows, "tokens"),
            measured(rows, "cost_nanos") - measured(rows, "adjustments_nanos"),
            measured(rows, "credits"),
            {
                name: total
                for name in ("cache_write_tokens", "image_completion_tokens", "own", "seconds")
                if (total := measured(rows, f"quantity.{name}"))
            },
            measured(rows, "adjustments_nanos"),
        )
        first = store.first_by(
            "acct_oracle", (), from_us=FROM_US, to_us=TO_US, project_id=project, key_ids=keys
        )
        every = [
            row.occurred_at_us
            for row in history
            if row.account_id == "acct_oracle"
            and FROM_US <= row.occurred_at_us < TO_US
            and project in (None, row.project_id)
            and (keys is None or row.key_id in keys)
        ]
        assert first == ({(): min(every)} if every else {})


# Reports


@pytest.mark.drawn(5)
@pytest.mark.parametrize("name", [*DIMENSIONS, "tag:team", "tag:absent", f"tag:{HOSTILE[0]}"])
def test_every_measure_of_every_dimension(
    store: ClickHouseUsageStore, history: list[Record], name: str
) -> None:
    """Each answer equals that of an oracle which looks at the standing records one by one."""
    check(store, history, ask("acct_oracle", group_by=(name,), measures=MEASURES))
    check(
        store,
        history,
        ask(None, from_us=FROM_US + 7, to_us=TO_US, group_by=(name, "kind"), filters=BOTH, measures=MEASURES),
    )


@pytest.mark.drawn
@pytest.mark.parametrize(
    "zone", ["UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York", "Asia/Kathmandu"]
)
@pytest.mark.parametrize("granularity", ["minute", "hour", "day", "week", "month"])
def test_every_bucket_in_every_zone(
    store: ClickHouseUsageStore, history: list[Record], zone: str, granularity: Any
) -> None:
    """Buckets are those of the zone's calendar, across its clock changes."""
    query = ask("acct_oracle", granularity=granularity, time_zone=zone, measures=MEASURES)
    check(store, history, query)
    for week_start in ("sunday", "thursday"):
        check(
            store,
            history,
            ask(None, granularity=granularity, time_zone=zone, week_start=week_start, filters=BOTH),
        )


def test_midnight_may_not_exist(store: ClickHouseUsageStore, account: str) -> None:
    """In Santiago the clock skips midnight of 6 September 2026: that day begins at 01:00."""
    rows = [
        record(account, occurred_at_us=to_us(datetime(2026, 9, 6, hour, 30, tzinfo=UTC)))
        for hour in range(3, 7)
    ]
    store.append(table_of(rows), f"{account}-1")
    query = ask(account, granularity="day", time_zone="America/Santiago", measures=("requests",))
    assert store.report(query).rows == [
        {"time": "2026-09-05T00:00:00-04:00", "requests": 1},
        {"time": "2026-09-06T01:00:00-03:00", "requests": 3},
    ]
    check(store, rows, query)


@pytest.mark.drawn(10)
@pytest.mark.parametrize("seed", range(40))
def test_any_question(store: ClickHouseUsageStore, history: list[Record], seed: int) -> None:
    """Random spans with ragged ends, groupings, filters and measures."""
    rng = random.Random(seed)
    times = sorted(row.occurred_at_us for row in history)
    start, end = sorted(rng.choice(times) + rng.choice([0, 1, -1, 1_800_000_000]) for _ in range(2))
    dimensions = [*DIMENSIONS, "tag:team"]
    filters = dict(BOTH)
    for name in rng.sample(dimensions, rng.choice([0, 0, 1, 2])):
        some = [str(dimension(row, name)) for row in rng.sample(history, 3)]
        filters[name] = tuple({*some, rng.choice(["", "nothing", *HOSTILE])})
    query = ask(
        rng.choice(["acct_oracle", "acct_oracle", None]),
        from_us=start,
        to_us=end + rng.choice([0, 1, 3_600_000_000]),
        granularity=rng.choice([None, "minute", "hour", "day", "week", "month"]),
        time_zone=rng.choice(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York"]),
        group_by=tuple(rng.sample(dimensions, rng.choice([0, 1, 1, 2, 3]))),
        filters=filters,
        measures=tuple(rng.sample(MEASURES, rng.randrange(1, 8))),
        limit=50_000,
    )
    check(store, history, query)
    coming = [
        random_record(rng, rng.choice(["acct_oracle", "acct_other"])) for _ in range(rng.choice([1, 30]))
    ]
    check(store, [*history, *coming], query, coming)


@pytest.mark.drawn(12)
@pytest.mark.parametrize("seed", range(60))
def test_an_answer_that_is_brought_up_to_date_is_the_stores_own(
    store: ClickHouseUsageStore, history: list[Record], seed: int
) -> None:
    """What came since, added in Python to what the store said before: rows, order, totals, to the last member."""
    rng = random.Random(seed)
    times = sorted(row.occurred_at_us for row in history)
    start, end = sorted(rng.choice(times) + rng.choice([0, 1, -1]) for _ in range(2))
    dimensions = [*DIMENSIONS, "tag:team"]
    measures = tuple(rng.sample([name for name in MEASURES if name not in NOT_ADDED], rng.randrange(1, 8)))
    group_by = tuple(rng.sample(dimensions, rng.choice([0, 1, 2])))
    granularity = rng.choice([None, "minute", "hour", "day", "week", "month"])
    columns = [*measures, *group_by, *(["time"] if granularity else [])]
    filters = dict(BOTH)
    for name in rng.sample(dimensions, rng.choice([0, 0, 1])):
        some = [str(dimension(row, name)) for row in rng.sample(history, 3)]
        filters[name] = tuple({*some, rng.choice(["", "nothing", "0200", *HOSTILE])})
    query = ask(
        rng.choice(["acct_oracle", None]),
        from_us=start,
        to_us=end + rng.choice([0, 1, 3_600_000_000]),
        granularity=granularity,
        week_start=rng.choice(["monday", "sunday", "thursday"]),
        group_by=group_by,
        filters=filters,
        measures=measures,
        sort=tuple(rng.choice(["", "-"]) + name for name in rng.sample(columns, rng.choice([0, 1, 2]))),
        limit=50_000,
    )
    coming = [
        random_record(rng, rng.choice(["acct_oracle", "acct_other"])) for _ in range(rng.choice([0, 1, 30]))
    ]
    before, after = store.report(query), store.report(query, coming)
    kept = UsageReport(
        rows=before.rows, totals=before.totals, row_count=before.row_count, as_of_us=1, complete=True
    )
    report = apply_increment(query, kept, coming)
    assert report is not None
    assert ReportRows(report.rows, report.totals, report.row_count) == after
    assert [list(row) for row in report.rows] == [list(row) for row in after.rows]


@pytest.mark.drawn(10)
@pytest.mark.parametrize("seed", range(40))
def test_days_and_hours_add_up(store: ClickHouseUsageStore, history: list[Record], seed: int) -> None:
    """Spans of whole days, whole hours and neither, of few dimensions: each tier answers for its part."""
    rng = random.Random(seed)
    times = sorted(row.occurred_at_us for row in history)
    start, end = sorted(rng.choice(times) for _ in range(2))
    first_width, last_width = (rng.choice([1, tiers.HOUR_US, tiers.DAY_US]) for _ in range(2))
    some = rng.choice([("project", "key"), ("model", "endpoint", "status", "kind"), DIMENSIONS])
    query = ask(
        rng.choice(["acct_oracle", None]),
        from_us=start // first_width * first_width,
        to_us=-(-end // last_width) * last_width,
        granularity=rng.choice([None, None, "hour", "day", "month"]),
        group_by=tuple(rng.sample(some, rng.choice([0, 1, 2]))),
        filters={**BOTH, **dict.fromkeys(rng.sample(some, 1), ("", "key_1", "GET", "request", "404"))},
        measures=tuple(rng.sample(MEASURES, 5)),
        limit=50_000,
    )
    check(store, history, query)
    coming = [random_record(rng, "acct_oracle") for _ in range(5)]
    check(store, [*history, *coming], query, coming)


SUMMED = tuple(
    name
    for name in MEASURE_NAMES
    if name not in ("latency_ms_max", "first_at", "last_at") and not name.startswith(("peak_", "latency_ms"))
)


@pytest.mark.drawn(6)
@pytest.mark.parametrize("seed", range(25))
def test_the_parts_of_a_range_are_the_ranges_of_the_parts(
    store: ClickHouseUsageStore, history: list[Record], seed: int
) -> None:
    """One query with cuts answers as one per part: cuts at records, hours and days, several in one hour."""
    rng = random.Random(seed)
    times = sorted(row.occurred_at_us for row in history)
    start, end = sorted(rng.choice(times) for _ in range(2))
    end += 1
    widths = (1, 1, tiers.HOUR_US, tiers.DAY_US)
    drawn = [at // width * width for at in rng.choices(times, k=5) for width in [rng.choice(widths)]] + [
        end - 2, start // tiers.HOUR_US * tiers.HOUR_US + 7
    ]  # fmt: skip
    cuts = sorted({at for at in rng.sample(drawn, rng.randrange(1, 6)) if start < at < end})
    if not cuts:
        cuts = [start + 1]
    some = rng.choice([("key",), ("key",), (), ("model", "status"), ("tag:team",)])
    query = ask(
        rng.choice(["acct_oracle", None]),
        from_us=start,
        to_us=end,
        group_by=some,
        filters={**BOTH, **rng.choice([{}, {"key": ("key_1", "key_2", "")}])},
        measures=tuple(rng.sample(SUMMED, rng.randrange(1, 6))),
        limit=50_000,
    )
    for coming in ([], [random_record(rng, "acct_oracle") for _ in range(20)]):
        whole = msgspec.structs.replace(query, cuts_us=tuple(cuts))
        found = _report(store, whole, coming)
        bounds = [start, *cuts, end]
        expected_rows = [
            {"part": part, **row}
            for part, span in enumerate(itertools.pairwise(bounds))
            for row in _report(
                store, msgspec.structs.replace(query, from_us=span[0], to_us=span[1]), coming
            ).rows
        ]
        assert found.rows == expected_rows
        assert found.totals == _report(store, query, coming).totals
        assert found.row_count == len(expected_rows)


def _report(store: ClickHouseUsageStore, query: UsageQuery, coming: Sequence[Record]) -> ReportRows:
    return store.report(query, coming) if coming else store.report(query)


@pytest.mark.parametrize(
    "fields",
    [{"cuts_us": (FROM_US,)}, {"cuts_us": (TO_US,)}, {"cuts_us": (FROM_US + 2, FROM_US + 2)},
     {"cuts_us": (FROM_US + 2, FROM_US + 1)}, {"cuts_us": (FROM_US + 1,), "granularity": "hour"},
     {"cuts_us": (FROM_US + 1,), "measures": ("last_at",)},
     {"cuts_us": (FROM_US + 1,), "measures": ("peak_requests_per_hour",)}],
)  # fmt: skip
def test_cuts_that_cannot_be_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadParameter) as told:
        queries.report(ask("acct_oracle", **{"from_us": FROM_US, "to_us": TO_US, **fields}))
    assert told.value.field == "cuts_us"


@pytest.mark.parametrize(
    ("fields", "tiers"),
    [
        ({}, {"kinds_day"}),
        ({"group_by": ("model", "status"), "measures": ("kinds", "latency_ms_p95")}, {"kinds_day"}),
        ({"group_by": ("key",), "filters": {"project": ("p",)}, "granularity": "month"}, {"keys_day"}),
        ({"group_by": ("key",), "measures": ("errors", "cache_hits", "latency_ms_max")}, {"keys_day"}),
        ({"group_by": ("key", "model")}, {"day"}),
        ({"group_by": ("key",), "measures": ("kinds",)}, {"day"}),
        ({"group_by": ("key", "model"), "measures": ("latency_ms_p95",)}, {"hour"}),
        ({"granularity": "hour"}, {"kinds_hour"}),
        ({"granularity": "day", "time_zone": "Europe/Berlin", "group_by": ("key",)}, {"keys_hour"}),
        ({"granularity": "day", "time_zone": "Africa/Abidjan"}, {"kinds_day"}),
        ({"measures": ("peak_requests_per_hour",)}, {"kinds_hour"}),
        ({"measures": ("peak_requests_per_minute",)}, {"kinds_hour"}),
        ({"measures": ("peak_requests_per_minute",), "group_by": ("key",)}, {"keys_hour"}),
        ({"measures": ("peak_requests_per_minute",), "group_by": ("key", "model")}, {"hour"}),
        ({"from_us": FROM_US + tiers.HOUR_US, "group_by": ("key",)}, {"keys_hour", "keys_day"}),
        ({"to_us": TO_US - 7, "group_by": ("key",)}, {"keys_day"}),
        ({"granularity": "minute"}, set()),
        ({"granularity": "hour", "time_zone": "Asia/Kolkata"}, set()),
        ({"group_by": ("tag:team",)}, set()),
    ],
)
def test_a_question_reads_the_smallest_tier_that_can_tell(fields: dict[str, Any], tiers: set[str]) -> None:
    """What an answer costs grows with its buckets, not with the events in them."""
    sql = queries.report(ask("acct_oracle", **{"from_us": FROM_US, "to_us": TO_US, **fields})).sql
    assert set(re.findall(r"tier = '(\w+)'", sql)) == tiers
    assert ("FROM events" in sql) == (not tiers)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("width_us", [tiers.HOUR_US, tiers.DAY_US])
@pytest.mark.parametrize("last", ["kept", "amended", "voided"])
def test_the_end_of_a_range_is_exact(
    store: ClickHouseUsageStore, account: str, width_us: int, last: str
) -> None:
    """An hour or day is read whole only if nothing in it comes after the range, corrected or not."""
    first = record(account, key_id="a", occurred_at_us=FROM_US + 5, latency_us=7)
    second = record(account, key_id="b", occurred_at_us=FROM_US + width_us - 1, latency_us=9)
    rows = [first, second]
    if last == "amended":
        rows += amended(second, cost_nanos=5, occurred_at_us=FROM_US + width_us // 2)
    if last == "voided":
        rows += voided(second)
    store.append(table_of(rows), f"{account}-1")
    ends = [FROM_US + 5, FROM_US + 6, FROM_US + width_us // 2 + 1, second.occurred_at_us]
    for end_us, group_by in itertools.product([*ends, FROM_US + width_us], [(), ("key",), ("key", "model")]):
        for start_us, measures in itertools.product((FROM_US, FROM_US + 6), (SUMS, MEASURES)):
            query = ask(account, from_us=start_us, to_us=end_us, group_by=group_by, measures=measures)
            check(store, rows, query)


@pytest.mark.parametrize(
    "group_by", [("key",), ("model", "status"), ("tag:team",), ("account", "endpoint", "kind")]
)
def test_rows_add_up_to_the_totals(
    store: ClickHouseUsageStore, history: list[Record], group_by: tuple[str, ...]
) -> None:
    """To the nano, whatever the grouping."""
    reports = [
        store.report(ask(None, group_by=group_by, granularity=g, measures=SUMS, filters=BOTH))
        for g in (None, "day")
    ]
    plain = store.report(ask(None, measures=SUMS, filters=BOTH)).totals
    for report in reports:
        assert {name: sum(row[name] for row in report.rows) for name in SUMS} == report.totals == plain
    assert plain["requests"] == sum(not row.adjustment_nanos for row in limit_status(history))


def test_pages_cover_each_row_once(store: ClickHouseUsageStore, history: list[Record]) -> None:
    """Ties have an order too; a page behind the last is empty and still knows totals and count."""
    fields: dict[str, Any] = {"group_by": ("key", "model"), "granularity": "hour", "sort": ("-requests",)}
    whole = store.report(ask("acct_oracle", limit=50_000, **fields))
    pages = [
        store.report(ask("acct_oracle", limit=7, offset=offset, **fields))
        for offset in range(0, whole.row_count + 7, 7)
    ]
    assert [row for page in pages for row in page.rows] == whole.rows
    assert len(whole.rows) == whole.row_count > 14
    assert {page.row_count for page in pages} == {whole.row_count}
    assert all(page.totals == whole.totals for page in pages)
    beyond = store.report(ask("acct_oracle", limit=7, offset=10**6, **fields))
    assert (beyond.rows, beyond.totals) == ([], whole.totals)


@pytest.mark.drawn(9)
@pytest.mark.parametrize("column", ["time", "key", "status", *MEASURES])
def test_any_column_sorts(store: ClickHouseUsageStore, history: list[Record], column: str) -> None:
    """Nulls last either way, ties by time and groups ascending."""
    fields: dict[str, Any] = {
        "granularity": "day",
        "group_by": ("key", "status"),
        "measures": (column,) if column in MEASURES else ("requests",),
        "limit": 50_000,
    }
    natural = store.report(ask("acct_oracle", **fields)).rows
    for descending in (False, True):
        term = f"-{column}" if descending else column
        rows = store.report(ask("acct_oracle", sort=(term,), **fields)).rows
        assert sorted(map(repr, rows)) == sorted(map(repr, natural))
        if column == "kinds":
            continue  # Maps have no order of their own; the set of rows is what counts.
        present = [in_order(row[column]) for row in rows if row[column] is not None]
        assert present == sorted(present, reverse=descending)
        assert all(row[column] is None for row in rows[len(present) :])
        for earlier, later in itertools.pairwise(rows):
            if earlier[column] == later[column]:
                assert natural.index(earlier) < natural.index(later)


def test_a_voided_event_leaves_no_row(store: ClickHouseUsageStore, account: str) -> None:
    """A bucket without an event that stands is no bucket; maxima and minima forget it as well."""
    slow = record(account, key_id="a", latency_us=9_000_000)
    quick = record(account, key_id="b", latency_us=1_000_000, occurred_at_us=slow.occurred_at_us + 5)
    store.append(table_of([slow, quick, *voided(slow)]), f"{account}-1")
    report = store.report(ask(account, group_by=("key",), measures=MEASURES))
    assert [row["key"] for row in report.rows] == ["b"]
    assert report.totals["latency_ms_max"] == 1_000.0
    assert report.totals["first_at"] == to_text(from_us(quick.occurred_at_us))
    store.append(table_of(voided(quick)), f"{account}-2")
    empty = store.report(ask(account, measures=MEASURES))
    assert empty == store.report(ask(f"{account}-unknown", measures=MEASURES))
    assert (empty.rows, empty.row_count) == ([], 0)
    assert empty.totals == {name: measured([], name) for name in MEASURES}


def test_a_row_may_be_all_there_is(store: ClickHouseUsageStore, account: str) -> None:
    """Without granularity and groups the one row is the totals, and pages like any other."""
    store.append(table_of([record(account, credits=3)]), f"{account}-1")
    report = store.report(ask(account, measures=("credits",)))
    assert report[:3] == ([{"credits": 3}], {"credits": 3}, 1)
    assert store.report(ask(account, measures=("credits",), offset=1))[:3] == ([], {"credits": 3}, 1)


def test_histograms_are_those_of_the_python_twin(store: ClickHouseUsageStore, account: str) -> None:
    """Both sides of every bin's edge, for every latency that an event may have."""
    edges = {round(1.02**power) + step for power in range(1372) for step in (-1, 0, 1)}
    latencies = [0, *sorted(edge for edge in edges if 0 < edge <= 604_800_000_000)]
    store.append(table_of([record(account, latency_us=latency) for latency in latencies]), f"{account}-1")
    # Minute granularity reads records, none reads rollups: both computations of the bin are held to Python's.
    (stored,) = store._engine.rows(
        "SELECT sumMap(latency_bins) FROM usage_rollups WHERE tier = 'hour' AND account_id = {a:String}",
        {"a": account},
    )[0]
    assert stored == dict(Counter(map(latency_bin, latencies)))
    measures = tuple(name for name in MEASURES if name.startswith("latency_ms_"))
    check(
        store, [record(account, latency_us=latency) for latency in latencies], ask(account, measures=measures)
    )
    minutes = store.report(ask(account, granularity="minute", measures=measures))
    assert minutes.totals == store.report(ask(account, measures=measures)).totals


def test_an_account_sees_nothing_of_another(
    store: ClickHouseUsageStore, history: list[Record], account: str
) -> None:
    """Not by filter, group, tag or a hostile name either."""
    secret = record(account, tags={"team": "x"}, cost_state="unpriced", cost_nanos=7)
    store.append(table_of([secret]), f"{account}-1")
    for other in ("", "acct_nobody", *HOSTILE):
        for filters in ({}, {"account": (account,)}, {"key": HOSTILE}, {"tag:team": ("x",)}):
            for granularity in (None, "minute", "day"):
                query = ask(other, filters=filters, group_by=("account", "key"), granularity=granularity)
                assert store.report(query).rows == []
        assert store.charged(other, from_us=0, to_us=ALL_US[1], project_id=None, key_ids=None) == CostSum(
            0, 0, 0, 0, 0
        )
        assert list(store.export(other, *ALL_US)) == []
        assert store.records([(other, secret.id)]) == {}
    (row,) = store.report(ask("acct_other", group_by=("account",))).rows
    assert row["account"] == "acct_other"


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_are_only_values(store: ClickHouseUsageStore, account: str, value: str) -> None:
    """They are stored, found, grouped by and filtered by like any other text."""
    owner = f"{account}{value}"
    row = record(
        owner,
        id=value,
        key_id=value,
        model=value,
        route=value,
        kind=value,
        cost_state="unpriced",
        tags={value: value},
    )
    store.append(table_of([row]), f"{owner}-1")
    assert store.records([(owner, value)]) == {(owner, value): row}
    assert store.unpriced(value, 100)[-1].model == value
    tag = f"tag:{value}"
    filters = {"key": (value,), "model": (value,), tag: (value,), "kind": (value,)}
    report = store.report(
        ask(owner, group_by=("model", tag), filters=filters, measures=("requests", "kinds"))
    )
    assert report.rows == [{"model": value, tag: value, "requests": 1, "kinds": {value: 1}}]
    assert store.report(ask(owner, filters={"status": (value,)})).rows == []


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_may_come_with_the_question(
    store: ClickHouseUsageStore, account: str, value: str
) -> None:
    coming = [
        record(account, id=value, key_id=value, model=value, route=value, kind=value, tags={value: value}),
        record(f"{account}-other", model=value),
    ]
    tag = f"tag:{value}"
    report = store.report(ask(account, group_by=("model", tag), measures=("requests", "kinds")), coming)
    assert report.rows == [{"model": value, tag: value, "requests": 1, "kinds": {value: 1}}]
    assert store.report(ask(account)).rows == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"group_by": ("status; DROP TABLE events",)}, "group_by"),
        ({"group_by": ("tag:",)}, "group_by"),
        ({"filters": {"1=1 OR key": ("x",)}}, "filters"),
        ({"measures": ("sum(cost_nanos)",)}, "measures"),
        ({"sort": ("key",)}, "sort"),
        ({"sort": ("time",)}, "sort"),
        ({"granularity": "second"}, "granularity"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": "../../etc/passwd"}, "time_zone"),
        ({"time_zone": "right/UTC", "granularity": "day"}, "time_zone"),
        ({"week_start": "payday"}, "week_start"),
        ({"limit": -1}, "limit"),
    ],
)
def test_unknown_names_are_refused(store: ClickHouseUsageStore, fields: dict[str, Any], field: str) -> None:
    """A name is looked up among ours before it gets near a statement."""
    with pytest.raises(BadParameter) as refused:
        store.report(ask("acct_oracle", **fields))
    assert refused.value.field == field


# Check and repair


def test_differences_are_found_and_rebuilt(store: ClickHouseUsageStore, account: str) -> None:
    """verify names what is off, rebuild makes it right, and no report changes by it."""
    rows = random_history(random.Random(5), [account], 60)
    store.append(table_of(rows), f"{account}-1")
    query = ask(account, group_by=("key", "model"), granularity="hour", measures=MEASURES, limit=50_000)
    before = store.report(query)
    assert store.differences() == []
    victim = limit_status(rows)[0]
    with store._engine.scans.lend() as client:
        settings = {"mutations_sync": 2}
        client.command(
            "ALTER TABLE usage_rollups DELETE WHERE account_id = {a:String}",
            {"a": account},
            settings=settings,
        )
        client.command(
            "ALTER TABLE event_ids DELETE WHERE id = {id:String}", {"id": victim.id}, settings=settings
        )
    lines = store.differences()
    assert any(line.startswith("usage_rollups") and account in line for line in lines)
    assert any(line.startswith("event_ids") and victim.id in line for line in lines)
    assert all(account in line for line in lines)
    written = store.rebuild()
    assert set(written) == {"usage_rollups", "event_ids"}
    assert min(written.values()) > 0
    assert store.differences() == []
    assert store.report(query) == before
    store.append(table_of(rows), f"{account}-1", begun_after=0)  # A repeat is one after a rebuild too.
    assert store.differences() == []
    assert store.report(query) == before
    store.append(table_of([record(account)]), f"{account}-2")
    assert store.differences() == []
    assert store.report(query) != before


def test_questions_are_answered_while_rollups_are_made_anew(
    store: ClickHouseUsageStore, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step as before it: of half made rollups the sums would be too low, and of the ids a repeat be new."""
    rows = random_history(random.Random(6), [account], 60)
    store.append(table_of(rows), f"{account}-1")
    query = ask(account, group_by=("key", "model"), granularity="hour", measures=MEASURES, limit=50_000)
    ids = pa.table({"account_id": [row.account_id for row in rows], "id": [row.id for row in rows]})
    command = store._engine.appender.command

    def answers() -> tuple[ReportRows, set[str]]:
        return store.report(query), set(store.known_ids(ids).column("id").to_pylist())

    before, steps = answers(), []

    def look(statement: str, *args: Any, **options: Any) -> Any:
        found = command(statement, *args, **options)
        steps.append(statement)
        assert answers() == before, statement
        return found

    monkeypatch.setattr(store._engine.appender, "command", look)
    store.rebuild()
    assert len([step for step in steps if step.startswith("EXCHANGE")]) == 2
    assert len(before[1]) == len({row.id for row in rows})


@pytest.mark.drawn(2)
@pytest.mark.parametrize("tier", ["hour", "day", "keys_hour", "keys_day", "kinds_hour", "kinds_day"])
def test_differences_see_a_tier_that_is_off(store: ClickHouseUsageStore, account: str, tier: str) -> None:
    """A question reads one tier, so that each must be right by itself."""
    store.append(table_of([record(account, status=500)]), f"{account}-1")
    with store._engine.scans.lend() as client:
        client.command(
            "ALTER TABLE usage_rollups UPDATE errors = errors + 1"
            " WHERE account_id = {a:String} AND tier = {tier:String}",
            {"a": account, "tier": tier},
            settings={"mutations_sync": 2},
        )
    (line,) = [line for line in store.differences() if account in line]
    assert f"tier={tier}, " in line
    assert line.endswith("errors +1")
    store.rebuild()
    assert store.differences() == []


def test_differences_see_a_histogram_that_is_off(store: ClickHouseUsageStore, account: str) -> None:
    """Sums may agree while the bins do not."""
    store.append(table_of([record(account, latency_us=5)]), f"{account}-1")
    with store._engine.scans.lend() as client:
        client.command(
            "ALTER TABLE usage_rollups UPDATE minutes = map(59, 1) WHERE account_id = {a:String}",
            {"a": account},
            settings={"mutations_sync": 2},
        )
    assert [line for line in store.differences() if account in line]
    store.rebuild()
    assert store.differences() == []


def test_the_store_opens_again(store: ClickHouseUsageStore, history: list[Record]) -> None:
    """Opening an existing path changes nothing, and two handles see the same data."""
    again = ClickHouseUsageStore.open(store._engine.url, memory_bytes_max=2 << 30)
    query = ask("acct_oracle", group_by=("key",), measures=MEASURES)
    assert again.report(query) == store.report(query)
    again.close()
    assert store.ready()
    assert not again.ready()


def test_an_engine_that_fails_is_unavailable(store: ClickHouseUsageStore, tmp_path: Any) -> None:
    """No error of the driver gets out."""
    closed = ClickHouseUsageStore.open(store._engine.url, memory_bytes_max=2 << 30)
    closed.close()
    for call in (
        lambda: closed.append(table_of([record("acct_closed")]), "closed"),
        lambda: closed.known_ids(pa.table({"account_id": ["a"], "id": ["b"]})),
        lambda: closed.records([("a", "b")]),
        lambda: closed.report(ask("acct_oracle")),
        lambda: closed.unpriced(None, 1),
        lambda: closed.rebuild(),
    ):
        with pytest.raises(Unavailable):
            call()
    with pytest.raises(Unavailable):  # One path per process.
        ClickHouseUsageStore.open(f"chdb://{tmp_path}")
    with pytest.raises(Unavailable):
        ClickHouseUsageStore.open("clickhouse://nobody:x@127.0.0.1:1/none")
