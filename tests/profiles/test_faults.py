"""Numbers and answers that were wrong once, in every dialect that could have them, over HTTP in this process."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conftest import Install
from tests.end_to_end.server import OPERATOR_KEY
from tests.profiles.places import Local
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.catalog import (
    Account,
    Budget,
    Entry,
    Grant,
    Key,
    Limit,
    Plan,
    Project,
    Route,
    Subscription,
)
from tollkeeper.domain.keys import hash_secret
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.testing import Faulty, ManualClock, installation, set_up, unique

DOLLAR = 1_000_000_000
PROFILES = ("anylayer", "cheapestinference", "regpilot", "regsn", "shoal")
PATHS = {
    "anylayer": "/anylayer/v1/developer/usage",
    "cheapestinference": "/cheapestinference/v1/usage",
    "regpilot": "/regpilot/api/usage?projectId=web",
    "regsn": "/regsn/v1/usage",
    "shoal": "/shoal/v1/usage",
}
UNAVAILABLE = {"anylayer": 500, "cheapestinference": 502, "regpilot": 503, "regsn": 503, "shoal": 503}
EVERY = [Route(id=f"any-{name}", method="*", path="/work", profile=name) for name in PROFILES]
Opened = Callable[..., Local]


@pytest.fixture
def opened(install: Install) -> Iterator[Opened]:
    """Open an application with all profiles; settings by profile."""
    with ExitStack() as stack:

        def made(**profile_settings: Any) -> Local:
            site = install(unique("data"), profiles="all", profile_settings=json.dumps(profile_settings))
            ensure_operator_key(site, OPERATOR_KEY)
            set_up(site, *EVERY)
            app = build_app(site)
            stack.callback(app.close)
            return Local(app)

        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore) -> Iterator[Local]:
    """One application with all profiles as they are by default, whose tests keep apart by account."""
    directory = tmp_path_factory.mktemp("shared")
    with installation(directory, clock=ManualClock(), store=usage_store, profiles="all") as site:
        ensure_operator_key(site, OPERATOR_KEY)
        set_up(site, *EVERY)
        app = build_app(site)
        yield Local(app)
        app.close()


class Customer:
    """An account with a project and keys; asks each dialect."""

    def __init__(self, place: Local, *entries: Entry, account: str | None = None) -> None:
        self.place = place
        self.account = account or unique("acct")
        self.secrets = set_up(
            place.site, Account(id=self.account, name="A"), Project(id="web", account=self.account), *entries
        )

    def key(self, profile: str, **fields: Any) -> str:
        """Make a key; return its id."""
        key_id = unique("key")
        entry = Key(id=key_id, account=self.account, project="web", profile=profile, **fields)
        self.secrets |= set_up(self.place.site, entry)
        return key_id

    def put(self, *entries: Entry) -> None:
        set_up(self.place.site, *entries)

    def get(self, path: str, secret: str, **params: Any) -> Any:
        headers = {"Authorization": f"Bearer {secret}"}
        return self.place.request("GET", path, headers=headers, **({"params": params} if params else {}))

    def usage(self, profile: str, key_id: str, **params: Any) -> Any:
        answer = self.get(PATHS[profile], self.secrets[key_id], **params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def authorize(self, key_id: str, **fields: Any) -> Any:
        body = {"key": self.secrets[key_id], "path": "/work", **fields}
        return self.place.operate("/tk/v1/authorize", body)

    def settle(self, held: Any, **fields: Any) -> None:
        answer = self.place.operate("/tk/v1/settle", {"hold_id": held.json()["hold_id"], **fields})
        assert answer.status_code == 200, answer.text

    def record(self, key_id: str, *events: dict[str, Any]) -> None:
        self.place.book(key_id, self.place.site.clock.now(), *events)


# -- used is what was settled -------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts_holds", [True, False])
def test_regpilot_shows_no_hold_as_used(opened: Opened, counts_holds: bool) -> None:
    place = opened(regpilot={"remaining_counts_holds": counts_holds})
    customer = Customer(place)
    customer.put(Budget(id="monthly", account=customer.account, project="web", amount=10 * DOLLAR))
    key = customer.key("regpilot")
    customer.record(key, {"cost_nanos": DOLLAR})
    held = customer.authorize(key, cost_nanos=8 * DOLLAR)
    assert held.status_code == 200, held.text
    left = 1 if counts_holds else 9
    assert customer.usage("regpilot", key)["budget"] == {"limit": 10, "used": 1, "remaining": left}
    assert held.json()["headers"]["x-credits-remaining"] == str(left)
    refused = customer.authorize(key, cost_nanos=3 * DOLLAR)
    assert refused.status_code == 402
    assert refused.json()["details"] == {"limit": 10, "used": 1}
    customer.settle(held, cost_nanos=2 * DOLLAR)
    assert customer.usage("regpilot", key)["budget"] == {"limit": 10, "used": 3, "remaining": 7}


@pytest.mark.parametrize("counts_holds", [True, False])
def test_shoal_shows_no_hold_as_used(opened: Opened, counts_holds: bool) -> None:
    place = opened(shoal={"remaining_counts_holds": counts_holds})
    customer = Customer(place, Route(id="dear", method="*", path="/dear", profile="shoal", credits=2))
    customer.put(Budget(id="credits", account=customer.account, amount=10, unit="credits"))
    key = customer.key("shoal")
    held = customer.authorize(key, path="/dear")
    assert held.status_code == 200, held.text
    left = 8 if counts_holds else 10
    answer = customer.get(PATHS["shoal"], customer.secrets[key])
    assert answer.json()["data"]["budget"] == {"limit": 10, "used": 0, "remaining": left}
    assert (answer.headers["x-monthly-used"], answer.headers["x-monthly-remaining"]) == ("0", str(left))
    customer.settle(held)
    assert customer.usage("shoal", key)["data"]["budget"] == {"limit": 10, "used": 2, "remaining": 8}


def test_holds_that_outlive_a_restart_are_not_used_either(install: Install, clock: ManualClock) -> None:
    site = install(profiles="all")
    ensure_operator_key(site, OPERATOR_KEY)
    set_up(site, *EVERY)
    place = Local(build_app(site))
    customer = Customer(place)
    customer.put(Budget(id="monthly", account=customer.account, project="web", amount=10 * DOLLAR))
    key = customer.key("regpilot")
    held = customer.authorize(key, cost_nanos=4 * DOLLAR)
    place.app.close()
    site.close()
    customer.place = place = Local(build_app(install(profiles="all")))
    assert customer.usage("regpilot", key)["budget"] == {"limit": 10, "used": 0, "remaining": 6}
    customer.settle(held, cost_nanos=3 * DOLLAR)
    assert customer.usage("regpilot", key)["budget"] == {"limit": 10, "used": 3, "remaining": 7}
    place.app.close()


# -- RegPilot's budget --------------------------------------------------------------------------------------------


def test_regpilot_shows_the_budget_that_a_project_has(shared: Local) -> None:
    customer = Customer(shared)
    key = customer.key("regpilot")
    customer.record(key, {"cost_nanos": 2 * DOLLAR})
    assert customer.usage("regpilot", key)["budget"]["remaining"] > 0
    customer.put(Budget(id="week", account=customer.account, amount=5 * DOLLAR, period="week"))
    assert customer.usage("regpilot", key)["budget"] == {"limit": 5, "used": 2, "remaining": 3}
    customer.put(Budget(id="all", account=customer.account, amount=4 * DOLLAR, period="total"))
    assert customer.usage("regpilot", key)["budget"] == {"limit": 4, "used": 2, "remaining": 2}
    customer.put(Budget(id="month", account=customer.account, amount=50 * DOLLAR))
    assert customer.usage("regpilot", key)["budget"] == {"limit": 50, "used": 2, "remaining": 48}


def test_regpilot_shows_the_credit_of_a_key_that_draws_on_it(shared: Local) -> None:
    customer = Customer(shared)
    key = customer.key("regpilot", type="credit")
    customer.put(Grant(id="g", account=customer.account, amount_nanos=5 * DOLLAR))
    customer.record(key, {"cost_nanos": 2 * DOLLAR})
    assert customer.usage("regpilot", key)["budget"] == {"limit": 5, "used": 2, "remaining": 3}
    customer.record(key, {"cost_nanos": 3 * DOLLAR})
    assert customer.usage("regpilot", key)["budget"] == {"limit": 5, "used": 5, "remaining": 0}


def test_regpilots_budget_has_the_month_of_its_zone(opened: Opened, clock: ManualClock) -> None:
    """At 02:00 UTC on the first it is still the last of the month in New York."""
    place = opened(regpilot={"time_zone": "America/New_York"})
    customer = Customer(place)
    customer.put(Budget(id="monthly", account=customer.account, project="web", amount=100 * DOLLAR))
    key = customer.key("regpilot")
    clock.set(datetime(2026, 9, 30, 20, tzinfo=UTC))
    customer.record(key, {"cost_nanos": 7 * DOLLAR, "model": "m"})
    clock.set(datetime(2026, 10, 1, 2, tzinfo=UTC))
    customer.record(key, {"cost_nanos": 3 * DOLLAR, "model": "m"})
    found = customer.usage("regpilot", key)
    assert found["models"]["m"]["cost"] == 10
    assert found["budget"] == {"limit": 100, "used": 10, "remaining": 90}
    clock.set(datetime(2026, 10, 1, 5, tzinfo=UTC))
    found = customer.usage("regpilot", key)
    # The gate's month began in UTC: it refuses beyond 97.
    assert found["budget"] == {"limit": 100, "used": 0, "remaining": 97}
    assert found["models"] == {}


def test_shoal_shows_the_budget_that_a_key_has(shared: Local) -> None:
    customer = Customer(shared)
    key = customer.key("shoal")
    customer.put(Budget(id="week", account=customer.account, amount=9, unit="credits", period="week"))
    customer.record(key, {"credits": 4})
    assert customer.usage("shoal", key)["data"]["budget"] == {"limit": 9, "used": 4, "remaining": 5}


# -- AnyLayer -----------------------------------------------------------------------------------------------------

PER_MINUTE = Limit(name="per-minute", amount=60)


@pytest.mark.parametrize("source", ["counters", "recorded"])
def test_anylayer_raises_no_false_alarm(opened: Opened, source: str) -> None:
    """The sum over the keys is no one's limit: three keys at half of theirs are three keys at half."""
    place = opened(anylayer={"rate_limit_usage": source})
    customer = Customer(place, Plan(slug=(plan := unique("free")), limits=[PER_MINUTE]))
    customer.put(Account(id=customer.account, name="A", plan=plan))
    keys = [customer.key("anylayer", name=name) for name in ("one", "two", "three")]
    for key in keys:
        for _ in range(28):
            customer.settle(customer.authorize(key, cost_nanos=0))
    found = customer.usage("anylayer", keys[0])
    used = 29 if source == "counters" else 28
    assert found["rateLimits"]["current"]["requestsPerMinute"] == 60
    assert found["rateLimits"]["usage"]["requestsPerMinute"] == used
    assert found["rateLimits"]["utilization"]["requestsPerMinute"] == round(used / 60 * 100, 2)
    assert [alert for alert in found["alerts"] if alert["type"] == "rate_limit"] == []


