"""Ids that wait long take little memory, and are known all the same."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ledger.test_pending import keys, record
from tollkeeper.domain.events import Record
from tollkeeper.ledger import id_hash_index as id_hash_index
from tollkeeper.ledger import pending
from tollkeeper.ledger.id_hash_index import IdHashIndex
from tollkeeper.ledger.pending import Pending, key_of
from tollkeeper.record_columns import table_of


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    delivered=st.lists(st.integers(0, 31), max_size=5),
    run_ids_max=st.sampled_from([1, 50, 10_000]),
)
def test_what_is_added_is_found_until_it_is_delivered(
    sizes: list[int], delivered: list[int], run_ids_max: int
) -> None:
    """However runs are merged, each id leads to its own row, and what never was leads nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_hash_index, "RUN_IDS_MAX", run_ids_max)
        known, rows = (
            IdHashIndex(),
            [(seq, keys(*(f"{seq}.{n}" for n in range(size)))) for seq, size in enumerate(sizes, 1)],
        )
        for index in range(0, len(rows), 3):
            known.add(rows[index : index + 3])
        for seq in sorted(delivered):
            known.drop_through(seq)
        last = max(delivered, default=0)
        wanted = [(key, seq) for seq, ids in rows if seq > last for key in ids]
        found = dict(known.find([key for _, ids in rows for key in ids]))
        assert found.items() >= dict(wanted).items()
        assert known.find(keys("other", "1.99")) == []
        if last >= len(rows):
            assert len(known) == 0


def test_an_id_takes_sixteen_bytes() -> None:
    """A day without the usage store must not need more memory than the machine has."""
    known = IdHashIndex()
    for seq in range(1, 101):
        known.add([(seq, [f"{seq}-{n}-{'long' * 50}" for n in range(1_000)])])
    assert len(known) == 100_000
    assert sum(run.hashes.nbytes + run.seqs.nbytes for run in known._runs) == 1_600_000
    assert len(known._runs) < 20


class Outbox:
    """Rows that can be read back until they are delivered."""

    def __init__(self) -> None:
        self.rows: dict[int, list[Record]] = {}

    def read(self, seqs: Sequence[int]) -> Iterable[pa.Table]:
        return [table_of(self.rows[seq]) for seq in seqs if seq in self.rows]


@pytest.mark.drawn(1)
@pytest.mark.parametrize("restart", [False, True])
def test_old_ids_are_known_as_well_as_new_ones(monkeypatch: pytest.MonkeyPatch, restart: bool) -> None:
    """Whether an id is here whole or not changes what it costs, never the answer."""
    monkeypatch.setattr(pending, "WHOLE_IDS_MAX", 7)
    outbox, chance = Outbox(), random.Random(5)
    here = Pending(outbox.read)
    rows: dict[int, list[Record]] = {}
    for seq in range(1, 41):
        rows[seq] = [
            record(f"{seq}.{n}", chance.choice(["acme", "beta"]))._replace(cost_nanos=seq * n)
            for n in range(chance.randrange(1, 4))
        ]
        outbox.rows[seq] = rows[seq]
        taken = [key_of(row.account_id, row.id) for row in rows[seq]]
        if restart:
            here.restored([(seq, taken, len(taken), 0)])
        else:
            here.add(taken, table_of(rows[seq]) if seq % 2 else rows[seq])
            here.committed(seq, taken, {row.account_id for row in rows[seq]}, len(taken))
    assert len(here._seqs) <= 7
    for delivered in range(41):
        live = {
            key_of(row.account_id, row.id): row for seq, r in rows.items() if seq > delivered for row in r
        }
        assert here.record_count == len(live)
        assert here.records(live) == live
        assert not any(here.disjoint([key]) for key in live)
        assert here.disjoint(keys("0.0", "41.0"))
        for row in list(live.values())[:3]:
            assert here.owners(row.id) == [row.account_id]
        if delivered < 40:
            del outbox.rows[delivered + 1]
            here.delivered({delivered + 1: len(rows[delivered + 1])})
    assert here.disjoint([key_of(row.account_id, row.id) for r in rows.values() for row in r])
    assert (here.newest_seq(None), len(here._seqs), here._keys_by_seq) == (0, 0, {})


def test_what_is_delivered_from_the_backlog_stays_while_somebody_looks_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As for the newest: between the question to the store and that to us an id must not slip through."""
    monkeypatch.setattr(pending, "WHOLE_IDS_MAX", 1)
    here = Pending()
    for seq, id_ in enumerate("abcd", 1):
        here.add(keys(id_), [record(id_)])
        here.committed(seq, keys(id_), ["acme"], 1)
    with here.looking_up():
        here.delivered(dict.fromkeys(range(1, 5), 1))
        assert not any(here.disjoint(keys(id_)) for id_ in "abcd")
    assert here.disjoint(keys(*"abcd"))


def test_a_correction_in_the_backlog_names_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id is taken; the event it corrects is found in the store, not here."""
    monkeypatch.setattr(pending, "WHOLE_IDS_MAX", 1)
    outbox = Outbox()
    here = Pending(outbox.read)
    outbox.rows[1] = [record("e")._replace(sign=-1), record("e")._replace(revision=1, amendment_id="fix")]
    outbox.rows[2] = [record("x")]
    here.add(keys("fix"), None)
    here.committed(1, keys("fix"), ["acme"], 2)
    here.add(keys("x", "y"), [record("x"), record("y")])
    here.committed(2, keys("x", "y"), ["acme"], 2)
    assert here._id_hashes
    assert not here.disjoint(keys("fix"))
    assert here.records(keys("fix", "e")) == {}
    assert here.owners("fix") == []


def test_how_far_behind_is_told_from_the_oldest() -> None:
    """What is delivered no longer counts, whatever came first."""
    now: Any = [1_000_000_000]
    here = Pending(now_us=lambda: now[0])
    assert here.behind_s() == 0
    for seq in range(1, 6):
        here.committed(seq, keys(str(seq)), ["acme"], 1)
        now[0] += 10_000_000
    assert here.behind_s() == 50
    here.delivered({1: 1, 2: 1})
    assert here.behind_s() == 30
    now[0] -= 3_600_000_000
    assert here.behind_s() == 1
    here.delivered({3: 1, 4: 1, 5: 1})
    assert here.behind_s() == 0


def test_what_was_set_aside_stays_taken() -> None:
    """Its events count; nobody can say any more what they were."""
    here = Pending()
    here.add(keys("a"), [record("a")])
    here.committed(1, keys("a"), ["acme"], 1)
    here.set_aside(keys("a"))
    here.delivered({1: 1})
    assert not here.disjoint(keys("a"))
    assert here.is_set_aside(*keys("a"))
    assert not here.is_set_aside(*keys("b"))
    assert here.records(keys("a")) == {}
