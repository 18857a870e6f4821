"""
Events of CSV: a row per event under the names of an event's fields, or our own CSV out, a row per bucket and group.

A row of our own CSV with `requests` stands for that many requests. It becomes as many events, which have its sums in
equal shares, so that all totals are those of the export. Where the export does not say which error or denial its
`errors` and `denied` were, it is `unknown`; where it does not say which tokens, they are prompt tokens, with the stated
cost. What events cannot have is not taken in silence: a column that is not known, or is no sum (`latency_ms_p99`), is
an error; so is a row whose measures contradict each other.

The inverse of `csv_cells`: a `'` before what a spreadsheet would run is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Final

from tollkeeper.api.csv_cells import FORMULA_STARTS
from tollkeeper.domain.events import ID_CHARS_MAX
from tollkeeper.domain.quantities import MICROS, BadQuantity, micros_of, quantity_text
from tollkeeper.errors import BadParameter
from tollkeeper.meter.rejections import ECHO_CHARS_MAX, Refused

REQUESTS_MAX: Final = 100_000_000
"""The most requests of one row: more is taken for another column."""
_TEXTS: Final[Mapping[str, str]] = {
    "id": "id",
    "time": "time",
    "account": "account",
    "project": "project",
    "key": "key_id",
    "key_id": "key_id",
    "endpoint": "endpoint",
    "method": "method",
    "route": "route",
    "kind": "kind",
    "error_type": "error_type",
    "denied_reason": "denied_reason",
    "model": "model",
    "cache": "cache",
    "variant": "variant",
}
_TOKENS: Final = ("prompt", "cached_prompt", "completion", "reasoning")
_SUMS: Final[Mapping[str, str]] = {
    "bytes_out": "bytes_out",
    "credits": "credits",
    "cost_nanos": "cost_nanos",
    "estimated_cost_nanos": "estimated_cost_nanos",
    "provider_cost_nanos": "provider_cost_nanos",
    **{f"{name}_tokens": f"{name}_tokens" for name in _TOKENS},
    **{f"tokens.{name}": f"{name}_tokens" for name in _TOKENS},
}
_NUMBERS: Final = ("status", "requests", "latency_ms")
_CHECKED: Final[Mapping[str, str]] = {
    "errors": "status and error_type",
    "failed": "status",
    "denied": "denied_reason",
    "cache_hits": "cache",
    "cache_misses": "cache",
    "tokens": "the classes of tokens",
    "unpriced": "cost_nanos",
    "adjustments_nanos": "nothing: adjustments are no events",
}
"""Measures that follow from other columns, and from which: a row whose values differ is rejected."""
_PREFIXES: Final[Mapping[str, str]] = {
    "tag:": "tags.",
    "tag.": "tags.",
    "tags.": "tags.",
    "quantity.": "quantities.",
    "quantities.": "quantities.",
}
UNKNOWN: Final = "unknown"
"""Error type and denial of requests of which the export says no more."""
_WHOLE: Final = re.compile(r"\d{1,19}", re.ASCII)
_DECIMAL: Final = re.compile(r"\d{1,12}(\.\d{1,12})?", re.ASCII)


class CsvEvents:
    """
    Makes events of the rows under one header.

    Args:
        account: Who pays where a row names neither account nor key.
        source: Names the file's origin: rows without `id` get ids that depend on it.
        field_map: Field → the header of its column, for columns of other names.

    Raises:
        BadParameter: Columns are unknown, twice there, or none is the time.
    """

    def __init__(
        self, header: Sequence[str], *, account: str | None, source: str | None, field_map: Mapping[str, str]
    ) -> None:
        names = [_unquoted(cell.strip()) for cell in header]
        for field, column in field_map.items():
            if column not in names:
                raise _bad(f"there is no column {column!r}, which the field map names for {field}")
        mapped = {column: field for field, column in field_map.items()}
        fields = [_field_of(mapped.get(name, name)) for name in names]
        if unknown := [name for name, field in zip(names, fields, strict=True) if field is None]:
            shown = ", ".join(repr(name[:ECHO_CHARS_MAX]) for name in unknown[:8])
            raise _bad(
                f"the columns {shown} cannot be taken: map them with --field-map NAME=COLUMN, or leave them out (no "
                "sum of requests has a percentile, an average or a peak)"
            )
        self._fields = [field for field in fields if field is not None]
        if len(set(self._fields)) != len(self._fields):
            twice = next(field for field in self._fields if self._fields.count(field) > 1)
            raise _bad(f"two columns are {twice}: drop one")
        if "time" not in self._fields:
            raise _bad(
                "there is no column time: export with --granularity, or map one with --field-map time=…"
            )
        self._counts = "requests" in self._fields
        if self._counts and {"id", "latency_ms"} & set(self._fields):
            raise _bad("a row with requests is no single event: it has neither id nor latency_ms")
        self._account = account
        self._salt = b"" if source is None else source.encode() + b"\0"
        self._seen: dict[bytes, int] = {}

    def events(self, row: Sequence[str]) -> Iterator[dict[str, Any]]:
        """
        Return the events of one row, as JSON objects.

        Raises:
            Refused: A value cannot be read, or the row says what events cannot.
        """
        if len(row) != len(self._fields):
            reason = f"the row has {len(row)} cells, and the header {len(self._fields)}"
            raise Refused("", "malformed", reason)
        values = {field: _unquoted(cell) for field, cell in zip(self._fields, row, strict=True) if cell != ""}
        count = _whole(values, "requests") if self._counts else 1
        if count > REQUESTS_MAX:
            raise Refused("requests", "out_of_range", f"requests must be at most {REQUESTS_MAX:,}")
        event = self._text_of(values)
        sums = {field: _whole(values, field) for field in self._fields if field in _SUMS.values()}
        quantities = {
            field.partition(".")[2]: _micros(field, values[field])
            for field in values
            if field.startswith("quantities.")
        }
        denied, errors = self._without_reason(values, event, count)
        self._add_tokens(values, sums, quantities)
        _check(values, event, count, sums, quantities)
        if count == 0 and (any(sums.values()) or any(quantities.values())):
            raise Refused("requests", "bad_value", "a row of no requests has sums: they belong to no event")
        return self._shares(event, count, sums, quantities, denied, errors, self._row_id(row, values))

    def _without_reason(
        self, values: dict[str, str], event: Mapping[str, Any], count: int
    ) -> tuple[int, int]:
        """Return how many of the events are denied, and errors, for a reason that the export does not say."""
        denied = errors = 0
        if "denied_reason" not in self._fields:
            denied = _whole(values, "denied")
            values.pop("denied", None)
        if not {"status", "error_type"} <= set(self._fields) and event.get("status", 0) < 400:
            errors = 0 if "error_type" in event else _whole(values, "errors")
            if errors:
                values.pop("errors")
        if max(denied, errors) > count:
            raise Refused("requests", "bad_value", f"requests is {count}, and errors or denied are more")
        return denied, errors

    def _add_tokens(
        self, values: dict[str, str], sums: dict[str, int], quantities: Mapping[str, int]
    ) -> None:
        """Count `tokens` as prompt tokens, if the export has no classes of them, and no cost depends on these."""
        has_classes = any(name.endswith("_tokens") for name in (*self._fields, *quantities))
        if not has_classes and "tokens" in values and ("cost_nanos" in values or "model" not in values):
            sums["prompt_tokens"] = _whole(values, "tokens")

    def _text_of(self, values: Mapping[str, str]) -> dict[str, Any]:
        event: dict[str, Any] = {
            field: values[field]
            for field in _TEXTS.values()
            if field in values and field not in ("endpoint", "id")
        }
        if endpoint := values.get("endpoint"):
            method, _, route = endpoint.partition(" ")
            event = {**event, "method": method, "route": route}
        if status := _whole(values, "status"):
            event["status"] = status
        if "latency_ms" in values:
            if not _DECIMAL.fullmatch(values["latency_ms"]):
                raise Refused("latency_ms", "wrong_type", "latency_ms must be a number")
            event["latency_ms"] = float(values["latency_ms"])
        tags = {
            field.removeprefix("tags."): text for field, text in values.items() if field.startswith("tags.")
        }
        if tags:
            event["tags"] = tags
        if "account" not in event and "key_id" not in event and self._account is not None:
            event["account"] = self._account
        return event

    def _shares(
        self,
        event: Mapping[str, Any],
        count: int,
        sums: Mapping[str, int],
        quantities: Mapping[str, int],
        denied: int,
        errors: int,
        row_id: str,
    ) -> Iterator[dict[str, Any]]:
        # What was refused used nothing, and costs nothing; it comes last.
        served = count - denied if denied < count else count
        for place in range(count):
            share = {name: _share(total, served, place) for name, total in sums.items()}
            tokens = {name: share.pop(f"{name}_tokens", 0) for name in _TOKENS}
            part = {**event, **share, "id": row_id if count == 1 else f"{row_id}-{place}"}
            if place >= count - denied:
                part["denied_reason"] = UNKNOWN
            if place >= count - errors:
                part["error_type"] = UNKNOWN
            if any(tokens.values()):
                part["tokens"] = {name: number for name, number in tokens.items() if number}
            if quantities:
                parts = {name: _share(total, served, place) for name, total in quantities.items()}
                part["quantities"] = {name: quantity_text(number) for name, number in parts.items() if number}
            yield part

    def _row_id(self, row: Sequence[str], values: Mapping[str, str]) -> str:
        if "id" in values:
            if len(values["id"]) > ID_CHARS_MAX:
                raise Refused("id", "out_of_range", f"id must be text of length <= {ID_CHARS_MAX}")
            return values["id"]
        said = self._salt + "\x1f".join(row).encode()
        digest = blake2b(said, digest_size=16).digest()
        occurrence = self._seen[digest] = self._seen.get(digest, 0) + 1
        return "csv-" + blake2b(b"%b\n%d" % (said, occurrence), digest_size=16).hexdigest()


def _check(
    values: Mapping[str, str],
    event: dict[str, Any],
    count: int,
    sums: dict[str, int],
    quantities: Mapping[str, int],
) -> None:
    """Raise `Refused` when a measure does not follow from what the events of the row will have."""
    is_failed = event.get("status", 0) >= 400
    token_sum = sum(sums.get(f"{name}_tokens", 0) for name in _TOKENS)
    token_sum += sum(micros // MICROS for name, micros in quantities.items() if name.endswith("_tokens"))
    expected = {
        "errors": count * (is_failed or "error_type" in event),
        "failed": count * is_failed,
        "denied": count * ("denied_reason" in event),
        "cache_hits": count * (event.get("cache") == "hit"),
        "cache_misses": count * (event.get("cache") == "miss"),
        "tokens": token_sum,
        "adjustments_nanos": 0,
    }
    unpriced = _whole(values, "unpriced")
    if unpriced:
        expected["unpriced"] = count
        # Their price comes when there is one, here too.
        sums.pop("cost_nanos", None)
    for name, right in expected.items():
        if name in values and values[name] != str(right):
            reason = f"{name} is {values[name][:ECHO_CHARS_MAX]}, and by {_CHECKED[name]} it is {right}: export them"
            raise Refused(name, "bad_value", reason)
    estimated = sums.get("estimated_cost_nanos", 0)
    if not estimated:
        sums.pop("estimated_cost_nanos", None)
    elif sums.pop("cost_nanos", estimated) != estimated:
        reason = "a part of the cost is an estimate: export with finer groups, or after the jobs have ended"
        raise Refused("estimated_cost_nanos", "bad_value", reason)


def _field_of(name: str) -> str | None:
    for prefix, field in _PREFIXES.items():
        if name.startswith(prefix) and len(name) > len(prefix):
            return field + name[len(prefix) :]
    if name in _NUMBERS or name in _CHECKED:
        return name
    return _TEXTS.get(name) or _SUMS.get(name)


def _share(total: int, count: int, place: int) -> int:
    """Return the part of *total* that event *place* has of the first *count*; these parts differ by at most 1."""
    if place >= count:
        return 0
    part, rest = divmod(total, count)
    return part + (place < rest)


def _whole(values: Mapping[str, str], field: str) -> int:
    text = values.get(field, "0")
    if not _WHOLE.fullmatch(text):
        reason = f"{field} must be a whole number, not {text[:ECHO_CHARS_MAX]!r}"
        raise Refused(field, "wrong_type", reason)
    return int(text)


def _micros(field: str, text: str) -> int:
    try:
        return micros_of(field, Decimal(text) if _DECIMAL.fullmatch(text) else text)
    except BadQuantity as exc:
        raise Refused(field, "wrong_type", str(exc)) from None


def _unquoted(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:2] in FORMULA_STARTS and len(cell) > 1 else cell


def _bad(reason: str) -> BadParameter:
    return BadParameter(reason, field="columns")
