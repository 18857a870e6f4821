"""
Which IP addresses belong to the internet at large.

Our own list, from IANA's special-purpose registries, since the interpreter's differs between its versions. It is
narrower, too: what no receiver of ours can have is refused, and so are addresses at which clouds serve their machines.
"""

from __future__ import annotations

import ipaddress
from typing import Final

_NOT_PUBLIC_V4: Final = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # This network.
        "10.0.0.0/8",  # Private.
        "100.64.0.0/10",  # Carriers' NAT; Alibaba's metadata.
        "127.0.0.0/8",  # This machine.
        "168.63.129.16/32",  # Azure's host, public only by its looks.
        "169.254.0.0/16",  # Link-local; the metadata of most clouds.
        "172.16.0.0/12",  # Private.
        "192.0.0.0/24",  # Protocol assignments, those that are routed too; Oracle's metadata.
        "192.0.2.0/24",  # Documentation.
        "192.31.196.0/24",  # AS112: answered by the nearest server.
        "192.52.193.0/24",  # AMT, likewise.
        "192.88.99.0/24",  # 6to4 relays, likewise.
        "192.168.0.0/16",  # Private.
        "192.175.48.0/24",  # AS112.
        "198.18.0.0/15",  # Benchmarks.
        "198.51.100.0/24",  # Documentation.
        "203.0.113.0/24",  # Documentation.
        "224.0.0.0/4",  # Multicast.
        "240.0.0.0/4",  # Reserved, and broadcast.
    )
)
_PUBLIC_V6: Final = ipaddress.IPv6Network("2000::/3")
"""All that is handed out as global unicast; what lies outside is local, mapped, reserved or multicast."""
_NOT_PUBLIC_V6: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # Protocol assignments: Teredo, benchmarks, ORCHID.
        "2001:db8::/32",  # Documentation.
        "2002::/16",  # 6to4: an IPv4 address in it is reached through a relay.
        "2620:4f:8000::/48",  # AS112.
        "3fff::/20",  # Documentation.
    )
)
_HOLDS_V4: Final = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "::ffff:0:0/96",  # IPv4-mapped: the system connects to the IPv4 address.
        "64:ff9b::/96",  # NAT64: a network without IPv4 reaches it by this.
    )
)
_V4_BITS: Final = 0xFFFF_FFFF


def is_public(text: str) -> bool:
    """Return whether an address, in whatever form, belongs to the internet at large; what is no address does not."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    if any(address in network for network in _HOLDS_V4):
        return is_public(str(ipaddress.IPv4Address(int(address) & _V4_BITS)))
    return address in _PUBLIC_V6 and not any(address in network for network in _NOT_PUBLIC_V6)
