"""
Quantities: what a request used beside the four token columns, by name.

A quantity is kept as whole micro-units (an `int`), so that sums are exact; outside it is a decimal of units with at
most 6 places. Token classes are names with a meaning: they are disjoint from the four token columns and from each
other, whole numbers, and part of `tokens`. Names of `UNITS_KNOWN` have a unit that we document; any other name is
the provider's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final, TypeAlias

MICROS: Final = 10**6
"""Micro-units per unit."""
DECIMALS_MAX: Final = 6
QUANTITY_UNITS_MAX: Final = 10**12
"""The most of one quantity in one record, in units; more is taken for a unit error."""
QUANTITY_MICROS_MAX: Final = QUANTITY_UNITS_MAX * MICROS
QUANTITIES_MAX: Final = 32
"""The most names of one record."""
NAME_CHARS_MAX: Final = 40
NAME_PATTERN: Final = r"[a-z][a-z0-9_]{0,39}"
TOKENS_MAX: Final = 1_000_000_000
"""The most tokens of one class in one record."""
VARIANT_CHARS_MAX: Final = 64

QUANTITY_PREFIX: Final = "quantity."
"""`quantity.NAME` is a measure of usage, and a unit of limits and budgets."""

PROMPT_CLASSES: Final = (
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "audio_prompt_tokens",
    "audio_cached_prompt_tokens",
    "image_prompt_tokens",
    "image_cached_prompt_tokens",
    "video_prompt_tokens",
)
COMPLETION_CLASSES: Final = ("audio_completion_tokens", "image_completion_tokens", "video_completion_tokens")
COLUMN_FIELDS: Final = {
    "prompt_tokens": "tokens.prompt",
    "cached_prompt_tokens": "tokens.cached_prompt",
    "completion_tokens": "tokens.completion",
    "reasoning_tokens": "tokens.reasoning",
}
"""Token classes that are no quantities → the fields that state them."""
TOKEN_CLASSES: Final = PROMPT_CLASSES + COMPLETION_CLASSES
UNITS_KNOWN: Final = ("images", "seconds", "characters", "pages", "searches", "bytes", "tool_calls")

Quantities: TypeAlias = Mapping[str, int]
"""Name → micro-units, each above 0, in the order of the names."""

_NAME: Final = re.compile(NAME_PATTERN + r"\Z", re.ASCII)
_DECIMAL: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?\Z", re.ASCII)
_ECHO_CHARS_MAX: Final = 64
_DIGITS_MAX: Final = 18


class BadQuantity(ValueError):
    """
    A quantity that cannot be taken.

    Attributes:
        field: `quantities`, or `quantities.<name>`.
        code: `wrong_type`, `bad_value` or `out_of_range`, as of a rejected event.
    """

    def __init__(self, field: str, code: str, message: str) -> None:
        super().__init__(message)
        self.field, self.code = field, code


def parse_quantities(stated: Mapping[str, object]) -> dict[str, int]:
    """
    Return what a caller states, in micro-units, in the order of the names; zeros and nulls are left out.

    Args:
        stated: Name → units: decimal text (`"61.5"`), an int, a `Decimal`, or a float, which is read as its shortest
            text.

    Raises:
        BadQuantity: A name or value is out of bounds, or there are more than `QUANTITIES_MAX`.
    """
    parsed = {name: parse_quantity(name, value) for name, value in stated.items() if value is not None}
    if len(parsed) > QUANTITIES_MAX:
        raise BadQuantity(
            "quantities",
            "out_of_range",
            f"quantities has {len(parsed)} names; it must have at most {QUANTITIES_MAX}",
        )
    return {name: parsed[name] for name in sorted(parsed) if parsed[name]}


def parse_quantity(name: str, value: object) -> int:
    """Return one quantity in micro-units. Raises as `parse_quantities`."""
    if not is_quantity_name(name):
        raise BadQuantity(
            "quantities",
            "bad_value",
            f"{str(name)[:_ECHO_CHARS_MAX]!r} is not a name of a quantity: it must have lower-case letters, digits and "
            f"underscores, begin with a letter and have at most {NAME_CHARS_MAX} characters, e.g. seconds",
        )
    field = f"quantities.{name}"
    if name in COLUMN_FIELDS:
        raise BadQuantity(field, "bad_value", f"{field} has a field of its own: write {COLUMN_FIELDS[name]}")
    micros = micros_of(field, value)
    if micros > QUANTITY_MICROS_MAX:
        raise BadQuantity(field, "out_of_range", f"{field} must be at most {QUANTITY_UNITS_MAX}")
    if name in TOKEN_CLASSES:
        if micros % MICROS:
            raise BadQuantity(field, "bad_value", f"{field} counts tokens: it must be a whole number")
        if micros > TOKENS_MAX * MICROS:
            raise BadQuantity(field, "out_of_range", f"{field} must be at most {TOKENS_MAX}")
    return micros


def micros_of(field: str, value: object) -> int:
    """Return a decimal of units in micro-units; a text of too many digits is some number beyond all bounds."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise BadQuantity(
            field,
            "wrong_type",
            f'{field} must be a number, or decimal text such as "61.5", not {_kind(value)}',
        )
    if not value and not isinstance(value, str):
        return 0  # -0.0 too.
    if isinstance(value, int):
        if value < 0:
            raise BadQuantity(field, "out_of_range", f"{field} must be 0 or more")
        return value * MICROS
    text = value if isinstance(value, str) else _plain_text(value)
    match = _DECIMAL.match(text)
    if match is None or not (match[1] or match[2]):
        if text.startswith("-"):
            raise BadQuantity(field, "out_of_range", f"{field} must be 0 or more")
        raise BadQuantity(
            field,
            "bad_value",
            f'{field} is {text[:_ECHO_CHARS_MAX]!r}; it must be a decimal number such as "61.5"',
        )
    whole, part = match[1].lstrip("0"), (match[2] or "").rstrip("0")
    if len(part) > DECIMALS_MAX:
        raise BadQuantity(field, "bad_value", f"{field} must have at most {DECIMALS_MAX} decimal places")
    # The length is checked first: int() of a long text is slow, and refused beyond 4300 digits.
    if len(whole) > _DIGITS_MAX:
        return 10**_DIGITS_MAX * MICROS
    return int(whole + part.ljust(DECIMALS_MAX, "0"))


