"""Columns and SQL match as `domain.matching` does: the three twins, on the same records."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.effort import effort
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.catalog import Account, Budget, Key
from tollkeeper.domain.entitlements import CREDIT_COUNTER
from tollkeeper.domain.events import Record
from tollkeeper.domain.matching import Match, conditions_of, matcher_of, values_of
from tollkeeper.domain.meter import facts_of, units_of
from tollkeeper.installation import Installation
from tollkeeper.meter.charges import charge_columns
from tollkeeper.meter.matched_rows import MatchedRows
from tollkeeper.ports import CostSum
from tollkeeper.record_columns import table_of
from tollkeeper.testing import unique

HOSTILE = (
    "",
    " ",
    "%",
    "_",
    "\\",
    "a%b",
    "a_b",
    "a\\b",
    "a'b",
    "a\nb",
    "A",
    "a",
    "ä",
    "Ä",
    "\u0130",
    "\u212a",
    "#",
    "~",
)
AT_US = 1_773_792_000_000_000

odd = st.sampled_from(HOSTILE) | st.text("aA%_\\*'\n#", max_size=4)
names = st.sampled_from(["user", "team", "a'b", "tag.x"])
tags = st.dictionaries(names, odd, max_size=3)
rows = st.lists(
    st.tuples(
        odd | st.sampled_from(["gpt-4o", " GPT-4o ", "gpt-4o-mini"]),
        tags,
        st.sampled_from(["request", "scan", "a_b"]),
        st.sampled_from(["GET", "POST", ""]),
        st.sampled_from(["", "/v1/chat", "/v1/{id}", "/a%b", "/files/*"]),
        st.sampled_from([1, 1, 1, -1]),
        st.sampled_from(["", "", "rate_limited"]),
        st.integers(0, 10**15),
        # Money up or down without a request: its tags say why, and are none to match by.
        st.sampled_from([0, 0, 0, 5, -5]),
    ),
    min_size=1,
    max_size=12,
)
patterns = st.lists(
    st.text("aA%_\\*'\n#", min_size=1, max_size=4)
    | st.sampled_from(["*", "gpt-4o*", "GPT*mini", "a_b", "ä*"]),
    max_size=3,
)
matches = st.builds(
    Match,
    models=patterns,
    tags=st.dictionaries(names, odd | st.sampled_from(["*", "a*", "*b"]), max_size=2),
    kinds=st.lists(st.sampled_from(["request", "s*n", "a_b", "*"]), max_size=2),
    routes=st.lists(
        st.sampled_from(["GET /v1/*", "* /v1/{id}", "POST /a%b", "* *", "GET /files/*"]), max_size=2
    ),
)
pers = st.lists(st.sampled_from(["model", "tag.user", "tag.a'b"]), max_size=2, unique=True).map(sorted)
EACH = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def records(account: str, drawn: list[tuple[Any, ...]], mark: str = "e") -> list[Record]:
    return [
        Record(
            account, "", "k" if index % 2 else "", AT_US + index, AT_US, f"{mark}{index}", 0, sign, "", kind,
            method, route, 200, "", denied, None, 0, model, 3, 1, 0, 0, "", 2, cost, 0, "given", "", given_tags,
            adjustment_nanos=adjusted,
        )
        for index, (model, given_tags, kind, method, route, sign, denied, cost, adjusted) in enumerate(drawn)
    ]  # fmt: skip


def expected_sums(found: list[Record], match: Match, by: list[str]) -> dict[tuple[str, ...], tuple[int, ...]]:
    conditions = conditions_of(match)
    sums: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * 6)
    for record in found:
        facts = facts_of(record)
        if conditions is None or matcher_of(conditions).matches(facts):
            units = units_of(record)
            amounts = (
                record.sign,
                *(units[unit] for unit in ("requests", "tokens", "nanos", "credits")),
                record.sign * record.adjustment_nanos,
            )
            into = sums[values_of(by, facts)]
            into[:] = [a + b for a, b in zip(into, amounts, strict=True)]
    return {values: tuple(amounts) for values, amounts in sums.items()}


@settings(EACH, max_examples=effort(30, 150))
@given(rows, matches, pers)
def test_columns_match_as_records_do(drawn: list[tuple[Any, ...]], match: Match, by: list[str]) -> None:
    found = records("a", drawn)
    # In two chunks, as batches that were put together.
    table = table_of(found)
    matched = MatchedRows(table)
    conditions = conditions_of(match)
    every = np.arange(len(found))
    kept = every if conditions is None else matched.of(conditions, every)
    assert kept.tolist() == [
        place
        for place, record in enumerate(found)
        if conditions is None or matcher_of(conditions).matches(facts_of(record))
    ]
    if by and len(kept):
        values, places = matched.values(by, kept)
        assert [values[place] for place in places] == [values_of(by, facts_of(found[at])) for at in kept]
        assert len(set(values)) == len(values)


@settings(EACH, max_examples=effort(12, 60))
@given(rows, matches, pers)
def test_the_usage_store_matches_as_records_do(
    usage_store: ClickHouseUsageStore, drawn: list[tuple[Any, ...]], match: Match, by: list[str]
) -> None:
    """Budgets start from these sums, and verify compares with them."""
    account = unique("acct")
    found = records(account, drawn)
    if found:
        usage_store.append(table_of(found), account)
    sums = usage_store.charged_by(
        account,
        by,
        from_us=AT_US,
        to_us=AT_US + 10**6,
        project_id=None,
        key_ids=None,
        match=conditions_of(match),
    )
    expected = expected_sums(found, match, by)
    if not by:
        expected = {(): expected.get((), (0,) * 6)}
    assert sums == {
        values: CostSum(*amounts, adjustments_nanos=adjusted)
        for values, (*amounts, adjusted) in expected.items()
    }
    cuts_us = [AT_US, AT_US + 1, AT_US + 4, AT_US + 6, AT_US + 10**5]
    parts = usage_store.charged_by(
        account,
        by,
        from_us=AT_US,
        to_us=AT_US + 10**6,
        project_id=None,
        key_ids=None,
        match=conditions_of(match),
        cuts_us=cuts_us,
    )
    of_parts = [
        (start_us, [record for record in found if start_us <= record.occurred_at_us < end_us])
        for start_us, end_us in pairwise([*cuts_us, AT_US + 10**6])
    ]
    assert parts == {
        (*values, str(start_us)): CostSum(*amounts, adjustments_nanos=adjusted)
        for start_us, within in of_parts
        for values, (*amounts, adjusted) in expected_sums(within, match, by).items()
    }
    first = usage_store.first_by(
        account,
        by,
        from_us=AT_US,
        to_us=AT_US + 10**6,
        project_id=None,
        key_ids=None,
        match=conditions_of(match),
    )
    conditions = conditions_of(match)
    times: dict[tuple[str, ...], list[int]] = {}
    for record in found:
        facts = facts_of(record)
        if conditions is None or matcher_of(conditions).matches(facts):
            times.setdefault(values_of(by, facts), []).append(record.occurred_at_us)
    assert first == {values: min(at) for values, at in times.items()}


_made: dict[int, str] = {}


def _account(site: Installation) -> str:
    """An account with a budget of each shape, made once."""
    if id(site) not in _made:
        account = unique("acct")
        shapes: list[dict[str, Any]] = [
            {"match": Match(models=["gpt-4o*", "a*"])},
            {"match": Match(tags={"user": "*"}, kinds=["request"])},
            {"match": Match(routes=["GET /v1/*"]), "per": "model"},
            {"per": "tag.user"},
            {"per": ["tag.user", "model"], "match": Match(models=["*"])},
            {"per": ["key", "tag.user"]},
            {"per": "project"},
            {"per": "tag.user", "period": "23h"},
            {"match": Match(models=["gpt-4o*", "a*"]), "period": "23h"},
            {},
        ]
        site.manage.apply(
            [Account(id=account, name="Acme"), Key(id=f"{account}-k", account=account)]
            + [
                Budget(**{"id": f"b{index}", "account": account, "amount": 1, "unit": "requests", **shape})
                for index, shape in enumerate({"period": "day", **shape} for shape in shapes)
            ]
        )
        _made[id(site)] = account
    return _made[id(site)]


@settings(EACH, max_examples=effort(12, 60))
@given(rows)
def test_a_batch_charges_what_its_records_charge(
    module_site: Installation, drawn: list[tuple[Any, ...]]
) -> None:
    """`charge_columns` is the sum of `Directory.charges_of`, for budgets with matches and values too."""
    account = _account(module_site)
    found = [
        record._replace(key_id=f"{account}-k" if record.key_id else "") for record in records(account, drawn)
    ]
    together = charge_columns(table_of(found), module_site.directory).budgets
    singly = module_site.directory.charges_of_all(found)
    assert {at: used for at, used in together.items() if used} == {
        # Draws on credit are a run of their own.
        at: used
        for at, used in singly.items()
        if used and at[1] != CREDIT_COUNTER
    }


@pytest.fixture(scope="module")
def module_site(tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore) -> Any:
    from tollkeeper.testing import ManualClock, installation

    with installation(tmp_path_factory.mktemp("matched"), clock=ManualClock(), store=usage_store) as opened:
        yield opened
