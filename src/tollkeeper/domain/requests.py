"""Requests as their callers state them: what one is expected to use, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from tollkeeper.domain.quantities import tokens_of

HOLD_S_DEFAULT: Final = 300
HOLD_S_MAX: Final = 7 * 86_400
"""Longest that a request may stay open, in seconds."""


class Usage(NamedTuple):
    """The expected usage of a request (at `admit`), or the actual one (at `settle`)."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    model: str = ""
    cost_nanos: int | None = None
    """Overrides the price book."""
    credits: int | None = None
    """Overrides the route's credits."""
    quantities: Mapping[str, int] = {}
    """Name → micro-units, as `quantities.parse_quantities` makes them."""
    variant: str = ""
    """Of the model: `batch`, `flex`, …; it may have a price of its own."""
    response_model: str = ""
    """The model that the provider's response names; it counts where neither the caller nor the hold names one."""

    @property
    def tokens(self) -> int:
        """Model tokens of all classes, those among the quantities included."""
        tokens = (
            self.prompt_tokens + self.cached_prompt_tokens + self.completion_tokens + self.reasoning_tokens
        )
        return tokens + tokens_of(self.quantities) if self.quantities else tokens


NO_USAGE: Final = Usage()


class Outcome(NamedTuple):
    """The outcome of a request, with its usage."""

    status: int = 200
    usage: Usage = NO_USAGE
    error_type: str = ""
    latency_us: int | None = None
    bytes_out: int = 0
    cache: Literal["", "hit", "miss", "none"] = ""
    tags: Mapping[str, str] = {}
    estimated: bool = False
    """The cost given is an estimate: the job goes on, a correction brings the actual one."""
