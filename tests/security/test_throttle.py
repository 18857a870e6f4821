"""
Answers to failing credentials are throttled: by address, at every door, in bounded memory.

A good credential is served whatever else comes from its address, and requests without one are not counted: nobody
can lock out others behind the same proxy.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from tests.end_to_end.server import running_server
from tests.fuzz.asgi import Caller
from tests.http.conftest import OPERATOR_KEY, Api, World
from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.clock import SystemClock
from tollkeeper.domain.catalog import Account, Key
from tollkeeper.domain.keys import StoredKey, hash_secret
from tollkeeper.http.app import build_app
from tollkeeper.http.auth import (
    _GOOD_KEYS_MAX,
    _REMEMBERED_MAX,
    FAILURES_MAX,
    FAILURES_WINDOW_S,
    NO_ADDRESS_HEADER,
    ONE_PEER,
    Throttle,
)
from tollkeeper.http.metrics import metrics_source, render_metrics
from tollkeeper.http.routes.calls import Maintenance
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.installation import Installation
from tollkeeper.testing import ManualClock, set_up, unique

OPERATOR = [(b"authorization", b"Bearer " + OPERATOR_KEY.encode())]
PLACES = (
    ("GET", "/tk/v1/usage"),
    ("POST", "/tk/v1/authorize"),
    ("POST", "/tk/v1/events"),
    ("GET", "/metrics"),
    ("GET", "/shoal/v1/usage"),
    ("GET", "/regsn/v1/usage"),
    ("GET", "/regpilot/api/usage"),
    ("GET", "/anylayer/v1/developer/usage"),
    ("GET", "/cheapestinference/v1/usage"),
    ("GET", "/cheapestinference/api/usage"),
    # Paths that are not there refuse nobody, but tell a good key its limits.
    ("GET", "/shoal/v1/nope"),
    ("GET", "/regsn/v1/nope"),
    ("POST", "/regpilot/api/usage"),
    ("GET", "/anylayer/v1/nope"),
    ("GET", "/cheapestinference/v1/nope"),
)


class Guesser:
    """Guesses from one address until it is blocked."""

    def __init__(self, call: Caller, address: str) -> None:
        self.call, self.address = call, address

    def guess(self, method: str, path: str, secret: str = "tk_guess") -> int:
        headers = [(b"authorization", f"Bearer {secret}".encode())]
        return self.call(method, path, headers, peer=self.address).status

    def until_blocked(self, method: str, path: str, secret: str = "tk_guess") -> int:
        """Return how many guesses were answered."""
        for count in range(FAILURES_MAX + 2):
            if self.guess(method, path, secret) == 429:
                return count
        raise AssertionError(f"{method} {path} is not throttled")


# A guess in the last moment of a minute counts for that minute; a test that is so unlucky sees a few more.


@pytest.fixture(scope="module")
def still(
    tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore
) -> Iterator[tuple[Caller, ManualClock]]:
    """An application whose minute does not end by itself, behind a proxy that tells addresses."""
    clock = ManualClock()
    directory = tmp_path_factory.mktemp("throttle")
    with testing.installation(
        directory, clock=clock, store=usage_store, client_address_header="X-Forwarded-For"
    ) as site:
        ensure_operator_key(site, OPERATOR_KEY)
        app = build_app(site)
        caller = Caller(app)
        yield caller, clock
        caller.close()
        app.close()


@pytest.mark.drawn(6)
@pytest.mark.parametrize(("method", "path"), PLACES, ids=lambda part: part.strip("/"))
def test_failing_credentials_are_throttled_at_every_door(
    method: str, path: str, still: tuple[Caller, ManualClock]
) -> None:
    """50 in a minute, then 429 with `Retry-After` for failing ones, at all doors, until the minute is over."""
    call, clock = still
    guesser = Guesser(call, f"192.0.2.{PLACES.index((method, path))}")
    assert guesser.until_blocked(method, path) == FAILURES_MAX
    guess = [(b"authorization", b"Bearer tk_guess")]
    for other_method, other_path in PLACES:
        answer = call(other_method, other_path, guess, peer=guesser.address)
        assert (answer.status, answer.header("retry-after")) == (429, "60")
        # On a vendor's paths its dialect words it: tests/profiles/test_rejected_early.py.
        if other_path.startswith(("/tk/", "/metrics")):
            assert answer.json["code"] == "too_many_failures"
    assert guesser.guess("GET", "/healthz") == 200
    assert guesser.guess("GET", "/readyz") == 200
    clock.advance(seconds=FAILURES_WINDOW_S)
    assert guesser.guess("GET", "/tk/v1/usage") == 401


def test_a_good_credential_is_served_however_many_fail_beside_it(still: tuple[Caller, ManualClock]) -> None:
    """The address may be a proxy's: everybody behind it would be locked out by one who keeps failing."""
    call, clock = still
    clock.advance(seconds=FAILURES_WINDOW_S)
    site = call.app.installation
    account = unique("acct")
    keys = {
        path: Key(id=unique("key"), account=account, profile=profile)
        for profile, path in (
            ("native", "/tk/v1/usage"),
            ("shoal", "/shoal/v1/usage"),
            ("regpilot", "/regpilot/api/nope"),
            ("anylayer", "/anylayer/v1/developer/usage"),
            ("cheapestinference", "/cheapestinference/v1/usage"),
        )
    }
    manager = Key(id=unique("key"), account=account, role="management")
    issued = set_up(site, Account(id=account, name="Acme"), *keys.values(), manager)
    served = [(path, issued[key.id]) for path, key in keys.items()]
    served += [
        ("/tk/v1/usage", OPERATOR_KEY),
        ("/metrics", OPERATOR_KEY),
        ("/tk/v1/usage", issued[manager.id]),
    ]
    served += [(path, site.sessions.issue(account, "ada")) for path in ("/regsn/v1/usage", "/regsn/v1/nope")]
    for peer in ("203.0.113.50", "127.0.0.1", "::1"):
        assert Guesser(call, peer).until_blocked("GET", "/tk/v1/usage") == FAILURES_MAX
        for path, secret in served:
            answer = call("GET", path, [(b"authorization", b"Bearer " + secret.encode())], peer=peer)
            assert answer.status == (404 if path.endswith("nope") else 200), (path, answer.body)
        held = call("POST", "/tk/v1/authorize", OPERATOR, b'{"key":"tk_bad","path":"/x"}', peer=peer)
        assert held.json["code"] == "key_unknown", (
            "the operator is served: it is the customer's key that is bad"
        )
        assert Guesser(call, peer).guess("GET", "/tk/v1/usage") == 429


