"""
CheapestInference's dialect, by the acceptance cases of its specification: each at the root and under its prefix.

What needs no clock of its own asks a real server over HTTP; what needs one asks the application in process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Install
from tests.end_to_end.server import Server, running_server, start_server
from tests.profiles.places import Client, Remote, reach
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.adapters.jwt_tokens import JwtTokens
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.catalog.sessions import Sessions
from tollkeeper.clock import SystemClock
from tollkeeper.domain.catalog import Account, Entry, Grant, Key, Limit, Plan, PlanBudget, Subscription
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.matching import Match
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.embedded import Tollkeeper
from tollkeeper.errors import InvariantBroken, Unavailable
from tollkeeper.http.app import App, build_app
from tollkeeper.installation import Installation
from tollkeeper.profiles.base import Call
from tollkeeper.profiles.cheapestinference import PROFILE
from tollkeeper.profiles.toolkit import dollars
from tollkeeper.testing import NOON, Faulty, ManualClock, set_up, unique

NAME = "cheapestinference"
DOLLAR = 1_000_000_000
ISO_MS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
CHAT = "/v1/chat/completions"

UNKNOWN_KEY = {
    "error": {"message": "Invalid API key", "type": "authentication_error", "code": "invalid_api_key"}
}
NO_KEY = {"error": {"message": "Missing API key", "type": "authentication_error", "code": "invalid_api_key"}}
DEACTIVATED = {
    "error": {"message": "API key is deactivated", "type": "permission_error", "code": "key_deactivated"}
}
DELETED = {"error": {"message": "API key not found", "type": "not_found_error", "code": "key_not_found"}}
AWAY = {
    "error": {
        "message": "Usage data temporarily unavailable",
        "type": "api_error",
        "code": "usage_unavailable",
    }
}
ZEROS = {"requests": 0, "tokens": 0, "promptTokens": 0, "completionTokens": 0}


# -- the shapes ----------------------------------------------------------------------------------------


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Refuses unknown members."""


class BudgetShape(Strict):
    spent: float
    limit: float | None
    duration: str | None
    resets_at: str | None


class RatesShape(Strict):
    rpm: int | None
    tpm: int | None


class PlanShape(Strict):
    slug: str | None
    status: str | None
    expires_at: str | None


class CreditsShape(Strict):
    balance: float


class KeyShape(Strict):
    name: str
    type: str
    created_at: str


class UsageShape(Strict):
    budget: BudgetShape
    rate_limits: RatesShape
    plan: PlanShape
    credits: CreditsShape
    key: KeyShape


class WindowShape(Strict):
    requests: int
    tokens: int
    promptTokens: int
    completionTokens: int


class WindowsShape(Strict):
    last1h: WindowShape
    last24h: WindowShape
    last7d: WindowShape
    last30d: WindowShape


class SubscriptionShape(Strict):
    status: str
    expiresAt: str | None


class ItemShape(Strict, kw_only=True):
    id: str
    name: str
    type: str
    plan: str | None
    isActive: bool
    usage: WindowsShape
    subscription: SubscriptionShape | msgspec.UnsetType = msgspec.UNSET
    createdAt: str


class ListShape(Strict):
    success: bool
    data: list[ItemShape]


class KeyItemShape(Strict, kw_only=True):
    id: str
    name: str
    keyPlan: str | None
    keyType: str
    isActive: bool
    subscriptionStatus: str | msgspec.UnsetType = msgspec.UNSET
    subscriptionExpiresAt: str | msgspec.UnsetType | None = msgspec.UNSET
    createdAt: str
    apiKey: str | msgspec.UnsetType = msgspec.UNSET


# -- a real server -------------------------------------------------------------------------------------


class Reached(Remote):
    """The dialect of a server at one of its two places."""

    def __init__(self, server: Server, base: str, sessions: Sessions, client: Client | None = None) -> None:
        super().__init__(server, base, client)
        self.sessions = sessions

    def call(
        self, path: str, credential: str | None = None, method: str = "GET", **options: Any
    ) -> requests.Response:
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        return self.ask(method, path, headers={**headers, **options.pop("headers", {})}, **options)

    def good(self, path: str, credential: str | None = None) -> Any:
        answer = self.call(path, credential)
        assert answer.status_code == 200, answer.text
        return answer.json()


class Shop:
    """One account of a test, set up by the operator."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.account = unique("ci")
        server.put(f"/tk/v1/accounts/{self.account}", {"name": "Test"})

    def plan(self, *, budget: int | None = 10 * DOLLAR, rpm: int = 60, period: str = "30d") -> str:
        slug = unique("plan")
        body = {
            "name": "Test",
            "sellable": False,
            "limits": [
                {"name": "rpm", "amount": rpm},
                {"name": "tpm", "amount": 3333, "unit": "tokens"},
            ],
            "budgets": [{"name": "spend", "amount": budget, "period": period}],
            "metadata": {"profile": NAME, "slug": "standard"},
        }
        self.server.put(f"/tk/v1/plans/{slug}", body)
        return slug

    def subscribe(self, plan: str | None = None, **fields: Any) -> str:
        name = unique("sub")
        started_at = (datetime.now(UTC) - timedelta(days=10)).isoformat()
        expires_at = (datetime.now(UTC) + timedelta(days=20)).isoformat()
        body = {"account": self.account, "started_at": started_at, "expires_at": expires_at, **fields}
        self.server.put(f"/tk/v1/subscriptions/{name}", {**body, "plan": plan or self.plan()})
        return name

    def key(self, **fields: Any) -> tuple[str, str]:
        """Return id and secret of a new key."""
        made = self.server.post("/tk/v1/keys", {"account": self.account, "profile": NAME, **fields})
        return made["entry"]["id"], made["secret"]

    def management(self) -> str:
        return self.key(role="management", profile="native")[1]

    def top_up(self, nanos: int) -> None:
        body = {"account": self.account, "amount_nanos": str(nanos), "source": "top_up"}
        self.server.put(f"/tk/v1/grants/{unique('grant')}", body)

    def spend(self, key_id: str, *, ago: timedelta = timedelta(), **fields: Any) -> None:
        event = {"id": unique("event"), "time": (datetime.now(UTC) - ago).isoformat(), "key_id": key_id}
        answer = self.server.post("/tk/v1/events", [{**event, **fields}])
        assert answer["accepted"] == 1, answer


@pytest.fixture(scope="module")
def sessions(server: Server, server_directory: Path) -> Sessions:
    """The server's own login."""
    return Sessions(SystemClock(), (server_directory / "session.secret").read_text(), JwtTokens())


@pytest.fixture
def at(server: Server, base: str, sessions: Sessions, client: Client) -> Reached:
    return Reached(server, base, sessions, client)


@pytest.fixture
def shop(server: Server) -> Shop:
    return Shop(server)


