"""
Cells of CSV, the same over HTTP and on the command line: numbers stay numbers, and no text can act.

A spreadsheet runs a cell that begins like a formula, whatever quotes stand around it in the file. What comes from
stored data (a tag, a model's name) is anybody's text, so such a cell gets a `'` in front.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Final

import msgspec

from tollkeeper.domain.instants import to_text

FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What spreadsheets take for the start of a formula, or skip before one (OWASP, CSV injection)."""
_NUMBER: Final = re.compile(r"-\d+(\.\d+)?\Z", re.ASCII)
"""Money is text in JSON; below 0 it begins like a formula, and is none."""


def csv_cell(value: Any) -> Any:
    """Return *value* as a cell for `csv.writer`: None is empty, maps and lists are JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, datetime):
        return to_text(value)
    text = value if isinstance(value, str) else msgspec.json.encode(value, order="sorted").decode()
    return "'" + text if text.startswith(FORMULA_STARTS) and not _NUMBER.match(text) else text
