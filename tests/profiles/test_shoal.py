"""Shoal's dialect: the acceptance cases of its specification, and what surrounds them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import msgspec
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.effort import effort
from tests.end_to_end.server import OPERATOR_KEY, Server
from tests.profiles import places
from tests.profiles.conftest import OpenApp
from tests.profiles.places import NODE, OPERATOR, Answer, Client, Remote, needs_node
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.catalog.declaration import parse_declaration, render_changes
from tollkeeper.domain.catalog import Account, Entry, Key, Plan, PlanBudget, Subscription
from tollkeeper.domain.keys import hash_secret
from tollkeeper.embedded import Tollkeeper
from tollkeeper.http.app import App
from tollkeeper.profiles.base import Profile
from tollkeeper.profiles.shoal import PROFILE
from tollkeeper.testing import NOON, Faulty, ManualClock, set_up, unique

MALFORMED: Final = {"error": "Authorization header missing or malformed"}
NO_KEY: Final = {"error": "API key missing"}
BAD_KEY: Final = {"error": "Invalid API key"}
FORBIDDEN: Final = {"error": "This endpoint is not available on your current plan"}
UNAVAILABLE: Final = {"error": "Service Unavailable"}
OURS: Final = {"content-type", "content-length", "date", "server", "connection", "vary", "cache-control"}
"""Headers of any HTTP answer, which no dialect words."""


class BudgetPart(msgspec.Struct, forbid_unknown_fields=True):
    limit: int
    used: int
    remaining: int


class DataPart(msgspec.Struct, forbid_unknown_fields=True):
    today: int
    thisWeek: int
    thisMonth: int
    budget: BudgetPart


class UsageBody(msgspec.Struct, forbid_unknown_fields=True):
    """The answer of `/v1/usage`, nothing more and nothing less."""

    data: DataPart


class Customer(NamedTuple):
    """An account's key."""

    account: str
    key_id: str
    secret: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}


class Vendor(Remote):
    """Shoal as the running server speaks it, at one of its two places."""

    def get(self, headers: Mapping[str, str] | None = None, path: str = "/v1/usage") -> requests.Response:
        return self.ask("GET", path, headers=dict(headers or {}))

    def usage(self, customer: Customer) -> DataPart:
        found = self.get(customer.headers)
        assert found.status_code == 200, found.text
        return msgspec.json.decode(found.content, type=UsageBody).data

    def customer(self, *, account: str | None = None, **key: Any) -> Customer:
        if account is None:
            account = unique("acct")
            self.server.put(f"/tk/v1/accounts/{account}", {"name": "Acme", "plan": "shoal-starter"})
        made = self.server.post("/tk/v1/keys", {"account": account, "profile": "shoal", **key})
        return Customer(account, made["entry"]["id"], made["secret"])

    def record(self, customer: Customer, *events: Mapping[str, Any]) -> None:
        """Book events of now, by the customer's key."""
        self.book(customer.key_id, *events)


@pytest.fixture
def vendor(server: Server, base: str, client: Client) -> Vendor:
    return Vendor(server, base, client)


class Local(places.Local):
    """The application in this process."""

    def get(self, customer: Customer) -> httpx.Response:
        return self.request("GET", self.base + "/v1/usage", headers=customer.headers)

    def usage(self, customer: Customer) -> DataPart:
        found = self.get(customer)
        assert found.status_code == 200, found.text
        return msgspec.json.decode(found.content, type=UsageBody).data

    def authorize(self, customer: Customer, path: str = "/v1/search", method: str = "GET") -> httpx.Response:
        return self.operate("/tk/v1/authorize", {"key": customer.secret, "method": method, "path": path})

    def customer(
        self, *entries: Entry, plan: str | None = "shoal-starter", active: bool = True, **key: Any
    ) -> Customer:
        account, key_id = key.pop("account", None) or unique("acct"), unique("key")
        made = set_up(
            self.site,
            Account(id=account, name="Acme", plan=plan, active=active),
            *entries,
            Key(id=key_id, account=account, **{"profile": "shoal", **key}),
        )
        return Customer(account, key_id, made.get(key_id, ""))

    def record(self, customer: Customer, *times: str, **event: Any) -> None:
        self.book(customer.key_id, NOON, *({"time": time, **event} for time in times or (NOON.isoformat(),)))

    def middleware(self, app: Any, **options: Any) -> Any:
        return Tollkeeper(self.site).middleware(app, profile="shoal", **options)


