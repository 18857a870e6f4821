"""
Matching in SQL: the twin of `domain.matching` over the table `events`. A property test holds the two together.

Patterns are parameters of the statement, as LIKE patterns in which everything but `*` stands for itself. The engine's
`lower` changes ASCII letters only and its `trimBoth` removes blanks only, as `matching.folded` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tollkeeper.domain.matching import MODEL, TAG, Conditions

_FOLDED_MODEL: Final = "lower(trimBoth(toString(model)))"


def conditions(match: Conditions | None, parameters: dict[str, Any]) -> list[str]:
    """Return the conditions on `events` that *match* stands for; its patterns go to *parameters*."""
    if match is None:
        return []
    sql = []
    if match.models:
        sql.append(
            f"({_FOLDED_MODEL} <> '' AND {_any(_FOLDED_MODEL, 'match_model', match.models, parameters)})"
        )
    if match.kinds:
        sql.append(_any("toString(kind)", "match_kind", match.kinds, parameters))
    if match.routes:
        called = "concat(toString(method), ' ', toString(route))"
        sql.append(_any(called, "match_route", match.routes, parameters))
    for index, (name, pattern) in enumerate(match.tags):
        parameters[f"match_tag{index}"] = name
        value = _tag(f"match_tag{index}")
        if not pattern:
            sql.append(f"{value} = ''")
        else:
            of_value = _any(value, f"match_tag{index}_is", (pattern,), parameters)
            sql.append(f"({value} <> '' AND {of_value})")
    return sql


def values(by: Sequence[str], parameters: dict[str, Any]) -> list[str]:
    """Return the expressions over `events` of the values that are counted apart."""
    expressions = []
    for index, part in enumerate(by):
        if part == MODEL:
            expressions.append(_FOLDED_MODEL)
        else:
            parameters[f"by_tag{index}"] = part.removeprefix(TAG)
            expressions.append(_tag(f"by_tag{index}"))
    return expressions


def _tag(parameter: str) -> str:
    """Return the expression of a tag as matching sees it: those of an adjustment say why it was made."""
    return f"if(adjustment_nanos = 0, tags[{{{parameter}:String}}], '')"


def _any(text: str, name: str, patterns: Sequence[str], parameters: dict[str, Any]) -> str:
    terms = []
    for index, pattern in enumerate(patterns):
        at = f"{name}_{index}"
        if "*" in pattern:
            parameters[at] = _like(pattern)
            terms.append(f"{text} LIKE {{{at}:String}}")
        else:
            parameters[at] = pattern
            terms.append(f"{text} = {{{at}:String}}")
    return f"({' OR '.join(terms)})"


def _like(pattern: str) -> str:
    escaped = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%")
