"""What the server refuses before a profile looks at it: in the profile's words, at the root and under its prefix."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import pytest

from tests.conftest import Install
from tests.fuzz.asgi import Answer, Caller
from tollkeeper.domain.catalog import Account, Key, Limit
from tollkeeper.http.app import build_app
from tollkeeper.http.auth import FAILURES_MAX
from tollkeeper.http.profiles import BODY_BYTES_MAX, QUERY_BYTES_MAX
from tollkeeper.profile_context import LocalProfileContext
from tollkeeper.testing import NOON, set_up, unique

PROBLEM: Final = "application/problem+json; charset=utf-8"
LONG: Final = f"The query has more than {QUERY_BYTES_MAX} bytes: ask for less."
BLOCKED: Final = "Too many failed authentications from this address. Wait a minute."
NEXT_MINUTE: Final = str(int(NOON.timestamp()) + 60)
NO_KEY: Final = {
    "x-ratelimit-limit": "0",
    "x-ratelimit-remaining": "0",
    "x-ratelimit-reset": NEXT_MINUTE,
}
ID: Final = object()
"""Stands for the request id: in the headers and the body the same."""


class Words(NamedTuple):
    """A profile's 429 and 400 on one of its paths; headers are those beside length and `Retry-After`."""

    profile: str
    path: str
    blocked: dict[str, Any]
    long: dict[str, Any]
    headers: dict[str, Any]


def regsn_problem(status: int, slug: str, code: str, title: str, detail: str) -> dict[str, Any]:
    return {
        "type": f"https://api.regsn.app/problems/{slug}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": "/v1/usage",
        "code": code,
        "request_id": ID,
    }


def anylayer_error(code: str, message: str) -> dict[str, Any]:
    return {"success": False, "error": code, "message": message, "timestamp": f"{NOON:%Y-%m-%dT%H:%M:%SZ}"}


def openai_error(message: str, type_: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "code": code}}


WORDS: Final = (
    Words(
        "regpilot",
        "/api/usage",
        {"error": "Rate limit exceeded", "retry_after": 60, "limit": FAILURES_MAX, "window": "1 minute"},
        {"error": LONG},
        {**NO_KEY, "x-request-id": ID},
    ),
    Words(
        "shoal",
        "/v1/usage",
        {"error": "Rate limit exceeded", "retryAfter": 60},
        {"error": LONG},
        {"x-endpoint-policy": "usage", "x-request-id": ID},
    ),
    Words(
        "regsn",
        "/v1/usage",
        regsn_problem(
            429,
            "rate_limited",
            "rate_limit_exceeded",
            "Rate limit exceeded",
            "Rate limit exceeded for failed_authentications bucket. Retry after 60s.",
        ),
        regsn_problem(400, "invalid_request", "invalid_request", "Invalid request", LONG),
        {"content-type": PROBLEM, "x-request-id": ID},
    ),
    Words(
        "anylayer",
        "/v1/developer/usage",
        anylayer_error("RATE_LIMIT_EXCEEDED", "Too many requests. Please try again later."),
        anylayer_error("INVALID_REQUEST", LONG),
        {},
    ),
    Words(
        "cheapestinference",
        "/v1/usage",
        openai_error(BLOCKED, "rate_limit_error", "rate_limit_exceeded"),
        openai_error(LONG, "invalid_request_error", "invalid_request"),
        {},
    ),
    Words(
        "cheapestinference",
        "/api/usage",
        {"success": False, "error": "Rate limit exceeded"},
        {"success": False, "error": LONG},
        {},
    ),
)


class Place(NamedTuple):
    """One profile at the root, all of them under their prefixes, and a good key of it."""

    words: Words
    call: Caller
    secret: str
    base: str

    def ask(self, secret: str, query: str = "", peer: str | None = None) -> Answer:
        target = self.base + self.words.path + query
        return self.call("GET", target, [(b"authorization", f"Bearer {secret}".encode())], peer=peer)


@pytest.fixture(params=["root", "prefix"])
def at_root(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "root")


@pytest.fixture(params=WORDS, ids=lambda words: words.profile + words.path)
def place(request: pytest.FixtureRequest, install: Install, at_root: bool) -> Iterator[Place]:
    words: Words = request.param
    site = install(root_profile=words.profile)
    account, key_id = unique("acct"), unique("key")
    key = Key(id=key_id, account=account, profile=words.profile, limits=[Limit(name="rpm", amount=9)])
    secret = set_up(site, Account(id=account, name="Acme"), key)[key_id]
    app = build_app(site)
    call = Caller(app)
    yield Place(words, call, secret, "" if at_root else f"/{words.profile}")
    call.close()
    app.close()