@pytest.fixture
def make_local(open_app: OpenApp, base: str) -> Callable[..., Local]:
    """Open an installation with switches of the profile."""
    return lambda **switches: Local(open_app(**switches), base)


@pytest.fixture
def clock(shared_clock: ManualClock) -> ManualClock:
    shared_clock.set(NOON)
    return shared_clock


@pytest.fixture
def local(shared_app: App, base: str, clock: ManualClock) -> Local:
    return Local(shared_app, base)


def is_json(found: Answer, status: int, body: Any) -> None:
    """Check status, type and the whole body with its member order."""
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/json"
    assert found.text == json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    assert found.headers["x-request-id"].startswith("req_")


def worded(found: Answer) -> dict[str, str]:
    """Return the headers that the dialect words, but for the request's id."""
    headers = {name.lower(): value for name, value in found.headers.items() if name.lower() not in OURS}
    assert headers.pop("x-request-id")
    return headers


def key_headers(*, tier: str = "starter", left: int, limit: int, used: int, held: int = 0) -> dict[str, str]:
    return {
        "x-plan-tier": tier,
        "x-ratelimit-limit": "100",
        "x-ratelimit-remaining": str(left),
        "x-monthly-limit": str(limit),
        "x-monthly-used": str(used),
        "x-monthly-remaining": str(max(0, limit - used - held)),
    }


USAGE_HEADERS: Final = {
    "x-api-surface": "usage",
    "x-access-layer": "evaluation",
    "x-endpoint-policy": "usage",
    "x-credit-cost": "0",
}
SEARCH_HEADERS: Final = {
    "x-api-surface": "query",
    "x-access-layer": "evaluation",
    "x-endpoint-policy": "search",
    "x-credit-cost": "1",
}


def usage_body(today: int, week: int, month: int, *, limit: int = 1000, used: int = 0) -> Any:
    return {
        "data": {
            "today": today,
            "thisWeek": week,
            "thisMonth": month,
            "budget": {"limit": limit, "used": used, "remaining": max(0, limit - used)},
        }
    }


# -- acceptance ------------------------------------------------------------------------------------------------


def test_case_1_the_body_is_exactly_the_documented_one(vendor: Vendor) -> None:
    customer = vendor.customer()
    is_json(vendor.get(customer.headers), 200, usage_body(0, 0, 0))
    vendor.record(customer, {"credits": 7}, {"credits": 5, "status": 404}, {"status": 429})
    # The call before counts, and the one that was answered 429 does not.
    is_json(vendor.get(customer.headers), 200, usage_body(3, 3, 3, used=12))


def test_case_1_a_clean_client_reads_the_documented_example(local: Local) -> None:
    """The vendor's own figures: 42 today, 310 this week, 1,205 this month, 420 of 1,000 credits."""
    customer = local.customer()
    local.record(customer, *["2026-03-18T01:00:00Z"] * 42, credits=10)
    local.record(customer, *["2026-03-16T00:00:00Z"] * 268)
    local.record(customer, *["2026-03-01T00:00:00Z"] * 895)
    is_json(local.get(customer), 200, usage_body(42, 310, 1205, used=420))


def test_case_2_packaging_headers(vendor: Vendor, local: Local) -> None:
    found = vendor.get(vendor.customer().headers)
    assert found.status_code == 200
    headers = worded(found)
    assert headers.items() >= USAGE_HEADERS.items()
    assert headers["x-plan-tier"] == "starter"
    # The same whole, where no minute can end in between.
    assert worded(local.get(local.customer())) == USAGE_HEADERS | key_headers(left=99, limit=1000, used=0)


def test_case_3_the_usage_call_costs_no_credits(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, {"credits": 4})
    answers = [vendor.get(customer.headers) for _ in range(50)]
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["data"]["budget"]["used"] for answer in answers} == {4}
    assert {answer.headers["x-monthly-used"] for answer in answers} == {"4"}
    assert [answer.json()["data"]["thisMonth"] for answer in answers] == list(range(1, 51))


