"""
An index from ids to outbox rows in 16 bytes an id, whatever its length, for rows that have waited long.

It keeps the 64-bit hash of each id and the number of its outbox row. The record, and the proof that it is the same
id, are in that row. Hashes are keyed by a secret of this process. Among 5 million ids, one look-up in 4e12 finds
the hash of another id; then a caller is refused, and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

RUN_IDS_MAX: Final = 1 << 20
"""Ids of one sorted run: a merge of two runs into one of this size takes some 20 ms."""

_Int64s = npt.NDArray[np.int64]


class _Run(NamedTuple):
    """Ids of consecutive outbox rows, ordered by hash."""

    hashes: _Int64s
    seqs: _Int64s
    seq_max: int


class IdHashIndex:
    """
    Ids of outbox rows, added in the order of the rows. One thread at a time may change it; any thread may look up.

    It is a list of sorted runs. Runs of similar size are merged, so that there are few. A run is dropped when all of
    its rows are delivered; until then `find` also returns ids of delivered rows, which the usage store has too.
    """

    def __init__(self) -> None:
        self._runs: tuple[_Run, ...] = ()
        self.seq_max = 0
        """The newest row that was ever added; each row before it is here or delivered."""

    def __len__(self) -> int:
        return sum(len(run.hashes) for run in self._runs)

    def add(self, rows: Iterable[tuple[int, Sequence[str]]]) -> None:
        """Add the ids of *rows*, each the number of an outbox row and its ids, in the order of the numbers."""
        hashes, seqs = [], []
        for seq, keys in rows:
            hashes.append(_hashes(keys))
            seqs.append(np.full(len(keys), seq, np.int64))
            self.seq_max = seq
        if not any(map(len, hashes)):
            return
        runs = [*self._runs, _sorted_run(np.concatenate(hashes), np.concatenate(seqs), self.seq_max)]
        while len(runs) > 1 and _should_merge(runs[-2], runs[-1]):
            newer, older = runs.pop(), runs.pop()
            runs.append(
                _sorted_run(
                    np.concatenate((older.hashes, newer.hashes)),
                    np.concatenate((older.seqs, newer.seqs)),
                    newer.seq_max,
                )
            )
        self._runs = tuple(runs)

    def drop_through(self, seq: int) -> None:
        """Drop the runs whose rows are all delivered: those up to row *seq*."""
        if self._runs and self._runs[0].seq_max <= seq:
            self._runs = tuple(run for run in self._runs if run.seq_max > seq)

    def find(self, keys: Sequence[str]) -> list[tuple[str, int]]:
        """Return those *keys* whose hash is here, each with the number of its outbox row."""
        wanted = _hashes(keys)
        found: list[tuple[str, int]] = []
        for run in self._runs:
            places = np.searchsorted(run.hashes, wanted)
            places[places == len(run.hashes)] = 0
            for index in np.flatnonzero(run.hashes[places] == wanted).tolist():
                found.append((keys[index], int(run.seqs[places[index]])))
        return found


def _should_merge(older: _Run, newer: _Run) -> bool:
    size = len(newer.hashes)
    return len(older.hashes) <= 2 * size and len(older.hashes) + size <= RUN_IDS_MAX


def _hashes(keys: Sequence[str]) -> _Int64s:
    return np.fromiter(map(hash, keys), np.int64, len(keys))


def _sorted_run(hashes: _Int64s, seqs: _Int64s, seq_max: int) -> _Run:
    # Stable sorting finds the runs that are in order already.
    order = np.argsort(hashes, kind="stable")
    return _Run(hashes[order], seqs[order], seq_max)
