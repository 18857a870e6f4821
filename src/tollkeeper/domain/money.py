"""Money is an `int` of nano-units beside its currency: 1 USD = 1_000_000_000 nanos. No float comes near it."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Final

NANOS_PER_UNIT: Final = 1_000_000_000
NANOS_PER_CENT: Final = NANOS_PER_UNIT // 100
NANOS_MAX: Final = 2**63 - 1
"""A signed 64-bit column holds about 9.2e9 USD."""


def parse_nanos(text: str) -> int:
    """
    Return the nanos of a decimal amount of whole units, e.g. `"12.50"` → 12_500_000_000.

    Raises:
        ValueError: Not a decimal number, finer than a nano, or beyond a signed 64-bit integer.
    """
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a decimal amount such as 12.50") from None
    if not amount.is_finite():
        raise ValueError(f"{text!r} is not a finite amount")
    scaled = amount.scaleb(9)
    if scaled != scaled.to_integral_value():
        raise ValueError(f"{text!r} is finer than a nano (9 decimal places)")
    nanos = int(scaled)
    if abs(nanos) > NANOS_MAX:
        raise ValueError(f"{text!r} does not fit in 64 bits of nanos")
    return nanos


def format_nanos(nanos: int, *, places_min: int = 2) -> str:
    """Return *nanos* as an exact decimal of whole units, with at least *places_min* decimal places."""
    sign = "-" if nanos < 0 else ""
    whole, part = divmod(abs(nanos), NANOS_PER_UNIT)
    digits = f"{part:09d}".rstrip("0").ljust(places_min, "0")
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def cents_half_up(nanos: int) -> int:
    """Return *nanos* in cents, rounded half up (away from zero for a refund's mirror image)."""
    if nanos < 0:
        return -cents_half_up(-nanos)
    return (nanos + NANOS_PER_CENT // 2) // NANOS_PER_CENT
