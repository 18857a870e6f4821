"""
Opens the usage store beside the start, and compares it with the ledger before its first use.

Which of the two lacks something is the business of `ledger.pairing`; this says when they are compared.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final
from urllib.parse import urlparse

from tollkeeper.adapters.batch_marks import FileMarks
from tollkeeper.adapters.lazy_store import LazyUsageStore
from tollkeeper.errors import StoresMismatch, Unavailable
from tollkeeper.ledger.pairing import Pairing
from tollkeeper.ports import Ledger, UsageStore
from tollkeeper.settings import Settings

NEW_LEDGER_WAITS_S: Final = 10.0
"""How long the start with a new ledger waits for a usage store that was used before, or is on a server."""

log = logging.getLogger("tollkeeper")


def open_in_background(settings: Settings, pairing: Pairing) -> LazyUsageStore:
    """
    Return the usage store of *settings*, which opens in the background and is compared before its first use.

    Raises:
        StoresMismatch: The files of an embedded store already say that it is another ledger's.
    """

    def open_() -> UsageStore:
        store = _open(settings)
        try:
            pairing.check(store)
        except BaseException:
            store.close()
            raise
        return store

    if others := _installations_at(settings.usage):
        # The marks are files, so a wrong directory is refused before its engine has started.
        pairing.refuse_foreign(others)
    return LazyUsageStore(open_)


def check_at_start(store: UsageStore, ledger: Ledger, pairing: Pairing, usage_url: str) -> None:
    """
    Compare the two now where that takes a moment only; else the usage store does so when it is open.

    Raises:
        StoresMismatch: They do not belong together.
    """
    if isinstance(store, LazyUsageStore):
        # A ledger that never relayed anything may be beside a store with a past. Where there is none yet, the
        # first start waits for nothing.
        if not ledger.outbox.past().last.batch and _may_be_used(usage_url):
            store.check(NEW_LEDGER_WAITS_S)
        return
    try:
        pairing.check(store)
    except StoresMismatch:
        raise
    except Unavailable as exc:
        # The relay tries again before it delivers anything.
        log.warning("tollkeeper.pairing.unavailable", extra={"reason": str(exc)})


def must_compare(store: UsageStore, pairing: Pairing) -> bool:
    """Return whether each batch must be compared with *store*, once that is open. Raises as `Pairing.check`."""
    if isinstance(store, LazyUsageStore):
        store.wait()
    return pairing.must_compare(store)


def _open(settings: Settings) -> UsageStore:
    from tollkeeper.adapters.clickhouse.readers import QueryLimits
    from tollkeeper.adapters.clickhouse.store import ClickHouseUsageStore

    return ClickHouseUsageStore.open(
        settings.usage,
        memory_bytes_max=settings.usage_memory_bytes_max or None,
        limits=QueryLimits(
            settings.usage_query_s_max,
            settings.usage_query_memory_bytes_max,
            settings.usage_query_groups_max,
        ),
    )


def _installations_at(usage_url: str) -> list[str]:
    """Return the installations that an embedded usage store has records of, without loading its engine."""
    directory = _directory(usage_url)
    if directory is None or not directory.exists():
        return []
    try:
        return sorted(FileMarks(directory).all())
    except OSError as exc:
        # Where that cannot be read, no usage store can be opened, which stops no request.
        log.warning("tollkeeper.pairing.unavailable", extra={"reason": str(exc)})
        return []


def _directory(usage_url: str) -> Path | None:
    return Path(urlparse(usage_url).path) if usage_url.startswith("chdb:") else None


def _may_be_used(usage_url: str) -> bool:
    """Return whether a usage store may have records already: not where there is no directory yet."""
    directory = _directory(usage_url)
    return directory is None or (directory.is_dir() and any(directory.iterdir()))
