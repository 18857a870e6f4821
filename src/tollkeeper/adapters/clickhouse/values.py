"""
The columns of a report: the values that are summed up, and the measures that are computed and shown from them.

A value has two expressions, per row of `usage_rollups` and per row of `events`; both must say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.quantities import MICROS, TOKEN_CLASSES
from tollkeeper.domain.rollups import bin_latency_us
from tollkeeper.domain.usage import MEASURES as MEASURE_NAMES

_NEVER_US: Final = 2**63 - 1
"""What `min` starts from: `first_at_us` of a rollup row without a record of sign 1."""
LATENCY_BIN: Final = "toUInt16(if({0} <= 0, 0, 1 + floor(log({0}) / 0.01980262729617973)))"
"""domain/rollups.py `latency_bin`; the view of `usage_rollups` has the same. The divisor is the double ln 1.02."""


class Value(NamedTuple):
    """A summand: its expression per row of `usage_rollups` (u) and of `events` (e), how rows merge, and what
    leaves a merge as it is."""

    rollup: str
    event: str
    merge: str = "sum"
    nothing: str = "toInt64(0)"


_IS_REQUEST: Final = "e.adjustment_nanos = 0"
_REQUESTS: Final = f"if({_IS_REQUEST}, toInt64(e.sign), 0)"
_TOKEN_CLASSES: Final = ", ".join(f"'{name}'" for name in TOKEN_CLASSES)
_QUANTITY_TOKENS: Final = (
    f"intDiv(arraySum((k, v) -> if(k IN ({_TOKEN_CLASSES}), v, 0), mapKeys(e.quantities), mapValues(e.quantities)), "
    f"{MICROS})"
)
"""Tokens among the quantities; the view of `usage_rollups` has the same."""


def _summed(name: str) -> Value:
    return Value(f"u.{name}", f"e.sign * e.{name}")


def _counted(name: str, condition: str) -> Value:
    return Value(f"u.{name}", f"if(({condition}) AND {_IS_REQUEST}, toInt64(e.sign), 0)")


_NO_BINS: Final = "CAST(map() AS Map(UInt16, Int64))"
VALUES: Final[dict[str, Value]] = {
    "requests": Value("u.requests", _REQUESTS),
    "errors": _counted("errors", "e.status >= 400 OR e.error_type <> ''"),
    "failed": _counted("failed", "e.status >= 400"),
    "denied": _counted("denied", "e.denied_reason <> ''"),
    "prompt_tokens": _summed("prompt_tokens"),
    "cached_prompt_tokens": _summed("cached_prompt_tokens"),
    "completion_tokens": _summed("completion_tokens"),
    "reasoning_tokens": _summed("reasoning_tokens"),
    "tokens": Value(
        "u.prompt_tokens + u.cached_prompt_tokens + u.completion_tokens + u.reasoning_tokens + u.quantity_tokens",
        "e.sign * (e.prompt_tokens + e.cached_prompt_tokens + e.completion_tokens + e.reasoning_tokens "
        f"+ {_QUANTITY_TOKENS})",
    ),
    "cost_nanos": _summed("cost_nanos"),
    "estimated_cost_nanos": Value(
        "u.estimated_cost_nanos", "if(e.cost_state = 'estimated', e.sign * e.cost_nanos, 0)"
    ),
    "credits": _summed("credits"),
    "unpriced": _counted("unpriced", "e.cost_state = 'unpriced'"),
    "cache_hits": _counted("cache_hits", "e.cache = 'hit'"),
    "cache_misses": _counted("cache_misses", "e.cache = 'miss'"),
    "bytes_out": _summed("bytes_out"),
    "latency_count": _counted("latency_count", "e.latency_us IS NOT NULL"),
    "latency_sum_us": Value("u.latency_sum_us", "e.sign * ifNull(e.latency_us, 0)"),
    "latency_bins": Value(
        "u.latency_bins",
        f"if(isNull(e.latency_us), {_NO_BINS}, "
        f"map({LATENCY_BIN.format('ifNull(e.latency_us, 0)')}, toInt64(e.sign)))",
        "sumMap",
        _NO_BINS,
    ),
    "kinds": Value(
        "map(toString(u.kind), u.requests)",
        f"map(toString(e.kind), {_REQUESTS})",
        "sumMap",
        "CAST(map() AS Map(String, Int64))",
    ),
    "minutes": Value(
        "u.minutes",
        f"map(toUInt8(toMinute(e.occurred_at)), {_REQUESTS})",
        "sumMap",
        "CAST(map() AS Map(UInt8, Int64))",
    ),
    "latency_max_us": Value("u.latency_max_us", "ifNull(e.latency_us, -1)", "max", "toInt64(-1)"),
    "first_at_us": Value(
        "u.first_at_us",
        f"if({_IS_REQUEST}, toUnixTimestamp64Micro(e.occurred_at), {_NEVER_US})",
        "min",
        f"toInt64({_NEVER_US})",
    ),
    "last_at_us": Value(
        "u.last_at_us",
        f"if({_IS_REQUEST}, toUnixTimestamp64Micro(e.occurred_at), 0)",
        "max",
        "toInt64(0)",
    ),
    "margin_nanos": _summed("margin_nanos"),
    "adjustments": Value("u.adjustments", "if(e.adjustment_nanos = 0, 0, toInt64(e.sign))"),
    "adjustment_nanos": _summed("adjustment_nanos"),
    "corrections": Value("u.corrections", "toInt64(e.sign = -1)"),
}
EXTREMES: Final = frozenset({"latency_max_us", "first_at_us", "last_at_us"})
"""The values that cannot be subtracted."""


def value_of_quantity(parameter: str) -> Value:
    """Return the value of the quantity that the server-side *parameter* names; 128 bits, as its sums need."""
    return Value(
        f"u.quantities[{{{parameter}:String}}]",
        f"e.sign * toInt128(e.quantities[{{{parameter}:String}}])",
        nothing="toInt128(0)",
    )


def _milliseconds(value: Any) -> float | None:
    return None if value is None else value / 1000


def _bin_milliseconds(value: Any) -> float | None:
    return None if value is None else bin_latency_us(value) / 1000


def _instant(value: Any) -> str | None:
    return None if value is None else to_text(from_us(value))


def _counts(value: Any) -> dict[str, int]:
    return {kind: count for kind, count in value.items() if count}


def as_is(value: Any) -> Any:
    return value


class Measure(NamedTuple):
    """A column of the answer: the values it needs, its expression over them, and how a result is shown."""

    needs: tuple[str, ...]
    expression: str
    show: Callable[[Any], Any] = as_is
    empty: Any = 0


def _percentile(quantile: str) -> Measure:
    # Nearest rank, as domain/rollups.py percentile_us; the answer is the bin, which Python turns into µs.
    # The keys that sumMap returns are sorted.
    index = f"arrayFirstIndex(c -> c >= ceil({quantile} * latency_count), latency_ranks)"
    return Measure(
        ("latency_count", "latency_bins"),
        f"if(latency_count > 0, toInt32(mapKeys(latency_bins)[{index}]), NULL)",
        _bin_milliseconds,
        None,
    )


MEASURES: Final[dict[str, Measure]] = {
    **{name: Measure((name,), name) for name in MEASURE_NAMES if name in VALUES},
    "latency_ms_avg": Measure(
        ("latency_count", "latency_sum_us"),
        "if(latency_count > 0, latency_sum_us / latency_count, NULL)",
        _milliseconds,
        None,
    ),
    "latency_ms_max": Measure(
        ("latency_count", "latency_max_us"),
        "if(latency_count > 0 AND latency_max_us >= 0, latency_max_us, NULL)",
        _milliseconds,
        None,
    ),
    "latency_ms_p50": _percentile("0.5"),
    "latency_ms_p90": _percentile("0.9"),
    "latency_ms_p95": _percentile("0.95"),
    "latency_ms_p99": _percentile("0.99"),
    "provider_cost_nanos": Measure(("cost_nanos", "margin_nanos"), "cost_nanos - margin_nanos"),
    "adjustments_nanos": Measure(("adjustments", "adjustment_nanos"), "adjustment_nanos"),
    "kinds": Measure(("kinds",), "kinds", _counts, {}),
    "peak_requests_per_minute": Measure(("requests", "minutes"), "peak_minute"),
    "peak_requests_per_hour": Measure(("requests",), "peak_hour"),
    "first_at": Measure(
        ("first_at_us",), f"if(first_at_us IN (0, {_NEVER_US}), NULL, first_at_us)", _instant, None
    ),
    "last_at": Measure(("last_at_us",), "if(last_at_us = 0, NULL, last_at_us)", _instant, None),
}
QUANTITY: Final = Measure((), "")
"""A measure `quantity.NAME`, whose expression is made for each report: micro-units."""
PEAKS: Final = frozenset({"peak_requests_per_minute", "peak_requests_per_hour"})