def test_anylayers_alert_names_the_key_that_is_near_its_limit(shared: Local) -> None:
    customer = Customer(shared)
    key = customer.key("anylayer", name="busy", limits=[Limit(name="per-minute", amount=10)])
    other = customer.key("anylayer", name="calm", limits=[PER_MINUTE])
    for _ in range(9):
        customer.authorize(key, cost_nanos=0)
    customer.record(other, {})
    found = customer.usage("anylayer", other)
    assert found["rateLimits"]["current"]["requestsPerMinute"] == 10
    (alert,) = [alert for alert in found["alerts"] if alert["type"] == "rate_limit"]
    assert alert["message"] == "9 of 10 requests per minute of key busy are used: 90%"
    (own,) = [customer.usage("anylayer", other, keyId=other)["rateLimits"]]
    assert own["current"]["requestsPerMinute"] == 60


def test_a_limit_that_keys_share_is_compared_as_a_whole(shared: Local) -> None:
    limit = Limit(name="per-minute", amount=10, per="account")
    customer = Customer(shared, Plan(slug=(plan := unique("shared")), limits=[limit]))
    customer.put(Account(id=customer.account, name="A", plan=plan))
    keys = [customer.key("anylayer") for _ in range(2)]
    for key in keys:
        for _ in range(4):
            customer.authorize(key, cost_nanos=0)
    customer.record(keys[0], {})
    limits = customer.usage("anylayer", keys[0])["rateLimits"]
    assert (limits["usage"]["requestsPerMinute"], limits["utilization"]["requestsPerMinute"]) == (9, 90)


