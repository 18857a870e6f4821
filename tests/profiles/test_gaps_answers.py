"""
The headers of a known key on every answer: on paths that do not exist, while a store is away and when a handler
fails; and which requests count as failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from tests.conftest import Install
from tests.end_to_end.server import OPERATOR_KEY
from tests.profiles.places import Local
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Project
from tollkeeper.http.app import App, build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.profile_context import LocalProfileContext
from tollkeeper.profiles import load
from tollkeeper.testing import NOON, Faulty, ManualClock, set_up, unique

RPM: Final = Limit(name="requests", amount=5)


class Place(Local):
    """All profiles, with one of them at the root."""

    def key(self, profile: str, *, limits: list[Limit] | None = None, **fields: Any) -> tuple[str, str, str]:
        """Return the account, id and secret of a new key."""
        account, key_id = unique("acct"), unique("key")
        key = Key(id=key_id, account=account, profile=profile, limits=limits or [RPM], **fields)
        return account, key_id, set_up(self.site, Account(id=account, name="Acme"), key)[key_id]

    def ask(self, path: str, secret: str, method: str = "GET", **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"}
        return self.request(method, path, headers=headers, **options)


@pytest.fixture
def place(install: Install) -> Iterator[Place]:
    with_settings = {"regsn": {"reads_per_minute": 7}}
    site = install(profile_settings=json.dumps(with_settings))
    ensure_operator_key(site, OPERATOR_KEY)
    app: App = build_app(site)
    yield Place(app)
    app.close()


def rate(found: httpx.Response, prefix: str = "x-ratelimit-") -> list[str | None]:
    return [found.headers.get(prefix + name) for name in ("limit", "remaining")]


# -- paths that are not there ---------------------------------------------------------------------------------


def test_shoal_tells_a_key_where_it_stands_on_every_path(place: Place) -> None:
    """Every answer to a known key has its headers, and any call of it counts."""
    account, key_id, secret = place.key("shoal")
    budget = Budget(id="pool", account=account, amount=9, unit="credits", key=key_id)
    set_up(place.site, budget)
    missing = place.ask("/shoal/v1/nope", secret)
    assert (missing.status_code, missing.json()["path"]) == (404, "/v1/nope")
    wrong = place.ask("/shoal/v1/usage", secret, "POST")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")
    assert (rate(missing), rate(wrong)) == (["5", "4"], ["5", "3"])
    for found in (missing, wrong):
        monthly = [found.headers[f"x-monthly-{name}"] for name in ("limit", "used", "remaining")]
        assert monthly == ["9", "0", "9"]
        assert found.headers["x-plan-tier"] == "none"
        assert found.headers["x-request-id"].startswith("req_")
    assert "x-endpoint-policy" not in missing.headers
    assert wrong.headers["x-endpoint-policy"] == "usage"
    assert place.ask("/shoal/v1/usage", secret).json()["data"]["today"] == 2
    for _ in range(2):
        assert place.ask("/shoal/v1/nope", secret).status_code == 404
    refused = place.ask("/shoal/v1/nope", secret)
    assert (refused.status_code, refused.json()) == (429, {"error": "Rate limit exceeded", "retryAfter": 60})
    assert refused.headers["retry-after"] == "60"


@pytest.mark.parametrize("secret", ["", "unknown"])
def test_shoal_describes_no_key_where_there_is_none(place: Place, secret: str) -> None:
    found = place.ask("/shoal/v1/nope", secret)
    assert found.status_code == 404
    assert {name for name in found.headers if name.startswith("x-")} == {"x-request-id"}


def test_anylayer_limits_a_key_on_every_path(place: Place) -> None:
    _, _, secret = place.key("anylayer")
    answered = [
        place.ask("/anylayer/v1/nope", secret),
        place.ask("/anylayer/v1/developer/usage", secret, "PUT"),
    ]
    assert [found.status_code for found in answered] == [404, 405]
    assert [rate(found) for found in answered] == [["5", "4"], ["5", "3"]]
    assert all("x-ratelimit-reset" in found.headers for found in answered)
    for _ in range(3):
        assert place.ask("/anylayer/nope", secret).status_code == 404
    refused = place.ask("/anylayer/nope", secret)
    assert (refused.status_code, refused.json()["error"]) == (429, "RATE_LIMIT_EXCEEDED")
    assert rate(place.ask("/anylayer/nope", "unknown")) == [None, None]


def test_regsn_tells_a_caller_its_reads_on_every_path_and_counts_none_there(place: Place) -> None:
    account, _, secret = place.key("regsn", limits=[Limit(name="reads", amount=5, bucket="reads")])
    unlimited = place.key("regsn", limits=[Limit(name="scans", amount=1, bucket="scans")])[2]
    session = place.site.sessions.issue(account, "ada")
    for credential, limit in ((secret, "5"), (unlimited, "7"), (session, "7")):
        for path, method, status in (("/v1/nope", "GET", 404), ("/v1/usage", "PATCH", 404)):
            found = place.ask("/regsn" + path, credential, method)
            assert found.status_code == status
            assert rate(found, "ratelimit-") == [limit, limit]
            assert 0 <= int(found.headers["ratelimit-reset"]) <= 60
    # A key at the endpoints of a session is refused with its headers too.
    refused = place.ask("/regsn/v1/keys", secret)
    assert (refused.status_code, rate(refused, "ratelimit-")) == (403, ["5", "5"])
    assert rate(place.ask("/regsn/v1/nope", "unknown"), "ratelimit-") == [None, None]


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/api/nope", "GET", 404), ("/api/usage", "POST", 405), ("/api/health", "PUT", 405)],
)
def test_regpilot_tells_a_key_where_it_stands_on_every_path_and_counts_nothing_there(
    place: Place, path: str, method: str, status: int
) -> None:
    """The answer had 0 of 0 calls left, and a client that reads its headers stopped."""
    account, key_id, secret = place.key("regpilot")
    unlimited = place.key("regpilot", limits=[Limit(name="tokens", amount=5, unit="tokens")])[2]
    for _ in range(2):
        found = place.ask("/regpilot" + path, secret, method)
        assert (found.status_code, rate(found)) == (status, ["5", "5"])
        assert int(found.headers["x-ratelimit-reset"]) > NOON.timestamp()
        assert found.headers["x-request-id"].startswith("req_")
    assert place.ask("/regpilot/api/health", secret).status_code == 200
    assert rate(place.ask("/regpilot" + path, secret, method)) == ["5", "4"]
    # Without a limit there is nothing to tell; without a key nobody to tell it.
    assert rate(place.ask("/regpilot" + path, unlimited, method)) == [None, None]
    place.site.manage.set_key_state(account, key_id, "revoked")
    for nobody in (secret, "unknown", ""):
        found = place.ask("/regpilot" + path, nobody, method)
        assert (found.status_code, rate(found)) == (status, ["0", "0"])


# -- while a store is away ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "path", "status", "prefix"),
    [
        ("shoal", "/v1/usage", 503, "x-ratelimit-"),
        ("regsn", "/v1/usage", 503, "ratelimit-"),
        ("anylayer", "/v1/developer/usage", 500, "x-ratelimit-"),
        ("regpilot", "/api/usage", 503, "x-ratelimit-"),
    ],
)
def test_an_answer_has_the_keys_headers_while_usage_cannot_be_read(
    place: Place, usage_store: ClickHouseUsageStore, profile: str, path: str, status: int, prefix: str
) -> None:
    account, _, _ = place.key(profile)
    project = unique("project")
    key_id = unique("key")
    secret = set_up(
        place.site,
        Project(id=project, account=account),
        Key(id=key_id, account=account, profile=profile, project=project, limits=[RPM]),
    )[key_id]
    faulty = Faulty(usage_store, "report")
    reports: Any = place.site.reports
    reports._store = faulty
    faulty.refuse()
    found = place.ask(f"/{profile}{path}", secret, params={"projectId": project})
    assert found.status_code == status, found.text
    assert rate(found, prefix) == ["5", "5"]
    # The next one is answered: nothing was left half done.
    found = place.ask(f"/{profile}{path}", secret, params={"projectId": project})
    assert found.status_code == (404 if profile == "anylayer" else 200)


@pytest.mark.parametrize(
    ("profile", "path", "prefix", "body"),
    [
        ("shoal", "/v1/usage", "x-ratelimit-", {"error": "Internal Server Error"}),
        (
            "regsn",
            "/v1/usage",
            "ratelimit-",
            {"title": "Internal error", "status": 500, "detail": "The request failed on our side."},
        ),
        (
            "anylayer",
            "/v1/developer/usage",
            "x-ratelimit-",
            {"success": False, "error": "INTERNAL_ERROR", "message": "Internal server error"},
        ),
        (
            "regpilot",
            "/api/usage",
            "x-ratelimit-",
            {"error": "Internal server error", "message": "Failed to process request"},
        ),
    ],
)
def test_an_answer_has_the_keys_headers_when_a_handler_fails(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    profile: str,
    path: str,
    prefix: str,
    body: dict[str, Any],
) -> None:
    """It was authenticated and counted before we did; why we failed is for the log, once."""
    account, _, _ = place.key(profile)
    project, key_id = unique("project"), unique("key")
    secret = set_up(
        place.site,
        Project(id=project, account=account),
        Key(id=key_id, account=account, profile=profile, project=project, limits=[RPM]),
    )[key_id]

    def broken(query: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(place.site.reports, "usage", broken)
    found = place.ask(f"/{profile}{path}", secret, params={"projectId": project})
    assert found.status_code == 500
    assert rate(found, prefix) == ["5", "5"]
    assert found.headers.get_list(prefix + "remaining") == ["5"]
    assert body.items() <= found.json().items()
    assert "secret detail" not in found.text
    (logged,) = [entry for entry in caplog.records if entry.message == "tollkeeper.profile.failed"]
    assert logged.exc_info is not None
    assert str(logged.exc_info[1]) == "secret detail"


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/nope"])
def test_shoal_tells_a_key_where_it_stands_when_its_call_cannot_be_counted(
    place: Place, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError

    _, _, secret = place.key("shoal")
    monkeypatch.setattr(LocalProfileContext, "record", broken)
    found = place.ask("/shoal" + path, secret)
    assert (found.status_code, found.json()) == (500, {"error": "Internal Server Error"})
    assert (rate(found), found.headers["x-plan-tier"]) == (["5", "5"], "none")
    assert found.headers.get_list("x-request-id") == [found.headers["x-request-id"]]


@pytest.mark.parametrize(
    ("method", "path", "step"),
    [("POST", "/v1/keys", "issue_key"), ("GET", "/v1/keys", "keys"), ("DELETE", "/v1/keys/k", "key")],
)
def test_regsn_tells_a_session_where_it_stands_when_we_fail(
    place: Place, monkeypatch: pytest.MonkeyPatch, method: str, path: str, step: str
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError

    account, _, _ = place.key("regsn")
    session = place.site.sessions.issue(account, "ada")
    monkeypatch.setattr(LocalProfileContext, step, broken)
    found = place.ask("/regsn" + path, session, method, json={"name": "n"})
    assert (found.status_code, found.json()["code"]) == (500, "internal_error")
    assert rate(found, "ratelimit-") == ["10", "9"]


# -- failed ---------------------------------------------------------------------------------------------------


EVENTS: Final = (
    {"method": "GET", "route": "/v1/a", "status": 200},
    {"method": "GET", "route": "/v1/a", "status": 200, "error_type": "PARTIAL"},
    {"method": "GET", "route": "/v1/b", "status": 399, "error_type": "PARTIAL"},
    {"method": "GET", "route": "/v1/b", "status": 400},
    {"method": "GET", "route": "/v1/b", "status": 500, "error_type": "INTERNAL_ERROR"},
)


@pytest.mark.parametrize(("failure", "failed"), [("status", 2), ("status_or_type", 4)])
def test_anylayer_counts_as_failed_what_the_status_says(install: Install, failure: str, failed: int) -> None:
    """Success is a status below 400; what else was reported with it is no failure, unless it is set so."""
    site = install(profile_settings=json.dumps({"anylayer": {"failure": failure}}))
    ensure_operator_key(site, OPERATOR_KEY)
    app = build_app(site)
    try:
        place = Place(app)
        _, key_id, secret = place.key("anylayer", limits=[Limit(name="rpm", amount=99)])
        place.book(key_id, NOON, *EVENTS)
        body = place.ask("/anylayer/v1/developer/usage?sort=errors", secret).json()
    finally:
        app.close()
    usage, errors = body["usage"], body["errors"]
    assert (usage["totalRequests"], usage["failedRequests"], errors["totalErrors"]) == (5, failed, failed)
    assert usage["successRate"] + errors["errorRate"] == 100
    assert sum(point["failedRequests"] for point in body["timeSeries"]) == failed
    assert sum(item["count"] for item in errors["byType"]) == failed
    assert sum(item["count"] for item in errors["byEndpoint"]) == failed
    assert sum(item["count"] for item in errors["byStatusCode"]) == failed
    if failure == "status":
        assert {item["statusCode"] for item in errors["byStatusCode"]} == {400, 500}
        assert [item["endpoint"] for item in errors["byEndpoint"]] == ["GET /v1/b"]
        rates = {item["endpoint"]: item["successRate"] for item in body["breakdown"]["byEndpoint"]}
        assert rates == {"GET /v1/a": 100, "GET /v1/b": 33.33}


def test_a_latency_that_nobody_recorded_is_the_number_that_is_set(install: Install) -> None:
    """The vendor's members are numbers, so 0 by default."""
    for shown in (0, None):
        site = install(unique("data"), profile_settings=json.dumps({"anylayer": {"latency_unknown": shown}}))
        ensure_operator_key(site, OPERATOR_KEY)
        app = build_app(site)
        try:
            place = Place(app)
            _, key_id, secret = place.key("anylayer")
            place.book(key_id, NOON, {"status": 200})
            usage = place.ask("/anylayer/v1/developer/usage", secret).json()["usage"]
            assert (usage["averageLatency"], usage["peakLatency"]) == (shown, shown)
        finally:
            app.close()


