"""Calls the application as the server does, with any bytes at all, and checks that the answer is well-formed."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from tollkeeper.http.app import App

Headers = Sequence[tuple[bytes, bytes]]
ANSWER_S_MAX: Final = 60
"""An answer that takes longer hangs."""


class Answer(NamedTuple):
    """What the application answered."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str:
        """Return the value of a header, or `""`."""
        return next((v.decode("latin-1") for k, v in self.headers if k == name.encode()), "")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """
    Calls *app*. Each call without a peer comes from an address of its own.

    Whatever the application raises, the test sees: the server would answer 500.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        self._runner = asyncio.Runner()
        self._peers = itertools.count(1)

    def __call__(
        self,
        method: str,
        target: str,
        headers: Headers = (),
        body: bytes | Sequence[bytes] = b"",
        *,
        peer: str | None = None,
    ) -> Answer:
        """*target* is percent-encoded; a body of several pieces arrives in these."""
        number = next(self._peers)
        address = peer or f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        raw_path, _, query = target.partition("?")
        pieces = [body] if isinstance(body, bytes) else list(body) or [b""]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "server": ("127.0.0.1", 8080),
            "client": (address, 1),
            "root_path": "",
            "path": unquote(raw_path, errors="replace"),
            "raw_path": raw_path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "headers": [(name.lower(), value) for name, value in headers],
            "state": {},
        }
        return self._runner.run(self._call(scope, pieces))

    async def _call(self, scope: dict[str, Any], pieces: list[bytes]) -> Answer:
        waiting = [
            {"type": "http.request", "body": piece, "more_body": number < len(pieces)}
            for number, piece in enumerate(pieces, 1)
        ]
        sent: list[dict[str, Any]] = []
        answered = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not waiting:
                # The client stays until it has its answer.
                await answered.wait()
                return {"type": "http.disconnect"}
            return waiting.pop(0)

        async def send(message: Any) -> None:
            sent.append(dict(message))
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered.set()

        await asyncio.wait_for(self.app(scope, receive, send), ANSWER_S_MAX)
        return _answer(sent, scope["method"])

    def close(self) -> None:
        self._runner.close()


def _answer(sent: list[dict[str, Any]], method: str) -> Answer:
    assert [message["type"] for message in sent][:1] == ["http.response.start"]
    assert {message["type"] for message in sent[1:]} == {"http.response.body"}
    headers = [(bytes(name), bytes(value)) for name, value in sent[0]["headers"]]
    for name, value in headers:
        assert name == name.lower(), name
        assert not set(value) & {0, 10, 13}, (name, value)
        if name == b"content-type":
            # A parameter given twice makes a strict reader, such as Prometheus, refuse the whole answer.
            parameters = [part.partition(b"=")[0].strip() for part in value.split(b";")]
            assert len(set(parameters)) == len(parameters), value
    body = b"".join(message.get("body", b"") for message in sent[1:])
    lengths = [int(value) for name, value in headers if name == b"content-length"]
    assert lengths in ([], [len(body)]) or method == "HEAD", (lengths, len(body))
    return Answer(sent[0]["status"], headers, body)
