"""What a request under way asks of an installation of this process: see `metering.RequestGate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.extensions import Extension
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.http.executors import Threads
from tollkeeper.ledger.holds import Holds


class EmbeddedGate:
    """
    For the middlewares of both interfaces.

    Args:
        threads: For what an event loop has to wait for.
    """

    def __init__(self, holds: Holds, threads: Threads) -> None:
        self._holds = holds
        self._changes = holds.changes
        self._threads = threads

    async def expect(self, admission: Any, expected: Usage, tags: Mapping[str, str]) -> Denial | None:
        return await self._threads.attempt(self._changes.expect, admission, expected, tags)

    def expect_sync(self, admission: Any, expected: Usage, tags: Mapping[str, str]) -> Denial | None:
        return self._changes.expect(admission, expected, tags)

    async def extend(self, admission: Any, more: Usage) -> Extension:
        return await self._threads.attempt(self._changes.extend, admission, more, admission.expected)

    def extend_sync(self, admission: Any, more: Usage) -> Extension:
        return self._changes.extend(admission, more, admission.expected)

    def settle_late(self, admission: Any, outcome: Outcome) -> None:
        if admission.durable:
            self._changes.settle_open(admission, outcome)
        else:
            # Its hold could not be stored when the response ended.
            self._holds.settle(admission, outcome)

    def void_late(self, admission: Any) -> None:
        if admission.durable:
            self._changes.void_open(admission)
        else:
            self._holds.void(admission)
