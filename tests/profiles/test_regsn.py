"""RegSn's dialect: the acceptance cases of its specification, and what surrounds them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, cast

import httpx
import msgspec
import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conftest import Install
from tests.effort import effort
from tests.end_to_end.server import OPERATOR_KEY, Server
from tests.profiles import places
from tests.profiles.conftest import OpenApp
from tests.profiles.places import NODE, Answer, Client, Remote, application, needs_node
from tollkeeper.catalog.declaration import apply_declaration, parse_declaration
from tollkeeper.domain.catalog import Account, Budget, Entry, Grant, Key, Plan
from tollkeeper.domain.iso8601 import parse_instant
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.money import NANOS_PER_CENT, cents_half_up
from tollkeeper.embedded import Tollkeeper
from tollkeeper.profiles.base import Profile
from tollkeeper.profiles.regsn import PROFILE
from tollkeeper.testing import NOON, Faulty, ManualClock, commit_all, set_up, unique

CENT: Final = NANOS_PER_CENT
JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json; charset=utf-8"
RATE_HEADERS: Final = ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset")
UUID_PATTERN: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


class Totals(msgspec.Struct, forbid_unknown_fields=True):
    request_count: int
    scan_count: int
    export_count: int
    total_cost_cents: int


class Bucket(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    request_count: int
    scan_count: int
    export_count: int
    cost_cents: int


class Filters(msgspec.Struct, forbid_unknown_fields=True, rename={"start": "from"}):
    start: str
    to: str
    group_by: str


class UsageBody(msgspec.Struct, forbid_unknown_fields=True):
    """The answer of `/v1/usage`, nothing more and nothing less."""

    totals: Totals
    buckets: list[Bucket]
    filters: Filters


class Customer(NamedTuple):
    """One account with one key."""

    account: str
    key_id: str
    secret: str


class Vendor(Remote):
    """RegSn as the running server speaks it, at one of its two places."""

    def send(
        self, method: str, path: str, credential: str | None = None, **options: Any
    ) -> requests.Response:
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        headers |= options.pop("headers", {})
        return self.ask(method, path, headers=headers, **options)

    def usage(self, credential: str, **params: str) -> Any:
        """Return the body of a good answer, whose shape is checked."""
        found = self.send("GET", "/v1/usage", credential, params=params)
        assert (found.status_code, found.headers["content-type"]) == (200, JSON), found.text
        assert found.text == msgspec.json.encode(msgspec.json.decode(found.content, type=UsageBody)).decode()
        return found.json()

    def customer(self, *, budget_nanos: int | None = None, **key: Any) -> Customer:
        account = unique("acct")
        self.server.put(f"/tk/v1/accounts/{account}", {"name": "Acme", "plan": "regsn"})
        if budget_nanos is not None:
            self.set_budget(account, budget_nanos)
        made = self.server.post("/tk/v1/keys", {"account": account, "profile": "regsn", **key})
        return Customer(account, made["entry"]["id"], made["secret"])

    def set_budget(self, account: str, amount_nanos: int) -> None:
        """Set the pool of an account; raising it is a top-up."""
        body = {"account": account, "amount": str(amount_nanos)}
        self.server.put(f"/tk/v1/budgets/pool?account={account}", body)

    def session(self, account: str, user: str = "ada") -> str:
        token: str = self.server.post("/tk/v1/sessions", {"account": account, "user": user})["token"]
        return token

    def record(self, customer: Customer, *events: Mapping[str, Any]) -> list[str]:
        """Book events by the customer's key; return their ids."""
        return self.book(customer.key_id, *({"cost_nanos": 0, **event} for event in events))

    def authorize(self, secret: str, path: str, method: str = "POST", **fields: Any) -> requests.Response:
        """Send a request of the provider's API through the gate, as a proxy of theirs would."""
        body = {"key": secret, "method": method, "path": path, "profile": "regsn", **fields}
        return self.operate("/tk/v1/authorize", body)


@pytest.fixture
def vendor(server: Server, base: str, client: Client) -> Vendor:
    return Vendor(server, base, client)


class Local(places.Local):
    """The application in this process."""

    def send(self, method: str, path: str, credential: str | None = None, **options: Any) -> httpx.Response:
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        return self.request(method, self.base + path, headers=headers, **options)

    def usage(self, credential: str, **params: str) -> Any:
        found = self.send("GET", "/v1/usage", credential, params=params)
        assert found.status_code == 200, found.text
        return found.json()

    def authorize(self, customer: Customer, path: str, method: str = "POST", **fields: Any) -> httpx.Response:
        body = {"key": customer.secret, "method": method, "path": path, **fields}
        return self.operate("/tk/v1/authorize", body)

    def settle(self, admitted: httpx.Response, **fields: Any) -> None:
        body = {"hold_id": admitted.json()["hold_id"], **fields}
        assert self.operate("/tk/v1/settle", body).status_code == 200

    def customer(
        self, *entries: Entry, plan: str | None = "regsn", budget_nanos: int | None = None, **key: Any
    ) -> Customer:
        account, key_id = unique("acct"), str(uuid.uuid4())
        made: list[Entry] = [
            Account(id=account, name="Acme", plan=plan),
            Key(**{"id": key_id, "account": account, "profile": "regsn", **key}),
            *entries,
        ]
        if budget_nanos is not None:
            made.append(Budget(id="pool", account=account, amount=budget_nanos))
        return Customer(account, key_id, set_up(self.site, *made).get(key_id, ""))

    def record(self, customer: Customer, *events: Mapping[str, Any]) -> None:
        self.book(customer.key_id, self.site.clock.now(), *({"cost_nanos": 0, **event} for event in events))

    def session(self, account: str, user: str = "ada", ttl_s: int = 3600) -> str:
        return self.site.sessions.issue(account, user, ttl_s)


LocalWith = Callable[..., Local]


@pytest.fixture
def local_with(open_app: OpenApp, base: str) -> LocalWith:
    """Makes the installation of the test, with switches of the profile."""
    return lambda **switches: Local(open_app(**switches), base)


@pytest.fixture
def local(local_with: LocalWith) -> Local:
    return local_with()


PROBLEMS: Final = {
    "invalid_request": ("invalid_request", "Invalid request", 400),
    "authentication_required": ("auth", "Authentication required", 401),
    "authentication_invalid": ("auth", "Authentication invalid", 401),
    "budget_exhausted": ("budget_exhausted", "Budget exhausted", 402),
    "forbidden": ("forbidden", "Forbidden", 403),
    "not_found": ("not_found", "Not found", 404),
    "validation_error": ("validation", "Validation error", 422),
    "rate_limit_exceeded": ("rate_limited", "Rate limit exceeded", 429),
    "internal_error": ("internal", "Internal error", 500),
    "service_unavailable": ("unavailable", "Service unavailable", 503),
}


def is_problem(
    found: Answer, code: str, instance: str, detail: str | None = None, errors: list[Any] | None = None
) -> None:
    """Check status, type and the whole document with its member order."""
    slug, title, status = PROBLEMS[code]
    body = found.json()
    assert found.status_code == status, found.text
    assert found.headers["content-type"] == PROBLEM
    expected = {
        "type": f"https://api.regsn.app/problems/{slug}",
        "title": title,
        "status": status,
        "detail": body["detail"] if detail is None else detail,
        "instance": instance,
        "code": code,
        "request_id": found.headers["x-request-id"],
    }
    if errors is not None:
        expected["errors"] = errors
    assert list(body.items()) == list(expected.items())
    assert body["detail"]
    assert body["request_id"].startswith("req_")


