"""The demonstration waits for a server that accepts connections before its stores are open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tollkeeper.demo.client import ApiClient
from tollkeeper.errors import Unavailable


class Opening(BaseHTTPRequestHandler):
    """Ready at the third question."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        ready = len(self.asked) > 2
        body = (
            b'{"ready":true}' if ready else b'{"ready":false,"reasons":["the usage store is still opening"]}'
        )
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def opening() -> Iterator[tuple[ApiClient, list[str]]]:
    Opening.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Opening)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = ApiClient("127.0.0.1", server.server_port, "ok_x")
    yield client, Opening.asked
    client.close()
    server.shutdown()
    server.server_close()


def test_it_waits_until_the_stores_are_open(opening: tuple[ApiClient, list[str]]) -> None:
    client, asked = opening
    client.await_ready()
    assert asked == ["/readyz"] * 3


def test_it_says_what_is_not_ready_when_the_time_is_up(opening: tuple[ApiClient, list[str]]) -> None:
    client, _ = opening
    with pytest.raises(Unavailable, match="not ready: the usage store is still opening"):
        client.await_ready(within_s=0)