def test_anylayers_latencies_sort_as_they_are_shown(opened: Opened, clock: ManualClock) -> None:
    place = opened()
    customer = Customer(place)
    key = customer.key("anylayer")
    clock.set(datetime(2026, 4, 15, 12, 30, tzinfo=UTC))
    for hours, latency in ((3, 50.0), (2, None), (1, 20.0)):
        at = clock.now() - timedelta(hours=hours)
        place.book(key, at, {"latency_ms": latency, "route": f"/r{hours}", "method": "GET"})
    for order, shown in (("asc", [0, 20, 50]), ("desc", [50, 20, 0])):
        found = customer.usage("anylayer", key, sort="latency", order=order)
        assert [point["averageLatency"] for point in found["timeSeries"]] == shown
        assert [item["averageLatency"] for item in found["breakdown"]["byEndpoint"]] == shown
    page = customer.usage("anylayer", key, sort="latency", order="asc", limit=1, offset=1)
    assert [point["averageLatency"] for point in page["timeSeries"]] == [20]


def test_anylayers_unknown_latency_as_null_is_sorted_last(opened: Opened) -> None:
    place = opened(anylayer={"latency_unknown": None, "series_order": "time"})
    customer = Customer(place)
    key = customer.key("anylayer")
    for latency, route in ((50.0, "/a"), (None, "/b"), (20.0, "/c")):
        customer.record(key, {"latency_ms": latency, "route": route, "method": "GET"})
    for order, shown in (("asc", [20, 50, None]), ("desc", [50, 20, None])):
        found = customer.usage("anylayer", key, sort="latency", order=order)
        assert [item["averageLatency"] for item in found["breakdown"]["byEndpoint"]] == shown


