"""
`tollkeeper ingest`: meter events and web access logs from files of any size.

A file is read in chunks that end at line ends, so memory stays bounded; each chunk is booked before the next
is read. Interrupted anywhere, the same file again books the rest and counts what was booked as duplicate.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from tollkeeper.errors import BadInput, BadParameter

if TYPE_CHECKING:
    from tollkeeper.console.server_client import Server
    from tollkeeper.embedded import Tollkeeper
    from tollkeeper.meter.access_log import AccessLog
    from tollkeeper.meter.decode import Decoded
    from tollkeeper.meter.log_recognition import Recognised

CHUNK_BYTES: Final = 8 * 1024 * 1024
"""Some 50,000 events: as fast as 20 MiB, in 150 MB less memory. A request body may have 64 MiB."""
ERRORS_SHOWN_MAX: Final = 1_000
ERRORS_PRINTED_MAX: Final = 20
SOURCE_CHARS_MAX: Final = 128
HEAD_BYTES_MAX: Final = 65_536
"""As much of a gzipped file as is looked at to recognise it."""
_GZIP_MAGIC: Final = b"\x1f\x8b"
_JSON_SPACE: Final = b" \t\r\n"

FileFormat = Literal["jsonl", "csv", "combined", "common"]
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


@dataclass(frozen=True, slots=True)
class Reading:
    """How the file is read: `form` is `jsonl`, `csv` or a format of logs (`meter.access_log.LogFormat`)."""

    form: str
    account: str | None
    client_field: ClientFieldOption | None
    source: str | None
    field_map: Mapping[str, str]

    @property
    def is_log(self) -> bool:
        return self.form not in ("jsonl", "csv")

    @property
    def has_own_format(self) -> bool:
        """Whether the form is the format string of a server."""
        return "$" in self.form or "%" in self.form

    @property
    def option(self) -> str:
        """The form as an option of the command line."""
        return f"--log-format {self.form}" if self.is_log else f"--format {self.form}"


def ingest(
    file: EventsFile,
    data: options.Data = None,
    format: Annotated[
        FileFormat | None,
        typer.Option("--format", help="What the file holds; jsonl unless given.", show_default=False),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            "--log-format",
            metavar="FORMAT",
            help="An access log: common, combined, nginx-main, vhost-combined, w3c, alb, json, or the format string "
            "of nginx or Apache.",
        ),
    ] = None,
    account: Annotated[
        str | None,
        typer.Option(
            "--account", help="Logs, CSV: who pays; may be left out when there is one account only."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source",
            metavar="NAME",
            help="Logs, CSV: the server that wrote the file, where several can write the same line.",
        ),
    ] = None,
    field_map: Annotated[
        str | None,
        typer.Option(
            "--field-map",
            metavar="NAME=PATH,…",
            help="Logs, CSV: where a field is, e.g. time=ts,route=request.uri,latency_s=duration.",
        ),
    ] = None,
    client_field: Annotated[
        ClientFieldOption | None,
        typer.Option("--client-field", help="Logs: the field that names the client, kept as tag client."),
    ] = None,
    allow_rejects: Annotated[
        bool, typer.Option("--allow-rejects", help="Exit 0 although events were rejected.")
    ] = False,
    as_json: options.AsJson = False,
    url: options.Url = None,
    key: options.ServerKey = None,
) -> None:
    """
    Book the events of a file: newline-delimited JSON, CSV, or a web server's access log.

    An event that was booked before counts as duplicate, so the same file again is safe. Events that cannot
    be taken are listed and stop nothing; the exit code is 1 then, and where the file has no event at all.
    """
    try:
        reading = _reading(format, log_format, account, client_field, source, field_map)
    except Failure as exc:
        raise _with_advice(exc, file, format, log_format) from None
    server = server_of(data, url, key)
    with ExitStack() as stack:
        raw = stack.enter_context(_opened(file))
        catalog: CatalogTarget
        if server is not None:
            book, catalog = _remote_book(server, reading), ServerCatalog(server)
        else:
            toll = stack.enter_context(open_data(data, create=True))
            book, catalog = _local_book(toll, reading), DataCatalog(toll)
        advance = stack.enter_context(progress(plain(Path(file).name), _size(raw), in_bytes=True))

        def advanced() -> None:
            advance(_position(raw))

        if reading.form == "csv":
            found = _recognised(raw)
            if found is not None and found.option != "--format csv":
                raise Failure(f"{file} is {found.title}, not csv: {found.advice}. Nothing was booked.")
            answer = book_csv(file, raw, book, advanced, reading=reading, catalog=catalog)
        else:
            answer = book_file(
                file,
                raw,
                _recognising(file, book, reading),
                advanced,
                blank=None if reading.is_log else _JSON_SPACE,
                directive=b"#" if reading.form == "w3c" else None,
            )
    if as_json:
        print_json(asdict(answer))
    else:
        _print(file, answer)
    _exit(file, answer, allow_rejects=allow_rejects)


def _reading(
    format: FileFormat | None,
    log_format: str | None,
    account: str | None,
    client_field: ClientFieldOption | None,
    source: str | None,
    field_map: str | None,
) -> Reading:
    """Return how the file is read, after a check that the options go together."""
    if log_format is not None and format not in (None, log_format):
        raise misused(f"--format {format} and --log-format ask for two formats: drop one.")
    form = log_format or format or "jsonl"
    reading = Reading(form, account, client_field, source, _field_map(field_map))
    given = {"--account": account, "--source": source, "--field-map": field_map}
    if form == "jsonl":
        for option, value in (*given.items(), ("--client-field", client_field)):
            if value:
                reason = "a JSON event has its own names"
                raise misused(f"{option} is for access logs (--log-format) and CSV (--format csv): {reason}.")
    if form == "csv" and client_field:
        raise misused("--client-field is for access logs: name the column with --field-map client=COLUMN.")
    if source is not None and (not source.isprintable() or not 0 < len(source) <= SOURCE_CHARS_MAX):
        raise misused(f"--source must be printable text of length 1 to {SOURCE_CHARS_MAX}.")
    if reading.is_log:
        try:
            _log(reading, account)
        except BadParameter as exc:
            raise misused(f"{exc}.") from None
    return reading


def _with_advice(failure: Failure, file: str, format: str | None, log_format: str | None) -> Failure:
    """Return *failure*, and which option reads the file, if no format was given and its lines are known."""
    if format or log_format or file == "-":
        return failure
    with _opened(file) as raw:
        found = _recognised(raw)
    if found is None or found.option == "--format jsonl":
        return failure
    return Failure(f"{failure} {file} is {found.title}: {found.advice}.", exit_code=failure.exit_code)


def _recognised(raw: io.BufferedReader) -> Recognised | None:
    """Return what the head of a file looks like; nothing of it is consumed."""
    from tollkeeper.meter.log_recognition import recognised

    head = raw.peek(io.DEFAULT_BUFFER_SIZE)
    if head[:2] == _GZIP_MAGIC:
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES_MAX)
        except zlib.error:
            return None
    return recognised(head.removeprefix(codecs.BOM_UTF8).split(b"\n"), SystemClock().now_us())


def _field_map(text: str | None) -> dict[str, str]:
    fields: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        name, equals, path = part.strip().partition("=")
        if not equals or not name or not path or name in fields:
            raise misused(f"--field-map {plain(part)}: write NAME=PATH, each name once, with commas between.")
        fields[name] = path
    return fields


def _exit(file: str, answer: FileResult, *, allow_rejects: bool) -> None:
    if not answer.accepted + answer.duplicates:
        what = "no event of it was taken" if answer.rejected else "it has no events"
        raise Failure(f"{file}: {what}.")
    if answer.rejected and not allow_rejects:
        reason = f"{answer.rejected:,} of {answer.events:,} events were rejected, and the others booked"
        raise Failure(f"{file}: {reason}. --allow-rejects makes that exit code 0.")


def _recognising(file: str, book: Book, reading: Reading) -> Book:
    """Return *book*, which refuses a file of which the head is in another format, before anything is booked."""
    from tollkeeper.meter.decode import decode_ndjson
    from tollkeeper.meter.log_recognition import LINES_MAX, recognised

    is_first = True

    def check(chunk: bytes) -> None:
        now_us = SystemClock().now_us()
        lines = [line for line in chunk.split(b"\n", 10 * LINES_MAX)[: 10 * LINES_MAX] if line.strip()]
        head = b"\n".join(lines[:LINES_MAX])
        decoded = (
            _log(reading, "x").decode(head, now_us=now_us)
            if reading.is_log
            else decode_ndjson(head, now_us=now_us)
        )
        found = None if len(decoded.columns) else recognised(lines, now_us)
        if found is None or (found.option.endswith("'…'") and reading.has_own_format):
            return
        # With a format that has the same name, the lines are what they should be, and have another fault.
        if found.option.split(" ")[:2] != reading.option.split(" "):
            raise Failure(f"{file} is {found.title}, not {reading.form}: {found.advice}. Nothing was booked.")

    def checked(chunk: bytes) -> EventsAnswer:
        nonlocal is_first
        if is_first:
            check(chunk)
        is_first = False
        return book(chunk)

    return checked


def book_file(
    name: str,
    raw: io.BufferedReader,
    book: Book,
    advanced: Callable[[], None],
    *,
    blank: bytes | None,
    directive: bytes | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> FileResult:
    """
    Book all chunks of a file and return what became of its events.

    Args:
        advanced: Called after each chunk.
        blank: The bytes that a line may hold and still be no event; None for all white space.
        directive: What a line begins with that says something of the file, and is no event.

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
            lines = _line_numbers(chunk, {error.index for error in shown}, blank, directive)
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


