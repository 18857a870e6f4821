"""The gate of an installation of this process, for the WSGI middleware: see `http.doors.SyncDoor`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.keyless import Caller
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.gate.gate import Admission
from tollkeeper.http.asgi_types import Scope
from tollkeeper.http.credentials import SECRET_CHARS_MAX, TOKEN_CHARS_MAX, credentials
from tollkeeper.http.doors import Admitted, Refusal, check_key_parameter, refusal_of, text_headers
from tollkeeper.http.embedded_gate import EmbeddedGate
from tollkeeper.http.executors import Threads
from tollkeeper.http.known_key import KnownKey
from tollkeeper.http.metered import TextHeaders, admits_sessions, dialect_of
from tollkeeper.http.profiles import reply_parts
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.profiles.base import NATIVE


class EmbeddedSyncDoor(EmbeddedGate):
    """Any thread may call."""

    def __init__(
        self,
        installation: Installation,
        *,
        profile: str | None,
        durable: bool,
        sessions: bool | None,
        key_parameter: str,
    ) -> None:
        super().__init__(installation.holds, Threads("wsgi", 1))
        self._durable = durable
        self._known_key = KnownKey(installation.holds, installation.gate, installation.account_sessions)
        self._now_us = installation.clock.now_us
        self._request_id = installation.gate.new_id
        self._dialect = dialect_of(installation, profile)
        self._sessions = admits_sessions(self._dialect, sessions)
        self._key_parameter = key_parameter
        check_key_parameter(key_parameter, "" if self._dialect is None else self._dialect.profile.name)

    def admit(
        self, scope: Scope, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admitted | Refusal:
        dialect = self._dialect
        if dialect is None:
            secrets = credentials(
                scope["headers"],
                bare=True,
                chars_max=TOKEN_CHARS_MAX if self._sessions else SECRET_CHARS_MAX,
                query=scope["query_string"],
                parameter=self._key_parameter,
            )
            found = self._admit(self._caller(secrets, NATIVE), method, path, expected, tags)
            return refusal_of(found) if isinstance(found, Denial) else Admitted(found)
        request_id = "req_" + self._request_id(self._now_us()).replace("-", "")
        headers = text_headers(scope["headers"])
        secret = dialect.credential(headers)
        # Those that the caller states win over those of its headers.
        tags = {**dialect.tags(headers), **tags}
        caller = self._caller([secret], dialect.profile.name)
        found = self._admit(caller, method, path, expected, tags)
        who = secret if isinstance(caller, Denial) else caller
        if not isinstance(found, Denial) and (objection := dialect.objection(found, who)) is not None:
            self._holds.void(found)
            found = objection
        if isinstance(found, Denial):
            return Refusal(*reply_parts(dialect.refused(who, method, path, headers, found, request_id)))
        return Admitted(found, dialect.headers(found, request_id))

    def refusal(self, scope: Scope, method: str, path: str, admission: Any, denial: Denial) -> Refusal:
        dialect = self._dialect
        if dialect is None:
            return refusal_of(denial)
        headers = text_headers(scope["headers"])
        request_id = "req_" + admission.id.replace("-", "")
        caller = self._caller([dialect.credential(headers)], dialect.profile.name)
        who = dialect.credential(headers) if isinstance(caller, Denial) else caller
        return Refusal(*reply_parts(dialect.refused(who, method, path, headers, denial, request_id)))

    def headers_at_start(self, admitted: Admitted, outcome: Outcome) -> TextHeaders:
        worded = admitted.headers or ()
        if self._dialect is None:
            return worded
        return self._dialect.headers_at_start(worded, admitted.admission, outcome)

    def settle(self, admission: Any, outcome: Outcome, *, wait: bool) -> None:
        future = CommitFuture() if wait and self._durable else None
        self._holds.settle(admission, outcome, future)
        if future is not None:
            future.wait()

    def void(self, admission: Any) -> None:
        self._holds.void(admission)

    def deny(self, admission: Any, denial: Denial, model: str) -> None:
        self._changes.deny(admission, denial, model)

    def settle_later(self, admission: Any, outcome: Outcome, timeout_s: int | None, *, wait: bool) -> None:
        future = CommitFuture()
        self._changes.settle_at_expiry(admission, outcome, timeout_s, future)
        if wait and self._durable:
            future.wait()

    def _caller(self, secrets: list[str], profile: str) -> Caller | Denial:
        return self._known_key.caller(secrets, profile) if self._sessions else self._known_key.of(secrets)

    def _admit(
        self, caller: Caller | Denial, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admission | Denial:
        if isinstance(caller, Denial):
            self._holds.record_denial("", method, path, caller)
            return caller
        return self._holds.admit(caller, method, path, expected, tags)