def test_anylayers_lists_are_paged_whole_and_each_key_can_be_asked(opened: Opened) -> None:
    place = opened(anylayer={"series_order": "time"})
    customer = Customer(place)
    keys = [customer.key("anylayer", name=f"k{n}") for n in range(5)]
    for key in keys:
        customer.record(key, {"route": "/one", "method": "GET"})
    gone = keys[4]
    place.operate(f"/tk/v1/keys/{gone}/state?account={customer.account}", {"state": "deleted"})
    seen = []
    for offset in (0, 2, 4):
        found = customer.usage("anylayer", keys[0], limit=2, offset=offset)["breakdown"]
        seen += [item["keyId"] for item in found["byKey"]]
        assert [item["endpoint"] for item in found["byEndpoint"]] == ["GET /one"], "short lists are whole"
    assert seen == sorted(keys)
    for key in keys:
        assert customer.usage("anylayer", keys[0], keyId=key)["usage"]["totalRequests"] == 1
    assert customer.usage("anylayer", keys[0], keyId="")["usage"]["totalRequests"] == 5
    assert customer.get(PATHS["anylayer"], customer.secrets[keys[0]], keyId="nobody").status_code == 404


# -- what fails on our side, and what is refused ------------------------------------------------------------------


@pytest.mark.drawn(2)
@pytest.mark.parametrize("name", PROFILES)
def test_a_call_that_fails_on_our_side_is_not_counted(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, usage_store: ClickHouseUsageStore, name: str
) -> None:
    place = opened()
    customer = Customer(place)
    key = customer.key(name, limits=[Limit(name="rpm", amount=2)])
    customer.record(key, {})
    reports: Any = place.site.reports
    faulty = Faulty(usage_store, "report")
    monkeypatch.setattr(reports, "_store", faulty)
    faulty.refuse(10)
    for _ in range(4):
        answer = customer.get(PATHS[name], customer.secrets[key])
        assert answer.status_code == UNAVAILABLE[name], answer.text
    faulty.refuse(0)
    for status in (200, 200, 429):
        assert customer.get(PATHS[name], customer.secrets[key]).status_code == status


