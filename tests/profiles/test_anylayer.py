"""AnyLayer's dialect: the acceptance cases of its specification, and what surrounds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.effort import effort
from tests.end_to_end.server import OPERATOR_KEY, Server
from tests.profiles import places
from tests.profiles.places import OPERATOR, Answer, Client, Remote
from tollkeeper.domain.catalog import Account, Budget, Key
from tollkeeper.embedded import Tollkeeper
from tollkeeper.errors import Unavailable
from tollkeeper.http.app import App
from tollkeeper.http.profiles import ProfileSite
from tollkeeper.profiles.anylayer import PROFILE
from tollkeeper.profiles.anylayer.caller import ROUTE
from tollkeeper.profiles.anylayer.errors import description, error_type
from tollkeeper.profiles.anylayer.parameters import TIMEFRAMES
from tollkeeper.profiles.base import Call
from tollkeeper.testing import ManualClock, set_up, unique

NOON = datetime(2026, 3, 18, 12, 0, tzinfo=UTC)
USAGE = "/v1/developer/usage"
KEYS = "/v1/developer/keys"
RATE_HEADERS = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"]
PARTS = [
    "success", "usage", "timeSeries", "breakdown", "errors", "rateLimits", "alerts", "pagination", "timestamp",
]  # fmt: skip
BARE = {"includeBreakdown": "false", "includeErrors": "false"}
Number = int | float


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Base of the shapes: nothing more and nothing less than their members."""


class Statistics(Strict):
    totalRequests: int
    successfulRequests: int
    failedRequests: int
    successRate: Number
    averageLatency: Number
    peakLatency: Number
    requestsPerMinute: Number
    requestsPerHour: Number
    requestsPerDay: Number
    peakRequestsPerMinute: int
    peakRequestsPerHour: int
    dataTransferred: int
    averageDataPerRequest: Number


class Point(Strict):
    timestamp: str
    requests: int
    successfulRequests: int
    failedRequests: int
    averageLatency: Number
    peakLatency: Number
    dataTransferred: int


class ByEndpoint(Strict):
    endpoint: str
    requests: int
    successRate: Number
    averageLatency: Number
    dataTransferred: int


class ByMethod(Strict):
    method: str
    requests: int
    successRate: Number
    averageLatency: Number
    dataTransferred: int


class ByStatus(Strict):
    statusCode: int
    requests: int
    percentage: Number


class ByKey(Strict):
    keyId: str
    name: str
    requests: int
    successRate: Number
    averageLatency: Number
    dataTransferred: int


class Breakdown(Strict):
    byEndpoint: list[ByEndpoint]
    byMethod: list[ByMethod]
    byStatusCode: list[ByStatus]
    byKey: list[ByKey]


class ErrorType(Strict):
    type: str
    count: int
    percentage: Number
    description: str


class ErrorEndpoint(Strict):
    endpoint: str
    count: int
    percentage: Number


class ErrorStatus(Strict):
    statusCode: int
    count: int
    percentage: Number


class Errors(Strict):
    totalErrors: int
    errorRate: Number
    byType: list[ErrorType]
    byEndpoint: list[ErrorEndpoint]
    byStatusCode: list[ErrorStatus]


class Rates(Strict):
    requestsPerMinute: Number | None
    requestsPerHour: Number | None
    requestsPerDay: Number | None


class RateLimits(Strict):
    current: Rates
    usage: Rates
    utilization: Rates


class AlertPart(Strict):
    type: str
    message: str
    priority: str
    recommendation: str


class Pagination(Strict):
    total: int
    limit: int
    offset: int
    hasMore: bool


class UsageBody(Strict):
    success: bool
    usage: Statistics
    timeSeries: list[Point]
    breakdown: Breakdown
    errors: Errors
    rateLimits: RateLimits
    alerts: list[AlertPart]
    pagination: Pagination
    timestamp: str


class Customer(NamedTuple):
    """One key of one account."""

    account: str
    key_id: str
    secret: str