def test_case_4_a_metered_call_counts_once_and_costs_its_credits(vendor: Vendor) -> None:
    customer = vendor.customer(plan="shoal-pro")
    before = vendor.usage(customer)
    held = vendor.operate("/tk/v1/authorize", {"key": customer.secret, "method": "GET", "path": "/v1/brief"})
    assert held.status_code == 200, held.text
    assert held.headers["x-credit-cost"] == held.json()["headers"]["X-Credit-Cost"] == "3"
    assert held.headers["x-monthly-used"] == "0", "it is held only"
    vendor.operate("/tk/v1/settle", {"hold_id": held.json()["hold_id"], "status": 200})
    after = vendor.usage(customer)
    assert after.budget.used == before.budget.used + 3
    assert after.budget.remaining == before.budget.remaining - 3
    # One for the metered call, and one for the usage call before.
    assert after.thisMonth == before.thisMonth + 2


def test_case_4_a_failed_call_counts_and_costs_nothing(vendor: Vendor) -> None:
    customer = vendor.customer()
    for status in (400, 404, 500):
        held = vendor.operate(
            "/tk/v1/authorize", {"key": customer.secret, "method": "GET", "path": "/v1/search"}
        )
        vendor.operate("/tk/v1/settle", {"hold_id": held.json()["hold_id"], "status": status})
    found = vendor.usage(customer)
    assert (found.thisMonth, found.budget.used) == (3, 0)


def test_case_5_today_begins_at_midnight_utc(local: Local) -> None:
    customer = local.customer()
    local.record(customer, "2026-03-17T23:59:59Z", "2026-03-17T23:59:59.999999Z")
    assert local.usage(customer).today == 0
    local.record(customer, "2026-03-18T00:00:00Z")
    # And the call before.
    assert local.usage(customer).today == 2


def test_case_6_requests_may_outnumber_credits(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, *[{"credits": 1}] * 420, *[{}] * 785)
    found = vendor.get(customer.headers)
    assert found.status_code == 200
    data = found.json()["data"]
    assert data["thisMonth"] == 1205
    assert data["budget"] == {"limit": 1000, "used": 420, "remaining": 580}


def test_case_7_keys_of_one_account_are_apart(vendor: Vendor) -> None:
    first = vendor.customer()
    second = vendor.customer(account=first.account)
    vendor.record(first, {"credits": 9}, {"credits": 1})
    vendor.record(second, {"credits": 2})
    one, two = vendor.usage(first), vendor.usage(second)
    assert (one.thisMonth, one.budget.used, one.budget.remaining) == (2, 10, 990)
    assert (two.thisMonth, two.budget.used, two.budget.remaining) == (1, 2, 998)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, MALFORMED),
        ({"Authorization": "Basic dXNlcjpwYXNz"}, MALFORMED),
        ({"Authorization": "Payment abc"}, MALFORMED),
        ({"Authorization": "shoal_abc"}, MALFORMED),
        ({"Authorization": "Bearershoal_abc"}, MALFORMED),
        ({"Authorization": ""}, MALFORMED),
        ({"X-API-Key": "shoal_abc"}, MALFORMED),
        ({"Authorization": "Bearer "}, NO_KEY),
        ({"Authorization": "Bearer"}, NO_KEY),
        ({"Authorization": "bearer   "}, NO_KEY),
    ],
)
def test_case_8_a_missing_or_malformed_credential(
    vendor: Vendor, headers: dict[str, str], body: dict[str, str]
) -> None:
    found = vendor.get(headers)
    is_json(found, 401, body)
    assert worded(found) == {"x-endpoint-policy": "usage"}


def test_case_9_an_unknown_key(vendor: Vendor, make_local: Callable[..., Local]) -> None:
    found = vendor.get({"Authorization": "Bearer shoal_unknown"})
    is_json(found, 401, BAD_KEY)
    assert worded(found) == {"x-endpoint-policy": "usage"}
    unknown = Customer("", "", "shoal_unknown")
    local = make_local(invalid_key_status=403)
    is_json(local.get(unknown), 403, BAD_KEY)
    # The setting changes the answer to an unknown key only, and on metered traffic too.
    is_json(local.request("GET", local.base + "/v1/usage"), 401, MALFORMED)
    answer = local.request("GET", "/v1/search", app=local.middleware(echo), headers=unknown.headers)
    is_json(answer, 403, BAD_KEY)
    assert worded(answer) == {"x-endpoint-policy": "search"}


