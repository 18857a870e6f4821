"""Money is an `int` of nano-units beside its currency: 1 USD = 1_000_000_000 nanos. No float, ever."""

from __future__ import annotations

import re
from typing import Final

NANOS_PER_UNIT: Final = 1_000_000_000
NANOS_PER_CENT: Final = NANOS_PER_UNIT // 100
NANOS_MAX: Final = 2**63 - 1
"""A signed 64-bit column holds about 9.2e9 USD."""

_AMOUNT: Final = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?\Z")


def parse_nanos(text: str) -> int:
    """
    Return the nanos of a decimal amount of whole units, e.g. `"12.50"` → 12_500_000_000.

    Raises:
        ValueError: Not a decimal number, finer than a nano, or beyond a signed 64-bit integer.
    """
    match = _AMOUNT.match(text)
    if match is None or not (match[2] or match[3]):
        raise ValueError(f"{text!r} is not a decimal amount such as 12.50")
    whole, part = match[2].lstrip("0"), (match[3] or "").rstrip("0")
    if len(part) > 9:
        raise ValueError(f"{text!r} is finer than a nano (9 decimal places)")
    # The length is checked first: int() of a long text is slow, and refused beyond 4300 digits.
    nanos = int(whole + part.ljust(9, "0")) if len(whole) <= 10 else NANOS_MAX + 1
    if nanos > NANOS_MAX:
        raise ValueError(f"{text!r} does not fit in 64 bits of nanos")
    return -nanos if match[1] == "-" else nanos


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