def book_csv(
    name: str,
    raw: io.BufferedReader,
    book: Book,
    advanced: Callable[[], None],
    *,
    reading: Reading,
    catalog: CatalogTarget,
) -> FileResult:
    """Book all rows of a file of CSV and return what became of its events. Raises `Failure` as `book_file`."""
    from tollkeeper.cli.ingest_csv import CsvBook

    answer = FileResult()

    def rejected(place: int, line: int, field: str, code: str, reason: str) -> None:
        answer.rejected += 1
        if len(answer.errors) < ERRORS_SHOWN_MAX:
            answer.errors.append(LineError(index=place, line=line, field=field, code=code, reason=reason))

    def booked(result: EventsAnswer) -> None:
        answer.accepted += result.accepted
        answer.duplicates += result.duplicates
        # Those beyond the listed ones are counted only.
        answer.rejected += result.rejected - len(result.errors)

    def payer(header: Sequence[str]) -> str | None:
        names = {*header, *reading.field_map}
        if reading.account is None and names & {"account", "key", "key_id"}:
            return None
        return _payer(catalog, reading)

    CsvBook(name, book, rejected, booked).run(
        _unzipped(raw), payer=payer, source=reading.source, field_map=reading.field_map, advanced=advanced
    )
    answer.errors.sort(key=lambda error: error.index)
    return answer


