"""Books a file of CSV: its rows become events (`api.csv_events`), which are booked as JSON in batches."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Final

import msgspec

from tollkeeper.api.csv_events import CsvEvents
from tollkeeper.api.events_answer import EventsAnswer
from tollkeeper.console.failures import Failure
from tollkeeper.errors import BadInput
from tollkeeper.meter.rejections import Refused

EVENTS_PER_BATCH: Final = 50_000


def rows_of(name: str, file: BinaryIO) -> Any:
    """Return a reader of the rows of *file*; it may begin with a byte order mark."""
    return csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)


class CsvBook:
    """
    Books one file.

    Args:
        name: The file, for errors.
        book: Books events as newline-delimited JSON.
        rejected: Called with place and line of each event that is not taken, its field, code and reason.
        booked: Called with the counts of each batch: accepted, duplicates.
    """

    def __init__(
        self,
        name: str,
        book: Callable[[bytes], EventsAnswer],
        rejected: Callable[[int, int, str, str, str], None],
        booked: Callable[[EventsAnswer], None],
    ) -> None:
        self._name, self._book = name, book
        self._rejected, self._booked = rejected, booked
        self._batch: list[bytes] = []
        self._places: list[tuple[int, int]] = []
        self._place = 0

    def run(
        self,
        file: BinaryIO,
        *,
        payer: Callable[[Sequence[str]], str | None],
        source: str | None,
        field_map: Mapping[str, str],
        advanced: Callable[[], None],
    ) -> None:
        """
        Book the whole file.

        Raises:
            Failure: It is no CSV, or its columns are not known. Batches before that are booked, and stay.
        """
        rows = rows_of(self._name, file)
        line = 1
        try:
            header = next(rows, None)
            if header is None:
                return
            events = CsvEvents(header, account=payer(header), source=source, field_map=field_map)
            line = rows.line_num + 1
            for row in rows:
                if row:
                    self._row(events, row, line, advanced)
                line = rows.line_num + 1
            self._flush(advanced)
        except (csv.Error, UnicodeDecodeError, EOFError, OSError) as exc:
            raise Failure(f"{self._name}: line {line} is not CSV of UTF-8: {exc}.") from None
        except BadInput as exc:
            raise Failure(f"{self._name}: {exc}.") from None

    def _row(self, events: CsvEvents, row: Sequence[str], line: int, advanced: Callable[[], None]) -> None:
        try:
            made = events.events(row)
        except Refused as exc:
            self._rejected(self._place, line, exc.field, exc.code, str(exc))
            self._place += 1
            return
        for event in made:
            self._batch.append(msgspec.json.encode(event))
            self._places.append((self._place, line))
            self._place += 1
            if len(self._batch) >= EVENTS_PER_BATCH:
                self._flush(advanced)

    def _flush(self, advanced: Callable[[], None]) -> None:
        if not self._batch:
            return
        answer = self._book(b"\n".join(self._batch))
        self._booked(answer)
        for error in answer.errors:
            place, line = self._places[error.index]
            self._rejected(place, line, error.field, error.code, error.reason)
        self._batch, self._places = [], []
        advanced()
