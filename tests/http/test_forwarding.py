"""The client's address behind a proxy is what the proxy wrote, in whatever form, and never what the client wrote."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.http.forwarding import forwarded_address, network_of

XFF = b"x-forwarded-for"


def lines(*values: bytes, name: bytes = XFF) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"toll"), *((name, value) for value in values), (b"accept", b"*/*")]


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ([b"203.0.113.7"], "203.0.113.7"),
        ([b"10.0.0.1, 203.0.113.7"], "203.0.113.7"),
        ([b"10.0.0.1,203.0.113.7 "], "203.0.113.7"),
        # HAProxy's `option forwardfor` adds a line of its own.
        ([b"10.0.0.1", b"203.0.113.7"], "203.0.113.7"),
        ([b"10.0.0.1, 10.0.0.2", b"10.0.0.3, 203.0.113.7"], "203.0.113.7"),
        # Azure's gateways add the port.
        ([b"203.0.113.7:50123"], "203.0.113.7"),
        ([b"[2001:db8::1]:50123"], "2001:db8::1"),
        ([b"[2001:db8::1]"], "2001:db8::1"),
        ([b"2001:db8::1"], "2001:db8::1"),
        ([b"2001:DB8:0:0::1"], "2001:db8::1"),
        ([b"::ffff:203.0.113.7"], str(ipaddress.ip_address("::ffff:203.0.113.7"))),
        # No address: the peer counts.
        ([], ""),
        ([b""], ""),
        ([b"203.0.113.7, "], ""),
        ([b"203.0.113.7", b""], ""),
        ([b"unknown"], ""),
        ([b"203.0.113.7, localhost"], ""),
        ([b"203.0.113.300"], ""),
        ([b"203.0.113.07"], ""),
        ([b"1.2.3.4.5:80"], ""),
        ([b"[203.0.113.7"], ""),
        ([b"for=203.0.113.7"], ""),
        ([b"\xb2.0.0.1"], ""),
        ([b"a" * 100_000], ""),
        ([b"1" * 100_000 + b", 203.0.113.7"], "203.0.113.7"),
    ],
)
def test_the_last_entry_of_all_lines_counts(values: list[bytes], address: str) -> None:
    assert forwarded_address(lines(*values), XFF) == address


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ([b"for=203.0.113.7"], "203.0.113.7"),
        ([b"For=203.0.113.7;proto=https;by=10.0.0.1"], "203.0.113.7"),
        ([b"proto=https; for=203.0.113.7 ;host=toll"], "203.0.113.7"),
        ([b'for="203.0.113.7:4711"'], "203.0.113.7"),
        ([b'for="[2001:db8::1]:4711"'], "2001:db8::1"),
        ([b'for="[2001:db8::1]"'], "2001:db8::1"),
        ([b'for="[2001:db8::1]:_port"'], "2001:db8::1"),
        ([b"for=10.0.0.1, for=203.0.113.7"], "203.0.113.7"),
        ([b"for=10.0.0.1", b"for=203.0.113.7"], "203.0.113.7"),
        # What the client wrote may not swallow what the proxy adds, nor be taken for it.
        ([b'for="10.0.0.1, for=203.0.113.7'], "203.0.113.7"),
        ([b'for="10.0.0.1\\", for=203.0.113.7;proto=https'], "203.0.113.7"),
        ([b'for=203.0.113.7;host="a, for=10.0.0.1"'], "203.0.113.7"),
        ([b'for=203.0.113.7;host="a\\", for=10.0.0.1"'], "203.0.113.7"),
        ([b'for=203.0.113.7;host="a;for=10.0.0.1"'], "203.0.113.7"),
        ([b"for=203.0.113.7;for=10.0.0.1"], ""),
        # Of a host name without end, the client's as well, what is left must not read as another entry.
        ([b'for=203.0.113.7;host="' + b"a" * 600 + b';for=10.0.0.1;x"'], ""),
        ([b"for=10.0.0.1;x=" + b"a" * 600 + b", for=203.0.113.7"], "203.0.113.7"),
        ([b"for=unknown"], ""),
        ([b"for=_hidden"], ""),
        ([b"proto=https"], ""),
        ([b"203.0.113.7"], ""),
        ([b'for="'], ""),
        ([b""], ""),
    ],
)
def test_forwarded_is_read_in_its_own_form(values: list[bytes], address: str) -> None:
    assert forwarded_address(lines(*values, name=b"forwarded"), b"forwarded") == address


@given(st.binary(max_size=80), st.ip_addresses(), st.booleans())
def test_nothing_that_a_client_sends_changes_what_the_proxy_adds(
    claimed: bytes, address: object, in_own_line: bool
) -> None:
    for name, added in ((XFF, str(address)), (b"forwarded", f'for="[{address}]"')):
        told = [claimed, added.encode()] if in_own_line else [claimed + b", " + added.encode()]
        assert forwarded_address(lines(*told, name=name), name) == str(address)


@given(st.binary(max_size=80))
def test_any_bytes_are_an_address_or_none(told: bytes) -> None:
    for name in (XFF, b"forwarded", b"x-real-ip"):
        network_of(forwarded_address(lines(told, name=name), name))
