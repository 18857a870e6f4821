"""
What the services need of the world: one small Protocol per need, written so that an adapter can be made
from it alone. `tollkeeper.testing` holds a contract suite for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tollkeeper.domain.events import Record
from tollkeeper.domain.usage import UsageQuery

if TYPE_CHECKING:
    import pyarrow as pa


class UsageAnswer(NamedTuple):
    """What a usage store knows of a query: see `UsageReport` for the members."""

    rows: list[dict[str, Any]]
    totals: dict[str, Any]
    row_count: int


class CostSum(NamedTuple):
    """What one scope was charged in one span, as the events say."""

    events: int
    requests: int
    tokens: int
    cost_nanos: int
    credits: int


class UsageStore(Protocol):
    """
    The projection that answers usage questions: every record, and rollups of them.

    One thread writes (the relay); any thread may read. Every method raises `Unavailable` when the engine
    fails; nothing else of the engine's errors gets out.
    """

    def append(self, records: pa.Table, token: str) -> None:
        """
        Insert *records* (columns of `columns.SCHEMA`) and their rollups, all or nothing.

        Called by the relay with the same *records* and *token* until it returned once; a repeat after a
        lost answer, however late, changes nothing.
        """

    def known_ids(self, keys: pa.Table) -> set[tuple[str, str]]:
        """
        Return which of the `(account_id, id)` pairs in *keys* (two string columns of these names) are the
        id of a stored event or of an amendment.

        Called by the committer for each batch whose ids are the caller's.
        """

    def records(self, ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Record]:
        """
        Return the current record (highest revision, `sign` 1) of each `(account_id, id)` that has one.

        A voided event has a current record with `sign` -1: its last. Unknown ids are absent.
        """

    def report(self, query: UsageQuery) -> UsageAnswer:
        """Answer *query* from rollups where they can, from records where the question is finer."""

    def charged(
        self, account_id: str, *, from_us: int, to_us: int, project_id: str | None, key_ids: Sequence[str] | None
    ) -> CostSum:
        """
        Sum what events of one account in `[from_us, to_us)` were charged, from records, not rollups.

        Called when a budget is created (to start its counter) and by verify. None for *project_id* or
        *key_ids* means any.
        """

    def unpriced(self, model: str | None, limit: int) -> list[Record]:
        """Return up to *limit* current records whose `cost_state` is `unpriced`, oldest first."""

    def export(self, account_id: str | None, from_us: int, to_us: int) -> Iterator[pa.Table]:
        """Yield all records (every revision) of a span, in pieces, for archives and tests."""

    def differences(self) -> list[str]:
        """Recompute rollups and the id index from the records; return a line per difference."""

    def rebuild(self) -> Mapping[str, int]:
        """Make rollups and the id index anew from the records; return rows written per table."""

    def ready(self) -> bool:
        """Return whether the engine answers now."""

    def close(self) -> None:
        """Release the engine. Further calls are an error of the caller."""


Ids = Iterable[tuple[str, str]]
