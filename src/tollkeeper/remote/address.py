"""The address of a server: `http://host:port`, `https://host`, or `unix:/path` of its socket."""

from __future__ import annotations

import ssl
import urllib.parse
from typing import NamedTuple

from tollkeeper.api.paths import PREFIX
from tollkeeper.errors import BadParameter


class Address(NamedTuple):
    """
    Where a server listens.

    Attributes:
        shown: For messages; without a password.
        path: Of the Unix socket; "" for TCP.
        prefix: Goes before every path, e.g. `/toll` behind a proxy.
        tls: Checks the certificate; None without TLS.
    """

    shown: str
    host: str
    port: int
    path: str
    prefix: str
    tls: ssl.SSLContext | None


def parse_address(url: str) -> Address:
    """Return the address that *url* states. Raises `BadParameter`."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise BadParameter(
                f"url must name a socket by its whole path, such as unix:/run/tollkeeper.sock, not {url!r}",
                field="url",
            )
        return Address(f"unix:{path}", "localhost", 0, path, "", None)
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urllib.parse.urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise BadParameter(
            "url must be the address of a server, such as http://127.0.0.1:8080 or unix:/run/tollkeeper.sock",
            field="url",
        )
    prefix = parts.path.rstrip("/").removesuffix(PREFIX)
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    port = port or (443 if tls else 80)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(f"{parts.scheme}://{host}:{port}{prefix}", parts.hostname, port, "", prefix, tls)


def host_header(address: Address) -> str:
    """Return the value of `Host` (RFC 9112, section 3.2)."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{host}:{address.port}" if address.port else host