def rate(found: Answer) -> tuple[int, int, int]:
    limit, remaining, reset = (int(found.headers[name]) for name in RATE_HEADERS)
    return limit, remaining, reset


def summed(body: Any) -> dict[str, int]:
    """Return what the buckets of an answer add up to, under the names of the totals."""
    names = {name: name for name in ("request_count", "scan_count", "export_count")}
    names["total_cost_cents"] = "cost_cents"
    return {total: sum(bucket[of] for bucket in body["buckets"]) for total, of in names.items()}


SCAN: Final = {"method": "POST", "route": "/v1/scans", "kind": "scan"}
EXPORT: Final = {"method": "POST", "route": "/v1/exports", "kind": "export"}
READ: Final = {"method": "GET", "route": "/v1/scans/{id}", "kind": "read"}


# -- acceptance ------------------------------------------------------------------------------------------------


def test_case_1_no_parameters_is_thirty_days_by_day(vendor: Vendor) -> None:
    customer = vendor.customer()
    now = datetime.now(UTC)
    for days in (29, 1, 12, 31):
        vendor.record(customer, {**READ, "time": (now - timedelta(days=days)).isoformat()})
    before = datetime.now(UTC)
    body = vendor.usage(customer.secret)
    start, end = (datetime.fromisoformat(body["filters"][name]) for name in ("from", "to"))
    assert end - start == timedelta(days=30)
    assert before - timedelta(milliseconds=1) <= end <= datetime.now(UTC)
    assert body["filters"]["group_by"] == "day"
    days_shown = [(now - timedelta(days=days)).strftime("%Y-%m-%d") for days in (29, 12, 1)]
    assert [bucket["key"] for bucket in body["buckets"]] == days_shown
    assert body["totals"]["request_count"] == 3


def test_case_1_to_the_letter(local: Local) -> None:
    customer = local.customer()
    found = local.send("GET", "/v1/usage", customer.secret)
    assert found.text == (
        '{"totals":{"request_count":0,"scan_count":0,"export_count":0,"total_cost_cents":0},"buckets":[],'
        '"filters":{"from":"2026-02-16T12:00:00.000Z","to":"2026-03-18T12:00:00.000Z","group_by":"day"}}'
    )
    assert (found.status_code, found.headers["content-type"]) == (200, JSON)
    assert rate(found) == (60, 59, 60)


def test_case_2_the_range_is_echoed_in_milliseconds(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, {**READ, "time": "2026-05-15T12:00:00.123455Z"})
    vendor.record(customer, {**READ, "time": "2026-05-15T12:00:00.123456Z"})
    vendor.record(customer, {**READ, "time": "2026-04-15T00:00:00Z"})
    asked = {"from": "2026-04-15T00:00:00Z", "to": "2026-05-15T12:00:00.123456+00:00"}
    body = vendor.usage(customer.secret, **asked)
    assert body["filters"] == {
        "from": "2026-04-15T00:00:00.000Z", "to": "2026-05-15T12:00:00.123Z", "group_by": "day",
    }  # fmt: skip
    assert body["totals"]["request_count"] == 2, "from is inclusive, to exclusive"
    # A client that does not escape the plus sign.
    url = "/v1/usage?from=2026-04-15&to=2026-05-15T12:00:00.123456+00:00"
    assert vendor.send("GET", url, customer.secret).json() == body


def test_case_3_a_day_without_requests_has_no_bucket(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, {**SCAN, "time": "2026-04-15T23:59:59.999999Z", "cost_nanos": 18 * CENT})
    vendor.record(customer, {**EXPORT, "time": "2026-04-17T00:00:00Z", "cost_nanos": 9 * CENT})
    body = vendor.usage(customer.secret, **{"from": "2026-04-01", "to": "2026-05-01"})
    assert body["buckets"] == [
        {"key": "2026-04-15", "request_count": 1, "scan_count": 1, "export_count": 0, "cost_cents": 18},
        {"key": "2026-04-17", "request_count": 1, "scan_count": 0, "export_count": 1, "cost_cents": 9},
    ]


def test_case_4_endpoints_are_in_the_order_of_their_cost(vendor: Vendor) -> None:
    customer = vendor.customer()
    other = {"method": "GET", "route": "/v1/snapshots", "kind": "read"}
    vendor.record(
        customer, READ, READ, other, other, {"method": "GET", "route": "/v1/exports/{id}", "kind": "read"},
        {**SCAN, "cost_nanos": 5 * CENT}, {**EXPORT, "cost_nanos": 4 * CENT}, {**EXPORT, "cost_nanos": 4 * CENT},
    )  # fmt: skip
    body = vendor.usage(customer.secret, group_by="endpoint")
    assert body["buckets"] == [
        {"key": "POST /v1/exports", "request_count": 2, "scan_count": 0, "export_count": 2, "cost_cents": 8},
        {"key": "POST /v1/scans", "request_count": 1, "scan_count": 1, "export_count": 0, "cost_cents": 5},
        {
            "key": "GET /v1/scans/{id}",
            "request_count": 2,
            "scan_count": 0,
            "export_count": 0,
            "cost_cents": 0,
        },
        {"key": "GET /v1/snapshots", "request_count": 2, "scan_count": 0, "export_count": 0, "cost_cents": 0},
        {
            "key": "GET /v1/exports/{id}",
            "request_count": 1,
            "scan_count": 0,
            "export_count": 0,
            "cost_cents": 0,
        },
    ]
    assert body["filters"]["group_by"] == "endpoint"


def test_case_5_keys_are_uuids_and_session_traffic_is_none(vendor: Vendor) -> None:
    account = vendor.customer().account
    session = vendor.session(account)
    made = [vendor.send("POST", "/v1/keys", session, json={"name": name}).json() for name in ("a", "b")]
    for each, cents in zip(made, (3, 5), strict=True):
        vendor.record(Customer(account, each["id"], each["key"]), {**SCAN, "cost_nanos": cents * CENT})
    # The dashboard's own calls, and the requests that the provider's UI made for a signed-in user.
    assert vendor.usage(session, group_by="key")["buckets"][-1]["key"] != "(none)"
    ui = {**EXPORT, "account": account, "key_id": None, "cost_nanos": 4 * CENT}
    vendor.record(Customer(account, "", ""), ui)
    assert vendor.send("DELETE", f"/v1/keys/{made[0]['id']}", session).status_code == 204
    body = vendor.usage(made[1]["key"], group_by="key")
    assert body["buckets"] == [
        {"key": made[1]["id"], "request_count": 1, "scan_count": 1, "export_count": 0, "cost_cents": 5},
        {"key": "(none)", "request_count": 2, "scan_count": 0, "export_count": 1, "cost_cents": 4},
        {"key": made[0]["id"], "request_count": 1, "scan_count": 1, "export_count": 0, "cost_cents": 3},
    ], "all keys of the account, revoked ones too"
    for each in made:
        assert uuid.UUID(each["id"]).version == 4


