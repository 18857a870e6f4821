"""One who keeps guessing is slowed down: by address, everywhere that a credential is asked for, in bounded memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.asgi import Caller
from tests.http.conftest import OPERATOR_KEY, Api, World
from tollkeeper import testing
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.clock import SystemClock
from tollkeeper.domain.catalog import Account, Key
from tollkeeper.http.app import build_app
from tollkeeper.http.auth import _REMEMBERED_MAX, FAILURES_MAX, FAILURES_WINDOW_S, Throttle
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


@pytest.mark.parametrize(("method", "path"), PLACES, ids=lambda part: part.strip("/"))
def test_guessing_is_bounded_wherever_a_credential_is_asked_for(
    method: str, path: str, still: tuple[Caller, ManualClock]
) -> None:
    """50 in a minute, then 429 with `Retry-After`, for good credentials too: an answer would tell a good guess."""
    call, clock = still
    guesser = Guesser(call, f"192.0.2.{PLACES.index((method, path))}")
    assert guesser.until_blocked(method, path) == FAILURES_MAX
    for other_method, other_path in PLACES:
        answer = call(other_method, other_path, OPERATOR, peer=guesser.address)
        assert (answer.status, answer.header("retry-after")) == (429, "60")
        # On a vendor's paths its dialect words it: tests/profiles/test_turned_away.py.
        if other_path.startswith(("/tk/", "/metrics")):
            assert answer.json["code"] == "too_many_failures"
    assert call("GET", "/tk/v1/usage", OPERATOR, peer="198.51.100.1").status == 200
    assert guesser.guess("GET", "/healthz") == 200
    assert guesser.guess("GET", "/readyz") == 200
    clock.advance(seconds=FAILURES_WINDOW_S)
    assert call("GET", "/tk/v1/usage", OPERATOR, peer=guesser.address).status == 200


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
    for number in range(FAILURES_MAX + 5):
        claimed = b"10.9.9.%d, 203.0.113.77" % (number % 250)
        last = call("GET", "/tk/v1/usage", [*guess, (b"x-forwarded-for", claimed)], peer="10.0.0.1").status
    assert last == 429
    other = [*OPERATOR, (b"x-forwarded-for", b"203.0.113.78")]
    assert call("GET", "/tk/v1/usage", other, peer="10.0.0.1").status == 200


def test_all_addresses_of_one_ipv6_network_count_together(still: tuple[Caller, ManualClock]) -> None:
    """Whoever has one has 2**64 of them."""
    call, clock = still
    clock.advance(seconds=FAILURES_WINDOW_S)
    guess = [(b"authorization", b"Bearer tk_guess")]
    for number in range(FAILURES_MAX):
        assert call("GET", "/tk/v1/usage", guess, peer=f"2001:db8:1:2::{number:x}").status == 401
    assert call("GET", "/tk/v1/usage", guess, peer="2001:db8:1:2:ffff::1").status == 429
    assert call("GET", "/tk/v1/usage", guess, peer="2001:db8:1:3::1").status == 401
    assert call("GET", "/tk/v1/usage", guess, peer="::ffff:192.0.2.200").status == 401


def test_the_memory_of_failures_has_a_bound() -> None:
    """Addresses are cheap to whoever has many. Who is blocked stays so, however many come after."""
    throttle = Throttle(ManualClock())
    for _ in range(FAILURES_MAX):
        throttle.failed("192.0.2.1")
    for number in range(5 * _REMEMBERED_MAX):
        throttle.failed(f"n{number}")
    assert len(throttle._failures) == _REMEMBERED_MAX
    assert sum(map(sys.getsizeof, throttle._failures)) + sys.getsizeof(throttle._failures) < 2 << 20
    assert throttle.blocked("192.0.2.1")


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
