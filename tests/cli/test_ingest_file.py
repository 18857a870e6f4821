"""Reading a file in chunks: nothing is lost at their borders, and rejections are told by their place."""

from __future__ import annotations

import gzip
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.api.events_answer import EventRejection, EventsAnswer
from tollkeeper.cli.ingest import FileResult, book_file, chunks
from tollkeeper.console.failures import Failure

LINES = st.lists(st.sampled_from([b"good", b"bad", b"", b"  ", b"bad\r", b"good\r"]), max_size=60)


def reader(content: bytes) -> io.BufferedReader:
    return io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]


def reject_bad(chunk: bytes) -> EventsAnswer:
    """Book what is not `bad`, and reject that by its place among the lines that are not blank."""
    events = [line.strip() for line in chunk.split(b"\n") if line.strip()]
    bad = [index for index, event in enumerate(events) if event == b"bad"]
    errors = [EventRejection(index=index, field="f", code="malformed", reason="bad") for index in bad]
    return EventsAnswer(accepted=len(events) - len(bad), duplicates=0, rejected=len(bad), errors=errors)


def book(content: bytes, chunk_bytes: int) -> FileResult:
    return book_file("f", reader(content), reject_bad, lambda: None, blank=None, chunk_bytes=chunk_bytes)


@given(LINES, st.integers(8, 64), st.booleans())
def test_chunks_are_the_file_cut_at_line_ends(lines: list[bytes], bytes_max: int, ended: bool) -> None:
    content = b"\n".join(lines) + (b"\n" if ended else b"")
    pieces = list(chunks(io.BytesIO(content), bytes_max))
    assert b"".join(pieces) == content
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    assert all(0 < len(piece) <= bytes_max for piece in pieces)


@given(LINES, st.integers(8, 64))
@example([b"", b"bad", b"", b"good", b"bad"], 8)
def test_places_do_not_depend_on_the_size_of_chunks(lines: list[bytes], chunk_bytes: int) -> None:
    """`index` counts events over the whole file, `line` its lines, blank ones included."""
    answer = book(b"\n".join(lines), chunk_bytes)
    events = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    expected = [(index, number) for index, (number, event) in enumerate(events) if event == b"bad"]
    assert [(error.index, error.line) for error in answer.errors] == expected
    assert answer.events == len(events)
    assert answer.rejected == len(expected)


def test_errors_are_capped_but_counted() -> None:
    answer = book(b"bad\n" * 3_000, 4_096)
    assert answer.rejected == 3_000
    assert len(answer.errors) == 1_000
    assert [error.line for error in answer.errors] == list(range(1, 1_001))


def test_a_gzipped_file_is_known_by_what_it_holds() -> None:
    """Several members are one file, as log rotation makes them."""
    answer = book(gzip.compress(b"good\nbad\n") + gzip.compress(b"good\n"), 64)
    assert (answer.accepted, answer.rejected) == (2, 1)


def test_a_file_that_is_cut_off_fails_and_says_what_was_booked() -> None:
    whole = gzip.compress(b"".join(b"good %d\n" % number for number in range(20_000)))
    with pytest.raises(Failure, match=r"f: it cannot be read to its end.*[1-9],\d* events of it were booked"):
        book(whole[: len(whole) // 2], 64)


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    with pytest.raises(Failure, match=r"a line is over 64 bytes.*; 2 events of it were booked"):
        book(b"good\ngood\n" + b"x" * 1_000, 64)
