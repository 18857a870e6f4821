"""
The declarative file: the whole catalog, or a part of it, as TOML, applied all or nothing.

Money is decimal text (`amount = "25.00"`) or whole nanos: see `domain.money_fields`.

The file has an array of tables per kind, `[[accounts]]` to `[[webhooks]]`, in any order; each entry has the
fields of its struct in `domain.catalog`. Applying a file again changes nothing. Entries that are not in it stay, and
so do the fields of an entry that it does not name; an empty text removes a value (`expires_at = ""`).
"""

from __future__ import annotations

import tomllib
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

import msgspec

from tollkeeper.catalog.change_text import change_texts
from tollkeeper.catalog.changes import Applied, Change
from tollkeeper.catalog.entry_parsing import at_path, entry_from
from tollkeeper.catalog.manage import Manage
from tollkeeper.catalog.money_amounts import plain_money
from tollkeeper.catalog.quantity_amounts import in_micros
from tollkeeper.catalog.toml_bounds import check_toml
from tollkeeper.domain.catalog import KINDS, Entry
from tollkeeper.errors import BadParameter, Malformed

_KEY_IDS: Final = uuid.UUID("6f3d0a52-6a0e-4c55-9a8b-0f0a3a6a1d2e")
"""The name space of ids that are made of a key's fields: it never changes."""
_SIGNS: Final[dict[str, str]] = {"created": "+", "changed": "~", "unchanged": "=", "deleted": "-"}


class Declaration(list[Entry]):
    """
    The entries of a declarative file, in the order of `KINDS`, then of the file.

    Attributes:
        named: The fields that the file names, by the place of the entry: of one that exists, the others stay.
    """

    def __init__(
        self, entries: Iterable[Entry] = (), named: Mapping[int, frozenset[str]] | None = None
    ) -> None:
        super().__init__(entries)
        self.named = dict(named or {})


def parse_declaration(text: str) -> Declaration:
    """
    Return the entries of a declarative file.

    Raises:
        Malformed: The text is not TOML: where it stops being so; or a key or nesting is too long (`toml_bounds`).
        BodyTooLarge: It has more than `toml_bounds` permits.
        BadParameter: A table or field is unknown, missing, given twice or has a bad value: its path,
            such as `plans[0].limits[1].window`, and what to do.
    """
    check_toml(text)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise Malformed(f"the file is not TOML: {exc}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # Python's own bound on the digits that it reads, which tomllib lets out.
        raise Malformed("the file has a number of thousands of digits: no entry has one") from None
    for name, table in tables.items():
        if name not in KINDS:
            near = get_close_matches(name[:64], KINDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the tables are {', '.join(KINDS)}"
            raise BadParameter(f"{name[:64]}: unknown table: {hint}", field=name[:64])
        if not isinstance(table, list):
            raise BadParameter(f"{name}: not an array of tables: write [[{name}]]", field=name)
    entries: list[Entry] = []
    named: dict[int, frozenset[str]] = {}
    seen: dict[tuple[str, ...], str] = {}
    for kind in KINDS:
        for index, raw in enumerate(tables.get(kind, ())):
            path = f"{kind}[{index}]"
            try:
                raw = _without_removed(in_micros(raw, path), kind)
                has_id = kind != "keys" or not isinstance(raw, Mapping) or "id" in raw
                if not has_id:
                    raw = {"id": key_id_of(raw), **raw}
                stated = plain_money(raw, KINDS[kind], path)
            except RecursionError:
                raise _too_deep() from None
            entry = entry_from(kind, raw, path)
            field = at_path(path, entry.id_field)
            earlier = seen.setdefault(_identity(entry), path)
            if earlier != path and not has_id:
                raise BadParameter(
                    f"{path}: it has the account, profile, project and name of {earlier}, so that the two would be one "
                    "key: give each a name or an id of its own",
                    field=field,
                )
            if earlier != path:
                raise BadParameter(
                    f"{field}: {entry.entry_id!r} is given by {earlier} too: drop one", field=field
                )
            named[len(entries)] = frozenset(stated)
            entries.append(entry)
    return Declaration(entries, named)


def key_id_of(raw: Mapping[str, Any]) -> str:
    """
    Return the id of a key whose file states none: a UUID, the same at every repeat.

    It is made of the secret's hash; without one, of account, profile, project and name: another name is another key.
    """
    told = raw.get("sha256") or [raw.get(name) for name in ("account", "profile", "project", "name")]
    return str(uuid.uuid5(_KEY_IDS, str(told)))


def apply_declaration(entries: Sequence[Entry], manage: Manage, *, dry_run: bool) -> Applied:
    """Put all *entries* or none: see `Manage.apply`. The secrets of new keys are only in the result."""
    named = entries.named if isinstance(entries, Declaration) else None
    return manage.apply(entries, dry_run=dry_run, named=named)


def render_changes(changes: Sequence[Change]) -> list[str]:
    """
    Return a line for people per change: `+ accounts acme`, `~ keys k1: state active → inactive`, `= keys k2`.

    A note stands in brackets. The amount of a budget is in the units that entries hold.
    """
    return [
        change_line(change.action, change.kind, change.id, change.fields, change.note) for change in changes
    ]


def change_line(
    action: str,
    kind: str,
    entry_id: str,
    fields: Mapping[str, Sequence[Any]],
    note: str = "",
    money: Collection[str] = (),
) -> str:
    """
    Return the line of one change, whose *fields* have their old and new values.

    Args:
        money: Fields whose values are nanos although their names do not say so: the `amount` of a budget.
    """
    shown = [text for name, (old, new) in fields.items() for text in change_texts(name, old, new, money)]
    end = f": {', '.join(shown)}" if shown else ""
    return f"{_SIGNS[action]} {kind} {entry_id}{end}{f' ({note})' if note else ''}"


def _without_removed(raw: Any, kind: str) -> Any:
    """Return *raw* with None for the empty text of a field that has no value by default: it removes the value."""
    if not isinstance(raw, Mapping):
        return raw
    optional = {field.name for field in msgspec.structs.fields(KINDS[kind]) if field.default is None}
    return {name: None if value == "" and name in optional else value for name, value in raw.items()}


def _too_deep() -> Malformed:
    return Malformed("the file is nested too deeply: an entry needs no more than two levels")


def _identity(entry: Entry) -> tuple[str, ...]:
    # Of these kinds, two accounts may use the same id.
    if entry.kind in ("projects", "subscriptions", "budgets", "grants", "webhooks"):
        return (entry.kind, str(getattr(entry, "account")), entry.entry_id)  # noqa: B009
    return (entry.kind, entry.entry_id)
