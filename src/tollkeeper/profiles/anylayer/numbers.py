"""Rates as AnyLayer shows them: integers up to the last step, then JSON numbers with 2 decimals."""

from __future__ import annotations

from tollkeeper.domain import alerts


def percent(part: int, whole: int) -> float:
    """Return *part* of *whole* in percent with at most 2 decimals; 0 of nothing."""
    return alerts.percent_hundredths(part, whole) / alerts.HUNDREDTHS


def success_rate(requests: int, errors: int) -> float:
    """Return what `errorRate` leaves of 100, so that the two always add up; 0 without requests."""
    if requests <= 0:
        return 0.0
    return (10_000 - alerts.percent_hundredths(errors, requests)) / alerts.HUNDREDTHS


def ratio(part: int, whole: int) -> float:
    """Return *part* per *whole* with at most 2 decimals, half up; 0 per nothing."""
    return 0.0 if whole <= 0 else (200 * part + whole) // (2 * whole) / 100