def test_case_6_the_totals_are_the_sum_over_the_buckets_of_each_axis(vendor: Vendor) -> None:
    customer = vendor.customer()
    for day in range(1, 6):
        time = f"2026-04-{day:02}T10:00:00Z"
        vendor.record(
            customer, {**READ, "time": time}, {**SCAN, "time": time, "cost_nanos": day * CENT},
            {**EXPORT, "time": time, "cost_nanos": 7 * CENT, "account": customer.account, "key_id": None},
        )  # fmt: skip
    asked = {"from": "2026-04-01", "to": "2026-05-01"}
    bodies = [vendor.usage(customer.secret, **asked, group_by=axis) for axis in ("day", "endpoint", "key")]
    assert [len(body["buckets"]) for body in bodies] == [5, 3, 2]
    for body in bodies:
        assert body["totals"] == summed(body)
        assert body["totals"] == {
            "request_count": 15, "scan_count": 5, "export_count": 5, "total_cost_cents": 50,
        }  # fmt: skip


def test_case_7_a_hundred_reads_cost_nothing(vendor: Vendor) -> None:
    customer = vendor.customer()
    vendor.record(customer, *[{**READ, "cost_nanos": None}] * 100)
    totals = vendor.usage(customer.secret)["totals"]
    assert totals == {"request_count": 100, "scan_count": 0, "export_count": 0, "total_cost_cents": 0}


def test_case_7_reads_through_the_gate_are_free_with_no_budget_left(local: Local, clock: ManualClock) -> None:
    customer = local.customer(budget_nanos=0)
    for number in range(20):
        clock.advance(seconds=1)
        admitted = local.authorize(customer, f"/v1/scans/s{number}", "GET")
        assert admitted.json()["held_nanos"] == "0"
        local.settle(admitted)
    clock.advance(seconds=60)
    body = local.usage(customer.secret, group_by="endpoint")
    assert body["totals"]["request_count"] == 20
    assert (body["buckets"][0]["key"], body["buckets"][0]["cost_cents"]) == ("GET /v1/scans/{id}", 0)


def test_case_8_the_actual_cost_replaces_the_estimate_in_the_same_bucket(vendor: Vendor) -> None:
    customer = vendor.customer()
    day = {"time": "2026-04-15T10:00:00Z"}
    (event_id,) = vendor.record(
        customer, {**SCAN, **day, "cost_nanos": None, "estimated_cost_nanos": 10 * CENT}
    )
    asked = {"from": "2026-04-01", "to": "2026-05-01"}
    bucket = {"key": "2026-04-15", "request_count": 1, "scan_count": 1, "export_count": 0}
    body = vendor.usage(customer.secret, **asked)
    assert (body["buckets"], body["totals"]["total_cost_cents"]) == ([{**bucket, "cost_cents": 10}], 10)
    path = f"/tk/v1/events/{event_id}/amend?account={customer.account}"
    vendor.server.post(path, {"cost_nanos": str(14 * CENT)} | {"cost_nanos": 14 * CENT})
    body = vendor.usage(customer.secret, **asked)
    assert (body["buckets"], body["totals"]["total_cost_cents"]) == ([{**bucket, "cost_cents": 14}], 14)


def test_case_8_through_the_gate(vendor: Vendor) -> None:
    customer = vendor.customer(budget_nanos=20 * CENT)
    admitted = vendor.authorize(customer.secret, "/v1/scans", cost_nanos=10 * CENT).json()
    vendor.server.post(
        "/tk/v1/settle", {"hold_id": admitted["hold_id"], "status": 202, "estimated_cost_nanos": 10 * CENT}
    )
    assert vendor.usage(customer.secret, group_by="key")["totals"]["total_cost_cents"] == 10
    path = f"/tk/v1/events/{admitted['hold_id']}/amend?account={customer.account}"
    vendor.server.post(path, {"cost_nanos": 14 * CENT})
    (bucket,) = vendor.usage(customer.secret, group_by="key")["buckets"]
    # The usage call before this one is a free request of the same key.
    assert bucket == {
        "key": customer.key_id, "request_count": 2, "scan_count": 1, "export_count": 0, "cost_cents": 14,
    }  # fmt: skip
    refused = vendor.authorize(customer.secret, "/v1/scans", cost_nanos=7 * CENT)
    assert refused.status_code == 402, "6 cents are left"
    assert vendor.authorize(customer.secret, "/v1/scans", cost_nanos=6 * CENT).status_code == 200


@pytest.mark.parametrize("path", ["/v1/scans", "/v1/exports"])
def test_case_9_without_budget_what_costs_is_402_and_reads_go_on(vendor: Vendor, path: str) -> None:
    customer = vendor.customer(budget_nanos=0)
    for cost_nanos in (None, 0, 1):
        refused = vendor.authorize(customer.secret, path, cost_nanos=cost_nanos)
        is_problem(refused, "budget_exhausted", path, "Monthly budget exhausted. Top up to continue.")
        assert all(name in refused.headers for name in RATE_HEADERS)
        assert "retry-after" not in refused.headers
    assert vendor.authorize(customer.secret, "/v1/snapshots", "GET").status_code == 200
    totals = vendor.usage(customer.secret)["totals"]
    assert totals["total_cost_cents"] == totals["scan_count"] == totals["export_count"] == 0


def test_case_9_the_pool_is_shared_with_the_ui(vendor: Vendor) -> None:
    customer = vendor.customer(budget_nanos=50 * CENT)
    ui = {**SCAN, "account": customer.account, "key_id": None, "cost_nanos": 45 * CENT}
    vendor.record(customer, ui)
    assert vendor.authorize(customer.secret, "/v1/exports", cost_nanos=6 * CENT).status_code == 402
    assert vendor.authorize(customer.secret, "/v1/exports", cost_nanos=5 * CENT).status_code == 200


def test_case_10_a_top_up_lifts_the_block_on_the_next_request(vendor: Vendor) -> None:
    customer = vendor.customer(budget_nanos=0)
    assert vendor.authorize(customer.secret, "/v1/scans", cost_nanos=10 * CENT).status_code == 402
    vendor.set_budget(customer.account, 10 * CENT)
    admitted = vendor.authorize(customer.secret, "/v1/scans", cost_nanos=10 * CENT)
    assert admitted.status_code == 200, admitted.text
    assert vendor.authorize(customer.secret, "/v1/scans").status_code == 402


def test_case_10_a_top_up_of_a_credit_balance(vendor: Vendor) -> None:
    """The other way to hold the pool: keys of type `credit` draw on the account's balance."""
    customer = vendor.customer(type="credit")
    refused = vendor.authorize(customer.secret, "/v1/scans")
    is_problem(refused, "budget_exhausted", "/v1/scans")
    grant = {"account": customer.account, "amount_nanos": str(10 * CENT), "source": "top_up"}
    vendor.server.put(f"/tk/v1/grants/{unique('grant')}?account={customer.account}", grant)
    assert vendor.authorize(customer.secret, "/v1/scans").status_code == 200


