"""What an app tells about its admitted request, over ASGI and WSGI alike."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Protocol

from tollkeeper.domain.requests import NO_USAGE, Outcome

if TYPE_CHECKING:
    from tollkeeper.gate.gate import Admission
    from tollkeeper.installation import Installation

STATE_KEY: Final = "tollkeeper"
"""In `scope["state"]` of ASGI."""
ENVIRON_KEY: Final = "tollkeeper.metering"
"""In the environ of WSGI, where PEP 3333 keeps names with a dot for what is no text."""


class Metering:
    """
    What the app may tell about its request: `scope["state"]["tollkeeper"]` or `environ["tollkeeper.metering"]`.

    Set *usage* (model, tokens, cost) before the response ends; set *void* for a request that should not
    count at all. A dialect with headers for usage sends the values that are set when the response
    starts.
    """

    __slots__ = ("admission", "cache", "error_type", "estimated", "tags", "usage", "void")

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.usage = NO_USAGE
        self.cache = ""
        self.error_type = ""
        self.estimated = False
        self.tags: dict[str, str] = dict(admission.tags)
        self.void = False


class HasInstallation(Protocol):
    """The installation that a middleware uses, such as `embedded.Tollkeeper`."""

    @property
    def installation(self) -> Installation:
        """The installation that decides and books."""


def outcome_of(metering: Metering, status: int, started_ns: int, bytes_out: int) -> Outcome:
    """
    Return what an admitted request used, as of now.

    Args:
        started_ns: When the app was called, by `time.perf_counter_ns`.
    """
    return Outcome(
        status,
        metering.usage,
        metering.error_type,
        (time.perf_counter_ns() - started_ns) // 1000,
        bytes_out,
        metering.cache,  # type: ignore[arg-type]
        metering.tags,
        metering.estimated,
    )