def test_cheapestinferences_twelve_calls_outlive_an_outage(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, usage_store: ClickHouseUsageStore
) -> None:
    place = opened()
    customer = Customer(place)
    customer.key("cheapestinference")
    manager = unique("mk")
    customer.secrets |= set_up(place.site, Key(id=manager, account=customer.account, role="management"))
    reports: Any = place.site.reports
    faulty = Faulty(usage_store, "report")
    monkeypatch.setattr(reports, "_store", faulty)
    faulty.refuse(11)
    asked = [
        customer.get("/cheapestinference/api/usage", customer.secrets[manager]).status_code for _ in range(24)
    ]
    assert asked == [502] * 11 + [200] * 12 + [429]


def test_regsn_counts_its_own_429s(opened: Opened, clock: ManualClock) -> None:
    place = opened()
    customer = Customer(place)
    key = customer.key("regsn", limits=[Limit(name="reads", amount=6, bucket="reads")])
    asked = [customer.get(PATHS["regsn"], customer.secrets[key]).status_code for _ in range(7)]
    assert asked == [200] * 6 + [429]
    session = place.site.sessions.issue(customer.account, "ada")
    clock.advance(seconds=1)
    found = customer.get(PATHS["regsn"], session, group_by="key").json()
    assert found["totals"]["request_count"] == 7
    assert [bucket["request_count"] for bucket in found["buckets"]] == [7]


def test_regsn_counts_a_sessions_429s(opened: Opened, clock: ManualClock) -> None:
    place = opened(regsn={"reads_per_minute": 2})
    customer = Customer(place)
    session = place.site.sessions.issue(customer.account, "ada")
    asked = [customer.get(PATHS["regsn"], session, group_by="key").status_code for _ in range(4)]
    assert asked == [200, 200, 429, 429]
    key = customer.key("regsn")
    clock.advance(seconds=1)
    (bucket,) = customer.usage("regsn", key, group_by="key")["buckets"]
    assert (bucket["key"], bucket["request_count"]) == ("(none)", 4)


@pytest.mark.parametrize(
    ("settings", "count"),
    [({}, 2), ({"failed_scans_counted": True}, 4), ({"refused_scans_counted": True}, 3)],
)
def test_regsn_counts_the_scans_that_started(
    opened: Opened, clock: ManualClock, settings: dict[str, bool], count: int
) -> None:
    customer = Customer(opened(regsn=settings))
    key = customer.key("regsn")
    scan = {"kind": "scan", "method": "POST", "route": "/v1/scans"}
    refused = {**scan, "status": 402, "denied_reason": "budget_exhausted"}
    events = [scan, {**scan, "status": 202}, {**scan, "status": 422}, {**scan, "status": 500}, refused]
    customer.record(key, *events)
    clock.advance(seconds=1)
    totals = customer.usage("regsn", key)["totals"]
    assert (totals["request_count"], totals["scan_count"]) == (5, count)


def test_shoal_can_count_its_429s(opened: Opened, clock: ManualClock) -> None:
    customer = Customer(opened(shoal={"refused_calls_count": True}))
    key = customer.key("shoal", limits=[Limit(name="rpm", amount=2, window="1m")])
    for _ in range(5):
        answer = customer.get(PATHS["shoal"], customer.secrets[key])
    assert answer.status_code == 429
    clock.advance(seconds=61)
    assert customer.usage("shoal", key)["data"]["today"] == 5


# -- caches, keys of any form, ids --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROFILES)
def test_no_cache_gives_an_answer_to_another_caller(shared: Local, name: str) -> None:
    customer = Customer(shared)
    key = customer.key(name)
    customer.record(key, {})
    header = "x-api-key" if name == "regpilot" else "authorization"
    good, bad = customer.secrets[key], "no-such-key"
    for path, secret in ((PATHS[name], good), (PATHS[name], bad), (f"/{name}/nowhere", good)):
        answer = customer.get(path, secret)
        assert answer.headers["cache-control"] == "private, no-store", answer.status_code
        varied = [part.strip().lower() for part in answer.headers["vary"].split(",")]
        assert header in varied
        assert "authorization" in varied
    for answer in (customer.place.request("GET", PATHS[name]), customer.place.request("HEAD", PATHS[name])):
        assert "no-store" in answer.headers["cache-control"]


