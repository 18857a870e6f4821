"""Expiry: single events are removed when the time is over for which their account keeps them; their sums stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


class ExpiringDay(NamedTuple):
    """The records of one account and UTC day, which begins at *day_us*."""

    account_id: str
    day_us: int
    records: int


class EventExpiry(Protocol):
    """
    What a usage store does when events expire. Part of `ports.UsageStore`; raises `Unavailable` as that does.

    Reports and sums of whole hours stay exact, and ids stay known. Questions that need the records themselves say so:
    `ReportRows.lacks_detail`, `DetailExpired`.
    """

    def expiring(self, before_us: Mapping[str, int]) -> list[ExpiringDay]:
        """Return the days that have records of an account before its instant of *before_us*: whole days only."""

    def expire(self, days: Sequence[ExpiringDay]) -> int:
        """
        Remove the records of *days*, and keep what verify, rebuild and sums need of them; return how many.

        Called with nothing on its way and no sum under way. Cut short at any point, by the end of the process too, it
        is completed, or taken back, before anything else is done; a repeat is safe.
        """

    def reclaim(self) -> None:
        """Free the room of what was removed. Takes long; the rest of the store goes on."""

    def detail_from_us(self, account_id: str | None) -> int | None:
        """
        Return the instant from which on all records of an account (None: of all accounts) are there, the later ones.

        None: no record was removed yet.
        """

    def expired_ids(self, keys: pa.Table) -> pa.Table:
        """
        Return those of the `(account_id, id)` pairs whose record was removed, each once.

        The id of a correction of such a record is one of them.
        """
