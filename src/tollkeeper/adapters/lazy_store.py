"""
A usage store that opens in the background, so that the first request need not wait for its engine.

Loading chDB takes about a second, and the gate does not need it. Every call waits for the engine, until `WAIT_S_MAX`
after the beginning of its opening: calls that wait one behind another for a thread are refused by then too.
While it cannot be opened every call raises `Unavailable`, and a call `REOPEN_S` after a failure starts another try.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from tollkeeper.domain.event_pages import EventQuery
from tollkeeper.domain.events import Record
from tollkeeper.domain.matching import Conditions
from tollkeeper.domain.pairing import BatchMark, StorePast
from tollkeeper.domain.store_answers import EventRows
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import StoresMismatch, TollkeeperError, Unavailable, cause_of
from tollkeeper.event_expiry import ExpiringDay
from tollkeeper.ports import CostSum, Losses, ReportRows, UsageStore

if TYPE_CHECKING:
    import pyarrow as pa

OPEN_S_MAX: Final = 60.0
"""For what is done once, and waits for the engine whatever else waits."""
WAIT_S_MAX: Final = 25.0
"""For calls, whose callers give up after some 30 s."""
REOPEN_S: Final = 1.0
"""Seconds between a failure to open and the next try."""


class CanSnapshot(Protocol):
    """A usage store that can be backed up."""

    def snapshot(self) -> AbstractContextManager[Any]:
        """Yield the tables as they are now."""


def snapshot_of(store: UsageStore) -> AbstractContextManager[Any]:
    """Return the snapshot of a store that can make one; in tests it may be wrapped."""
    return cast("CanSnapshot", store).snapshot()


log = logging.getLogger("tollkeeper.usage_store")


class LazyUsageStore:
    """A `ports.UsageStore`: passes every call to the store that *open_store* returns, as soon as there is one."""

    def __init__(self, open_store: Callable[[], UsageStore]) -> None:
        self._open_store = open_store
        self._lock = threading.Lock()
        self._opened = threading.Event()
        self._found: UsageStore | None = None
        self._error: TollkeeperError | None = None
        self._failed_at_s = 0.0
        self._began_s = 0.0
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._began_s = time.monotonic()
        self._opened.clear()
        threading.Thread(target=self._open, name="tollkeeper-usage-open", daemon=True).start()

    def _open(self) -> None:
        try:
            self._found, self._error = self._open_store(), None
        except TollkeeperError as exc:
            self._error = exc
            log.error(
                "tollkeeper.usage_store.unavailable", extra={"reason": str(exc), "cause": cause_of(exc)}
            )
        except Exception as exc:
            log.exception("tollkeeper.usage_store.failed")
            self._error = Unavailable("The usage store cannot be opened: see the log.", cause=repr(exc))
            self._error.__cause__ = exc
        finally:
            self._failed_at_s = time.monotonic()
            self._opened.set()

    @property
    def _store(self) -> UsageStore:
        return self._within(WAIT_S_MAX)

    def _within(self, opening_s_max: float) -> UsageStore:
        """Return the store, or raise when it has been opening for so long."""
        if not self._opened.wait(max(0.0, self._began_s + opening_s_max - time.monotonic())):
            raise Unavailable("The usage store is still opening: try again shortly.")
        if self._found is not None:
            return self._found
        with self._lock:
            error = self._error
            if isinstance(error, StoresMismatch):
                # The next try would find the same.
                raise StoresMismatch(str(error)) from error
            if not self._closed and self._opened.is_set() and self._failed_at_s + REOPEN_S < time.monotonic():
                self._start()
        raise Unavailable(str(error or "The usage store is still opening.")) from error

    def check(self, timeout_s: float) -> None:
        """
        Wait for the engine, for at most so long.

        Raises:
            StoresMismatch: It was opened and does not belong to the ledger.
        """
        if self._opened.wait(timeout_s) and isinstance(self._error, StoresMismatch):
            raise StoresMismatch(str(self._error)) from self._error

    def wait(self) -> None:
        """Return when it is open, for which it waits longer than a call. Raises `Unavailable` as every call does."""
        self._within(OPEN_S_MAX)

    def past(self, installation_id: str) -> StorePast:
        return self._store.past(installation_id)

    def begin(self, mark: BatchMark) -> None:
        self._store.begin(mark)

    def losses(self) -> Losses:
        return self._store.losses()

    def append(self, records: pa.Table, token: str, *, begun_after: int | None = None) -> None:
        self._store.append(records, token, begun_after=begun_after)

    def known_ids(self, keys: pa.Table) -> pa.Table:
        return self._store.known_ids(keys)

    def record_columns(self, keys: pa.Table) -> pa.Table:
        return self._store.record_columns(keys)

    def records(self, ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Record]:
        return self._store.records(ids)

    def owners(self, id_: str) -> list[str]:
        return self._store.owners(id_)

    def report(self, query: UsageQuery, with_pending: Sequence[Record] = ()) -> ReportRows:
        return self._store.report(query, with_pending)

    def latest(self, query: EventQuery) -> EventRows:
        return self._store.latest(query)

    def revisions(self, keys: pa.Table) -> pa.Table:
        return self._store.revisions(keys)

    def charged(
        self,
        account_id: str,
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
        match: Conditions | None = None,
    ) -> CostSum:
        return self._store.charged(
            account_id, from_us=from_us, to_us=to_us, project_id=project_id, key_ids=key_ids, match=match
        )

    def charged_by(
        self,
        account_id: str,
        by: Sequence[str],
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
        match: Conditions | None = None,
        cuts_us: Sequence[int] = (),
    ) -> dict[tuple[str, ...], CostSum]:
        return self._store.charged_by(
            account_id,
            by,
            from_us=from_us,
            to_us=to_us,
            project_id=project_id,
            key_ids=key_ids,
            match=match,
            cuts_us=cuts_us,
        )

    def first_by(
        self,
        account_id: str,
        by: Sequence[str],
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
        match: Conditions | None = None,
    ) -> dict[tuple[str, ...], int]:
        return self._store.first_by(
            account_id, by, from_us=from_us, to_us=to_us, project_id=project_id, key_ids=key_ids, match=match
        )

    def unpriced(self, model: str | None, limit: int, after: Record | None = None) -> list[Record]:
        return self._store.unpriced(model, limit, after)

    def export(self, account_id: str | None, from_us: int, to_us: int) -> Iterator[pa.Table]:
        return self._store.export(account_id, from_us, to_us)

    def differences(self, records_min: int = 0) -> list[str]:
        return self._store.differences(records_min)

    def duplicates(self) -> list[str]:
        return self._store.duplicates()

    def rebuild(self, records_min: int = 0) -> Mapping[str, int]:
        return self._store.rebuild(records_min)

    def expiring(self, before_us: Mapping[str, int]) -> list[ExpiringDay]:
        return self._store.expiring(before_us)

    def expire(self, days: Sequence[ExpiringDay]) -> int:
        return self._store.expire(days)

    def reclaim(self) -> None:
        self._store.reclaim()

    def detail_from_us(self, account_id: str | None) -> int | None:
        return self._store.detail_from_us(account_id)

    def expired_ids(self, keys: pa.Table) -> pa.Table:
        return self._store.expired_ids(keys)

    def snapshot(self) -> AbstractContextManager[Any]:
        """Yield the tables as they are now: see `ClickHouseUsageStore.snapshot`."""
        return snapshot_of(self._store)

    def ready(self) -> bool:
        try:
            return self._opened.is_set() and self._store.ready()
        except Unavailable:
            return False

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._opened.wait(OPEN_S_MAX)
        if self._found is not None:
            self._found.close()
