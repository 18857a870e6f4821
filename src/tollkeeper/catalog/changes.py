"""The changes of a call to the catalog, one per entry, and the keys that it issued."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from tollkeeper.domain.catalog import Entry, Key
from tollkeeper.ports import ChangeAction


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a call did to one entry.

    Attributes:
        account_id: The account that the entry belongs to, or is; None for plans, routes and prices for all.
        fields: For `changed`: the old and new value of each field that differs. Never a secret or its hash.
        values: For `created` and `deleted`: the entry's fields that are not at their defaults. Neither holds a hash.
        unit: What an `amount` of the entry counts, if it has one.
        note: Why `apply` left an entry as it is although the file says otherwise; "" if it did not.
    """

    kind: str
    id: str
    account_id: str | None
    action: ChangeAction
    fields: dict[str, tuple[Any, Any]] = {}
    values: dict[str, Any] = {}
    unit: str | None = None
    note: str = ""


class IssuedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A new key and its secret, which is shown now and never again; None for an imported one."""

    entry: Key
    secret: str | None

    def __repr__(self) -> str:
        return f"IssuedKey(id={self.entry.id!r}, account={self.entry.account!r})"


class Applied(NamedTuple):
    """The changes of `apply`, one per entry in the order of `KINDS`, and the keys that it issued."""

    changes: list[Change]
    issued: list[IssuedKey]


def change_of(entry: Entry, action: ChangeAction, fields: dict[str, tuple[Any, Any]] | None = None) -> Change:
    """Return the change of an entry, with the account that it belongs to."""
    account_id = entry.entry_id if entry.kind == "accounts" else getattr(entry, "account", None)
    return Change(
        kind=entry.kind,
        id=entry.entry_id,
        account_id=account_id,
        action=action,
        fields=fields or {},
        values=_stated(entry) if action in ("created", "deleted") else {},
        unit=getattr(entry, "unit", None),
    )


def differences(old: Entry, new: Entry) -> dict[str, tuple[Any, Any]]:
    """Return the old and new value of each field that differs, never a hash of a secret."""
    return {
        field: (getattr(old, field), getattr(new, field))
        for field in new.__struct_fields__
        if field not in ("sha256", "created_at") and getattr(old, field) != getattr(new, field)
    }


def _stated(entry: Entry) -> dict[str, Any]:
    return {
        field.name: getattr(entry, field.name)
        for field in msgspec.structs.fields(entry)
        if field.name != "sha256" and getattr(entry, field.name) != _default_of(field)
    }


def _default_of(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
