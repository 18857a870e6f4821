"""A client of WebSockets (RFC 6455) for text messages below 126 bytes: no more than `prove` sends and gets."""

from __future__ import annotations

import base64
import os
import socket
import struct
from types import TracebackType
from typing import Final

from tollkeeper.console.server_defaults import HOST

CLOSE: Final = 8
_TEXT: Final = 1
_FIN: Final = 0x80
_MASKED: Final = 0x80


class WebSocketRefused(Exception):
    """The handshake was answered with another status than 101."""

    def __init__(self, status: int) -> None:
        super().__init__(f"The handshake was answered {status}.")
        self.status = status


class WebSocketGone(Exception):
    """The connection ended without a close frame."""


class WebSocket:
    """
    One connection. Close it, or use it as a context manager: that ends it without a word.

    Raises:
        WebSocketRefused: The server does not open it.
        OSError, WebSocketGone: The connection broke.
    """

    def __init__(self, port: int, path: str, headers: dict[str, str], timeout_s: float) -> None:
        self._socket = socket.create_connection((HOST, port), timeout_s)
        self._received = b""
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            lines = [
                f"GET {path} HTTP/1.1",
                f"Host: {HOST}:{port}",
                "Connection: Upgrade",
                "Upgrade: websocket",
            ]
            lines += ["Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            while b"\r\n\r\n" not in self._received:
                self._receive()
            head, self._received = self._received.split(b"\r\n\r\n", 1)
            status = int(head.split(b" ", 2)[1])
            if status != 101:
                raise WebSocketRefused(status)
        except BaseException:
            self.drop()
            raise

    def send(self, text: str, opcode: int = _TEXT) -> None:
        payload, mask = text.encode(), os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self._socket.sendall(struct.pack("!BB", _FIN | opcode, _MASKED | len(payload)) + mask + masked)

    def receive(self) -> str | None:
        """Return the text of the next message; None when the other side closes the connection."""
        while True:
            opcode, length = self._take(2)
            payload = self._take(length & 0x7F)
            if opcode & 0x0F == CLOSE:
                return None
            if opcode & 0x0F == _TEXT:
                return payload.decode()

    def close(self) -> None:
        """Close it as the protocol has it, and wait for the other side's word."""
        self._socket.sendall(
            struct.pack("!BB", _FIN | CLOSE, _MASKED | 2) + bytes(4) + struct.pack("!H", 1000)
        )
        while self.receive() is not None:
            pass

    def drop(self) -> None:
        """End the connection without a word."""
        self._socket.close()

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            self._receive()
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def _receive(self) -> None:
        piece = self._socket.recv(4_096)
        if not piece:
            raise WebSocketGone
        self._received += piece

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()