def test_cheapestinferences_list_is_cached_for_one_credential(shared: Local) -> None:
    customer = Customer(shared)
    manager = unique("mk")
    customer.secrets |= set_up(
        customer.place.site, Key(id=manager, account=customer.account, role="management")
    )
    answer = customer.get("/cheapestinference/api/usage", customer.secrets[manager])
    assert (answer.headers["cache-control"], answer.headers["vary"]) == (
        "private, max-age=3600",
        "Authorization",
    )


@pytest.mark.drawn
@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize(
    "form",
    [
        "my-old-key-123-{}",
        "regsn_live_old{}",
        "old-{}.a~b/c+d==",
        "sk_old_{}",
        "{}",
        "eyJh.{}.x",
        "mk_old_{}",
    ],
)
def test_an_imported_key_of_any_form_is_good_everywhere(shared: Local, name: str, form: str) -> None:
    customer = Customer(shared)
    key, secret = unique("key"), form.format(uuid.uuid4().hex)
    entry = Key(id=key, account=customer.account, project="web", profile=name, sha256=hash_secret(secret))
    set_up(customer.place.site, entry)
    customer.record(key, {})
    assert customer.place.operate("/tk/v1/authorize", {"key": secret, "path": "/work"}).status_code == 200
    answer = customer.get(PATHS[name], secret)
    assert answer.status_code == 200, answer.text
    # In another dialect it is unknown all the same.
    other = "shoal" if name != "shoal" else "regsn"
    assert customer.get(PATHS[other], secret).status_code == 401


def test_an_imported_management_key_of_any_form_is_good(shared: Local) -> None:
    customer = Customer(shared)
    secret = f"my-manager-{uuid.uuid4().hex}"
    set_up(
        customer.place.site,
        Key(id=unique("m"), account=customer.account, role="management", sha256=hash_secret(secret)),
    )
    assert customer.get("/cheapestinference/api/usage", secret).status_code == 200
    assert customer.get(f"/tk/v1/accounts/{customer.account}", secret).status_code == 200


def test_a_key_is_inactive_from_the_end_of_its_subscription_on(opened: Opened, clock: ManualClock) -> None:
    place = opened()
    start = clock.now()
    customer = Customer(place, Plan(slug=(plan := unique("std"))))
    terms = {"account": customer.account, "plan": plan, "started_at": start}
    customer.put(Subscription(id="s", expires_at=start + timedelta(days=1), **terms))
    key = customer.key("cheapestinference", subscription="s")
    manager = unique("mk")
    customer.secrets |= set_up(place.site, Key(id=manager, account=customer.account, role="management"))
    path = f"/cheapestinference/api/usage/{key}"
    assert customer.get(path, customer.secrets[manager]).json()["isActive"] is True
    assert customer.authorize(key, cost_nanos=0).status_code == 200
    clock.advance(seconds=86_401)
    assert customer.get(path, customer.secrets[manager]).json()["isActive"] is False
    assert customer.authorize(key, cost_nanos=0).status_code == 403
    assert customer.usage("cheapestinference", key)["plan"]["status"] == "expired", "still readable"


def test_an_imported_key_shows_when_it_was_made(shared: Local) -> None:
    customer = Customer(shared)
    made = {}
    for name in ("anylayer", "cheapestinference", "regsn"):
        secret = uuid.uuid4().hex
        body = {
            "account": customer.account,
            "profile": name,
            "sha256": hash_secret(secret),
            "created_at": "2024-02-29T12:00:00+02:00",
        }
        answer = customer.place.operate("/tk/v1/keys", body)
        assert answer.status_code == 201, answer.text
        assert uuid.UUID(answer.json()["entry"]["id"])
        made[name] = secret
    usage = customer.get(PATHS["cheapestinference"], made["cheapestinference"]).json()
    assert usage["key"]["created_at"] == "2024-02-29T10:00:00.000Z"
    keys = customer.get("/anylayer/v1/developer/keys", made["anylayer"]).json()["keys"]
    assert [key["createdAt"] for key in keys] == ["2024-02-29T10:00:00Z"]
    session = customer.place.site.sessions.issue(customer.account, "ada")
    (listed,) = customer.get("/regsn/v1/keys", session).json()
    assert listed["created_at"] == "2024-02-29T10:00:00Z"
