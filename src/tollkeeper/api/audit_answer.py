"""The audit log as answers show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tollkeeper.api.entry_json import fields_json
from tollkeeper.audit import AuditLine
from tollkeeper.domain.instants import from_us, to_text


class AuditItem(msgspec.Struct, frozen=True, kw_only=True):
    """One change of one entry. Money is text of whole nanos, as in entries."""

    seq: int
    at: str
    actor: str
    """`operator`, `key:<id>` of a key that a customer used, or `session` of a customer's login."""
    account: str | None
    kind: str
    id: str
    action: str
    """`created`, `changed` or `deleted`."""
    fields: dict[str, tuple[Any, Any]]
    """Field → its old and new value; null for the one of an entry that was not there."""
    unit: str | None
    """What an `amount` of the entry counts, if it has one."""


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """Changes, the newest first; *next* is the cursor of the page after this one."""

    items: list[AuditItem]
    next: str | None


def audit_page(lines: Sequence[AuditLine], limit: int) -> AuditPage:
    """Return the answer of *lines*, of at most *limit*."""
    return AuditPage(
        items=[
            AuditItem(
                seq=line.seq,
                at=to_text(from_us(line.at_us)),
                actor=line.actor,
                account=line.account_id,
                kind=line.kind,
                id=line.id,
                action=line.action,
                fields=fields_json(line.fields, line.kind, line.unit),
                unit=line.unit,
            )
            for line in lines
        ],
        next=str(lines[-1].seq) if len(lines) == limit else None,
    )