def test_case_10_the_101st_call_of_a_window_is_refused(local: Local, clock: ManualClock) -> None:
    customer = local.customer()
    clock.advance(seconds=18)
    # Any route fills the window; the usage endpoint's own calls are among them.
    answers = [local.authorize(customer) for _ in range(95)] + [local.get(customer) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 100 + [429]
    refused = answers[-1]
    is_json(refused, 429, {"error": "Rate limit exceeded", "retryAfter": 42})
    # What was authorized holds its credit until it is settled.
    assert worded(refused) == USAGE_HEADERS | key_headers(left=0, limit=1000, used=0, held=95) | {
        "retry-after": "42"
    }
    # Windows are minutes of the clock: the first call of the next one passes.
    clock.advance(seconds=41)
    assert local.get(customer).json()["retryAfter"] == 1
    clock.advance(seconds=1)
    # What was refused did not count, nor what was never settled.
    assert local.usage(customer).today == 5


def test_case_11_remaining_falls_by_one_per_call_and_never_below_0(local: Local) -> None:
    """Metered calls and usage calls share the window."""
    customer = local.customer()
    left = []
    for number in range(105):
        found = local.authorize(customer) if number % 5 else local.get(customer)
        assert found.headers["x-ratelimit-limit"] == "100"
        left.append(int(found.headers["x-ratelimit-remaining"]))
    assert left == [*range(99, -1, -1), 0, 0, 0, 0, 0]


def test_case_12_usage_is_readable_when_the_credits_are_spent(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, *[{"credits": 250}] * 4)
    found = vendor.get(customer.headers)
    is_json(found, 200, usage_body(4, 4, 4, used=1000))
    assert found.headers["x-monthly-remaining"] == "0"
    vendor.record(customer, {"credits": 3})
    # What was reported from elsewhere can pass the limit: then nothing is left, and no less.
    assert vendor.get(customer.headers).json()["data"]["budget"] == {
        "limit": 1000,
        "used": 1003,
        "remaining": 0,
    }


def test_case_13_a_new_month_begins_at_zero(local: Local, clock: ManualClock) -> None:
    customer = local.customer()
    clock.set(datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC))
    local.record(customer, "2026-03-31T23:59:58Z", "2026-03-02T00:00:00Z", credits=500)
    spent = local.authorize(customer)
    is_json(spent, 429, {"error": "Monthly credit limit exceeded", "retryAfter": 1})
    is_json(local.get(customer), 200, usage_body(1, 1, 2, used=1000))
    clock.advance(seconds=1)
    # 1 April is a Wednesday: the week goes on, day and month begin.
    is_json(local.get(customer), 200, usage_body(0, 2, 0))
    assert local.authorize(customer).status_code == 200


def test_case_14_an_unknown_path_is_named_as_the_vendor_has_it(vendor: Vendor) -> None:
    for path in ("/v1/nope", "/", "/v1/usage/", "/v1/usage/today"):
        found = vendor.get(path=path)
        is_json(found, 404, {"error": "Not Found", "path": path, "method": "GET"})
        assert worded(found) == {}
    asked = vendor.ask("DELETE", "/v1/invalid/route?a=b")
    is_json(asked, 404, {"error": "Not Found", "path": "/v1/invalid/route", "method": "DELETE"})


def test_case_15_every_answer_has_an_id_of_its_own(vendor: Vendor) -> None:
    customer = vendor.customer()
    authorize = {"key": customer.secret, "method": "GET"}
    answers = [
        vendor.get(customer.headers),
        vendor.get(customer.headers),
        vendor.get(),
        vendor.get({"Authorization": "Bearer "}),
        vendor.get({"Authorization": "Bearer shoal_unknown"}),
        vendor.get(path="/v1/nope"),
        vendor.ask("POST", "/v1/usage"),
        vendor.operate("/tk/v1/authorize", authorize | {"path": "/v1/search"}),
        vendor.operate("/tk/v1/authorize", authorize | {"path": "/v1/radar/all"}),
        vendor.operate("/tk/v1/authorize", authorize | {"path": "/v1/nope"}),
    ]
    assert [a.status_code for a in answers] == [200, 200, 401, 401, 401, 404, 405, 200, 403, 404]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(id_ and "," not in id_ for id_ in ids)
    assert len(set(ids)) == len(ids)


