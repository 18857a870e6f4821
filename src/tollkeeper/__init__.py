"""
API keys, budgets, rate limits and the usage endpoint your customers expect, inside your process.

The public names are loaded when they are first used, so that importing a part of the package (the command
line, the domain) does not load the stores.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from tollkeeper.packages import needed
from tollkeeper.version import __version__

if TYPE_CHECKING:
    from tollkeeper.collector import freeze_gc
    from tollkeeper.domain.decisions import Denial
    from tollkeeper.domain.event_pages import EventPage, EventQuery
    from tollkeeper.domain.requests import Outcome
    from tollkeeper.domain.stated import Usage
    from tollkeeper.domain.usage import UsageQuery, UsageReport
    from tollkeeper.embedded import Tollkeeper
    from tollkeeper.errors import TollkeeperError
    from tollkeeper.gate.gate import Admission
    from tollkeeper.meter.provider_usage import usage_from
    from tollkeeper.metering import Denied

_MODULES: Final = {
    "Admission": "tollkeeper.gate.gate",
    "Denial": "tollkeeper.domain.decisions",
    "Denied": "tollkeeper.metering",
    "EventPage": "tollkeeper.domain.event_pages",
    "EventQuery": "tollkeeper.domain.event_pages",
    "Outcome": "tollkeeper.domain.requests",
    "Tollkeeper": "tollkeeper.embedded",
    "TollkeeperError": "tollkeeper.errors",
    "Usage": "tollkeeper.domain.stated",
    "UsageQuery": "tollkeeper.domain.usage",
    "UsageReport": "tollkeeper.domain.usage",
    "freeze_gc": "tollkeeper.collector",
    "usage_from": "tollkeeper.meter.provider_usage",
}
"""Where each public name is defined."""

__all__ = [
    "Admission",
    "Denial",
    "Denied",
    "EventPage",
    "EventQuery",
    "Outcome",
    "Tollkeeper",
    "TollkeeperError",
    "Usage",
    "UsageQuery",
    "UsageReport",
    "__version__",
    "freeze_gc",
    "usage_from",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed():
        value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
