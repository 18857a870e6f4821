"""
`tollkeeper ingest`: meter events and web access logs from files of any size.

A file is read in chunks that end at line ends, so memory stays bounded; each chunk is booked before the next
is read. Interrupted anywhere, the same file again books the rest and counts what was booked as duplicate.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final, Literal, cast

import msgspec
import typer

from tollkeeper.api.events_answer import EventsAnswer, events_answer, rejections_json
from tollkeeper.cli.catalog import CatalogTarget, DataCatalog, ServerCatalog
from tollkeeper.clock import SystemClock
from tollkeeper.console import options
from tollkeeper.console.failures import Failure, misused
from tollkeeper.console.output import Column, plain, print_json, print_table, progress
from tollkeeper.console.target import open_data, server_of
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.errors import BadInput

if TYPE_CHECKING:
    from tollkeeper.console.server_client import Server
    from tollkeeper.embedded import Tollkeeper
    from tollkeeper.meter.access_log import AccessLog
    from tollkeeper.meter.decode import Decoded

CHUNK_BYTES: Final = 8 * 1024 * 1024
"""Some 50,000 events: as fast as 20 MiB, in 150 MB less memory. A request body may have 64 MiB."""
ERRORS_SHOWN_MAX: Final = 1_000
ERRORS_PRINTED_MAX: Final = 20
_GZIP_MAGIC: Final = b"\x1f\x8b"
_JSON_SPACE: Final = b" \t\r\n"

FileFormat = Literal["jsonl", "combined", "common"]
ClientFieldOption = Literal["host", "ident", "user"]

EventsFile = Annotated[
    str, typer.Argument(metavar="FILE", help="The file, gzipped or not; - for standard input.")
]


class LineError(msgspec.Struct, frozen=True, kw_only=True):
    """One event that was not taken: `index` counts the events of the file from 0, `line` its lines from 1."""

    index: int
    line: int
    field: str
    code: str
    reason: str


@dataclass(slots=True)
class FileResult:
    """The result of a file's events. `rejected` counts all, `errors` lists the first."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    errors: list[LineError] = field(default_factory=list)

    @property
    def events(self) -> int:
        return self.accepted + self.duplicates + self.rejected


Book = Callable[[bytes], EventsAnswer]
"""Books one chunk of whole lines. What it raises ends the ingest; the same chunk again is safe."""


def ingest(
    file: EventsFile,
    data: options.Data = None,
    format: Annotated[FileFormat, typer.Option("--format", help="What the file holds.")] = "jsonl",
    account: Annotated[
        str | None,
        typer.Option("--account", help="Logs: who pays; may be left out when there is one account only."),
    ] = None,
    client_field: Annotated[
        ClientFieldOption | None,
        typer.Option("--client-field", help="Logs: the field that names the client, kept as tag client."),
    ] = None,
    as_json: options.AsJson = False,
    url: options.Url = None,
    key: options.ServerKey = None,
) -> None:
    """
    Book the events of a file: newline-delimited JSON, or a web server's access log.

    An event that was booked before counts as duplicate, so the same file again is safe. Events that cannot
    be taken are listed and stop nothing.
    """
    if format == "jsonl" and (account or client_field):
        option = "--account" if account else "--client-field"
        raise misused(f"{option} is for access logs: a JSON event names its own account.")
    server = server_of(data, url, key)
    with ExitStack() as stack:
        raw = stack.enter_context(_opened(file))
        if server is not None:
            book = _remote_book(server, format, account, client_field)
        else:
            toll = stack.enter_context(open_data(data, create=True))
            book = _local_book(toll, format, account, client_field)
        advance = stack.enter_context(progress(plain(Path(file).name), _size(raw), in_bytes=True))
        blank = _JSON_SPACE if format == "jsonl" else None
        answer = book_file(file, raw, book, lambda: advance(_position(raw)), blank=blank)
    if as_json:
        print_json(asdict(answer))
    else:
        _print(file, answer)