@pytest.mark.parametrize(("method", "path"), PLACES, ids=lambda part: part.strip("/"))
def test_a_request_without_a_credential_is_not_counted(
    method: str, path: str, still: tuple[Caller, ManualClock]
) -> None:
    """It costs no look-up, and anybody can send it."""
    call, clock = still
    clock.advance(seconds=FAILURES_WINDOW_S)
    peer = "203.0.113.60"
    none = [[], [(b"authorization", b"")], [(b"authorization", b"Basic dG9sbDp4")], [(b"x-api-key", b"")]]
    if "regpilot" in path:
        none.pop(2)  # Its dialect takes the header's whole text as a key.
    for number in range(FAILURES_MAX + 5):
        assert call(method, path, none[number % len(none)], peer=peer).status in (401, 404, 405)
    assert Guesser(call, peer).until_blocked(method, path) == FAILURES_MAX
    assert call(method, path, [], peer=peer).status in (401, 404, 405), "nor throttled"


@pytest.mark.parametrize("ended_by", ["revoked", "inactive", "deleted", "expired", "account"])
def test_a_key_that_ended_is_never_good_from_memory(ended_by: str, still: tuple[Caller, ManualClock]) -> None:
    """A key that was served a moment ago is remembered; not beyond its end, whatever ends it."""
    call, clock = still
    clock.advance(seconds=FAILURES_WINDOW_S)
    site = call.app.installation
    account = Account(id=unique("acct"), name="Acme")
    key = Key(id=unique("key"), account=account.id, expires_at=clock.now() + timedelta(seconds=30))
    secret = set_up(site, account, key)[key.id]
    shown = [(b"authorization", b"Bearer " + secret.encode())]
    assert call("GET", "/tk/v1/usage", shown).status == 200
    assert call("GET", "/tk/v1/usage", shown).status == 200
    if ended_by == "expired":
        clock.advance(seconds=30)
    elif ended_by == "account":
        site.manage.put(msgspec.structs.replace(account, active=False))
    else:
        site.manage.set_key_state(account.id, key.id, ended_by)  # type: ignore[arg-type]
    assert call("GET", "/tk/v1/usage", shown).status == (403 if ended_by == "account" else 401)


