"""
The audit log: every change of the catalog, in order, with who made it and the old and new values.

A line is written in the transaction of its change, so there is none without the other. It is never changed or
removed, and no secret or hash of one is in it. Money that moves without a change of the catalog (settlements,
adjustments, top-ups) is in the ledger and in usage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

OPERATOR_KEYS: Final = "operator_keys"
"""The kind of lines about operator keys, which are no entries of the catalog."""


class AuditLine(NamedTuple):
    """
    One change of one entry.

    Attributes:
        seq: Its place in the log; 0 until it is written.
        actor: `operator`, `key:<id>` of a customer's key, or `session` of a customer's login.
        account_id: The account that the entry belongs to, or is; None for plans, routes and prices for all.
        action: `created`, `changed` or `deleted`.
        fields: The old and new value of each field that differs; None for the one of an entry that was not there.
        unit: What an `amount` of the entry counts, if it has one.
    """

    seq: int
    at_us: int
    actor: str
    account_id: str | None
    kind: str
    id: str
    action: str
    fields: dict[str, tuple[Any, Any]]
    unit: str | None


class AuditLog(Protocol):
    """Where the lines are."""

    def log(self, lines: Sequence[AuditLine]) -> None:
        """Add *lines*, whose `seq` is given now."""

    def logged(
        self,
        *,
        account: str | None = None,
        kind: str | None = None,
        entry_id: str | None = None,
        before_seq: int | None = None,
        limit: int = 100,
    ) -> Sequence[AuditLine]:
        """Return up to *limit* lines, the newest first: those of an account, a kind, an id, before a place."""
