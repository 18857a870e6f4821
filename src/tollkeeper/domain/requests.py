"""Requests as their callers state them: what one is expected to use, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple


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

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.cached_prompt_tokens + self.completion_tokens + self.reasoning_tokens


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
