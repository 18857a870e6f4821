"""Recognises a file of events or an access log by its lines, to say which option reads it. It decides nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import msgspec

from tollkeeper.meter.log_json import looks_known
from tollkeeper.meter.log_text import TextFormat, looks_like_vhost, text_format
from tollkeeper.meter.rejections import Refused

LINES_MAX: Final = 20
"""Lines at the head of a file that are looked at."""
_LINE_BYTES_MAX: Final = 65_536
_ORDER: Final = ("alb", "vhost-combined", "nginx-main", "combined", "common")
_LIKE_COMBINED: Final = re.compile(
    rb"\S+ \S+ .+? \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] \"", re.ASCII
)


class Recognised(NamedTuple):
    """
    What lines look like.

    Attributes:
        option: What reads them, as on the command line: `--log-format nginx-main`.
        title: What they are.
        advice: What to do.
    """

    option: str
    title: str
    advice: str


def recognised(lines: Sequence[bytes], now_us: int) -> Recognised | None:
    """Return what *lines*, the head of a file, look like; None if that is not known."""
    lines = [line.strip() for line in lines if line.strip()][:LINES_MAX]
    lines = [line for line in lines if len(line) <= _LINE_BYTES_MAX]
    if not lines:
        return None
    if any(line.startswith((b"#Fields:", b"#Version:", b"#Software:")) for line in lines):
        return _found("--log-format w3c", "in the W3C extended format")
    if lines[0].startswith(b"{"):
        return _json(lines[0])
    if _is_csv(lines[0]):
        return _found("--format csv", "CSV")
    for name in _ORDER:
        form = _format(name)
        taken = sum(1 for line in lines if _reads(form, line, now_us))
        if name == "vhost-combined" and not looks_like_vhost(lines[0]):
            continue
        if taken * 2 > len(lines):
            return _found(f"--log-format {name}", f"in the {name} format")
    if sum(1 for line in lines if _LIKE_COMBINED.match(line)) * 2 > len(lines):
        return Recognised(
            "--log-format '…'",
            "an access log with fields of its own",
            "give the format string of your server, e.g. "
            "--log-format '$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent …'",
        )
    return None


def _found(option: str, title: str) -> Recognised:
    return Recognised(option, title, f"give {option}")


def _json(line: bytes) -> Recognised | None:
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    if "id" in entry and "time" in entry and ("account" in entry or "key_id" in entry):
        return _found("--format jsonl", "a file of events")
    if looks_known(entry):
        return _found("--log-format json", "an access log of JSON lines")
    if "id" in entry or "account" in entry or "key_id" in entry:
        return None
    return Recognised(
        "--log-format json --field-map …",
        "JSON of names that are not known",
        "if it is an access log, give --log-format json --field-map time=…,method=…,route=…,status=…",
    )


def _is_csv(line: bytes) -> bool:
    names = {cell.strip(b'" \t') for cell in line.removeprefix(b"\xef\xbb\xbf").split(b",")}
    return (
        len(names) > 1 and bool(names & {b"requests", b"time", b"id", b"tokens.prompt"}) and b"{" not in line
    )


def _reads(form: TextFormat, line: bytes, now_us: int) -> bool:
    try:
        form.read(line, now_us)
    except Refused as exc:
        # A time or a number that is out of bounds stands where it should.
        return exc.code != "malformed"
    return True


@lru_cache(maxsize=len(_ORDER))
def _format(name: str) -> TextFormat:
    return text_format(name)
