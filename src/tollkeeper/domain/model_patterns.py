"""Which of several patterns of a model's name (`claude-*`, `*`) is meant, where only one can be: the more specific."""

from __future__ import annotations

from typing import Final

from tollkeeper.domain.matching import Glob, folded

STARS_MAX: Final = 4
"""The most `*` of one pattern."""


def is_pattern(text: str) -> bool:
    """Return whether *text* has a `*`."""
    return "*" in text


def pattern_objection(pattern: str) -> str | None:
    """Return why *pattern* cannot be taken, or None."""
    if pattern.count("*") > STARS_MAX:
        return f"a model pattern has at most {STARS_MAX} *, e.g. claude-*"
    return None


def matches(pattern: str, model: str) -> bool:
    """Return whether *pattern* stands for a model's name, as `domain.matching` compares them."""
    return Glob(folded(pattern)).matches(folded(model))


def specificity(pattern: str) -> tuple[bool, int]:
    """Return how much *pattern* says: a greater one is more specific. A whole name is more than any pattern."""
    return not is_pattern(pattern), len(pattern) - pattern.count("*")