def book_file(
    name: str,
    raw: io.BufferedReader,
    book: Book,
    advanced: Callable[[], None],
    *,
    blank: bytes | None,
    chunk_bytes: int = CHUNK_BYTES,
) -> FileResult:
    """
    Book all chunks of a file and return what became of its events.

    Args:
        advanced: Called after each chunk.
        blank: The bytes that a line may hold and still be no event; None for all white space.

    Raises:
        Failure: The file cannot be read to its end, or a chunk of it is given up (`meter.decode`); what was booked
            before is said, and stays.
    """
    answer = FileResult()
    line_count = 0
    try:
        for chunk in chunks(_unzipped(raw), chunk_bytes):
            booked = book(chunk)
            shown = booked.errors[: ERRORS_SHOWN_MAX - len(answer.errors)]
            lines = _line_numbers(chunk, {error.index for error in shown}, blank)
            answer.errors += [
                LineError(
                    index=answer.events + error.index,
                    line=line_count + lines[error.index],
                    field=error.field,
                    code=error.code,
                    reason=error.reason,
                )
                for error in shown
            ]
            answer.accepted += booked.accepted
            answer.duplicates += booked.duplicates
            answer.rejected += booked.rejected
            line_count += chunk.count(b"\n")
            advanced()
    except (_Unreadable, BadInput) as exc:
        raise Failure(_stopped(name, str(exc), answer)) from None
    return answer


class _Unreadable(Exception):
    """The file cannot be read to its end: why."""


def chunks(file: BinaryIO, bytes_max: int) -> Iterator[bytes]:
    """
    Yield the whole of *file* in pieces of at most *bytes_max* that end at line ends, the last one excepted.

    Raises:
        _Unreadable: A line is longer than *bytes_max*, or the rest cannot be read.
    """
    rest = b""
    while piece := _read(file, bytes_max - len(rest)):
        piece = rest + piece
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield piece[:cut]
        elif len(piece) >= bytes_max:
            raise _Unreadable(f"a line is over {bytes_max:,} bytes, so it is no file of one event a line")
        rest = piece[cut:]
    if rest:
        yield rest


def _read(file: BinaryIO, size: int) -> bytes:
    try:
        return file.read(size)
    except (OSError, EOFError, zlib.error) as exc:
        raise _Unreadable(f"it cannot be read to its end: {getattr(exc, 'strerror', None) or exc}") from None


def _line_numbers(chunk: bytes, indexes: set[int], blank: bytes | None) -> dict[int, int]:
    """Return the line, counted from 1, of each event of *chunk* in *indexes*."""
    numbers: dict[int, int] = {}
    if not indexes:
        return numbers
    index = 0
    for number, line in enumerate(chunk.split(b"\n"), 1):
        if not line.strip(blank):
            continue
        if index in indexes:
            numbers[index] = number
            if len(numbers) == len(indexes):
                break
        index += 1
    return numbers


# -- where it is booked -------------------------------------------------------------------------------


def _local_book(
    toll: Tollkeeper, format: FileFormat, account: str | None, client_field: ClientFieldOption | None
) -> Book:
    installation = toll.installation
    log = None
    if format != "jsonl":
        log = _log(format, _payer(DataCatalog(toll), account), client_field)

    def book(chunk: bytes) -> EventsAnswer:
        from tollkeeper.meter.decode import decode_ndjson

        now_us = installation.clock.now_us()
        decoded = log.decode(chunk, now_us=now_us) if log else decode_ndjson(chunk, now_us=now_us)
        result = installation.ingest.take(decoded)
        # What is booked waits in memory for the usage store: by this never more than one chunk.
        installation.delivery.fresh(None)
        return events_answer(result)

    return book


