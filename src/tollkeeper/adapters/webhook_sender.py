"""
Sends one webhook message over HTTP, to public addresses only: fulfils `ports.WebhookSender`.

A customer chooses the receiver's address, and this process may reach hosts that the customer may not. So a name is
resolved once, all its addresses must be public, and the connection is made to the address that was checked: a later
change of the name has no effect. Redirects are not followed.
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from tollkeeper.domain.addresses import is_public
from tollkeeper.domain.webhooks import DeliveryResult
from tollkeeper.version import __version__

TIMEOUT_S: Final = 10.0
"""For everything from the connection to the end of the answer; resolving a name has the resolver's own bound."""
ANSWER_BYTES_MAX: Final = 64 * 1024
ADDRESSES_MAX: Final = 4
"""Addresses of one name that are tried."""

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1[0-9]{2}[ \r\n]")


class HttpWebhookSender:
    """
    Any thread may send.

    Args:
        allow_private: Plain http, and addresses that are not public, are allowed too: for tests and local use.
        context: For https; the machine's own trust when None.
        resolve: As `socket.getaddrinfo`.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        context: ssl.SSLContext | None = None,
        resolve: Callable[..., Any] = socket.getaddrinfo,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._allow_private = allow_private
        self._context = context
        self._resolve = resolve
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closed = False

    def send(self, url: str, headers: Mapping[str, str], body: bytes) -> DeliveryResult:
        parts = urlsplit(url)
        if parts.scheme != "https" and not self._allow_private:
            return DeliveryResult(0, "plain http is refused: use https")
        try:
            return self._send(parts, headers, body)
        except TimeoutError:
            return DeliveryResult(0, f"no answer within {self._timeout_s:g} s")
        except (OSError, UnicodeError) as exc:
            # Not its text: that may have what a name resolved to, which is not the customer's to know.
            return DeliveryResult(0, f"the connection failed: {type(exc).__name__}")

    def close(self) -> None:
        """End the attempts under way, as failed; nothing is sent from now on."""
        with self._lock:
            self._closed = True
            for connection in self._open:
                # Not closed here: the thread that reads from it does that.
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._context or ssl.create_default_context()

    def _send(self, parts: SplitResult, headers: Mapping[str, str], body: bytes) -> DeliveryResult:
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        addresses = self._addresses(host, port)
        if not addresses:
            return DeliveryResult(0, "the address is refused: it is not a public one")
        deadline = time.monotonic() + self._timeout_s
        request = _request(parts, headers, body)
        with contextlib.ExitStack() as stack:
            connection = self._connect(addresses, port, deadline, stack)
            if parts.scheme == "https":
                secured = self._tls.wrap_socket(
                    connection, server_hostname=host, do_handshake_on_connect=False
                )
                connection = stack.enter_context(secured)
                self._keep(connection, stack)
                connection.settimeout(_left(deadline))
                secured.do_handshake()
            connection.settimeout(_left(deadline))
            connection.sendall(request)
            return _answer(connection, deadline)

    def _addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of *host*, unless one of them is refused: a name that mixes them hides one."""
        found = self._resolve(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._allow_private and not all(map(is_public, addresses)):
            return []
        return addresses[:ADDRESSES_MAX]

    def _connect(
        self, addresses: list[str], port: int, deadline: float, stack: contextlib.ExitStack
    ) -> socket.socket:
        for index, address in enumerate(addresses):
            try:
                # A share of the time for each, so that one that swallows packets leaves some for the next.
                share_s = _left(deadline) / (len(addresses) - index)
                connection = stack.enter_context(socket.create_connection((address, port), share_s))
            except OSError:
                if index == len(addresses) - 1:
                    raise
            else:
                self._keep(connection, stack)
                return connection
        raise OSError("the name has no address")

    def _keep(self, connection: socket.socket, stack: contextlib.ExitStack) -> None:
        """Let `close` end what waits on *connection*, until *stack* ends."""
        with self._lock:
            if self._closed:
                raise OSError("closed")
            self._open.add(connection)
        stack.callback(self._release, connection)

    def _release(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)


def _request(parts: SplitResult, headers: Mapping[str, str], body: bytes) -> bytes:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [
        f"POST {target} HTTP/1.1",
        f"Host: {parts.netloc}",
        f"User-Agent: tollkeeper/{__version__}",
        "Connection: close",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def _answer(connection: socket.socket, deadline: float) -> DeliveryResult:
    """Read the answer up to its end, its bound or the deadline; only the status matters."""
    received = bytearray()
    try:
        while len(received) < ANSWER_BYTES_MAX:
            connection.settimeout(_left(deadline))
            piece = connection.recv(min(4096, ANSWER_BYTES_MAX - len(received)))
            if not piece:
                break
            received += piece
    except OSError:
        # A receiver that has said its status may end as it likes.
        if _status(received) == 0:
            raise
    status = _status(received)
    if status == 0:
        return DeliveryResult(0, "the answer is not HTTP")
    if 200 <= status < 300:
        return DeliveryResult(status, "")
    return DeliveryResult(
        status, f"the receiver answered {status}" + (", a redirect" if 300 <= status < 400 else "")
    )


def _status(received: bytearray) -> int:
    """Return the status of an answer, past interim ones; 0 while it is not there."""
    at = 0
    while _INTERIM.match(received, at):
        end = received.find(b"\r\n\r\n", at)
        if end < 0:
            return 0
        at = end + 4
    match = _STATUS_LINE.match(received, at)
    return int(match[1]) if match else 0


def _left(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
