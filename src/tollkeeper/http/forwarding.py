"""
The client's address behind a proxy: the last entry of the header that the proxy writes.

Everything before the last entry was sent by the client and can say anything. A proxy either appends to the line
that it got or adds a line of its own, so the last entry of the last line is the only one that it vouches for.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import Final

from tollkeeper.http.asgi_types import RawHeaders

FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})
"""RawHeaders by which a proxy names its client. Their presence says that there is a proxy."""
_ENTRY_BYTES_MAX: Final = 512
"""Of the end of a line that is looked at: an entry of `Forwarded` has a host and a scheme too."""
_NODE: Final = re.compile(r"\[(?P<v6>[^\]]*)\](?::[^:]*)?|(?P<v4>[0-9.]+):[^:]*")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')


def forwarded_address(headers: RawHeaders, name: bytes) -> str:
    """
    Return the address in the last entry of header *name* (lower-case), without its port.

    Returns `""` when the header is missing, or its last entry is no IP address (`unknown`, a host name, nothing).
    """
    last = b""
    for key, value in headers:
        if key == name:
            last = value
    if not last:
        return ""
    # A comma in front, for the first entry; of a longer line the entry's own comma must be in what is left of it.
    return _address_of((b"," + last)[-_ENTRY_BYTES_MAX:].decode("latin-1"), name == b"forwarded")


def names_a_client(headers: RawHeaders) -> bool:
    """Return whether a proxy has passed this request on."""
    return any(name in FORWARDED for name, _ in headers)


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Return what counts as one peer: an IPv4 address, or the /64 of an IPv6 one, the least that a customer has."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address)
    except ValueError:
        return address
    return str(found.ipv4_mapped or found.packed[:8].hex())


@lru_cache(maxsize=4096)
def _address_of(line: str, is_forwarded: bool) -> str:
    if is_forwarded:
        node = _for_of(_last_element(line))
    else:
        _, comma, entry = line.rpartition(",")
        node = entry.strip() if comma else ""
    match = _NODE.fullmatch(node)
    text = node if match is None else match["v6"] or match["v4"] or ""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


def _last_element(line: str) -> str:
    """
    Return the last element of a `Forwarded` line (RFC 7239, section 4), which follows a comma; `""` without one.

    Quotes are counted from the right, where the proxy wrote: one that the client left open, further left, hides
    nothing.
    """
    is_quoted = False
    for at in range(len(line) - 1, -1, -1):
        if line[at] == '"' and (at == 0 or line[at - 1] != "\\"):
            is_quoted = not is_quoted
        elif line[at] == "," and not is_quoted:
            return line[at + 1 :]
    return ""


def _for_of(element: str) -> str:
    """Return the node of the one `for=` of an element, or `""`."""
    # What is quoted may hold a semicolon, too.
    quoted = [match[1] for match in _QUOTED.finditer(element)]
    bare = _QUOTED.sub('"', element)
    found = []
    for pair in bare.split(";"):
        name, _, value = (part.strip() for part in pair.partition("="))
        text = quoted.pop(0) if value == '"' and quoted else value
        if name.lower() == "for":
            found.append(text)
    return found[0] if len(found) == 1 else ""