class _Unreadable(Exception):
    """The file cannot be read to its end: why."""


def chunks(file: BinaryIO, bytes_max: int) -> Iterator[bytes]:
    """
    Yield the whole of *file* in pieces of at most *bytes_max* that end at line ends, the last one excepted.

    Raises:
        _Unreadable: A line is longer than *bytes_max*, or the rest cannot be read.
    """
    rest, is_first = b"", True
    while piece := _read(file, bytes_max - len(rest)):
        # Editors and PowerShell write a byte order mark, which is no part of the first line.
        piece = rest + (piece.removeprefix(codecs.BOM_UTF8) if is_first else piece)
        is_first = False
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


def _line_numbers(
    chunk: bytes, indexes: set[int], blank: bytes | None, directive: bytes | None
) -> dict[int, int]:
    """Return the line, counted from 1, of each event of *chunk* in *indexes*."""
    numbers: dict[int, int] = {}
    if not indexes:
        return numbers
    index = 0
    for number, line in enumerate(chunk.split(b"\n"), 1):
        if not line.strip(blank) or (directive is not None and line.startswith(directive)):
            continue
        if index in indexes:
            numbers[index] = number
            if len(numbers) == len(indexes):
                break
        index += 1
    return numbers


# -- where it is booked -------------------------------------------------------------------------------


def _local_book(toll: Tollkeeper, reading: Reading) -> Book:
    installation = toll.installation
    log = _log(reading, _payer(DataCatalog(toll), reading)) if reading.is_log else None

    def book(chunk: bytes) -> EventsAnswer:
        from tollkeeper.meter.decode import decode_ndjson

        now_us = installation.clock.now_us()
        decoded = log.decode(chunk, now_us=now_us) if log else decode_ndjson(chunk, now_us=now_us)
        result = installation.ingest.take(decoded)
        # What is booked waits in memory for the usage store: by this never more than one chunk.
        installation.delivery.fresh(None)
        return events_answer(result)

    return book


def _remote_book(server: Server, reading: Reading) -> Book:
    def send(lines: bytes) -> EventsAnswer:
        answer = server.call("POST", "/events", body=lines, media_type="application/x-ndjson")
        return msgspec.convert(answer, EventsAnswer)

    if not reading.is_log:
        return send
    log, clock = _log(reading, _payer(ServerCatalog(server), reading)), SystemClock()

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


def _log(reading: Reading, account: str | None) -> AccessLog:
    from tollkeeper.meter.access_log import AccessLog

    return AccessLog(
        format=reading.form,
        account=account,
        client_field=reading.client_field,
        source=reading.source,
        field_map=reading.field_map,
    )


def _payer(catalog: CatalogTarget, reading: Reading) -> str | None:
    """Return who pays for what a file records: the account that is given, which must exist, or the only one."""
    if reading.account is not None:
        catalog.get("accounts", reading.account, None)
        return reading.account
    if "account" in reading.field_map:
        return None
    ids = [entry["id"] for entry in catalog.list("accounts", None)]
    if len(ids) == 1:
        only: str = ids[0]
        return only
    if ids:
        raise misused("There are several accounts: say with --account who pays for what the file records.")
    raise Failure("There is no account yet to book the file to: create one, e.g. with `tollkeeper apply`.")


def _ndjson(decoded: Decoded) -> bytes:
    """Return the events of a decoded log as JSON, one per line."""
    lines = []
    for row in decoded.columns.to_pylist():
        event: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
        event["time"] = to_text(from_us(event.pop("occurred_at_us")))
        if "latency_us" in event:
            event["latency_ms"] = event.pop("latency_us") / 1000
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
