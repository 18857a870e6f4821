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
from tollkeeper.domain.extensions import Extension
from tollkeeper.domain.requests import HOLD_S_DEFAULT, Outcome, Usage
from tollkeeper.errors import BadInput, HoldEnded, HoldUnknown, TollkeeperError, Unavailable
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
        self, found: Admission | Refused, secret: str, method: str, path: str, headers: Mapping[str, str]
    ) -> Admitted | Refusal:
        profile = self._profile
        if isinstance(found, Refused):
            if profile is None:
                return refusal_of(found.denial)
            return Refusal(*reply_parts(self._worded(profile, found, method, path, headers)))
        found.asked = (secret, self._name, headers)
        return Admitted(found, None if profile is None else found.headers)

    # -- under way ------------------------------------------------------------------------------------

    async def expect(self, admission: Admission, expected: Usage, tags: Mapping[str, str]) -> Denial | None:
        return await self._toll.hold_calls.expect_async(admission, expected, tags)

    def expect_sync(self, admission: Admission, expected: Usage, tags: Mapping[str, str]) -> Denial | None:
        return self._toll.hold_calls.expect(admission, expected, tags)

    async def extend(self, admission: Admission, more: Usage) -> Extension:
        return await self._toll.hold_calls.extend_async(admission, more)

    def extend_sync(self, admission: Admission, more: Usage) -> Extension:
        return self._toll.hold_calls.extend(admission, more)

    def settle_late(self, admission: Admission, outcome: Outcome) -> None:
        if not self._toll.settle_later(admission, outcome):
            raise Unavailable(f"The usage of {admission.id} cannot be kept: it is lost, see the log.")

    def void_late(self, admission: Admission) -> None:
        self._toll.void_later(admission)

    # -- its words ------------------------------------------------------------------------------------

    def _refusal(self, method: str, path: str, admission: Admission, denial: Denial) -> Refusal:
        profile = self._profile
        if profile is None:
            return refusal_of(denial)
        refused = admission.refused
        if refused is None or refused.denial is not denial:
            refused = Refused(denial)
        headers = admission.asked[2]
        return Refusal(*reply_parts(self._worded(profile, refused, method, path, headers)))

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
        return self._answered(found, secret, method, path, more["headers"])

    async def refusal(
        self, scope: Scope, method: str, path: str, admission: Admission, denial: Denial
    ) -> Refusal:
        return self._refusal(method, path, admission, denial)

    async def headers_at_start(self, admitted: Admitted, outcome: Outcome) -> TextHeaders:
        worded = admitted.headers or ()
        if not self._has_usage_headers:
            return worded
        try:
            used = await self._toll.hold_calls.preview_headers_async(admitted.admission, outcome)
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

    async def deny(self, admission: Admission, denial: Denial, model: str) -> None:
        # The server has the denial, and records it with the void.
        await self.void(admission)

    async def settle_later(self, admission: Admission, outcome: Outcome, timeout_s: int | None) -> None:
        if not self._durable:
            self.settle_later_soon(admission, outcome, timeout_s)
            return
        await self._settle_later(admission, outcome, timeout_s)

    async def _settle_later(self, admission: Admission, outcome: Outcome, timeout_s: int | None) -> None:
        later_s = timeout_s or self._toll.hold_s or HOLD_S_DEFAULT
        admission.state = "ended"
        try:
            await self._toll.hold_calls.settle_at_expiry_async(admission, outcome, later_s)
        except (HoldUnknown, HoldEnded) as exc:
            # Its usage was stated meanwhile; or it ran longer than its hold, and is booked when it states some.
            log.warning("tollkeeper.remote.not_open", extra={"hold_id": admission.id, "reason": str(exc)})
        except BaseException:
            self._toll.settle_later(admission, outcome, later_s)
            raise

    def settle_soon(self, admission: Admission, outcome: Outcome) -> None:
        self._spawn(
            lambda: self._settle(admission, outcome), lambda: self._toll.settle_later(admission, outcome)
        )
        # Ended from here on: the task settles it, or what it leaves when it is cancelled.
        admission.state = "ended"

    def void_soon(self, admission: Admission) -> None:
        self._spawn(lambda: self._toll.void_async(admission), lambda: self._toll.void_later(admission))
        admission.state = "ended"

    def deny_soon(self, admission: Admission, denial: Denial, model: str) -> None:
        self.void_soon(admission)

    def settle_later_soon(self, admission: Admission, outcome: Outcome, timeout_s: int | None) -> None:
        later_s = timeout_s or self._toll.hold_s or HOLD_S_DEFAULT
        self._spawn(
            lambda: self._settle_later(admission, outcome, timeout_s),
            lambda: self._toll.settle_later(admission, outcome, later_s),
        )
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
        return self._answered(found, secret, method, path, more["headers"])

    def refusal(self, scope: Scope, method: str, path: str, admission: Admission, denial: Denial) -> Refusal:
        return self._refusal(method, path, admission, denial)

    def headers_at_start(self, admitted: Admitted, outcome: Outcome) -> TextHeaders:
        worded = admitted.headers or ()
        if not self._has_usage_headers:
            return worded
        try:
            used = self._toll.hold_calls.preview_headers(admitted.admission, outcome)
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

    def deny(self, admission: Admission, denial: Denial, model: str) -> None:
        # The server has the denial, and records it with the void.
        self.void(admission)

    def settle_later(
        self, admission: Admission, outcome: Outcome, timeout_s: int | None, *, wait: bool
    ) -> None:
        later_s = timeout_s or self._toll.hold_s or HOLD_S_DEFAULT
        admission.state = "ended"
        if not (wait and self._durable):
            self._toll.settle_later(admission, outcome, later_s)
            return
        try:
            self._toll.hold_calls.settle_at_expiry(admission, outcome, later_s)
        except (HoldUnknown, HoldEnded) as exc:
            # Its usage was stated meanwhile; or it ran longer than its hold, and is booked when it states some.
            log.warning("tollkeeper.remote.not_open", extra={"hold_id": admission.id, "reason": str(exc)})
        except BaseException:
            self._toll.settle_later(admission, outcome, later_s)
            raise


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