def test_a_key_that_is_read_while_it_is_revoked_is_not_remembered(
    still: tuple[Caller, ManualClock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read began before the change and ends after it: what it found is good for that one request."""
    call, _ = still
    site = call.app.installation
    account = unique("acct")
    key = Key(id=unique("key"), account=account)
    secret = set_up(site, Account(id=account, name="Acme"), key)[key.id]
    shown = [(b"authorization", b"Bearer " + secret.encode())]
    read = site.directory.key_by_hash

    def slow_read(secret_sha256: str) -> StoredKey | None:
        found = read(secret_sha256)
        monkeypatch.setattr(site.directory, "key_by_hash", read)
        site.manage.set_key_state(account, key.id, "revoked")
        return found

    monkeypatch.setattr(site.directory, "key_by_hash", slow_read)
    assert call("GET", "/tk/v1/usage", shown).status == 200
    assert call("GET", "/tk/v1/usage", shown).status == 401


def test_a_known_key_costs_no_read_and_the_memory_of_keys_has_a_bound(
    still: tuple[Caller, ManualClock], monkeypatch: pytest.MonkeyPatch
) -> None:
    call, _ = still
    site = call.app.installation
    account = unique("acct")
    key = Key(id=unique("key"), account=account)
    secret = set_up(site, Account(id=account, name="Acme"), key)[key.id]
    authenticator, reads = call.app.authenticator, []
    stored = site.directory.key_by_hash(hash_secret(secret))
    monkeypatch.setattr(site.directory, "key_by_hash", lambda hashed: reads.append(hashed) or stored)
    for _ in range(3):
        assert authenticator.principal([(b"x-api-key", secret.encode())]).key_id == key.id
    assert len(reads) == 1
    for number in range(_GOOD_KEYS_MAX + 5):
        authenticator._stored(f"hash-{number}")
    assert len(authenticator._good[1]) <= _GOOD_KEYS_MAX


def test_who_is_known_or_shows_nothing_may_miss_a_path_as_often_as_it_likes(
    still: tuple[Caller, ManualClock],
) -> None:
    """A client with an old base URL is no guesser: a key, a management key and a session are known everywhere."""
    call, clock = still
    clock.advance(seconds=FAILURES_WINDOW_S)
    site = call.app.installation
    account = unique("acct")
    keys = [
        Key(id=unique("key"), account=account, profile="regpilot"),
        Key(id=unique("key"), account=account, role="management"),
    ]
    issued = set_up(site, Account(id=account, name="Acme"), *keys)
    secrets = ["", *issued.values(), site.sessions.issue(account, "ada")]
    assert len(secrets) == 4
    for number, secret in enumerate(secrets):
        shown = [(b"authorization", b"Bearer " + secret.encode())] if secret else []
        for _ in range(FAILURES_MAX + 1):
            answer = call("GET", "/regpilot/api/nope", shown, peer=f"198.51.100.{10 + number}")
            assert answer.status == 404


@pytest.mark.parametrize("path", ["/regsn/v1/usage", "/cheapestinference/api/usage"])
def test_forged_sessions_count_as_guesses(path: str, still: tuple[Caller, ManualClock]) -> None:
    call, clock = still
    clock.advance(seconds=FAILURES_WINDOW_S)
    assert (
        Guesser(call, "203.0.113.1").until_blocked("GET", path, "eyJhbGciOiJIUzI1NiJ9.e30.AAAA")
        == FAILURES_MAX
    )


def test_a_dialect_that_refuses_bad_keys_with_403_is_throttled_too(
    tmp_path: Path, usage_store: ClickHouseUsageStore
) -> None:
    settings = '{"shoal": {"invalid_key_status": 403}}'
    with testing.installation(
        tmp_path / "data", clock=ManualClock(), store=usage_store, profile_settings=settings
    ) as site:
        app = build_app(site)
        call = Caller(app)
        assert Guesser(call, "203.0.113.1").until_blocked("GET", "/shoal/v1/usage", "shoal_x") == FAILURES_MAX
        call.close()
        app.close()


def test_behind_a_proxy_each_client_counts_by_itself(still: tuple[Caller, ManualClock]) -> None:
    """Else one who guesses would shut everybody out. What a client claims itself stands before the proxy's entry."""
    call, clock = still
    clock.advance(seconds=FAILURES_WINDOW_S)
    guess = [(b"authorization", b"Bearer tk_guess")]
    name = b"x-forwarded-for"
    for number in range(FAILURES_MAX + 5):
        claimed = b"10.9.9.%d" % (number % 250)
        port = b"203.0.113.77:%d" % (1024 + number)
        # A proxy appends to the line, or adds one of its own, with the port or without.
        for told in ([(name, claimed + b", " + port)], [(name, claimed), (name, b"203.0.113.77")]):
            last = call("GET", "/tk/v1/usage", [*guess, *told], peer="10.0.0.1").status
    assert last == 429
    other = [*guess, (name, b"203.0.113.78")]
    assert call("GET", "/tk/v1/usage", other, peer="10.0.0.1").status == 401


def test_all_addresses_of_one_ipv6_network_count_together(still: tuple[Caller, ManualClock]) -> None:
    """A client with one of them has 2**64."""
    call, clock = still
    clock.advance(seconds=FAILURES_WINDOW_S)
    guess = [(b"authorization", b"Bearer tk_guess")]
    for number in range(FAILURES_MAX):
        assert call("GET", "/tk/v1/usage", guess, peer=f"2001:db8:1:2::{number:x}").status == 401
    assert call("GET", "/tk/v1/usage", guess, peer="2001:db8:1:2:ffff::1").status == 429
    assert call("GET", "/tk/v1/usage", guess, peer="2001:db8:1:3::1").status == 401
    assert call("GET", "/tk/v1/usage", guess, peer="::ffff:192.0.2.200").status == 401


def test_the_memory_of_failures_has_a_bound() -> None:
    """Addresses are cheap for some clients. A blocked address stays blocked, however many come after it."""
    throttle = Throttle(ManualClock())
    for _ in range(FAILURES_MAX):
        assert not throttle.refuses("192.0.2.1", [])
    for number in range(5 * _REMEMBERED_MAX):
        assert not throttle.refuses(f"n{number}", [])
    assert len(throttle._failures) == _REMEMBERED_MAX
    assert sum(map(sys.getsizeof, throttle._failures)) + sys.getsizeof(throttle._failures) < 2 << 20
    assert throttle.refuses("192.0.2.1", [])
    assert (throttle.failed_count, throttle.throttled_count) == (FAILURES_MAX + 5 * _REMEMBERED_MAX + 1, 1)


def test_what_a_proxy_says_takes_bounded_memory(still: tuple[Caller, ManualClock]) -> None:
    call, clock = still
    clock.advance(seconds=FAILURES_WINDOW_S)
    long = [(b"authorization", b"Bearer tk_guess"), (b"x-forwarded-for", b"a" * 10_000)]
    assert call("GET", "/tk/v1/usage", long).status == 401
    assert max(map(len, call.app.authenticator.throttle._failures)) <= 64


def test_a_refusal_of_the_gate_is_no_failed_authentication(
    call: Caller, world: World, installation: Installation, api: Api
) -> None:
    """The customers' keys come in the body of the provider's own calls: a bad one must not shut the provider out."""
    assert installation.clock.__class__ is SystemClock
    for _ in range(FAILURES_MAX + 5):
        answer = call(
            "POST", "/tk/v1/authorize", OPERATOR, b'{"key":"tk_bad","path":"/x"}', peer="192.0.2.250"
        )
        assert answer.json["code"] == "key_unknown"


# -- what tells that addresses are not those of clients -------------------------------------------------


@pytest.fixture
def unset(tmp_path: Path, usage_store: ClickHouseUsageStore) -> Iterator[Caller]:
    """An application that does not know of any proxy."""
    with testing.installation(tmp_path / "data", clock=ManualClock(), store=usage_store) as site:
        ensure_operator_key(site, OPERATOR_KEY)
        app = build_app(site)
        caller = Caller(app)
        yield caller
        caller.close()
        app.close()


def shown_by(call: Caller, caplog: pytest.LogCaptureFixture) -> tuple[list[str], list[str], bool]:
    """Return the notices of the log and of readiness, and whether the metric is set."""
    logged = [
        str(entry.__dict__["reason"])
        for entry in caplog.records
        if entry.message == "tollkeeper.http.client_address" and entry.levelno == logging.WARNING
    ]
    ready = call("GET", "/readyz")
    metrics = call("GET", "/metrics", OPERATOR).body.decode()
    return logged, ready.json["warnings"], "\ntollkeeper_client_addresses_unknown 1\n" in metrics


@pytest.mark.drawn(4)
@pytest.mark.parametrize("name", [b"forwarded", b"x-forwarded-for", b"x-real-ip"])
@pytest.mark.parametrize(("method", "path"), [PLACES[0], PLACES[1], PLACES[3], PLACES[4]])
def test_a_proxy_that_was_not_declared_is_noticed_once(
    name: bytes, method: str, path: str, unset: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """In the log, in the metrics and in readiness, where it is information: the server is ready."""
    assert shown_by(unset, caplog) == ([], [], False)
    for _ in range(3):
        unset(method, path, [(b"authorization", b"Bearer tk_bad"), (name, b"203.0.113.5")])
    assert shown_by(unset, caplog) == ([NO_ADDRESS_HEADER], [NO_ADDRESS_HEADER], True)


def test_one_peer_with_all_failures_is_noticed_once(unset: Caller, caplog: pytest.LogCaptureFixture) -> None:
    """A proxy that adds no header at all looks like that."""
    for _ in range(2 * FAILURES_MAX):
        unset("GET", "/tk/v1/usage", [(b"authorization", b"Bearer tk_bad")], peer="10.0.0.1")
    assert shown_by(unset, caplog) == ([ONE_PEER], [ONE_PEER], True)
    metrics = unset("GET", "/metrics", OPERATOR).body.decode()
    assert f"\ntollkeeper_authentications_failed_total {2 * FAILURES_MAX}\n" in metrics
    assert f"\ntollkeeper_authentications_throttled_total {FAILURES_MAX}\n" in metrics


def test_a_proxy_that_was_declared_and_failures_of_several_make_no_notice(
    still: tuple[Caller, ManualClock], unset: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    call, clock = still
    clock.advance(seconds=FAILURES_WINDOW_S)
    before = list(call.app.authenticator.throttle.notices)
    guess = [(b"authorization", b"Bearer tk_bad")]
    for _ in range(FAILURES_MAX + 1):
        call("GET", "/tk/v1/usage", [*guess, (b"x-forwarded-for", b"203.0.113.5")], peer="10.0.0.1")
    assert call.app.authenticator.throttle.notices == before
    unset("GET", "/tk/v1/usage", guess, peer="10.0.0.2")
    for _ in range(FAILURES_MAX + 1):
        unset("GET", "/tk/v1/usage", guess, peer="10.0.0.1")
    assert shown_by(unset, caplog) == ([], [], False)


def test_metrics_without_a_server_have_no_throttle(unset: Caller) -> None:
    assert "tollkeeper_authentications_failed_total 0" not in render_metrics(
        metrics_source(unset.app.installation, Maintenance(), "0")
    )


def test_two_lines_of_the_header_are_read_from_a_socket(tmp_path: Path) -> None:
    """The server hands each line on by itself: the first is the client's own."""
    with running_server(tmp_path, "--client-address-header", "X-Forwarded-For") as server:
        host, port = server.url.removeprefix("http://").split(":")

        def status(claimed: str, added: str) -> int:
            lines = [
                "GET /tk/v1/usage HTTP/1.1",
                "Host: toll",
                "Authorization: Bearer tk_guess",
                f"X-Forwarded-For: {claimed}",
                f"X-Forwarded-For: {added}",
                "Connection: close",
            ]
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall("\r\n".join([*lines, "", ""]).encode())
                return int(connection.recv(64).split(b" ")[1])

        # Twice as many, as a minute may end in between.
        found = [status(f"10.0.0.{number}", "203.0.113.7") for number in range(2 * FAILURES_MAX + 2)]
        assert 429 in found
        assert status("203.0.113.7", "203.0.113.8") == 401
