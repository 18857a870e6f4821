"""`Tollkeeper` of a server: what the embedded one does for a request, over HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Unpack

from tollkeeper import greenlets
from tollkeeper.clock import Clock, SystemClock
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.keyless import WithoutKey
from tollkeeper.domain.matching import NO_TAGS
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.errors import BadParameter, HoldEnded, TollkeeperError, Unavailable
from tollkeeper.gate.ids import Ids
from tollkeeper.http.credentials import TOKEN_CHARS_MAX
from tollkeeper.remote import messages
from tollkeeper.remote.address import parse_address
from tollkeeper.remote.admission import Admission, Settled
from tollkeeper.remote.async_connections import AsyncConnections
from tollkeeper.remote.connections import Answer, Connections
from tollkeeper.remote.hold_calls import HoldCalls, settle_body
from tollkeeper.remote.messages import Refused, is_transient
from tollkeeper.remote.tries import NoAnswer, Tries, away
from tollkeeper.remote.undelivered import Undelivered
from tollkeeper.remote.usage_query import report_of, usage_path
from tollkeeper.version import __version__

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from tollkeeper import wsgi
    from tollkeeper.asgi import Middleware
    from tollkeeper.http.asgi_types import ASGIApp
    from tollkeeper.remote.door import RemoteDoor, RemoteSyncDoor

TIMEOUT_S: Final = 5.0
_KEY_UNKNOWN: Final = Denial("key_unknown", "The api key is not known here.")

_AWAY: Final = Denial("unavailable", "Requests cannot be decided now: try again shortly.", retry_after_s=1)

log = logging.getLogger("tollkeeper.remote")
_open: weakref.WeakSet[Tollkeeper] = weakref.WeakSet()


class Tollkeeper:
    """
    A running `tollkeeper serve`. Any thread, event loop and forked process may use one; close it at the end.

    Calls are tried three times within *timeout_s*. A call that is repeated counts once, as the server knows its id.
    While the server is away, `admit` returns a `Denial` of 503 (`unavailable`): nothing passes without its decision.

    Args:
        url: `http://127.0.0.1:8080`, `https://…`, or `unix:/run/tollkeeper.sock` (`serve --uds`).
        key: An operator key; a management key may read the usage of its account.
        timeout_s: Longest that one call may take, all its tries together.
        hold_s: Seconds until a hold expires on the server; by its setting `hold_s` unless given. Requests that run
            longer are booked whole, but their estimate is not held to the end.
        cors_origins: Origins whose pages may read the middleware's refusals, as the setting of the server.

    Attributes:
        endings: Tasks of the middleware that settle or void what their requests left.
        lost_count: Endings that were given up; the log has each.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str,
        timeout_s: float = TIMEOUT_S,
        hold_s: int | None = None,
        cors_origins: str = "",
        clock: Clock | None = None,
    ) -> None:
        greenlets.check()
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise BadParameter("key must be an operator key, such as ok_…", field="key")
        if not timeout_s > 0:
            raise BadParameter(f"timeout_s must be more than 0 seconds, not {timeout_s}", field="timeout_s")
        self._address = parse_address(url)
        self._headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": f"tollkeeper/{__version__}",
        }
        self.cors_origins = cors_origins
        self._timeout_s = timeout_s
        self.hold_s = hold_s
        self._clock = clock or SystemClock()
        self._async_connections = AsyncConnections(self._address, self._headers)
        self._is_away = False
        self.hold_calls = HoldCalls(
            lambda path, body: self._try(Tries(timeout_s), "POST", path, body),
            lambda path, body: self._try_async(Tries(timeout_s), "POST", path, body),
            self._away,
            hold_s,
        )
        """What the metering of a request asks before its end."""
        self._begin()
        _open.add(self)

    def _begin(self) -> None:
        self._ids = Ids()
        self.endings: set[asyncio.Task[None]] = set()
        self._connections = Connections(self._address, self._headers)
        self._undelivered = Undelivered(self._connections.call)
        # Also when the process ends without a `close`.
        self._end = weakref.finalize(self, _close, os.getpid(), self._undelivered, self._connections)

    def _after_fork(self) -> None:
        """Begin with connections, ids and undelivered endings of one's own: the parent's are the parent's."""
        self._end.detach()
        self._async_connections.forget()
        self._begin()

    # -- one request, from a thread -------------------------------------------------------------------

    def admit(
        self,
        api_key: str,
        method: str,
        path: str,
        expected: Usage = NO_USAGE,
        *,
        tags: Mapping[str, str] = NO_TAGS,
        **who: Unpack[WithoutKey],
    ) -> Admission | Denial:
        """
        Decide one request: see `embedded.Tollkeeper.admit`. Its hold is durable when this returns.

        Raises:
            Unauthenticated, Forbidden: The server refuses *key*: no operator key of it.
            BadParameter: A value is beyond the server's bounds, such as a path of more than 2048 characters.
        """
        without_key = messages.without_key(api_key, who)
        if len(api_key) > TOKEN_CHARS_MAX:
            return _KEY_UNKNOWN
        found = self.authorize_blocking(api_key, method, path, expected, tags, without_key=without_key)
        return found.denial if isinstance(found, Refused) else found

    def authorize_blocking(
        self, api_key: str, method: str, path: str, expected: Usage, tags: Mapping[str, str], **more: Any
    ) -> Admission | Refused:
        """`authorize` for a thread."""
        hold_id = self._ids.new_id(self._clock.now_us())
        body = messages.authorize_body(hold_id, api_key, method, path, expected, tags, self.hold_s, **more)
        tries = Tries(self._timeout_s)
        try:
            answer = self._try(tries, "POST", messages.AUTHORIZE, body)
        except BaseException as exc:
            return self._unanswered(exc, tries, hold_id)
        return self._found(answer, tries, hold_id, method, expected, tags)

    def settle(self, admission: Admission, outcome: Outcome = Outcome(), *, wait: bool = True) -> Settled:
        """
        Book what an admitted request used; durable when this returns. A repeat with the same outcome is safe.

        Args:
            wait: For calls written for the embedded class: it is durable either way.

        Raises:
            HoldEnded: It was voided, or settled with another outcome.
            Unavailable: The server did not answer. The outcome is kept, and sent until it is booked
                (`remote.undelivered`); where the message says that it is not, it is lost and logged.
        """
        body = settle_body(admission, outcome)
        admission.state = "ended"
        try:
            return messages.settled(self._try(Tries(self._timeout_s), "POST", messages.SETTLE, body))
        except Unavailable as exc:
            raise self._kept(exc, messages.SETTLE, admission, body) from exc
        except BaseException as exc:
            self._keep_interrupted(exc, messages.SETTLE, admission, body)
            raise

    def void(self, admission: Admission) -> None:
        """
        End an admission as if the request never was. A repeat changes nothing.

        Raises:
            HoldEnded: It was settled.
            Unavailable: As of `settle`.
        """
        body = messages.void_body(admission.id, admission.account_id)
        admission.state = "ended"
        try:
            _check(self._try(Tries(self._timeout_s), "POST", messages.VOID, body))
        except Unavailable as exc:
            raise self._kept(exc, messages.VOID, admission, body) from exc
        except BaseException as exc:
            self._keep_interrupted(exc, messages.VOID, admission, body)
            raise

    def usage(self, query: UsageQuery) -> UsageReport:
        """Answer a usage query: see `embedded.Tollkeeper.usage`. Raises the server's errors."""
        return report_of(self._try(Tries(self._timeout_s), "GET", usage_path(query), None))

    # -- one request, from an event loop --------------------------------------------------------------

    async def admit_async(
        self,
        api_key: str,
        method: str,
        path: str,
        expected: Usage = NO_USAGE,
        *,
        tags: Mapping[str, str] = NO_TAGS,
        **who: Unpack[WithoutKey],
    ) -> Admission | Denial:
        """`admit` for an event loop."""
        without_key = messages.without_key(api_key, who)
        found = await self.authorize(api_key, method, path, expected, tags, without_key=without_key)
        return found.denial if isinstance(found, Refused) else found

    async def authorize(
        self,
        api_key: str,
        method: str,
        path: str,
        expected: Usage,
        tags: Mapping[str, str],
        **more: Any,
    ) -> Admission | Refused:
        """
        `admit_async` for an API that speaks a profile: a refusal has the vendor's answer.

        Args:
            more: Of `messages.authorize_body`.
        """
        hold_id = self._ids.new_id(self._clock.now_us())
        body = messages.authorize_body(hold_id, api_key, method, path, expected, tags, self.hold_s, **more)
        tries = Tries(self._timeout_s)
        try:
            answer = await self._try_async(tries, "POST", messages.AUTHORIZE, body)
        except BaseException as exc:
            return self._unanswered(exc, tries, hold_id)
        return self._found(answer, tries, hold_id, method, expected, tags)

    async def settle_async(self, admission: Admission, outcome: Outcome = Outcome()) -> Settled:
        """`settle` for an event loop. Cancelled, it is delivered all the same."""
        body = settle_body(admission, outcome)
        admission.state = "ended"
        try:
            answer = await self._try_async(Tries(self._timeout_s), "POST", messages.SETTLE, body)
            return messages.settled(answer)
        except Unavailable as exc:
            raise self._kept(exc, messages.SETTLE, admission, body) from exc
        except BaseException as exc:
            self._keep_interrupted(exc, messages.SETTLE, admission, body)
            raise

    settle_durably = settle_async

    async def void_async(self, admission: Admission) -> None:
        """`void` for an event loop. Cancelled, it is delivered all the same."""
        body = messages.void_body(admission.id, admission.account_id)
        admission.state = "ended"
        try:
            _check(await self._try_async(Tries(self._timeout_s), "POST", messages.VOID, body))
        except Unavailable as exc:
            raise self._kept(exc, messages.VOID, admission, body) from exc
        except BaseException as exc:
            self._keep_interrupted(exc, messages.VOID, admission, body)
            raise

    async def usage_async(self, query: UsageQuery) -> UsageReport:
        """`usage` for an event loop."""
        return report_of(await self._try_async(Tries(self._timeout_s), "GET", usage_path(query), None))

    # -- middleware -----------------------------------------------------------------------------------

    def middleware(self, app: ASGIApp, **options: Any) -> Middleware:
        """Return *app* behind the server's gate: see `asgi.Middleware` for the options."""
        from tollkeeper.asgi import Middleware

        return Middleware(app, self, **options)

    def wsgi_middleware(self, app: WSGIApplication, **options: Any) -> wsgi.Middleware:
        """Return a WSGI app behind the server's gate: see `wsgi.Middleware` for the options."""
        from tollkeeper.wsgi import Middleware

        return Middleware(app, self, **options)

    def sync_door(self, **options: Any) -> RemoteSyncDoor:
        """Return the gate for one WSGI middleware: as `door`."""
        made: RemoteSyncDoor = _doors().RemoteSyncDoor(self, **options)
        return made

    def door(self, **options: Any) -> RemoteDoor:
        """Return the gate for one middleware. Without *profile* it is native, whatever the server's root profile."""
        made: RemoteDoor = _doors().RemoteDoor(self, **options)
        return made

    # -- end ------------------------------------------------------------------------------------------

    @property
    def undelivered_count(self) -> int:
        """Endings that are kept, as the server did not get them yet."""
        return len(self._undelivered)

    @property
    def lost_count(self) -> int:
        return self._undelivered.lost_count

    def close(self) -> None:
        """Send what is kept, for five seconds at most, and close the connections. A repeat changes nothing."""
        self._end()

    async def aclose(self) -> None:
        """`close` for an event loop, whose endings it waits for, and whose connections it closes too."""
        loop = asyncio.get_running_loop()
        if mine := [task for task in self.endings if task.get_loop() is loop]:
            await asyncio.wait(mine, timeout=self._timeout_s)
        await self._async_connections.close()
        await asyncio.to_thread(self._end)

    def __enter__(self) -> Tollkeeper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- tries ----------------------------------------------------------------------------------------

    def _try(self, tries: Tries, method: str, path: str, body: bytes | None) -> Answer:
        """Return the answer to a call that may be repeated. Raises `Unavailable`."""
        while True:
            timeout_s = tries.begin()
            try:
                answer: Answer | NoAnswer = self._connections.call(method, path, body, timeout_s)
            except NoAnswer as exc:
                answer = exc
            if (pause_s := self._pause_s(tries, path, answer)) is None:
                return self._last(answer)
            time.sleep(pause_s)

    async def _try_async(self, tries: Tries, method: str, path: str, body: bytes | None) -> Answer:
        while True:
            timeout_s = tries.begin()
            try:
                answer: Answer | NoAnswer = await self._async_connections.call(method, path, body, timeout_s)
            except NoAnswer as exc:
                answer = exc
            if (pause_s := self._pause_s(tries, path, answer)) is None:
                return self._last(answer)
            await asyncio.sleep(pause_s)

    def _pause_s(self, tries: Tries, path: str, answer: Answer | NoAnswer) -> float | None:
        """Return the seconds until the next try; None when *answer* is the last one."""
        if isinstance(answer, NoAnswer):
            tries.maybe_done = tries.maybe_done or answer.sent
            return tries.pause_s()
        if path == messages.AUTHORIZE:
            tries.maybe_done = tries.maybe_done or messages.may_be_done(answer)
            if answer.status == 503:
                return None  # The gate's own answer: the caller is told at once.
        if is_transient(answer):
            return tries.pause_s()
        if tries.maybe_done and answer.status == 409:
            # An earlier try of this call may still be under way there.
            is_ended = isinstance(messages.error_of(answer), HoldEnded)
            return tries.pause_s() if is_ended else None
        return None

    def _last(self, answer: Answer | NoAnswer) -> Answer:
        if isinstance(answer, NoAnswer):
            raise away(self._address.shown, answer) from answer
        if is_transient(answer):
            error = messages.error_of(answer)
            if type(error) is Unavailable:
                raise error
        return answer

    def _found(
        self,
        answer: Answer,
        tries: Tries,
        hold_id: str,
        method: str,
        expected: Usage,
        tags: Mapping[str, str],
    ) -> Admission | Refused:
        if self._is_away:
            self._is_away = False
            log.info("tollkeeper.remote.back")
        try:
            said = messages.authorized(answer)
        except TollkeeperError:
            self._void_maybe(tries, hold_id)
            raise
        if isinstance(said, Refused):
            self._void_maybe(tries, hold_id)
            return said
        self._undelivered.start()
        return messages.admission_of(said, self._undelivered.dropped, method, expected, tags)

    def _unanswered(self, exc: BaseException, tries: Tries, hold_id: str) -> Refused:
        """Refuse an authorize that the server did not answer; raise *exc* of one that was interrupted."""
        is_away = isinstance(exc, Unavailable)
        tries.maybe_done = tries.maybe_done or not is_away
        self._void_maybe(tries, hold_id)
        if not is_away:
            raise exc  # A cancelled task, a signal, a killed greenlet.
        return Refused(self._away(exc))

    def _away(self, exc: BaseException) -> Denial:
        """Return the refusal while the server is away; the log has its address, which callers must not see."""
        if not self._is_away:
            self._is_away = True
            log.warning("tollkeeper.remote.away", extra={"reason": str(exc)})
        return _AWAY

    def _void_maybe(self, tries: Tries, hold_id: str) -> None:
        """Void the hold that a try without an answer may have made."""
        if tries.maybe_done:
            self._undelivered.keep(messages.VOID, hold_id, messages.void_body(hold_id, None))

    def _kept(self, exc: Unavailable, path: str, admission: Admission, body: bytes) -> Unavailable:
        """Keep an ending that was not delivered; return the error that says so."""
        if self._undelivered.keep(path, admission.id, body):
            return Unavailable(
                f"{exc} The ending of {admission.id} is kept, and sent until the server has it."
            )
        return Unavailable(f"{exc} The ending of {admission.id} cannot be kept: it is lost, see the log.")

    def _keep_interrupted(self, exc: BaseException, path: str, admission: Admission, body: bytes) -> None:
        """Keep an ending whose call was cancelled; one that the server refused is not kept."""
        if not isinstance(exc, TollkeeperError):
            self._undelivered.keep(path, admission.id, body)

    def settle_later(self, admission: Admission, outcome: Outcome, later_s: int | None = None) -> bool:
        """Keep an outcome and send it without waiting; return False when it is lost, which the log says."""
        body = settle_body(admission, outcome, later_s=later_s)
        admission.state = "ended"
        return self._undelivered.keep(messages.SETTLE, admission.id, body)

    def void_later(self, admission: Admission) -> bool:
        """Keep the void of an admission and send it without waiting."""
        admission.state = "ended"
        body = messages.void_body(admission.id, admission.account_id)
        return self._undelivered.keep(messages.VOID, admission.id, body)


def _check(answer: Answer) -> None:
    if answer.status != 200:
        raise messages.error_of(answer)


def _close(owner: int, undelivered: Undelivered, connections: Connections) -> None:
    if os.getpid() == owner:
        undelivered.close()
        connections.close()


def _in_child() -> None:
    for toll in list(_open):
        toll._after_fork()


os.register_at_fork(after_in_child=_in_child)


def _doors() -> Any:
    from tollkeeper.remote import door

    return door