def members(text: str) -> Any:
    """Return *text* with its objects as lists of pairs, so that the order of members can be compared."""
    return json.loads(text, object_pairs_hook=list)


def names(answer: requests.Response) -> list[str]:
    return list(answer.json())


def check_headers(answer: Any, *, metered: bool = False, **expected: str) -> None:
    """The answer has these headers, those of every answer, and no others; *metered*: it is of the provider's API."""
    given = {name.lower(): value for name, value in answer.headers.items()}
    given.pop("date", None)
    given.pop("server", None)
    wanted = {"content-type": "application/json", "content-length": str(len(answer.content))}
    if not metered:
        wanted |= {"vary": "Authorization", "cache-control": "private, no-store"}
    wanted |= {name.replace("_", "-"): value for name, value in expected.items()}
    assert given == wanted


# -- the acceptance cases, over HTTP -------------------------------------------------------------------


def test_case_1_the_five_parts_of_usage(at: Reached, shop: Shop) -> None:
    key_id, secret = shop.key(subscription=shop.subscribe(), name="prod-key")
    shop.spend(key_id, cost_nanos=1_230_000_000)
    answer = at.call("/v1/usage", secret)
    assert answer.status_code == 200
    check_headers(answer)
    assert [name for name, _ in members(answer.text)] == ["budget", "rate_limits", "plan", "credits", "key"]
    assert [[name for name, _ in part] for _, part in members(answer.text)] == [
        ["spent", "limit", "duration", "resets_at"],
        ["rpm", "tpm"],
        ["slug", "status", "expires_at"],
        ["balance"],
        ["name", "type", "created_at"],
    ]
    msgspec.json.decode(answer.content, type=UsageShape)
    body = answer.json()
    assert body["budget"] | {"resets_at": ""} == {
        "spent": 1.23,
        "limit": 10.0,
        "duration": "30d",
        "resets_at": "",
    }
    assert body["rate_limits"] == {"rpm": 60, "tpm": 3333}
    assert body["plan"]["slug"] == "standard"
    assert body["plan"]["status"] == "active"
    assert body["credits"] == {"balance": 0}
    assert (body["key"]["name"], body["key"]["type"]) == ("prod-key", "subscription")


def test_case_2_a_pool_is_shared_by_its_subscription_alone(at: Reached, shop: Shop) -> None:
    plan = shop.plan()
    one, other = shop.subscribe(plan), shop.subscribe(plan)
    keys = [shop.key(subscription=one), shop.key(subscription=one), shop.key(subscription=other)]
    shop.spend(keys[0][0], cost_nanos=1_000_000_000)
    before = [at.good("/v1/usage", secret)["budget"]["spent"] for _, secret in keys]
    shop.spend(keys[0][0], cost_nanos=230_000_000)
    after = [at.good("/v1/usage", secret)["budget"]["spent"] for _, secret in keys]
    assert (before, after) == ([1, 1, 0], [1.23, 1.23, 0])


def test_a_deleted_key_leaves_its_spend_in_the_pool(at: Reached, shop: Shop) -> None:
    subscription = shop.subscribe()
    gone, kept = shop.key(subscription=subscription), shop.key(subscription=subscription)
    shop.spend(gone[0], cost_nanos=500_000_000)
    shop.server.call("DELETE", f"/tk/v1/keys/{gone[0]}")
    assert at.good("/v1/usage", kept[1])["budget"]["spent"] == 0.5


def test_case_3_no_cap_is_null_and_so_is_the_plan_of_a_credit_key(at: Reached, shop: Shop) -> None:
    _, uncapped = shop.key(subscription=shop.subscribe(shop.plan(budget=None)))
    found = at.good("/v1/usage", uncapped)
    assert found["budget"]["limit"] is None
    assert (found["budget"]["duration"], bool(ISO_MS.fullmatch(found["budget"]["resets_at"]))) == (
        "30d",
        True,
    )
    _, sold = shop.key(subscription=shop.subscribe("cheapestinference-pro"))
    found = at.good("/v1/usage", sold)
    assert (found["budget"]["limit"], found["budget"]["duration"]) == (None, "30d")
    assert (found["plan"]["slug"], found["rate_limits"]) == ("pro", {"rpm": 200, "tpm": 13333})
    shop.top_up(5 * DOLLAR)
    key_id, credit = shop.key(type="credit", plan="cheapestinference-credits")
    shop.spend(key_id, cost_nanos=250_000_000)
    found = at.good("/v1/usage", credit)
    assert found["budget"] == {"spent": 0.25, "limit": None, "duration": None, "resets_at": None}
    assert found["plan"] == {"slug": None, "status": None, "expires_at": None}
    assert found["rate_limits"] == {"rpm": 60, "tpm": None}
    assert found["credits"] == {"balance": 4.75}
    assert found["key"]["type"] == "credit"


def test_case_5_who_may_not_read_usage(at: Reached, shop: Shop) -> None:
    shop.management()
    subscription = shop.subscribe()
    _, foreign = shop.key(profile="regpilot")
    _, native = shop.key(profile="native")
    unknown: list[str | None] = ["garbage", shop.management(), foreign, native, "sk_live_" + "x" * 32, "\xff"]
    for credential in unknown:
        answer = at.call("/v1/usage", credential)
        assert (answer.status_code, answer.json()) == (401, UNKNOWN_KEY), credential
        check_headers(answer, www_authenticate="Bearer")
    _, secret = shop.key(subscription=subscription)
    for headers in ({}, {"Authorization": ""}, {"Authorization": f"Basic {secret}"}, {"X-API-Key": secret}):
        answer = at.call("/v1/usage", headers=headers)
        assert (answer.status_code, answer.json()) == (401, NO_KEY), headers
    assert at.call("/v1/usage", headers={"Authorization": f"bearer  {secret}"}).status_code == 200
    for state in ("inactive", "revoked"):
        key_id, secret = shop.key(subscription=subscription)
        shop.server.post(f"/tk/v1/keys/{key_id}/state", {"state": state})
        answer = at.call("/v1/usage", secret)
        assert (answer.status_code, answer.json()) == (403, DEACTIVATED), state
        check_headers(answer)
    shop.server.call("DELETE", f"/tk/v1/keys/{key_id}")
    answer = at.call("/v1/usage", secret)
    assert (answer.status_code, answer.json()) == (404, DELETED)


