"""A running server, asked over its API: what `--url` and `--key` stand for."""

from __future__ import annotations

import io
import ipaddress
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

import msgspec

from tollkeeper.adapters.redirects import NoRedirects
from tollkeeper.api.paths import PREFIX
from tollkeeper.console.failures import Failure, misused
from tollkeeper.http.unix_socket import CONTROL_SOCKET, connect

TIMEOUT_S: Final = 600
"""A verify of a large installation takes its time."""
OWNER_ANSWER_S: Final = 5.0
"""How long a connection to the owner of a data directory may take."""


class Server:
    """
    The API of a running server.

    Raises:
        Failure: *url* is no http address.
    """

    def __init__(self, url: str, key: str) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise misused(f"{url} is no address of a server: give one such as http://127.0.0.1:8080.")
        self.url = url.rstrip("/").removesuffix(PREFIX)
        self._key = key
        # The key is for the host that was named, and for no other.
        handlers: list[urllib.request.BaseHandler] = [NoRedirects()]
        if _is_loopback(parts.hostname):
            # A proxy of the environment cannot reach this machine's own ports.
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        media_type: str = "application/json",
    ) -> Any:
        """
        Return the decoded JSON of an answer; None when it is empty.

        Args:
            path: Below `/tk/v1`, e.g. `/usage`.

        Raises:
            Failure: The server refused, with its reason, or cannot be reached.
        """
        url = f"{self.url}{PREFIX}{path}"
        if query:
            url += "?" + urllib.parse.urlencode(query)
        request = urllib.request.Request(url, data=body, method=method)
        request.add_header("Authorization", f"Bearer {self._key}")
        request.add_header("Accept", "application/json")
        if body is not None:
            request.add_header("Content-Type", media_type)
        try:
            content = self._sent(request)
        except urllib.error.HTTPError as exc:
            raise Failure(_refusal(exc)) from None
        except (OSError, HTTPException) as exc:
            reason = getattr(exc, "reason", None) or exc
            if isinstance(reason, (BrokenPipeError, ConnectionResetError)):
                # A server refuses a large body without reading all of it; its answer is then lost.
                raise Failure(
                    f"{self.url} broke off the call: is the key right, and the body not too large?"
                ) from None
            raise Failure(f"{self.url} cannot be reached: {reason}. Is the server running?") from None
        try:
            return msgspec.json.decode(content) if content else None
        except msgspec.DecodeError:
            raise Failure(f"{self.url} answered what is not JSON: is it a Tollkeeper server?") from None

    def _sent(self, request: urllib.request.Request) -> bytes:
        with self._opener.open(request, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read()
            return content


class Owner(Server):
    """The process that has a data directory open, asked through the socket in it (`http.control`): without a key."""

    def __init__(self, path: Path) -> None:
        self.url = f"http://{path.name}"
        self._path = path
        self._key = "none"

    def _sent(self, request: urllib.request.Request) -> bytes:
        connection = HTTPConnection("localhost", timeout=TIMEOUT_S)
        connection.sock = connect(self._path, TIMEOUT_S)
        try:
            body = request.data
            connection.request(request.get_method(), request.selector, body, dict(request.header_items()))
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise urllib.error.HTTPError(
                request.full_url, answer.status, answer.reason, answer.headers, io.BytesIO(content)
            )
        return content


def owner_of(data_dir: str) -> Owner | None:
    """Return the running owner of a data directory that can be asked through its socket, or None."""
    path = Path(data_dir).absolute() / CONTROL_SOCKET
    try:
        connect(path, OWNER_ANSWER_S).close()
    except PermissionError:
        raise Failure(
            f"{path} may not be used by this user: run the command as the user of the process that has it open, or ask "
            "a server with --url and --key."
        ) from None
    except OSError:
        return None  # Nobody has the directory, or somebody without a socket, which its lock then says.
    return Owner(path)


def _refusal(exc: urllib.error.HTTPError) -> str:
    """Return what a problem document says, or the status where the answer is none."""
    try:
        problem = msgspec.json.decode(exc.read())
        detail = problem["detail"]
    except (OSError, HTTPException, msgspec.DecodeError, TypeError, KeyError):
        return f"The server answered {exc.code} {exc.reason}: is it a Tollkeeper server?"
    return f"{detail} (HTTP {exc.code}, {problem.get('code', 'no code')})"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
