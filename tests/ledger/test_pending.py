"""An id is known from its commit on, without a gap between the outbox and the usage store."""

from __future__ import annotations

import threading

import pytest

from tollkeeper.domain.events import RECORD_FIELDS, Record
from tollkeeper.ledger.pending import Pending, key_of
from tollkeeper.record_columns import table_of


def record(id_: str, account_id: str = "acme") -> Record:
    texts = dict.fromkeys(RECORD_FIELDS, "")
    numbers = {
        name: 0
        for name in RECORD_FIELDS
        if name.endswith(("_us", "_tokens", "_nanos"))
        or name in ("revision", "status", "bytes_out", "credits")
    }
    return Record(
        **{**texts, **numbers, "account_id": account_id, "id": id_, "sign": 1, "tags": {}, "quantities": {}}
    )


def keys(*ids: str) -> list[str]:
    return [key_of("acme", id_) for id_ in ids]


def committed(pending: Pending, seq: int, *ids: str) -> None:
    pending.add(keys(*ids), [record(id_) for id_ in ids])
    pending.committed(seq, keys(*ids), ["acme"], len(ids))


def test_an_id_is_here_until_it_is_delivered() -> None:
    """From then on the usage store knows it."""
    pending = Pending()
    committed(pending, 1, "a", "b")
    committed(pending, 2, "c")
    assert (pending.record_count, pending.newest_seq("acme"), pending.newest_seq(None)) == (3, 2, 2)
    pending.delivered({1: 2})
    assert pending.disjoint(keys("a", "b"))
    assert not pending.disjoint(keys("x", "c"))
    assert pending.record_count == 1
    pending.delivered({2: 1})
    assert (pending.record_count, pending.newest_seq("acme"), pending.newest_seq(None)) == (0, 0, 0)
    assert pending.disjoint(keys("a", "b", "c"))


def test_records_are_found_while_another_batch_is_being_committed() -> None:
    """A group has several batches: that a key is of one of them says nothing of the others."""
    pending = Pending()
    pending.add(keys("a"), table_of([record("a")]))
    pending.add(keys("b"), table_of([record("b")]))
    pending.add(keys("c"), None)
    assert pending.record_columns(keys("b", "c"))["id"].to_pylist() == ["b"]


def test_what_is_delivered_stays_while_somebody_looks_it_up() -> None:
    """Who asked the store before the delivery must find the id here after it: else it would pass as new."""
    pending = Pending()
    committed(pending, 1, "a")
    with pending.looking_up():
        pending.delivered({1: 1})
        assert not pending.disjoint(keys("a"))
        with pending.looking_up():
            assert not pending.disjoint(keys("a"))
        assert not pending.disjoint(keys("a"))
    assert pending.disjoint(keys("a"))


def test_a_look_up_that_began_later_keeps_nothing_older() -> None:
    """Or a stream of look-ups, each overlapping the next, would keep every id for ever."""
    pending = Pending()
    committed(pending, 1, "a")
    first = pending.looking_up()
    first.__enter__()
    pending.delivered({1: 1})
    second = pending.looking_up()
    second.__enter__()
    first.__exit__(None, None, None)
    assert pending.disjoint(keys("a"))
    second.__exit__(None, None, None)


def test_a_relay_that_is_faster_than_the_commit_thread_leaves_nothing_behind() -> None:
    """It may deliver a row between its commit and `committed`: the ids must not stay for ever."""
    pending = Pending()
    pending.add(keys("a"), [record("a")])
    with pending.looking_up():
        pending.delivered({7: 1})
        pending.committed(7, keys("a"), ["acme"], 1)
        assert not pending.disjoint(keys("a"))
    assert pending.disjoint(keys("a"))
    assert (pending.record_count, pending.newest_seq(None)) == (0, 0)


def test_a_failed_commit_takes_its_ids_back() -> None:
    """The retry of what was not booked is no duplicate."""
    pending = Pending()
    pending.add(keys("a", "b"), [record("a"), record("b")])
    pending.drop(keys("a", "b"))
    assert pending.disjoint(keys("a", "b"))


@pytest.mark.parametrize("columnar", [False, True])
def test_records_are_found_by_id(columnar: bool) -> None:
    """To tell a repeat from another event of the same id before the store has it."""
    pending = Pending()
    rows = [record("a")._replace(cost_nanos=1), record("b")._replace(cost_nanos=2, latency_us=None)]
    pending.add(keys("a", "b"), table_of(rows) if columnar else rows)
    assert pending.records(keys("b", "none", "a")) == dict(zip(keys("a", "b"), rows, strict=True))
    assert pending.owners("a") == ["acme"]
    assert pending.owners("acme") == []


def test_the_id_of_a_correction_is_taken_but_names_no_event() -> None:
    """An event of that id is a conflict, not a repeat."""
    pending = Pending()
    pending.add(keys("fix"), None)
    pending.committed(1, keys("fix"), ["acme"], 2)
    assert not pending.disjoint(keys("fix"))
    assert pending.records(keys("fix")) == {}
    assert pending.owners("fix") == []


def test_the_id_of_an_open_hold_is_taken() -> None:
    """Settling it will make the event of that id."""
    pending = Pending()
    pending.hold(keys("h"))
    assert not pending.disjoint(keys("h"))
    assert pending.records(keys("h")) == {}
    pending.release(keys("h"))
    assert pending.disjoint(keys("h"))


def test_accounts_wait_only_for_their_own() -> None:
    """A usage answer must not wait for the traffic of somebody else."""
    pending = Pending()
    committed(pending, 1, "a")
    pending.add([key_of("beta", "b")], [record("b", "beta")])
    pending.committed(2, [key_of("beta", "b")], ["beta"], 1)
    assert (pending.newest_seq("acme"), pending.newest_seq("beta"), pending.newest_seq("x")) == (1, 2, 0)


def test_threads_lose_no_id() -> None:
    """The commit thread adds, the relay delivers and callers look up, all at once."""
    pending = Pending()
    missed: list[str] = []
    stored: set[str] = set()
    last = threading.Event()

    def look() -> None:
        while not last.is_set():
            with pending.looking_up():
                in_store = "e499" in stored
                seen.append(in_store or not pending.disjoint(keys("e499")))
                if seen[-1] is False and any(seen):
                    missed.append("e499")

    seen: list[bool] = []
    looker = threading.Thread(target=look)
    looker.start()
    for seq in range(500):
        committed(pending, seq, f"e{seq}")
        stored.add(f"e{seq}")
        pending.delivered({seq: 1})
    last.set()
    looker.join()
    assert missed == []
    assert pending.record_count == 0
