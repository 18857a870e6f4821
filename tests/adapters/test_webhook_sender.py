"""
A message reaches its receiver, and nothing that only this machine may reach: no private address, whatever the
name says now or says next, and no redirect.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.alerts.receiver import WAIT_S, Receiver, answer_of, certificate, receiver
from tollkeeper.adapters.webhook_sender import ANSWER_BYTES_MAX, HttpWebhookSender
from tollkeeper.domain.addresses import is_public

BODY = b'{"id": "evt_1"}'
HEADERS = {"content-type": "application/json", "webhook-id": "evt_1"}

REFUSED = [
    "127.0.0.1",
    "127.255.255.254",
    "::1",
    "::",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.0.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "not an address",
    # What the interpreter's own list has as public, or had in some version.
    "192.0.0.9",
    "192.0.0.10",
    "192.0.0.170",
    "192.0.0.192",
    "192.88.99.1",
    "168.63.129.16",
    "100.100.100.200",
    "100.127.255.255",
    "fd00:ec2::254",
    "fd12:3456::1",
    "::ffff:168.63.129.16",
    "::ffff:100.64.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::a83f:8110",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "64:ff9b:1::808:808",
    "2002:808:808::1",
    "2002:a9fe:a9fe::",
    "2001:0:808:808::f5ff:fffe",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:1::1",
    "2001:1ff:ffff::1",
    "3fff::1",
    "5f00::1",
    "100::1",
    "4000::1",
    "::8.8.8.8",
    "ff0e::1",
    "01.2.3.4",
    "2130706433",
    "",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
PUBLIC += [
    "168.63.129.15",
    "168.63.129.17",
    "100.63.255.255",
    "100.128.0.0",
    "192.0.1.1",
    "172.32.0.1",
    "223.255.255.255",
]
PUBLIC += ["2001:200::1", "2a00:1450::1", "2001:4860:4860::8888", "2400:cb00::1"]


class Names:
    """A resolver that says what the test wants, and counts how often it is asked."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **options: Any) -> list[Any]:
        self.asked.append(host)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answer]


@pytest.fixture
def here() -> Iterator[Receiver]:
    with receiver() as found:
        yield found


@pytest.fixture
def sender() -> HttpWebhookSender:
    return HttpWebhookSender(allow_private=True)


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_is_told(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_told(address: str) -> None:
    assert is_public(address)


def test_the_interpreters_own_list_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It differs between versions of Python: 3.11.7 has 192.0.0.192, a cloud's metadata, as public."""
    for cls in (ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network):
        for name in (
            "is_global",
            "is_private",
            "is_reserved",
            "is_loopback",
            "is_link_local",
            "is_multicast",
        ):
            monkeypatch.setattr(cls, name, property(lambda self: pytest.fail("asked")))
    assert [address for address in REFUSED if is_public(address)] == []
    assert [address for address in PUBLIC if not is_public(address)] == []


@pytest.mark.parametrize(
    "address", [address for address in REFUSED if address and address != "not an address"]
)
def test_a_name_that_leads_to_a_private_address_is_refused(address: str) -> None:
    """Alone, and beside public ones."""
    for addresses in ([address], ["8.8.8.8", address]):
        sent = HttpWebhookSender(resolve=Names(addresses)).send("https://a.example/x", HEADERS, BODY)
        assert (sent.status, sent.outcome) == (0, "failed")
        assert "refused" in sent.reason


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "10.0.0.1", "169.254.169.254", "localhost", "2130706433", "0x7f.1", "127.1"],
)
def test_what_a_url_may_call_this_machine_is_refused(here: Receiver, host: str) -> None:
    """By the real resolver, which knows more spellings of an address than one would think."""
    port = here.url.split(":")[2].split("/")[0]
    sent = HttpWebhookSender().send(f"https://{host}:{port}/hook", HEADERS, BODY)
    assert "refused" in sent.reason
    assert here.arrived.empty()


def test_plain_http_is_refused(here: Receiver) -> None:
    sent = HttpWebhookSender(resolve=Names(["8.8.8.8"])).send("http://a.example/x", HEADERS, BODY)
    assert "https" in sent.reason