def test_a_budget_that_its_pace_will_use_up_is_an_alert(install: Install, clock: ManualClock) -> None:
    """On the 18th at noon, 17.5 of 31 days are over: 60 of 100 credits are too many, 50 are not."""
    site = install(profile_settings=json.dumps({"anylayer": {"alerts": ["budget"]}}))
    ensure_operator_key(site, OPERATOR_KEY)
    app = build_app(site)
    try:
        place = Place(app)
        for spent, alerts in ((50, 0), (60, 1), (80, 1)):
            account, key_id, secret = place.key("anylayer")
            set_up(site, Budget(id="pool", account=account, amount=100, unit="credits", period="month"))
            place.book(key_id, NOON, {"status": 200, "credits": spent})
            found = place.ask("/anylayer/v1/developer/usage", secret).json()["alerts"]
            assert len(found) == alerts, (spent, found)
            if spent == 60:
                (alert,) = found
                assert alert["type"] == "budget"
                assert "60%" in alert["message"]
                assert "runs out at 2026-03-30T04:00:00Z" in alert["message"]
    finally:
        app.close()


def test_a_limit_status_has_the_start_of_its_period(place: Place) -> None:
    account, key_id, _ = place.key("shoal", limits=[RPM, Limit(name="slow", amount=9, algorithm="sliding")])
    set_up(
        place.site,
        Budget(id="a-month", account=account, amount=100, unit="credits", period="month"),
        Budget(id="ever", account=account, amount=100, unit="credits", period="total"),
    )
    stored = place.site.directory.key(key_id)
    assert stored is not None
    context = place.site.context(load("shoal"))
    answered = {limit_status.name: limit_status for limit_status in context.limit_statuses(stored)}
    assert answered["requests"].starts_at == NOON
    assert answered["slow"].starts_at is None
    assert answered["a-month"].starts_at == NOON.replace(day=1, hour=0)
    assert answered["a-month"].resets_at == NOON.replace(month=4, day=1, hour=0)
