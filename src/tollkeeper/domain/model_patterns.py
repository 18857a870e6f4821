"""Patterns of model names: `gpt-4o`, `claude-*`, `*`. A `*` stands for any text; letters match in either case."""

from __future__ import annotations

from typing import Final

STARS_MAX: Final = 4
"""The most `*` of one pattern: the time to match grows with them."""


def is_pattern(text: str) -> bool:
    """Return whether *text* has a `*`."""
    return "*" in text


def pattern_objection(pattern: str) -> str | None:
    """Return why *pattern* cannot be taken, or None."""
    if not pattern:
        return "a model pattern is not empty: write * for all models"
    if pattern.count("*") > STARS_MAX:
        return f"a model pattern has at most {STARS_MAX} *, e.g. claude-*"
    return None


def matches(pattern: str, name: str) -> bool:
    """Return whether *name* is one of those that *pattern* stands for: the whole name, in either case."""
    first, *rest = pattern.lower().split("*")
    name = name.lower()
    if not rest:
        return name == first
    last = rest.pop()
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    start, end = len(first), len(name) - len(last)
    for part in rest:
        # The earliest place leaves the most for what follows.
        found = name.find(part, start, end)
        if found < 0:
            return False
        start = found + len(part)
    return True


def specificity(pattern: str) -> tuple[bool, int]:
    """Return how much *pattern* says: a greater one is more specific. A whole name is more than any pattern."""
    return not is_pattern(pattern), len(pattern) - pattern.count("*")