def _plain_text(value: float | Decimal) -> str:
    """Return the shortest decimal text of a number, without an exponent."""
    number = Decimal(repr(value)) if isinstance(value, float) else value
    if not number.is_finite():
        return str(number)
    if number.adjusted() > NAME_CHARS_MAX or number.adjusted() < -NAME_CHARS_MAX:
        # Far out of bounds: not worth its digits.
        return str(number)
    return format(number, "f")


def _kind(value: object) -> str:
    names = {bool: "a boolean", dict: "an object", list: "an array"}
    return names.get(type(value), type(value).__name__)


def is_quantity_name(name: object) -> bool:
    """Return whether *name* may name a quantity."""
    return isinstance(name, str) and _NAME.match(name) is not None


def quantity_text(micros: int) -> str:
    """Return micro-units as decimal text of units: `61_500_000` → `"61.5"`."""
    sign = "-" if micros < 0 else ""
    whole, part = divmod(abs(micros), MICROS)
    digits = f"{part:06d}".rstrip("0")
    return f"{sign}{whole}.{digits}" if digits else f"{sign}{whole}"


def amount_text(amount: int, unit: str) -> str:
    """Return an amount of a limit or budget with its unit, for people: `"61.5 seconds"`, `"3 requests"`."""
    quantity = quantity_of_unit(unit)
    return f"{amount} {unit}" if quantity is None else f"{quantity_text(amount)} {quantity}"


def amount_json(amount: int | None, unit: str) -> int | str | None:
    """Return an amount of a limit or budget as the API shows it: money and quantities are text."""
    if amount is None:
        return None
    if unit == "nanos":
        # JavaScript loses integers above 2**53.
        return str(amount)
    return amount if quantity_of_unit(unit) is None else quantity_text(amount)


def quantities_json(quantities: Quantities) -> dict[str, str]:
    """Return *quantities* as the API shows them: name → decimal text of units."""
    return {name: quantity_text(micros) for name, micros in quantities.items()}


def prompt_tokens_of(quantities: Quantities) -> int:
    """Return the tokens of the prompt classes among *quantities*."""
    return sum(quantities.get(name, 0) for name in PROMPT_CLASSES) // MICROS


def completion_tokens_of(quantities: Quantities) -> int:
    """Return the tokens of the completion classes among *quantities*."""
    return sum(quantities.get(name, 0) for name in COMPLETION_CLASSES) // MICROS


def tokens_of(quantities: Quantities) -> int:
    """Return the tokens of all classes among *quantities*."""
    return sum(quantities.get(name, 0) for name in TOKEN_CLASSES) // MICROS


def quantity_of_unit(unit: str) -> str | None:
    """Return the name in the unit or measure `quantity.NAME`; None if *unit* is another, or its name is none."""
    if not unit.startswith(QUANTITY_PREFIX):
        return None
    name = unit.removeprefix(QUANTITY_PREFIX)
    return name if is_quantity_name(name) else None
