"""API keys, budgets, rate limits and the usage endpoint your customers expect, inside your process."""

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.embedded import Tollkeeper
from tollkeeper.errors import TollkeeperError
from tollkeeper.gate.gate import Admission, Outcome, Usage
from tollkeeper.version import __version__

__all__ = [
    "Admission",
    "Denial",
    "Outcome",
    "Tollkeeper",
    "TollkeeperError",
    "Usage",
    "UsageQuery",
    "UsageReport",
    "__version__",
]