# -- the profile itself ----------------------------------------------------------------------------------------


def test_it_is_a_profile_with_a_catalog_that_applies_twice(local: Local) -> None:
    profile: Profile = PROFILE
    assert profile.name == "shoal"
    again = local.site.manage.apply(parse_declaration(profile.catalog))
    assert all(line.startswith("=") for line in render_changes(again.changes))


def test_a_key_of_the_profile_has_its_format(vendor: Vendor) -> None:
    secret = vendor.customer().secret
    assert secret.startswith("shoal_")
    assert len(secret) == len("shoal_") + 32
    imported = unique("any-key-will-do")
    customer = vendor.customer()
    vendor.server.put(
        f"/tk/v1/keys/{unique('key')}",
        {"account": customer.account, "profile": "shoal", "sha256": hash_secret(imported)},
    )
    assert vendor.get({"Authorization": f"bearer {imported}"}).status_code == 200


def test_parameters_are_ignored(vendor: Vendor) -> None:
    customer = vendor.customer()
    asked = "?from=x&period=&period=day&key=other&%00=%ff&today=1"
    is_json(vendor.get(customer.headers, "/v1/usage" + asked), 200, usage_body(0, 0, 0))


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_is_answered_like_an_unknown_path(vendor: Vendor, method: str) -> None:
    found = vendor.ask(method, "/v1/usage", data=b"\x00{")
    is_json(found, 405, {"error": "Not Found", "path": "/v1/usage", "method": method})
    assert worded(found) == {"allow": "GET", "x-endpoint-policy": "usage"}


REQUESTS_CLIENT: Final = """
import os, requests

answer = requests.get(
    os.environ["HOST"] + "/v1/usage", headers={"Authorization": "Bearer " + os.environ["SHOAL_KEY"]}
)
data = answer.json()["data"]
print(answer.status_code, data["thisMonth"], data["budget"]["remaining"], answer.headers["X-Api-Surface"])
"""
FETCH_CLIENT: Final = """
(async () => {
  const answer = await fetch(process.env.HOST + "/v1/usage", {
    headers: { Authorization: `Bearer ${process.env.SHOAL_KEY}` },
  });
  const { data } = await answer.json();
  console.log(answer.status, data.thisMonth, data.budget.remaining, answer.headers.get("X-Api-Surface"));
})();
"""
CLIENTS: Final = {
    "python": [sys.executable, "-c", REQUESTS_CLIENT],
    "javascript": [NODE or "node", "-e", FETCH_CLIENT],
}


