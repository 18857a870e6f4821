"""A ledger and a usage store that do not belong together, or are of different times, are told apart."""

from __future__ import annotations

import pytest

from tollkeeper.domain.pairing import BatchMark, LedgerPast, Pair, StorePast, compare


def ledger(
    batch: int = 7, epoch: str = "e", *, delivered: int = 70, begun: int = 0, aside: int = 0
) -> LedgerPast:
    return LedgerPast(BatchMark("i", epoch, batch), delivered, begun, aside)


def store(
    batch: int | None = 7, epoch: str = "e", *, records: int = 70, others: tuple[str, ...] = ()
) -> StorePast:
    return StorePast(None if batch is None else BatchMark("i", epoch, batch), list(others), records)


AGREE = Pair()
BEHIND = Pair(ledger_is_behind=True)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (ledger(0, "", delivered=0), store(None, records=0), AGREE),
        (ledger(), store(), AGREE),
        # A batch that was begun: not told to the store yet, told, appended.
        (ledger(8, "f", begun=5), store(), AGREE),
        (ledger(8, "f", begun=5), store(8, "f"), AGREE),
        (ledger(8, "f", begun=5), store(8, "f", records=75), AGREE),
        # One that was inserted before a row of it became unreadable.
        (ledger(aside=3), store(records=73), AGREE),
        (ledger(), store(8), BEHIND),
        (ledger(), store(7, "f"), BEHIND),
        # Found out at an earlier start: the store's last batch is this ledger's own.
        (ledger(), store(records=71), Pair(surplus=1)),
        (ledger(), store(6, "d", records=71), Pair(ledger_is_behind=True, surplus=1)),
        (ledger(8, "f", begun=5), store(records=76), Pair(ledger_is_behind=True, surplus=1)),
        (ledger(), store(records=60), Pair(missing=10)),
        (ledger(), store(6, "d", records=60), Pair(missing=10)),
        (ledger(), store(9, records=60), Pair(ledger_is_behind=True, missing=10)),
        # Of an earlier version, which told the store nothing, and may not have counted.
        (ledger(epoch=""), store(None), AGREE),
        (ledger(epoch=""), store(None, records=90), Pair(uncounted=20)),
        (ledger(epoch="", begun=5), store(None, records=90), Pair(ledger_is_behind=True, surplus=15)),
        # Put back to an earlier version's state, beside a store of ours.
        (ledger(6, ""), store(7), BEHIND),
        # The store's mark is gone.
        (ledger(), store(None), AGREE),
        (ledger(), store(None, records=0), Pair(missing=70)),
        (ledger(), store(None, records=80), Pair(ledger_is_behind=True, surplus=10)),
    ],
)
def test_what_two_pasts_say_of_each_other(left: LedgerPast, right: StorePast, expected: Pair) -> None:
    assert compare(left, right) == expected


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (
            ledger(),
            store(None, others=("j",)),
            "belongs to installation j, and the ledger to installation i.",
        ),
        (ledger(0, ""), store(None, others=("j",)), "installation i, which is new and has relayed nothing."),
        (ledger(), store(others=("j",)), "belongs to installation j"),
        (ledger(0, "", delivered=0), store(None), "has 70 records, and the ledger is new"),
    ],
)
def test_a_foreign_ledger_is_refused_in_words(left: LedgerPast, right: StorePast, words: str) -> None:
    refusal = compare(left, right).refusal
    assert refusal is not None
    for part in (words, "must", "Put the ledger of this usage store back", "another usage_url"):
        assert part in refusal


def test_in_a_shared_store_only_its_own_batches_are_compared() -> None:
    """Others' records are there too, so that their number tells nothing."""
    assert compare(ledger(), store(records=9_999, others=("j",)), shared=True) == AGREE
    assert compare(ledger(), store(8, records=9_999, others=("j",)), shared=True) == BEHIND
    assert compare(ledger(0, "", delivered=0), store(None, records=9_999), shared=True) == AGREE


def test_a_token_names_one_batch() -> None:
    assert BatchMark("i", "e", 3).token == "i-e-3"
    assert BatchMark("i", "", 3).token == "i-3", "A batch that an earlier version began keeps its token."
