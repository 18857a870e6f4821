"""
A usage store that opens in the background, so that the first request need not wait for its engine.

Loading chDB takes about a second, and the gate does not need it. Every call waits for the engine, for a
bounded time; when it could not be opened, every call says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from tollkeeper.domain.events import Record
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.errors import TollkeeperError, Unavailable
from tollkeeper.ports import CostSum, UsageAnswer, UsageStore

if TYPE_CHECKING:
    import pyarrow as pa

OPEN_S_MAX: Final = 60.0


class OpeningUsageStore:
    """The `UsageStore` that *open_store* returns, once it did."""

    def __init__(self, open_store: Callable[[], UsageStore]) -> None:
        self._opened = threading.Event()
        self._found: UsageStore | None = None
        self._error: TollkeeperError | None = None
        self._thread = threading.Thread(target=self._open, args=(open_store,), name="tollkeeper-usage-open")
        self._thread.daemon = True
        self._thread.start()

    def _open(self, open_store: Callable[[], UsageStore]) -> None:
        try:
            self._found = open_store()
        except TollkeeperError as exc:
            self._error = exc
        except Exception as exc:
            self._error = Unavailable("The usage store cannot be opened: see the log.", cause=repr(exc))
            self._error.__cause__ = exc
        finally:
            self._opened.set()

    @property
    def _store(self) -> UsageStore:
        if not self._opened.wait(OPEN_S_MAX):
            raise Unavailable("The usage store is still opening.")
        if self._error is not None:
            raise Unavailable(str(self._error)) from self._error
        assert self._found is not None
        return self._found

    def append(self, records: pa.Table, token: str) -> None:
        self._store.append(records, token)

    def known_ids(self, keys: pa.Table) -> set[tuple[str, str]]:
        return self._store.known_ids(keys)

    def records(self, ids: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Record]:
        return self._store.records(ids)

    def owners(self, id_: str) -> list[str]:
        return self._store.owners(id_)

    def report(self, query: UsageQuery) -> UsageAnswer:
        return self._store.report(query)

    def charged(
        self,
        account_id: str,
        *,
        from_us: int,
        to_us: int,
        project_id: str | None,
        key_ids: Sequence[str] | None,
    ) -> CostSum:
        return self._store.charged(
            account_id, from_us=from_us, to_us=to_us, project_id=project_id, key_ids=key_ids
        )

    def unpriced(self, model: str | None, limit: int, after: Record | None = None) -> list[Record]:
        return self._store.unpriced(model, limit, after)

    def export(self, account_id: str | None, from_us: int, to_us: int) -> Iterator[pa.Table]:
        return self._store.export(account_id, from_us, to_us)

    def differences(self) -> list[str]:
        return self._store.differences()

    def rebuild(self) -> Mapping[str, int]:
        return self._store.rebuild()

    def ready(self) -> bool:
        return self._opened.is_set() and self._error is None and self._store.ready()

    def close(self) -> None:
        self._opened.wait(OPEN_S_MAX)
        if self._found is not None:
            self._found.close()
