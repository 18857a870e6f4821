"""Finds entries by kind, id and account, and checks that the entries that another one names exist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from tollkeeper.catalog.entry_parsing import at_path
from tollkeeper.domain.catalog import ID_PATTERN, KINDS, Entry, Key, references
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.matching import Match, is_route_id
from tollkeeper.errors import BadParameter, NotFound
from tollkeeper.ports import Catalog

USERS_NAMED_MAX: Final = 5
"""Entries that an error names of those that use another one."""
ACCOUNT_SCOPED: Final = frozenset({"projects", "subscriptions", "keys", "budgets", "grants", "webhooks"})
"""Kinds whose entries belong to one account."""


def found_entry(catalog: Catalog, kind: str, entry_id: str, account: str | None) -> Entry:
    """
    Return an entry, of *account* unless that is None.

    Raises:
        BadParameter: Ids of this kind need an account.
        NotFound: There is no such entry, or not in this account.
    """
    if kind in ACCOUNT_SCOPED and kind != "keys" and account is None:
        raise BadParameter(
            f"account is required: ids of {kind} are unique within an account only", field="account"
        )
    # What is no id names nothing, and need not reach the store.
    sound = KINDS[kind].may_be_named(entry_id) and (account is None or ID_PATTERN.match(account))
    entry = catalog.get(kind, entry_id, account) if sound else None
    if entry is None:
        raise NotFound(f"there is no such entry among the {kind}")
    return entry


def found_key(catalog: Catalog, account: str | None, key_id: str) -> StoredKey:
    """Return a key with what is stored beside its entry. Raises `NotFound`."""
    stored = catalog.find_key(key_id) if ID_PATTERN.match(key_id) else None
    if stored is None or account not in (None, stored.entry.account):
        raise NotFound("there is no such entry among the keys")
    return stored


def in_use(kind: str, entry_id: str, users: Sequence[tuple[str, str]]) -> str:
    """Return why an entry cannot be deleted that *users*, `(kind, id)` each, name; one more than are shown at most."""
    named = ", ".join(" ".join(user) for user in users[:USERS_NAMED_MAX])
    if len(users) > USERS_NAMED_MAX:
        named += " and others"
    those = "that one" if len(users) == 1 else "those"
    hint = (
        "set active = false instead"
        if kind == "accounts"
        else f"delete {those} first, or let them name another"
    )
    return f"{kind} {entry_id} is in use by {named}: {hint}"


def as_of(entry: Entry, now_us: int) -> Entry:
    """Return an entry as it is at an instant: a key past its end is `expired`."""
    if not isinstance(entry, Key) or entry.expires_at is None or entry.state in ("revoked", "deleted"):
        return entry
    return msgspec.structs.replace(entry, state="expired") if now_us >= to_us(entry.expires_at) else entry


def owner_of(entry: Entry) -> str | None:
    """Return the account without which the id of an entry is not unique, or None."""
    return str(getattr(entry, "account")) if entry.kind in ACCOUNT_SCOPED else None  # noqa: B009


def check_references(catalog: Catalog, entry: Entry, path: str) -> None:
    """Raise `BadParameter` when *entry* names an entry that its account does not have."""
    account = getattr(entry, "account", None)
    for field, kind, name in references(entry):
        scope = account if kind in ACCOUNT_SCOPED else None
        named = catalog.get(kind, name, scope)
        if named is None or (isinstance(named, Key) and named.state == "deleted"):
            where = f" in account {scope}" if scope else ""
            raise BadParameter(
                f"{at_path(path, field)}: there is no {name[:64]!r} among the {kind}{where}: create it first",
                field=at_path(path, field),
            )
    for field, match in matches_of(entry):
        for index, route in enumerate(match.routes):
            if is_route_id(route) and catalog.get("routes", route) is None:
                where = at_path(path, f"{field}.routes[{index}]")
                raise BadParameter(
                    f"{where}: there is no {route[:64]!r} among the routes: create it first, or write METHOD /path",
                    field=where,
                )


def matches_of(entry: Entry) -> Iterator[tuple[str, Match]]:
    """Yield each `match` of an entry's limits and budgets, or its own, with its path."""
    match = getattr(entry, "match", None)
    if match is not None:
        yield "match", match
    for field in ("limits", "budgets"):
        for index, part in enumerate(getattr(entry, field, None) or ()):
            if part.match is not None:
                yield f"{field}[{index}].match", part.match


def names_routes(entry: Entry) -> bool:
    """Return whether a `match` of an entry names a route's id, which stands for the route as it is now."""
    return any(is_route_id(route) for _, match in matches_of(entry) for route in match.routes)
