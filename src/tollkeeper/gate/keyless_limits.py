"""Rate limits that belong to no key, such as those on a vendor's own endpoints, over the counters of the gate."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.decisions import Amounts, Denial
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.gate.admission import CountedCall
from tollkeeper.gate.catalog_version import CatalogVersion
from tollkeeper.gate.denials import denial_of
from tollkeeper.gate.limit_statuses import status_of_limit
from tollkeeper.gate.registry import CounterRegistry
from tollkeeper.gate.windows import Window


class KeylessLimits:
    """Any thread may call."""

    def __init__(
        self,
        counters: CounterRegistry,
        version: CatalogVersion,
        lock: threading.Lock,
        now_us: Callable[[], int],
    ) -> None:
        self._counters = counters
        self._version = version
        self._lock = lock
        self._now_us = now_us

    def spend(
        self, account_id: str, name: str, limit: Limit, *, from_first: bool = False
    ) -> Denial | CountedCall:
        """
        Count one against a rate limit that belongs to no key; return why it is refused, or what was counted.

        Args:
            name: Names the counter within the account.
            from_first: A `fixed` window opens with its first request instead of at a multiple of its length.
        """
        now_us = self._now_us()
        algorithm = "from_first" if from_first and limit.algorithm == "fixed" else limit.algorithm
        counter = self._window(account_id, name, limit, now_us, algorithm)
        with self._lock:
            if not counter.fits(1, now_us):
                return denial_of(counter, [counter], Amounts(), now_us)
            return CountedCall(counter, counter.take(1, now_us))

    def give_back(self, counted: CountedCall) -> None:
        """Take back what `spend` or `Gate.pass_limits` counted, once: the call failed on our side."""
        with self._lock:
            counted.counter.give_back(counted.mark, 1)

    def status(self, account_id: str, name: str, limit: Limit) -> LimitStatus:
        """Return where a limit stands that `spend` counts (without *from_first*)."""
        now_us = self._now_us()
        counter = self._window(account_id, name, limit, now_us, limit.algorithm)
        with self._lock:
            return status_of_limit(limit, counter, now_us)

    def _window(self, account_id: str, name: str, limit: Limit, now_us: int, algorithm: str) -> Window:
        counter_id = f"limit:{name}:{algorithm}:{limit.window}"
        return self._counters.window(account_id, counter_id, limit, now_us, self._version.current, algorithm)