def _remote_book(
    server: Server, format: FileFormat, account: str | None, client_field: ClientFieldOption | None
) -> Book:
    def send(lines: bytes) -> EventsAnswer:
        answer = server.call("POST", "/events", body=lines, media_type="application/x-ndjson")
        return msgspec.convert(answer, EventsAnswer)

    if format == "jsonl":
        return send
    log, clock = _log(format, _payer(ServerCatalog(server), account), client_field), SystemClock()

    def book(chunk: bytes) -> EventsAnswer:
        # Decoded here, since the API takes events: ids are those that a local ingest would give.
        decoded = log.decode(chunk, now_us=clock.now_us())
        own = rejections_json(decoded.rejections)
        if decoded.columns.num_rows == 0:
            return EventsAnswer(accepted=0, duplicates=0, rejected=decoded.rejected, errors=own)
        booked = send(_ndjson(decoded))
        theirs = [
            msgspec.structs.replace(error, index=int(decoded.indexes[error.index])) for error in booked.errors
        ]
        return EventsAnswer(
            accepted=booked.accepted,
            duplicates=booked.duplicates,
            rejected=booked.rejected + decoded.rejected,
            errors=sorted(own + theirs, key=lambda error: error.index),
        )

    return book


def _log(format: FileFormat, account: str, client_field: ClientFieldOption | None) -> AccessLog:
    from tollkeeper.meter.access_log import AccessLog, LogFormat

    return AccessLog(format=cast("LogFormat", format), account=account, client_field=client_field)


def _payer(catalog: CatalogTarget, account: str | None) -> str:
    """Return who pays for what a log records: *account*, which must exist, or the only one that there is."""
    if account is not None:
        catalog.get("accounts", account, None)
        return account
    ids = [entry["id"] for entry in catalog.list("accounts", None)]
    if len(ids) == 1:
        only: str = ids[0]
        return only
    if ids:
        raise misused("There are several accounts: say with --account who pays for what the log records.")
    raise Failure("There is no account yet to book a log to: create one, e.g. with `tollkeeper apply`.")


def _ndjson(decoded: Decoded) -> bytes:
    """Return the events of a decoded log as JSON, one per line."""
    lines = []
    for row in decoded.columns.to_pylist():
        event: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
        event["time"] = to_text(from_us(event.pop("occurred_at_us")))
        if "tags" in event:
            event["tags"] = dict(event["tags"])
        lines.append(msgspec.json.encode(event))
    return b"\n".join(lines)


# -- the file -----------------------------------------------------------------------------------------


def _opened(file: str) -> io.BufferedReader:
    if file == "-":
        return cast("io.BufferedReader", sys.stdin.buffer)
    try:
        return open(file, "rb")
    except OSError as exc:
        raise Failure(f"{file} cannot be read: {exc.strerror}.") from None


def _unzipped(raw: io.BufferedReader) -> BinaryIO:
    # By what it holds, not by its name: a rotated log may be called .1 or .gz, and stdin has no name.
    if raw.peek(2)[:2] == _GZIP_MAGIC:
        return cast("BinaryIO", gzip.GzipFile(fileobj=raw))
    return raw


def _size(raw: io.BufferedReader) -> int | None:
    # The length of a pipe is unknown.
    return os.fstat(raw.fileno()).st_size if raw.seekable() else None


def _position(raw: io.BufferedReader) -> int:
    return raw.tell() if raw.seekable() else 0


def _stopped(name: str, reason: str, answer: FileResult) -> str:
    booked = (
        f"{answer.accepted:,} events of it were booked before" if answer.accepted else "nothing was booked"
    )
    return f"{name}: {reason}; {booked}. After a repair the whole file again is safe."


def _print(file: str, answer: FileResult) -> None:
    print(
        f"{plain(file)}: {answer.accepted:,} accepted, {answer.duplicates:,} duplicates, "
        f"{answer.rejected:,} rejected"
    )
    if not answer.errors:
        return
    printed = answer.errors[:ERRORS_PRINTED_MAX]
    print_table(
        [Column("line", numeric=True), Column("field"), Column("code"), Column("reason")],
        [[error.line, error.field, error.code, error.reason] for error in printed],
    )
    if answer.rejected > len(printed):
        print(f"and {answer.rejected - len(printed):,} more; --json lists up to {ERRORS_SHOWN_MAX:,}")
