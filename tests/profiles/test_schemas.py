"""
One schema per answer of every endpoint, errors included. Whatever was recorded, each answer fits its schema,
member order included, and its numbers agree with the native usage answer of the same range.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, NamedTuple

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.end_to_end.server import OPERATOR_KEY
from tests.profiles import test_anylayer as anylayer
from tests.profiles import test_cheapestinference as cheapestinference
from tests.profiles import test_regpilot as regpilot
from tests.profiles import test_regsn as regsn
from tests.profiles import test_shoal as shoal
from tests.profiles.places import OPERATOR, Local, made_events
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.domain.catalog import Account, Budget, Grant, Key, Plan, Project, Subscription
from tollkeeper.domain.money import NANOS_PER_UNIT, cents_half_up
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.profiles import load, names
from tollkeeper.testing import NOON, ManualClock, installation, set_up, unique

Millis = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")]
Seconds = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
Uuid = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Amount = Annotated[str, msgspec.Meta(pattern=r"^-?\d+(\.\d+)?$")]
Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    """Nothing more and nothing less, in this order."""


# -- regpilot -------------------------------------------------------------------------------------------------


class Health(Strict):
    status: str
    authenticated: bool
    project_id: str


class RegPilotError(Strict):
    error: Text
    code: str | msgspec.UnsetType = msgspec.UNSET
    headers_checked: list[str] | msgspec.UnsetType = msgspec.UNSET


# -- shoal ----------------------------------------------------------------------------------------------------


class ShoalError(Strict):
    error: Text
    path: str | msgspec.UnsetType = msgspec.UNSET
    method: str | msgspec.UnsetType = msgspec.UNSET
    retryAfter: Count | msgspec.UnsetType = msgspec.UNSET


# -- regsn ----------------------------------------------------------------------------------------------------


class RegSnKey(Strict, kw_only=True):
    id: Uuid
    name: str
    key: Annotated[str, msgspec.Meta(min_length=43, max_length=43)] | msgspec.UnsetType = msgspec.UNSET
    key_prefix: str | None
    created_at: Seconds
    last_used_at: Seconds | None
    revoked_at: Seconds | None
    project_id: str | None


class Fault(Strict):
    path: Text
    code: Text
    message: Text


class Problem(Strict):
    type: Annotated[str, msgspec.Meta(pattern="^https://api.regsn.app/problems/[a-z_]+$")]
    title: Text
    status: int
    detail: Text
    instance: Annotated[str, msgspec.Meta(pattern="^/")]
    code: Text
    request_id: Annotated[str, msgspec.Meta(pattern="^req_")]
    errors: list[Fault] | msgspec.UnsetType = msgspec.UNSET


# -- anylayer -------------------------------------------------------------------------------------------------


class Rates(Strict):
    requestsPerMinute: Count | None
    requestsPerHour: Count | None
    requestsPerDay: Count | None
    burstLimit: Count | None


class Hook(Strict):
    id: Uuid
    url: str
    events: list[str]
    status: str
    lastDelivery: Seconds | None
    deliveryCount: Count
    failureCount: Count


class MadeCounts(Strict):
    totalRequests: Count
    requestsToday: Count
    requestsThisMonth: Count


class MadeKey(Strict):
    id: Uuid
    name: str
    description: str
    permissions: list[Any]
    rateLimit: Rates
    status: str
    createdAt: Seconds
    expiry: Seconds | None
    lastUsed: Seconds | None
    usage: MadeCounts


class KeyMade(Strict):
    success: bool
    apiKey: Annotated[str, msgspec.Meta(pattern="^zk_prod_[A-Za-z0-9]{32}$")]
    keyId: Uuid
    key: MadeKey
    webhooks: list[Hook]
    timestamp: Seconds


class KeyCounts(Strict):
    totalRequests: Count
    requestsToday: Count
    requestsThisWeek: Count
    requestsThisMonth: Count
    averageRequestsPerDay: float
    peakRequestsPerHour: Count
    lastRequestAt: Seconds | None


class ListedKey(Strict):
    id: str
    name: str
    description: str
    permissions: list[Any]
    rateLimit: Rates
    status: str
    createdAt: Seconds
    expiry: Seconds | None
    lastUsed: Seconds | None
    usage: KeyCounts
    webhooks: list[Hook]
    metadata: dict[str, Any]


class Page(Strict):
    total: Count
    limit: Count
    offset: Count
    hasMore: bool


class Summary(Strict):
    totalKeys: Count
    activeKeys: Count
    inactiveKeys: Count
    expiredKeys: Count
    revokedKeys: Count
    totalRequests: Count
    requestsToday: Count
    averageRequestsPerKey: float


class KeyList(Strict):
    success: bool
    keys: list[ListedKey]
    pagination: Page
    summary: Summary
    timestamp: Seconds


class KeyRevoked(Strict):
    success: bool
    keyId: Uuid
    status: str
    revokedAt: Seconds
    timestamp: Seconds


class Flat(Strict):
    success: bool
    error: Annotated[str, msgspec.Meta(pattern="^[A-Z_]+$")]
    message: Text
    timestamp: Seconds
    supported: list[str] | msgspec.UnsetType = msgspec.UNSET


# -- cheapestinference ----------------------------------------------------------------------------------------


class OfferRates(Strict):
    tpm_limit: Count
    rpm_limit: Count


class Offer(Strict):
    slug: Text
    name: str
    priceUsdc: Amount
    rateLimits: OfferRates


class Named(Strict):
    id: str
    name: str


class Subscribed(Strict):
    id: str
    planSlug: str
    status: str
    currentPeriodEnd: Millis | None
    cancelAtPeriodEnd: bool
    keyCount: Count
    keys: list[Named]


class Billing(Strict):
    subscriptions: list[Subscribed]
    creditBalance: Amount
    legacySubscriptionKeys: list[str]


class Credits(Strict):
    totalTopUp: Amount
    remaining: Amount
    hasCreditKey: bool
    creditKeyId: str | None


class Deleted(Strict):
    success: bool


class OpenAi(Strict):
    message: Text
    type: Text
    code: Text


class V1Error(Strict):
    error: OpenAi


class ApiError(Strict):
    success: bool
    error: Text


ANSWERS: Final[dict[tuple[str, str, str], Any]] = {
    ("regpilot", "GET", "/api/usage"): regpilot.UsageBody,
    ("regpilot", "GET", "/api/health"): Health,
    ("shoal", "GET", "/v1/usage"): shoal.UsageBody,
    ("regsn", "GET", "/v1/usage"): regsn.UsageBody,
    ("regsn", "POST", "/v1/keys"): RegSnKey,
    ("regsn", "GET", "/v1/keys"): list[RegSnKey],
    ("regsn", "DELETE", "/v1/keys/{key_id}"): None,
    **{
        ("anylayer", method, prefix + path): schema
        for prefix in ("", "/api")
        for method, path, schema in (
            ("GET", "/v1/developer/usage", anylayer.UsageBody),
            ("POST", "/v1/developer/keys", KeyMade),
            ("GET", "/v1/developer/keys", KeyList),
            ("DELETE", "/v1/developer/keys/{keyId}", KeyRevoked),
        )
    },
    ("cheapestinference", "GET", "/v1/usage"): cheapestinference.UsageShape,
    ("cheapestinference", "GET", "/api/usage"): cheapestinference.ListShape,
    ("cheapestinference", "GET", "/api/usage/{keyId}"): cheapestinference.ItemShape,
    ("cheapestinference", "GET", "/api/plans"): list[Offer],
    ("cheapestinference", "GET", "/api/keys"): list[cheapestinference.KeyItemShape],
    ("cheapestinference", "POST", "/api/keys/credit"): cheapestinference.KeyItemShape,
    ("cheapestinference", "POST", "/api/keys/subscription"): cheapestinference.KeyItemShape,
    ("cheapestinference", "PATCH", "/api/keys/{keyId}"): cheapestinference.KeyItemShape,
    ("cheapestinference", "DELETE", "/api/keys/{keyId}"): Deleted,
    ("cheapestinference", "GET", "/api/billing/status"): Billing,
    ("cheapestinference", "GET", "/api/billing/credits"): Credits,
}
"""Profile, method and template → the schema of a good answer."""

ERRORS: Final[dict[str, Any]] = {
    "regpilot": RegPilotError,
    "shoal": ShoalError,
    "regsn": Problem,
    "anylayer": Flat,
    "cheapestinference /v1": V1Error,
    "cheapestinference /api": ApiError,
}


def test_every_endpoint_has_a_schema_and_no_other() -> None:
    served = {(name, e.method, e.path) for name in names() for e in load(name).endpoints}
    assert set(ANSWERS) == served


def fits(found: httpx.Response, profile: str, template: str) -> Any:
    """Return the body of an answer, read by its schema; fails unless that is all of it, in its order."""
    schema = ANSWERS[profile, found.request.method, template]
    if found.status_code >= 400:
        schema = ERRORS.get(profile) or ERRORS[f"{profile} /{template.split('/')[1]}"]
    if schema is None:
        assert (found.status_code, found.content) == (204, b"")
        return None
    body = msgspec.json.decode(found.content, type=schema)
    again = json.loads(msgspec.json.encode(body), object_pairs_hook=list)
    assert again == json.loads(found.content, object_pairs_hook=list), found.text
    return body


class Customer(NamedTuple):
    """An account with one key per profile, all of one project, and who may manage it."""

    account: str
    project: str
    keys: dict[str, str]
    """Profile → the id of its key."""
    secrets: dict[str, str]
    """Profile, or `manager` → the secret; `session` → a token."""


class Place(Local):
    """All profiles under their prefixes."""

    def customer(self) -> Customer:
        account, project = unique("acct"), unique("project")
        subscription = Subscription(
            id=unique("sub"), account=account, plan="capped", started_at=datetime(2026, 3, 1, tzinfo=UTC),
            expires_at=datetime(2026, 4, 1, tzinfo=UTC),
        )  # fmt: skip
        ids = {name: str(uuid.uuid4()) for name in names()}
        keys = [
            Key(
                id=key_id,
                account=account,
                project=project,
                profile=name,
                subscription=subscription.id if name == "cheapestinference" else None,
            )
            for name, key_id in ids.items()
        ]
        made = set_up(
            self.site,
            Account(id=account, name="Acme"),
            Project(id=project, account=account),
            subscription,
            Budget(id="monthly", account=account, project=project, amount=10**15),
            Grant(id=unique("grant"), account=account, amount_nanos=5 * NANOS_PER_UNIT),
            Key(id=unique("mk"), account=account, role="management"),
            *keys,
        )
        secrets = {name: made.pop(key_id) for name, key_id in ids.items()}
        (secrets["manager"],) = made.values()
        secrets["session"] = self.site.sessions.issue(account, "ada")
        return Customer(account, project, ids, secrets)

    def ask(
        self, customer: Customer, profile: str, template: str, method: str = "GET", **options: Any
    ) -> Any:
        """Ask an endpoint with the credential that it takes; return the answer, read by its schema."""
        who = profile
        if profile == "cheapestinference" and template.startswith("/api/"):
            who = "manager"
        if profile == "regsn" and template.startswith("/v1/keys"):
            who = "session"
        key_id = options.pop("key_id", "")
        path = template.replace("{keyId}", key_id).replace("{key_id}", key_id)
        headers = {"Authorization": f"Bearer {options.pop('credential', customer.secrets[who])}"}
        found = self.request(method, f"/{profile}{path}", headers=headers, **options)
        return fits(found, profile, template)

    def native(self, customer: Customer, since: datetime, until: datetime, **filters: str) -> dict[str, Any]:
        """Return the totals of our own usage answer."""
        params = {
            "account": customer.account,
            "from": since.isoformat(),
            "to": until.isoformat(),
            "measures": "requests,failed,denied,tokens,prompt_tokens,cached_prompt_tokens,completion_tokens,"
            "reasoning_tokens,cost_nanos,credits,cache_hits,cache_misses,bytes_out,kinds",
            **filters,
        }
        found = self.request("GET", "/tk/v1/usage", params=params, headers=OPERATOR)
        assert found.status_code == 200, found.text
        totals: dict[str, Any] = found.json()["totals"]
        return {name: int(value) if isinstance(value, str) else value for name, value in totals.items()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("schemas")
    with installation(directory, clock=ManualClock(), store=usage_store) as site:
        ensure_operator_key(site, OPERATOR_KEY)
        set_up(site, *(entry for name in names() for entry in parse_declaration(load(name).catalog)))
        capped = {"name": "spend", "amount": 10**13, "period": "30d", "per": "subscription"}
        set_up(site, msgspec.convert({"slug": "capped", "budgets": [capped]}, Plan))
        app = build_app(site)
        yield Place(app)
        app.close()


EVENTS: Final = st.lists(
    st.fixed_dictionaries(
        {"profile": st.sampled_from(names()), "age_s": st.sampled_from([0, 1, 3599, 3601, 86_399, 86_401, 700_000])},
        optional={
            "method": st.sampled_from(["GET", "POST"]),
            "route": st.sampled_from(["/v1/scans", "/v1/ü", "/"]),
            "kind": st.sampled_from(["scan", "export", "read"]),
            "status": st.sampled_from([0, 200, 204, 399, 400, 402, 429, 500, 999]),
            "error_type": st.sampled_from(["", "RATE_LIMIT_EXCEEDED", "odd"]),
            "denied_reason": st.sampled_from(["rate_limited", "budget_exhausted"]),
            "latency_ms": st.sampled_from([0, 0.001, 12.5, 86_400_000]),
            "bytes_out": st.integers(0, 2**40),
            "model": st.sampled_from(["openai/gpt-4o", 'a"b\\c', "ü"]),
            "tokens": st.fixed_dictionaries(
                {},
                optional={
                    name: st.integers(0, 10**9) for name in ("prompt", "cached_prompt", "completion", "reasoning")
                },
            ),
            "cache": st.sampled_from(["hit", "miss", "none"]),
            "credits": st.integers(0, 10**6),
            "cost_nanos": st.integers(0, 10**12),
        },
    ),
    max_size=12,
)  # fmt: skip


def dollars(nanos: int) -> float:
    return nanos / NANOS_PER_UNIT


@settings(
    max_examples=3,
    deadline=None,
    # Some sixty questions each: what fails is short enough as it is.
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(events=EVENTS)
@example(events=[])
@example(events=[{"profile": name, "age_s": 0, "cost_nanos": 5_000_000, "kind": "scan"} for name in names()])
def test_whatever_was_recorded_each_answer_fits_and_agrees(
    place: Place, events: list[dict[str, Any]]
) -> None:
    customer = place.customer()
    sent = []
    for event in events:
        fields = {"cost_nanos": 0, **event}
        at, key_id = NOON - timedelta(seconds=fields.pop("age_s")), customer.keys[fields.pop("profile")]
        sent += made_events(key_id, at, fields)
    if sent:
        found = place.operate("/tk/v1/events", sent)
        assert found.json().get("accepted") == len(sent), found.text
    now = NOON + timedelta(microseconds=1)
    day, month = NOON.replace(hour=0), NOON.replace(day=1, hour=0)
    week = day - timedelta(days=2)

    for period, since in (("day", day), ("week", week), ("month", month)):
        query = {"projectId": customer.project, "period": period}
        pilot = place.ask(customer, "regpilot", "/api/usage", params=query)
        # What was refused reached no model and no cache.
        native = place.native(customer, since, now, project=customer.project, denied_reason="")
        assert (pilot.cache.hits, pilot.cache.misses) == (native["cache_hits"], native["cache_misses"])
        spent = place.native(customer, month, now, project=customer.project)["cost_nanos"]
        assert pilot.budget.used == dollars(spent)
        if all("model" in event for event in events):
            assert sum(model.requests for model in pilot.models.values()) == native["requests"]
            assert sum(model.tokens for model in pilot.models.values()) == native["tokens"]
    assert place.ask(customer, "regpilot", "/api/health").project_id == customer.project

    answered = place.ask(customer, "shoal", "/v1/usage").data
    for shown, since in ((answered.today, day), (answered.thisWeek, week), (answered.thisMonth, month)):
        mine = customer.keys["shoal"]
        native = place.native(customer, since, now, key=mine)
        refused = place.native(customer, since, now, key=mine, status="429")["requests"]
        spent = place.native(customer, since, now, key=mine, denied_reason="budget_exhausted")["requests"]
        both = place.native(customer, since, now, key=mine, denied_reason="budget_exhausted", status="429")[
            "requests"
        ]
        # The dialect answers 429 to spent credits, which are booked with the status of our gate.
        # Its own call to the usage endpoint came after what it tells of.
        assert shown == native["requests"] - 1 - refused - spent + both
    assert answered.budget.used == place.native(customer, month, now, key=mine)["credits"]

    # What the calls above booked is there too: of one range, the same moment.
    since = NOON - timedelta(days=30)
    for axis in ("day", "endpoint", "key"):
        native = place.native(customer, since, now)
        params = {"group_by": axis, "from": since.isoformat(), "to": now.isoformat()}
        body = place.ask(customer, "regsn", "/v1/usage", params=params)
        assert body.totals.request_count == native["requests"] == sum(b.request_count for b in body.buckets)
        assert body.totals.total_cost_cents == cents_half_up(native["cost_nanos"])
        scans = native["kinds"].get("scan", 0)
        # Neither what was refused nor what failed is a scan. Some is both; some was refused with a status of success.
        scans -= place.native(customer, since, now, kind="scan")["failed"]
        for reason in ("rate_limited", "budget_exhausted"):
            refused = place.native(customer, since, now, kind="scan", denied_reason=reason)
            scans -= refused["requests"] - refused["failed"]
        assert body.totals.scan_count == scans == sum(b.scan_count for b in body.buckets)

    native = place.native(customer, NOON - timedelta(days=30), now)
    body = place.ask(
        customer, "anylayer", "/v1/developer/usage", params={"timeframe": "30d", "limit": "1000"}
    )
    assert (body.usage.totalRequests, body.usage.failedRequests) == (native["requests"], native["failed"])
    assert body.usage.dataTransferred == native["bytes_out"]
    assert sum(point.requests for point in body.timeSeries) == native["requests"]
    listed = place.ask(customer, "anylayer", "/v1/developer/keys")
    mine = place.native(customer, datetime(2026, 1, 1, tzinfo=UTC), now, key=customer.keys["anylayer"])
    assert listed.summary.totalRequests == mine["requests"] == listed.keys[0].usage.totalRequests

    spans = {"last1h": 3600, "last24h": 86_400, "last7d": 7 * 86_400, "last30d": 30 * 86_400}
    key_id = customer.keys["cheapestinference"]
    (item,) = place.ask(customer, "cheapestinference", "/api/usage").data
    assert item == place.ask(customer, "cheapestinference", "/api/usage/{keyId}", key_id=key_id)
    for name, span_s in spans.items():
        native = place.native(customer, NOON - timedelta(seconds=span_s), now, key=key_id)
        window = getattr(item.usage, name)
        assert window.requests == native["requests"] - native["denied"]
        assert window.tokens == native["tokens"] == window.promptTokens + window.completionTokens
        assert window.promptTokens == native["prompt_tokens"] + native["cached_prompt_tokens"]
    usage = place.ask(customer, "cheapestinference", "/v1/usage")
    spent = place.native(customer, NOON - timedelta(days=17, hours=12), now, key=key_id)["cost_nanos"]
    assert usage.budget.spent == dollars(spent)


def test_keys_and_billing_fit_their_schemas(place: Place) -> None:
    """The endpoints that are not about usage, from the making of a key to its end."""
    customer = place.customer()
    made = place.ask(customer, "regsn", "/v1/keys", "POST", json={"name": "a"})
    assert {key.id for key in place.ask(customer, "regsn", "/v1/keys")} >= {made.id}
    place.ask(customer, "regsn", "/v1/keys/{key_id}", "DELETE", key_id=made.id)

    body = {
        "name": "b", "rateLimit": {"requestsPerMinute": 5, "burstLimit": 2}, "expiry": "2026-05-01T00:00:00Z",
        "webhooks": [{"url": "https://example.com", "events": ["score.updated"], "secret": "s"}],
        "permissions": [{"resource": "all", "actions": ["read"]}], "metadata": {"a": [1]},
    }  # fmt: skip
    for prefix in ("", "/api"):
        made = place.ask(customer, "anylayer", prefix + "/v1/developer/keys", "POST", json=body)
        listed = place.ask(customer, "anylayer", prefix + "/v1/developer/keys")
        assert made.keyId in {key.id for key in listed.keys}
        path = prefix + "/v1/developer/keys/{keyId}"
        assert place.ask(customer, "anylayer", path, "DELETE", key_id=made.keyId).status == "revoked"

    name = "cheapestinference"
    credit = place.ask(customer, name, "/api/keys/credit", "POST", json={"name": "c"})
    billing = place.ask(customer, name, "/api/billing/status")
    subscription = billing.subscriptions[0].id
    body = {"name": "d", "subscriptionId": subscription}
    second = place.ask(customer, name, "/api/keys/subscription", "POST", json=body)
    assert len(place.ask(customer, name, "/api/keys")) == 3
    assert place.ask(customer, name, "/api/billing/credits").creditKeyId == credit.id
    off = place.ask(customer, name, "/api/keys/{keyId}", "PATCH", key_id=second.id, json={"isActive": False})
    assert not off.isActive
    assert place.ask(customer, name, "/api/keys/{keyId}", "DELETE", key_id=second.id).success
    assert [offer.slug for offer in place.ask(customer, name, "/api/plans")] == ["standard", "pro"]


@pytest.mark.parametrize(
    ("profile", "method", "template"), ANSWERS, ids=[" ".join(endpoint) for endpoint in ANSWERS]
)
def test_every_error_fits_its_schema(place: Place, profile: str, method: str, template: str) -> None:
    """Without a good credential, and with nothing good in the request."""
    customer = place.customer()
    for credential in ("", "nobody"):
        place.ask(customer, profile, template, method, credential=credential, key_id="x")
    bad = {"projectId": "x", "period": "x", "from": "x", "timeframe": "x", "limit": "x"}
    place.ask(customer, profile, template, method, key_id="x", params=bad, content=b"[]")
