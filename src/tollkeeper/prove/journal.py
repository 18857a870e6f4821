"""
What a client process sent and what it was answered: one JSON line each, written before and after.

All times are microseconds since the epoch, by the clock of the machine that the server runs on too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

Op = Literal[
    "authorize",
    "settle",
    "void",
    "events",
    "amend",
    "void_event",
    "grants",
    "budgets",
    "top_up",
    "adjust",
    "revoke",
]


ANSWER_S_MAX: Final = 30
"""
A call that waits longer for its answer has none: the server runs, and does not do its work.

On a machine that is shared and gives a tenth of its CPU, a server that works may be that slow.
"""
TIMED_OUT: Final = -1


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """*status* 0: the call was sent; `TIMED_OUT`: a try had no answer in time. Else its answer came."""

    at_us: int
    op: Op
    id: str
    body: Any = None
    status: int = 0


class Journal:
    """The file of one process. Any thread may write: a line is one write, whole or not there."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, op: Op, id_: str, body: Any = None, status: int = 0) -> None:
        line = Line(time.time_ns() // 1_000, op, id_, body, status)
        os.write(self._file, msgspec.json.encode(line) + b"\n")


class JournaledCall:
    """
    One call with all its tries, as its client knows it.

    Attributes:
        sent_us: When it was sent first: the server cannot have done it before.
        sent: How often.
        answered_us: When an answer came: by then the server had done it. None: nobody knows whether.
        status, answer: What came; 0 and None without an answer.
        timed_out: How many tries had no answer within `ANSWER_S_MAX`, from a server that was not killed.
    """

    __slots__ = ("answer", "answered_us", "body", "id", "op", "sent", "sent_us", "status", "timed_out")

    def __init__(self, line: Line) -> None:
        self.op = line.op
        self.id = line.id
        self.body = line.body
        self.sent_us = line.at_us
        self.sent = self.timed_out = 0
        self.answered_us: int | None = None
        self.status = 0
        self.answer: Any = None

    @property
    def acknowledged(self) -> bool:
        return 200 <= self.status < 300


def read_calls(paths: Iterable[Path]) -> list[JournaledCall]:
    """Return the calls of some journals, in the order in which they were first sent."""
    decode = msgspec.json.Decoder(Line).decode
    calls: dict[tuple[str, str], JournaledCall] = {}
    for path in paths:
        for text in path.read_bytes().splitlines():
            line = decode(text)
            call = calls.get((line.op, line.id))
            if call is None:
                call = calls[line.op, line.id] = JournaledCall(line)
            if line.status == TIMED_OUT:
                call.timed_out += 1
            elif line.status:
                call.answered_us, call.status, call.answer = line.at_us, line.status, line.body
            else:
                call.sent += 1
    return sorted(calls.values(), key=lambda call: call.sent_us)
