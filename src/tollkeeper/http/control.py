"""
The socket of a running owner of a data directory: through it the command line works while an application runs.

It is `control.sock` in the directory, of mode 0600, and serves the API of `tollkeeper serve`. A caller needs no key and
has the operator's rights: it must be the same user of the machine, or root, who can read and write every file of the
directory anyway. No other user may connect, whatever the mode of the directory is.

The owner has the directory's lock, so a socket that is there when it starts is of a process that was killed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import stat
import struct
import threading
import weakref
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from tollkeeper.domain.keys import OPERATOR_PREFIX, hash_secret, new_secret
from tollkeeper.http.unix_socket import CONTROL_SOCKET, MODE, address_of, connect
from tollkeeper.installation import Installation

if TYPE_CHECKING:
    from tollkeeper.http.app import App
    from tollkeeper.http.asgi_types import Message

CALLS_MAX: Final = 16
"""At once; further ones wait."""
_IDLE_S: Final = 30.0
"""How long a connection may take to send its request."""
_END_S: Final = 10.0
"""How long the end waits for the calls that are under way."""
_TOO_LARGE: Final = (
    b'{"title":"Body too large","status":413,"detail":"The body is too large.","code":"body_too_large"}'
)

log = logging.getLogger("tollkeeper.control")
_open: weakref.WeakSet[ControlSocket] = weakref.WeakSet()


class ControlSocket:
    """Serves an installation through the socket in its data directory until `close`; made by `open_control`."""

    def __init__(self, installation: Installation) -> None:
        """
        Listen.

        Raises:
            OSError: The socket cannot be made.
        """
        self.path: Final = Path(installation.settings.data_dir).absolute() / CONTROL_SOCKET
        self._installation = installation
        # Nobody else knows it: it stands for the caller of the socket, in this process only.
        self.secret: Final = new_secret(OPERATOR_PREFIX, secrets.choice)
        self.body_bytes_max: Final = installation.settings.body_bytes_max
        self._lock = threading.Lock()
        self._app: App | None = None
        self._turns = threading.Semaphore(CALLS_MAX)
        self._calls: dict[threading.Thread, socket.socket] = {}
        self._closed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_socket(self.path)
            with address_of(self.path) as address:
                self._socket.bind(address)
            # Before it listens: until then a connection is refused.
            self.path.chmod(MODE)
            self._inode = self.path.stat().st_ino
            self._socket.listen(CALLS_MAX)
        except BaseException:
            self._socket.close()
            raise
        _open.add(self)
        threading.Thread(target=self._accept, name="tollkeeper-control", daemon=True).start()

    def app(self) -> App:
        """Return the surface that answers, made when it is first needed: most processes are never asked."""
        with self._lock:
            if self._closed:
                raise OSError("the installation is closed")
            if self._app is None:
                from tollkeeper.http.app import build_app

                self._app = build_app(self._installation, {hash_secret(self.secret)})
            return self._app

    def close(self) -> None:
        """Remove the socket, and wait for the calls that are under way. A repeat changes nothing."""
        if self._closed:
            return
        with self._lock:
            self._closed = True
            calls, app = list(self._calls), self._app
            for connection in self._calls.values():
                # Who has not sent a request by now is not waited for.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
        try:
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()
        except OSError as exc:
            log.debug("tollkeeper.control.gone", extra={"reason": str(exc)})
        self._wake()
        if app is not None:
            app.executors.stop_queries()
        for call in calls:
            call.join(_END_S)
        if app is not None:
            app.close()

    def left_to_parent(self) -> None:
        """In a forked child: close the copy of the socket, on which callers would wait after the parent's end."""
        # Without the lock, which a thread that the child lacks may hold.
        self._closed = True
        self._socket.close()

    def _wake(self) -> None:
        """End the thread that accepts."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except (
            OSError
        ) as exc:  # Not every system can shut a listening socket down; closed, it accepts no more.
            log.debug("tollkeeper.control.shutdown", extra={"reason": str(exc)})
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if not _may_call(connection):
                connection.close()
                continue
            call = threading.Thread(
                target=self._serve, args=(connection,), name="tollkeeper-control-call", daemon=True
            )
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._calls[call] = connection
                call.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(_IDLE_S)
            with connection, self._turns:
                _Call(connection, "", self)  # type: ignore[arg-type]
        except OSError as exc:
            log.debug("tollkeeper.control.hung_up", extra={"reason": str(exc)})
        finally:
            with self._lock:
                self._calls.pop(threading.current_thread(), None)


class _NoControl:
    """In place of a socket that could not be made."""

    def close(self) -> None:
        """Do nothing."""


def open_control(installation: Installation) -> ControlSocket | _NoControl:
    """Return the socket of *installation*. Without one, which the log says, all else works."""
    try:
        return ControlSocket(installation)
    except OSError as exc:
        log.warning(
            "tollkeeper.control.unavailable",
            extra={"reason": f"commands cannot reach this process: {exc.strerror or exc}"},
        )
        return _NoControl()


class _Call(BaseHTTPRequestHandler):
    """One request, answered by the surface as any other."""

    protocol_version = "HTTP/1.0"
    server: Any

    def _answer(self) -> None:
        control: ControlSocket = self.server
        length = int(self.headers.get("Content-Length") or 0)
        if length > control.body_bytes_max:
            self._send(413, [(b"content-type", b"application/problem+json")], _TOO_LARGE)
            return
        body = self.rfile.read(length)
        path, _, query = self.path.partition("?")
        # The credential is the connection.
        headers = [(n.lower().encode(), v.encode("latin-1")) for n, v in self.headers.items()]
        headers = [(name, value) for name, value in headers if name not in _CREDENTIALS]
        headers.append((b"authorization", f"Bearer {control.secret}".encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.command,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 0),
            "server": ("localhost", None),
        }
        self._send(*asyncio.run(_asked(control.app(), scope, body)))

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def _send(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name != b"content-length":
                self.send_header(name.decode("latin-1"), value.decode("latin-1"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: a line of this form is for a terminal."""


_CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})


async def _asked(
    app: App, scope: dict[str, Any], body: bytes
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return what *app* answers: status, headers, body."""
    unread = [body]
    start: list[Message] = []
    pieces: list[bytes] = []

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        # Nobody looks whether the caller hangs up: an answer is bounded in time.
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.append(message)
        else:
            pieces.append(message.get("body", b""))

    await app(scope, receive, send)
    return start[0]["status"], list(start[0]["headers"]), b"".join(pieces)


def _may_call(connection: socket.socket) -> bool:
    """Return whether the caller is a process of this user, or of root; elsewhere than on Linux the mode says so."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", peer)
    return uid in (os.geteuid(), 0)


def _remove_socket(path: Path) -> None:
    """Remove the socket that a killed process left. Raises `OSError` where something else is."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(f"{path} exists and is no socket: remove it")
    try:
        connect(path, 1.0).close()
    except OSError:
        path.unlink(missing_ok=True)
        return
    raise OSError(f"another process listens on {path}")


def _in_child() -> None:
    for control in list(_open):
        control.left_to_parent()
    _open.clear()


os.register_at_fork(after_in_child=_in_child)
