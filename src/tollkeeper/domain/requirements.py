"""
What a value of the wrong type must be, in words for the caller.

msgspec names Python's types ("Expected `int`, got `str`"). Callers send JSON, TOML, query strings or command-line
arguments, so each surface says "must be a whole number, not text". The words stand here once.
"""

from __future__ import annotations

import re
from typing import Final

_EXPECTED: Final = re.compile(
    r"Expected `(?P<types>[^`]*)`(?P<bound>(?:(?!, got `).)*)(?:, got `(?P<got>[^`]*)`)?"
)
_AT: Final = re.compile(r" - at (?:`key` in )?`[^`]*`\Z")
_WORDS: Final = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "a boolean",
    "object": "an object",
    "array": "an array",
    "datetime": "a date-time such as 2026-01-31T09:30:00Z",
    "date": "a date",
}


def requirement(fault: str) -> str:
    """
    Return what msgspec's message *fault* requires: `must be a whole number >= 1`, `must be text, not a whole number`.

    The place that ends the message (` - at …`) is left out. A message of another form is returned without backticks.
    """
    fault = _AT.sub("", fault)
    found = _EXPECTED.fullmatch(fault)
    if found is None:
        return fault.replace("`", "")
    types = [name for name in found["types"].split(" | ") if name != "null"] or ["null"]
    got = found["got"]
    sent = "" if got is None else f", not {_WORDS.get(got, got)}"
    if got == "float" and "int" in types:
        sent = ", without a fraction or exponent"
    return f"must be {' or '.join(_WORDS.get(name, name) for name in types)}{found['bound']}{sent}"