@pytest.mark.parametrize("sample", ["python", pytest.param("javascript", marks=needs_node)])
def test_a_client_runs_with_another_host(server: Server, base: str, sample: str) -> None:
    vendor = Vendor(server, base)
    customer = vendor.customer()
    vendor.record(customer, {"credits": 420}, {})
    environment = {"HOST": vendor.url, "SHOAL_KEY": customer.secret}
    ran = subprocess.run(CLIENTS[sample], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "200 2 580 usage\n", ran.stderr


# -- credentials -----------------------------------------------------------------------------------------------


def test_a_key_of_another_kind_is_unknown(vendor: Vendor) -> None:
    account = vendor.customer().account
    others = [
        vendor.server.post("/tk/v1/keys", {"account": account, **fields})["secret"]
        for fields in (
            {"profile": "regsn"},
            {"profile": "cheapestinference"},
            {"profile": "native"},
            {"role": "management"},
        )
    ]
    for secret in [*others, OPERATOR_KEY, "é", "a b", "x" * 5000]:
        found = vendor.get({"Authorization": f"Bearer {secret}".encode()})  # type: ignore[dict-item]
        is_json(found, 401, BAD_KEY)


@pytest.mark.parametrize("state", ["inactive", "revoked", "deleted"])
def test_a_key_that_is_not_active_is_unknown(vendor: Vendor, state: str) -> None:
    customer = vendor.customer()
    assert vendor.get(customer.headers).status_code == 200
    vendor.server.post(f"/tk/v1/keys/{customer.key_id}/state?account={customer.account}", {"state": state})
    is_json(vendor.get(customer.headers), 401, BAD_KEY)
    metered = {"key": customer.secret, "method": "GET", "path": "/v1/search"}
    found = vendor.operate("/tk/v1/authorize", metered)
    is_json(found, 401, BAD_KEY)
    assert worded(found) == {"x-endpoint-policy": "search"}


def test_a_key_expires_with_itself_and_with_its_subscription(local: Local, clock: ManualClock) -> None:
    ends = NOON + timedelta(hours=1)
    account = unique("acct")
    tie = Subscription(id="s", account=account, plan="shoal-pro", started_at=NOON, expires_at=ends)
    customers = [local.customer(expires_at=ends), local.customer(tie, account=account, subscription="s")]
    for customer in customers:
        assert local.get(customer).status_code == 200
    clock.set(ends)
    for customer in customers:
        is_json(local.get(customer), 401, BAD_KEY)
        is_json(local.authorize(customer), 401, BAD_KEY)


def test_keys_of_an_inactive_account_are_refused(local: Local) -> None:
    customer = local.customer(active=False)
    is_json(local.get(customer), 401, BAD_KEY)
    is_json(local.authorize(customer), 401, BAD_KEY)


# -- metered traffic -------------------------------------------------------------------------------------------


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_the_middleware_speaks_the_dialect(local: Local, clock: ManualClock) -> None:
    app = local.middleware(echo)
    customer = local.customer()

    def ask(path: str, headers: Mapping[str, str] = customer.headers) -> httpx.Response:
        return local.request("GET", path, app=app, headers=headers)

    found = ask("/v1/search?q=whale")
    assert (found.status_code, found.text) == (200, "ok")
    assert worded(found) == SEARCH_HEADERS | key_headers(left=99, limit=1000, used=0, held=1)
    # A route whose surface the vendor does not tell has no such header.
    top = worded(ask("/v1/signal/top"))
    assert "x-api-surface" not in top
    assert top["x-endpoint-policy"] == "signal.top"

    forbidden = ask("/v1/radar/all")
    is_json(forbidden, 403, FORBIDDEN)
    radar = {
        "x-api-surface": "feed",
        "x-access-layer": "premium",
        "x-endpoint-policy": "radar.all",
        "x-credit-cost": "10",
    }
    assert worded(forbidden) == radar | key_headers(left=98, limit=1000, used=3)
    unknown = ask("/v1/nope")
    is_json(unknown, 404, {"error": "Not Found", "path": "/v1/nope", "method": "GET"})
    assert worded(unknown) == key_headers(left=98, limit=1000, used=3)

    is_json(ask("/v1/search", {}), 401, MALFORMED)
    is_json(ask("/v1/search", {"Authorization": "Bearer "}), 401, NO_KEY)
    is_json(ask("/v1/search", {"Authorization": "Bearer shoal_x"}), 401, BAD_KEY)
    other = local.customer(profile="native")
    is_json(ask("/v1/search", other.headers), 401, BAD_KEY)
    # 403 is an outcome like any other.
    assert local.usage(customer).today == 4


def test_spent_credits_are_429_until_the_next_month(local: Local) -> None:
    customer = local.customer()
    local.record(customer, credits=1000)
    until = datetime(2026, 4, 1, tzinfo=UTC) - NOON
    left_s = int(until.total_seconds())
    found = local.request("GET", "/v1/search", app=local.middleware(echo), headers=customer.headers)
    is_json(found, 429, {"error": "Monthly credit limit exceeded", "retryAfter": left_s})
    expected = SEARCH_HEADERS | key_headers(left=100, limit=1000, used=1000)
    assert worded(found) == expected | {"retry-after": str(left_s)}
    held = local.authorize(customer)
    assert (held.status_code, held.json(), worded(held)) == (429, found.json(), worded(found))
    # Neither counts, as both were answered 429.
    assert local.usage(customer).today == 1


def test_too_many_metered_calls_are_429(local: Local, clock: ManualClock) -> None:
    clock.advance(seconds=50)
    customer = local.customer()
    for _ in range(100):
        assert local.authorize(customer).status_code == 200
    found = local.authorize(customer)
    is_json(found, 429, {"error": "Rate limit exceeded", "retryAfter": 10})
    expected = SEARCH_HEADERS | key_headers(left=0, limit=1000, used=0, held=100)
    assert worded(found) == expected | {"retry-after": "10"}


def test_a_store_that_is_away_is_503_and_an_error_500(
    local: Local, monkeypatch: pytest.MonkeyPatch, usage_store: ClickHouseUsageStore
) -> None:
    customer = local.customer()
    reports: Any = local.site.reports
    faulty = Faulty(usage_store, "report")
    monkeypatch.setattr(reports, "_store", faulty)
    faulty.refuse()
    found = local.get(customer)
    is_json(found, 503, UNAVAILABLE)
    assert worded(found) == USAGE_HEADERS | key_headers(left=100, limit=1000, used=0)
    assert local.get(customer).status_code == 200

    def fail(*_: object) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(faulty, "_call", fail)
    # What was answered before is brought up to date without the store.
    assert local.get(customer).status_code == 200
    found = local.get(local.customer())
    is_json(found, 500, {"error": "Internal Server Error"})
    assert worded(found) == USAGE_HEADERS | key_headers(left=100, limit=1000, used=0)


def test_metered_calls_are_503_while_nothing_can_be_booked(
    local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = local.customer()
    monkeypatch.setattr(local.site.gate, "refusing", "The ledger cannot be written.")
    is_json(local.authorize(customer), 503, UNAVAILABLE)


# -- switches --------------------------------------------------------------------------------------------------


def test_the_week_begins_as_the_switch_says(make_local: Callable[..., Local]) -> None:
    times = [f"2026-03-{day}T00:00:00Z" for day in range(14, 19)]
    for day, expected in (("monday", 3), ("sunday", 4), ("wednesday", 1)):
        local = make_local(week_start=day)
        customer = local.customer()
        local.record(customer, *times)
        assert local.usage(customer).thisWeek == expected


def test_a_week_may_begin_in_the_month_before(local: Local, clock: ManualClock) -> None:
    clock.set(datetime(2026, 4, 2, 8, tzinfo=UTC))
    customer = local.customer()
    local.record(customer, "2026-03-29T23:59:59Z", "2026-03-30T00:00:00Z", "2026-04-01T00:00:00Z")
    is_json(local.get(customer), 200, usage_body(0, 2, 1))


def test_week_and_month_follow_the_time_zone_and_today_does_not(make_local: Callable[..., Local]) -> None:
    local = make_local(time_zone="Asia/Kolkata")
    customer = local.customer()
    local.record(customer, "2026-02-28T18:29:59Z", "2026-02-28T18:30:00Z")
    local.record(customer, "2026-03-15T18:29:59Z", "2026-03-15T18:30:00Z")
    local.record(customer, "2026-03-17T23:59:59Z", "2026-03-18T00:00:00Z")
    data = local.usage(customer)
    assert (data.today, data.thisWeek, data.thisMonth) == (1, 3, 5)


def test_usage_calls_and_refused_calls_count_as_the_switches_say(make_local: Callable[..., Local]) -> None:
    local = make_local(usage_calls_count=False, refused_calls_count=True, exhausted_status=402)
    customer = local.customer()
    local.record(customer, NOON.isoformat(), NOON.isoformat(), status=429)
    assert [local.usage(customer).today for _ in range(3)] == [2, 2, 2]


def test_another_answer_to_spent_credits(make_local: Callable[..., Local]) -> None:
    local = make_local(exhausted_status=402, exhausted_text="No credits left")
    customer = local.customer()
    local.record(customer, credits=1000)
    found = local.authorize(customer)
    assert (found.status_code, found.json()["error"]) == (402, "No credits left")
    # It was not answered 429, so it counts.
    assert local.usage(customer).today == 2


def test_a_key_without_a_plan_is_bounded_by_nothing(make_local: Callable[..., Local]) -> None:
    local = make_local(tier_without_plan="trial", usage_policy="usage.read")
    customer = local.customer(plan=None)
    local.record(customer, credits=5)
    most = 2**53 - 1
    found = local.get(customer)
    is_json(found, 200, usage_body(1, 1, 1, limit=most, used=5))
    expected = USAGE_HEADERS | key_headers(tier="trial", left=0, limit=most, used=5)
    expected |= {"x-endpoint-policy": "usage.read"}
    assert worded(found) == {k: v for k, v in expected.items() if not k.startswith("x-ratelimit")}
    assert worded(local.authorize(customer)) == SEARCH_HEADERS | {"x-plan-tier": "trial"}


def test_a_pool_is_shown_to_keys_that_have_no_budget_of_their_own(local: Local) -> None:
    account, slug = unique("acct"), unique("pooled")
    pool = PlanBudget(name="pool", amount=50, unit="credits", per="account")
    money = PlanBudget(name="money", amount=1, unit="nanos", per="key")
    first = local.customer(Plan(slug=slug, budgets=[money, pool]), account=account, plan=slug)
    second = local.customer(account=account, plan=slug)
    local.record(first, credits=20)
    data = local.usage(second)
    assert (data.thisMonth, data.budget.used, data.budget.remaining) == (0, 20, 30)
    assert local.get(second).headers["x-plan-tier"] == slug


def test_a_budget_of_the_key_comes_before_one_that_it_shares(local: Local) -> None:
    """The answer has the key's own budget, not the rest of the account's pool."""
    account, slug = unique("acct"), unique("both")
    pool = PlanBudget(name="pool", amount=50, unit="credits", per="account")
    own = PlanBudget(name="own", amount=100, unit="credits", per="key")
    tighter = PlanBudget(name="tighter", amount=90, unit="credits", per="key")
    customer = local.customer(Plan(slug=slug, budgets=[pool, own, tighter]), account=account, plan=slug)
    assert local.usage(customer).budget == BudgetPart(90, 0, 90)


# -- whatever was recorded -------------------------------------------------------------------------------------

events = st.lists(
    st.tuples(
        st.integers(0, 40 * 86_400),
        st.sampled_from([200, 200, 204, 400, 402, 429, 500]),
        st.integers(0, 400),
        st.sampled_from(["", "", "rate_limited", "budget_exhausted", "layer_not_allowed"]),
    ),
    max_size=12,
)


def test_the_answer_agrees_with_the_native_one(local: Local, clock: ManualClock) -> None:
    """Whatever was recorded, the answer has its shape, and each number is that of `/tk/v1/usage`."""

    @settings(max_examples=effort(3, 6), deadline=None)
    @given(events, st.integers(0, 20 * 86_400))
    def agrees(given_events: list[tuple[int, int, int, str]], later_s: int) -> None:
        now = NOON + timedelta(seconds=later_s)
        clock.set(now)
        customer = local.customer()
        for ago_s, status, credits, reason in given_events:
            at = (now - timedelta(seconds=ago_s)).isoformat()
            local.record(customer, at, status=status, credits=credits, denied_reason=reason)
        data = local.usage(customer)

        def native(start: datetime) -> tuple[int, int]:
            params = {
                "account": customer.account,
                "key": customer.key_id,
                "from": start.isoformat(),
                # The call that was just made is counted from the next one on.
                "kind": "request",
                "group_by": "status,denied_reason",
                "measures": "requests,credits",
            }
            rows = local.request("GET", "/tk/v1/usage", params=params, headers=OPERATOR).json()["rows"]
            counted = [r for r in rows if r["status"] != 429 and r["denied_reason"] != "budget_exhausted"]
            return sum(r["requests"] for r in counted), sum(r["credits"] for r in rows)

        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        assert data.today == native(day)[0]
        assert data.thisWeek == native(day - timedelta(days=day.weekday()))[0]
        requests_, credits = native(day.replace(day=1))
        assert data.thisMonth == requests_
        assert data.budget == BudgetPart(1000, credits, max(0, 1000 - credits))

    agrees()


def test_the_module_knows_no_storage() -> None:
    source = Path(str(__import__(type(PROFILE).__module__, fromlist=["x"]).__file__)).read_text()
    for outside in (
        "adapters",
        "installation",
        "tollkeeper.http",
        "tollkeeper.ledger",
        "sqlalchemy",
        "clickhouse",
    ):
        assert outside not in source
