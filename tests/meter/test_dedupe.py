"""A batch is compared with what is stored by columns; that must say what the domain says record by record."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tollkeeper.domain.events import RECORD_FIELDS, Record
from tollkeeper.domain.meter import same_body
from tollkeeper.meter.dedupe import repeats_of
from tollkeeper.record_columns import table_of

_NUMBERS = {
    name: 0
    for name in RECORD_FIELDS
    if name.endswith(("_us", "_tokens", "_nanos")) or name in ("revision", "status", "bytes_out", "credits")
}
PLAIN = Record(
    **{
        **dict.fromkeys(RECORD_FIELDS, ""),
        **_NUMBERS,
        "account_id": "acme",
        "sign": 1,
        "cost_state": "priced",
        "tags": {},
        "quantities": {},
    }
)

tags = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["", "x", "y"]), max_size=3)
changes = st.fixed_dictionaries(
    {},
    optional={
        "route": st.sampled_from(["", "/a", "/b"]),
        "status": st.sampled_from([0, 200]),
        "latency_us": st.sampled_from([None, 0, 5]),
        "credits": st.sampled_from([0, 3]),
        "cost_nanos": st.sampled_from([0, 7]),
        "estimated_cost_nanos": st.sampled_from([0, 7]),
        "cost_state": st.sampled_from(["given", "priced", "unpriced", "free", "estimated"]),
        "price_version": st.sampled_from(["", "v1"]),
        "received_at_us": st.sampled_from([0, 1]),
        "tags": tags,
    },
)
corrections = st.sampled_from([{}, {}, {"revision": 2}, {"sign": -1, "revision": 1}])


@given(
    st.lists(st.tuples(changes, changes, corrections, st.booleans()), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
@example([({"tags": {"a": "", "b": "x"}}, {"tags": {"b": "x", "a": ""}}, {}, True)], None)
@example([({"cost_state": "given"}, {"cost_state": "given", "credits": 3}, {}, True)], None)
@settings(deadline=None)
def test_columns_are_compared_as_records_are(rows: list[tuple[Any, Any, Any, bool]], random: Any) -> None:
    """Whatever differs, in whatever order the stored rows come, and whether or not there is a stored row."""
    sent = [PLAIN._replace(id=f"e{n}", **row[0]) for n, row in enumerate(rows)]
    stored = [PLAIN._replace(id=f"e{n}", **{**row[1], **row[2]}) for n, row in enumerate(rows) if row[3]]
    by_id = {record.id: record for record in stored}
    expected = [
        (other := by_id.get(record.id)) is not None
        and (other.revision > 0 or other.sign < 0 or same_body(other, record))
        for record in sent
    ]
    if random is not None:
        random.shuffle(stored)
    assert repeats_of(table_of(sent), table_of(stored)).tolist() == expected


@given(changes, corrections)
@settings(deadline=None)
def test_an_equal_event_is_a_repeat(change: Any, correction: Any) -> None:
    """In a list that has it twice, the first one counts."""
    event = PLAIN._replace(id="e", **change)
    found = repeats_of(
        table_of([event]), table_of([event._replace(**correction), event._replace(status=999)])
    )
    assert found.tolist() == [True]
