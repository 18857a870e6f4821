"""
Makes entries of plain values, the same way for a file, a request and a Python caller. An error names the field that is
wrong and says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Final, TypeVar, cast, get_args

import msgspec

from tollkeeper.catalog.money_amounts import plain_money, struct_in
from tollkeeper.domain.catalog import KINDS, Entry, Invalid, Key, Price
from tollkeeper.domain.money_fields import floats_in
from tollkeeper.domain.rates import fraction_objection
from tollkeeper.domain.requirements import requirement
from tollkeeper.errors import BadParameter, Malformed
from tollkeeper.profiles import names
from tollkeeper.profiles.base import NATIVE

E = TypeVar("E", bound=Entry)

_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
"""PostgreSQL's text holds no NUL; no UTF-8 holds half a surrogate pair."""


def entry_from(kind: str, raw: Any, path: str = "") -> Entry:
    """
    Return the entry of *kind* that *raw* (a mapping of plain values, as from JSON or TOML) describes.

    It passed every check that needs no other entry; its instants are in UTC.

    Args:
        path: Where *raw* stands, e.g. `plans[0]`: begins the field of every error.

    Raises:
        BadParameter: A field is unknown, missing, or has a bad value: its path and what to do.
        Malformed: It is nested more deeply than any entry.
    """
    check_kind(kind)
    entry_type = KINDS[kind]
    try:
        raw = plain_money(raw, entry_type, path)
        where = next(floats_in(raw, path), None)
    except RecursionError:
        raise Malformed("it is nested too deeply: an entry has no more than three levels") from None
    if where is not None:
        raise BadParameter(
            f"{where}: a number with a fraction or exponent: {fraction_objection(where)}", field=where
        )
    try:
        entry = msgspec.convert(raw, entry_type)
    except msgspec.ValidationError as exc:
        raise _bad_field(exc, entry_type, raw, path) from None
    for where, text in _strings(raw, path):
        if _UNSTORABLE.search(text):
            raise BadParameter(
                f"{where}: text cannot hold a NUL or half a surrogate pair: remove it", field=where or kind
            )
    try:
        entry.check()
    except Invalid as exc:
        field = at_path(path, exc.field)
        raise BadParameter(f"{field}: {exc}", field=field) from None
    if isinstance(entry, Key) and entry.profile not in (NATIVE, *names()):
        field = at_path(path, "profile")
        known = ", ".join((NATIVE, *names()))
        raise BadParameter(
            f"{field}: profile must be one of {known}, not {str(entry.profile)[:64]!r}", field=field
        )
    if isinstance(entry, Price):
        # Whole nanos are shown as text, and are the same rate when they come back.
        rates = {
            name: int(r) if isinstance(r, str) and r.isdecimal() else r for name, r in entry.rates.items()
        }
        entry = msgspec.structs.replace(entry, rates=rates)
    return _in_utc(entry, path)


def checked(entry: E, path: str = "") -> E:
    """Return *entry* checked as by `entry_from`, its types too: one built in Python may break even those."""
    plain = msgspec.to_builtins(entry, builtin_types=(datetime,))
    return cast("E", entry_from(entry.kind, plain, path))


def check_kind(kind: str, *others: str) -> None:
    """Raise `BadParameter` unless *kind* is one of `KINDS` or of *others*."""
    if kind not in KINDS and kind not in others:
        raise BadParameter(
            f"kind must be one of {', '.join([*KINDS, *others])}, not {kind[:64]!r}", field="kind"
        )


def at_path(path: str, field: str) -> str:
    """Return the path of *field* within what stands at *path*; either may be empty."""
    return f"{path}.{field}" if path and field else path or field


def _in_utc(entry: Entry, path: str) -> Entry:
    instants = {
        field: getattr(entry, field)
        for field in entry.__struct_fields__
        if isinstance(getattr(entry, field), datetime)
    }
    for field, at in instants.items():
        try:
            instants[field] = at.astimezone(UTC)
        except OverflowError:
            where = at_path(path, field)
            raise BadParameter(
                f"{where}: an instant must be within the years 1 to 9999", field=where
            ) from None
    return msgspec.structs.replace(entry, **instants) if instants else entry


def _bad_field(
    exc: msgspec.ValidationError, entry_type: type[msgspec.Struct], raw: Any, path: str
) -> BadParameter:
    text, _, where = str(exc).partition(" - at `")
    inner = where.rstrip("`").removeprefix("key in ").removeprefix("$").removeprefix(".")
    if inner.endswith(
        "[...]"
    ):  # One value of a mapping, unnamed: `metadata`, `rates`, or the `tags` of a match.
        inner = inner.removesuffix("[...]")
        sound = (str, int) if inner == "rates" else (str,)
        inner = next(
            (
                f"{inner}.{key}"
                for key, value in _value_at(raw, inner).items()
                if isinstance(value, bool) or not isinstance(value, sound)
            ),
            inner,
        )
    holder = _type_at(entry_type, inner)
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        known = [field.name for field in msgspec.structs.fields(struct_in(holder) or entry_type)]
        near = get_close_matches(match[1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known fields are {', '.join(known)}"
        inner, text = at_path(inner, match[1][:64]), f"unknown field: {hint}"
    elif match := re.fullmatch(r"Object missing required field `(.*)`", text):
        inner, text = at_path(inner, match[1]), "missing: this field is required"
    elif text.startswith("Invalid enum value"):
        text = f"must be one of {', '.join(_literals_in(holder))}"
    else:
        text = requirement(text)
    field = at_path(path, inner) or entry_type.__name__.lower()
    return BadParameter(f"{field}: {text}", field=field)


def _value_at(raw: Any, path: str) -> Any:
    """Return the value at *path* (`limits[1].match.tags`) within *raw*."""
    for name in re.findall(r"[^.\[\]]+", path):
        raw = raw[int(name)] if isinstance(raw, list) else raw[name]
    return raw


def _type_at(holder: Any, path: str) -> Any:
    """Return the type of the field at *path* (`limits[1].unit`) within the struct *holder*."""
    for name in re.sub(r"\[\d+\]", "", path).split(".") if path else ():
        struct = struct_in(holder)
        found = (
            [field.type for field in msgspec.structs.fields(struct) if field.name == name] if struct else []
        )
        holder = found[0] if found else None
    return holder


def _literals_in(holder: Any) -> list[str]:
    return [
        name for arg in get_args(holder) for name in ([arg] if isinstance(arg, str) else _literals_in(arg))
    ]


def _strings(value: Any, path: str) -> Sequence[tuple[str, str]]:
    if isinstance(value, str):
        return [(path, value)]
    if isinstance(value, Mapping):
        inner = [found for name, part in value.items() for found in _strings(part, at_path(path, name))]
        return [(path, name) for name in value] + inner
    if isinstance(value, list):
        return [found for index, part in enumerate(value) for found in _strings(part, f"{path}[{index}]")]
    return []