def test_case_6_more_calls_than_the_key_may_make(at: Reached, shop: Shop) -> None:
    _, secret = shop.key(subscription=shop.subscribe(shop.plan(rpm=2)))
    # A minute may end in between: of five calls in at most two minutes at least one is refused.
    answers = [at.call("/v1/usage", secret) for _ in range(5)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert (answer.status_code, answer.json()) == (
            429,
            {
                "error": {
                    "message": "Rate limit exceeded: 2 requests per minute",
                    "type": "rate_limit_error",
                    "code": "rate_limit_exceeded",
                }
            },
        )
        assert 1 <= int(answer.headers["Retry-After"]) <= 60


def test_case_7_the_list_has_every_key_with_four_windows(at: Reached, shop: Shop) -> None:
    subscription = shop.subscribe()
    first, second = shop.key(subscription=subscription, name="a"), shop.key(subscription=subscription)
    off, gone = shop.key(subscription=subscription), shop.key(subscription=subscription)
    shop.server.post(f"/tk/v1/keys/{off[0]}/state", {"state": "inactive"})
    shop.server.call("DELETE", f"/tk/v1/keys/{gone[0]}")
    shop.spend(first[0], ago=timedelta(minutes=5), tokens={"prompt": 7800, "completion": 400})
    for credential in (shop.management(), at.sessions.issue(shop.account, "ann")):
        answer = at.call("/api/usage?startDate=nonsense", credential)
        assert answer.status_code == 200
        check_headers(answer, cache_control="private, max-age=3600")
        body = answer.json()
        msgspec.json.decode(answer.content, type=ListShape)
        assert list(body) == ["success", "data"]
        assert body["success"] is True
        assert [(item["id"], item["isActive"]) for item in body["data"]] == [
            (off[0], False),
            (second[0], True),
            (first[0], True),
        ]
        used = {"requests": 1, "tokens": 8200, "promptTokens": 7800, "completionTokens": 400}
        assert body["data"][2]["usage"] == dict.fromkeys(("last1h", "last24h", "last7d", "last30d"), used)
        item = members(answer.text)[1][1][2]
        assert [name for name, _ in item] == [
            "id",
            "name",
            "type",
            "plan",
            "isActive",
            "usage",
            "subscription",
            "createdAt",
        ]
        usage = dict(item)["usage"]
        assert [name for name, _ in usage] == ["last1h", "last24h", "last7d", "last30d"]
        assert [name for name, _ in usage[0][1]] == list(used)
    check_dashboard_is_closed(at, shop, first[1])


def check_dashboard_is_closed(at: Reached, shop: Shop, consumption: str) -> None:
    key_id, revoked = shop.key(role="management", profile="native")
    shop.server.post(f"/tk/v1/keys/{key_id}/state", {"state": "revoked"})
    foreign = shop.key(role="management", profile="shoal")[1]
    expired = at.sessions.issue(shop.account, "ann", ttl_s=-3600)
    forged = Sessions(SystemClock(), "f" * 64, JwtTokens()).issue(shop.account, "ann")
    nobody = at.sessions.issue(unique("nobody"), "ann")
    bad = [None, "garbage", consumption, revoked, foreign, expired, forged, nobody, "mk_" + "x" * 32]
    for credential in bad:
        for method, path in (
            ("GET", "/api/usage"),
            ("GET", f"/api/usage/{key_id}"),
            ("GET", "/api/keys"),
            ("POST", "/api/keys/credit"),
            ("POST", "/api/keys/subscription"),
            ("PATCH", f"/api/keys/{key_id}"),
            ("DELETE", f"/api/keys/{key_id}"),
            ("GET", "/api/billing/status"),
            ("GET", "/api/billing/credits"),
        ):
            answer = at.call(path, credential, method)
            assert (answer.status_code, answer.text) == (401, '{"success":false,"error":"Unauthorized"}')
            check_headers(answer, www_authenticate="Bearer")


def test_case_8_tokens_are_prompt_and_completion_tokens(at: Reached, shop: Shop) -> None:
    """The classes that the vendor does not tell apart are counted with those that it has."""
    key_id, _ = shop.key(subscription=shop.subscribe())
    tokens = {"prompt": 100, "cached_prompt": 30, "completion": 7, "reasoning": 5}
    shop.spend(key_id, ago=timedelta(days=2), tokens=tokens)
    shop.spend(key_id, ago=timedelta(minutes=3), tokens={"prompt": 1})
    usage = at.good(f"/api/usage/{key_id}", shop.management())["usage"]
    for window in usage.values():
        assert window["tokens"] == window["promptTokens"] + window["completionTokens"]
    assert usage["last24h"] == {"requests": 1, "tokens": 1, "promptTokens": 1, "completionTokens": 0}
    assert usage["last7d"] == {"requests": 2, "tokens": 143, "promptTokens": 131, "completionTokens": 12}


def test_case_9_a_request_of_25_hours_ago(at: Reached, shop: Shop) -> None:
    key_id, _ = shop.key(subscription=shop.subscribe())
    shop.spend(key_id, ago=timedelta(hours=25), tokens={"prompt": 9})
    usage = at.good(f"/api/usage/{key_id}", shop.management())["usage"]
    assert [usage[name]["requests"] for name in usage] == [0, 0, 1, 1]
    assert usage["last24h"] == ZEROS


def test_refused_requests_are_not_usage(at: Reached, shop: Shop) -> None:
    key_id, _ = shop.key(subscription=shop.subscribe())
    shop.spend(key_id, status=429, denied_reason="rate_limited")
    shop.spend(key_id, status=500)
    assert at.good(f"/api/usage/{key_id}", shop.management())["usage"]["last1h"]["requests"] == 1


def test_case_10_a_credit_key_has_no_subscription(at: Reached, shop: Shop) -> None:
    shop.top_up(DOLLAR)
    credit = shop.key(type="credit")
    timed = shop.key(subscription=shop.subscribe())
    [subscribed, item] = at.good("/api/usage", shop.management())["data"]
    assert (item["id"], item["type"], item["plan"]) == (credit[0], "credit", "credits")
    assert "subscription" not in item
    assert (subscribed["id"], subscribed["plan"]) == (timed[0], "standard")
    assert list(subscribed["subscription"]) == ["status", "expiresAt"]
    assert subscribed["subscription"]["status"] == "active"


def test_case_11_the_13th_list_within_12_hours(at: Reached, shop: Shop) -> None:
    key_id, secret = shop.key(subscription=shop.subscribe())
    session = at.sessions.issue(shop.account, "ann")
    askers = [shop.management(), shop.management(), session]
    assert [at.call("/api/usage", askers[n % 3]).status_code for n in range(12)] == [200] * 12
    for asker in askers:
        answer = at.call("/api/usage", asker)
        assert (answer.status_code, answer.text) == (429, '{"success":false,"error":"Rate limit exceeded"}')
        retry_after = answer.headers["Retry-After"]
        assert 43_000 < int(retry_after) <= 43_200
        check_headers(answer, retry_after=retry_after)
    assert at.call("/v1/usage", secret).status_code == 200
    assert at.call("/api/plans").status_code == 200
    assert at.call(f"/api/usage/{key_id}", askers[0]).status_code == 200
    stranger = Shop(shop.server)
    assert at.call("/api/usage", stranger.management()).json() == {"success": True, "data": []}


def test_case_12_one_key_is_its_item_of_the_list(at: Reached, shop: Shop) -> None:
    key_id, _ = shop.key(subscription=shop.subscribe())
    gone, _ = shop.key(subscription=shop.subscribe())
    shop.spend(key_id, ago=timedelta(hours=3), tokens={"prompt": 5})
    asker = shop.management()
    listed = {item["id"]: item for item in at.good("/api/usage", asker)["data"]}
    answer = at.call(f"/api/usage/{key_id}", asker)
    check_headers(answer)
    assert members(answer.text) == members(json.dumps(listed[key_id]))
    shop.server.call("DELETE", f"/tk/v1/keys/{gone}")
    stranger = Shop(shop.server)
    foreign, _ = stranger.key(subscription=stranger.subscribe())
    native, _ = shop.key(profile="native")
    manager, _ = shop.key(role="management", profile="native")
    for bad in (foreign, gone, native, manager, "not-a-uuid", "%00", "a%2e%2e", "a" * 500):
        answer = at.call(f"/api/usage/{bad}", asker)
        assert (answer.status_code, answer.text) == (404, '{"success":false,"error":"Key not found"}'), bad


def test_escaped_dots_are_an_unknown_key(at: Reached, shop: Shop) -> None:
    """A browser takes them for a step up and never sends them; other clients do."""
    answer = at.call("/api/usage/%2e%2e", shop.management())
    assert (answer.status_code, answer.text) == (404, '{"success":false,"error":"Key not found"}')


def test_case_13_plans_need_no_credentials(at: Reached) -> None:
    for credential in (None, "garbage"):
        answer = at.call("/api/plans?x=1", credential)
        assert answer.status_code == 200
        check_headers(answer)
        assert members(answer.text) == members(
            '[{"slug":"standard","name":"Standard","priceUsdc":"20",'
            '"rateLimits":{"tpm_limit":3333,"rpm_limit":60}},'
            '{"slug":"pro","name":"Pro","priceUsdc":"60","rateLimits":{"tpm_limit":13333,"rpm_limit":200}}]'
        )


def test_case_14_a_top_up_is_there_at_once_on_every_key(at: Reached, shop: Shop) -> None:
    shop.top_up(1_500_000_000)
    secrets = [shop.key(type="credit")[1], shop.key(subscription=shop.subscribe())[1]]
    assert [at.good("/v1/usage", secret)["credits"]["balance"] for secret in secrets] == [1.5, 1.5]
    shop.top_up(50 * DOLLAR)
    assert [at.good("/v1/usage", secret)["credits"]["balance"] for secret in secrets] == [51.5, 51.5]


def test_case_15_timestamps_have_milliseconds(at: Reached, shop: Shop) -> None:
    end = datetime(2031, 1, 1, 10, 0, 0, 7, tzinfo=UTC).isoformat()
    key_id, secret = shop.key(subscription=shop.subscribe(expires_at=end))
    usage = at.good("/v1/usage", secret)
    item = at.good(f"/api/usage/{key_id}", shop.management())
    assert usage["plan"]["expires_at"] == item["subscription"]["expiresAt"] == "2031-01-01T10:00:00.000Z"
    assert usage["key"]["created_at"] == item["createdAt"]
    assert ISO_MS.fullmatch(item["createdAt"])
    assert ISO_MS.fullmatch(usage["budget"]["resets_at"])


def test_keys_are_listed_made_disabled_and_deleted(at: Reached, shop: Shop) -> None:
    asker = at.sessions.issue(shop.account, "ann")
    post = "POST"
    assert at.good("/api/keys", asker) == []
    for path in ("/api/keys/credit", "/api/keys/subscription"):
        for body in (
            b"",
            b"[]",
            b"{}",
            b'{"name": 7}',
            b'{"name": " "}',
            b'{"name": "a\\u0000"}',
            b"{" * 5000,
        ):
            answer = at.call(path, asker, post, data=body)
            assert answer.status_code == 400, body
            assert names(answer) == ["success", "error"]
            assert answer.json()["success"] is False
    long = at.call("/api/keys/credit", asker, post, json={"name": "n" * 257})
    assert (long.status_code, long.json()["error"]) == (400, "name must have at most 256 characters")
    poor = at.call("/api/keys/credit", asker, post, json={"name": "k"})
    assert (poor.status_code, names(poor)) == (402, ["success", "error"])
    shop.top_up(DOLLAR)
    made = at.call("/api/keys/credit", asker, post, json={"name": "pay"})
    assert made.status_code == 201
    msgspec.json.decode(made.content, type=KeyItemShape)
    assert names(made) == ["id", "name", "keyPlan", "keyType", "isActive", "createdAt", "apiKey"]
    assert made.json()["apiKey"].startswith("sk_live_")
    usage = at.good("/v1/usage", made.json()["apiKey"])
    assert (usage["key"]["name"], usage["rate_limits"]) == ("pay", {"rpm": 60, "tpm": None})

    subscription = shop.subscribe()
    other = Shop(shop.server).subscribe()
    for missing in (other, "none"):
        body = {"name": "x", "subscriptionId": missing}
        assert at.call("/api/keys/subscription", asker, post, json=body).status_code == 404
    over = shop.subscribe(expires_at=(datetime.now(UTC) - timedelta(days=1)).isoformat())
    body = {"name": "x", "subscriptionId": over}
    assert at.call("/api/keys/subscription", asker, post, json=body).status_code == 409
    body = {"name": "more", "subscriptionId": subscription}
    more = at.call("/api/keys/subscription", asker, post, json=body).json()
    assert list(more) == [
        "id",
        "name",
        "keyPlan",
        "keyType",
        "isActive",
        "subscriptionStatus",
        "subscriptionExpiresAt",
        "createdAt",
        "apiKey",
    ]
    listed = at.good("/api/keys", asker)
    assert [item["id"] for item in listed] == [more["id"], made.json()["id"]]
    assert listed[0] == {name: value for name, value in more.items() if name != "apiKey"}

    path = f"/api/keys/{more['id']}"
    for bad in (b"", b"{}", b'{"isActive": "no"}', b'{"isActive": 0}'):
        assert at.call(path, asker, "PATCH", data=bad).status_code == 400
    assert at.call(path, asker, "PATCH", json={"isActive": False}).json() == {**listed[0], "isActive": False}
    assert at.call("/v1/usage", more["apiKey"]).status_code == 403
    assert at.call(path, asker, "PATCH", json={"isActive": True}).json() == listed[0]
    assert at.call("/v1/usage", more["apiKey"]).status_code == 200
    assert at.call(path, Shop(shop.server).management(), "DELETE").status_code == 404
    deleted = at.call(path, asker, "DELETE")
    assert (deleted.status_code, deleted.json()) == (200, {"success": True})
    assert at.call(path, asker, "DELETE").status_code == 404
    assert at.call("/v1/usage", more["apiKey"]).status_code == 404
    shop.server.post(f"/tk/v1/keys/{made.json()['id']}/state", {"state": "revoked"})
    again = at.call(f"/api/keys/{made.json()['id']}", asker, "PATCH", json={"isActive": True})
    assert (again.status_code, names(again)) == (409, ["success", "error"])


def test_billing_tells_subscriptions_and_credit(at: Reached, shop: Shop) -> None:
    asker = shop.management()
    assert at.good("/api/billing/status", asker) == {
        "subscriptions": [],
        "creditBalance": "0.00",
        "legacySubscriptionKeys": [],
    }
    nothing = at.call("/api/billing/credits", asker)
    assert nothing.text == '{"totalTopUp":"0.00","remaining":"0.00","hasCreditKey":false,"creditKeyId":null}'
    end = "2031-01-01T10:00:00Z"
    going = shop.subscribe(expires_at=end)
    ending = shop.subscribe(expires_at=end, status="canceled")
    ended = shop.subscribe(expires_at=(datetime.now(UTC) - timedelta(days=1)).isoformat())
    key_id, _ = shop.key(subscription=going, name="a")
    shop.top_up(100 * DOLLAR)
    credit, _ = shop.key(type="credit")
    shop.spend(credit, cost_nanos=25_500_000_000)
    status = at.good("/api/billing/status", asker)
    assert list(status) == ["subscriptions", "creditBalance", "legacySubscriptionKeys"]
    assert status["creditBalance"] == "74.50"
    found = {subscription["id"]: subscription for subscription in status["subscriptions"]}
    assert list(found[going].items()) == [
        ("id", going),
        ("planSlug", "standard"),
        ("status", "active"),
        ("currentPeriodEnd", "2031-01-01T10:00:00.000Z"),
        ("cancelAtPeriodEnd", False),
        ("keyCount", 1),
        ("keys", [{"id": key_id, "name": "a"}]),
    ]
    assert (found[ending]["status"], found[ending]["cancelAtPeriodEnd"]) == ("active", True)
    assert (found[ended]["status"], found[ended]["cancelAtPeriodEnd"]) == ("canceled", False)
    assert at.call("/api/billing/credits", asker).text == (
        f'{{"totalTopUp":"100.00","remaining":"74.50","hasCreditKey":true,"creditKeyId":"{credit}"}}'
    )


def test_unknown_paths_and_methods_answer_in_the_form_of_their_surface(at: Reached) -> None:
    for method, path, status, body in (
        ("GET", "/v1/nothing", 404, ("Not found", "not_found_error", "route_not_found")),
        ("GET", "/", 404, ("Not found", "not_found_error", "route_not_found")),
        ("POST", "/v1/usage", 405, ("Method not allowed", "invalid_request_error", "method_not_allowed")),
    ):
        answer = at.call(path, method=method)
        worded = dict(zip(("message", "type", "code"), body, strict=True))
        assert (answer.status_code, answer.json()) == (status, {"error": worded})
    for method, path, status, message in (
        ("GET", "/api/nothing", 404, "Not found"),
        ("POST", "/api/billing/topup", 404, "Not found"),
        ("POST", "/api/plans", 405, "Method not allowed"),
    ):
        answer = at.call(path, method=method)
        assert (answer.status_code, answer.json()) == (status, {"success": False, "error": message})
    assert at.call("/api/plans", method="DELETE").headers["Allow"] == "GET"


AGES_MIN = st.sampled_from(
    [2, 20, 45, 90, 60 * 20, 60 * 30, 60 * 24 * 6, 60 * 24 * 8, 60 * 24 * 29, 60 * 24 * 31]
)
COUNTS = st.integers(min_value=0, max_value=10**6)
EVENTS = st.lists(st.tuples(st.integers(0, 1), AGES_MIN, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS), max_size=12)


@settings(max_examples=5, deadline=None)
@given(recorded=EVENTS)
def test_whatever_was_recorded_the_answers_fit_and_agree_with_the_native_one(
    server: Server, sessions: Sessions, recorded: list[tuple[int, ...]]
) -> None:
    shop = Shop(server)
    at = Reached(server, "", sessions)
    keys = [shop.key(subscription=shop.subscribe()), shop.key(type="credit")]
    now = datetime.now(UTC)
    events = [
        {
            "id": unique("event"),
            "time": (now - timedelta(minutes=age)).isoformat(),
            "key_id": keys[key][0],
            "tokens": {"prompt": a, "cached_prompt": b, "completion": c, "reasoning": d},
            "cost_nanos": cost * 1001,
        }
        for key, age, a, b, c, d, cost in recorded
    ]
    assert server.post("/tk/v1/events", events)["accepted"] == len(events)
    answer = msgspec.json.decode(at.call("/api/usage", shop.management()).content, type=ListShape)
    assert [item.id for item in answer.data] == [keys[1][0], keys[0][0]]
    for name, hours in (("last1h", 1), ("last24h", 24), ("last7d", 168), ("last30d", 720)):
        native = _native(server, shop.account, now - timedelta(hours=hours), "key")
        for item in answer.data:
            row = native.get(item.id, {})
            window: WindowShape = getattr(item.usage, name)
            assert (window.requests, window.tokens) == (row.get("requests", 0), row.get("tokens", 0))
            assert window.tokens == window.promptTokens + window.completionTokens
    usage = msgspec.json.decode(at.call("/v1/usage", keys[0][1]).content, type=UsageShape)
    # The subscription's period is the 30 days that began ten days ago.
    native = _native(server, shop.account, now - timedelta(days=10), "key")
    assert usage.budget.spent == dollars(int(native.get(keys[0][0], {}).get("cost_nanos", 0)))
    credit = msgspec.json.decode(at.call("/v1/usage", keys[1][1]).content, type=UsageShape)
    spent = sum(cost * 1001 for key, *_, cost in recorded if key == 1)
    assert (credit.budget.spent, credit.credits.balance) == (dollars(spent), dollars(-spent))


def _native(server: Server, account: str, since: datetime, group: str) -> dict[str, dict[str, Any]]:
    params = {
        "account": account,
        "from": since.isoformat(),
        "to": (since + timedelta(days=40)).isoformat(),
        "group_by": group,
        "measures": "requests,tokens,cost_nanos",
    }
    query = requests.models.PreparedRequest()
    query.prepare_url(server.url + "/tk/v1/usage", params)
    assert query.url is not None
    answer = server.call("GET", query.url.removeprefix(server.url))
    return {row[group]: row for row in answer["rows"]}


def test_case_11_survives_a_killed_server(tmp_path: Path) -> None:
    """The count is durable before the answer: a power cut gives nobody twelve more."""
    options = ("--root-profile", NAME, "--profiles", NAME)
    first = start_server(tmp_path, *options)
    try:
        secret = Shop(first).management()
        headers = {"Authorization": f"Bearer {secret}"}
        for _ in range(12):
            assert requests.get(first.url + "/api/usage", headers=headers, timeout=60).status_code == 200
    finally:
        first.kill()
    with running_server(tmp_path, *options) as second:
        for prefix in ("", f"/{NAME}"):
            answer = requests.get(f"{second.url}{prefix}/api/usage", headers=headers, timeout=60)
            assert answer.status_code == 429


# -- with a clock of its own, in process ---------------------------------------------------------------


class Site(NamedTuple):
    """An installation in process, asked at the root or under the prefix."""

    installation: Installation
    app: App
    prefix: str

    def ask(self, path: str, credential: str | None = None, method: str = "GET") -> httpx.Response:
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        return reach(self.app, method, self.prefix + path, headers=headers)


Open = Callable[..., Site]


@pytest.fixture
def opened(base: str, install: Install) -> Iterator[Open]:
    with ExitStack() as stack:

        def opened(**options: Any) -> Site:
            root = {"profiles": NAME} if base else {"root_profile": NAME}
            site = install(**root, **options)
            app = build_app(site)
            stack.callback(app.close)
            return Site(site, app, base)

        yield opened


def limit_status(account: str, *, period: str = "30d", limit: int | None = 10 * DOLLAR) -> list[Entry]:
    """Return an account with a subscription that began 20 days ago and ends in 40, and two keys."""
    plan = Plan(
        slug=f"plan-{account}",
        limits=[Limit(name="rpm", amount=3), Limit(name="tpm", amount=1000, unit="tokens")],
        budgets=[PlanBudget(name="spend", amount=limit, period=period)],
        metadata={"slug": "standard"},
        sellable=False,
    )
    subscription = Subscription(
        id="sub",
        account=account,
        plan=plan.slug,
        started_at=NOON - timedelta(days=20),
        expires_at=NOON + timedelta(days=40),
    )
    return [
        plan,
        Account(id=account, name="Test"),
        subscription,
        Key(id=f"{account}-k", account=account, subscription="sub", profile=NAME),
        Key(id=f"{account}-m", account=account, role="management"),
        *parse_declaration(PROFILE.catalog),
    ]


def pay(site: Installation, secret: str, nanos: int, tokens: int = 0) -> Denial | None:
    """Make one metered call that costs *nanos*; return why it was refused."""
    usage = Usage(prompt_tokens=tokens, cost_nanos=nanos)
    found = site.holds.admit(secret, "POST", CHAT, usage)
    if isinstance(found, Denial):
        return found
    Tollkeeper(site).settle(found, Outcome(usage=usage), wait=True)
    return None


def test_case_4_a_new_period_begins_at_zero(opened: Open, account: str, clock: ManualClock) -> None:
    site = opened()
    secret = set_up(site.installation, *limit_status(account))[f"{account}-k"]
    assert pay(site.installation, secret, 2 * DOLLAR) is None
    before = site.ask("/v1/usage", secret).json()["budget"]
    assert before == {
        "spent": 2.0,
        "limit": 10.0,
        "duration": "30d",
        "resets_at": "2026-03-28T12:00:00.000Z",
    }
    clock.set(NOON + timedelta(days=10) - timedelta(seconds=1))
    assert site.ask("/v1/usage", secret).json()["budget"] == before
    clock.set(NOON + timedelta(days=10))
    assert site.ask("/v1/usage", secret).json()["budget"] == {
        **before,
        "spent": 0.0,
        "resets_at": "2026-04-27T12:00:00.000Z",
    }


def test_case_4_hours_count_from_midnight(opened: Open, account: str, clock: ManualClock) -> None:
    """Five hours: 00, 05, 10, 15, 20 and again 00."""
    site = opened()
    secret = set_up(site.installation, *limit_status(account, period="5h_aligned"))[f"{account}-k"]
    pay(site.installation, secret, DOLLAR)
    for hour, resets_at, spent in (
        (12, "18T15", 1.0),
        (15, "18T20", 0.0),
        (23, "19T00", 0.0),
        (24, "19T05", 0.0),
    ):
        clock.set(NOON.replace(hour=0) + timedelta(hours=hour))
        budget = site.ask("/v1/usage", secret).json()["budget"]
        expected = (spent, "5h", f"2026-03-{resets_at}:00:00.000Z")
        assert (budget["spent"], budget["duration"], budget["resets_at"]) == expected


def test_case_4_five_hours_from_the_first_use(opened: Open, account: str, clock: ManualClock) -> None:
    """A budget of `5h` begins when it is used; until then it would begin now."""
    site = opened()
    secret = set_up(site.installation, *limit_status(account, period="5h"))[f"{account}-k"]
    for minutes, resets_at, spent in (
        (7, "18T17:07", 0.0),
        (10, "18T17:10", 1.0),
        (309, "18T17:10", 1.0),
        (311, "18T22:11", 0.0),
    ):
        clock.set(NOON + timedelta(minutes=minutes))
        if minutes == 10:
            pay(site.installation, secret, DOLLAR)
        budget = site.ask("/v1/usage", secret).json()["budget"]
        expected = (spent, "5h", f"2026-03-{resets_at}:00.000Z")
        assert (budget["spent"], budget["duration"], budget["resets_at"]) == expected


def test_case_4_shows_the_budget_that_counts_all_requests(opened: Open, account: str) -> None:
    """One of some models, or of each user, is not what the key has left."""
    site = opened()
    plan, *entries = limit_status(account)
    assert isinstance(plan, Plan)
    some = [
        PlanBudget(name="models", amount=DOLLAR, period="30d", match=Match(models=["gpt-*"])),
        PlanBudget(name="users", amount=DOLLAR, period="30d", per="tag.user"),
    ]
    plan = msgspec.structs.replace(plan, budgets=[*some, *plan.budgets])
    secret = set_up(site.installation, plan, *entries)[f"{account}-k"]
    pay(site.installation, secret, DOLLAR)
    budget = site.ask("/v1/usage", secret).json()["budget"]
    assert (budget["spent"], budget["limit"]) == (1.0, 10.0)


def test_case_5_usage_that_cannot_be_read(
    opened: Open, account: str, usage_store: ClickHouseUsageStore
) -> None:
    """A real fault of the usage store; what needs none of it goes on."""
    store = Faulty(usage_store, "report")
    site = opened(store=store)
    secrets = set_up(site.installation, *limit_status(account))
    secret, asker = secrets[f"{account}-k"], secrets[f"{account}-m"]
    store.refuse(100)
    answer = site.ask("/v1/usage", secret)
    assert (answer.status_code, answer.json()) == (502, AWAY)
    check_headers(answer)
    for path in ("/api/usage", f"/api/usage/{account}-k"):
        answer = site.ask(path, asker)
        assert (answer.status_code, answer.text) == (
            502,
            '{"success":false,"error":"Usage data temporarily unavailable"}',
        )
    assert site.ask("/api/plans").status_code == 200
    assert site.ask("/api/keys", asker).status_code == 200
    store.refuse(0)
    assert site.ask("/v1/usage", secret).status_code == 200


def test_case_6_the_minute_of_a_key(opened: Open, account: str, clock: ManualClock) -> None:
    site = opened()
    secret = set_up(site.installation, *limit_status(account))[f"{account}-k"]
    clock.advance(seconds=18)
    assert [site.ask("/v1/usage", secret).status_code for _ in range(3)] == [200] * 3
    answer = site.ask("/v1/usage", secret)
    assert answer.status_code == 429
    check_headers(answer, retry_after="42")
    refused = pay(site.installation, secret, 0)
    assert refused is not None
    assert refused.reason == "rate_limited"
    clock.advance(seconds=42)
    assert site.ask("/v1/usage", secret).status_code == 200


def test_case_11_the_twelve_hours_begin_with_the_first_call_and_survive_a_restart(
    opened: Open, account: str, clock: ManualClock
) -> None:
    site = opened()
    asker = set_up(site.installation, *limit_status(account))[f"{account}-m"]
    # Windows of the clock begin at noon and midnight, this one five seconds later.
    clock.advance(seconds=5)
    for _ in range(6):
        assert site.ask("/api/usage", asker).status_code == 200
        clock.advance(seconds=7000)
    site.installation.close()
    site = opened()
    assert [site.ask("/api/usage", asker).status_code for _ in range(7)] == [200] * 6 + [429]
    assert site.ask("/api/usage", asker).headers["Retry-After"] == str(43_200 - 6 * 7000)
    site.installation.close()
    site = opened()
    clock.advance(seconds=43_200 - 6 * 7000 - 1)
    assert site.ask("/api/usage", asker).headers["Retry-After"] == "1"
    clock.advance(seconds=1)
    assert [site.ask("/api/usage", asker).status_code for _ in range(13)] == [200] * 12 + [429]


def test_the_limit_of_one_key_is_a_minute_and_a_switch(opened: Open, account: str) -> None:
    switches = {
        NAME: {"single_key_per_minute": 2, "single_key_envelope": True, "list_limit_window": "sliding"}
    }
    site = opened(profile_settings=json.dumps(switches))
    asker = set_up(site.installation, *limit_status(account))[f"{account}-m"]
    answers = [site.ask(f"/api/usage/{account}-k", asker) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert list(answers[0].json()) == ["success", "data"]
    assert [site.ask("/api/usage", asker).status_code for _ in range(13)] == [200] * 12 + [429]


def test_an_ended_subscription_is_shown_for_a_day_then_its_keys_are_off(
    opened: Open, account: str, clock: ManualClock
) -> None:
    site = opened()
    secrets = set_up(site.installation, *limit_status(account))
    secret, asker = secrets[f"{account}-k"], secrets[f"{account}-m"]
    clock.set(NOON + timedelta(days=40))
    plan = {"slug": "standard", "status": "expired", "expires_at": "2026-04-27T12:00:00.000Z"}
    assert site.ask("/v1/usage", secret).json()["plan"] == plan
    item = site.ask(f"/api/usage/{account}-k", asker).json()
    assert (item["isActive"], item["subscription"]["status"]) == (False, "expired")
    clock.advance(seconds=86_400)
    answer = site.ask("/v1/usage", secret)
    assert (answer.status_code, answer.json()) == (403, DEACTIVATED)
    assert site.ask(f"/api/usage/{account}-k", asker).json()["isActive"] is False


def test_the_open_points_are_switches(opened: Open, account: str) -> None:
    switches = {
        "deleted_key_status": 401,
        "list_cache_s": 0,
        "count_refused": True,
        "keys_envelope": True,
        "billing_envelope": True,
        "uncapped_duration": "1h",
        "expired_grace_s": 0,
    }
    site = opened(profile_settings=json.dumps({NAME: switches}))
    entries = limit_status(account)
    uncapped = Key(id=f"{account}-u", account=account, plan="cheapestinference-pro", profile=NAME)
    gone = Key(id=f"{account}-g", account=account, profile=NAME)
    secrets = set_up(site.installation, *entries, uncapped, gone)
    asker = secrets[f"{account}-m"]
    site.installation.manage.set_key_state(account, f"{account}-g", "deleted")
    answer = site.ask("/v1/usage", secrets[f"{account}-g"])
    assert (answer.status_code, answer.json()) == (401, UNKNOWN_KEY)
    assert site.ask("/v1/usage", secrets[f"{account}-u"]).json()["budget"] == {
        "spent": 0.0,
        "limit": None,
        "duration": "1h",
        "resets_at": "2026-03-18T13:00:00.000Z",
    }
    over = pay(site.installation, secrets[f"{account}-k"], 11 * DOLLAR)
    assert over is not None
    assert over.reason == "budget_exhausted"
    item = site.ask(f"/api/usage/{account}-k", asker).json()
    assert item["usage"]["last1h"] == {**ZEROS, "requests": 1}
    check_headers(site.ask("/api/usage", asker))
    for path in ("/api/keys", "/api/billing/status", "/api/billing/credits"):
        assert list(site.ask(path, asker).json()) == ["success", "data"]


def test_nobody_of_an_inactive_account_may_ask(opened: Open, account: str) -> None:
    site = opened()
    secrets = set_up(site.installation, *limit_status(account))
    site.installation.manage.put(Account(id=account, name="Test", active=False))
    answer = site.ask("/v1/usage", secrets[f"{account}-k"])
    assert (answer.status_code, answer.json()) == (403, DEACTIVATED)
    assert site.ask("/api/usage", secrets[f"{account}-m"]).status_code == 401


def test_a_rotated_key_keeps_its_spend(opened: Open, account: str) -> None:
    site = opened()
    secrets = set_up(site.installation, *limit_status(account))
    pay(site.installation, secrets[f"{account}-k"], DOLLAR)
    issued = site.installation.manage.rotate_key(account, f"{account}-k", 60)
    assert site.ask("/v1/usage", issued.secret).json()["budget"]["spent"] == 1.0


def test_reading_usage_is_not_usage(opened: Open, account: str) -> None:
    site = opened()
    secrets = set_up(site.installation, *limit_status(account))
    assert site.ask("/v1/usage", secrets[f"{account}-k"]).status_code == 200
    item = site.ask(f"/api/usage/{account}-k", secrets[f"{account}-m"]).json()
    assert item["usage"]["last1h"] == ZEROS


# -- metered traffic -----------------------------------------------------------------------------------


def refused_with(message: str, type_: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "code": code}}


def through_middleware(
    site: Installation, secret: str | None, path: str = CHAT, tokens: int = 0
) -> httpx.Response:
    """Call an API of the provider's own behind the middleware; each call costs two dollars."""

    async def api(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["tollkeeper"].usage = Usage(cost_nanos=2 * DOLLAR)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    def expect(scope: Any) -> Usage:
        return Usage(prompt_tokens=tokens, cost_nanos=2 * DOLLAR)

    app = Tollkeeper(site).middleware(api, profile=NAME, expect=expect)
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    return reach(app, "POST", path, headers=headers)


def test_metered_calls_are_refused_in_the_vendors_words(
    site: Installation, account: str, clock: ManualClock
) -> None:
    """Dashboards tell budget, RPM and TPM apart by these texts, and read the trailing `Resets at`."""
    entries = limit_status(account, limit=3 * DOLLAR)
    credit = Key(id=f"{account}-c", account=account, type="credit", profile=NAME)
    off = Key(id=f"{account}-o", account=account, state="inactive", profile=NAME)
    other = Key(id=f"{account}-n", account=account, profile="shoal")
    secrets = set_up(site, *entries, credit, off, other)
    secret = secrets[f"{account}-k"]

    ok = through_middleware(site, secret)
    assert (ok.status_code, ok.content, dict(ok.headers)) == (200, b"ok", {})
    budget = through_middleware(site, secret)
    message = "Budget exceeded. Resets at 2026-03-28T12:00:00.000Z"
    assert (budget.status_code, budget.json()) == (
        429,
        refused_with(message, "rate_limit_error", "budget_exceeded"),
    )
    check_headers(budget, metered=True, retry_after=str(10 * 86_400))
    fast = through_middleware(site, secret, tokens=1001)
    assert (fast.status_code, fast.json()) == (
        429,
        refused_with(
            "Rate limit exceeded: 1000 tokens per minute", "rate_limit_error", "rate_limit_exceeded"
        ),
    )
    poor = through_middleware(site, secrets[f"{account}-c"])
    assert (poor.status_code, poor.json()) == (
        402,
        refused_with("Insufficient credits: top up to continue", "billing_error", "insufficient_credits"),
    )
    check_headers(poor, metered=True)
    site.manage.put(Grant(id="g", account=account, amount_nanos=5 * DOLLAR, source="top_up"))
    assert through_middleware(site, secrets[f"{account}-c"]).status_code == 200
    for bad, status, body in (
        (None, 401, NO_KEY),
        ("garbage", 401, UNKNOWN_KEY),
        (secrets[f"{account}-n"], 401, UNKNOWN_KEY),
        (secrets[f"{account}-m"], 401, UNKNOWN_KEY),
        (secrets[f"{account}-o"], 403, DEACTIVATED),
    ):
        answer = through_middleware(site, bad)
        assert (answer.status_code, answer.json()) == (status, body)
    nowhere = through_middleware(site, secret, "/v1/nowhere")
    assert (nowhere.status_code, nowhere.json()) == (
        404,
        refused_with("Not found", "not_found_error", "route_not_found"),
    )
    site.manage.set_key_state(account, f"{account}-o", "deleted")
    gone = through_middleware(site, secrets[f"{account}-o"])
    assert (gone.status_code, gone.json()) == (404, DELETED)
    clock.advance(seconds=60)
    context = site.context(PROFILE)
    answers = [through_middleware(site, secrets[f"{account}-c"]) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 402]
    assert context.balance_nanos(account) == DOLLAR


def test_the_status_of_used_up_credit_is_a_switch(install: Install, account: str) -> None:
    site = install(profile_settings=json.dumps({NAME: {"credit_exhausted_status": 429}}))
    credit = Key(id=f"{account}-c", account=account, type="credit", profile=NAME)
    secrets = set_up(site, *limit_status(account), credit)
    assert through_middleware(site, secrets[f"{account}-c"]).status_code == 429


def test_authorize_refuses_in_the_vendors_words(server: Server, sessions: Sessions, shop: Shop) -> None:
    subscription = shop.subscribe(shop.plan(budget=2 * DOLLAR, rpm=1000))
    _, secret = shop.key(subscription=subscription)
    at = Reached(server, "", sessions)

    def authorize(key: str, **fields: Any) -> requests.Response:
        body = {"key": key, "method": "POST", "path": CHAT, "profile": NAME, **fields}
        return at.operate("/tk/v1/authorize", body)

    allowed = authorize(secret, cost_nanos=DOLLAR)
    assert (allowed.status_code, allowed.json()["headers"]) == (200, {})
    refused = authorize(secret, cost_nanos=3 * DOLLAR)
    assert refused.status_code == 429
    assert refused.json()["error"]["message"].startswith("Budget exceeded. Resets at 20")
    assert int(refused.headers["Retry-After"]) > 0
    many = authorize(secret, tokens={"prompt": 3334})
    assert (many.status_code, many.json()["error"]["message"]) == (
        429,
        "Rate limit exceeded: 3333 tokens per minute",
    )
    _, credit = shop.key(type="credit")
    assert authorize(credit).status_code == 402
    assert authorize("garbage").json() == UNKNOWN_KEY
    spent = at.good("/v1/usage", secret)
    # A hold is not spent.
    assert spent["budget"]["spent"] == 0


# -- the module by itself ------------------------------------------------------------------------------


def test_the_catalog_is_a_declaration_of_two_offers() -> None:
    entries = parse_declaration(PROFILE.catalog)
    plans = [entry for entry in entries if isinstance(entry, Plan)]
    assert [(plan.metadata["slug"], plan.price_nanos, plan.sellable) for plan in plans] == [
        ("standard", 20 * DOLLAR, True),
        ("pro", 60 * DOLLAR, True),
        ("credits", 0, False),
    ]


def test_errors_that_nobody_expected_say_nothing() -> None:
    for path in ("/v1/usage", "/api/usage"):
        call = Call("GET", path, {}, {}, b"", {}, NOON, "r")
        for error, status in (
            (Unavailable("host 10.0.0.1"), 502),
            (InvariantBroken("x=1"), 500),
            (KeyError("k"), 500),
        ):
            reply = PROFILE.failed(call, error)
            assert reply.status == status
            assert str(error) not in json.dumps(reply.body)


@given(nanos=st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_dollars_are_the_nearest_number(nanos: int) -> None:
    assert dollars(nanos) == float(f"{nanos}e-9")
