"""Pages of events have each event once, as a plain reading of the records says, whatever is corrected or comes in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from tests.contract.test_usage_store import (
    ALL_US,
    FROM_US,
    HOSTILE,
    TO_US,
    amended,
    dimension,
    limit_status,
    random_history,
    record,
    voided,
)
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore, event_list
from tollkeeper.domain.event_pages import EventQuery, cursor_of, place_of
from tollkeeper.domain.events import Record
from tollkeeper.domain.usage import DIMENSIONS
from tollkeeper.errors import BadParameter
from tollkeeper.record_columns import records_of, table_of
from tollkeeper.testing import unique

SPANS = (ALL_US, (FROM_US, TO_US), (FROM_US + 4 * 3_600_000_000, FROM_US + 4 * 3_600_000_000 + 1))


@pytest.fixture(scope="module")
def accounts() -> list[str]:
    return [unique("list_a"), unique("list_b")]


@pytest.fixture(scope="module")
def history(usage_store: ClickHouseUsageStore, accounts: list[str]) -> list[Record]:
    """Random records of two accounts, corrected at random, after several appends."""
    rows = random_history(random.Random(11), accounts, 150)
    for start in range(0, len(rows), 151):
        usage_store.append(table_of(rows[start : start + 151]), unique("token"))
    return rows


@pytest.fixture(params=["slices as they are", "slices of seconds, pages cut short"])
def store(
    request: pytest.FixtureRequest,
    usage_store: ClickHouseUsageStore,
    monkeypatch: pytest.MonkeyPatch,
    no_hurry: None,
) -> ClickHouseUsageStore:
    if request.param != "slices as they are":
        # Every slice is too large until it is as narrow as can be, and no page has the time for a second one.
        monkeypatch.setattr(event_list, "FIRST_ROWS", 0)
        monkeypatch.setattr(event_list, "SLICE_ROWS", 0)
        monkeypatch.setattr(event_list, "FIRST_US", 1_000 * 86_400_000_000)
        monkeypatch.setattr(event_list, "NARROWEST_US", 30 * 86_400_000_000)
        monkeypatch.setattr(event_list, "PAGE_S", -1.0)
        monkeypatch.setattr(event_list, "EMPTY_PAGE_S", -1.0)
    return usage_store


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, a page is whole, unless a test cuts it short."""
    monkeypatch.setattr(event_list, "PAGE_S", 600.0)
    monkeypatch.setattr(event_list, "EMPTY_PAGE_S", 600.0)


def pages(store: ClickHouseUsageStore, query: EventQuery) -> Iterator[list[Record]]:
    for _ in range(1_000):
        found = store.latest(query)
        assert len(found.records) <= query.limit
        yield found.records
        if found.reached is None:
            return
        query = msgspec.structs.replace(query, cursor=cursor_of(found.reached, query))
    raise AssertionError("the pages do not end")


def listed(store: ClickHouseUsageStore, query: EventQuery) -> list[Record]:
    return [record for page in pages(store, query) for record in page]


def expected(rows: list[Record], query: EventQuery) -> list[Record]:
    """The records that stand, one at a time."""
    found = [
        row
        for row in limit_status(rows)
        if query.from_us <= row.occurred_at_us < query.to_us
        and query.account_id in (None, row.account_id)
        and query.denied in (None, row.denied_reason != "")
        and all(
            dimension(row, name) in (values if name != "status" else [int(text or 0) for text in values])
            for name, values in query.filters.items()
        )
    ]
    return sorted(found, key=place_of, reverse=True)


def queries(accounts: list[str]) -> Iterator[EventQuery]:
    rng = random.Random(3)
    values: dict[str, list[str]] = {
        "project": ["", "proj_a"],
        "key": ["key_1", HOSTILE[1]],
        "endpoint": ["POST /v1/chat", "GET"],
        "model": ["gpt-5", HOSTILE[0]],
        "status": ["", "429", "500"],
        "kind": ["scan", "adjustment"],
        "error_type": ["", "timeout"],
        "denied_reason": ["rate_limited"],
        "cache": ["", "hit"],
        "method": ["GET"],
        "route": ["/v1/chat"],
        "tag:team": ["", "x"],
        f"tag:{HOSTILE[0]}": [HOSTILE[1]],
    }
    assert set(DIMENSIONS) - set(values) == {"account"}
    for name, found in values.items():
        yield EventQuery(
            account_id=rng.choice(accounts),
            from_us=ALL_US[0],
            to_us=ALL_US[1],
            filters={name: tuple(rng.sample(found, rng.randint(1, len(found))))},
            limit=rng.choice([9, 1_000]),
        )
    for span, denied, all_accounts, limit in (
        (SPANS[0], None, False, 11),
        (SPANS[0], True, True, 50),
        (SPANS[1], False, True, 40),
        (SPANS[1], None, True, 1_000),
        (SPANS[2], None, False, 1),
    ):
        yield EventQuery(
            account_id=None if all_accounts else accounts[0],
            filters={"account": tuple(accounts)} if all_accounts else {},
            from_us=span[0],
            to_us=span[1],
            denied=denied,
            limit=limit,
        )


def test_pages_are_a_plain_reading_of_the_records(
    store: ClickHouseUsageStore, history: list[Record], accounts: list[str]
) -> None:
    found = 0
    for query in queries(accounts):
        rows = listed(store, query)
        assert rows == expected(history, query), query
        found += len(rows)
    assert found > 300


