"""
Usage answers that still hold: nothing of their account was committed since they were computed.

A report is a pure function of its query and of the events committed so far. So an answer holds until the next
commit that has events of its account, which forgets it before anybody is told of that commit. One process has
both the commits and this memory; where several nodes share the stores it must stay off.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

import msgspec

from tollkeeper.domain.usage import UsageQuery, UsageReport

BYTES_MAX: Final = 32 << 20
"""Bytes of all answers and their queries together, as encoded."""
ANSWER_BYTES_MAX: Final = 256 << 10
"""A longer answer is not kept: it would push out hundreds of others."""

_encode: Final = msgspec.msgpack.Encoder(order="deterministic").encode
_decode: Final = msgspec.msgpack.Decoder(UsageReport).decode


class Answers:
    """The latest answers, least recently used first out. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: OrderedDict[bytes, tuple[str | None, bytes]] = OrderedDict()
        self._keys_by_account: dict[str | None, set[bytes]] = {}
        self._under_way: dict[str | None, set[object]] = {}
        self.bytes = 0

    def find(self, query: UsageQuery) -> UsageReport | None:
        """Return the answer to *query*, with the `as_of_us` that it was computed at, or None."""
        key = _encode(query)
        with self._lock:
            found = self._answers.get(key)
            if found is None:
                return None
            self._answers.move_to_end(key)
        # Decoded for each caller, so that none can change what the next one gets.
        return _decode(found[1])

    def begin(self, query: UsageQuery) -> object:
        """Say that an answer to *query* is about to be computed; `keep` or `give_up` what this returns."""
        token = object()
        with self._lock:
            self._under_way.setdefault(query.account_id, set()).add(token)
        return token

    def keep(self, token: object, query: UsageQuery, report: UsageReport) -> None:
        """Remember a complete answer, unless something of its account was committed since *token* was made."""
        try:
            key, value = _encode(query), _encode(report)
        except OverflowError:
            # A sum beyond 64 bits.
            self.give_up(token, query)
            return
        with self._lock:
            if not self._end(token, query) or len(value) > ANSWER_BYTES_MAX:
                return
            self._drop(key)
            self._answers[key] = (query.account_id, value)
            self._keys_by_account.setdefault(query.account_id, set()).add(key)
            self.bytes += len(key) + len(value)
            while self.bytes > BYTES_MAX:
                self._drop(next(iter(self._answers)))

    def give_up(self, token: object, query: UsageQuery) -> None:
        """Say that the answer was not computed, or does not hold."""
        with self._lock:
            self._end(token, query)

    def forget(self, accounts: Iterable[str]) -> None:
        """Forget what is known of *accounts*, and of all accounts together: they have new events."""
        with self._lock:
            for account_id in (None, *accounts):
                self._under_way.pop(account_id, None)
                for key in tuple(self._keys_by_account.get(account_id, ())):
                    self._drop(key)

    def forget_all(self) -> None:
        """Forget every answer, and keep none that is being computed: what they were computed from was rebuilt."""
        with self._lock:
            self._under_way.clear()
            for key in tuple(self._answers):
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
        found = self._answers.pop(key, None)
        if found is None:
            return
        account_id, value = found
        self.bytes -= len(key) + len(value)
        keys = self._keys_by_account[account_id]
        keys.remove(key)
        if not keys:
            del self._keys_by_account[account_id]
