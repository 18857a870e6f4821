"""
The WSGI middleware: a Flask, Django or plain WSGI app (PEP 3333) behind the gate.

It keeps the promises of the ASGI middleware (`asgi`): it reads the api key, admits the request before the app is
called, and settles with the status, latency and bytes that the app produced. By default the end of the response
waits for the group commit (a few ms at most), so a request that was answered in full is booked, `kill -9` included.

The end of a response is what tells the client that it has all: the piece that completes its `Content-Length`, and
without one the end of the iterable, after which the server closes the body. No other piece is delayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final
from wsgiref.util import FileWrapper

from tollkeeper import forks, greenlets
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.matching import NO_TAGS
from tollkeeper.domain.requests import NO_USAGE, Usage
from tollkeeper.errors import GreenletsRefused, TollkeeperError
from tollkeeper.http.cors import Cors, is_preflight
from tollkeeper.http.credentials import query_without
from tollkeeper.http.doors import Admitted, HasSyncDoor, Refusal, SyncDoor
from tollkeeper.http.environs import scope_of, status_line, text_headers
from tollkeeper.http.exemptions import Exemptions
from tollkeeper.http.forked import unusable_parts
from tollkeeper.http.interfaces import must_be_wsgi
from tollkeeper.http.metered import TextHeaders
from tollkeeper.http.paths import app_path
from tollkeeper.metering import ENVIRON_KEY, Denied, HasInstallation, WsgiMetering, outcome_of

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from tollkeeper.http.asgi_types import RawHeaders
    from tollkeeper.installation import Installation

__all__ = ["ENVIRON_KEY", "HasInstallation", "Metering", "Middleware"]

Metering = WsgiMetering

_UNHANDLED: Final = 500
"""What frameworks answer when a handler lets an exception go."""
_FILE_WRAPPER: Final = "wsgi.file_wrapper"
_WITHOUT_BODY: Final = frozenset({*range(100, 200), 204, 304})
"""Statuses whose answers have no body, whatever the app produces (RFC 9110, section 6.4.1)."""


class Middleware:
    """
    *app* behind the gate of *toll*. Any thread may call it.

    Args:
        toll: `Tollkeeper` of this process, or `tollkeeper.remote.Tollkeeper`.
        expect: Returns the most that a request may use, from its environ, and its model; nothing is known by default.
        tags: Returns the tags of a request's event, from its environ: limits and budgets may count it by them.
        exempt: What passes without a key, e.g. `{"/healthz", "GET /docs/*"}` (see `http.exemptions`). Preflights of
            browsers always pass.
        profile: The dialect that this API speaks: how it reads the key, words refusals, and which headers
            its answers have. The root profile of the settings by default; native without one.
        sessions, key_parameter: See `asgi.Middleware`. Servers have the whole address in other variables too.
        durable: Hold the end of the response back until the request is booked durably. Without it the
            booking follows within a few ms, and a crash in between loses it.

    Raises:
        BadParameter: *app* is an ASGI application, or *profile* is unknown.
        GreenletsRefused: gevent or eventlet changed the threads of this process in a way that it cannot be gated.
    """

    def __init__(
        self,
        app: WSGIApplication,
        toll: HasInstallation | HasSyncDoor,
        *,
        expect: Callable[[WSGIEnvironment], Usage] | None = None,
        tags: Callable[[WSGIEnvironment], Mapping[str, str]] | None = None,
        exempt: frozenset[str] | set[str] = frozenset(),
        durable: bool = True,
        profile: str | None = None,
        sessions: bool | None = None,
        key_parameter: str = "",
    ) -> None:
        self._key_parameter = key_parameter
        greenlets.check()
        self.app = app
        self.toll = toll
        self._expect = expect
        self._tags = tags
        self._exempt = Exemptions(exempt)
        self._door: SyncDoor
        must_be_wsgi(app)
        options: dict[str, Any] = {
            "profile": profile,
            "durable": durable,
            "sessions": sessions,
            "key_parameter": key_parameter,
        }
        if (door := getattr(toll, "sync_door", None)) is not None:
            self._cors = Cors(toll.cors_origins)  # type: ignore[union-attr]
            self._door = door(**options)
            return
        # Loads the stores, which a client of a server does without.
        from tollkeeper.http.embedded_sync_door import EmbeddedSyncDoor

        installation: Installation = toll.installation  # type: ignore[union-attr]
        self._cors = Cors(installation.settings.cors_origins)
        self._door = EmbeddedSyncDoor(installation, **options)
        forks.refuse_in_children(installation, [self], _ForkedMiddleware)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        scope = scope_of(environ)
        method, path, raw_headers = scope["method"], app_path(scope), scope["headers"]
        if is_preflight(scope) or self._exempt.cover(method, path):
            return self.app(environ, start_response)
        try:
            greenlets.check()
        except GreenletsRefused as exc:
            return _unusable(scope, start_response, exc)
        expected = NO_USAGE if self._expect is None else self._expect(environ)
        tags = NO_TAGS if self._tags is None else self._tags(environ)
        found = self._door.admit(scope, method, path, expected, tags)
        if isinstance(found, Refusal):
            headers = [*found.headers, *self._cors.headers(raw_headers)]
            return _refusal(method, start_response, found.status, headers, found.body)
        if self._key_parameter:
            query = query_without(scope["query_string"], self._key_parameter)
            environ["QUERY_STRING"] = query.decode("latin-1")
        environ[ENVIRON_KEY] = metering = WsgiMetering(found.admission, self._door)
        if _FILE_WRAPPER in environ:
            # A server's own may send a file past the middleware, which would not count it.
            environ[_FILE_WRAPPER] = FileWrapper

        def refuse(denial: Denial) -> Refusal:
            told = self._door.refusal(scope, method, path, found.admission, denial)
            return told._replace(headers=[*told.headers, *self._cors.headers(raw_headers)])

        answer = _Answer(metering, method, start_response, found, self._door, self._book, refuse)
        return answer.of(self.app, environ)

    def _book(self, answer: _Answer, *, wait: bool) -> None:
        metering, admission = answer.metering, answer.metering.admission
        kind, outcome, timeout_s = metering.end(answer.status or 500, answer.started_ns, answer.bytes_out)
        if kind == "settle":
            self._door.settle(admission, outcome, wait=wait)
        elif kind == "later":
            self._door.settle_later(admission, outcome, timeout_s, wait=wait)
        elif kind == "void":
            self._door.void(admission)
        else:
            assert metering.denial is not None
            self._door.deny(admission, metering.denial, metering.asked_model)


class _Answer:
    """
    The answer to an admitted request, on its way from the app to the server. One thread at a time uses it.

    It is settled once: at its end, waiting for the commit; or when the app raises, or when the server closes it before
    its end since the client has left, without waiting.
    """

    def __init__(
        self,
        metering: WsgiMetering,
        method: str,
        start_response: StartResponse,
        admitted: Admitted,
        door: SyncDoor,
        book: Callable[..., None],
        refuse: Callable[[Denial], Refusal],
    ) -> None:
        self.metering = metering
        self.status = 0
        self.bytes_out = 0
        self.started_ns = time.perf_counter_ns()
        self._method = method
        self._start_response = start_response
        self._admitted = admitted
        self._door = door
        self._book = book
        self._refuse = refuse
        self._refusal: list[bytes] | None = None
        """The body of the answer that stands in place of the app's, which let a denial go."""
        self._length: int | None = None
        """Of the body that the client waits for; None where the end of the body tells it."""
        self._held: list[bytes] = []
        """The piece that completes that length, until all is booked."""
        self._pieces: Iterator[bytes] = iter(())
        self._close: Callable[[], None] | None = None
        self._settled = False

    def of(self, app: WSGIApplication, environ: WSGIEnvironment) -> Iterable[bytes]:
        """Call *app* and return what the server is to send."""
        try:
            found = app(environ, self._start)
            if self._refusal is not None:
                return self._refused(found)
            is_complete = type(found) in (list, tuple)
            if not is_complete:
                self._pieces = iter(found)
        except BaseException as exc:
            if self._is_refused(exc):
                return self._refused(())
            self._failed(exc)
            raise
        if is_complete:
            # A list stays one: from its length servers make the `Content-Length`.
            self.bytes_out += sum(map(len, found))
            self._settle()
            return [*self._held, *found]
        self._close = getattr(found, "close", None)
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while not self._settled:
            try:
                piece = next(self._pieces)
                if self._refusal is not None:
                    break
                keeps = self._takes(piece)
            except StopIteration:
                self._settle()
                break
            except BaseException as exc:
                if self._is_refused(exc):
                    break
                self._failed(exc)
                raise
            if keeps:
                return piece
        if self._refusal:
            return self._refusal.pop()
        if self._held:
            return self._held.pop()
        raise StopIteration

    def close(self) -> None:
        """Close what the app returned; settle what was not sent to its end. A repeat changes nothing."""
        close, self._close = self._close, None
        try:
            if close is not None:
                close()
        except BaseException as exc:
            self._failed(exc)
            raise
        self._end_early()

    def _is_refused(self, exc: BaseException) -> bool:
        """Begin the refusal if the app let a denial go before it answered; return whether it did."""
        if self._refusal is None and isinstance(exc, Denied) and not self.status and not self._settled:
            self._begin_refusal()
        return self._refusal is not None and isinstance(exc, Denied)

    def _begin_refusal(self) -> None:
        denial = self.metering.denial
        assert denial is not None
        self.status = denial.status
        # First, so that the answer's headers do not count it as held.
        self._settle()
        status, headers, body = self._refuse(denial)
        self._refusal = list(_refusal(self._method, self._start_response, status, headers, body))

    def _refused(self, unsent: Iterable[bytes]) -> Iterable[bytes]:
        """Return the refusal in place of what the app returned."""
        close = getattr(unsent, "close", None)
        if close is not None:
            close()
        return self._refusal or []

    def _start(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        """Begin the answer, or with *exc_info* begin another in its place; the server raises if it is too late."""
        code = int(status[:3])
        if code == _UNHANDLED and self.metering.denial is not None and not self.status:
            # The framework answers for an app that let the denial go.
            self._begin_refusal()
        if self._refusal is not None:
            return lambda piece: None
        if exc_info is not None and exc_info[0] is not None:
            self.metering.error_type = self.metering.error_type or exc_info[0].__name__
        headers = [*headers, *self._extra_headers(code)]
        if exc_info is None:
            write = self._start_response(status, headers)
        else:
            write = self._start_response(status, headers, exc_info)
            # The server accepts it: nothing was sent.
            self._held.clear()
            self.bytes_out = 0
        self.status = code
        self._length = 0 if self._method == "HEAD" or code in _WITHOUT_BODY else _length_of(headers)

        def metered_write(piece: bytes) -> object:
            return write(piece) if self._takes(piece) else None

        return metered_write

    def _extra_headers(self, status: int) -> TextHeaders:
        extra = self._admitted.headers
        if extra is None:
            return ()
        if not self.metering.void:
            outcome = outcome_of(self.metering, status, self.started_ns, 0)
            extra = self._door.headers_at_start(self._admitted, outcome)
        return [(name.lower(), value) for name, value in extra]

    def _takes(self, piece: bytes) -> bool:
        """Count *piece* and return whether it is to be sent now."""
        length = self._length
        was_complete = length is not None and self.bytes_out >= length
        self.bytes_out += len(piece)
        if length is None or self.bytes_out < length:
            return True
        if not was_complete:
            self._held.append(piece)
        # What comes after the end of the body is not sent, but the app runs to its end.
        return False

    def _settle(self) -> None:
        self._settled = True
        self._book(self, wait=True)

    def _end_early(self) -> None:
        if not self._settled:
            self._settled = True
            self._book(self, wait=False)

    def _failed(self, exc: BaseException) -> None:
        if not self._settled:
            self.metering.error_type = self.metering.error_type or type(exc).__name__
        self._end_early()


class _ForkedMiddleware(Middleware):
    """The middleware in a forked child: it admits nothing."""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        scope = scope_of(environ)
        if is_preflight(scope) or self._exempt.cover(scope["method"], app_path(scope)):
            return self.app(environ, start_response)
        return _unusable(scope, start_response)


def _unusable(
    scope: Mapping[str, Any], start_response: StartResponse, error: TollkeeperError | None = None
) -> Iterable[bytes]:
    status, headers, body = unusable_parts(scope["path"], error)
    start_response(status_line(status), text_headers(headers))
    return _body_for(scope["method"], body)


def _length_of(headers: list[tuple[str, str]]) -> int | None:
    for name, value in headers:
        if name.lower() == "content-length" and value.strip().isdecimal():
            return int(value)
    return None


def _refusal(
    method: str, start_response: StartResponse, status: int, headers: RawHeaders, body: bytes
) -> Iterable[bytes]:
    start_response(status_line(status), [*text_headers(headers), ("content-length", str(len(body)))])
    return _body_for(method, body)


def _body_for(method: str, body: bytes) -> list[bytes]:
    # Not every server drops the body of an answer to HEAD.
    return [] if method == "HEAD" else [body]