class Vendor(Remote):
    """AnyLayer as the running server speaks it, at one of its two places."""

    def call(
        self,
        method: str,
        path: str,
        secret: str = "",
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Answer:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return self.ask(method, path, headers=headers, params=params, **options)

    def usage(self, customer: Customer, **params: Any) -> Any:
        """Return the body of a good answer."""
        found = self.call("GET", USAGE, customer.secret, params)
        assert found.status_code == 200, found.text
        return found.json()

    def customer(self, *, account: str = "", plan: str | None = "anylayer-starter", **key: Any) -> Customer:
        if not account:
            account = unique("acct")
            self.server.put(f"/tk/v1/accounts/{account}", {"name": "Acme", "plan": plan})
        made = self.server.post("/tk/v1/keys", {"account": account, "profile": "anylayer", **key})
        return Customer(account, made["entry"]["id"], made["secret"])

    def record(self, customer: Customer, *events: Mapping[str, Any]) -> None:
        """Book events of now, by the customer's key."""
        self.book(customer.key_id, *({"status": 200, **event} for event in events))


@pytest.fixture
def vendor(server: Server, base: str, client: Client) -> Vendor:
    return Vendor(server, base, client)


class Local(places.Local):
    """The application in this process."""

    def __init__(self, app: App, clock: ManualClock, base: str) -> None:
        super().__init__(app, base)
        self.clock = clock

    def call(
        self,
        method: str,
        path: str,
        secret: str = "",
        params: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        return self.request(method, self.base + path, headers=headers, params=params, **options)

    def customer(self, *, plan: str | None = "anylayer-starter", account: str = "", **key: Any) -> Customer:
        name, key_id = account or unique("acct"), unique("key")
        entries = [] if account else [Account(id=name, name="Acme", plan=plan)]
        secrets = set_up(self.site, *entries, Key(id=key_id, account=name, profile="anylayer", **key))
        return Customer(name, key_id, secrets[key_id])

    def record(self, customer: Customer, at: datetime, count: int = 1, **event: Any) -> None:
        self.book(customer.key_id, at, *[{"status": 200, **event}] * count)

    def usage(self, customer: Customer, **params: Any) -> Any:
        found = self.call("GET", USAGE, customer.secret, params)
        assert found.status_code == 200, found.text
        return found.json()


@pytest.fixture
def local(shared_app: App, shared_clock: ManualClock, base: str) -> Local:
    shared_clock.set(NOON)
    return Local(shared_app, shared_clock, base)


def is_error(found: Answer, status: int, code: str, message: str, *more: str) -> None:
    """Check a whole error: status, type, member order, values."""
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == "application/json"
    members = json.loads(found.text, object_pairs_hook=list)
    assert [name for name, _ in members] == ["success", "error", "message", "timestamp", *more]
    assert members[:3] == [("success", False), ("error", code), ("message", message)]
    datetime.strptime(dict(members)["timestamp"], "%Y-%m-%dT%H:%M:%SZ")


def test_case_1_a_bare_call_is_24_hours_by_the_hour(local: Local) -> None:
    """The whole answer, members in order."""
    customer = local.customer(name="Production App")
    score = {"method": "GET", "route": "/v1/score/{identity}"}
    local.record(customer, NOON - timedelta(hours=3), 3, latency_ms=80, bytes_out=1000, **score)
    local.record(customer, NOON - timedelta(hours=1), 1, status=429, error_type="rate_limited", **score)
    local.record(customer, NOON - timedelta(hours=25), 7, **score)
    found = local.call("GET", USAGE, customer.secret)
    assert found.status_code == 200
    assert found.headers["content-type"] == "application/json"
    assert [name for name in found.headers if name.startswith("x-ratelimit")] == RATE_HEADERS
    assert [found.headers[name] for name in RATE_HEADERS] == ["300", "299", str(int(NOON.timestamp()) + 60)]
    expected = {
        "success": True,
        "usage": {
            "totalRequests": 4,
            "successfulRequests": 3,
            "failedRequests": 1,
            "successRate": 75.0,
            "averageLatency": 80.0,
            "peakLatency": 80.0,
            "requestsPerMinute": 0.0,
            "requestsPerHour": 0.17,
            "requestsPerDay": 4.0,
            "peakRequestsPerMinute": 3,
            "peakRequestsPerHour": 3,
            "dataTransferred": 3000,
            "averageDataPerRequest": 750.0,
        },
        "timeSeries": [
            {
                "timestamp": "2026-03-18T09:00:00Z",
                "requests": 3,
                "successfulRequests": 3,
                "failedRequests": 0,
                "averageLatency": 80.0,
                "peakLatency": 80.0,
                "dataTransferred": 3000,
            },
            {
                "timestamp": "2026-03-18T11:00:00Z",
                "requests": 1,
                "successfulRequests": 0,
                "failedRequests": 1,
                "averageLatency": 0,
                "peakLatency": 0,
                "dataTransferred": 0,
            },
        ],
        "breakdown": {
            "byEndpoint": [
                {
                    "endpoint": "GET /v1/score/{identity}",
                    "requests": 4,
                    "successRate": 75.0,
                    "averageLatency": 80.0,
                    "dataTransferred": 3000,
                }
            ],
            "byMethod": [
                {
                    "method": "GET",
                    "requests": 4,
                    "successRate": 75.0,
                    "averageLatency": 80.0,
                    "dataTransferred": 3000,
                }
            ],
            "byStatusCode": [
                {"statusCode": 200, "requests": 3, "percentage": 75.0},
                {"statusCode": 429, "requests": 1, "percentage": 25.0},
            ],
            "byKey": [
                {
                    "keyId": customer.key_id,
                    "name": "Production App",
                    "requests": 4,
                    "successRate": 75.0,
                    "averageLatency": 80.0,
                    "dataTransferred": 3000,
                }
            ],
        },
        "errors": {
            "totalErrors": 1,
            "errorRate": 25.0,
            "byType": [
                {
                    "type": "RATE_LIMIT_EXCEEDED",
                    "count": 1,
                    "percentage": 100.0,
                    "description": "Too many requests",
                }
            ],
            "byEndpoint": [{"endpoint": "GET /v1/score/{identity}", "count": 1, "percentage": 100.0}],
            "byStatusCode": [{"statusCode": 429, "count": 1, "percentage": 100.0}],
        },
        "rateLimits": {
            "current": {"requestsPerMinute": 300, "requestsPerHour": 10000, "requestsPerDay": 100000},
            "usage": {"requestsPerMinute": 1, "requestsPerHour": 1, "requestsPerDay": 1},
            "utilization": {"requestsPerMinute": 0.33, "requestsPerHour": 0.01, "requestsPerDay": 0.0},
        },
        "alerts": [
            {
                "type": "error_rate",
                "message": "Error rate is 25%: 1 of 4 requests failed",
                "priority": "high",
                "recommendation": "Back off on 429 responses: wait as long as Retry-After says",
            }
        ],
        "pagination": {"total": 2, "limit": 100, "offset": 0, "hasMore": False},
        "timestamp": "2026-03-18T12:00:00Z",
    }
    body = json.loads(found.text)
    assert body == expected
    # Order too: dumps keeps it, and numbers are equal by now.
    assert json.dumps(_shape(body)) == json.dumps(_shape(expected))


def _shape(value: Any) -> Any:
    if isinstance(value, dict):
        return [[name, _shape(member)] for name, member in value.items()]
    return [_shape(item) for item in value] if isinstance(value, list) else None


def test_case_2_timeframes_and_granularities(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, {})
    for timeframe in ("1h", "24h", "7d", "30d", "90d", "1y", "all"):
        assert vendor.usage(customer, timeframe=timeframe, **BARE)["usage"]["totalRequests"] == 1
    for granularity in ("minute", "hour", "day", "week", "month"):
        for name in ("granularity", "interval"):
            assert vendor.usage(customer, **{name: granularity}, **BARE)["pagination"]["total"] == 1
    for value in ("2h", "", "24H", "1h\x00"):
        found = vendor.call("GET", USAGE, customer.secret, {"timeframe": value})
        is_error(found, 400, "INVALID_TIMEFRAME", "Invalid timeframe", "supported")
        assert found.json()["supported"] == ["1h", "24h", "7d", "30d", "90d", "1y", "all"]
    for value in ("second", "", "Hour"):
        found = vendor.call("GET", USAGE, customer.secret, {"granularity": value})
        is_error(found, 400, "INVALID_GRANULARITY", "Invalid granularity", "supported")
        assert found.json()["supported"] == ["minute", "hour", "day", "week", "month"]
        assert "x-ratelimit-limit" in found.headers


def test_case_2_a_window_rolls_and_buckets_are_aligned(local: Local) -> None:
    """Each timeframe has the request at its start and not the one just before it."""
    customer = local.customer()
    for span in TIMEFRAMES.values():
        if span is not None:
            local.record(customer, NOON - span)
            local.record(customer, NOON - span - timedelta(microseconds=1))
    counts = [local.usage(customer, timeframe=name, **BARE)["usage"]["totalRequests"] for name in TIMEFRAMES]
    assert counts == [1, 3, 5, 7, 9, 11, 12]
    week = local.usage(customer, timeframe="7d", granularity="week", sort="timestamp", order="asc")
    assert [p["timestamp"] for p in week["timeSeries"]] == ["2026-03-09T00:00:00Z", "2026-03-16T00:00:00Z"]
    month = local.usage(customer, timeframe="30d", granularity="month", sort="timestamp", order="asc")
    assert [p["timestamp"] for p in month["timeSeries"]] == ["2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"]


def test_case_3_limit_and_offset_have_bounds(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, {})
    assert vendor.usage(customer, limit=1000)["pagination"]["limit"] == 1000
    bad = [("limit", v) for v in ("1001", "0", "x", "", "-1", "1.5", "٣")] + [
        ("offset", "-1"),
        ("offset", "x"),
    ]
    for name, value in bad:
        found = vendor.call("GET", USAGE, customer.secret, {name: value})
        is_error(found, 400, "INVALID_PARAMETER", f"Invalid parameter: {name}")


def test_other_bad_parameters_are_400(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, {})
    for name in (
        "includeBreakdown",
        "includeErrors",
        "includeLatency",
        "sort",
        "sortBy",
        "order",
        "sortOrder",
    ):
        for value in ("maybe", ""):
            found = vendor.call("GET", USAGE, customer.secret, {name: value})
            is_error(found, 400, "INVALID_PARAMETER", f"Invalid parameter: {name}", "supported")
    found = vendor.call("GET", USAGE, customer.secret, {"sort": "latency", "includeLatency": "0"})
    is_error(found, 400, "INVALID_PARAMETER", "Invalid parameter: sort", "supported")
    assert found.json()["supported"] == ["requests", "errors", "timestamp"]
    assert "breakdown" in vendor.usage(customer, includeBreakdown="TRUE", unknown="1")


def test_case_4_order_is_request_count_descending(local: Local) -> None:
    customer = local.customer()
    for hours, count, status, latency_ms in (
        (4, 1, 500, 10),
        (3, 3, 200, 30),
        (2, 3, 200, 20),
        (1, 2, 500, 5),
    ):
        at = NOON - timedelta(hours=hours)
        local.record(
            customer, at, count, status=status, latency_ms=latency_ms, method="GET", route=f"/r{hours}"
        )

    def hours(**params: str) -> list[int]:
        body = local.usage(customer, **params)
        groups = [item["endpoint"] for item in body["breakdown"]["byEndpoint"]]
        found = [12 - datetime.fromisoformat(p["timestamp"]).hour for p in body["timeSeries"]]
        # Ties differ: earlier hours against smaller names.
        assert params or groups == ["GET /r2", "GET /r3", "GET /r1", "GET /r4"]
        return found

    assert hours() == [3, 2, 1, 4]
    for sort, order in (("sort", "order"), ("sortBy", "sortOrder")):
        assert hours(**{sort: "timestamp", order: "asc"}) == [4, 3, 2, 1]
        assert hours(**{sort: "timestamp"}) == [1, 2, 3, 4]
        assert hours(**{sort: "errors"}) == [1, 4, 3, 2]
        assert hours(**{sort: "latency"}) == [3, 2, 4, 1]
        assert hours(**{order: "asc"}) == [4, 1, 3, 2]
    by_endpoint = local.usage(customer, sort="timestamp")["errors"]["byEndpoint"]
    assert [item["endpoint"] for item in by_endpoint] == ["GET /r1", "GET /r4"]


def test_case_5_each_flag_removes_its_part_only(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, {"latency_ms": 10, "method": "GET", "route": "/x"})
    assert list(vendor.usage(customer)) == PARTS
    for flag, part in (("includeBreakdown", "breakdown"), ("includeErrors", "errors")):
        for value in ("false", "0", "False"):
            assert list(vendor.usage(customer, **{flag: value})) == [name for name in PARTS if name != part]
    found = vendor.call("GET", USAGE, customer.secret, {"includeLatency": "false"})
    assert list(found.json()) == PARTS
    assert "atency" not in found.text
    assert found.json()["breakdown"]["byKey"][0]["requests"] == 1


def test_case_6_rates_of_95_good_and_5_failed_calls(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, *[{"status": 200}] * 95, *[{"status": 500}] * 5)
    body = vendor.usage(customer)
    assert (body["usage"]["totalRequests"], body["usage"]["successRate"]) == (100, 95)
    assert (body["errors"]["totalErrors"], body["errors"]["errorRate"]) == (5, 5)
    assert body["errors"]["byType"] == [
        {"type": "INTERNAL_ERROR", "count": 5, "percentage": 100, "description": "Internal server error"}
    ]
    assert [alert["message"] for alert in body["alerts"]] == ["Error rate is 5%: 5 of 100 requests failed"]


def test_case_7_the_pages_add_up(local: Local) -> None:
    customer = local.customer()
    for minutes in range(7):
        local.record(customer, NOON - timedelta(minutes=minutes), minutes + 1)
    total, offset, seen = 0, 0, set()
    while True:
        body = local.usage(customer, granularity="minute", limit=3, offset=offset)
        total += sum(point["requests"] for point in body["timeSeries"])
        seen |= {point["timestamp"] for point in body["timeSeries"]}
        assert body["usage"]["totalRequests"] == 28
        offset += len(body["timeSeries"])
        if not body["pagination"]["hasMore"]:
            break
    assert (total, len(seen), offset) == (28, 7, 7)


def test_case_8_pages_of_24_buckets(local: Local) -> None:
    customer = local.customer()
    for hours in range(24):
        local.record(customer, NOON - timedelta(hours=hours))
    second = local.usage(customer, limit=10, offset=10)
    assert len(second["timeSeries"]) == 10
    assert second["pagination"] == {"total": 24, "limit": 10, "offset": 10, "hasMore": True}
    last = local.usage(customer, limit=10, offset=20)
    assert len(last["timeSeries"]) == 4
    assert last["pagination"] == {"total": 24, "limit": 10, "offset": 20, "hasMore": False}
    beyond = local.usage(customer, offset=1000)
    assert (beyond["timeSeries"], beyond["usage"]["totalRequests"]) == ([], 24)


def test_case_9_key_id_filters_everything(vendor: Vendor) -> None:
    one = vendor.customer(name="One")
    two, foreign = vendor.customer(account=one.account, name="Two"), vendor.customer()
    native = vendor.server.post("/tk/v1/keys", {"account": one.account})["entry"]["id"]
    vendor.record(one, {"status": 500, "route": "/one", "method": "GET"})
    vendor.record(two, {"route": "/two", "method": "GET"}, {"route": "/two", "method": "GET"})
    vendor.record(foreign, {})
    both = vendor.usage(one)
    assert [item["name"] for item in both["breakdown"]["byKey"]] == ["Two", "One"]
    body = vendor.usage(one, keyId=two.key_id)
    assert (body["usage"]["totalRequests"], body["errors"]["totalErrors"]) == (2, 0)
    assert sum(point["requests"] for point in body["timeSeries"]) == 2
    assert [item["endpoint"] for item in body["breakdown"]["byEndpoint"]] == ["GET /two"]
    assert [item["keyId"] for item in body["breakdown"]["byKey"]] == [two.key_id]
    # The caller's own calls are not that key's.
    assert body["rateLimits"]["usage"]["requestsPerDay"] == 0
    for key_id in (foreign.key_id, native, "nobody"):
        found = vendor.call("GET", USAGE, one.secret, {"keyId": key_id})
        is_error(found, 404, "NO_USAGE_DATA", "No usage data found")


def test_case_10_no_traffic_is_404_until_the_timeframe_covers_it(local: Local) -> None:
    customer = local.customer()
    local.record(customer, NOON - timedelta(days=3))
    found = local.call("GET", USAGE, customer.secret)
    is_error(found, 404, "NO_USAGE_DATA", "No usage data found")
    assert "x-ratelimit-limit" in found.headers
    assert local.usage(customer, timeframe="7d")["usage"]["totalRequests"] == 1


@pytest.mark.parametrize(("plan", "most"), [("anylayer-free", 60), ("anylayer-starter", 300)])
def test_case_11_the_call_beyond_the_limit_is_429(local: Local, plan: str, most: int) -> None:
    customer = local.customer(plan=plan)
    local.clock.advance(seconds=15)
    params = {"limit": "0"}  # Bad calls count too, and are quick.
    context = local.site.context(PROFILE)
    key = context.key(customer.key_id)
    assert key is not None
    for count in range(1, most + 1):
        if 5 < count < most - 5:  # As a call does, without the way there and back.
            assert context.pass_limits(key, ROUTE) is None
            continue
        found = local.call("GET", USAGE, customer.secret, params)
        assert (found.status_code, found.headers["x-ratelimit-remaining"]) == (400, str(most - count))
    found = local.call("GET", USAGE, customer.secret)
    is_error(found, 429, "RATE_LIMIT_EXCEEDED", "Too many requests. Please try again later.")
    reset = str(int(NOON.timestamp()) + 60)
    assert [found.headers[name] for name in [*RATE_HEADERS, "retry-after"]] == [str(most), "0", reset, "45"]
    local.clock.advance(seconds=45)
    assert local.call("GET", USAGE, customer.secret, params).status_code == 400


def test_case_12_no_or_a_wrong_bearer_is_401(vendor: Vendor) -> None:
    customer, revoked, inactive = vendor.customer(), vendor.customer(), vendor.customer()
    for key, state in ((revoked, "revoked"), (inactive, "inactive")):
        vendor.server.post(f"/tk/v1/keys/{key.key_id}/state?account={key.account}", {"state": state})
    native = vendor.server.post("/tk/v1/keys", {"account": customer.account})["secret"]
    shoal = vendor.server.post("/tk/v1/keys", {"account": customer.account, "profile": "shoal"})["secret"]
    manager = vendor.server.post("/tk/v1/keys", {"account": customer.account, "role": "management"})["secret"]
    for secret in (
        "", "zk_prod_" + "x" * 32, customer.secret[:-1], customer.secret + "x", customer.secret.upper(),
        revoked.secret, inactive.secret, native, shoal, manager, OPERATOR_KEY,
    ):  # fmt: skip
        found = vendor.call("GET", USAGE, secret, {"timeframe": "bad"})
        is_error(found, 401, "UNAUTHORIZED", "Invalid or missing API key")
    for value in (customer.secret, f"Basic {customer.secret}", "Bearer", f"Bearer x {customer.secret}"):
        found = vendor.ask("GET", USAGE, headers={"Authorization": value})
        is_error(found, 401, "UNAUTHORIZED", "Invalid or missing API key")
    found = vendor.ask("GET", USAGE, headers={"X-API-Key": customer.secret})
    is_error(found, 401, "UNAUTHORIZED", "Invalid or missing API key")


def test_case_12_an_expired_key_is_401(local: Local) -> None:
    customer = local.customer(expires_at=NOON + timedelta(hours=1))
    local.record(customer, NOON)
    alert = local.usage(customer)["alerts"][0]
    assert (alert["type"], alert["priority"]) == ("key_expiry", "medium")
    assert "expires in 1 hour, at 2026-03-18T13:00:00Z" in alert["message"]
    local.clock.advance(seconds=3600)
    is_error(local.call("GET", USAGE, customer.secret), 401, "UNAUTHORIZED", "Invalid or missing API key")


def test_case_13_the_alias_answers_the_same(local: Local) -> None:
    customer = local.customer()
    local.record(customer, NOON, 3, status=500)
    one = local.call("GET", USAGE, customer.secret)
    local.clock.advance(seconds=60)
    two = local.call("GET", "/api" + USAGE, customer.secret, {"timeframe": "24h"})
    assert (one.status_code, list(one.headers)) == (two.status_code, list(two.headers))
    for part in ("timeSeries", "breakdown", "errors", "pagination"):
        assert one.json()[part] == two.json()[part]
    is_error(local.call("GET", "/api" + USAGE), 401, "UNAUTHORIZED", "Invalid or missing API key")


def test_case_14_utilization_is_usage_of_the_limit(local: Local) -> None:
    customer = local.customer()
    local.record(customer, NOON)
    for _ in range(6):
        found = local.usage(customer)["rateLimits"]
    for name, most in (("requestsPerMinute", 300), ("requestsPerHour", 10_000), ("requestsPerDay", 100_000)):
        assert found["current"][name] == most
        assert found["usage"][name] == 6
        assert found["utilization"][name] == round(6 / most * 100, 2)
    other = local.customer(account=customer.account)
    assert local.usage(other)["rateLimits"]["usage"]["requestsPerMinute"] == 6, "the nearest key's"


def test_custom_limits_that_are_unset_are_null(local: Local) -> None:
    customer = local.customer(plan="anylayer-enterprise")
    local.record(customer, NOON - timedelta(hours=1), 2)
    local.record(customer, NOON)
    found = local.call("GET", USAGE, customer.secret)
    limits = found.json()["rateLimits"]
    unset = dict.fromkeys(["requestsPerMinute", "requestsPerHour", "requestsPerDay"])
    assert limits["current"] == limits["utilization"] == unset
    assert limits["usage"] == {"requestsPerMinute": 1, "requestsPerHour": 1, "requestsPerDay": 3}
    assert not [name for name in found.headers if name.startswith("x-ratelimit")]


def test_case_15_a_key_is_made_listed_and_revoked(vendor: Vendor) -> None:
    owner = vendor.customer(name="Owner")
    asked = {
        "name": "Production App",
        "description": "Web",
        "permissions": [{"resource": "scores", "actions": ["read"], "restrictions": {"chains": ["1"]}}],
        "rateLimit": {"requestsPerMinute": 100, "burstLimit": 10},
        "expiry": "2099-01-01T00:00:00Z",
        "webhooks": [{"url": "https://example.org/h", "events": ["score.updated"], "secret": "s3cret"}],
        "metadata": {"team": "a"},
    }
    made = vendor.call("POST", KEYS, owner.secret, json=asked)
    assert made.status_code == 201, made.text
    body = made.json()
    assert list(body) == ["success", "apiKey", "keyId", "key", "webhooks", "timestamp"]
    assert body["apiKey"].startswith("zk_prod_")
    assert len(body["apiKey"]) == 8 + 32
    assert list(body["key"]) == [
        "id", "name", "description", "permissions", "rateLimit", "status", "createdAt", "expiry", "lastUsed",
        "usage",
    ]  # fmt: skip
    assert body["key"]["rateLimit"] == {
        "requestsPerMinute": 100,
        "requestsPerHour": 10_000,
        "requestsPerDay": 100_000,
        "burstLimit": 10,
    }
    assert body["key"]["permissions"] == asked["permissions"]
    assert (body["key"]["expiry"], body["key"]["lastUsed"]) == ("2099-01-01T00:00:00Z", None)
    assert body["key"]["usage"] == {"totalRequests": 0, "requestsToday": 0, "requestsThisMonth": 0}
    assert "s3cret" not in made.text
    new = Customer(owner.account, body["keyId"], body["apiKey"])
    vendor.record(new, {}, {})
    assert vendor.usage(new, keyId=new.key_id)["rateLimits"]["current"]["requestsPerMinute"] == 100

    listed = vendor.call("GET", KEYS, owner.secret)
    assert new.secret not in listed.text
    assert owner.secret not in listed.text
    assert "apiKey" not in listed.text
    before = listed.json()
    assert list(before) == ["success", "keys", "pagination", "summary", "timestamp"]
    item = next(key for key in before["keys"] if key["id"] == new.key_id)
    assert list(item)[-3:] == ["usage", "webhooks", "metadata"]
    assert list(item["usage"].items())[:-1] == [
        ("totalRequests", 2), ("requestsToday", 2), ("requestsThisWeek", 2), ("requestsThisMonth", 2),
        ("averageRequestsPerDay", 2), ("peakRequestsPerHour", 2),
    ]  # fmt: skip
    assert item["metadata"] == {"team": "a"}
    assert before["summary"] == {
        "totalKeys": 2, "activeKeys": 2, "inactiveKeys": 0, "expiredKeys": 0, "revokedKeys": 0,
        "totalRequests": 2, "requestsToday": 2, "averageRequestsPerKey": 1,
    }  # fmt: skip

    revoked = vendor.call("DELETE", f"{KEYS}/{new.key_id}", owner.secret)
    assert revoked.status_code == 200, revoked.text
    assert list(revoked.json()) == ["success", "keyId", "status", "revokedAt", "timestamp"]
    assert (revoked.json()["keyId"], revoked.json()["status"]) == (new.key_id, "revoked")
    is_error(vendor.call("GET", USAGE, new.secret), 401, "UNAUTHORIZED", "Invalid or missing API key")
    after = vendor.call("GET", KEYS, owner.secret, {"limit": 1}).json()
    assert after["summary"]["revokedKeys"] == before["summary"]["revokedKeys"] + 1
    assert after["pagination"] == {"total": 2, "limit": 1, "offset": 0, "hasMore": True}
    again = vendor.call("DELETE", f"{KEYS}/{new.key_id}", owner.secret)
    assert again.json()["revokedAt"] == revoked.json()["revokedAt"]


def test_bad_keys_are_refused(vendor: Vendor) -> None:
    owner, stranger = vendor.customer(), vendor.customer()

    def post(body: Any) -> Answer:
        return vendor.call("POST", KEYS, owner.secret, json=body)

    for permissions in (
        [],
        ["root"],
        "read",
        [{"resource": "x", "actions": ["read"]}],
        [{"resource": "all"}],
    ):
        is_error(
            post({"name": "n", "permissions": permissions}), 400, "INVALID_PERMISSIONS", "Invalid permissions"
        )
    for rate in (301, {"requestsPerMinute": 301}, {"requestsPerHour": 10_001}):
        is_error(post({"name": "n", "rateLimit": rate}), 400, "RATE_LIMIT_TOO_HIGH", "Rate limit too high")
    for field, value in (
        ("name", None), ("name", ""), ("name", 1), ("description", 1), ("rateLimit", "x"), ("expiry", "soon"),
        ("expiry", "2020-01-01T00:00:00Z"), ("webhooks", [{}]), ("metadata", []),
    ):  # fmt: skip
        is_error(post({"name": "n", field: value}), 400, "INVALID_PARAMETER", f"Invalid parameter: {field}")
    for content in (b"", b"{", b"[]", b"\xff"):
        found = vendor.call("POST", KEYS, owner.secret, data=content)
        is_error(found, 400, "INVALID_PARAMETER", "Invalid parameter: body")
    short = post({"name": "n", "permissions": ["write"], "rateLimit": 50}).json()
    assert short["key"]["rateLimit"]["requestsPerMinute"] == 50
    writer = short["apiKey"]
    for method, path in (("GET", USAGE), ("GET", KEYS), ("POST", KEYS), ("DELETE", f"{KEYS}/{owner.key_id}")):
        found = vendor.call(method, path, writer, json={"name": "n"} if method == "POST" else None)
        is_error(found, 403, "FORBIDDEN", "Insufficient permissions for this operation")
    for key_id in (stranger.key_id, "nobody"):
        found = vendor.call("DELETE", f"{KEYS}/{key_id}", owner.secret)
        is_error(found, 404, "KEY_NOT_FOUND", "API key not found")
    assert vendor.call("GET", KEYS, stranger.secret).json()["summary"]["activeKeys"] == 1


def test_unknown_paths_and_methods(vendor: Vendor) -> None:
    is_error(vendor.call("GET", "/v1/developer/none"), 404, "NOT_FOUND", "Resource not found")
    found = vendor.call("POST", USAGE)
    is_error(found, 405, "METHOD_NOT_ALLOWED", "Method not allowed")
    assert found.headers["allow"] == "GET"


def test_alerts_name_their_figures(local: Local) -> None:
    """Latency doubled, the minute nearly used up, a key about to expire; in the order of the setting."""
    customer = local.customer(plan="anylayer-free", name="Prod", expires_at=NOON + timedelta(days=5))
    local.record(customer, NOON - timedelta(hours=30), latency_ms=50)
    local.record(customer, NOON - timedelta(hours=1), latency_ms=100)
    for _ in range(47):
        local.call("GET", USAGE, customer.secret, {"limit": "0"})
    found = local.usage(customer)["alerts"]
    assert [(alert["type"], alert["priority"]) for alert in found] == [
        ("rate_limit", "medium"), ("latency", "medium"), ("key_expiry", "medium"),
    ]  # fmt: skip
    assert [alert["message"] for alert in found] == [
        "48 of 60 requests per minute are used: 80%",
        "Average latency is 100 ms, 2 times the 50 ms of the window before",
        "Key Prod expires in 5 days, at 2026-03-23T12:00:00Z",
    ]
    for _ in range(8):
        local.call("GET", USAGE, customer.secret, {"limit": "0"})
    assert local.usage(customer, timeframe="1h")["alerts"][0]["priority"] == "high"


def test_metered_traffic_speaks_the_dialect(local: Local) -> None:
    """Through the middleware and through `authorize`: headers, 401, 429 and what the statistics say."""
    customer = local.customer(plan="anylayer-free")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    metered = Tollkeeper(local.site).middleware(app, profile="anylayer")
    bearer = {"Authorization": f"Bearer {customer.secret}"}
    found = local.request("GET", "/v1/score/alice", app=metered, headers=bearer)
    reset = str(int(NOON.timestamp()) + 60)
    assert (found.status_code, [found.headers[name] for name in RATE_HEADERS]) == (200, ["60", "59", reset])
    body = {"key": customer.secret, "method": "GET", "path": "/v1/score/bob", "profile": "anylayer"}
    authorized = local.operate("/tk/v1/authorize", body)
    assert [authorized.headers[name] for name in RATE_HEADERS] == ["60", "58", reset]
    for _ in range(58):
        local.call("GET", USAGE, customer.secret, {"limit": "0"})
    for refused in (
        local.request("GET", "/v1/score/x", app=metered, headers=bearer),
        local.operate("/tk/v1/authorize", body),
    ):
        is_error(refused, 429, "RATE_LIMIT_EXCEEDED", "Too many requests. Please try again later.")
        assert [refused.headers[name] for name in [*RATE_HEADERS, "retry-after"]] == ["60", "0", reset, "60"]
    unknown = local.request("GET", "/v1/score/x", app=metered, headers={"Authorization": "Bearer zk_prod_x"})
    is_error(unknown, 401, "UNAUTHORIZED", "Invalid or missing API key")
    nowhere = local.request("GET", "/elsewhere", app=metered, headers=bearer)
    is_error(nowhere, 404, "NOT_FOUND", "Resource not found")
    local.clock.advance(seconds=60)
    errors = local.usage(customer, timeframe="1h")["errors"]
    assert {"statusCode": 429, "count": 2, "percentage": 66.67} in errors["byStatusCode"]


def test_a_used_up_budget_is_402(local: Local) -> None:
    customer = local.customer()
    set_up(
        local.site,
        Budget(id="cap", account=customer.account, amount=0, unit="requests"),
    )
    body = {"key": customer.secret, "method": "GET", "path": "/v1/score/bob", "profile": "anylayer"}
    found = local.operate("/tk/v1/authorize", body)
    is_error(found, 402, "QUOTA_EXCEEDED", "Quota exceeded")
    assert found.headers["x-ratelimit-limit"] == "300"


def test_a_store_that_is_away_is_500(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    customer = local.customer()

    def away(query: Any) -> Any:
        raise Unavailable("the usage store at 10.0.0.1 is away")

    monkeypatch.setattr(local.site.reports, "usage", away)
    is_error(local.call("GET", USAGE, customer.secret), 500, "INTERNAL_ERROR", "Internal server error")


def test_switches_change_what_the_vendor_leaves_open(local: Local) -> None:
    """No data as 200, recorded consumption, every kind of alert."""
    customer = local.customer(name="Prod")
    set_up(local.site, Budget(id="cap", account=customer.account, amount=1000))
    kinds = ["key_idle", "budget", "error_rate"]
    context = local.site.context(PROFILE)
    context.settings = {
        **context.settings,
        "no_data_status": 200,
        "rate_limit_usage": "recorded",
        "alerts": kinds,
        "alert_thresholds": {"idle_days": 1},
    }

    def ask() -> Any:
        headers = {"authorization": f"Bearer {customer.secret}"}
        call = Call("GET", USAGE, {}, headers, b"", {}, local.clock.now(), "req_1", context.settings)
        reply = ProfileSite(PROFILE, context).answer(call)
        assert reply.status == 200, reply
        return reply.body

    empty = ask()
    assert list(empty) == PARTS
    assert (empty["usage"]["totalRequests"], empty["usage"]["successRate"]) == (0, 0)
    assert (empty["timeSeries"], empty["alerts"]) == ([], [])
    assert empty["rateLimits"]["usage"]["requestsPerMinute"] == 0
    local.record(customer, NOON, cost_nanos=900)
    local.clock.advance(seconds=86_400)
    found = ask()
    assert found["rateLimits"]["usage"] == {"requestsPerMinute": 0, "requestsPerHour": 0, "requestsPerDay": 0}
    assert [alert["message"] for alert in found["alerts"]] == [
        "Key Prod was last used 1 day ago",
        "Budget cap is 90% used",
    ]


def test_error_types_are_named() -> None:
    assert error_type("", 503) == "INTERNAL_ERROR"
    assert error_type("", 418) == "HTTP_418"
    assert error_type("upstream_timeout", 504) == "upstream_timeout"
    assert description("upstream_timeout") == "Upstream timeout"


EVENTS = st.lists(
    st.fixed_dictionaries(
        {"status": st.sampled_from([200, 201, 400, 404, 429, 500]), "hours": st.integers(0, 40)},
        optional={
            "latency_ms": st.integers(0, 10_000).map(lambda tenths: tenths / 10),
            "bytes_out": st.integers(0, 10**6),
            "route": st.sampled_from(["/a", "/b"]),
            "method": st.sampled_from(["GET", "POST"]),
            "error_type": st.sampled_from(["", "rate_limited", "boom"]),
        },
    ),
    min_size=1,
    max_size=20,
)


@settings(
    max_examples=effort(3, 6), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=EVENTS, sort=st.sampled_from(["requests", "errors", "latency", "timestamp"]))
def test_whatever_was_recorded_the_answer_fits_and_agrees(
    local: Local, events: list[dict[str, Any]], sort: str
) -> None:
    """The shape is whole and the numbers are those of the native answer of the same range."""
    customer = local.customer(plan="anylayer-professional")
    sent = []
    for event in events:
        at = NOON - timedelta(hours=event["hours"], seconds=1)
        fields = {name: value for name, value in event.items() if name != "hours"}
        sent.append({"id": unique("e"), "time": at.isoformat(), "key_id": customer.key_id, **fields})
    assert local.operate("/tk/v1/events", sent).json()["accepted"] == len(sent)
    answer = local.call("GET", USAGE, customer.secret, {"timeframe": "7d", "sort": sort})
    body = msgspec.json.decode(answer.content, type=UsageBody, strict=True)
    query = (
        f"/tk/v1/usage?account={customer.account}&from=2026-03-11T12:00:00Z&to=2026-03-18T12:00:01Z"
        "&measures=requests,failed,latency_ms_avg,latency_ms_max,bytes_out,peak_requests_per_hour"
    )
    native = local.request("GET", query, headers=OPERATOR).json()["totals"]
    usage = body.usage
    assert (usage.totalRequests, usage.failedRequests) == (native["requests"], native["failed"])
    assert usage.averageLatency == round(native["latency_ms_avg"] or 0, 2)
    assert usage.peakLatency == (native["latency_ms_max"] or 0)
    assert usage.dataTransferred == native["bytes_out"]
    assert usage.peakRequestsPerHour == native["peak_requests_per_hour"]
    assert usage.successRate + body.errors.errorRate == pytest.approx(100)
    for groups in (
        body.timeSeries, body.breakdown.byEndpoint, body.breakdown.byMethod, body.breakdown.byStatusCode,
        body.breakdown.byKey,
    ):  # fmt: skip
        assert sum(group.requests for group in groups) == usage.totalRequests
    for counts in (body.errors.byType, body.errors.byEndpoint, body.errors.byStatusCode):
        assert sum(item.count for item in counts) == body.errors.totalErrors == usage.failedRequests
