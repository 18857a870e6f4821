"""
Decodes batches of meter events (`domain.events.Event`) from JSON into Arrow columns.

There are two ways from bytes to columns, and they agree on every input (a property test says so):

* the exact way decodes one event at a time with msgspec; it decides what an event is and words every
  rejection;
* the fast way reads the whole batch with Arrow and checks the bounds column by column. It only ever accepts
  events; whatever looks odd to it (a piece that Arrow cannot read, a row out of bounds) goes the exact way.

So a bad event costs the other events of its piece (`PIECE_LINES`) some time, and nothing else.

A call costs in proportion to what was sent, whatever that is. Rejections beyond `REJECTIONS_SHOWN` are counted,
never made. Bytes are bounded before they are parsed: the events of a call (`EVENTS_MAX`) and the bytes of one
event (`EVENT_BYTES_MAX`). A body whose first `GIVEN_UP_AFTER` events are all bad is given up. Those bounds
raise; no other bad input does.

Conventions, the same both ways: null means absent, for a tag too; of a key given twice the last one counts;
tags are kept in the order of their names, and no tags at all are null; a number with a fraction or an
exponent is not an integer, even `200.0`; empty text is kept as it came, but names no account and no API key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from tollkeeper.domain.events import Event
from tollkeeper.meter.arrays import Int64s
from tollkeeper.meter.exact import UNREADABLE, decode_each, decode_exactly, from_object
from tollkeeper.meter.fast import PIECE_LINES, decode_fast
from tollkeeper.meter.fields import PLAIN_SCHEMA, Part, encoded
from tollkeeper.meter.lines import JSON_SPACE, Lines, array_commas
from tollkeeper.meter.rejections import EVENTS_MAX, Rejected, Rejection, too_many

_BOM: Final = b"\xef\xbb\xbf"
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)
_RAW_ARRAY: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Decoded(NamedTuple):
    """
    What a batch held: `count` events, of which some are rows of `columns` (`EVENT_SCHEMA`, in order), the
    others were rejected. `indexes` is each row's position in the batch. `rejections` are the first
    `REJECTIONS_SHOWN`, in order; `rejected` counts all.
    """

    columns: pa.Table
    indexes: Int64s
    rejections: list[Rejection]
    count: int  # type: ignore[assignment]  # Hides `tuple.count`, which nobody needs here.

    @property
    def rejected(self) -> int:
        """The number of rejected events."""
        return self.count - len(self.indexes)


def decode_ndjson(body: bytes, *, now_us: int) -> Decoded:
    """
    Decode newline-delimited JSON, one event per line.

    Blank lines, a missing last line end, CRLF line ends and a leading byte order mark are all fine.

    Args:
        body: UTF-8; any bytes at all are answered, with rejections.
        now_us: The present, microseconds since the Unix epoch; times may lie `FUTURE_S_MAX` beyond it.

    Raises:
        BodyTooLarge: It has more than `EVENTS_MAX` lines.
        Malformed: None of its first `GIVEN_UP_AFTER` events can be taken.
    """
    # Counted before anything is made of it: a line of one byte costs some hundred bytes of memory.
    if body.count(b"\n") > EVENTS_MAX:
        raise too_many()
    rejected = Rejected(gives_up=True)
    return _assemble(_decode_lines(Lines.of(body.removeprefix(_BOM)), now_us, rejected), rejected)


def decode_json(body: bytes, *, now_us: int) -> Decoded:
    """
    Decode one event (a JSON object) or an array of events.

    A body that is not JSON at all is one rejection, `malformed` at index 0. For the arguments and errors see
    `decode_ndjson`.
    """
    body = body.removeprefix(_BOM).strip(JSON_SPACE)
    rejected = Rejected(gives_up=True)
    if not body:
        return _assemble([], rejected)
    # The commas of an array bound its items from above; only where they may be too many, its own are counted.
    if body.count(b",") >= EVENTS_MAX and array_commas(body) >= EVENTS_MAX:
        raise too_many()
    items: list[msgspec.Raw]
    try:
        items = _RAW_ARRAY.decode(body) if body.startswith(b"[") else [_RAW.decode(body)]
    except UNREADABLE as exc:
        rejected.add(0, exc)
        return _assemble([Part.none_of(1)], rejected)
    # A raw item is well-formed JSON, so a line end in it is white space between tokens.
    lines = b"\n".join(items)
    if lines.count(b"\n") != len(items) - 1:
        lines = b"\n".join(bytes(item).replace(b"\n", b" ") for item in items)
    return _assemble(_decode_lines(Lines.of(lines), now_us, rejected), rejected)


def decode_events(events: Sequence[Event | Mapping[str, Any]], *, now_us: int) -> Decoded:
    """
    Decode events given as objects; each is checked as if it had come as JSON. See `decode_ndjson`.

    Raises nothing: the caller has the objects already, so a bound would protect nothing.
    """
    rejected = Rejected(gives_up=False)
    return _assemble([decode_each(events, from_object, now_us, rejected, range(len(events)))], rejected)


def _assemble(parts: Sequence[Part], rejected: Rejected) -> Decoded:
    """Return consecutive *parts* as the one batch that they are."""
    offset = 0
    tables, indexes = [PLAIN_SCHEMA.empty_table()], [np.empty(0, np.int64)]
    for part in parts:
        tables.append(part.columns)
        indexes.append(part.indexes + offset)
        offset += part.size
    columns = encoded(pa.concat_tables(tables))
    return Decoded(columns, np.concatenate(indexes), rejected.shown, offset)


def _decode_lines(lines: Lines, now_us: int, rejected: Rejected) -> list[Part]:
    """Decode *lines* the fast way where that works, and the exact way where not."""
    if not len(lines):
        return []
    if part := decode_fast(lines, now_us, rejected, 0):
        return [part]
    starts = range(0, len(lines), PIECE_LINES)
    return [
        _decode_piece(lines.piece(start, start + PIECE_LINES), now_us, rejected, start) for start in starts
    ]


def _decode_piece(piece: Lines, now_us: int, rejected: Rejected, start: int) -> Part:
    return decode_fast(piece, now_us, rejected, start) or decode_exactly(piece, now_us, rejected, start)
