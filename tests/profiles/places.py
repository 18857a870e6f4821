"""
The places where tests meet a profile, and the clients that ask there.

`Remote` is a running server, asked over HTTP by a real client: Python's `requests` or JavaScript's `fetch`.
`Local` is an application in this process, by a clock that the test moves.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Any, Final, Protocol

import httpx
import pytest
import requests

from tests.end_to_end.server import OPERATOR_KEY, Server
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.http.app import App, build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation
from tollkeeper.profiles.base import Profile
from tollkeeper.testing import set_up, unique

Answer = requests.Response | httpx.Response
OPERATOR: Final = {"Authorization": f"Bearer {OPERATOR_KEY}"}
NODE: Final = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="Node is absent")
WAIT_S: Final = 60
ADDRESS_HEADER: Final = "X-Forwarded-For"
"""The header with the caller's address, for the servers of these tests."""
FIRST_ADDRESS: Final = IPv4Address("10.0.0.0")
_peers = itertools.count(1)

# One request per line in, one answer per line out.
_FETCH: Final = """
const lines = require('readline').createInterface({ input: process.stdin })
lines.on('line', async line => {
  const { method, url, headers, body, ms } = JSON.parse(line)
  let answered
  try {
    const signal = AbortSignal.timeout(ms)
    const answer = await fetch(url, { method, headers, signal, redirect: 'manual',
      body: body === null ? undefined : Buffer.from(body, 'base64') })
    const bytes = Buffer.from(await answer.arrayBuffer())
    const json = (answer.headers.get('content-type') || '').includes('json')
    answered = { status: answer.status, headers: [...answer.headers], body: bytes.toString('base64'),
      read: json && bytes.length ? JSON.parse(bytes.toString()) : null }
  } catch (error) { answered = { failed: String(error.cause || error) } }
  console.log(JSON.stringify(answered))
})
"""


class Client(Protocol):
    """Sends one request: its arguments and its answer are those of `requests.request`."""

    def request(self, method: str, url: str, **options: Any) -> requests.Response: ...


class Requests:
    """Python's `requests`."""

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        return requests.request(method, url, timeout=WAIT_S, **options)


class Fetch:
    """JavaScript's `fetch`, in one process of Node that answers request after request."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Fetch]:
        assert NODE is not None
        process = subprocess.Popen(
            [NODE, "-e", _FETCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            yield cls(process)
        finally:
            process.communicate(timeout=WAIT_S)

    def request(self, method: str, url: str, **options: Any) -> requests.Response:
        asked = requests.Request(method, url, **options).prepare()
        body = asked.body.encode() if isinstance(asked.body, str) else asked.body
        headers = {
            _text(name): _text(value)
            for name, value in asked.headers.items()
            if _text(name).lower() != "content-length"
        }
        line = {
            "method": method,
            "url": asked.url,
            "headers": headers,
            "body": None if not body else base64.b64encode(body).decode(),
            "ms": WAIT_S * 1000,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        answered = json.loads(self._process.stdout.readline())
        assert "failed" not in answered, answered
        answer = requests.Response()
        answer.status_code = answered["status"]
        answer.headers.update(answered["headers"])
        answer.encoding = "utf-8"
        answer._content = base64.b64decode(answered["body"])
        if answered["read"] is not None:
            # JavaScript has one kind of number: what it reads must be what was sent.
            assert answered["read"] == answer.json()
        return answer


class Remote:
    """A profile as the running server speaks it, at one of its two places."""

    def __init__(self, server: Server, base: str, client: Client | None = None) -> None:
        self.server = server
        self.base = base
        self.url = server.url + base
        self.client = client or Requests()

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request to a vendor's path; options are those of `requests.request`."""
        # From its own address, in a header: failures of many tests would block their one host.
        headers = {ADDRESS_HEADER: new_address()}
        headers |= options.pop("headers", {})
        return self.client.request(method, self.url + path, headers=headers, **options)

    def operate(self, path: str, body: Any) -> requests.Response:
        """Post to our own API as the operator."""
        return self.client.request("POST", self.server.url + path, json=body, headers=OPERATOR)

    def book(self, key_id: str, *events: Mapping[str, Any]) -> list[str]:
        """Book events of now by a key; return their ids."""
        sent = made_events(key_id, datetime.now(UTC), *events)
        answer = self.server.post("/tk/v1/events", sent)
        assert answer["accepted"] == len(sent), answer
        return [event["id"] for event in sent]


class Local:
    """An application in this process, by a clock that the test moves."""

    def __init__(self, app: App, base: str = "") -> None:
        self.app = app
        self.base = base
        self.site: Installation = app.installation

    def request(self, method: str, path: str, *, app: Any = None, **options: Any) -> httpx.Response:
        """Send a request to *path*, whole, of the application or of another one."""
        return reach(self.app if app is None else app, method, path, **options)

    def operate(self, path: str, body: Any) -> httpx.Response:
        """Post to our own API as the operator."""
        return self.request("POST", path, json=body, headers=OPERATOR)

    def book(self, key_id: str, at: datetime, *events: Mapping[str, Any]) -> None:
        """Book events of *at* by a key."""
        sent = made_events(key_id, at, *events)
        answer = self.operate("/tk/v1/events", sent)
        assert answer.json().get("accepted") == len(sent), answer.text


def reach(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request to an ASGI application in this process."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(new_address(), 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://toll") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


@contextmanager
def application(site: Installation, profile: Profile) -> Iterator[App]:
    """Give the HTTP surface of *site*, with the catalog of *profile*."""
    # Before the application, which reads the operator keys when it is built.
    ensure_operator_key(site, OPERATOR_KEY)
    set_up(site, *parse_declaration(profile.catalog))
    app = build_app(site)
    try:
        yield app
    finally:
        app.close()


def new_address() -> str:
    """Return an address that no other request has."""
    return str(FIRST_ADDRESS + next(_peers))


def made_events(key_id: str, at: datetime, *events: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return *events* with an id, a time and a key each, where they have none; a None member is left out."""
    made = [{"id": unique("event"), "time": at.isoformat(), "key_id": key_id, **event} for event in events]
    return [{name: value for name, value in event.items() if value is not None} for event in made]


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
