"""The gate of an installation of this process, for the middleware."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.http.asgi_types import Scope
from tollkeeper.http.credentials import credentials
from tollkeeper.http.doors import Admitted, Refusal, refusal_of, text_headers
from tollkeeper.http.embedded_gate import EmbeddedGate
from tollkeeper.http.executors import Threads
from tollkeeper.http.known_key import KnownKey
from tollkeeper.http.metered import Dialect, TextHeaders, dialect_of
from tollkeeper.http.profiles import reply_parts
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture

_THREADS: Final = 8
"""For what admission has to read first, such as a key that was not seen before: no loop waits for a store."""


class EmbeddedDoor(EmbeddedGate):
    """See `http.doors.Door`."""

    def __init__(self, installation: Installation, *, profile: str | None, durable: bool) -> None:
        super().__init__(installation.holds, Threads("admit", _THREADS))
        self._durable = durable
        self._now_us = installation.clock.now_us
        self._request_id = installation.gate.new_id
        self._known_key = KnownKey(installation.holds, installation.gate)
        self._dialect = dialect_of(installation, profile)

    async def admit(
        self, scope: Scope, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admitted | Refusal:
        dialect = self._dialect
        if dialect is None:
            secrets = credentials(scope["headers"], bare=True)
            found = await self._threads.attempt(self._known_key.admit, secrets, method, path, expected, tags)
            return refusal_of(found) if isinstance(found, Denial) else Admitted(found)
        request_id = "req_" + self._request_id(self._now_us()).replace("-", "")
        headers = text_headers(scope["headers"])
        secret = dialect.credential(headers)
        # Those that the caller states win over those of its headers.
        tags = {**dialect.tags(headers), **tags}
        found = await self._threads.attempt(self._holds.admit, secret, method, path, expected, tags)
        if not isinstance(found, Denial) and (objection := dialect.objection(found, secret)) is not None:
            self._holds.void(found)
            found = objection
        if isinstance(found, Denial):
            return await self._worded(dialect, secret, method, path, headers, found, request_id)
        return Admitted(found, await self._threads.attempt(dialect.headers, found, request_id))

    async def _worded(
        self,
        dialect: Dialect,
        secret: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        denial: Denial,
        request_id: str,
    ) -> Refusal:
        reply = await self._threads.run(dialect.refused, secret, method, path, headers, denial, request_id)
        return Refusal(*reply_parts(reply))

    async def refusal(self, scope: Scope, method: str, path: str, admission: Any, denial: Denial) -> Refusal:
        dialect = self._dialect
        if dialect is None:
            return refusal_of(denial)
        headers = text_headers(scope["headers"])
        request_id = "req_" + admission.id.replace("-", "")
        secret = dialect.credential(headers)
        return await self._worded(dialect, secret, method, path, headers, denial, request_id)

    async def headers_at_start(self, admitted: Admitted, outcome: Outcome) -> TextHeaders:
        worded = admitted.headers or ()
        if self._dialect is None:
            return worded
        return await self._threads.attempt(
            self._dialect.headers_at_start, worded, admitted.admission, outcome
        )

    async def settle(self, admission: Any, outcome: Outcome) -> None:
        future = CommitFuture(asyncio.get_running_loop()) if self._durable else None
        if admission.matched is None:
            self._holds.settle(admission, outcome, future)
        else:
            # With a model or tags that it states only now, it may count where nothing is in memory yet.
            await self._threads.attempt(self._holds.settle, admission, outcome, future)
        if future is not None:
            await future.committed()

    async def void(self, admission: Any) -> None:
        self._holds.void(admission)

    async def deny(self, admission: Any, denial: Denial, model: str) -> None:
        self._changes.deny(admission, denial, model)

    async def settle_later(self, admission: Any, outcome: Outcome, timeout_s: int | None) -> None:
        future = CommitFuture(asyncio.get_running_loop())
        self._changes.settle_at_expiry(admission, outcome, timeout_s, future)
        if self._durable:
            await future.committed()

    def settle_soon(self, admission: Any, outcome: Outcome) -> None:
        self._holds.settle(admission, outcome)

    def void_soon(self, admission: Any) -> None:
        self._holds.void(admission)

    def deny_soon(self, admission: Any, denial: Denial, model: str) -> None:
        self._changes.deny(admission, denial, model)

    def settle_later_soon(self, admission: Any, outcome: Outcome, timeout_s: int | None) -> None:
        self._changes.settle_at_expiry(admission, outcome, timeout_s, CommitFuture())
