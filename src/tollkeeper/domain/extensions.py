"""How much more a request under way may use: sums and parts of what is expected."""

from __future__ import annotations

from typing import NamedTuple

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import NO_USAGE, Usage


class Extension(NamedTuple):
    """
    What a request under way got in addition. True when it got all that it asked for.

    Attributes:
        granted: The part that is held in addition; it may be none of it.
        denial: Why it is not all; None when it is.
    """

    granted: Usage = NO_USAGE
    denial: Denial | None = None

    def __bool__(self) -> bool:
        return self.denial is None


def size_of(more: Usage) -> int:
    """Return the largest of the amounts of *more*: into so many parts it may be cut. 0 of nothing."""
    amounts = (*more[:4], more.cost_nanos or 0, more.credits or 0, *more.quantities.values())
    return max(amounts)


def part_of(more: Usage, count: int, size: int) -> Usage:
    """Return *count* of *size* parts of *more*, each of its amounts rounded down: with all of them, *more* itself."""
    if count >= size:
        return more
    return more._replace(
        prompt_tokens=more.prompt_tokens * count // size,
        cached_prompt_tokens=more.cached_prompt_tokens * count // size,
        completion_tokens=more.completion_tokens * count // size,
        reasoning_tokens=more.reasoning_tokens * count // size,
        cost_nanos=None if more.cost_nanos is None else more.cost_nanos * count // size,
        credits=None if more.credits is None else more.credits * count // size,
        quantities={name: micros * count // size for name, micros in more.quantities.items()},
    )


def plus(base: Usage, more: Usage) -> Usage:
    """Return *base* and *more* together; a model, variant, cost or credits that only one states are of both."""
    quantities = dict(base.quantities)
    for name, micros in more.quantities.items():
        quantities[name] = quantities.get(name, 0) + micros
    return Usage(
        base.prompt_tokens + more.prompt_tokens,
        base.cached_prompt_tokens + more.cached_prompt_tokens,
        base.completion_tokens + more.completion_tokens,
        base.reasoning_tokens + more.reasoning_tokens,
        more.model or base.model,
        _sum(base.cost_nanos, more.cost_nanos),
        _sum(base.credits, more.credits),
        quantities,
        more.variant or base.variant,
        more.response_model or base.response_model,
    )


def _sum(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
