"""
Rates and factors as people write them in entries of the catalog, read exactly.

A rate of a unit is whole nanos per million units (`100000000000`), or an amount of money and the number of units that
it buys (`"0.006/60"`: 0.006 per 60 seconds), so that no price list has to be converted.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from tollkeeper.domain.money import NANOS_PER_UNIT, parse_nanos

RATE_UNITS_MAX: Final = 10**12
UNIT_NANOS_MAX: Final = 10**15
"""A million units of money for one unit: more is taken for a mistake."""
FACTOR_MAX: Final = 1000
FACTOR_DECIMALS_MAX: Final = 9

_WHOLE: Final = re.compile(r"[0-9]{1,22}\Z", re.ASCII)
_PER_UNITS: Final = re.compile(r"([0-9.]{1,21}) ?/ ?([0-9]{1,13})\Z", re.ASCII)
_FACTOR: Final = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,9})?\Z", re.ASCII)


def parse_rate(stated: int | str) -> Fraction:
    """
    Return a rate in nanos per million units.

    Raises:
        ValueError: It is neither whole nanos per million units nor money per units, or more than `UNIT_NANOS_MAX` each.
    """
    if isinstance(stated, int) or _WHOLE.match(stated):
        rate = Fraction(int(stated))
    else:
        match = _PER_UNITS.match(stated)
        if match is None:
            raise ValueError(
                f"{stated[:64]!r} is not a rate: write money per units, e.g. "
                f'"0.006/60" for 0.006 per 60 seconds, or whole nanos per million units'
            )
        units = int(match[2])
        if not 1 <= units <= RATE_UNITS_MAX:
            raise ValueError(
                f"{stated[:64]!r} is per {units} units: a rate must be per 1 to {RATE_UNITS_MAX} units"
            )
        rate = Fraction(parse_nanos(match[1]) * 10**6, units)
    if not 0 <= rate <= UNIT_NANOS_MAX * 10**6:
        raise ValueError(
            f"{str(stated)[:64]!r} is not a rate: one unit must cost from 0 to {UNIT_NANOS_MAX // NANOS_PER_UNIT}.00"
        )
    return rate


def fraction_objection(path: str) -> str:
    """Return what to write instead of a number with a fraction, by the path of its field in an entry."""
    *_, holder, field = "", *path.split(".")
    if field == "factor":
        return 'a factor is written as text, so that it stays exact, e.g. "1.2"'
    if holder == "rates":
        return 'a rate is written as text, money per units, e.g. "0.006/60" for 0.006 per 60 seconds'
    return "write a whole number"


def parse_factor(stated: str) -> Fraction:
    """
    Return a factor, exactly: `"1.2"` is 6/5.

    Raises:
        ValueError: It is not a decimal from 0 to `FACTOR_MAX` with at most `FACTOR_DECIMALS_MAX` places.
    """
    if not _FACTOR.match(stated) or Fraction(stated) > FACTOR_MAX:
        raise ValueError(
            f'{stated[:64]!r} is not a factor: write a decimal from "0" to "{FACTOR_MAX}" with at most '
            f'{FACTOR_DECIMALS_MAX} places as text, e.g. "1.2" for 20 % more'
        )
    return Fraction(stated)
