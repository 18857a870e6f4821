"""
The ids of outbox rows that have waited long, in 16 bytes each, whatever their length.

An id is known by its hash, beside the number of its outbox row; who must be sure, or wants the record, reads
that row. Hashes of 64 bits, of a secret of this process, meet by chance once in 4e12 look-ups among 5 million
ids; then a caller is refused, and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

RUN_IDS_MAX: Final = 1 << 20
"""Ids of one sorted run: to merge two smaller ones takes some 20 ms at most."""

_Int64s = npt.NDArray[np.int64]


class _Run(NamedTuple):
    """Ids of consecutive outbox rows, ordered by hash."""

    hashes: _Int64s
    seqs: _Int64s
    seq_max: int


class IdHashIndex:
    """
    Ids of outbox rows, added in the order of the rows. One thread changes it at a time; any may look up.

    Runs are merged while they are of like size, so that there are few, and let go when all of their rows are
    delivered. An id that is found though its row was delivered is known to the usage store.
    """

    def __init__(self) -> None:
        self._runs: tuple[_Run, ...] = ()
        self.seq_max = 0
        """The newest row that was ever added; all before it are here or delivered."""

    def __len__(self) -> int:
        return sum(len(run.hashes) for run in self._runs)

    def add(self, rows: Iterable[tuple[int, Sequence[str]]]) -> None:
        """Take in the ids of *rows*, each an outbox row's number and its ids, in the order of their numbers."""
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
        """Let go of what was delivered: all rows up to *seq*."""
        if self._runs and self._runs[0].seq_max <= seq:
            self._runs = tuple(run for run in self._runs if run.seq_max > seq)

    def find(self, keys: Sequence[str]) -> list[tuple[str, int]]:
        """Return those of *keys* that are here, each with the number of its outbox row."""
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
