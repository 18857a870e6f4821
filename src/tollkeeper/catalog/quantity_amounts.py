"""
Amounts of limits and budgets that count a quantity: callers state units (`"61.5"`), entries hold micro-units.

Each door converts once, before `entry_parsing`: an entry that is parsed again already holds micro-units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollkeeper.domain.money import NANOS_MAX
from tollkeeper.domain.quantities import MICROS, BadQuantity, micros_of, quantity_of_unit, quantity_text
from tollkeeper.errors import BadParameter

AMOUNTS: Final = ("amount", "burst")
UNITS_MAX: Final = NANOS_MAX // MICROS
"""The most units that an amount may be: a counter of the ledger has 64 bits of micro-units."""


def in_micros(raw: Any, path: str = "") -> Any:
    """
    Return *raw*, the plain values of an entry, with the amounts of its quantity units in micro-units.

    Args:
        path: Where *raw* stands: begins the field of every error.

    Raises:
        BadParameter: An amount is no decimal number of at most 6 places, or too large.
    """
    if isinstance(raw, list):
        return [in_micros(part, f"{path}[{index}]") for index, part in enumerate(raw)]
    if not isinstance(raw, Mapping):
        return raw
    unit = raw.get("unit")
    counts = isinstance(unit, str) and quantity_of_unit(unit) is not None
    done = {}
    for name, value in raw.items():
        where = f"{path}.{name}" if path else str(name)
        if counts and name in AMOUNTS and value is not None:
            done[name] = _micros(where, value)
        elif name in ("limits", "budgets"):
            done[name] = in_micros(value, where)
        else:
            done[name] = value
    return done


def shown(micros: int | None) -> str | None:
    """Return an amount of an entry as answers show it: decimal text of units."""
    return None if micros is None else quantity_text(micros)


def _micros(where: str, value: object) -> int:
    try:
        micros = micros_of(where, value)
    except BadQuantity as exc:
        raise BadParameter(f"{where}: {exc}", field=where) from None
    if micros > NANOS_MAX:
        raise BadParameter(f"{where}: an amount of a quantity must be at most {UNITS_MAX} units", field=where)
    return micros
