"""RegPilot's dialect: the acceptance cases of its specification, and what surrounds them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import msgspec
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Install
from tests.effort import effort
from tests.end_to_end.server import OPERATOR_KEY, Server
from tests.profiles import places
from tests.profiles.conftest import OpenApp
from tests.profiles.places import NODE, Answer, Client, Remote, needs_node
from tollkeeper.catalog.declaration import apply_declaration, parse_declaration, render_changes
from tollkeeper.domain.catalog import Account, Budget, Entry, Grant, Key, Limit, Plan, Project, Route
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.matching import Match
from tollkeeper.domain.requests import Usage
from tollkeeper.embedded import Tollkeeper
from tollkeeper.http.app import App
from tollkeeper.profiles import webhook_headers
from tollkeeper.profiles.base import Profile
from tollkeeper.profiles.regpilot import PROFILE
from tollkeeper.profiles.regpilot.refusals import KEY_HEADERS
from tollkeeper.testing import Faulty, ManualClock, set_up, unique

DOLLAR = 1_000_000_000
RATE_HEADERS = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"]
MISSING_KEY = {
    "error": "Missing API key. Use one of: X-API-Key: YOUR_KEY, X-RegPilot-Key: YOUR_KEY, "
    "or Authorization: Bearer YOUR_KEY",
    "headers_checked": [
        "x-api-key",
        "x-regpilot-key",
        "api-key",
        "authorization",
        "x-authorization",
        "proxy-authorization",
    ],
}
BAD_KEY = {"error": "Invalid or inactive API key", "code": "INVALID_API_KEY"}
REVOKED_KEY = {"error": "API key has been revoked"}
FORBIDDEN = {"error": "Insufficient permissions for this operation"}
MISSING_PROJECT = {"error": "projectId is required", "code": "MISSING_PROJECT_ID"}
BAD_PERIOD = {"error": "Invalid period. Must be: day, week, or month", "code": "INVALID_PERIOD"}
UNAVAILABLE = {"error": "Service unavailable", "message": "Please try again in a moment."}


class BudgetPart(msgspec.Struct, forbid_unknown_fields=True):
    limit: int | float
    used: int | float
    remaining: int | float


class CachePart(msgspec.Struct, forbid_unknown_fields=True):
    hits: int
    misses: int
    hitRate: int | float


class ModelPart(msgspec.Struct, forbid_unknown_fields=True):
    requests: int
    tokens: int
    cost: int | float


class PeriodPart(msgspec.Struct, forbid_unknown_fields=True):
    start: str
    end: str


class UsageBody(msgspec.Struct, forbid_unknown_fields=True):
    """The answer of `/api/usage`, nothing more and nothing less."""

    budget: BudgetPart
    cache: CachePart
    models: dict[str, ModelPart]
    period: PeriodPart


class Customer(NamedTuple):
    """One project of one account with one key."""

    account: str
    project: str
    key_id: str
    secret: str


class Vendor(Remote):
    """RegPilot as the running server speaks it, at one of its two places."""

    def get(
        self, path: str = "/api/usage", headers: Mapping[str, str] | None = None, **params: str
    ) -> requests.Response:
        return self.ask("GET", path, headers=dict(headers or {}), params=params)

    def usage(self, customer: Customer, **params: str) -> Any:
        """Return the body of a good answer."""
        found = self.get(headers={"X-API-Key": customer.secret}, **{"projectId": customer.project, **params})
        assert found.status_code == 200, found.text
        return found.json()

    def customer(self, *, plan: str | None = None, limit: int | None = 1000 * DOLLAR, **key: Any) -> Customer:
        account, put = unique("acct"), self.server.put
        put(f"/tk/v1/accounts/{account}", {"name": "Acme", "plan": plan})
        put(f"/tk/v1/projects/web?account={account}", {"account": account})
        if limit is not None:
            put(
                f"/tk/v1/budgets/web-monthly?account={account}",
                {"account": account, "project": "web", "amount": str(limit)},
            )
        fields = {"account": account, "project": "web", "profile": "regpilot", **key}
        made = self.server.post("/tk/v1/keys", fields)
        return Customer(account, "web", made["entry"]["id"], made["secret"])

    def record(self, customer: Customer, *events: Mapping[str, Any]) -> None:
        """Book events of now, by the customer's key."""
        self.book(customer.key_id, *events)

    def set_state(self, customer: Customer, state: str) -> None:
        self.server.post(f"/tk/v1/keys/{customer.key_id}/state?account={customer.account}", {"state": state})


@pytest.fixture
def vendor(server: Server, base: str, client: Client) -> Vendor:
    return Vendor(server, base, client)


class Local(places.Local):
    """The application in this process."""

    def get(self, customer: Customer, path: str = "/api/usage", **params: str) -> httpx.Response:
        params = {"projectId": customer.project, **params} if path == "/api/usage" else params
        return self.request("GET", self.base + path, headers={"X-API-Key": customer.secret}, params=params)

    def authorize(self, customer: Customer, **fields: Any) -> httpx.Response:
        body = {"key": customer.secret, "path": "/api/ai/complete", "profile": "regpilot", **fields}
        return self.operate("/tk/v1/authorize", body)

    def customer(
        self, *entries: Entry, limit: int | None = 1000 * DOLLAR, plan: str | None = None, **key: Any
    ) -> Customer:
        """Make an account `acct…` with a project; *entries* may be made by functions of its id."""
        account, key_id = unique("acct"), unique("key")
        fields = {"project": "web", "profile": "regpilot", "plan": plan, **key}
        made: list[Entry] = [
            Account(id=account, name="Acme"),
            Project(id="web", account=account),
            Key(id=key_id, account=account, **fields),
            *entries,
        ]
        if limit is not None:
            made.append(Budget(id="monthly", account=account, project="web", amount=limit))
        secret = set_up(self.site, *made).get(key_id, "")
        return Customer(account, "web", key_id, secret)

    def record(self, customer: Customer, at: datetime, **event: Any) -> None:
        self.book(customer.key_id, at, event)


@pytest.fixture
def gate(shared_app: App) -> Local:
    """One for all tests that leave the clock alone."""
    return Local(shared_app)


@pytest.fixture
def local(shared_app: App, base: str) -> Local:
    return Local(shared_app, base)


@pytest.fixture
def timed(open_app: OpenApp, base: str) -> Local:
    """One by the clock of the test."""
    return Local(open_app(), base)


def rate(headers: Mapping[str, str]) -> tuple[int, int, int]:
    limit, remaining, reset = (int(headers[name]) for name in RATE_HEADERS)
    return limit, remaining, reset


def is_json(found: Answer, status: int, body: Any) -> None:
    """Check status, type and the whole body with its member order."""
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/json"
    assert found.text == json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    assert found.headers["x-request-id"].startswith("req_")


