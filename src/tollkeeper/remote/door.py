"""The gate of a running server, for the middleware."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.errors import BadInput, TollkeeperError, Unavailable
from tollkeeper.http.asgi_types import Scope
from tollkeeper.http.credentials import SECRET_CHARS_MAX, TOKEN_CHARS_MAX, credentials
from tollkeeper.http.doors import (
    Admitted,
    Refusal,
    check_key_parameter,
    check_profile,
    refusal_of,
    text_headers,
)
from tollkeeper.http.metered import TextHeaders
from tollkeeper.http.problems import PROBLEM_MEDIA_TYPE, to_problem
from tollkeeper.http.profiles import reply_parts
from tollkeeper.profiles import load
from tollkeeper.profiles.base import Call, MeteredProfile, Profile, Reply
from tollkeeper.remote import messages
from tollkeeper.remote.admission import Admission
from tollkeeper.remote.client import Tollkeeper
from tollkeeper.remote.messages import NATIVE, Refused

_UNASKED: Final = Denial(
    "unavailable", "The request cannot be decided now: the server of the gate refuses.", retry_after_s=1
)
_REQUEST_ID_BYTES: Final = 10

log = logging.getLogger("tollkeeper.remote")


class _RemoteDoor:
    """What both doors have in common: what they send, and how they word what came back."""

    def __init__(
        self,
        toll: Tollkeeper,
        *,
        profile: str | None = None,
        durable: bool = True,
        sessions: bool | None = None,
        key_parameter: str = "",
    ) -> None:
        name = profile or NATIVE
        check_profile(name)
        check_key_parameter(key_parameter, name)
        self._key_parameter = key_parameter
        self._toll = toll
        self._durable = durable
        self._name = name
        self._profile: Profile | None = None if name == NATIVE else load(name)
        self._sessions = sessions
        self._has_usage_headers = isinstance(self._profile, MeteredProfile)

    def _sent(self, scope: Scope) -> tuple[str, dict[str, Any]]:
        """Return the credential of a request, and what else an authorize says of it."""
        headers: dict[str, str] = {}
        others: list[str] = []
        if self._profile is None:
            longest = TOKEN_CHARS_MAX if self._sessions else SECRET_CHARS_MAX
            query, parameter = scope.get("query_string", b""), self._key_parameter
            found = credentials(
                scope["headers"], bare=True, chars_max=longest, query=query, parameter=parameter
            )
            secret, *others = found or [""]
        else:
            headers = text_headers(scope["headers"])
            secret = self._profile.credential(headers)
            headers.pop("cookie", None)  # No profile reads tags from it.
        return secret, {
            "answer_as": self._name,
            "headers": headers,
            "other_keys": others,
            "sessions": self._sessions,
        }

    def _answered(
        self, found: Admission | Refused, method: str, path: str, headers: Mapping[str, str]
    ) -> Admitted | Refusal:
        profile = self._profile
        if isinstance(found, Refused):
            if profile is None:
                return refusal_of(found.denial)
            return Refusal(*reply_parts(self._worded(profile, found, method, path, headers)))
        return Admitted(found, None if profile is None else found.headers)

    def _worded(
        self, profile: Profile, refused: Refused, method: str, path: str, headers: Mapping[str, str]
    ) -> Reply:
        reply = refused.reply
        if reply is not None:
            return Reply(reply.status, reply.body, reply.headers, reply.media_type)
        # The server is away: the profile words that by its own defaults.
        request_id = "req_" + secrets.token_hex(_REQUEST_ID_BYTES)
        call = Call(method, path, {}, headers, b"", {}, datetime.now(UTC), request_id, profile.settings, None)
        return profile.refused(call, refused.denial, None)


class RemoteDoor(_RemoteDoor):
    """See `http.doors.Door`."""

    async def admit(
        self, scope: Scope, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admitted | Refusal:
        secret, more = self._sent(scope)
        try:
            found = await self._toll.authorize(secret, method, path, expected, tags, **more)
        except BadInput as exc:
            return _problem(exc, path)
        except TollkeeperError as exc:
            found = _unasked(exc)
        return self._answered(found, method, path, more["headers"])

    async def headers_at_start(self, admitted: Admitted, outcome: Outcome) -> TextHeaders:
        worded = admitted.headers or ()
        if not self._has_usage_headers:
            return worded
        try:
            body = _preview(admitted.admission, outcome)
            used = messages.settled(await self._toll.ask_async("POST", messages.SETTLE, body)).headers
        except TollkeeperError as exc:
            # The answer is not worth less without them; its settlement follows.
            log.warning("tollkeeper.remote.no_usage_headers", extra={"reason": str(exc)})
            return worded
        return [*(header for header in worded if header[0] not in used), *used.items()]

    async def settle(self, admission: Admission, outcome: Outcome) -> None:
        if self._durable:
            await self._settle(admission, outcome)
        else:
            self.settle_soon(admission, outcome)

    async def _settle(self, admission: Admission, outcome: Outcome) -> None:
        try:
            await self._toll.settle_async(admission, outcome)
        except Unavailable:
            raise
        except TollkeeperError as exc:
            _log_lost(admission, outcome, exc)
            raise

    async def void(self, admission: Admission) -> None:
        await self._toll.void_async(admission)

    def settle_soon(self, admission: Admission, outcome: Outcome) -> None:
        self._spawn(
            lambda: self._settle(admission, outcome), lambda: self._toll.settle_later(admission, outcome)
        )
        # Ended from here on: the task settles it, or what it leaves when it is cancelled.
        admission.state = "ended"

    def void_soon(self, admission: Admission) -> None:
        self._spawn(lambda: self._toll.void_async(admission), lambda: self._toll.void_later(admission))
        admission.state = "ended"

    def _spawn(self, end: Callable[[], Coroutine[Any, Any, None]], keep: Callable[[], bool]) -> None:
        """Run *end* as a task; *keep* is called for one that is cancelled, perhaps before it began."""

        async def ending() -> None:
            try:
                await end()
            except TollkeeperError as exc:
                # It is kept, or logged as lost, where it failed.
                log.warning("tollkeeper.remote.not_delivered", extra={"reason": str(exc)})

        def done(task: asyncio.Task[None]) -> None:
            self._toll.endings.discard(task)
            if task.cancelled():
                keep()

        task = asyncio.get_running_loop().create_task(ending())
        self._toll.endings.add(task)
        task.add_done_callback(done)


class RemoteSyncDoor(_RemoteDoor):
    """See `http.doors.SyncDoor`."""

    def admit(
        self, scope: Scope, method: str, path: str, expected: Usage, tags: Mapping[str, str]
    ) -> Admitted | Refusal:
        secret, more = self._sent(scope)
        try:
            found = self._toll.authorize_blocking(secret, method, path, expected, tags, **more)
        except BadInput as exc:
            return _problem(exc, path)
        except TollkeeperError as exc:
            found = _unasked(exc)
        return self._answered(found, method, path, more["headers"])

    def headers_at_start(self, admitted: Admitted, outcome: Outcome) -> TextHeaders:
        worded = admitted.headers or ()
        if not self._has_usage_headers:
            return worded
        try:
            answer = self._toll.ask("POST", messages.SETTLE, _preview(admitted.admission, outcome))
            used = messages.settled(answer).headers
        except TollkeeperError as exc:
            # The answer is not worth less without them; its settlement follows.
            log.warning("tollkeeper.remote.no_usage_headers", extra={"reason": str(exc)})
            return worded
        return [*(header for header in worded if header[0] not in used), *used.items()]

    def settle(self, admission: Admission, outcome: Outcome, *, wait: bool) -> None:
        if not (wait and self._durable):
            if self._toll.settle_later(admission, outcome):
                admission.state = "ended"
            return
        try:
            self._toll.settle(admission, outcome)
        except Unavailable:
            raise
        except TollkeeperError as exc:
            _log_lost(admission, outcome, exc)
            raise

    def void(self, admission: Admission) -> None:
        self._toll.void(admission)


def _preview(admission: Admission, outcome: Outcome) -> bytes:
    """Return the body of a settle that books nothing, for the headers of a request that ended now."""
    named = (admission.id, admission.account_id, admission.expected, outcome)
    return messages.settle_body(*named, preview=True)


def _unasked(exc: TollkeeperError) -> Refused:
    # A fault of the set-up, such as a wrong operator key: nothing that the caller could mend.
    log.error("tollkeeper.remote.refused", extra={"reason": str(exc), "code": exc.code})
    return Refused(_UNASKED)


def _log_lost(admission: Admission, outcome: Outcome, exc: TollkeeperError) -> None:
    # Nothing else says it: the response is cut, and the hold expires.
    log.error(
        "tollkeeper.remote.lost",
        extra={
            "hold_id": admission.id,
            "path": admission.path,
            "body": str(outcome),
            "reason": str(exc),
        },
    )


def _problem(exc: TollkeeperError, path: str) -> Refusal:
    request_id = "req_" + secrets.token_hex(_REQUEST_ID_BYTES)
    problem = to_problem(exc, instance=path, request_id=request_id)
    headers = [
        (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
        (b"x-request-id", request_id.encode()),
        *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
    ]
    return Refusal(problem.status, headers, msgspec.json.encode(problem.body))
