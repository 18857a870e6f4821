"""A receiver of webhooks on loopback: a real HTTP or HTTPS server whose answers the test decides."""

from __future__ import annotations

import datetime
import ipaddress
import json
import queue
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

WAIT_S = 20.0
"""The most that a test waits for what must come."""


class Received(NamedTuple):
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes


class Receiver:
    """What arrived, and what is answered: 200 unless `answers` has something else for the next request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.arrived: queue.Queue[Received] = queue.Queue()
        self.answers: queue.Queue[bytes] = queue.Queue()
        """Whole answers, sent as they are. An empty one is none: the connection stays open."""
        self.let_go = threading.Event()
        """Ends connections that stay open."""

    def next(self) -> Received:
        return self.arrived.get(timeout=WAIT_S)

    def threshold(self) -> int:
        """Return the threshold that the next message tells."""
        return int(json.loads(self.next().body)["data"]["threshold"])

    def answer(self, *statuses: int) -> None:
        """Answer the next requests so."""
        for status in statuses:
            self.answers.put(answer_of(status))


def answer_of(status: int, headers: str = "", body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status} Whatever\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Yield a running receiver; with *tls* it speaks HTTPS."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            here.arrived.put(Received(self.path, headers, body))
            try:
                answer = here.answers.get_nowait()
            except queue.Empty:
                answer = answer_of(200)
            if answer:
                self.wfile.write(answer)
            else:
                here.let_go.wait(WAIT_S)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "http" if tls is None else "https"
    here = Receiver(f"{scheme}://127.0.0.1:{server.server_address[1]}/hook?x=1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield here
    finally:
        here.let_go.set()
        server.shutdown()
        thread.join()
        server.server_close()


def certificate(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return contexts of a server for `localhost` and 127.0.0.1, and of a client that trusts only that."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = directory / "server.pem"
    pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    return server, ssl.create_default_context(cadata=made.public_bytes(serialization.Encoding.PEM).decode())