def said(answer: Answer, body: dict[str, Any], headers: dict[str, Any]) -> None:
    """Assert that *answer* has exactly these headers and this body, in its order."""
    found = {name.decode(): value.decode() for name, value in answer.headers}
    # Of one caller: no cache may give it to another.
    assert found.pop("cache-control") == "private, no-store"
    assert {"authorization", "x-api-key"} & set(found.pop("vary").lower().split(", "))
    request_id = found.get("x-request-id", "")
    expected = {"content-type": "application/json", "content-length": str(len(answer.body)), **headers}
    assert found == {name: request_id if value is ID else value for name, value in expected.items()}
    body = {name: request_id if value is ID else value for name, value in body.items()}
    assert list(answer.json.items()) == list(body.items())
    assert (ID in headers.values()) == request_id.startswith("req_")


@pytest.mark.drawn
def test_credentials_that_keep_failing_are_refused_in_the_words_of_the_profile(place: Place) -> None:
    """A vendor's client reads that vendor's body only. A good key is not refused."""
    for _ in range(FAILURES_MAX):
        assert place.ask("guess", peer="192.0.2.1").status == 401
    answer = place.ask("guess", peer="192.0.2.1")
    assert answer.status == 429
    said(answer, place.words.blocked, {**place.words.headers, "retry-after": "60"})
    if (
        place.words.path != "/api/usage" or place.words.profile != "cheapestinference"
    ):  # That takes a session.
        assert place.ask(place.secret, peer="192.0.2.1").status not in (401, 429)
    assert place.ask("guess", peer="192.0.2.2").status == 401


@pytest.mark.drawn
def test_a_query_that_is_too_long_is_refused_in_the_words_of_the_profile(place: Place) -> None:
    answer = place.ask(place.secret, "?x=" + "a" * QUERY_BYTES_MAX)
    assert answer.status == 400
    said(answer, place.words.long, place.words.headers)


@pytest.mark.parametrize(
    "body",
    [[b'{"name":"n"}', b" " * BODY_BYTES_MAX], gzip.compress(bytes(BODY_BYTES_MAX + 1))],
    ids=["too long", "a bomb"],
)
def test_a_body_that_no_dialect_reads_is_refused_in_the_words_of_the_profile(
    install: Install, at_root: bool, body: Any
) -> None:
    """No dialect has a 413: a body over the bound, or a compressed one, reaches it as a body that is not JSON."""
    account = unique("acct")
    admin, manager = (
        Key(id=unique("key"), account=account, profile="anylayer"),
        Key(id=unique("key"), account=account, role="management"),
    )
    words: dict[str, tuple[str, dict[str, Any]]] = {
        "regsn": ("/v1/keys", {"status": 400, "code": "invalid_request"}),
        "anylayer": ("/v1/developer/keys", {"success": False, "error": "INVALID_PARAMETER"}),
        "cheapestinference": (
            "/api/keys/credit",
            {"success": False, "error": "The body must be a JSON object"},
        ),
    }
    for profile, (path, members) in words.items():
        site = install(unique("data"), root_profile=profile)
        issued = set_up(site, Account(id=account, name="Acme"), admin, manager)
        session = site.sessions.issue(account, "ada")
        secret = {"regsn": session, "anylayer": issued[admin.id]}.get(profile, issued[manager.id])
        app = build_app(site)
        call = Caller(app)
        sent = [(b"authorization", f"Bearer {secret}".encode()), (b"content-encoding", b"gzip")]
        answer = call("POST", path if at_root else f"/{profile}{path}", sent, body)
        call.close()
        app.close()
        assert answer.status == 400
        assert members.items() <= answer.json.items()


@pytest.mark.parametrize("profile", ["cheapestinference", "regpilot"])
def test_a_reply_stands_though_nobody_can_tell_whether_its_caller_is_known(
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at_root: bool,
    profile: str,
) -> None:
    """It was lost with the look at the credential, and the client got no answer of any dialect."""

    def broken(*args: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(LocalProfileContext, "session", broken)
    app = build_app(install(root_profile=profile))
    call = Caller(app)
    path = "/api/nope" if at_root else f"/{profile}/api/nope"
    for _ in range(FAILURES_MAX + 1):
        answer = call("GET", path, [(b"authorization", b"Bearer guess")], peer="192.0.2.1")
        assert (answer.status, "error" in answer.json) == (404, True)
    call.close()
    app.close()
    logged = [entry for entry in caplog.records if entry.message == "tollkeeper.profile.failed"]
    assert len(logged) == FAILURES_MAX + 1


def test_only_whole_paths_of_ours_are_ours(install: Install) -> None:
    """The rest is the root profile's, which words its own 404."""
    app = build_app(install(root_profile="cheapestinference"))
    call = Caller(app)
    for path in ("/metricsfoo", "/healthzz", "/tkx", "/metrics/x"):
        answer = call("GET", path, [])
        assert (answer.status, "error" in answer.json, "title" in answer.json) == (404, True, False), path
    for path in ("/healthz", "/healthz/", "/readyz"):
        assert call("GET", path, []).status == 200, path
    call.close()
    app.close()
