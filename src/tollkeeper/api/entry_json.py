"""
Catalog entries as JSON: the fields of `domain.catalog`, with money as text and instants in UTC.

Amounts of money are text in answers, since JavaScript loses integers above 2**53; requests may state them
as text or as integers, so what was read can be sent back (`domain.money_fields` has the rule).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tollkeeper.catalog.money_amounts import money_told, plain_money
from tollkeeper.catalog.quantity_amounts import AMOUNTS, in_micros, shown
from tollkeeper.domain.catalog import KINDS, Entry, Grant, Key, Webhook
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.money_fields import floats_in
from tollkeeper.domain.pools import GrantBalance
from tollkeeper.domain.quantities import quantity_of_unit
from tollkeeper.domain.rates import fraction_objection
from tollkeeper.errors import BadParameter, Malformed

if TYPE_CHECKING:
    from tollkeeper.alerts.webhooks import Webhooks
    from tollkeeper.catalog.changes import Applied, Change, IssuedKey
    from tollkeeper.catalog.manage import Manage

ACCOUNT_SCOPED: Final = frozenset({"projects", "subscriptions", "keys", "budgets", "grants", "webhooks"})
"""Kinds whose entries belong to an account."""

KEY_READ_ONLY: Final = (
    "prefix",
    "updated_at",
    "last_used_at",
    "revoked_at",
    "replaced_by",
)
"""What an answer says of a key beside its entry; ignored where it exists, so that an answer can be sent back."""

GRANT_READ_ONLY: Final = ("remaining_nanos", "revoked_at")
READ_ONLY: Final = {"keys": KEY_READ_ONLY, "grants": GRANT_READ_ONLY}
"""For each kind: what an answer says beside the entry."""

_MONEY_ENDINGS: Final = ("_nanos", "_nanos_per_million")
_UNIT_BY_PLACE: Final = {"budgets": "nanos", "limits": "requests"}
"""What `amount` counts where `unit` is left out: the defaults of `Budget`, `PlanBudget` and `Limit`."""


def entry_json(entry: Entry) -> dict[str, Any]:
    """Return *entry* as answers show it. A key never shows its hash."""
    plain = msgspec.to_builtins(entry, builtin_types=(datetime,))
    if isinstance(entry, Key):
        # `key_json` has when it was made.
        del plain["sha256"], plain["created_at"]
    return _converted(plain, entry.kind, _shown)


def key_json(stored: StoredKey, now_us: int) -> dict[str, Any]:
    """Return a key in the state in force, with what is known beside its entry."""
    shown = entry_json(msgspec.structs.replace(stored.entry, state=stored.state_at(now_us)))
    shown["prefix"] = stored.shown_prefix
    for name in ("created_at", "updated_at", "last_used_at", "revoked_at"):
        at_us = getattr(stored, f"{name}_us")
        shown[name] = None if at_us is None else to_text(from_us(at_us))
    shown["replaced_by"] = stored.replaced_by
    return shown


def grant_json(entry: Grant, balance: GrantBalance | None) -> dict[str, Any]:
    """Return a grant with what is left of it; *balance* is None until it is on its account's balance."""
    shown = entry_json(entry)
    shown["remaining_nanos"] = None if balance is None else str(balance.remaining_nanos)
    revoked_at = None if balance is None else balance.revoked_at
    shown["revoked_at"] = None if revoked_at is None else to_text(revoked_at)
    return shown


def change_json(change: Change, entry: Entry | None = None) -> dict[str, Any]:
    """
    Return what a call did.

    Args:
        entry: The entry after it: tells the unit of a changed `amount`, and its money as it was understood.
    """
    fields = fields_json(change.fields, change.kind, getattr(entry, "unit", None))
    told, warnings = ({}, []) if entry is None else money_told(entry)
    return {
        "kind": change.kind,
        "id": change.id,
        "account": change.account_id,
        "action": change.action,
        "fields": fields,
        **({"money": told} if told else {}),
        **({"warnings": warnings} if warnings else {}),
        **({"note": change.note} if change.note else {}),
    }


