"""Which values of a record the usage store has columns for."""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from tollkeeper.domain.events import Record
from tollkeeper.errors import BadParameter

STATUS_MAX: Final = 999
COUNT_MAX: Final = 10**16
"""The most of anything in one record: what the dearest price and the most tokens make is 8e15 nanos."""
_COUNT_FIELDS: Final = (
    "bytes_out",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "credits",
    "cost_nanos",
    "estimated_cost_nanos",
)
_TEXT_FIELDS: Final = ("id", "method", "route", "error_type", "denied_reason", "model", "cache")
_counts_of = attrgetter(*_COUNT_FIELDS)
_texts_of = attrgetter(*_TEXT_FIELDS)


def check_storable(record: Record) -> None:
    """
    Raise BadParameter when a record has a value that the usage store has no room for.

    Records of this process are made from what a program states. One bad value must fail alone, here: in the
    outbox it would hold up all records of its group.
    """
    for value in _counts_of(record):
        if type(value) is not int or not 0 <= value <= COUNT_MAX:
            names = ", ".join(_COUNT_FIELDS)
            raise BadParameter(
                f"{value!r}: {names} must be whole numbers from 0 to {COUNT_MAX}", field="usage"
            )
    if type(record.status) is not int or not 0 <= record.status <= STATUS_MAX:
        raise BadParameter(f"status must be a whole number from 0 to {STATUS_MAX}", field="status")
    latency_us = record.latency_us
    if latency_us is not None and (type(latency_us) is not int or not 0 <= latency_us <= COUNT_MAX):
        raise BadParameter("latency_us must be a whole number of microseconds", field="latency_us")
    for text in _texts_of(record):
        if not isinstance(text, str):
            raise BadParameter(f"{text!r}: {', '.join(_TEXT_FIELDS)} must be text", field="outcome")
    for name, value in record.tags.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise BadParameter("tags must be a map of text to text", field="tags")
