"""Asking a server: the key goes to the host that was named, and every failure is one clear line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tollkeeper.console.failures import Failure
from tollkeeper.console.server_client import Server


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[str, list[Any]]]:
    """Yield the URL of a server that always answers so, and the requests that it got."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, dict(self.headers)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_call_carries_key_and_query() -> None:
    with answering(200, {}, b'{"ok":true}') as (url, requests):
        assert Server(url + "/", "ok_secret").call("GET", "/usage", query=[("account", "a&b")]) == {
            "ok": True
        }
    ((path, headers),) = requests
    assert path == "/tk/v1/usage?account=a%26b"
    assert headers["Authorization"] == "Bearer ok_secret"


def test_the_key_follows_no_redirect() -> None:
    """It was given for one host; where that points to is none of its business."""
    with (
        answering(200, {}, b"{}") as (elsewhere, stolen),
        answering(302, {"Location": elsewhere}, b"") as (url, _),
        pytest.raises(Failure, match="302"),
    ):
        Server(url, "ok_secret").call("GET", "/usage")
    assert stolen == []


def test_a_refusal_is_told_in_the_servers_words() -> None:
    body = b'{"detail":"There is no such account.","code":"not_found","status":404}'
    with answering(404, {}, body) as (url, _), pytest.raises(Failure) as caught:
        Server(url, "ok_secret").call("GET", "/usage")
    assert str(caught.value) == "There is no such account. (HTTP 404, not_found)"
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (500, b"<html>"), (500, b"[]")])
def test_another_kind_of_server_is_recognised(status: int, body: bytes) -> None:
    with answering(status, {}, body) as (url, _), pytest.raises(Failure, match="is it a Tollkeeper server"):
        Server(url, "ok_secret").call("GET", "/usage")


def test_a_server_that_is_not_there_is_said_so() -> None:
    with answering(200, {}, b"{}") as (url, _):
        pass
    with pytest.raises(Failure, match="cannot be reached"):
        Server(url, "ok_secret").call("GET", "/usage")
