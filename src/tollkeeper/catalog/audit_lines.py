"""The changes of a call as lines of the audit log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from tollkeeper.audit import AuditLine
from tollkeeper.catalog.changes import Change
from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.instants import to_text

OPERATOR: Final = "operator"
SESSION: Final = "session"


def audit_lines(changes: Sequence[Change], by: Customer | None, now_us: int) -> list[AuditLine]:
    """Return a line for each of *changes* that changed something; *by* is None for the operator."""
    return [
        AuditLine(
            0,
            now_us,
            _actor(by),
            change.account_id,
            change.kind,
            change.id,
            change.action,
            _plain(_fields(change)),
            change.unit,
        )
        for change in changes
        if change.action != "unchanged"
    ]


def _actor(by: Customer | None) -> str:
    if by is None:
        return OPERATOR
    return SESSION if by.key_id is None else f"key:{by.key_id}"


def _fields(change: Change) -> dict[str, tuple[Any, Any]]:
    if change.action == "created":
        return {name: (None, value) for name, value in change.values.items()}
    if change.action == "deleted":
        return {name: (value, None) for name, value in change.values.items()} | change.fields
    return change.fields


def _plain(fields: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Return *fields* as JSON has them, with instants as every answer shows them."""
    plain = msgspec.to_builtins(fields, builtin_types=(datetime,))
    return {name: (_told(old), _told(new)) for name, (old, new) in plain.items()}


def _told(value: Any) -> Any:
    return to_text(value) if isinstance(value, datetime) else value
