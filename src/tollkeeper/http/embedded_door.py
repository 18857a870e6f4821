"""The gate of an installation of this process, for the middleware."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.keyless import Caller
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.gate.gate import Admission
from tollkeeper.http.asgi_types import Scope
from tollkeeper.http.credentials import SECRET_CHARS_MAX, TOKEN_CHARS_MAX, credentials
from tollkeeper.http.doors import Admitted, Refusal, check_key_parameter, refusal_of, text_headers
from tollkeeper.http.embedded_gate import EmbeddedGate
from tollkeeper.http.executors import Threads
from tollkeeper.http.known_key import KnownKey, may_be_session
from tollkeeper.http.metered import Dialect, TextHeaders, admits_sessions, dialect_of
from tollkeeper.http.profiles import reply_parts
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.profiles.base import NATIVE

_THREADS: Final = 8
"""For what admission has to read first, such as a key that was not seen before: no loop waits for a store."""


class EmbeddedDoor(EmbeddedGate):
    """See `http.doors.Door`."""

    def __init__(
        self,
        installation: Installation,
        *,
        profile: str | None,
        durable: bool,
        sessions: bool | None = None,
        key_parameter: str = "",
    ) -> None:
        super().__init__(installation.holds, Threads("admit", _THREADS))
        self._key_parameter = key_parameter
        self._durable = durable
        self._now_us = installation.clock.now_us
        self._request_id = installation.gate.new_id
        self._known_key = KnownKey(installation.holds, installation.gate, installation.account_sessions)
        self._dialect = dialect_of(installation, profile)
        self._sessions = admits_sessions(self._dialect, sessions)
        check_key_parameter(key_parameter, "" if self._dialect is None else self._dialect.profile.name)

    async def admit(
        self, scope: Scope, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admitted | Refusal:
        dialect = self._dialect
        if dialect is None:
            longest = TOKEN_CHARS_MAX if self._sessions else SECRET_CHARS_MAX
            secrets = credentials(
                scope["headers"],
                bare=True,
                chars_max=longest,
                query=scope.get("query_string", b""),
                parameter=self._key_parameter,
            )
            if self._sessions and any(map(may_be_session, secrets)):
                of_secrets = await self._threads.run(self._known_key.caller, secrets, NATIVE)
                found = await self._admit(of_secrets, method, path, expected, tags)
            else:
                found = await self._threads.attempt(
                    self._known_key.admit, secrets, method, path, expected, tags
                )
            return refusal_of(found) if isinstance(found, Denial) else Admitted(found)
        request_id = "req_" + self._request_id(self._now_us()).replace("-", "")
        headers = text_headers(scope["headers"])
        secret = dialect.credential(headers)
        # Those that the caller states win over those of its headers.
        tags = {**dialect.tags(headers), **tags}
        caller = await self._caller(dialect, headers)
        found = await self._admit(caller, method, path, expected, tags)
        who = secret if isinstance(caller, Denial) else caller
        if not isinstance(found, Denial) and (objection := dialect.objection(found, who)) is not None:
            self._holds.void(found)
            found = objection
        if isinstance(found, Denial):
            reply = await self._threads.run(dialect.refused, who, method, path, headers, found, request_id)
            return Refusal(*reply_parts(reply))
        return Admitted(found, await self._threads.attempt(dialect.headers, found, request_id))

    async def refusal(self, scope: Scope, method: str, path: str, admission: Any, denial: Denial) -> Refusal:
        dialect = self._dialect
        if dialect is None:
            return refusal_of(denial)
        headers = text_headers(scope["headers"])
        request_id = "req_" + admission.id.replace("-", "")
        caller = await self._caller(dialect, headers)
        who = dialect.credential(headers) if isinstance(caller, Denial) else caller
        reply = await self._threads.run(dialect.refused, who, method, path, headers, denial, request_id)
        return Refusal(*reply_parts(reply))

    async def _caller(self, dialect: Dialect, headers: Mapping[str, str]) -> Caller | Denial:
        secret = dialect.credential(headers)
        if self._sessions and may_be_session(secret):
            return await self._threads.run(self._known_key.caller, [secret], dialect.profile.name)
        return secret

    async def _admit(
        self, caller: Caller | Denial, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admission | Denial:
        if isinstance(caller, Denial):
            self._holds.record_denial("", method, path, caller)
            return caller
        return await self._threads.attempt(self._holds.admit, caller, method, path, expected, tags)

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
