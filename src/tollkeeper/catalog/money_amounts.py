"""
Money in entries of the catalog: callers state decimals or nanos (`domain.money_fields`), entries hold nanos.

Which fields hold money is known from the entry's struct, so that text of the operator (`metadata`) is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

import msgspec

from tollkeeper.catalog.quantity_amounts import AMOUNTS
from tollkeeper.domain.entry import Entry
from tollkeeper.domain.money import format_nanos
from tollkeeper.domain.money_fields import (
    MONEY_UNIT,
    BadMoney,
    cent_warning,
    is_money_name,
    nanos_of_amount,
    stated_nanos,
    twin_of,
)
from tollkeeper.errors import BadParameter


def plain_money(raw: Any, holder: Any, path: str = "") -> Any:
    """
    Return *raw*, plain values of the struct type *holder*, with its money as nanos: see `domain.money_fields`.

    Args:
        path: Where *raw* stands: begins the field of every error.

    Raises:
        BadParameter: A field holds no money that can be taken, or a number that is not whole: no entry has one.
    """
    struct = struct_in(holder)
    if struct is None or not isinstance(raw, Mapping):
        return raw
    fields = _fields_of(struct)
    found = dict(raw)
    unit = found.get("unit", fields["unit"].default if "unit" in fields else None)
    begin = f"{path}." if path else ""
    try:
        for name, field in fields.items():
            value = found.get(name)
            if is_money_name(name):
                twin = twin_of(name)
                nanos = stated_nanos(found, name, begin)
                if found.pop(twin, None) is not None or nanos is not None:
                    found[name] = nanos
            elif value is None:
                continue
            elif name in AMOUNTS and unit == MONEY_UNIT:
                found[name] = nanos_of_amount(begin + name, value)
            elif isinstance(value, list):
                found[name] = [
                    plain_money(part, field.type, f"{begin}{name}[{index}]")
                    for index, part in enumerate(value)
                ]
            elif isinstance(value, Mapping):
                found[name] = plain_money(value, field.type, begin + name)
    except BadMoney as exc:
        raise BadParameter(f"{exc.field}: {exc}", field=exc.field) from None
    return found


@cache
def _fields_of(struct: type[msgspec.Struct]) -> dict[str, msgspec.structs.FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(struct)}


def money_told(entry: Entry) -> tuple[dict[str, str], list[str]]:
    """
    Return the amounts of an entry as they were understood, and warnings of those that look like a slip.

    Amounts are by their path, e.g. `budgets[0].amount` → `"25.00"`. Prices are often less than a cent: no warning.
    """
    told: dict[str, str] = {}
    warnings: list[str] = []
    _tell(entry, "", told, warnings)
    return told, warnings


def _tell(holder: msgspec.Struct, path: str, told: dict[str, str], warnings: list[str]) -> None:
    for name in holder.__struct_fields__:
        value, where = getattr(holder, name), f"{path}.{name}" if path else name
        if isinstance(value, list):
            for index, part in enumerate(value):
                if isinstance(part, msgspec.Struct):
                    _tell(part, f"{where}[{index}]", told, warnings)
        elif isinstance(value, msgspec.Struct):
            _tell(value, where, told, warnings)
        elif value is not None and (
            is_money_name(name) or (name in AMOUNTS and getattr(holder, "unit", None) == MONEY_UNIT)
        ):
            told[where] = format_nanos(value)
            # What a request or a token costs is often less than a cent; what is granted or bounded is not.
            if name in (*AMOUNTS, "amount_nanos") and (warning := cent_warning(where, value)):
                warnings.append(warning)


def struct_in(holder: Any) -> type[msgspec.Struct] | None:
    """Return the struct that a field of type *holder* holds, or that its items are; None without one."""
    if isinstance(holder, type) and issubclass(holder, msgspec.Struct):
        return holder
    return next((found for arg in get_args(holder) if (found := struct_in(arg))), None)
