"""Instants as whole microseconds since the Unix epoch, the form that the hot path and the stores use."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

US_PER_S: Final = 1_000_000


def to_us(at: datetime) -> int:
    """Return *at* (aware) in microseconds since the Unix epoch, exactly."""
    return (at - _EPOCH) // _MICROSECOND


def from_us(at_us: int) -> datetime:
    """Return the aware UTC instant of *at_us*, microseconds since the Unix epoch."""
    return _EPOCH + timedelta(microseconds=at_us)


def to_text(at: datetime) -> str:
    """Return *at* as RFC 3339 in UTC with microseconds, the form of every answer of the API."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