# -- acceptance ------------------------------------------------------------------------------------------------


def test_case_1_the_default_period_is_the_current_utc_month(vendor: Vendor) -> None:
    customer = vendor.customer()
    found = vendor.get(headers={"X-API-Key": customer.secret}, projectId=customer.project)
    start = datetime.now(UTC).replace(day=1)
    end = (start + timedelta(days=32)).replace(day=1)
    is_json(
        found,
        200,
        {
            "budget": {"limit": 1000, "used": 0, "remaining": 1000},
            "cache": {"hits": 0, "misses": 0, "hitRate": 0},
            "models": {},
            "period": {
                "start": f"{start:%Y-%m-%d}T00:00:00.000Z",
                "end": f"{end:%Y-%m-%d}T00:00:00.000Z",
            },
        },
    )


def test_case_2_period_changes_all_but_the_budget(local: Local) -> None:
    """Noon of Wednesday, 18 March: the week began on the 16th. Each edge of a window has an event."""
    customer = local.customer()
    for text, cost in (
        ("2026-02-28T23:59:59.999999Z", 64),
        ("2026-03-01T00:00:00Z", 32),
        ("2026-03-15T23:59:59.999999Z", 16),
        ("2026-03-16T00:00:00Z", 8),
        ("2026-03-17T23:59:59.999999Z", 4),
        ("2026-03-18T00:00:00Z", 2),
        ("2026-03-18T12:00:00Z", 1),
    ):
        at = datetime.fromisoformat(text)
        local.record(customer, at, model="m", cost_nanos=cost * DOLLAR, cache="miss")
    windows = {
        "day": (2, 3, "2026-03-18T00:00:00.000Z", "2026-03-19T00:00:00.000Z"),
        "week": (4, 15, "2026-03-16T00:00:00.000Z", "2026-03-23T00:00:00.000Z"),
        "month": (6, 63, "2026-03-01T00:00:00.000Z", "2026-04-01T00:00:00.000Z"),
    }
    for period, (count, cost, start, end) in windows.items():
        is_json(
            local.get(customer, period=period),
            200,
            {
                "budget": {"limit": 1000, "used": 63, "remaining": 937},
                "cache": {"hits": 0, "misses": count, "hitRate": 0},
                "models": {"m": {"requests": count, "tokens": 0, "cost": cost}},
                "period": {"start": start, "end": end},
            },
        )


@pytest.mark.parametrize(
    ("params", "body"),
    [
        ({}, MISSING_PROJECT),
        ({"projectId": ""}, MISSING_PROJECT),
        ({"projectid": "web"}, MISSING_PROJECT),
        ({"projectId": "web", "period": "year"}, BAD_PERIOD),
        ({"projectId": "web", "period": ""}, BAD_PERIOD),
        ({"projectId": "web", "period": "Day"}, BAD_PERIOD),
        ({"projectId": "web", "period": "month\x00"}, BAD_PERIOD),
    ],
)
def test_case_3_a_bad_parameter_is_400(vendor: Vendor, params: dict[str, str], body: Any) -> None:
    customer = vendor.customer()
    is_json(vendor.get(headers={"X-API-Key": customer.secret}, **params), 400, body)


def test_unknown_parameters_are_ignored(vendor: Vendor) -> None:
    customer = vendor.customer()
    assert vendor.usage(customer, debug="1", period="day") == vendor.usage(customer, period="day")


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": ""}, {"Cookie": "sk_x"}, {"Authorization": "Bearer"}])
def test_case_4_no_key_is_401_with_the_headers_checked(vendor: Vendor, headers: dict[str, str]) -> None:
    for path in ("/api/usage", "/api/health"):
        is_json(vendor.get(path, headers, projectId="web"), 401, MISSING_KEY)


def test_case_5_each_header_takes_the_key_and_the_first_wins(vendor: Vendor) -> None:
    customer = vendor.customer()
    for name in KEY_HEADERS:
        shown = [customer.secret]
        if name.endswith("authorization"):
            shown += [f"Bearer {customer.secret}", f"bearer  {customer.secret}"]
        for value in shown:
            assert vendor.get(headers={name: value}, projectId="web").status_code == 200, name
    for first, second in pairwise(KEY_HEADERS):
        both = {first: "sk_bad", second: customer.secret}
        is_json(vendor.get(headers=both, projectId="web"), 401, BAD_KEY)
        other = {first: customer.secret, second: "sk_bad"}
        assert vendor.get(headers=other, projectId="web").status_code == 200


def test_case_6_key_states(vendor: Vendor) -> None:
    customer = vendor.customer()
    shown = {"X-API-Key": customer.secret}
    is_json(vendor.get(headers={"X-API-Key": "sk_" + "x" * 32}, projectId="web"), 401, BAD_KEY)
    vendor.set_state(customer, "inactive")
    is_json(vendor.get(headers=shown, projectId="web"), 401, BAD_KEY)
    vendor.set_state(customer, "active")
    assert vendor.get(headers=shown, projectId="web").status_code == 200
    vendor.set_state(customer, "revoked")
    is_json(vendor.get(headers=shown, projectId="web"), 401, REVOKED_KEY)
    is_json(vendor.get("/api/health", shown), 401, REVOKED_KEY)


def test_case_7_hit_rate(vendor: Vendor) -> None:
    customer = vendor.customer()
    assert vendor.usage(customer)["cache"] == {"hits": 0, "misses": 0, "hitRate": 0}
    assert vendor.usage(customer)["models"] == {}
    vendor.record(customer, *[{"model": "m", "cache": cache} for cache in ("hit", "hit", "hit", "miss")])
    assert vendor.usage(customer)["cache"] == {"hits": 3, "misses": 1, "hitRate": 75}
    vendor.record(
        customer, {"model": "m", "cache": "none"}, {"model": "m", "cache": "miss"}, {"cache": "miss"}
    )
    assert vendor.usage(customer)["cache"] == {"hits": 3, "misses": 3, "hitRate": 50}
    vendor.record(customer, {"model": "m", "cache": "hit"})
    assert vendor.usage(customer)["cache"] == {"hits": 4, "misses": 3, "hitRate": 57.14}


