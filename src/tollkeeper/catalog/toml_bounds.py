"""
Bounds a TOML text before it is parsed: its size, the parts of its keys and its nesting, with which the parser's time
grows faster than with its size.

`tomllib` walks all parts of a dotted key once for each of its parts, and keeps each walk: a key of 100,000 parts takes
gigabytes. So the text is read once here, in time that grows with its size alone. This is not a parser: it knows strings
and comments, so that marks in them do not count, and agrees with TOML on them up to the first error, where `tomllib`
stops too.
"""

from __future__ import annotations

import re
from typing import Final

from tollkeeper.errors import BodyTooLarge, Malformed

CHARS_MAX: Final = 16 * 1024 * 1024
"""As `http.routes.calls.APPLY_BYTES_MAX`: 100,000 keys with all their fields have about 12 MB."""
KEY_PARTS_MAX: Final = 8
"""An entry needs two: `metadata.team`."""
DEPTH_MAX: Final = 8
"""An entry needs two: an array of tables, `limits = [{…}]`."""
TOKENS_MAX: Final = 2_000_000
"""Strings, comments, lines and punctuation: 100,000 keys with six fields each have 1,900,000."""

_TOKEN: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*+"{3,5}'
    r"|'''(?:[^']|'(?!''))*+'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*+"'
    r"|'[^'\n]*+'"
    r"|#[^\n]*+"
    r"""|[.\[\]{}=,"']|\n+""",
    re.DOTALL,
)


def check_toml(text: str) -> None:
    """
    Check that *text*, TOML or not, is cheap to parse.

    Raises:
        BodyTooLarge: It has more than `CHARS_MAX` characters or `TOKENS_MAX` tokens.
        Malformed: A key has more than `KEY_PARTS_MAX` parts, or brackets are nested deeper than `DEPTH_MAX`.
    """
    if len(text) > CHARS_MAX:
        raise BodyTooLarge(f"the file has more than {CHARS_MAX:,} characters: apply it in parts")
    dots = depth = 0
    for count, match in enumerate(_TOKEN.finditer(text), 1):
        if count > TOKENS_MAX:
            raise BodyTooLarge(
                f"the file has more than {TOKENS_MAX:,} lines, values and brackets: apply it in parts"
            )
        mark = text[match.start()]
        if mark == ".":
            dots += 1
            if dots >= KEY_PARTS_MAX:
                raise Malformed(f"a key of the file has more than {KEY_PARTS_MAX} parts: an entry needs two")
        elif mark in "[{":
            dots = 0
            depth += 1
            if depth > DEPTH_MAX:
                raise Malformed("the file is nested too deeply: an entry needs no more than two levels")
        elif mark in "]}":
            depth = max(0, depth - 1)
        elif mark in "=,\n":
            dots = 0
        elif mark in "\"'" and _has_no_end(text, match):
            return  # The parser stops here too.


def _has_no_end(text: str, match: re.Match[str]) -> bool:
    """Return whether the string that begins at *match* has no end: its quotes alone were found."""
    length = match.end() - match.start()
    if length == 2:  # The first two of three quotes look like an empty string.
        return text[match.start() : match.start() + 3] in ('"""', "'''")
    return length == 1