def test_case_11_refused_scans_use_up_their_rate_bucket(local: Local, clock: ManualClock) -> None:
    customer = local.customer(budget_nanos=0)
    for number in range(6):
        refused = local.authorize(customer, "/v1/scans")
        is_problem(refused, "budget_exhausted", "/v1/scans")
        assert rate(refused) == (6, 5 - number, 3600)
    seventh = local.authorize(customer, "/v1/scans")
    detail = "Rate limit exceeded for scans bucket. Retry after 3600s."
    is_problem(seventh, "rate_limit_exceeded", "/v1/scans", detail)
    assert (rate(seventh), seventh.headers["retry-after"]) == ((6, 0, 3600), "3600")
    clock.advance(seconds=1)
    commit_all(local.site)
    totals = local.usage(customer.secret)["totals"]
    assert totals == {"request_count": 7, "scan_count": 0, "export_count": 0, "total_cost_cents": 0}
    clock.advance(seconds=3599)
    is_problem(local.authorize(customer, "/v1/scans"), "budget_exhausted", "/v1/scans")


@pytest.mark.parametrize("axis", ["week", "", "Day", "day,key", "month\x00", "__proto__", "é"])
def test_case_12_another_axis_is_422(vendor: Vendor, axis: str) -> None:
    customer = vendor.customer()
    found = vendor.send("GET", "/v1/usage", customer.secret, params={"group_by": axis})
    message = "group_by must be one of day, endpoint, key"
    errors = [{"path": "group_by", "code": "invalid", "message": message}]
    is_problem(found, "validation_error", "/v1/usage", message, errors)
    assert list(found.json()["errors"][0]) == ["path", "code", "message"]
    assert found.headers["content-type"] == PROBLEM
    assert all(name in found.headers for name in RATE_HEADERS)


def test_case_13_without_or_with_bad_credentials_is_401(vendor: Vendor) -> None:
    customer = vendor.customer()
    for headers in ({}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": "Bearer  "},
                    {"Authorization": f"Basic {customer.secret}"}, {"X-API-Key": customer.secret},
                    {"Authorization": customer.secret}):  # fmt: skip
        found = vendor.send("GET", "/v1/usage", headers=headers)
        is_problem(found, "authentication_required", "/v1/usage")
    secret = customer.secret
    assert len(secret) == 43
    for bad in (secret[:-1], secret + "a", secret[:-1] + "-", secret[:-1] + "é", secret.swapcase(), "regsn_live_",
                "regsn_live_" + "A" * 32, OPERATOR_KEY, "a.b.c", "x" * 9000):  # fmt: skip
        found = vendor.send("GET", "/v1/usage", headers={"Authorization": f"Bearer {bad}".encode()})
        is_problem(found, "authentication_invalid", "/v1/usage")
    assert vendor.send("GET", f"/v1/usage?api_key={secret}&access_token={secret}").status_code == 401


def test_case_14_the_61st_read_in_a_minute_is_429(local: Local, clock: ManualClock) -> None:
    customer = local.customer()
    # An empty range, so that sixty questions to the store are saved.
    path = "/v1/usage?from=2026-03-18&to=2026-03-18"
    for number in range(60):
        found = local.send("GET", path, customer.secret)
        assert (found.status_code, rate(found)) == (200, (60, 59 - number, 60))
    clock.advance(us=1)
    refused = local.send("GET", path, customer.secret)
    detail = "Rate limit exceeded for reads bucket. Retry after 60s."
    is_problem(refused, "rate_limit_exceeded", "/v1/usage", detail)
    assert (rate(refused), refused.headers["retry-after"]) == ((60, 0, 60), "60")
    # Metered reads share the bucket, scans and other keys do not.
    is_problem(
        local.authorize(customer, "/v1/snapshots", "GET"), "rate_limit_exceeded", "/v1/snapshots", detail
    )
    admitted = local.authorize(customer, "/v1/scans")
    assert (admitted.status_code, rate(admitted)) == (200, (6, 5, 3600))
    clock.advance(seconds=30)
    again = local.send("GET", path, customer.secret)
    assert (again.headers["retry-after"], rate(again)) == ("30", (60, 0, 30))
    clock.advance(seconds=30)
    assert rate(local.send("GET", path, customer.secret)) == (60, 59, 60)


def test_case_15_keys_are_made_by_a_session_only(vendor: Vendor) -> None:
    customer = vendor.customer()
    refused = vendor.send("POST", "/v1/keys", customer.secret, json={"name": "mine"})
    is_problem(refused, "forbidden", "/v1/keys")
    session = vendor.session(customer.account)
    before = datetime.now(UTC).replace(microsecond=0)
    made = vendor.send("POST", "/v1/keys", session, json={"name": "production-backend", "plan": "x"})
    assert (made.status_code, made.headers["content-type"]) == (201, JSON)
    assert all(name in made.headers for name in (*RATE_HEADERS, "x-request-id"))
    body = made.json()
    key, created_at = body["key"], datetime.fromisoformat(body["created_at"])
    assert len(key) == 43
    assert key.startswith("regsn_live_")
    assert key[11:].isalnum()
    assert before <= created_at <= datetime.now(UTC)
    assert list(body.items()) == [
        ("id", str(uuid.UUID(body["id"]))),
        ("name", "production-backend"),
        ("key", key),
        ("key_prefix", key[:15] + "…"),
        ("created_at", f"{created_at:%Y-%m-%dT%H:%M:%SZ}"),
        ("last_used_at", None),
        ("revoked_at", None),
        ("project_id", None),
    ]
    listed = vendor.send("GET", "/v1/keys", session)
    assert (listed.status_code, listed.headers["content-type"]) == (200, JSON)
    shown = {name: value for name, value in body.items() if name != "key"}
    assert [list(each) for each in listed.json()] == [list(shown)] * 2
    assert listed.json()[0] == shown, "newest first"
    assert vendor.usage(key)["buckets"] == []
    revoked = vendor.send("DELETE", f"/v1/keys/{body['id']}", session)
    assert (revoked.status_code, revoked.content) == (204, b"")
    assert "x-request-id" in revoked.headers
    is_problem(vendor.send("GET", "/v1/usage", key), "authentication_invalid", "/v1/usage")
    assert vendor.send("DELETE", f"/v1/keys/{body['id']}", session).status_code == 204, "a repeat is safe"
    again = vendor.send("GET", "/v1/keys", session)
    gone = next(each for each in again.json() if each["id"] == body["id"])
    assert datetime.fromisoformat(gone["revoked_at"]) >= before
    for answer in (listed, again, vendor.send("GET", "/v1/usage", session)):
        assert key not in answer.text


