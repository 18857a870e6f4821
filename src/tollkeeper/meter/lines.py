"""The lines of a body, found without an object per line, and the commas of an array."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from tollkeeper.meter.arrays import Int64s

BLOCK_BYTES: Final = 1 << 20
"""Arrow's unit of parallel work; 0.5 to 2 MiB measured alike, smaller was slower."""
JSON_SPACE: Final = b" \t\r\n"


@dataclass(frozen=True, slots=True)
class Lines:
    """The non-blank lines of a body; line i is `body[starts[i]:ends[i]]`."""

    body: bytes
    starts: Int64s
    ends: Int64s
    are_objects: bool
    """
    Whether each line begins with `{` and ends with `}`.

    Arrow also reads two objects on a line, and one object over two lines. Here a line that leaves its object
    open ends with an inner `}`, after which the `{` of the next line is an error; so each line holds whole
    objects, and as many rows as lines means one object each.
    """

    @classmethod
    def of(cls, body: bytes) -> Lines:
        """Return the lines of *body*, without blank ones and without white space around each."""
        body = body.strip(JSON_SPACE)
        lines = cls._cut(body)
        if lines.are_objects:
            return lines
        stripped = (line.strip(JSON_SPACE) for line in body.split(b"\n"))
        return cls._cut(b"\n".join(line for line in stripped if line))

    @classmethod
    def _cut(cls, body: bytes) -> Lines:
        if not body:
            return cls(body, np.empty(0, np.int64), np.empty(0, np.int64), True)
        octets = np.frombuffer(body, np.uint8)
        line_ends = np.flatnonzero(octets == ord("\n"))
        starts = np.concatenate([[0], line_ends + 1])
        ends = np.concatenate([line_ends, [len(body)]])
        # A body has no white space at its ends, so every start and every end - 1 is a place in it.
        objects = (octets[starts] == ord("{")).all() and (octets[ends - 1] == ord("}")).all()
        return cls(body, starts, ends, bool(objects))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def longest(self) -> int:
        """The bytes of the longest line."""
        return int((self.ends - self.starts).max(initial=0))

    def pick(self, indexes: Iterable[int]) -> list[bytes]:
        """Return the lines at *indexes*."""
        return [self.body[self.starts[i] : self.ends[i]] for i in indexes]

    def piece(self, start: int, stop: int) -> Lines:
        """Return lines *start* to *stop*, stop not included."""
        return self._cut(self.body[self.starts[start] : self.ends[min(stop, len(self)) - 1]])


def array_commas(body: bytes) -> int:
    """Return how many commas separate the items of the JSON array *body*; of other bytes, some number."""
    count, depth, in_string, escaped = 0, 0, 0, False
    for start in range(0, len(body), BLOCK_BYTES):
        block = body[start : start + BLOCK_BYTES]
        # Same length, no escapes: what is left of quotes begins and ends strings.
        if escaped:
            block = b"_" + block[1:]
        block = block.replace(b"\\\\", b"__")
        escaped = block.endswith(b"\\")
        octets = np.frombuffer(block.replace(b'\\"', b"__"), np.uint8)
        inside = (np.cumsum(octets == ord('"'), dtype=np.int64) + in_string) & 1
        outside = inside == 0
        opens = outside & ((octets == ord("[")) | (octets == ord("{")))
        closes = outside & ((octets == ord("]")) | (octets == ord("}")))
        depths = np.cumsum(opens.astype(np.int64) - closes) + depth
        count += int((outside & (octets == ord(",")) & (depths == 1)).sum())
        in_string, depth = int(inside[-1]), int(depths[-1])
    return count
