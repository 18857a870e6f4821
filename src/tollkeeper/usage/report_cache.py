"""
Earlier reports: those that still hold, and those that lack only the records committed since.

A report is a pure function of its query and of the events committed so far. So it holds until the next commit that
has events of its account; the commit thread invalidates it before any caller is answered. From then on it is the
report as of an outbox row: with the records of later rows it is up to date again (`domain/increments.py`).
One process must have both the commits and this cache; where several nodes share the stores it must stay off.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec

from tollkeeper.domain.usage import UsageQuery, UsageReport

BYTES_MAX: Final = 32 << 20
"""Bytes of all reports and their queries together, as encoded."""
ANSWER_BYTES_MAX: Final = 256 << 10
"""A longer report is not kept: it would evict hundreds of others."""

_encode: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_decode: Final = msgspec.msgpack.Decoder(UsageReport).decode


class CachedReport(NamedTuple):
    """
    A report, of which the caller may change the rows.

    Attributes:
        seq: It has all of its account's outbox rows up to this one, and none that came later.
        holds: Whether none came later.
    """

    report: UsageReport
    seq: int
    holds: bool


class _Entry(NamedTuple):
    account_id: str | None
    value: bytes
    seq: int


class ReportCache:
    """The latest reports; the least recently used is evicted first. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cache: OrderedDict[bytes, _Entry] = OrderedDict()
        self._holding: dict[str | None, set[bytes]] = {}
        self._under_way: dict[str | None, set[object]] = {}
        self.bytes = 0

    def find(self, query: UsageQuery) -> CachedReport | None:
        """Return the latest report of *query*, with the `as_of_us` of its computation, or None."""
        key = _encode(query)
        with self._lock:
            found = self._cache.get(key)
            if found is None:
                return None
            self._cache.move_to_end(key)
            holds = key in self._holding.get(found.account_id, ())
        # Decoded for each caller, so that none can change what the next one gets.
        return CachedReport(_decode(found.value), found.seq, holds)

    def begin(self, query: UsageQuery) -> object:
        """Begin to compute a report; return a token, with which `keep` or `abandon` must follow."""
        token = object()
        with self._lock:
            self._under_way.setdefault(query.account_id, set()).add(token)
        return token

    def keep(self, token: object, query: UsageQuery, report: UsageReport, seq: int) -> None:
        """
        Remember a complete report, unless events of its account were committed since *token* was made.

        Args:
            seq: An outbox row that had been committed when *token* was made, and after which the report has none.
        """
        try:
            key, value = _encode(query), _encode(report)
        except OverflowError:
            # A sum beyond 64 bits.
            self.abandon(token, query)
            return
        with self._lock:
            if not self._end(token, query) or len(value) > ANSWER_BYTES_MAX:
                return
            self._drop(key)
            self._cache[key] = _Entry(query.account_id, value, seq)
            self._holding.setdefault(query.account_id, set()).add(key)
            self.bytes += len(key) + len(value)
            while self.bytes > BYTES_MAX:
                self._drop(next(iter(self._cache)))

    def abandon(self, token: object, query: UsageQuery) -> None:
        """End *token*: the report was not computed, or does not hold."""
        with self._lock:
            self._end(token, query)

    def invalidate(self, accounts: Iterable[str], seq: int) -> None:
        """
        Learn that *accounts* have new events, which their reports, and those of all accounts together, lack.

        Args:
            seq: The last outbox row before those events.
        """
        with self._lock:
            for account_id in (None, *accounts):
                self._under_way.pop(account_id, None)
                for key in self._holding.pop(account_id, ()):
                    entry = self._cache[key]
                    # It held until now.
                    self._cache[key] = entry._replace(seq=max(entry.seq, seq))

    def invalidate_all(self) -> None:
        """Evict every report, and keep none that is being computed: their tables were rebuilt."""
        with self._lock:
            self._under_way.clear()
            for key in tuple(self._cache):
                self._drop(key)

    def _end(self, token: object, query: UsageQuery) -> bool:
        tokens = self._under_way.get(query.account_id)
        if tokens is None or token not in tokens:
            return False
        tokens.remove(token)
        if not tokens:
            del self._under_way[query.account_id]
        return True

    def _drop(self, key: bytes) -> None:
        found = self._cache.pop(key, None)
        if found is None:
            return
        self.bytes -= len(key) + len(found.value)
        keys = self._holding.get(found.account_id)
        if keys is not None:
            keys.discard(key)
            if not keys:
                del self._holding[found.account_id]
