"""A proxy before a server that breaks connections when a test says so: before the server had the call, or after."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

Fault = Literal["before", "after", "last", "late", "502", "503", "close", ""]
"""
`before`: the connection breaks without the server having the call; `after`: the server did it and its answer is lost;
`last`: as `after`, and connections are refused from then on until `listen`; `late`: the server has it only after
`release`; a status: the server never has it; `close`: answered, and the kept connection is closed without a word.
"""


class Proxy:
    """Breaks the next calls as `faults` says, in their order; passes all others."""

    def __init__(self, target: str) -> None:
        self.faults: deque[Fault] = deque()
        self.calls: list[str] = []
        """The paths of all calls that arrived here."""
        self.passed: list[str] = []
        """The paths of those that the server answered."""
        self.connection_count = 0
        self.release = threading.Event()
        parts = urlsplit(target)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                proxy.connection_count += 1
                super().setup()

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.calls.append(self.path)
                fault = proxy.faults.popleft() if proxy.faults else ""
                self.close_connection = fault in ("before", "after", "last", "close")
                if fault == "before":
                    return
                if fault.isdigit():
                    self._answer(int(fault), b"<html>away</html>")
                    return
                if fault == "late":
                    proxy.release.wait(30)
                upstream = HTTPConnection(parts.hostname or "", parts.port, timeout=30)
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                content = answer.read()
                upstream.close()
                proxy.passed.append(self.path)
                if fault == "last":
                    proxy._close()
                if fault not in ("after", "last"):
                    self._answer(answer.status, content)

            def _answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = handle_one

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._handler = Handler
        self._port = 0
        self.listen()
        self.url = f"http://127.0.0.1:{self._port}"

    def listen(self) -> None:
        """Take connections, on the port of before if there was one."""
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._server.daemon_threads = True
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def _close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        try:
            yield self
        finally:
            self._close()
