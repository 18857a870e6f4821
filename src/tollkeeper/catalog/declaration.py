"""
The declarative file: the whole catalog, or a part of it, as TOML, applied all or nothing.

The file has an array of tables per kind, `[[accounts]]` to `[[webhooks]]`, in any order; each entry has the
fields of its struct in `domain.catalog`. Applying a file again changes nothing. Entries that are not in it stay.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from tollkeeper.catalog.changes import Applied, Change
from tollkeeper.catalog.entry_parsing import at_path, entry_from
from tollkeeper.catalog.entry_writer import STATE_FIELDS
from tollkeeper.catalog.manage import Manage
from tollkeeper.catalog.quantity_amounts import in_micros
from tollkeeper.catalog.toml_bounds import check_toml
from tollkeeper.domain.catalog import KINDS, Entry
from tollkeeper.domain.rates import fraction_objection
from tollkeeper.errors import BadParameter, Malformed

_SIGNS: Final[dict[str, str]] = {"created": "+", "changed": "~", "unchanged": "=", "deleted": "-"}


class Declaration(list[Entry]):
    """
    The entries of a declarative file, in the order of `KINDS`, then of the file.

    Attributes:
        stateless: The places of those whose state the file does not name: of these, the state stays as it is.
    """

    def __init__(self, entries: Iterable[Entry] = (), stateless: Collection[int] = ()) -> None:
        super().__init__(entries)
        self.stateless = frozenset(stateless)


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
    stateless = []
    seen: dict[tuple[str, ...], str] = {}
    for kind in KINDS:
        for index, raw in enumerate(tables.get(kind, ())):
            path = f"{kind}[{index}]"
            try:
                raw = in_micros(raw, path)
                where = next(_floats(raw, path), None)
            except RecursionError:
                raise _too_deep() from None
            if where is not None:
                raise BadParameter(
                    f"{where}: a number with a fraction or exponent: {fraction_objection(where)}", field=where
                )
            entry = entry_from(kind, raw, path)
            field = at_path(path, entry.id_field)
            earlier = seen.setdefault(_identity(entry), path)
            if earlier != path:
                raise BadParameter(
                    f"{field}: {entry.entry_id!r} is given by {earlier} too: drop one", field=field
                )
            if kind in STATE_FIELDS and STATE_FIELDS[kind] not in raw:
                stateless.append(len(entries))
            entries.append(entry)
    return Declaration(entries, stateless)


def apply_declaration(entries: Sequence[Entry], manage: Manage, *, dry_run: bool) -> Applied:
    """Put all *entries* or none: see `Manage.apply`. The secrets of new keys are only in the result."""
    stateless = entries.stateless if isinstance(entries, Declaration) else ()
    return manage.apply(entries, dry_run=dry_run, stateless=stateless)


def render_changes(changes: Sequence[Change]) -> list[str]:
    """
    Return a line for people per change: `+ accounts acme`, `~ plans pro: limits`, `= keys k1`.

    A changed state is shown with both values, `~ keys k1: state active → inactive`; a note in brackets.
    """
    return [
        change_line(change.action, change.kind, change.id, change.fields, change.note) for change in changes
    ]


def change_line(
    action: str, kind: str, entry_id: str, fields: Mapping[str, Sequence[Any]], note: str = ""
) -> str:
    """Return the line of one change, whose *fields* have their old and new values."""
    shown = [
        f"{name} {_word(old)} → {_word(new)}" if name == STATE_FIELDS.get(kind) else name
        for name, (old, new) in fields.items()
    ]
    end = f": {', '.join(shown)}" if shown else ""
    return f"{_SIGNS[action]} {kind} {entry_id}{end}{f' ({note})' if note else ''}"


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _too_deep() -> Malformed:
    return Malformed("the file is nested too deeply: an entry needs no more than two levels")


def _identity(entry: Entry) -> tuple[str, ...]:
    # Of these kinds, two accounts may use the same id.
    if entry.kind in ("projects", "subscriptions", "budgets", "grants", "webhooks"):
        return (entry.kind, str(getattr(entry, "account")), entry.entry_id)  # noqa: B009
    return (entry.kind, entry.entry_id)


def _floats(value: Any, path: str) -> Iterator[str]:
    """Yield the path of each number that is not whole: no entry has one, and money least of all."""
    if isinstance(value, float):
        yield path
    elif isinstance(value, dict):
        for name, part in value.items():
            yield from _floats(part, at_path(path, name))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _floats(part, f"{path}[{index}]")
