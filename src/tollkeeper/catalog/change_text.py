"""The old and new values of changed fields, as people read them: `limits.rpm.amount 60 → 120`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from tollkeeper.domain.instants import to_text
from tollkeeper.domain.money import format_nanos
from tollkeeper.domain.money_fields import is_money_name

_ABSENT: Final = "none"


def change_texts(name: str, old: Any, new: Any, money: Collection[str] = ()) -> Iterator[str]:
    """
    Yield `name old → new`; of a map or of a list of named parts one for each part that differs.

    Args:
        money: Names of `amount` fields that are nanos, beside those that say so by their name.
    """
    old, new = (_plain(value) for value in (old, new))
    parts_old, parts_new = _parts(old), _parts(new)
    if parts_old is not None and parts_new is not None:
        for part in [*parts_old, *(part for part in parts_new if part not in parts_old)]:
            before, after = parts_old.get(part), parts_new.get(part)
            if before != after:
                within = _money_in(before, after) if isinstance(before or after, Mapping) else money
                yield from change_texts(f"{name}.{part}", before, after, within)
        return
    is_money = _is_money(name, money)
    yield f"{_shown(name, money)} {_word(old, is_money)} → {_word(new, is_money)}"


def value_texts(name: str, value: Any, money: Collection[str] = ()) -> Iterator[str]:
    """Yield `name value` of a field of a new entry, of its named parts one for each; nothing of one that is not set."""
    value = _plain(value)
    if value is None or value in ("", [], {}):
        return
    parts = _parts(value)
    if parts is not None:
        for part, of_part in parts.items():
            if isinstance(of_part, Mapping) and "name" in of_part:
                yield f"{name}.{part} {_word(of_part, False)}"
            else:
                yield from value_texts(f"{name}.{part}", of_part, money)
        return
    if isinstance(value, list):
        yield f"{name} {', '.join(_word(part, False) for part in value)}"
        return
    yield f"{_shown(name, money)} {_word(value, _is_money(name, money))}"


def _is_money(name: str, money: Collection[str]) -> bool:
    last = name.rpartition(".")[2]
    return is_money_name(last) or last in money


def _shown(name: str, money: Collection[str]) -> str:
    if not _is_money(name, money):
        return name
    return name.replace("_nanos_per_million", "_per_million").removesuffix("_nanos")


def _money_in(*holders: Any) -> Collection[str]:
    units = {holder.get("unit") for holder in holders if isinstance(holder, Mapping)}
    return ("amount", "burst") if units == {"nanos"} else ()


def _parts(value: Any) -> Mapping[str, Any] | None:
    """Return what is compared part by part: a map, or a list of maps by their names; None for another value."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list) and all(isinstance(part, Mapping) and "name" in part for part in value):
        return {str(part["name"]): part for part in value}
    return None


def _plain(value: Any) -> Any:
    plain = msgspec.to_builtins(value, builtin_types=(datetime,))
    return list(plain) if isinstance(plain, tuple) else plain


def _word(value: Any, is_money: bool) -> str:
    if value is None:
        return _ABSENT
    if is_money and str(value).isdecimal():
        return format_nanos(int(value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return to_text(value).replace(".000000Z", "Z")
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, Mapping) and "name" in value:
        # A part that is new or gone, such as a budget of a plan.
        money = _money_in(value)
        parts = (
            f"{name} {_word(part, is_money_name(name) or name in money)}"
            for name, part in value.items()
            if name != "name" and part is not None
        )
        return f"({', '.join(parts)})"
    return msgspec.json.encode(value).decode()