# -- parameters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "202", "2026-13-01", "2026-02-30", "2026-04-15T24:00:01Z", "2026-04-15T00:00:60Z",
     "2026-04-15 00:00:00Z", "1776211200", "2026-04-15T00:00:00+25:00", "2026-04-15T00:00:00+01:60",
     "202604", "2026-13", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2026-04-15T",
     "2026-04-15T00:00:00Z\n", "２026-04-15", "2026-04-15T00:00:00.Z", "-2026-04-15"],
)  # fmt: skip
def test_what_is_no_date_time_is_not_read(text: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        parse_instant(text)


@pytest.mark.parametrize("name", ["from", "to"])
@pytest.mark.parametrize("text", ["", "yesterday", "0001-01-01T00:00:00+01:00"])
def test_what_is_no_date_time_is_422(vendor: Vendor, name: str, text: str) -> None:
    found = vendor.send("GET", "/v1/usage", _shared(vendor), params={name: text})
    message = f"{name} must be an ISO 8601 date-time"
    is_problem(
        found,
        "validation_error",
        "/v1/usage",
        message,
        [{"path": name, "code": "invalid", "message": message}],
    )


_CREDENTIALS: Final[dict[str, list[tuple[str, int]]]] = {}


def _shared(vendor: Vendor) -> str:
    """Return a key that many tests share, a new one before it has used up its reads."""
    made = _CREDENTIALS.setdefault(vendor.server.url, [])
    if not made or made[-1][1] >= 50:
        made.append((vendor.customer().secret, 0))
    secret, count = made[-1]
    made[-1] = (secret, count + 1)
    return secret


def test_a_range_that_ends_before_it_starts_is_422(vendor: Vendor) -> None:
    asked = {"from": "2026-04-15T00:00:00.000001Z", "to": "2026-04-15"}
    found = vendor.send("GET", "/v1/usage", _shared(vendor), params=asked)
    errors = [{"path": "from", "code": "invalid", "message": "from must not be after to"}]
    is_problem(found, "validation_error", "/v1/usage", "from must not be after to", errors)
    body = vendor.usage(_shared(vendor), **{"from": "2026-04-15", "to": "2026-04-15"})
    assert body["buckets"] == []


def test_any_range_is_answered(vendor: Vendor) -> None:
    """Instants that the stores cannot tell are echoed all the same."""
    customer = vendor.customer()
    vendor.record(customer, {**SCAN, "cost_nanos": CENT, "time": "2000-01-01T00:00:00Z"})
    body = vendor.usage(customer.secret, **{"from": "0001-01-01", "to": "9999-12-31T23:59:59.999999Z"})
    assert body["filters"] | {"group_by": ""} == {
        "from": "0001-01-01T00:00:00.000Z", "to": "9999-12-31T23:59:59.999Z", "group_by": "",
    }  # fmt: skip
    assert body["totals"] == summed(body)
    assert body["totals"]["total_cost_cents"] == 1
    for start, end in (("0001-01-01", "1969-01-01"), ("2200-01-01", "9999-01-01")):
        assert vendor.usage(customer.secret, **{"from": start, "to": end})["buckets"] == []


@settings(max_examples=effort(40, 200), deadline=None)
@given(
    at=st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)),
    minutes=st.integers(-1439, 1439),
    places=st.integers(0, 9),
    colon=st.booleans(),
    blank=st.booleans(),
)
@example(at=datetime(2026, 4, 15), minutes=0, places=0, colon=True, blank=True)
def test_every_way_to_write_an_instant_is_read(
    at: datetime, minutes: int, places: int, colon: bool, blank: bool
) -> None:
    digits = f"{at.microsecond:06}000"[:places]
    part = f".{digits}" if digits else ""
    sign = "-" if minutes < 0 else " " if blank else "+"
    off = f"{abs(minutes) // 60:02}{':' if colon else ''}{abs(minutes) % 60:02}"
    kept = at.replace(microsecond=int(digits[:6].ljust(6, "0")) if digits else 0, tzinfo=UTC)
    text = f"{at.replace(microsecond=0).isoformat()}{part}"
    assert parse_instant(text) == parse_instant(text + "Z") == kept
    assert parse_instant(text + sign + off) == kept - timedelta(minutes=minutes)


@settings(max_examples=effort(60, 300), deadline=None)
@given(st.one_of(st.text(max_size=40), st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([+-]\d\d:\d\d)?\Z")))
def test_any_text_is_an_instant_or_none(text: str) -> None:
    """Whatever is sent as `from`, no other error than the two that are answered with 422."""
    found: object = None
    with suppress(ValueError, OverflowError):
        found = parse_instant(text)
    assert found is None or cast("datetime", found).tzinfo is UTC


@pytest.mark.parametrize(
    ("body", "code", "path"),
    [(b"", "invalid_request", ""), (b"{", "invalid_request", ""), (b"\xff", "invalid_request", ""),
     (b"[]", "invalid_request", ""), (b"7", "invalid_request", ""), (b"null", "invalid_request", ""),
     (b"[" * 50_000, "invalid_request", ""), (b'{"name": "' + b"a" * 70_000 + b'"}', "invalid_request", ""),
     (b"{}", "validation_error", "name"), (b'{"name": ""}', "validation_error", "name"),
     (b'{"name": " "}', "validation_error", "name"), (b'{"name": 7}', "validation_error", "name"),
     (b'{"name": null}', "validation_error", "name"),
     (b'{"name": "' + b"a" * 257 + b'"}', "validation_error", "name")],
    ids=lambda value: repr(value)[:24],
)  # fmt: skip
def test_a_bad_body_makes_no_key(vendor: Vendor, body: bytes, code: str, path: str) -> None:
    session = vendor.session(vendor.customer().account)
    found = vendor.send("POST", "/v1/keys", session, data=body)
    is_problem(found, code, "/v1/keys", errors=found.json().get("errors"))
    assert [error["path"] for error in found.json().get("errors", [])] == ([path] if path else [])
    assert len(vendor.send("GET", "/v1/keys", session).json()) == 1


# -- credentials -----------------------------------------------------------------------------------------------


def test_both_credentials_see_the_account_and_nobody_elses(vendor: Vendor) -> None:
    customer, other = vendor.customer(), vendor.customer()
    vendor.record(customer, {**SCAN, "time": "2026-04-15T10:00:00Z", "cost_nanos": 7 * CENT})
    asked = {"from": "2026-04-01", "to": "2026-05-01"}
    by_key = vendor.usage(customer.secret, **asked)
    assert by_key == vendor.usage(vendor.session(customer.account), **asked)
    assert by_key["totals"]["total_cost_cents"] == 7
    assert vendor.usage(other.secret, **asked)["buckets"] == []
    assert vendor.usage(vendor.session(other.account), **asked)["buckets"] == []


@pytest.mark.parametrize("state", ["inactive", "revoked", "deleted"])
def test_a_key_that_is_not_active_is_401(vendor: Vendor, state: str) -> None:
    customer = vendor.customer()
    path = f"/tk/v1/keys/{customer.key_id}/state?account={customer.account}"
    vendor.server.post(path, {"state": state})
    is_problem(vendor.send("GET", "/v1/usage", customer.secret), "authentication_invalid", "/v1/usage")
    is_problem(vendor.send("POST", "/v1/keys", customer.secret), "authentication_invalid", "/v1/keys")
    metered = vendor.authorize(customer.secret, "/v1/scans")
    is_problem(metered, "authentication_invalid", "/v1/scans")
    assert not any(name in metered.headers for name in RATE_HEADERS)


@pytest.mark.parametrize("fields", [{"profile": "shoal"}, {"profile": "native"}, {"role": "management"}])
def test_a_key_of_another_profile_or_kind_is_401(vendor: Vendor, fields: dict[str, str]) -> None:
    customer = vendor.customer(**fields)
    for method, path in (("GET", "/v1/usage"), ("GET", "/v1/keys"), ("POST", "/v1/keys")):
        is_problem(vendor.send(method, path, customer.secret), "authentication_invalid", path)


def test_an_imported_key_of_another_profile_is_401(local: Local) -> None:
    """Even when its secret looks like one of ours."""
    secret = "regsn_live_" + "B" * 32
    customer = local.customer(profile="shoal", sha256=hash_secret(secret))
    is_problem(local.send("GET", "/v1/usage", secret), "authentication_invalid", "/v1/usage")
    own = "regsn_live_" + "C" * 32
    local.customer(sha256=hash_secret(own))
    assert local.send("GET", "/v1/usage", own).status_code == 200
    assert customer.secret == ""


def test_an_expired_key_is_401(local: Local, clock: ManualClock) -> None:
    customer = local.customer(expires_at=NOON + timedelta(seconds=1))
    assert local.send("GET", "/v1/usage", customer.secret).status_code == 200
    clock.advance(seconds=1)
    is_problem(local.send("GET", "/v1/usage", customer.secret), "authentication_invalid", "/v1/usage")
    is_problem(local.authorize(customer, "/v1/scans"), "authentication_invalid", "/v1/scans")


def test_the_keys_of_an_inactive_account_are_403(local: Local) -> None:
    customer = local.customer()
    set_up(local.site, Account(id=customer.account, name="Acme", plan="regsn", active=False))
    is_problem(local.send("GET", "/v1/usage", customer.secret), "forbidden", "/v1/usage")
    is_problem(local.authorize(customer, "/v1/scans"), "forbidden", "/v1/scans")


def test_a_session_ends(local: Local, clock: ManualClock) -> None:
    account = local.customer().account
    session = local.session(account, ttl_s=60)
    assert local.send("GET", "/v1/usage", session).status_code == 200
    clock.advance(seconds=89)
    assert local.send("GET", "/v1/keys", session).status_code == 200
    clock.advance(seconds=1)
    for path in ("/v1/usage", "/v1/keys"):
        is_problem(local.send("GET", path, session), "authentication_invalid", path)
    nobody = local.session("no-such-account")
    is_problem(local.send("GET", "/v1/usage", nobody), "authentication_invalid", "/v1/usage")


def test_the_keys_of_another_account_do_not_exist(vendor: Vendor) -> None:
    customer, other = vendor.customer(), vendor.customer()
    session = vendor.session(customer.account)
    native = vendor.server.post("/tk/v1/keys", {"account": customer.account})["entry"]["id"]
    for key_id in (other.key_id, "none", str(uuid.uuid4()), native):
        path = f"/v1/keys/{key_id}"
        is_problem(vendor.send("DELETE", path, session), "not_found", path, "There is no such key.")
    assert vendor.send("GET", "/v1/usage", other.secret).status_code == 200
    assert [each["id"] for each in vendor.send("GET", "/v1/keys", session).json()] == [customer.key_id]
    refused = vendor.send("DELETE", f"/v1/keys/{customer.key_id}", customer.secret)
    is_problem(refused, "forbidden", f"/v1/keys/{customer.key_id}")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/keys"), ("GET", "/v1/keys"), ("DELETE", "/v1/keys/x")]
)
def test_the_key_endpoints_ask_for_a_session(vendor: Vendor, method: str, path: str) -> None:
    is_problem(vendor.send(method, path), "authentication_required", path)
    is_problem(vendor.send(method, path, "a.b.c"), "authentication_invalid", path)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/nothing"), ("GET", "/"), ("POST", "/v1/usage"), ("PUT", "/v1/keys"), ("GET", "/v1/usage/"),
     ("GET", "/v1/keys/x/y"), ("GET", "/api/usage")],
)  # fmt: skip
def test_what_the_dialect_does_not_have_is_404(vendor: Vendor, method: str, path: str) -> None:
    is_problem(vendor.send(method, path), "not_found", path, f"There is no {method} {path}.")


