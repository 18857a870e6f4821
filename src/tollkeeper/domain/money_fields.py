"""
Money as people write it: which forms a field takes, and what each of them means.

Three kinds of field hold money. Everywhere a text with a decimal point is money, and a whole number is nanos:

* `<name>_nanos` (`price_nanos`, `prompt_nanos_per_million`) takes whole nanos, as a number or as text.
* `<name>` without `_nanos` (`price`, `prompt_per_million`), its twin, takes money as decimal text: `"25.00"`, `"25"`.
* `amount` and `burst` of a limit or budget in `nanos` take both: `"25.00"` is money; digits alone are nanos, as a
  number or as text, since that is how answers show them.

Of a field and its twin one is stated, or both with the same value. A float is refused: it does not hold money exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from tollkeeper.domain.money import NANOS_PER_CENT, NANOS_PER_UNIT, format_nanos, parse_nanos

MONEY_UNIT: Final = "nanos"
RATE_ENDING: Final = "_nanos_per_million"
_NANOS_ENDING: Final = "_nanos"
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,19}\Z")
_ECHO_CHARS_MAX: Final = 40


class BadMoney(ValueError):
    """A field holds no money that can be taken: *field* is its name; the message says what to send."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def is_money_name(name: str) -> bool:
    """Return whether the name of a field says that it holds nanos."""
    return name.endswith((_NANOS_ENDING, RATE_ENDING))


def twin_of(name: str) -> str:
    """Return the name under which a field of nanos takes decimal text."""
    if name.endswith(RATE_ENDING):
        return name.removesuffix(RATE_ENDING) + "_per_million"
    return name.removesuffix(_NANOS_ENDING)


def nanos_of_money(name: str, value: object) -> int:
    """Return the nanos of a twin's value: decimal text is money, a whole number is nanos. Raises `BadMoney`."""
    if isinstance(value, str):
        return _parsed(name, value)
    return _whole(name, value)


def nanos_of_nanos(name: str, value: object) -> int:
    """Return the value of a `<name>_nanos` field: a whole number, as number or text. Raises `BadMoney`."""
    if isinstance(value, str):
        if _WHOLE.match(value):
            return int(value)
        raise BadMoney(
            name,
            f"{value[:_ECHO_CHARS_MAX]!r} is not a whole number of nanos: write money as {twin_of(name)} = "
            f'"25.00", or 25000000000 nanos',
        )
    return _whole(name, value)


def nanos_of_amount(name: str, value: object) -> int:
    """Return the nanos of an `amount` whose unit is nanos: text with a decimal point is money. Raises `BadMoney`."""
    if isinstance(value, str):
        return int(value) if _WHOLE.match(value) else _parsed(name, value)
    return _whole(name, value)


def stated_nanos(raw: Mapping[str, Any], name: str, path: str = "") -> int | None:
    """
    Return what *raw* states of the field *name* (`<name>_nanos`), under its own name or its twin's; None for nothing.

    Raises:
        BadMoney: A value is none, or the two differ.
    """
    twin = twin_of(name)
    of_nanos, of_twin = raw.get(name), raw.get(twin)
    nanos = None if of_nanos is None else nanos_of_nanos(path + name, of_nanos)
    money = None if of_twin is None else nanos_of_money(path + twin, of_twin)
    if nanos is not None and money is not None and nanos != money:
        raise BadMoney(
            path + twin,
            f"{twin} is {format_nanos(money)} and {name} is {format_nanos(nanos)}: leave one of them out",
        )
    return money if nanos is None else nanos


def with_nanos(raw: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return *raw* with the fields *names* (`<name>_nanos`) as nanos, without their twins. Raises `BadMoney`."""
    plain = dict(raw)
    for name in names:
        nanos = stated_nanos(plain, name)
        plain.pop(twin_of(name), None)
        if nanos is not None:
            plain[name] = nanos
    return plain


def cent_warning(path: str, nanos: int) -> str | None:
    """Return what to say of an amount that is less than a cent and not nothing, which is likely a slip; else None."""
    if not 0 < abs(nanos) < NANOS_PER_CENT:
        return None
    return (
        f"{path}: {nanos} nanos are {format_nanos(nanos)}, less than a cent: for {nanos} units of money write "
        f'"{nanos}.00"'
    )


def told(amount: int, unit: str) -> str:
    """Return an amount of a limit or budget for people: money for `nanos`, else the number and its unit."""
    return format_nanos(amount) if unit == MONEY_UNIT else f"{amount} {unit}"


def floats_in(value: Any, path: str) -> Iterator[str]:
    """Yield the path of each number in *value* that is no whole one."""
    if isinstance(value, float):
        yield path
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from floats_in(part, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from floats_in(part, f"{path}[{index}]")


def _parsed(name: str, text: str) -> int:
    try:
        return parse_nanos(text)
    except ValueError:
        raise BadMoney(
            name,
            f'{text[:_ECHO_CHARS_MAX]!r} is no amount of money: write a decimal of at most 9 places, e.g. "25.00"',
        ) from None


def _whole(name: str, value: object) -> int:
    if isinstance(value, float):
        money = f"{value:.2f}" if abs(value) < NANOS_PER_UNIT else "25.00"
        raise BadMoney(
            name,
            f"{value} is a floating-point number, which does not hold money exactly: write {name.rpartition('.')[2]} "
            f'= "{money}" as text, or a whole number of nanos (1.00 is {NANOS_PER_UNIT})',
        )
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadMoney(name, 'neither money, e.g. "25.00", nor a whole number of nanos')
    return value