def test_case_8_two_events_of_one_model(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(
        customer,
        {"model": "m", "cost_nanos": 1_250_000_000, "tokens": {"prompt": 60, "completion": 40}},
        {"model": "m", "cost_nanos": 500_000_000, "tokens": {"cached_prompt": 20, "reasoning": 30}},
    )
    found = vendor.usage(customer)
    assert found["models"] == {"m": {"requests": 2, "tokens": 150, "cost": 1.75}}
    assert found["budget"] == {"limit": 1000, "used": 1.75, "remaining": 998.25}


def test_case_9_a_cache_hit_is_counted_and_free(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.server.put(
        f"/tk/v1/prices/{customer.account}",
        {"model": "m", "account": customer.account, "prompt_nanos_per_million": 10 * DOLLAR},
    )
    tokens = {"prompt": 100_000}
    vendor.record(customer, {"model": "m", "tokens": tokens, "cache": "miss"})
    before = vendor.usage(customer)
    vendor.record(customer, {"model": "m", "tokens": tokens, "cache": "hit"})
    after = vendor.usage(customer)
    assert before["models"] == {"m": {"requests": 1, "tokens": 100_000, "cost": 1}}
    assert after["models"] == {"m": {"requests": 2, "tokens": 200_000, "cost": 1}}
    assert after["cache"] == {"hits": 1, "misses": 1, "hitRate": 50}
    assert after["budget"] == before["budget"] == {"limit": 1000, "used": 1, "remaining": 999}


def test_case_10_remaining_is_never_negative(vendor: Vendor) -> None:
    customer = vendor.customer(limit=2 * DOLLAR)
    vendor.record(customer, {"model": "m", "cost_nanos": 1_999_999_999})
    assert vendor.usage(customer)["budget"] == {"limit": 2, "used": 1.999999999, "remaining": 0.000000001}
    vendor.record(customer, {"model": "m", "cost_nanos": 3 * DOLLAR})
    assert vendor.usage(customer)["budget"] == {"limit": 2, "used": 4.999999999, "remaining": 0}


def test_case_11_every_response_has_the_rate_headers(vendor: Vendor) -> None:
    customer = vendor.customer(plan="regpilot-startup")
    shown = {"X-API-Key": customer.secret}
    for path, headers, params, status in (
        ("/api/usage", shown, {"projectId": "web"}, 200),
        ("/api/health", shown, {}, 200),
        ("/api/usage", shown, {}, 400),
        ("/api/usage", shown, {"projectId": "other"}, 403),
        ("/api/nothing", shown, {}, 404),
    ):
        found = vendor.get(path, headers, **params)
        limit, remaining, reset = rate(found.headers)
        assert (found.status_code, limit) == (status, 100)
        assert 190 <= remaining < 200
        assert time.time() < reset < time.time() + 120
    for path, headers, status in (
        ("/api/usage", {}, 401),
        ("/api/usage", {"X-API-Key": "sk_bad"}, 401),
        ("/api/nothing", {}, 404),
        ("/api/nothing", {"X-API-Key": "sk_bad"}, 404),
    ):
        found = vendor.get(path, headers, projectId="web")
        assert found.status_code == status
        assert rate(found.headers)[:2] == (0, 0)
        assert time.time() - 5 < rate(found.headers)[2] <= time.time() + 60


def test_case_11_an_unlimited_key_has_no_rate_headers(vendor: Vendor) -> None:
    customer = vendor.customer(plan="regpilot-enterprise")
    found = vendor.get(headers={"X-API-Key": customer.secret}, projectId="web")
    assert found.status_code == 200
    assert not [name for name in RATE_HEADERS if name in found.headers]


def test_case_12_the_burst_of_the_free_plan_ends_in_429(vendor: Vendor) -> None:
    """It gains a permit every 6 s, so a slow machine gets some more than 20 through."""
    customer = vendor.customer(plan="regpilot-free")
    admitted = 0
    while (found := vendor.get("/api/health", {"X-API-Key": customer.secret})).status_code == 200:
        admitted += 1
        assert admitted < 60
    assert admitted >= 20
    retry_after = int(found.headers["Retry-After"])
    assert 1 <= retry_after <= 6
    body = {"error": "Rate limit exceeded", "retry_after": retry_after, "limit": 10, "window": "1 minute"}
    is_json(found, 429, body)
    assert rate(found.headers)[:2] == (10, 0)


def test_case_12_by_the_clock(timed: Local, clock: ManualClock) -> None:
    """Exactly 20 at once, then one every 6 seconds; bad requests count as well."""
    customer = timed.customer(plan="regpilot-free")
    for left in reversed(range(20)):
        found = timed.get(customer, period="year" if left % 2 else "day")
        assert found.status_code == (400 if left % 2 else 200)
        assert rate(found.headers)[:2] == (10, left)
    refused = {"error": "Rate limit exceeded", "retry_after": 6, "limit": 10, "window": "1 minute"}
    found = timed.get(customer)
    is_json(found, 429, refused)
    assert found.headers["retry-after"] == "6"
    assert rate(found.headers) == (10, 0, int(clock.now().timestamp()) + 120)
    clock.advance(seconds=5)
    assert timed.get(customer, "/api/health").json() == {**refused, "retry_after": 1}
    clock.advance(seconds=1)
    assert timed.get(customer).status_code == 200
    assert timed.get(customer).status_code == 429


def test_case_12_the_day_of_a_plan_has_its_own_wording(timed: Local, clock: ManualClock) -> None:
    limits = [
        Limit(name="rpm", amount=10, algorithm="permits", burst=20),
        Limit(name="rpd", amount=3, window="1d"),
    ]
    customer = timed.customer(Plan(slug="tiny", limits=limits), plan="tiny")
    midnight_s = int(datetime(2026, 3, 19, tzinfo=UTC).timestamp())
    for left in (2, 1, 0):
        assert rate(timed.get(customer).headers) == (10, left, midnight_s)
    found = timed.get(customer)
    half_a_day_s = 43_200
    body = {"error": "Rate limit exceeded", "retry_after": half_a_day_s, "limit": 3, "window": "1 day"}
    is_json(found, 429, body)
    assert found.headers["retry-after"] == str(half_a_day_s)
    clock.set(datetime(2026, 3, 19, tzinfo=UTC))
    assert timed.get(customer).status_code == 200


def test_case_13_asking_changes_nothing(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, {"model": "m", "cost_nanos": DOLLAR, "cache": "miss"})
    first = vendor.usage(customer)
    assert first["models"] == {"m": {"requests": 1, "tokens": 0, "cost": 1}}
    assert [vendor.usage(customer) for _ in range(3)] == [first] * 3


def test_case_14_another_project_is_403(vendor: Vendor) -> None:
    """Whether it is of the same account, of another, or none at all: the answers are the same."""
    customer = vendor.customer()
    vendor.server.put(f"/tk/v1/projects/app?account={customer.account}", {"account": customer.account})
    for project in ("app", "nobodys", "Web", customer.account, "web\x00"):
        is_json(vendor.get(headers={"X-API-Key": customer.secret}, projectId=project), 403, FORBIDDEN)
    homeless = vendor.server.post(
        "/tk/v1/keys", {"account": customer.account, "profile": "regpilot", "type": "credit"}
    )
    is_json(vendor.get(headers={"X-API-Key": homeless["secret"]}, projectId="web"), 403, FORBIDDEN)


def test_case_15_health_tells_the_project_of_the_key(vendor: Vendor) -> None:
    customer = vendor.customer()
    found = vendor.get("/api/health", {"X-API-Key": customer.secret})
    is_json(found, 200, {"status": "ok", "authenticated": True, "project_id": "web"})


# -- the vendor's own clients ----------------------------------------------------------------------------------

PYTHON_CLIENT = """
import os, requests
response = requests.get(f'{os.environ["HOST"]}/api/usage?projectId={os.environ["PROJECT"]}',
                        headers={"X-API-Key": os.environ["REGPILOT_API_KEY"]})
usage = response.json()
print(f"Budget: ${usage['budget']['used']} / ${usage['budget']['limit']}")
print(f"Cache Hit Rate: {usage['cache']['hitRate']}%")
"""
FETCH_CLIENT = """
(async () => {
  const response = await fetch(`${process.env.HOST}/api/usage?projectId=${process.env.PROJECT}`,
    { headers: { 'X-API-Key': process.env.REGPILOT_API_KEY } });
  const usage = await response.json();
  console.log(`Budget: $${usage.budget.used} / $${usage.budget.limit}`);
  console.log(`Cache Hit Rate: ${usage.cache.hitRate}%`);
})();
"""
CLIENTS = {
    "python": [sys.executable, "-c", PYTHON_CLIENT],
    "javascript": [NODE or "node", "-e", FETCH_CLIENT],
}


@pytest.mark.parametrize("sample", ["python", pytest.param("javascript", marks=needs_node)])
def test_the_samples_of_the_vendor_run_with_another_host(server: Server, base: str, sample: str) -> None:
    vendor = Vendor(server, base)
    customer = vendor.customer()
    vendor.record(
        customer,
        *[{"model": "m", "cost_nanos": 142_500_000_000, "cache": c} for c in ("hit", "miss", "miss")],
    )
    environment = {"HOST": vendor.url, "PROJECT": "web", "REGPILOT_API_KEY": customer.secret}
    ran = subprocess.run(CLIENTS[sample], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "Budget: $427.5 / $1000\nCache Hit Rate: 33.33%\n", ran.stderr


# -- credentials, paths, faults --------------------------------------------------------------------------------


def test_a_key_of_another_kind_is_unknown(vendor: Vendor) -> None:
    customer = vendor.customer()
    native = vendor.server.post("/tk/v1/keys", {"account": customer.account, "project": "web"})
    inference = {"account": customer.account, "project": "web", "profile": "cheapestinference"}
    other = vendor.server.post("/tk/v1/keys", inference)
    management = vendor.server.post("/tk/v1/keys", {"account": customer.account, "role": "management"})
    secrets = [made["secret"] for made in (native, other, management)]
    for secret in (*secrets, OPERATOR_KEY, customer.secret[:-1], customer.secret + "x", "sk_é", "x" * 5000):
        shown = {"X-API-Key": secret.encode().decode("latin-1")}
        is_json(vendor.get(headers=shown, projectId="web"), 401, BAD_KEY)


def test_new_keys_have_the_format_of_the_vendor(vendor: Vendor) -> None:
    secret = vendor.customer().secret
    assert secret.startswith("sk_")
    assert len(secret) == 35


def test_a_deleted_key_is_unknown(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.server.call("DELETE", f"/tk/v1/keys/{customer.key_id}?account={customer.account}")
    is_json(vendor.get(headers={"X-API-Key": customer.secret}, projectId="web"), 401, BAD_KEY)


def test_project_keys_may_not_read_usage(vendor: Vendor) -> None:
    """`pk_` is refused as a family, imported or made up."""
    secret = "pk_" + unique("").replace("-", "") + "0123456789abcdefghij"
    vendor.customer(sha256=hash_secret(secret))
    for shown in (secret, "pk_unknown"):
        is_json(vendor.get(headers={"X-API-Key": shown}, projectId="web"), 403, FORBIDDEN)


def test_keys_of_any_length_are_taken(vendor: Vendor) -> None:
    """The vendor's own example has 31 characters behind its prefix."""
    secret = "sk_prod_" + unique("")[-12:]
    vendor.customer(sha256=hash_secret(secret))
    assert vendor.get(headers={"X-API-Key": secret}, projectId="web").status_code == 200


def test_an_expired_key_is_inactive_and_an_inactive_account_forbidden(
    timed: Local, clock: ManualClock
) -> None:
    customer = timed.customer(expires_at=clock.now() + timedelta(seconds=1))
    assert timed.get(customer).status_code == 200
    clock.advance(seconds=1)
    is_json(timed.get(customer), 401, BAD_KEY)
    is_json(timed.authorize(customer), 401, BAD_KEY)
    other = timed.customer()
    set_up(timed.site, Account(id=other.account, name="Acme", active=False))
    is_json(timed.get(other), 403, FORBIDDEN)
    is_json(timed.authorize(other), 403, FORBIDDEN)


def test_other_paths_and_methods_are_refused_in_the_envelope(vendor: Vendor) -> None:
    is_json(vendor.get("/api/unknown"), 404, {"error": "Not found"})
    is_json(vendor.get("/api/usage/"), 404, {"error": "Not found"})
    found = vendor.ask("POST", "/api/usage", data="{")
    is_json(found, 405, {"error": "Method not allowed"})
    assert found.headers["allow"] == "GET"


def test_root_and_prefix_answer_alike(server: Server) -> None:
    root, prefix = Vendor(server, ""), Vendor(server, "/regpilot")
    customer = root.customer(plan="regpilot-free")
    root.record(customer, {"model": "m", "cost_nanos": 1, "cache": "hit"})
    own = {"x-request-id", "date", "x-ratelimit-remaining", "x-ratelimit-reset"}
    for headers in ({"X-API-Key": customer.secret}, {}, {"X-API-Key": "sk_bad"}):
        for path in ("/api/usage", "/api/health", "/api/nothing"):
            one, two = (place.get(path, headers, projectId="web") for place in (root, prefix))
            assert (one.status_code, one.text) == (two.status_code, two.text)
            shown = [
                {k.lower(): v for k, v in at.headers.items() if k.lower() not in own} for at in (one, two)
            ]
            assert shown[0] == shown[1]


def test_a_usage_store_that_is_away_is_503(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate headers are there all the same, and the next answer is whole again."""
    customer = local.customer(plan="regpilot-free")
    reports: Any = local.site.reports
    faulty = Faulty(reports._store, "report")
    monkeypatch.setattr(reports, "_store", faulty)
    faulty.refuse()
    found = local.get(customer)
    is_json(found, 503, UNAVAILABLE)
    assert rate(found.headers)[:2] == (10, 20), "what failed on our side is not counted"
    found = local.get(customer)
    assert (found.status_code, rate(found.headers)[:2]) == (200, (10, 19))


def test_an_unexpected_error_is_500_and_tells_nothing(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(query: object) -> None:
        raise RuntimeError("secret detail")

    customer = local.customer()
    monkeypatch.setattr(local.site.reports, "usage", broken)
    found = local.get(customer)
    body = {
        "error": "Internal server error",
        "message": "Failed to process request",
        "request_id": found.headers["x-request-id"],
    }
    is_json(found, 500, body)


# -- the figures -----------------------------------------------------------------------------------------------


def test_what_was_refused_reached_no_model(vendor: Vendor) -> None:
    """A request counts under the model that served it; without one, there is nothing to count it under."""
    customer = vendor.customer()
    vendor.record(
        customer,
        {"model": "m", "status": 429, "denied_reason": "rate_limited"},
        {"model": "m", "status": 500},
        {"model": "b"},
        {"model": "a"},
        {"cost_nanos": DOLLAR},
    )
    found = vendor.usage(customer)
    one = {"requests": 1, "tokens": 0, "cost": 0}
    assert found["models"] == {"a": one, "b": one, "m": one}
    assert found["budget"]["used"] == 1


def test_the_most_requested_model_comes_first(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, *[{"model": model} for model in "abbcccc"])
    assert list(vendor.usage(customer)["models"]) == ["c", "b", "a"]


def test_the_budget_is_that_of_the_project(local: Local) -> None:
    """Of several monthly ones the tightest; one of another period where there is none, and never 0 of nothing."""
    customer = local.customer(limit=None)
    local.record(customer, local.site.clock.now(), model="m", cost_nanos=3 * DOLLAR)
    budget = local.get(customer).json()["budget"]
    assert budget == {"limit": 9_000_000, "used": 3, "remaining": 8_999_997}
    account = customer.account
    set_up(local.site, Budget(id="slow", account=account, amount=4 * DOLLAR, period="week"))
    assert local.get(customer).json()["budget"] == {"limit": 4, "used": 3, "remaining": 1}
    set_up(local.site, Budget(id="all", account=account, amount=5 * DOLLAR))
    assert local.get(customer).json()["budget"] == {"limit": 5, "used": 3, "remaining": 2}
    set_up(
        local.site,
        Budget(id="wide", account=account, project="web", amount=90 * DOLLAR),
        Budget(id="tight", account=account, project="web", amount=80 * DOLLAR),
        Budget(id="week", account=account, project="web", amount=DOLLAR, period="week"),
        Budget(id="calls", account=account, project="web", amount=1, unit="requests"),
    )
    assert local.get(customer).json()["budget"] == {"limit": 80, "used": 3, "remaining": 77}
    # One that counts only some requests, or each user apart, is not the project's.
    set_up(
        local.site,
        Budget(id="a-model", account=account, project="web", amount=DOLLAR, match=Match(models=["gpt-*"])),
        Budget(id="a-user", account=account, project="web", amount=DOLLAR, per="tag.user"),
    )
    assert local.get(customer).json()["budget"] == {"limit": 80, "used": 3, "remaining": 77}


def test_the_budget_of_a_plan_is_per_project(local: Local) -> None:
    (plan,) = parse_declaration(
        '[[plans]]\nslug = "paid"\nbudgets = [{ name = "spend", amount = 7_000_000_000, per = "project" }]'
    )
    customer = local.customer(plan, limit=None, plan="paid")
    local.record(customer, local.site.clock.now(), model="m", cost_nanos=3 * DOLLAR)
    assert local.get(customer).json()["budget"] == {"limit": 7, "used": 3, "remaining": 4}


def test_a_new_month_starts_the_budget_again(timed: Local, clock: ManualClock) -> None:
    customer = timed.customer(limit=2 * DOLLAR)
    clock.set(datetime(2026, 3, 31, 23, 59, 59, 999_999, tzinfo=UTC))
    timed.record(customer, clock.now(), model="m", cost_nanos=2 * DOLLAR)
    assert timed.get(customer).json()["budget"] == {"limit": 2, "used": 2, "remaining": 0}
    clock.advance(us=1)
    found = timed.get(customer).json()
    assert found["budget"] == {"limit": 2, "used": 0, "remaining": 2}
    assert found["models"] == {}
    assert found["period"] == {"start": "2026-04-01T00:00:00.000Z", "end": "2026-05-01T00:00:00.000Z"}


MODELS = st.sampled_from(["", "m", "openai/gpt-4o", 'a"b\\', "modèle-é", "__proto__"])
EVENTS = st.lists(
    st.fixed_dictionaries(
        {"model": MODELS, "age_s": st.integers(0, 45 * 86_400)},
        optional={
            "cache": st.sampled_from(["hit", "miss", "none"]),
            "cost_nanos": st.integers(0, 10**13),
            "tokens": st.fixed_dictionaries(
                {}, optional={"prompt": st.integers(0, 10**6), "reasoning": st.integers(0, 10**6)}
            ),
            "status": st.sampled_from([200, 404, 500]),
            "denied_reason": st.sampled_from(["", "rate_limited"]),
        },
    ),
    max_size=12,
)


@settings(max_examples=effort(4, 12), deadline=None)
@given(events=EVENTS, period=st.sampled_from(["day", "week", "month"]))
def test_every_answer_fits_the_schema_and_the_native_usage(server: Server, events: Any, period: str) -> None:
    vendor = Vendor(server, "/regpilot")
    customer = vendor.customer(limit=10**13)
    now = datetime.now(UTC)
    sent = [
        {
            **event,
            "time": (now - timedelta(seconds=event["age_s"])).isoformat(),
            "tokens": event.get("tokens"),
        }
        for event in events
    ]
    for event in sent:
        del event["age_s"]
    if sent:
        vendor.record(customer, *sent)
    raw = vendor.get(headers={"X-API-Key": customer.secret}, projectId="web", period=period).content
    found = msgspec.json.decode(raw, type=UsageBody)
    measures = "requests,tokens,cost_nanos,cache_hits,cache_misses"

    def native(period: PeriodPart, more: str = "") -> Any:
        scope = f"account={customer.account}&project=web&from={period.start}&to={period.end}"
        return server.call("GET", f"/tk/v1/usage?{scope}&measures={measures}{more}")

    same = native(found.period, "&group_by=model&denied_reason=")
    assert {model: (part.requests, part.tokens, part.cost) for model, part in found.models.items()} == {
        row["model"]: (row["requests"], row["tokens"], int(row["cost_nanos"]) / DOLLAR)
        for row in same["rows"]
        if row["model"]
    }
    hits, misses = same["totals"]["cache_hits"], same["totals"]["cache_misses"]
    assert (found.cache.hits, found.cache.misses) == (hits, misses)
    assert found.cache.hitRate == pytest.approx(100 * hits / (hits + misses or 1), abs=0.005)
    month = msgspec.json.decode(
        vendor.get(headers={"X-API-Key": customer.secret}, projectId="web").content, type=UsageBody
    )
    used_nanos = int(native(month.period)["totals"]["cost_nanos"])
    assert found.budget.used == used_nanos / DOLLAR
    assert found.budget.remaining == max(0, 10**13 - used_nanos) / DOLLAR
    assert found.budget == month.budget


# -- metered traffic -------------------------------------------------------------------------------------------


async def gateway(scope: Any, receive: Any, send: Any) -> None:
    """The provider's own API: it answers anything."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": b"{}"})


def chat(local: Local, headers: Mapping[str, str], path: str = "/api/ai/chat") -> httpx.Response:
    app = Tollkeeper(local.site).middleware(gateway, profile="regpilot")
    return local.request("POST", path, app=app, headers=dict(headers))


@pytest.mark.parametrize("name", KEY_HEADERS)
def test_metered_traffic_takes_the_key_of_each_header(gate: Local, name: str) -> None:
    customer = gate.customer(plan="regpilot-free")
    found = chat(gate, {name: f"Bearer {customer.secret}" if "auth" in name else customer.secret})
    assert (found.status_code, found.headers["x-own"]) == (200, "1")
    assert rate(found.headers)[:2] == (10, 19)
    assert found.headers["x-credits-remaining"] == "1000"
    assert found.headers["x-request-id"].startswith("req_")


def test_the_usage_call_and_metered_calls_share_one_limit(gate: Local) -> None:
    customer = gate.customer(plan="regpilot-free")
    chat(gate, {"X-API-Key": customer.secret})
    assert rate(gate.get(customer).headers)[:2] == (10, 18)
    assert rate(gate.authorize(customer).headers)[:2] == (10, 17)


def test_authorize_says_the_headers_in_its_body_too(gate: Local) -> None:
    customer = gate.customer(plan="regpilot-startup")
    found = gate.authorize(customer, cost_nanos=DOLLAR // 4)
    answered = {name.lower(): value for name, value in found.json()["headers"].items()}
    assert list(answered) == [*RATE_HEADERS, "x-credits-remaining", "x-request-id"]
    assert answered["x-credits-remaining"] == "999.75"
    assert {name: found.headers[name] for name in answered} == answered
    assert [name for name, _ in found.headers.multi_items()].count("x-request-id") == 1


def both(local: Local, customer: Customer, **asked: Any) -> list[httpx.Response]:
    return [chat(local, {"X-API-Key": customer.secret}), local.authorize(customer, **asked)]


def test_metered_traffic_over_its_limit_is_429(gate: Local) -> None:
    limits = [Limit(name="rpm", amount=1, algorithm="permits", burst=1)]
    customer = gate.customer(limits=limits)
    assert chat(gate, {"X-API-Key": customer.secret}).status_code == 200
    body = {"error": "Rate limit exceeded", "retry_after": 60, "limit": 1, "window": "1 minute"}
    for found in both(gate, customer):
        is_json(found, 429, body)
        assert found.headers["retry-after"] == "60"
        assert rate(found.headers)[:2] == (1, 0)


def test_a_budget_that_is_used_up_is_402_for_metered_calls_only(gate: Local) -> None:
    customer = gate.customer(limit=2 * DOLLAR, plan="regpilot-free")
    gate.record(customer, gate.site.clock.now(), model="m", cost_nanos=2_500_000_000)
    details = {"limit": 2, "used": 2.5}
    for found in both(gate, customer):
        is_json(found, 402, {"error": "Budget exceeded", "code": "BUDGET_EXCEEDED", "details": details})
        assert rate(found.headers)[:2] == (10, 20)
        assert found.headers["x-credits-remaining"] == "0"
    assert gate.get(customer).json()["budget"] == {"limit": 2, "used": 2.5, "remaining": 0}


def test_credit_that_is_used_up_is_402(gate: Local) -> None:
    customer = gate.customer(limit=None, type="credit")
    details = {"limit": 0, "used": 0}
    for found in both(gate, customer):
        is_json(found, 402, {"error": "Budget exceeded", "code": "BUDGET_EXCEEDED", "details": details})
    set_up(gate.site, Grant(id="g", account=customer.account, amount_nanos=DOLLAR // 2))
    assert chat(gate, {"X-API-Key": customer.secret}).headers["x-credits-remaining"] == "0.5"


def test_too_many_at_once_is_429_without_a_window(gate: Local) -> None:
    customer = gate.customer(limits=[Limit(name="open", amount=1, algorithm="concurrency")])
    assert gate.authorize(customer).status_code == 200
    found = gate.authorize(customer)
    assert found.status_code == 429
    retry_after = int(found.headers["retry-after"])
    body = {"error": "Rate limit exceeded", "retry_after": retry_after, "limit": 1, "window": "concurrent"}
    is_json(found, 429, body)


def test_metered_keys_are_refused_as_the_usage_call_refuses_them(gate: Local) -> None:
    site = gate.site
    is_json(chat(gate, {}), 401, MISSING_KEY)
    is_json(chat(gate, {"X-API-Key": "sk_bad"}), 401, BAD_KEY)
    is_json(gate.authorize(Customer("", "", "", "")), 401, MISSING_KEY)
    is_json(gate.authorize(Customer("", "", "", "sk_bad")), 401, BAD_KEY)
    states: tuple[tuple[Any, Any], ...] = (("inactive", BAD_KEY), ("revoked", REVOKED_KEY))
    customer = gate.customer()
    for state, body in states:
        site.manage.set_key_state(customer.account, customer.key_id, state)
        for found in both(gate, customer):
            is_json(found, 401, body)
            assert rate(found.headers)[:2] == (0, 0)
    foreign = gate.customer(profile="shoal")
    is_json(chat(gate, {"X-API-Key": foreign.secret}), 401, BAD_KEY)


def test_a_route_that_is_not_the_gateways_is_403(gate: Local) -> None:
    customer = gate.customer()
    is_json(chat(gate, {"X-API-Key": customer.secret}, "/api/other"), 403, FORBIDDEN)


def test_the_gate_that_cannot_book_is_503(gate: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    customer = gate.customer(plan="regpilot-free")
    monkeypatch.setattr(gate.site.gate, "refusing", "The ledger cannot be written.")
    for found in both(gate, customer):
        is_json(found, 503, UNAVAILABLE)


# -- what one call used ----------------------------------------------------------------------------------------

CHARGED = [
    "x-regpilot-model",
    "x-credits-charged",
    "x-credits-remaining",
    "x-regpilot-prompt-tokens",
    "x-regpilot-completion-tokens",
    "x-cache-status",
]


def model_call(
    local: Local, customer: Customer, headers: Mapping[str, str] = {}, **stated: Any
) -> httpx.Response:
    """Call a gateway that states *stated* of its request before it begins its answer."""

    async def model(scope: Any, receive: Any, send: Any) -> None:
        for name, value in stated.items():
            setattr(scope["state"]["tollkeeper"], name, value)
        await gateway(scope, receive, send)

    app = Tollkeeper(local.site).middleware(
        model, profile="regpilot", expect=lambda scope: Usage(cost_nanos=10 * DOLLAR)
    )
    shown = {"X-API-Key": customer.secret, **headers}
    return local.request("POST", "/api/ai/chat", app=app, headers=shown)


def usage_headers(found: httpx.Response) -> dict[str, str]:
    return {name: found.headers[name] for name in CHARGED if name in found.headers}


def only_event(local: Local, customer: Customer, group: str) -> Any:
    """Return the one row of an account's usage, grouped."""
    native = f"/tk/v1/usage?account={customer.account}&group_by={group}&measures=requests,cost_nanos,tokens"
    (row,) = local.request("GET", native, headers=places.OPERATOR).json()["rows"]
    return row


def test_a_metered_answer_tells_what_the_call_used(gate: Local) -> None:
    """All of it is known when the answer begins: the hold of 10 dollars gives way to the charge."""
    customer = gate.customer(plan="regpilot-free")
    used = Usage(30, 12, 7, 5, "openai/gpt-4o-mini", DOLLAR // 80)
    found = model_call(gate, customer, usage=used, cache="miss")
    assert usage_headers(found) == {
        "x-regpilot-model": "openai/gpt-4o-mini",
        "x-credits-charged": "0.0125",
        "x-credits-remaining": "999.9875",
        "x-regpilot-prompt-tokens": "42",
        "x-regpilot-completion-tokens": "12",
        "x-cache-status": "MISS",
    }
    names = [name for name, _ in found.headers.multi_items()]
    assert len(names) == len(set(names))
    assert rate(found.headers)[:2] == (10, 19)
    row = only_event(gate, customer, "model")
    assert (row["model"], row["cost_nanos"], row["tokens"]) == ("openai/gpt-4o-mini", str(DOLLAR // 80), 54)


def test_a_cache_hit_charges_nothing(gate: Local) -> None:
    customer = gate.customer()
    found = usage_headers(model_call(gate, customer, usage=Usage(100, model="m"), cache="hit"))
    assert (found["x-credits-charged"], found["x-credits-remaining"]) == ("0", "1000")
    assert (found["x-cache-status"], found["x-regpilot-prompt-tokens"]) == ("HIT", "100")
    assert gate.get(customer).json()["budget"]["used"] == 0


def test_an_answer_that_streams_tells_what_is_known_when_it_begins(gate: Local) -> None:
    """Its tokens come later: until then the remaining budget is that under the hold."""
    customer = gate.customer()
    found = usage_headers(model_call(gate, customer, usage=Usage(model="m"), cache="miss"))
    assert found == {"x-regpilot-model": "m", "x-credits-remaining": "990", "x-cache-status": "MISS"}
    assert usage_headers(model_call(gate, customer)) == {"x-credits-remaining": "990"}
    assert usage_headers(model_call(gate, customer, void=True)) == {"x-credits-remaining": "990"}


def test_a_call_without_a_known_price_has_no_charge_yet(gate: Local) -> None:
    customer = gate.customer()
    found = usage_headers(model_call(gate, customer, usage=Usage(5, model=unique("model"))))
    assert "x-credits-charged" not in found
    assert found["x-regpilot-prompt-tokens"] == "5"


@pytest.mark.parametrize("model", ["modèle", "a\r\nx-evil: 1", "名"])
def test_a_model_of_any_name_is_a_safe_header(gate: Local, model: str) -> None:
    found = model_call(gate, gate.customer(), usage=Usage(model=model))
    assert found.headers["x-regpilot-model"] == quote(model, safe=" :")
    assert "x-evil" not in found.headers


def test_settle_tells_what_the_call_used_in_headers_and_body(gate: Local) -> None:
    """A repeat tells the same, and a hold that ended in another dialect, or in none, tells nothing."""
    customer = gate.customer(plan="regpilot-free")
    held = gate.authorize(customer, cost_nanos=10 * DOLLAR)
    assert held.headers["x-credits-remaining"] == "990"
    body = {
        "hold_id": held.json()["hold_id"],
        "cost_nanos": DOLLAR // 4,
        "model": "openai/gpt-4o",
        "tokens": {"prompt": 3, "completion": 2, "reasoning": 1},
        "cache": "miss",
    }
    for replayed in (False, True):
        settled = gate.operate("/tk/v1/settle", body)
        assert (settled.status_code, settled.json()["replayed"]) == (200, replayed)
        assert settled.json()["headers"] == usage_headers(settled)
        assert usage_headers(settled) == {
            "x-regpilot-model": "openai/gpt-4o",
            "x-credits-charged": "0.25",
            "x-credits-remaining": "999.75",
            "x-regpilot-prompt-tokens": "3",
            "x-regpilot-completion-tokens": "3",
            "x-cache-status": "MISS",
        }
    for profile in ("cheapestinference", "native"):
        other = gate.customer(profile=profile)
        set_up(gate.site, Route(id="any", method="*", path="/any"))
        request = {"key": other.secret, "path": "/any", "method": "POST"}
        held = gate.operate("/tk/v1/authorize", request)
        assert held.status_code == 200, held.text
        settled = gate.operate("/tk/v1/settle", {"hold_id": held.json()["hold_id"], "model": "m"})
        assert settled.json()["headers"] == usage_headers(settled) == {}


def test_user_and_feature_of_a_metered_call_are_tags_of_its_event(gate: Local) -> None:
    customer = gate.customer()
    named = {"X-RegPilot-User-ID": " ann ", "X-RegPilot-Feature": "f" * 300}
    model_call(gate, customer, named)
    assert only_event(gate, customer, "tag:user_id")["tag:user_id"] == "ann"
    assert only_event(gate, customer, "tag:feature")["tag:feature"] == "f" * 256
    other = gate.customer()
    model_call(gate, other, {"X-RegPilot-Feature": ""})
    assert only_event(gate, other, "tag:feature")["tag:feature"] == ""


def test_tags_of_authorize_are_tags_of_the_event(gate: Local) -> None:
    customer = gate.customer()
    held = gate.authorize(customer, tags={"user_id": "ann", "feature": "search"})
    assert gate.operate("/tk/v1/settle", {"hold_id": held.json()["hold_id"]}).status_code == 200
    for name, value in (("user_id", "ann"), ("feature", "search")):
        assert only_event(gate, customer, f"tag:{name}")[f"tag:{name}"] == value


def test_project_keys_make_no_metered_request(gate: Local) -> None:
    """Known or not, by the middleware and by authorize; nothing is held, counted or charged."""
    secret = "pk_" + unique("").replace("-", "") + "0123456789abcdefghij"
    customer = gate.customer(sha256=hash_secret(secret), plan="regpilot-free")._replace(secret=secret)
    for shown in (customer, customer._replace(secret="pk_unknown")):
        for found in both(gate, shown):
            is_json(found, 403, FORBIDDEN)
            assert rate(found.headers)[:2] == (0, 0)
        for path in ("/api/usage", "/api/health"):
            is_json(gate.get(shown, path), 403, FORBIDDEN)
    stored = gate.site.directory.key(customer.key_id)
    assert stored is not None
    assert {limit_status.used for limit_status in gate.site.context(PROFILE).limit_statuses(stored)} == {0}


# -- switches, catalog -----------------------------------------------------------------------------------------


def _unnamed(local: Local) -> None:
    customer = local.customer()
    local.record(customer, local.site.clock.now(), cost_nanos=DOLLAR)
    assert local.get(customer).json()["models"] == {"other": {"requests": 1, "tokens": 0, "cost": 1}}


def _follows(local: Local) -> None:
    customer = local.customer()
    local.record(customer, datetime(2026, 3, 2, tzinfo=UTC), model="m", cost_nanos=DOLLAR)
    assert local.get(customer, period="day").json()["budget"] == {"limit": 1000, "used": 0, "remaining": 1000}
    assert local.get(customer).json()["budget"]["used"] == 1


def _zone_and_week(local: Local) -> None:
    found = local.get(local.customer(), period="week").json()["period"]
    assert found == {"start": "2026-03-14T23:00:00.000Z", "end": "2026-03-21T23:00:00.000Z"}


def _statuses(local: Local) -> None:
    customer = local.customer(limit=0)
    assert local.get(customer, projectId="other").status_code == 404
    found = chat(local, {"X-API-Key": customer.secret})
    assert (found.status_code, found.json()["code"]) == (429, "BUDGET_EXCEEDED")
    assert "x-credits-remaining" not in found.headers


def _bounds(local: Local) -> None:
    customer = local.customer(limit=None)
    for cache in ("hit", "miss", "miss"):
        local.record(customer, local.site.clock.now(), model="m", cache=cache)
    found = local.get(customer).json()
    assert found["budget"] == {"limit": 9, "used": 0, "remaining": 9}
    assert found["cache"]["hitRate"] == 33.3


def _families(local: Local) -> None:
    secret = "pk_" + "p" * 32
    customer = local.customer(sha256=hash_secret(secret))
    assert local.get(customer._replace(secret=secret)).status_code == 200
    assert chat(local, {"X-API-Key": secret}).status_code == 200


def _tags(local: Local) -> None:
    customer = local.customer()
    model_call(local, customer, {"X-Team": "blue", "X-RegPilot-Feature": "search"})
    assert only_event(local, customer, "tag:team")["tag:team"] == "blue"
    assert only_event(local, customer, "tag:feature")["tag:feature"] == ""


def _parameters(local: Local) -> None:
    customer = local.customer()
    assert local.get(customer, period="DAY").status_code == 200
    unknown = {"error": "Unknown parameter. Must be: projectId or period", "code": "UNKNOWN_PARAMETER"}
    is_json(local.get(customer, debug="1"), 422, unknown)
    is_json(local.get(customer, period="year"), 422, BAD_PERIOD)


def _amounts(local: Local) -> None:
    customer = local.customer(limit=DOLLAR)
    local.record(customer, local.site.clock.now(), model="m", cost_nanos=DOLLAR + DOLLAR // 8)
    found = local.get(customer).json()
    assert found["budget"] == {"limit": 1, "used": 1.125, "remaining": -0.125}
    assert found["models"]["m"]["cost"] == 112.5


def _headers(local: Local) -> None:
    customer = local.customer(plan="regpilot-free")
    assert rate(local.get(customer).headers)[:2] == (10, 10)
    assert rate(chat(local, {"X-API-Key": customer.secret}).headers)[:2] == (10, 10)
    for found in (local.request("GET", "/api/usage"), local.request("GET", "/api/nothing"), chat(local, {})):
        assert not [name for name in RATE_HEADERS if name in found.headers]


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("switches", "holds"),
    [
        (
            {
                "bad_parameter_status": 422,
                "period_case_sensitive": False,
                "unknown_parameters_ignored": False,
            },
            _parameters,
        ),
        ({"negative_remaining": True, "cost_unit": "cents"}, _amounts),
        ({"remaining_counts_burst": False, "rate_headers_without_key": False}, _headers),
        ({"unnamed_model": "other"}, _unnamed),
        ({"budget_follows_period": True}, _follows),
        ({"time_zone": "Europe/Berlin", "week_start": "sunday"}, _zone_and_week),
        (
            {
                "foreign_project_status": 404,
                "budget_exhausted_status": 429,
                "credits_remaining_header": False,
            },
            _statuses,
        ),
        ({"limit_without_budget_nanos": 9 * DOLLAR, "hit_rate_places": 1}, _bounds),
        ({"refused_key_prefixes": []}, _families),
        ({"tags_by_header": {"x-team": "team"}}, _tags),
    ],
)
def test_every_switch_switches(
    open_app: OpenApp, switches: dict[str, Any], holds: Callable[[Local], None]
) -> None:
    holds(Local(open_app(**switches)))


def test_the_catalog_applies_and_applies_again(install: Install) -> None:
    site = install()
    entries = parse_declaration(PROFILE.catalog)
    first = apply_declaration(entries, site.manage, dry_run=False)
    again = apply_declaration(entries, site.manage, dry_run=False)
    assert {change.action for change in first.changes} == {"created"}
    assert {change.action for change in again.changes} == {"unchanged"}
    assert "+ plans regpilot-free" in render_changes(first.changes)


def test_the_module_is_a_profile() -> None:
    profile: Profile = PROFILE
    assert profile.name == Path(__file__).stem.removeprefix("test_")


def test_a_webhook_message_has_the_vendors_signature() -> None:
    """Its value is that of `printf '{}' | openssl dgst -sha256 -hmac whsec_a2V5`."""
    expected = "b322ddb216f118324c00588d2fa093b7a53144fedd5862b5743490013baacef1"
    assert webhook_headers(b"{}", "whsec_a2V5") == {"x-regpilot-signature": expected}