# -- rate buckets ----------------------------------------------------------------------------------------------


def test_sessions_are_limited_per_user(local_with: LocalWith, clock: ManualClock) -> None:
    local = local_with(reads_per_minute=3)
    customer = local.customer()
    ada, bob = local.session(customer.account, "ada"), local.session(customer.account, "bob" * 500)
    for number in range(3):
        found = local.send("GET", "/v1/usage", ada)
        assert (found.status_code, rate(found)) == (200, (3, 2 - number, 60))
    refused = local.send("GET", "/v1/usage", ada)
    is_problem(
        refused, "rate_limit_exceeded", "/v1/usage", "Rate limit exceeded for reads bucket. Retry after 60s."
    )
    assert (rate(refused), refused.headers["retry-after"]) == ((3, 0, 60), "60")
    assert rate(local.send("GET", "/v1/usage", bob)) == (3, 2, 60)
    assert rate(local.send("GET", "/v1/usage", customer.secret)) == (60, 59, 60)
    clock.advance(seconds=60)
    assert local.send("GET", "/v1/usage", ada).status_code == 200


def test_key_management_has_a_bucket_of_its_own(local: Local) -> None:
    session = local.session(local.customer().account)
    calls = [("GET", "/v1/keys"), ("DELETE", "/v1/keys/none"), ("POST", "/v1/keys")]
    for number in range(10):
        method, path = calls[number % 3]
        assert rate(local.send(method, path, session)) == (10, 9 - number, 60)
    refused = local.send("POST", "/v1/keys", session, json={"name": "eleventh"})
    detail = "Rate limit exceeded for key_mgmt bucket. Retry after 60s."
    is_problem(refused, "rate_limit_exceeded", "/v1/keys", detail)
    assert local.send("GET", "/v1/usage", session).status_code == 200


def test_a_key_without_a_plan_has_the_vendors_limit_on_reads(local: Local) -> None:
    customer = local.customer(plan=None)
    assert rate(local.send("GET", "/v1/usage", customer.secret)) == (60, 59, 60)


def test_the_limit_of_a_plan_counts_instead(local: Local) -> None:
    slug = unique("plan")
    limits = [{"name": "reads", "amount": 2, "bucket": "reads"}, {"name": "all", "amount": 3, "window": "1h"}]
    set_up(local.site, msgspec.convert({"slug": slug, "limits": limits}, Plan))
    customer = local.customer(plan=slug)
    assert rate(local.send("GET", "/v1/usage", customer.secret)) == (2, 1, 60)
    assert rate(local.send("GET", "/v1/usage", customer.secret)) == (2, 0, 60)
    refused = local.send("GET", "/v1/usage", customer.secret)
    assert (refused.status_code, rate(refused)) == (429, (2, 0, 60))
    # A route without a bucket shows the limit of all routes, and names it when it refuses.
    assert rate(local.authorize(customer, "/v1/scans/s1/stream", "GET")) == (3, 0, 3600)
    refused = local.authorize(customer, "/v1/scans/s1/stream", "GET")
    detail = "Rate limit exceeded for all bucket. Retry after 3600s."
    is_problem(refused, "rate_limit_exceeded", "/v1/scans/s1/stream", detail)
    assert rate(refused) == (3, 0, 3600)


def test_the_limit_of_a_user_survives_a_restart(install: Install, base: str) -> None:
    options = {
        "root_profile": "regsn",
        "profiles": "regsn",
        "profile_settings": '{"regsn": {"reads_per_minute": 2}}',
    }
    site = install(**options)
    with application(site, PROFILE) as app:
        local = Local(app, base)
        session = local.session(local.customer().account)
        for _ in range(2):
            assert local.send("GET", "/v1/usage", session).status_code == 200
    site.close()
    with application(install(**options), PROFILE) as app:
        assert Local(app, base).send("GET", "/v1/usage", session).status_code == 429


# -- metered traffic -------------------------------------------------------------------------------------------


