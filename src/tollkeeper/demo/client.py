"""The provider's side of the demonstration: calls the gate over HTTP, on connections that stay open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper.api.paths import PREFIX
from tollkeeper.errors import Unavailable

TIMEOUT_S: Final = 30
READY_WITHIN_S: Final = 120.0
"""A store opens in 2 s on a quiet machine; on one with a load of 25 on two cores it took over a minute."""
READY_POLL_S: Final = 0.1
IDLE_S_MAX: Final = 5.0
"""A connection that was idle for longer is opened again: the server closes one after 30 s, in the middle of a call."""


class ApiAnswer(NamedTuple):
    """Status and decoded JSON of one answer."""

    status: int
    body: Any


class ApiClient:
    """The API of one server. Any thread may call; each has a connection of its own."""

    def __init__(self, host: str, port: int, operator_key: str) -> None:
        self._host = host
        self._port = port
        self._headers = {"Authorization": f"Bearer {operator_key}", "Content-Type": "application/json"}
        self._local = threading.local()
        self._close: list[Callable[[], None]] = []

    def send(self, method: str, path: str, body: Any = None, *, media_type: str | None = None) -> ApiAnswer:
        """
        Return the answer to one call; *body* is sent as JSON, bytes as they are.

        Raises:
            Unavailable: The server cannot be reached, or answers what is not JSON.
        """
        content = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        headers = {**self._headers, "Content-Type": media_type} if media_type else self._headers
        try:
            return self._answer(method, PREFIX + path, content, headers)
        except (OSError, HTTPException, msgspec.DecodeError) as exc:
            raise Unavailable(f"The server does not answer {method} {path}: {exc}.") from exc

    def get(self, method: str, path: str, body: Any = None, *, media_type: str | None = None) -> Any:
        """
        Return the JSON of an answer that is expected to be good.

        Raises:
            Unavailable: It is not.
        """
        answer = self.send(method, path, body, media_type=media_type)
        if answer.status >= 400:
            raise Unavailable(f"{method} {path} was refused: {answer.status} {answer.body.get('detail')}")
        return answer.body

    def ask(self, method: str, path: str, headers: Mapping[str, str]) -> ApiAnswer:
        """
        Return the answer to a call of a customer's own: any path, with these headers and no others.

        Raises:
            Unavailable: The server cannot be reached, or answers what is not JSON.
        """
        try:
            return self._answer(method, path, None, headers)
        except (OSError, HTTPException, msgspec.DecodeError) as exc:
            raise Unavailable(f"The server does not answer {method} {path}: {exc}.") from exc

    def await_ready(self, within_s: float = READY_WITHIN_S) -> None:
        """
        Return when the server has its stores open: it accepts connections before.

        Raises:
            Unavailable: It has not, after *within_s*.
        """
        ends_s = time.monotonic() + within_s
        while (answer := self.ask("GET", "/readyz", {})).status != 200:
            if time.monotonic() >= ends_s:
                raise Unavailable(f"The server is not ready: {', '.join(answer.body.get('reasons', ()))}.")
            time.sleep(READY_POLL_S)

    def close(self) -> None:
        """Close all connections. No call may be under way."""
        for close in self._close:
            close()

    def _answer(self, method: str, path: str, content: bytes | None, headers: Mapping[str, str]) -> ApiAnswer:
        connection = self._connection()
        try:
            connection.request(method, path, content, dict(headers))
            answer = connection.getresponse()
            return ApiAnswer(answer.status, msgspec.json.decode(answer.read()))
        finally:
            self._local.used_at_s = time.monotonic()

    def _connection(self) -> HTTPConnection:
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None and time.monotonic() - self._local.used_at_s > IDLE_S_MAX:
            connection.close()  # It is opened again by the next request.
        if connection is None:
            connection = self._local.connection = HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
            self._close.append(connection.close)
        return connection
