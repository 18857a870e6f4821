"""What reads bytes of strangers: it answers anything at all, with its own errors, and drops nothing silently."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from hypothesis import example, given

from tests.fuzz import examples
from tests.fuzz.mutations import mutated
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.demo.declaration import DECLARATION
from tollkeeper.domain.instants import to_us
from tollkeeper.errors import BadParameter, Malformed
from tollkeeper.meter.access_log import AccessLog, LogFormat
from tollkeeper.meter.decode import Decoded, decode_json, decode_ndjson

NOW_US: Final = to_us(datetime(2026, 3, 18, 12, tzinfo=UTC))
EVENT: Final[dict[str, Any]] = {
    "id": "e-1",
    "time": "2026-01-31T09:30:00.125Z",
    "account": "acme",
    "key_id": "k",
    "route": "/v1/chat",
    "status": 200,
    "latency_ms": 12.5,
    "tokens": {"prompt": 12, "completion": 7},
    "cache": "hit",
    "cost_nanos": 1500,
    "tags": {"team": "a", "größe": "ß"},
}
EVENTS: Final = [{**EVENT, "id": f"e-{number}"} for number in range(3)]
ARRAY: Final = json.dumps(EVENTS).encode()
NDJSON: Final = b"\n".join(json.dumps(event, ensure_ascii=False).encode() for event in EVENTS)
LOG: Final = b"\n".join(
    (
        b'203.0.113.9 - ann [17/May/2015:10:05:03 +0000] "GET /a?b=c HTTP/1.1" 200 512',
        b'::1 - - [17/May/2015:10:05:04 -0130] "-" 408 -',
        b'h i u u [17/May/2015:10:05:04 +0000] "POST /p\\"q HTTP/2" 201 7 "http://r" "agent \\x16"',
    )
)


def check_whole(decoded: Decoded, sent: int) -> None:
    """Check that each of the *sent* pieces is either a row or a rejection, once."""
    assert decoded.count == sent
    assert len(decoded.columns) == len(decoded.indexes)
    places = sorted([*decoded.indexes.tolist(), *(rejection.index for rejection in decoded.rejections)])
    assert places == list(range(sent))
    for rejection in decoded.rejections:
        assert rejection.code
        assert rejection.reason
        # The caller's own input is repeated in small pieces only.
        assert len(rejection.field) + len(rejection.reason) < 1_000
    decoded.columns.validate(full=True)


def lines_in(body: bytes) -> int:
    return sum(1 for line in body.split(b"\n") if line.strip(b" \t\r\n"))


@examples(300)
@given(mutated(NDJSON))
@example(b"[" * 100_000 + b"\n" + NDJSON)
@example(b'{"id":"x","tags":' + b"[" * 100_000 + b"}")
@example(b'{"id":"x","tags":' + b'{"a":' * 100_000 + b"1}")
@example(b'{"id":"x","cost_nanos":' + b"9" * 100_000 + b"}")
@example(b'{"id":"x","latency_ms":1e999999999}')
def test_every_line_of_ndjson_is_taken_or_rejected(body: bytes) -> None:
    """A line that vanishes is usage that nobody is billed for."""
    check_whole(decode_ndjson(body, now_us=NOW_US), lines_in(body.removeprefix(b"\xef\xbb\xbf")))


@examples(300)
@given(mutated(ARRAY))
@example(b"[" * 100_000)
@example(b"[" + b'{"a":' * 100_000)
@example(b"[" + b",".join([b"null"] * 3) + b"]")
def test_every_item_of_json_is_taken_or_rejected(body: bytes) -> None:
    """A body that is no JSON at all is one rejection."""
    decoded = decode_json(body, now_us=NOW_US)
    check_whole(decoded, decoded.count)
    try:
        sent = json.loads(body.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return
    malformed = [r.code for r in decoded.rejections] == ["malformed"] and decoded.count == 1
    assert malformed or decoded.count == (len(sent) if isinstance(sent, list) else 1)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("form", ["common", "combined"])
def test_every_line_of_an_access_log_is_taken_or_rejected(form: LogFormat) -> None:
    """Whatever a client sent in a request line stands in the log: it is input of strangers too."""

    @examples(300)
    @given(mutated(LOG))
    @example(b'h - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 ' + b"9" * 5_000)
    @example(b"h " * 30_000)
    @example(b'h - - [99/Xyz/0000:99:99:99 +9999] "G" 200 1')
    @example(b'h - - [17/May/2015:10:05:03 +0000] "' + b'\\"' * 30_000)
    def check(body: bytes) -> None:
        log = AccessLog(format=form, account="acme", client_field="user")
        check_whole(log.decode(body, now_us=NOW_US), sum(1 for line in body.split(b"\n") if line.strip()))

    check()


FILE: Final = DECLARATION.encode()


@examples(200)
@given(mutated(FILE))
@example(b"a = " + b"[" * 100_000)
@example(b"[[accounts]]\n" + b"a." * 5_000 + b"a = 1")
@example(b"[[accounts]]\nid = " + b"9" * 5_000)
@example(b"[[accounts]]\nid = 0x" + b"f" * 50_000)
@example(b"[[accounts]]\nid = 1e999")
@example(b"[[accounts]]\nid = 9999-12-31T23:59:59-23:59")
@example(b'[[accounts]]\nid = "a"\nmetadata = { "\\u0000" = "x" }')
@example(b"accounts = [1]")
@example(b"accounts = [[]]")
@example(b"[[keys]]\nlimits = [1]")
@example(b"[[plans]]\nmetadata = 1")
@example(b"[[plans]]\nmetadata = { a = 1 }")
@example(b"[[plans]]\nmetadata = { a = { b = 1 } }")
def test_a_declarative_file_is_read_or_told_what_is_wrong(body: bytes) -> None:
    """Never a trace: the message names the place, and does not send the file back."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return
    message = "fine"
    try:
        parse_declaration(text)
    except (Malformed, BadParameter) as exc:
        message = str(exc)
    assert 0 < len(message) < 2_000