@pytest.fixture
def metered(local: Local) -> Any:
    """An app of the provider behind the middleware."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
        )
        await send({"type": "http.response.body", "body": b"done"})

    return Tollkeeper(local.site).middleware(app, profile="regsn")


def test_the_middleware_speaks_the_dialect(local: Local, metered: Any, clock: ManualClock) -> None:
    customer = local.customer(budget_nanos=100 * CENT)

    def call(method: str, path: str, secret: str | None = customer.secret) -> httpx.Response:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        return local.request(method, path, app=metered, headers=headers)

    done = call("POST", "/v1/scans?mode=sync")
    assert (done.status_code, done.text, rate(done)) == (200, "done", (6, 5, 3600))
    assert done.headers["x-request-id"].startswith("req_")
    assert rate(call("GET", "/v1/scans/s1")) == (60, 59, 60)
    assert rate(call("GET", "/v1/snapshots/s1/pages/3")) == (60, 58, 60)
    assert rate(call("POST", "/v1/exports")) == (30, 29, 3600)
    stream = call("GET", "/v1/scans/s1/stream")
    assert (stream.status_code, [name for name in RATE_HEADERS if name in stream.headers]) == (200, [])
    is_problem(call("GET", "/v1/scans/s1", None), "authentication_required", "/v1/scans/s1")
    is_problem(call("GET", "/v1/scans/s1", customer.secret[:-1]), "authentication_invalid", "/v1/scans/s1")
    is_problem(call("DELETE", "/v1/scans"), "not_found", "/v1/scans", "There is no DELETE /v1/scans.")
    foreign = local.customer(profile="shoal").secret
    is_problem(call("POST", "/v1/scans", foreign), "authentication_invalid", "/v1/scans")
    set_up(local.site, Budget(id="pool", account=customer.account, amount=20 * CENT))
    is_problem(call("POST", "/v1/scans"), "budget_exhausted", "/v1/scans")
    # A refusal is answered before it is committed.
    commit_all(local.site)
    clock.advance(seconds=1)
    body = local.usage(customer.secret, group_by="endpoint")
    assert [(each["key"], each["cost_cents"]) for each in body["buckets"][:2]] == [
        ("POST /v1/scans", 10), ("POST /v1/exports", 10),
    ]  # fmt: skip
    assert (body["totals"]["scan_count"], body["totals"]["export_count"]) == (1, 1)


def test_authorize_words_an_unknown_key_as_asked(vendor: Vendor) -> None:
    is_problem(vendor.authorize("", "/v1/scans"), "authentication_required", "/v1/scans")
    is_problem(vendor.authorize("sk_none", "/v1/scans"), "authentication_invalid", "/v1/scans")


def test_authorize_tells_the_headers_to_send(vendor: Vendor) -> None:
    found = vendor.authorize(vendor.customer().secret, "/v1/exports")
    headers = found.json()["headers"]
    assert list(headers) == ["RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "X-Request-Id"]
    assert (headers["RateLimit-Limit"], headers["RateLimit-Remaining"]) == ("30", "29")
    assert headers["X-Request-Id"] == found.headers["x-request-id"]


def test_the_pool_is_full_again_with_the_new_month(local: Local, clock: ManualClock) -> None:
    customer = local.customer(budget_nanos=10 * CENT)
    local.settle(local.authorize(customer, "/v1/scans"))
    assert local.authorize(customer, "/v1/scans").status_code == 402
    clock.set(datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC))
    assert local.authorize(customer, "/v1/scans").status_code == 402
    clock.set(datetime(2026, 4, 1, tzinfo=UTC))
    assert local.authorize(customer, "/v1/scans").status_code == 200


def test_a_grant_that_runs_out_is_a_budget_that_does(local: Local) -> None:
    customer = local.customer(type="credit")
    set_up(local.site, Grant(id="one", account=customer.account, amount_nanos=10 * CENT))
    local.settle(local.authorize(customer, "/v1/exports"))
    is_problem(local.authorize(customer, "/v1/exports"), "budget_exhausted", "/v1/exports")


# -- money and counts ------------------------------------------------------------------------------------------


def test_cents_are_rounded_once_per_bucket_and_once_for_the_total(local_with: LocalWith) -> None:
    local = local_with()
    customer = local.customer()
    for hour, part in ((1, 4), (2, 5), (3, 4)):
        route = {
            "method": "POST",
            "route": f"/v1/scans/{hour}",
            "kind": "scan",
            "cost_nanos": part * CENT // 10,
        }
        local.record(customer, {**route, "time": f"2026-03-{hour:02}T00:00:00Z"})
    for axis in ("day", "endpoint"):
        body = local.usage(customer.secret, group_by=axis)
        assert sorted(bucket["cost_cents"] for bucket in body["buckets"]) == [0, 0, 1]
        assert body["totals"]["total_cost_cents"] == 1
    body = local.usage(customer.secret, group_by="key")
    assert body["buckets"][0]["cost_cents"] == 1


def test_the_switches_change_what_is_counted(local_with: LocalWith, clock: ManualClock) -> None:
    switches = {
        "usage_calls_counted": False,
        "refused_requests_counted": False,
        "refused_scans_counted": False,
        "total_is_sum_of_buckets": True,
        "invalid_parameter_status": 400,
        "range_days_max": 90,
        "revoked_keys_listed": False,
        "key_mgmt_per_minute": 3,
        "problem_base": "https://problems.example/",
    }
    local = local_with(**switches)
    customer = local.customer(budget_nanos=0)
    assert local.authorize(customer, "/v1/scans").status_code == 402
    third = {"method": "POST", "kind": "scan", "cost_nanos": CENT // 2}
    local.record(customer, *[{**third, "route": f"/v1/s{i}"} for i in range(3)])
    commit_all(local.site)
    clock.advance(seconds=1)
    for _ in range(2):
        body = local.usage(customer.secret, group_by="endpoint")
        assert [bucket["key"] for bucket in body["buckets"]] == [f"POST /v1/s{i}" for i in range(3)]
        assert body["totals"] == {
            "request_count": 3,
            "scan_count": 3,
            "export_count": 0,
            "total_cost_cents": 3,
        }
    bad = local.send("GET", "/v1/usage", customer.secret, params={"from": "2025-12-01"})
    assert bad.json()["errors"][0]["message"] == "from must be at most 90 days before to"
    assert (bad.status_code, bad.json()["status"]) == (400, 400)
    assert bad.json()["type"] == "https://problems.example/validation"
    session = local.session(customer.account)
    assert local.send("DELETE", f"/v1/keys/{customer.key_id}", session).status_code == 204
    assert local.send("GET", "/v1/keys", session).json() == []
    assert [local.send("GET", "/v1/keys", session).status_code for _ in range(2)] == [200, 429]


def test_refused_scans_may_be_counted(local_with: LocalWith, clock: ManualClock) -> None:
    local = local_with(refused_scans_counted=True)
    customer = local.customer(budget_nanos=0)
    assert local.authorize(customer, "/v1/scans").status_code == 402
    commit_all(local.site)
    clock.advance(seconds=1)
    assert local.usage(customer.secret)["totals"]["scan_count"] == 1


def test_a_usage_call_is_a_free_request_that_does_not_see_itself(local: Local, clock: ManualClock) -> None:
    customer = local.customer(budget_nanos=0)
    for number in range(3):
        body = local.usage(customer.secret, group_by="endpoint")
        assert body["totals"]["request_count"] == number
        clock.advance(seconds=1)
    local.send("GET", "/v1/usage", customer.secret, params={"group_by": "week"})
    clock.advance(seconds=1)
    body = local.usage(customer.secret, group_by="endpoint")
    assert body["buckets"] == [
        {"key": "GET /v1/usage", "request_count": 4, "scan_count": 0, "export_count": 0, "cost_cents": 0}
    ]


EVENTS: Final = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["read", "scan", "export", "request"]),
            "route": st.sampled_from(["", "/v1/scans", "/v1/exports", "/v1/é"]),
            "method": st.sampled_from(["", "GET", "POST"]),
            "day": st.integers(1, 4),
            "cost_nanos": st.integers(0, 30 * CENT),
            "denied_reason": st.sampled_from([None, None, "budget_exhausted"]),
            "unkeyed": st.booleans(),
        }
    ),
    max_size=12,
)


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS)
def test_whatever_was_recorded_the_answer_agrees_with_the_native_one(
    vendor: Vendor, events: list[Any]
) -> None:
    customer = vendor.customer()
    sent = []
    for event in events:
        time = f"2026-04-{event.pop('day'):02}T05:30:00Z"
        whose = {"account": customer.account, "key_id": None} if event.pop("unkeyed") else {}
        sent.append({**event, **whose, "time": time})
    if sent:
        vendor.record(customer, *sent)
    asked = {"from": "2026-04-01T05:00:00Z", "to": "2026-04-04T05:30:00Z"}
    whose = f"account={customer.account}&from={asked['from']}&to={asked['to']}"
    measures = "measures=requests,denied,cost_nanos,kinds"
    native = vendor.server.call("GET", f"/tk/v1/usage?{whose}&{measures}")["totals"]
    started = vendor.server.call("GET", f"/tk/v1/usage?{whose}&{measures}&denied_reason=")["totals"]["kinds"]
    for axis, group in (
        ("day", "granularity=day"),
        ("endpoint", "group_by=endpoint"),
        ("key", "group_by=key"),
    ):
        body = vendor.usage(customer.secret, **asked, group_by=axis)
        assert body["totals"] == {
            "request_count": native["requests"],
            "scan_count": started.get("scan", 0),
            "export_count": started.get("export", 0),
            "total_cost_cents": cents_half_up(int(native["cost_nanos"])),
        }
        rows = vendor.server.call("GET", f"/tk/v1/usage?{whose}&{measures}&{group}")["rows"]
        expected = {
            (row["time"][:10] if axis == "day" else row[axis] or "(none)"): (
                row["requests"],
                cents_half_up(int(row["cost_nanos"])),
            )
            for row in rows
        }
        found = {each["key"]: (each["request_count"], each["cost_cents"]) for each in body["buckets"]}
        assert found == expected
        keys = list(found)
        if axis == "day":
            assert keys == sorted(keys)
        else:
            assert keys == sorted(keys, key=lambda key: (-found[key][1], -found[key][0], key))


# -- failures, clients, catalog --------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [(503, "service_unavailable"), (500, "internal_error")])
def test_a_usage_store_that_is_away_leaks_nothing(local_with: LocalWith, status: int, code: str) -> None:
    local = local_with(unavailable_status=status)
    customer = local.customer()
    reports: Any = local.site.reports
    faulty = reports._store = Faulty(reports._store, "report")
    faulty.refuse()
    found = local.send("GET", "/v1/usage", customer.secret)
    is_problem(found, code, "/v1/usage")
    assert ("retry-after" in found.headers) == (status == 503)
    assert "refused by the test" not in found.text
    assert local.send("GET", "/v1/usage", customer.secret).status_code == 200


def test_an_unexpected_failure_is_500(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    customer = local.customer()

    def fail(*_: object) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(local.site.reports, "usage", fail)
    found = local.send("GET", "/v1/usage", customer.secret)
    is_problem(found, "internal_error", "/v1/usage", "The request failed on our side.")


def test_the_csv_of_the_python_sample(vendor: Vendor) -> None:
    """As the vendor's sample makes it: JSON only on the wire, columns in this order."""
    customer = vendor.customer()
    vendor.record(customer, {**SCAN, "time": "2026-04-15T10:00:00Z", "cost_nanos": 18 * CENT})
    body = vendor.usage(customer.secret, **{"from": "2026-04-15T00:00:00+00:00", "to": "2026-04-16"})
    columns = ["key", "request_count", "scan_count", "export_count", "cost_cents"]
    assert list(body["buckets"][0]) == columns
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(body["buckets"])
    assert file.getvalue() == ",".join(columns) + "\n2026-04-15,1,1,0,18\n"
    asked = {"Accept": "text/csv"}
    found = vendor.send("GET", "/v1/usage?format=csv", customer.secret, headers=asked)
    assert found.headers["content-type"] == JSON


