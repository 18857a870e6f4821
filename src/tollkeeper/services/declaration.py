"""
The declarative file: the whole catalog, or a part of it, as TOML, applied all or nothing.

The file has an array of tables per kind, `[[accounts]]` to `[[webhooks]]`, in any order; each entry has the
fields of its struct in `domain.catalog`. Applying a file again changes nothing. What a file leaves out stays.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Final

from tollkeeper.domain.catalog import KINDS, Entry
from tollkeeper.errors import BadParameter, Malformed
from tollkeeper.services.entries import at_path, entry_from
from tollkeeper.services.manage import Applied, Change, Manage
from tollkeeper.services.toml_bounds import check_toml

_SIGNS: Final = {"created": "+", "changed": "~", "unchanged": "=", "deleted": "-"}


def parse_declaration(text: str) -> list[Entry]:
    """
    Return the entries of a declarative file, in the order of `KINDS`, then of the file.

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
    entries = []
    seen: dict[tuple[str, ...], str] = {}
    for kind in KINDS:
        for index, raw in enumerate(tables.get(kind, ())):
            path = f"{kind}[{index}]"
            try:
                where = next(_floats(raw, path), None)
            except RecursionError:
                raise _too_deep() from None
            if where is not None:
                raise BadParameter(
                    f"{where}: a number with a fraction or exponent: write a whole number", field=where
                )
            entry = entry_from(kind, raw, path)
            field = at_path(path, entry.id_field)
            earlier = seen.setdefault(_identity(entry), path)
            if earlier != path:
                raise BadParameter(
                    f"{field}: {entry.entry_id!r} is given by {earlier} too: drop one", field=field
                )
            entries.append(entry)
    return entries


def apply_declaration(entries: Sequence[Entry], manage: Manage, *, dry_run: bool) -> Applied:
    """Put all *entries* or none: see `Manage.apply`. The secrets of new keys are only in the result."""
    return manage.apply(entries, dry_run=dry_run)


def render_changes(changes: Sequence[Change]) -> list[str]:
    """Return a line for people per change: `+ accounts acme`, `~ plans pro: limits`, `= keys k1`."""
    lines = []
    for change in changes:
        fields = f": {', '.join(change.fields)}" if change.fields else ""
        lines.append(f"{_SIGNS[change.action]} {change.kind} {change.id}{fields}")
    return lines


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
