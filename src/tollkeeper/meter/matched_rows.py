"""
Matching for columns: which rows of a batch a budget counts, and of which values it counts them apart.

The twin of `domain.matching.Matcher.matches` and `values_of`; a property test holds them together. Each distinct
combination of labels and each distinct value of a tag is looked at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollkeeper.domain.matching import MODEL, TAG, Conditions, folded, matcher_of
from tollkeeper.meter.arrays import Combinations, Int64s, combinations, ints, single

_LABELS = ("model", "kind", "method", "route")


class MatchedRows:
    """The rows of *table* (`record_columns.SCHEMA`), as far as they are asked about."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._by_tag: dict[str, tuple[list[str], Int64s]] = {}

    def of(self, match: Conditions, rows: Int64s) -> Int64s:
        """Return those of *rows* that *match*."""
        matcher = matcher_of(match)
        combos = self._labels
        verdicts = np.array(
            [matcher.matches_labels(*(text or "" for text in texts)) for texts in combos.values], np.bool_
        )
        rows = rows[verdicts[combos.codes[rows]]]
        for name, _ in match.tags:
            values, codes = self._tag(name)
            verdicts = np.array([matcher.matches_tag(name, value) for value in values], np.bool_)
            rows = rows[verdicts[codes[rows]]]
        return rows

    def values(self, by: Sequence[str], rows: Int64s) -> tuple[list[tuple[str, ...]], Int64s]:
        """Return the distinct values *by* of *rows*, and for each of them the place of its own."""
        texts, codes = zip(*(self._codes(part) for part in by), strict=True)
        combined = np.zeros(len(rows), np.int64)
        for part_texts, part_codes in zip(texts, codes, strict=True):
            _, combined = np.unique(combined * len(part_texts) + part_codes[rows], return_inverse=True)
        distinct, first, places = np.unique(combined, return_index=True, return_inverse=True)
        found = [
            tuple(
                part_texts[part_codes[rows[at]]] for part_texts, part_codes in zip(texts, codes, strict=True)
            )
            for at in first.tolist()
        ]
        assert len(distinct) == len(found)
        return found, places.astype(np.int64)

    def _codes(self, part: str) -> tuple[list[str], Int64s]:
        """Return the values of one part of `per`, and per row of the table the place of its own."""
        return self._models if part == MODEL else self._tag(part[len(TAG) :])

    @cached_property
    def _labels(self) -> Combinations:
        return combinations(self._table, _LABELS)

    @cached_property
    def _models(self) -> tuple[list[str], Int64s]:
        combos = self._labels
        return _coded([folded(model or "") for model, *_ in combos.values], combos.codes)

    def _tag(self, name: str) -> tuple[list[str], Int64s]:
        known = self._by_tag.get(name)
        if known is None:
            known = self._by_tag[name] = self._read_tag(name)
        return known

    def _read_tag(self, name: str) -> tuple[list[str], Int64s]:
        tags = single(self._table.column("tags"))
        offsets = tags.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        keys = tags.keys.slice(first, last - first)
        hits = np.flatnonzero(pc.equal(keys, name).to_numpy(zero_copy_only=False))
        encoded = tags.items.slice(first, last - first).take(pa.array(hits)).dictionary_encode()
        texts = ["", *encoded.dictionary.to_pylist()]
        codes = np.zeros(self._table.num_rows, np.int64)
        row_of_entry = np.searchsorted(offsets - first, hits, side="right") - 1
        codes[row_of_entry] = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64) + 1
        # As `meter.facts_of`: those of an adjustment say why it was made.
        codes[ints(self._table, "adjustment_nanos") != 0] = 0
        return _coded(texts, codes)


def _coded(texts: Sequence[str], codes: Int64s) -> tuple[list[str], Int64s]:
    """Return distinct *texts*, and the codes as places in these."""
    places = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return list(places), np.array([places[text] for text in texts], np.int64)[codes]


def sums_of(places: Int64s, count: int, amounts: Int64s) -> list[int]:
    """Return the sum of the *amounts* at each of *count* places, exactly: it may pass 64 bits."""
    high, low = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.add.at(high, places, amounts >> 32)
    np.add.at(low, places, amounts & 0xFFFFFFFF)
    return [(one << 32) + other for one, other in zip(high.tolist(), low.tolist(), strict=True)]