def test_the_connection_is_made_to_the_address_that_was_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that says a public address first and a private one next gets nowhere by it."""
    names = Names(["8.8.8.8"], ["127.0.0.1"])
    connected = []

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    sent = HttpWebhookSender(resolve=names).send("https://a.example/x", HEADERS, BODY)
    assert (sent.outcome, connected, names.asked) == ("failed", [("8.8.8.8", 443)], ["a.example"])


def test_a_message_arrives_as_it_was_made(here: Receiver, sender: HttpWebhookSender) -> None:
    sent = sender.send(here.url, HEADERS, BODY)
    assert (sent.status, sent.outcome, sent.reason) == (200, "delivered", "")
    got = here.next()
    assert (got.path, got.body) == ("/hook?x=1", BODY)
    assert HEADERS.items() <= got.headers.items()
    assert got.headers["host"] == here.url.split("/")[2]


def test_https_checks_the_certificate(tmp_path: Path) -> None:
    """Against the name of the URL, not of the address that it is pinned to."""
    server, client = certificate(tmp_path)
    with receiver(server) as here:
        trusting = HttpWebhookSender(allow_private=True, context=client)
        assert trusting.send(here.url, HEADERS, BODY).outcome == "delivered"
        assert here.next().body == BODY
        named = here.url.replace("127.0.0.1", "localhost")
        assert trusting.send(named, HEADERS, BODY).outcome == "delivered"
        here.next()
        doubting = HttpWebhookSender(allow_private=True)
        assert "SSL" in doubting.send(here.url, HEADERS, BODY).reason
        elsewhere = HttpWebhookSender(allow_private=True, context=client, resolve=Names(["127.0.0.1"]))
        wrong_name = here.url.replace("127.0.0.1", "a.example")
        assert "SSL" in elsewhere.send(wrong_name, HEADERS, BODY).reason
        assert here.arrived.empty()


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_is_success(here: Receiver, sender: HttpWebhookSender, status: int) -> None:
    here.answer(status)
    assert sender.send(here.url, HEADERS, BODY).outcome == "delivered"


@pytest.mark.parametrize("status", [300, 304, 400, 404, 410, 429, 500, 503])
def test_any_other_status_is_failure(here: Receiver, sender: HttpWebhookSender, status: int) -> None:
    here.answer(status)
    sent = sender.send(here.url, HEADERS, BODY)
    assert (sent.status, sent.outcome) == (status, "failed")
    assert str(status) in sent.reason


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(here: Receiver, sender: HttpWebhookSender, status: int) -> None:
    """It could lead from a public address to a private one."""
    with receiver() as inside:
        here.answers.put(answer_of(status, f"Location: {inside.url}\r\n"))
        sent = sender.send(here.url, HEADERS, BODY)
        assert (sent.outcome, "redirect" in sent.reason) == ("failed", True)
        assert inside.arrived.empty()


def test_an_interim_answer_is_not_the_answer(here: Receiver, sender: HttpWebhookSender) -> None:
    here.answers.put(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + answer_of(500))
    assert sender.send(here.url, HEADERS, BODY).status == 500


@pytest.mark.parametrize(
    "nonsense", [b"SSH-2.0-x\r\n", b"HTTP/1.1 20\r\n\r\n", b"\x00" * 100, b"HTTP/2 200 \r\n"]
)
def test_what_is_not_http_is_failure(here: Receiver, sender: HttpWebhookSender, nonsense: bytes) -> None:
    here.answers.put(nonsense)
    assert sender.send(here.url, HEADERS, BODY).outcome == "failed"


def test_a_long_answer_is_read_up_to_its_bound(sender: HttpWebhookSender) -> None:
    """A receiver that never ends its answer costs 64 KiB, not the memory."""
    taken = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(WAIT_S)
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                sent = 0
                try:
                    while sent < 64 << 20:
                        sent += connection.send(b"x" * 65536)
                except OSError:
                    pass
                taken.append(sent)

        thread = threading.Thread(target=serve)
        thread.start()
        port = listening.getsockname()[1]
        assert sender.send(f"http://127.0.0.1:{port}/", HEADERS, BODY).outcome == "delivered"
        thread.join()
    assert ANSWER_BYTES_MAX // 2 < taken[0] < 64 << 20


def test_a_receiver_that_says_nothing_is_given_up(here: Receiver) -> None:
    here.answers.put(b"")
    sent = HttpWebhookSender(allow_private=True, timeout_s=0.2).send(here.url, HEADERS, BODY)
    assert (sent.status, sent.reason) == (0, "no answer within 0.2 s")


def test_a_receiver_that_drips_is_given_up() -> None:
    """Each byte in time is not the whole in time."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        over = threading.Event()

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    while not over.wait(0.01):
                        connection.sendall(b"H")
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        port = listening.getsockname()[1]
        sender = HttpWebhookSender(allow_private=True, timeout_s=0.3)
        sent = sender.send(f"http://127.0.0.1:{port}/", HEADERS, BODY)
        over.set()
        thread.join()
    assert sent.outcome == "failed"


def test_a_name_of_several_addresses_is_tried_in_turn(here: Receiver) -> None:
    """The first has nobody who listens."""
    names = Names(["127.0.0.2", "127.0.0.1"])
    sender = HttpWebhookSender(allow_private=True, resolve=names)
    url = here.url.replace("127.0.0.1", "a.example")
    assert sender.send(url, HEADERS, BODY).outcome == "delivered"
    assert here.next().headers["host"] == url.split("/")[2]


def test_nobody_who_listens_is_failure(sender: HttpWebhookSender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    sent = sender.send(f"http://127.0.0.1:{port}/", HEADERS, BODY)
    assert (sent.status, sent.outcome) == (0, "failed")
    assert "127.0.0.1" not in sent.reason


def test_closing_ends_what_hangs(here: Receiver, sender: HttpWebhookSender) -> None:
    """A receiver that hangs must not hold up the end of the process."""
    here.answers.put(b"")
    found = []
    thread = threading.Thread(target=lambda: found.append(sender.send(here.url, HEADERS, BODY)))
    thread.start()
    here.next()
    sender.close()
    thread.join(WAIT_S)
    assert [sent.outcome for sent in found] == ["failed"]
    assert sender.send(here.url, HEADERS, BODY).outcome == "failed"
    assert here.arrived.empty()
