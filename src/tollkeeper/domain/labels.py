"""
Labels: the texts of callers that usage is grouped by, and a bound on how many distinct ones are kept.

Each distinct combination of labels is a row of the rollups, so a caller who never sends the same text twice takes
many times the disk and memory of others. Beyond the bound of an account and UTC day, a text is stored as `other`.
Not here: what an event costs and counts, which is decided from the texts as they came; tags and ids, which are in
no rollup.
"""

from __future__ import annotations

from typing import Final

from tollkeeper.domain.instants import US_PER_S

OTHER: Final = "other"
"""Stored in place of a text beyond the bound. A real value of this name is indistinguishable from it."""
LABELS: Final = ("method", "route", "kind", "error_type", "denied_reason", "model")
"""The fields of `events.Record` that callers name freely and that the rollups group by."""
COMBINATIONS_PER_VALUE: Final = 4
"""Combinations are bounded too, at this many times the values: the rollups have a row for each, whatever it is of."""
DAYS_BACK: Final = 2
DAYS_AHEAD: Final = 1
"""Days around that of receipt which are bounded one by one; the events of all others share one bound."""
_US_PER_DAY: Final = 86_400 * US_PER_S

Texts = tuple[str, ...]
"""The labels of one record, in the order of `LABELS`."""


def label_day(occurred_at_us: int, received_at_us: int) -> int:
    """
    Return the bucket that the labels of a record count in: its UTC day, in days since 1970.

    A day far from that of receipt gets a negative number, the same for all such days: to send old events is no way
    to more distinct texts. `ledger.labels` has the form for columns.
    """
    day, today = occurred_at_us // _US_PER_DAY, received_at_us // _US_PER_DAY
    return day if day == today or -DAYS_BACK <= day - today <= DAYS_AHEAD else -today


def same_label(stored: str, given: str) -> bool:
    """Return whether *given* may be what *stored* was made of: equal, or replaced by `other`."""
    return stored == given or (stored == OTHER and given != "")


class DistinctLabels:
    """
    The distinct labels of one account and day: the first *values_max* of each field, and of their combinations.

    Hashes are kept instead of texts, so that memory does not follow their length: some 80 bytes each. Two texts with
    the same hash count as one. Calls for one object are made one at a time; `knows` may be called meanwhile.
    """

    __slots__ = ("_combinations", "_seen", "_values", "_values_max")

    def __init__(self, values_max: int) -> None:
        self._values_max = values_max
        self._seen: set[int] = set()
        self._values = [0] * len(LABELS)
        self._combinations = 0

    def __len__(self) -> int:
        """The number of hashes kept: at most `(len(LABELS) + COMBINATIONS_PER_VALUE) * values_max`."""
        return len(self._seen)

    def knows(self, texts: Texts) -> bool:
        """Return whether `admit` would leave *texts* as they are, since it did before."""
        return hash(texts) in self._seen

    def admit(self, texts: Texts) -> Texts:
        """Return what to store for *texts*; the same for the same texts, whatever came between."""
        seen = self._seen
        if hash(texts) in seen:
            return texts
        kept = tuple(
            text if self._is_kept(index, text, hash((index, text))) else OTHER
            for index, text in enumerate(texts)
        )
        combination = hash(kept)
        if combination in seen:
            return kept
        if self._combinations >= self._values_max * COMBINATIONS_PER_VALUE:
            return tuple(OTHER if text else "" for text in kept)
        self._combinations += 1
        seen.add(combination)
        return kept

    def _is_kept(self, index: int, text: str, hashed: int) -> bool:
        if not text or text == OTHER or hashed in self._seen:
            return True
        if self._values[index] >= self._values_max:
            return False
        self._values[index] += 1
        self._seen.add(hashed)
        return True
