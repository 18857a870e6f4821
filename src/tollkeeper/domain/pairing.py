"""
Whether a ledger and a usage store belong together, and which of the two is older.

The ledger numbers batches of records, in epochs: one for each start of a process on it. The usage store keeps the
last number that it may have taken, noted before the batch is inserted. The ledger has each number before the store
does, so a store with a later one has taken batches that the ledger has forgotten: the ledger was restored from a
copy. Its outbox may then have records that the store has too, under other numbers.
"""

from __future__ import annotations

from typing import NamedTuple


class BatchMark(NamedTuple):
    """
    Names one batch of one installation.

    Attributes:
        epoch: Drawn when a process claims the ledger; "" for batches of versions that had no epochs.
        batch: Its number. In one ledger, numbers only grow.
    """

    installation_id: str
    epoch: str
    batch: int

    @property
    def token(self) -> str:
        """The deduplication token of its insert."""
        parts = (self.installation_id, self.epoch, str(self.batch))
        return "-".join(part for part in parts if part)


class LedgerPast(NamedTuple):
    """
    What the ledger says of the batches that it relayed.

    Attributes:
        last: The last batch that was begun; its number is 0 if none was.
        delivered_records: Records of batches that the store has, as the ledger knows.
        begun_records: Records of the batch that was begun and not delivered: the store may have any part of them.
        set_aside_records: Records that cannot be read; a store that took them before has them.
    """

    last: BatchMark
    delivered_records: int
    begun_records: int
    set_aside_records: int


class StorePast(NamedTuple):
    """
    What the usage store says of the batches that it took.

    Attributes:
        last: The last batch of this installation that it may have; None if it was given none.
        others: Ids of other installations that it took batches of.
        records: How many records it has, of whatever installation.
    """

    last: BatchMark | None
    others: list[str]
    records: int


class Pair(NamedTuple):
    """
    What became of the comparison.

    Attributes:
        refusal: Why the two must not be used together, what is right and the way out; None if they may be.
        ledger_is_behind: The store has batches that the ledger does not know.
        surplus: Records of the store that the ledger does not know, at least.
        missing: Records that the ledger delivered and the store does not have, at least.
        uncounted: Records that a version delivered which did not count them.
    """

    refusal: str | None = None
    ledger_is_behind: bool = False
    surplus: int = 0
    missing: int = 0
    uncounted: int = 0


_WAY_OUT = (
    "Put the ledger of this usage store back (its file, or the ledger_url that was used before), "
    "or give this ledger its own usage store: another usage_url, or another data_dir."
)


def compare(ledger: LedgerPast, store: StorePast, *, shared: bool = False) -> Pair:
    """
    Compare a ledger with the usage store beside it. Call it before anything is relayed.

    Args:
        shared: Whether installations share the store on purpose: then only batches of this one are compared.
    """
    ours, theirs = ledger.last, store.last
    known = ledger.delivered_records + ledger.set_aside_records
    surplus = 0 if shared else max(0, store.records - known - ledger.begun_records)
    missing = 0 if shared else max(0, ledger.delivered_records - store.records)
    if store.others and not shared:
        return Pair(
            f"The usage store belongs to installation {', '.join(sorted(store.others))}, and the ledger to "
            f"installation {ours.installation_id}"
            f"{', which is new and has relayed nothing' if ours.batch == 0 else ''}. "
            f"Both must be of one installation. {_WAY_OUT}"
        )
    if theirs is None:
        if ours.batch == 0 and surplus:
            return Pair(
                f"The usage store has {store.records} records, and the ledger is new: it has relayed none. "
                f"A used store must have the ledger that it was used with. {_WAY_OUT}"
            )
        if not ours.epoch and not ledger.begun_records:
            # Both are as an earlier version left them, of which the first did not count.
            return Pair(missing=missing, uncounted=surplus)
        return Pair(ledger_is_behind=surplus > 0, surplus=surplus, missing=missing)
    is_behind = theirs.batch > ours.batch or (theirs.batch == ours.batch and theirs.epoch != ours.epoch)
    # A surplus beside the ledger's own last batch is of a comparison that was begun at an earlier start.
    is_behind |= surplus > 0 and theirs != ours
    return Pair(ledger_is_behind=is_behind, surplus=surplus, missing=missing)
