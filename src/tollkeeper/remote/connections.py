"""Kept HTTP/1.1 connections to one server, for threads."""

from __future__ import annotations

import select
import socket
import threading
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final, NamedTuple

from tollkeeper.remote.address import Address, host_header
from tollkeeper.remote.tries import NoAnswer

CONNECTIONS_MAX: Final = 64
"""At once, of one process (and event loop); further calls wait for one."""


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    body: bytes


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Connections:
    """Connections of one process. Threads may call at once; each has one for the time of its call."""

    def __init__(self, address: Address, headers: dict[str, str]) -> None:
        self._address = address
        self._headers = {**headers, "Host": host_header(address)}
        self._idle: list[HTTPConnection] = []
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(CONNECTIONS_MAX)

    def call(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Answer:
        """
        Return the answer to one request.

        A kept connection that the server has closed meanwhile is replaced: that is no failure.

        Raises:
            NoAnswer: The connection failed, or there was no answer in *timeout_s* seconds.
        """
        if not self._turns.acquire(timeout=timeout_s):
            raise NoAnswer(f"all {CONNECTIONS_MAX} connections are in use", sent=False)
        sent = False
        try:
            while True:
                kept = self._kept()
                connection = kept or self._made(timeout_s, sent=sent)
                sent = True
                try:
                    return self._exchange(connection, method, path, body, timeout_s)
                except TimeoutError as exc:
                    raise NoAnswer(f"no answer within {timeout_s:.1f} s", sent=True) from exc
                except (OSError, HTTPException) as exc:
                    if kept is None:
                        raise NoAnswer(_reason(exc), sent=True) from exc
                    # Closed by the server: as repeated calls do no harm, the next connection is tried.
        finally:
            self._turns.release()

    def _made(self, timeout_s: float, *, sent: bool) -> HTTPConnection:
        """Return a new connection. Raises NoAnswer, with *sent*: whether the call went out on another before."""
        address = self._address
        made: HTTPConnection
        if address.path:
            made = _UnixConnection(address.path, timeout_s)
        elif address.tls is not None:
            made = HTTPSConnection(address.host, address.port, timeout=timeout_s, context=address.tls)
        else:
            made = HTTPConnection(address.host, address.port, timeout=timeout_s)
        try:
            made.connect()
            if made.sock.family != socket.AF_UNIX:
                made.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as exc:
            made.close()
            raise NoAnswer(_reason(exc), sent=sent) from exc
        return made

    def _exchange(
        self, connection: HTTPConnection, method: str, path: str, body: bytes | None, timeout_s: float
    ) -> Answer:
        is_kept = False
        try:
            connection.sock.settimeout(timeout_s)
            connection.request(method, self._address.prefix + path, body, self._headers)
            answer = connection.getresponse()
            content = answer.read()
            is_kept = not answer.will_close
        finally:
            if not is_kept:
                connection.close()
        with self._lock:
            self._idle.append(connection)
        return Answer(answer.status, content)

    def _kept(self) -> HTTPConnection | None:
        """Return a kept connection that looks open, or None."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            # Readable without a request under way: the server has closed it.
            if connection.sock is not None and not _is_readable(connection.sock):
                return connection
            connection.close()

    def close(self) -> None:
        """Close the connections that no call uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _is_readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def _reason(exc: BaseException) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