@needs_node
def test_the_javascript_sample(server: Server, base: str) -> None:
    vendor = Vendor(server, base)
    customer = vendor.customer()
    vendor.record(customer, {**EXPORT, "time": "2026-04-15T10:00:00Z", "cost_nanos": 9 * CENT})
    url = f"{vendor.url}/v1/usage?group_by=day&from=2026-04-15T00:00:00Z&to=2026-04-16"
    script = """
        const [url, key] = process.argv.slice(1)
        const answer = await fetch(url, { headers: { Authorization: `Bearer ${key}` } })
        const data = await answer.json()
        const header = 'key,request_count,scan_count,export_count,cost_cents'
        const rows = data.buckets.map(b => Object.values(b).join(','))
        console.log(JSON.stringify([answer.status, data.totals.total_cost_cents, [header, ...rows].join('\\n')]))
    """
    run = [str(NODE), "--input-type=module", "-e", script, url, customer.secret]
    status, cents, text = json.loads(subprocess.run(run, capture_output=True, check=True, timeout=60).stdout)
    header = "key,request_count,scan_count,export_count,cost_cents"
    assert (status, cents, text) == (200, 9, header + "\n2026-04-15,1,0,1,9")


def test_root_and_prefix_answer_alike(server: Server) -> None:
    root, prefix = Vendor(server, ""), Vendor(server, "/regsn")
    customer = root.customer()
    root.record(customer, {**SCAN, "time": "2026-04-15T10:00:00Z", "cost_nanos": 18 * CENT})
    asked = "?from=2026-04-01&to=2026-05-01"
    for path in (f"/v1/usage{asked}", "/v1/usage?group_by=week", "/v1/keys", "/v1/none"):
        found = [at.send("GET", path, customer.secret) for at in (root, prefix)]
        assert len({each.status_code for each in found}) == 1
        assert [name.lower() for name in found[0].headers] == [name.lower() for name in found[1].headers]
        texts = {each.text.replace(each.headers["x-request-id"], "") for each in found}
        assert len(texts) == 1, path


def test_the_catalog_can_be_applied_again(local: Local) -> None:
    applied = apply_declaration(parse_declaration(PROFILE.catalog), local.site.manage, dry_run=False)
    assert {change.action for change in applied.changes} == {"unchanged"}
    profile: Profile = PROFILE
    assert profile.name == "regsn"
