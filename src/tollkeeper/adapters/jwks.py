"""
Reads the public keys of another login (JWKS) from an https URL or a file.

A change of this document lets its author sign in as anybody: so no plain http but to this machine, no redirects, and
a bound on size and time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any, Final

from tollkeeper.adapters.redirects import NoRedirects

JWKS_BYTES_MAX: Final = 1 << 20
TIMEOUT_S: Final = 5.0
"""For each step: connecting, the handshake, a read."""
DEADLINE_S: Final = 10.0
"""For all of the answer, however slowly it comes; resolving a name and connecting have the bounds of their own."""


def read_jwks(source: str, *, deadline_s: float = DEADLINE_S) -> bytes:
    """
    Return the document at *source*, which `catalog.sessions.check_login` has passed.

    Raises:
        OSError: It cannot be read, answers with a redirect or an error, or takes longer than *deadline_s*.
        ValueError: It is longer than `JWKS_BYTES_MAX`.
    """
    if "://" not in source:
        with Path(source).open("rb") as file:
            return _bounded(file.read(JWKS_BYTES_MAX + 1))
    with _Deadline(deadline_s) as deadline:
        opener = urllib.request.build_opener(
            NoRedirects, _Http(deadline), _Https(deadline), *_proxies(source)
        )
        with opener.open(source, timeout=TIMEOUT_S) as answer:
            found = _bounded(answer.read(JWKS_BYTES_MAX + 1))
        if deadline.is_over:
            raise TimeoutError(f"no whole answer within {deadline_s:g} s")
        return found


def _bounded(document: bytes) -> bytes:
    if len(document) > JWKS_BYTES_MAX:
        raise ValueError(f"a JWKS has at most {JWKS_BYTES_MAX} bytes")
    return document


def _proxies(source: str) -> list[urllib.request.BaseHandler]:
    # Plain http goes to this machine only, through no proxy.
    return [urllib.request.ProxyHandler({})] if source.lower().startswith("http://") else []


class _Deadline:
    """Ends the connections that were made under it once its time is over, so that their reads fail."""

    def __init__(self, seconds: float) -> None:
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self.is_over = False

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()

    def watch(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.append(connection)
            if self.is_over:
                raise TimeoutError("the time for reading a JWKS is over")

    def _end(self) -> None:
        with self._lock:
            self.is_over = True
            for connection in self._open:
                # Not closed here: the thread that reads from it does that.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, request: urllib.request.Request) -> Any:
        deadline = self._deadline

        class Connection(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                deadline.watch(self.sock)

        return self.do_open(Connection, request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, request: urllib.request.Request) -> Any:
        deadline = self._deadline

        class Connection(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                deadline.watch(self.sock)

        return self.do_open(Connection, request)