def fields_json(
    fields: Mapping[str, tuple[Any, Any]], kind: str, unit: str | None
) -> dict[str, tuple[Any, Any]]:
    """Return the old and new values of fields of an entry of *kind*, whose `amount` counts *unit*."""
    return {
        name: tuple(
            _converted({name: value, "unit": unit}, kind, _shown)[name]
            for value in msgspec.to_builtins(values, builtin_types=(datetime,))
        )
        for name, values in fields.items()
    }


def issued_key_json(manage: Manage, issued: IssuedKey, now_us: int) -> dict[str, Any]:
    """Return a new key and its secret; None for one whose hash was brought."""
    stored = manage.stored_key(issued.entry.account, issued.entry.id)
    return {"entry": key_json(stored, now_us), "secret": issued.secret}


def applied_json(
    applied: Applied,
    entries: Sequence[Entry],
    *,
    dry_run: bool,
    manage: Manage,
    webhooks: Webhooks,
    now_us: int,
) -> dict[str, Any]:
    """Return the answer to `apply`; *entries* are those of the file, in step with the changes."""
    return {
        "dry_run": dry_run,
        # Both are in the order of the kinds, then of the file.
        "changes": [
            change_json(change, entry) for change, entry in zip(applied.changes, entries, strict=True)
        ],
        "issued": [issued_key_json(manage, issued, now_us) for issued in applied.issued]
        + ([] if dry_run else _issued_webhooks(webhooks, applied.changes, entries)),
    }


def plain_entry(kind: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the values of a request's entry, money as integers, as `catalog.entry_parsing` takes them.

    Raises:
        BadParameter: A field holds no money that can be taken, or a number that is not whole: no entry has one.
        Malformed: It is nested more deeply than can be read.
    """
    try:
        stated = {name: value for name, value in raw.items() if name not in READ_ONLY.get(kind, ())}
        plain: dict[str, Any] = plain_money(in_micros(stated), KINDS[kind])
        where = next(floats_in(plain, ""), None)
        if where is not None:
            raise BadParameter(f"{where}: {fraction_objection(where)}", field=where)
    except RecursionError:
        raise Malformed("The body is nested too deeply: an entry has no more than three levels.") from None
    return plain


def check_settable(kind: str, raw: Mapping[str, Any]) -> None:
    """
    Check the fields of a request for a new entry.

    Raises:
        BadParameter: It states what only answers say: ignored, the entry would not be what was asked.
    """
    for name in READ_ONLY.get(kind, ()):
        if raw.get(name) is not None:
            raise BadParameter(f"{name}: a new entry cannot state it: leave it out", field=name)


def _issued_webhooks(
    webhooks: Webhooks, changes: Sequence[Change], entries: Sequence[Entry]
) -> list[dict[str, Any]]:
    """Return those of *entries* that are webhooks and were created, with their secrets; *changes* are in step."""
    return [
        {"entry": entry_json(entry), "secret": webhooks.secret(entry.account, entry.id)}
        for change, entry in zip(changes, entries, strict=True)
        if isinstance(entry, Webhook) and change.action == "created"
    ]


def _converted(holder: Mapping[str, Any], place: str, convert: Callable[[Any], Any]) -> dict[str, Any]:
    unit = holder.get("unit", _UNIT_BY_PLACE.get(place))
    done: dict[str, Any] = {}
    for name, value in holder.items():
        if name == "metadata":
            done[name] = value
        elif name == "rates" and isinstance(value, dict):
            # Nanos per million units, or money per units, which is text here and there.
            done[name] = {unit: convert(rate) for unit, rate in value.items()}
        elif name.endswith(_MONEY_ENDINGS) or (name in ("amount", "burst") and unit == "nanos"):
            done[name] = convert(value)
        elif name in AMOUNTS and isinstance(unit, str) and quantity_of_unit(unit) is not None:
            done[name] = shown(value) if convert is _shown else value
        elif isinstance(value, list):
            done[name] = [
                _converted(part, name, convert) if isinstance(part, dict) else part for part in value
            ]
        elif isinstance(value, datetime):
            done[name] = to_text(value if value.tzinfo else value.replace(tzinfo=UTC))
        else:
            done[name] = value
    return done


def _shown(amount: Any) -> Any:
    return None if amount is None else str(amount)