def test_events_of_one_instant_are_parted_by_account_and_id(usage_store: ClickHouseUsageStore) -> None:
    accounts = [unique("same_a"), unique("same_b")]
    rows = [record(account, id=f"e{n}") for account in accounts for n in range(5)]
    usage_store.append(table_of(rows), unique("token"))
    query = EventQuery(
        account_id=None, from_us=0, to_us=ALL_US[1], filters={"account": tuple(accounts)}, limit=3
    )
    found = list(pages(usage_store, query))
    assert [len(page) for page in found] == [3, 3, 3, 1]
    assert [row for page in found for row in page] == sorted(rows, key=place_of, reverse=True)


def test_what_comes_in_between_two_pages_moves_none(usage_store: ClickHouseUsageStore) -> None:
    """New events, late ones, corrections of what was shown and of what is still to come."""
    account = unique("moving")
    hour = 3_600_000_000
    rows = [
        record(account, id=f"e{n:02}", occurred_at_us=FROM_US + n * hour, cost_nanos=n) for n in range(14)
    ]
    usage_store.append(table_of(rows), unique("token"))
    query = EventQuery(account_id=account, from_us=0, to_us=ALL_US[1], limit=4)
    shown: list[Record] = []
    for number in range(100):
        found = usage_store.latest(query)
        shown += found.records
        if found.reached is None:
            break
        query = msgspec.structs.replace(query, cursor=cursor_of(found.reached, query))
        newest, oldest = found.records[0], rows[0]
        usage_store.append(
            table_of(
                [
                    record(account, id=f"new{number}", occurred_at_us=TO_US + number),
                    record(account, id=f"between{number}", occurred_at_us=newest.occurred_at_us + 1),
                    *amended(newest, f"am{number}", cost_nanos=99),
                    *(amended(oldest, "am-oldest", cost_nanos=77) if not number else []),
                ]
            ),
            unique("token"),
        )
    assert [row.id for row in shown] == [f"e{n:02}" for n in reversed(range(14))]
    assert (shown[-1].cost_nanos, shown[-1].revision) == (77, 1)
    # From the first page on they are all there, as they stand now.
    everything = listed(usage_store, msgspec.structs.replace(query, cursor=None))
    assert len({row.id for row in everything}) == len(everything) == 20


def test_every_version_of_an_amended_event_is_there(usage_store: ClickHouseUsageStore) -> None:
    account = unique("versions")
    first = record(account, id="e1", cost_nanos=1)
    second = amended(first, "c1", cost_nanos=2)
    third = amended(second[1], "c2", cost_nanos=3)
    gone = record(account, id="e2")
    usage_store.append(table_of([first, *second, *third, gone, *voided(gone, "v")]), unique("token"))
    keys = pa.table({"account_id": [account, account, account], "id": ["e1", "e2", "none"]})
    versions = sorted(records_of(usage_store.revisions(keys)), key=lambda row: (row.id, row.revision))
    assert versions == [first, second[1], third[1], gone]
    query = EventQuery(account_id=account, from_us=0, to_us=ALL_US[1])
    assert usage_store.latest(query).records == [third[1]]


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "ü", "AAAA", "\x00", "=" * 9, "A" * 5_000, "a b", "..%2f", "hqm4gUnt4tOTzwAGYVTqhRAAoWGiZTF"],
)
def test_what_is_no_cursor_is_refused(usage_store: ClickHouseUsageStore, cursor: str) -> None:
    query = EventQuery(account_id="a", from_us=0, to_us=ALL_US[1], cursor=cursor)
    with pytest.raises(BadParameter, match="cursor must be the next_cursor of the page before"):
        usage_store.latest(query)


@pytest.mark.parametrize(
    "other", [{"account_id": "b"}, {"account_id": None}, {"filters": {"model": ("m",)}}, {"denied": True}]
)
def test_the_cursor_of_another_list_is_refused(
    usage_store: ClickHouseUsageStore, other: dict[str, Any]
) -> None:
    account = unique("cursor")
    usage_store.append(table_of([record(account, id=f"e{n}") for n in range(3)]), unique("token"))
    query = EventQuery(account_id=account, from_us=0, to_us=ALL_US[1], limit=1)
    reached = usage_store.latest(query).reached
    assert reached is not None
    cursor = cursor_of(reached, query)
    # A range may be narrowed and a page resized on the way.
    again = msgspec.structs.replace(query, cursor=cursor, from_us=5, to_us=ALL_US[1] - 5, limit=9)
    assert [row.id for row in usage_store.latest(again).records] == ["e1", "e0"]
    with pytest.raises(BadParameter, match="the same account and filters"):
        usage_store.latest(msgspec.structs.replace(query, cursor=cursor, **other))


def test_a_name_that_is_no_dimension_is_refused(usage_store: ClickHouseUsageStore) -> None:
    query = EventQuery(account_id="a", from_us=0, to_us=1, filters={"1) OR (1": ("x",)})
    with pytest.raises(BadParameter, match="filters takes account"):
        usage_store.latest(query)


def test_an_empty_past_of_any_length_takes_few_steps(
    usage_store: ClickHouseUsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans without records are passed by what the engine knows of its parts: nothing is read."""
    statements: list[str] = []
    rows = usage_store._queries.rows

    def counted(statement: Any) -> Any:
        statements.append(statement.sql.strip())
        return rows(statement)

    monkeypatch.setattr(usage_store._queries, "rows", counted)
    found = usage_store.latest(EventQuery(account_id=unique("nobody"), from_us=0, to_us=ALL_US[1]))
    assert (found.records, found.reached) == ([], None)
    assert len(statements) < 30
