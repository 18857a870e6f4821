"""
The dialect of CheapestInference: budgets in dollars per subscription pool, four rolling windows per key.

Two surfaces: `/v1` speaks snake_case to consumption keys (`sk_…`) with errors as OpenAI has them, `/api`
speaks camelCase to dashboard sessions and management keys (`mk_…`). Money is shown in dollars: as JSON
numbers in the usage answers, as text in the billing ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec

from tollkeeper.domain.bounds import Customer
from tollkeeper.domain.catalog import ID_PATTERN, Key, Limit, Plan, Route, Subscription
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.entitlements import BudgetScope, Entitlement
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.money import NANOS_PER_UNIT, format_nanos
from tollkeeper.domain.periods import check_period, duration_s, period_of
from tollkeeper.domain.usage import PAGE_SIZE_MAX, UsageQuery
from tollkeeper.errors import BadInput, Conflict, Forbidden, NotFound, Unavailable
from tollkeeper.profiles.base import Call, Endpoint, ErrorStatus, Metered, ProfileContext, Reply

NAME: Final = "cheapestinference"

WINDOWS: Final = (
    ("last1h", timedelta(hours=1)),
    ("last24h", timedelta(hours=24)),
    ("last7d", timedelta(days=7)),
    ("last30d", timedelta(days=30)),
)
LIST_LIMIT: Final = Limit(name="usage-list", amount=12, window="12h")
"""Per account, whoever asks: the vendor's figure."""
V1_USAGE: Final = Route(id="cheapestinference-usage", method="GET", path="/v1/usage", free=True)
TEXT_CHARS_MAX: Final = 256
"""As the catalog's: longest name of a key."""
_SECRET_PREFIXES: Final = ("sk_", "sk-")
_HOUR: Final = timedelta(hours=1)
_COUNTS: Final = (
    "requests",
    "denied",
    "prompt_tokens",
    "cached_prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
)

SETTINGS: Final[Mapping[str, Any]] = {
    # 404 tells a deleted key from one that never was (401); 401 would hide the difference.
    "deleted_key_status": 404,
    # Seconds after its subscription's end in which a key still reads its usage, before it counts as revoked.
    "expired_grace_s": 86_400,
    # "first_call": the 12 hours begin with the first call after the last 12; "sliding": any 12 hours.
    "list_limit_window": "first_call",
    # Who shares the 12 calls: all who sign in to the account, or each "credential" has its own.
    "list_limit_per": "account",
    # "newest" or "oldest" key first.
    "list_order": "newest",
    # Of GET /api/plans: by "price", or by "slug".
    "plans_order": "price",
    # What `budget` of /v1/usage shows: the "pool" of the subscription, or what the "key" alone spent of it.
    "budget_shows": "pool",
    # Whether calls of /v1/usage are requests in the windows of their key.
    "usage_calls_count": False,
    # Calls of GET /api/usage/{keyId} per minute and account.
    "single_key_per_minute": 60,
    # Whether GET /api/usage/{keyId} wraps its item in success and data, as the list does.
    "single_key_envelope": False,
    # max-age of GET /api/usage in seconds; 0 sends no Cache-Control.
    "list_cache_s": 3600,
    # Whether requests that the gate refused count in the windows.
    "count_refused": False,
    # The reset interval that is shown for a subscription whose plan has no budget in money.
    "uncapped_duration": "30d",
    # Whether /api/keys and the two /api/billing answers come in success and data, as in later years.
    "keys_envelope": False,
    "billing_envelope": False,
    # Plan of credit keys made here, if it exists; else they get so many requests per minute.
    "credit_plan": "cheapestinference-credits",
    "credit_rpm": 60,
    # Of metered calls when the account's credit is used up.
    "credit_exhausted_status": 402,
}

SETTING_TYPES: Final[Mapping[str, Any]] = {
    "deleted_key_status": Literal[404, 401],
    "list_limit_window": Literal["first_call", "sliding"],
    "list_limit_per": Literal["account", "credential"],
    "list_order": Literal["newest", "oldest"],
    "plans_order": Literal["price", "slug"],
    "budget_shows": Literal["pool", "key"],
    "single_key_per_minute": Annotated[int, msgspec.Meta(ge=1, le=10**9)],
    "uncapped_duration": check_period,
    "credit_rpm": Annotated[int, msgspec.Meta(ge=1, le=10**9)],
    "credit_exhausted_status": ErrorStatus,
}

CATALOG: Final = """
[[plans]]
slug = "cheapestinference-standard"
name = "Standard"
price_nanos = 20_000_000_000
limits = [
  { name = "rpm", amount = 60 },
  { name = "tpm", amount = 3_333, unit = "tokens" },
]
metadata = { profile = "cheapestinference", slug = "standard" }

[[plans]]
slug = "cheapestinference-pro"
name = "Pro"
price_nanos = 60_000_000_000
limits = [
  { name = "rpm", amount = 200 },
  { name = "tpm", amount = 13_333, unit = "tokens" },
]
metadata = { profile = "cheapestinference", slug = "pro" }

[[plans]]
slug = "cheapestinference-credits"
name = "Credits"
limits = [{ name = "rpm", amount = 60 }]
sellable = false
metadata = { profile = "cheapestinference", slug = "credits" }

[[routes]]
id = "cheapestinference-chat"
method = "POST"
path = "/v1/chat/completions"
event_kind = "chat"
profile = "cheapestinference"

[[routes]]
id = "cheapestinference-completions"
method = "POST"
path = "/v1/completions"
event_kind = "completion"
profile = "cheapestinference"

[[routes]]
id = "cheapestinference-embeddings"
method = "POST"
path = "/v1/embeddings"
event_kind = "embedding"
profile = "cheapestinference"

[[routes]]
id = "cheapestinference-models"
method = "GET"
path = "/v1/models"
event_kind = "models"
free = true
profile = "cheapestinference"
"""


class _Stop(Exception):
    """The answer is settled: nothing more to find out."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


# -- /v1/usage -----------------------------------------------------------------------------------------


def _v1_usage(call: Call, context: ProfileContext) -> Reply:
    key, entitlement = _consumption_key(call, context)
    denial = context.pass_limits(key, V1_USAGE)
    if denial is not None:
        return _refusal(call, denial, entitlement)
    rpm, tpm = _per_minute(entitlement)
    credit = key.entry.type == "credit"
    status, expires_at = _plan_status(entitlement.subscription, call.now)
    reply = Reply(
        200,
        {
            "budget": _budget(call, context, key, entitlement),
            "rate_limits": {"rpm": rpm, "tpm": None if credit else tpm},
            "plan": {
                "slug": None if credit else _slug(entitlement.plan),
                "status": None if credit else status,
                "expires_at": None if credit else expires_at,
            },
            "credits": {"balance": dollars(context.balance_nanos(key.entry.account))},
            "key": {
                "name": key.entry.name,
                "type": key.entry.type,
                "created_at": timestamp(from_us(key.created_at_us)),
            },
        },
    )
    if context.settings["usage_calls_count"]:
        context.record(key, V1_USAGE, reply.status)
    return reply


def _consumption_key(call: Call, context: ProfileContext) -> tuple[StoredKey, Entitlement]:
    """Return the key that asks, good to read usage, and what it permits."""
    secret = _bearer(call.headers)
    key = context.find_key(secret) if secret.startswith(_SECRET_PREFIXES) else None
    if key is None:
        raise _Stop(_key_refusal("key_unknown" if secret else "key_missing"))
    if key.entry.state == "deleted":
        if context.settings["deleted_key_status"] == 404:
            raise _Stop(_key_refusal("key_deleted"))
        raise _Stop(_key_refusal("key_unknown"))
    entitlement = context.entitlement(key)
    if entitlement is None:
        raise _Stop(_key_refusal("key_deleted"))
    if not entitlement.account.active or not _is_active(key, entitlement.subscription, call.now, context):
        raise _Stop(_key_refusal("key_inactive"))
    return key, entitlement


def _budget(call: Call, context: ProfileContext, key: StoredKey, entitlement: Entitlement) -> dict[str, Any]:
    """Return the budget of the key's pool: what its period has spent, not what open calls hold."""
    account_id = key.entry.account
    if key.entry.type == "credit":
        # A credit key has no period: what it spent in all.
        spent_nanos = _spent_nanos(
            context, account_id, {"key": tuple(context.rotation_chain(key))}, 0, _hour_after(call.now)
        )
        return _budget_of(spent_nanos, None, None, None)
    subscription = entitlement.subscription
    scope = _pool(entitlement)
    if scope is None:
        duration = str(context.settings["uncapped_duration"])
        anchor_at = subscription.started_at if subscription else from_us(key.created_at_us)
        span = period_of(call.now, duration, anchor_at=anchor_at)
        start_us, end_us = to_us(span.start_at), to_us(span.end_at)
        filters = {"key": _subscribed(context, key, None)}
        amount = None
    else:
        duration = scope.period
        start_us, end_us = scope.span_us(to_us(call.now))
        filters = _members(context, key, scope)
        amount = scope.amount
    if context.settings["budget_shows"] == "key":
        filters = {"key": tuple(context.rotation_chain(key))}
    to = min(end_us, _hour_after(call.now))
    spent_nanos = _spent_nanos(context, account_id, filters, start_us, to)
    resets_at = None if duration == "total" else timestamp(from_us(end_us))
    return _budget_of(spent_nanos, amount, duration, resets_at)


def _budget_of(
    spent_nanos: int, amount_nanos: int | None, duration: str | None, resets_at: str | None
) -> dict[str, Any]:
    return {
        "spent": dollars(spent_nanos),
        "limit": None if amount_nanos is None else dollars(amount_nanos),
        "duration": duration,
        "resets_at": resets_at,
    }


def _pool(entitlement: Entitlement) -> BudgetScope | None:
    """Return the budget in money that `/v1/usage` shows: the plan's first, else the first of any."""
    scopes = [scope for scope in entitlement.budgets if scope.unit == "nanos"]
    scopes.sort(key=lambda scope: not scope.counter_id.startswith("plan:"))
    return scopes[0] if scopes else None


def _members(context: ProfileContext, key: StoredKey, scope: BudgetScope) -> dict[str, tuple[str, ...]]:
    """Return the filter of the events that *scope*, a budget of *key*, counts."""
    if scope.key_id is not None:
        return {"key": tuple(context.rotation_chain(key))}
    if scope.subscription_id is not None:
        return {"key": _subscribed(context, key, scope)}
    filters: dict[str, tuple[str, ...]] = {}
    if scope.project_id is not None:
        filters["project"] = (scope.project_id,)
    if scope.counter_id.startswith("plan:"):
        filters["key"] = tuple(
            other.entry.id
            for other in context.keys(key.entry.account)
            if (compiled_keys := context.entitlement(other)) is not None
            and any(budget.counter_id == scope.counter_id for budget in compiled_keys.budgets)
        )
    return filters


def _subscribed(context: ProfileContext, key: StoredKey, scope: BudgetScope | None) -> tuple[str, ...]:
    """Return the ids of the keys, deleted ones too, that share the subscription's pool with *key*."""
    entry = key.entry
    if entry.subscription is None:
        return tuple(context.rotation_chain(key))
    return tuple(
        other.entry.id
        for other in context.keys(entry.account)
        if other.entry.subscription == entry.subscription
        # A key on a plan of its own is in that plan's pool.
        and (scope is None or other.entry.plan == entry.plan)
    )


def _spent_nanos(
    context: ProfileContext, account_id: str, filters: Mapping[str, tuple[str, ...]], from_us_: int, to: int
) -> int:
    query = UsageQuery(
        account_id=account_id, from_us=from_us_, to_us=to, filters=filters, measures=("cost_nanos",)
    )
    return int(context.usage(query).totals["cost_nanos"])


# -- /api/usage ----------------------------------------------------------------------------------------


def _api_usage(call: Call, context: ProfileContext) -> Reply:
    account_id = _dashboard_account(call, context)
    counter = NAME + ".usage"
    if context.settings["list_limit_per"] == "credential":
        counter += ":" + hashlib.sha256(_bearer(call.headers).encode()).hexdigest()[:32]
    from_first = context.settings["list_limit_window"] == "first_call"
    limit = LIST_LIMIT if from_first else _sliding(LIST_LIMIT)

    def listed() -> Reply:
        keys = _listed(context, account_id)
        cache_s = int(context.settings["list_cache_s"])
        headers = [("Cache-Control", f"private, max-age={cache_s}")] if cache_s else []
        return Reply(200, {"success": True, "data": _items(call, context, account_id, keys, ())}, headers)

    return _limited(context, account_id, counter, limit, listed, from_first=from_first)


def _limited(
    context: ProfileContext,
    account_id: str,
    counter: str,
    limit: Limit,
    answer: Callable[[], Reply],
    *,
    from_first: bool = False,
) -> Reply:
    """Return *answer* within *limit*; a call that fails on our side counts against nothing."""
    counted = context.spend(account_id, counter, limit, from_first=from_first)
    if isinstance(counted, Denial):
        return _api_limited(counted)
    try:
        return answer()
    except _Stop:
        raise
    except Exception:
        context.give_back(counted)
        raise


def _listed(context: ProfileContext, account_id: str) -> list[StoredKey]:
    """Return the keys that a list shows, in its order."""
    keys = [key for key in context.keys(account_id) if key.entry.state != "deleted"]
    return keys if context.settings["list_order"] == "newest" else keys[::-1]


def _api_usage_of_key(call: Call, context: ProfileContext) -> Reply:
    account_id = _dashboard_account(call, context)
    limit = Limit(name="usage-key", amount=int(context.settings["single_key_per_minute"]), window="1m")

    def single() -> Reply:
        key = _own_key(call, context, account_id)
        item = _items(call, context, account_id, [key], (key.entry.id,))[0]
        return Reply(200, _wrapped(item, context.settings["single_key_envelope"]))

    return _limited(context, account_id, NAME + ".usage-key", limit, single)


def _items(
    call: Call, context: ProfileContext, account_id: str, keys: Sequence[StoredKey], only: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the items of *keys*; *only* names the keys whose usage is asked for, all when empty."""
    if not keys:
        return []
    plans = _Plans(context, account_id)
    windows = {
        name: _counts_by_key(call, context, account_id, call.now - span, only) for name, span in WINDOWS
    }
    items = []
    for key in keys:
        subscription = plans.subscription_of(key)
        credit = key.entry.type == "credit"
        item: dict[str, Any] = {
            "id": key.entry.id,
            "name": key.entry.name,
            "type": key.entry.type,
            "plan": plans.slug_of(key),
            "isActive": _is_active(key, subscription, call.now, context),
            "usage": {name: counts.get(key.entry.id) or _window({}) for name, counts in windows.items()},
        }
        if not credit:
            status, expires_at = _plan_status(subscription, call.now)
            item["subscription"] = {"status": status, "expiresAt": expires_at}
        item["createdAt"] = timestamp(from_us(key.created_at_us))
        items.append(item)
    return items


def _counts_by_key(
    call: Call, context: ProfileContext, account_id: str, since: datetime, only: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """Return key id → its counts from *since* on."""
    counts: dict[str, dict[str, int]] = {}
    row_count = 1
    offset = 0
    while offset < row_count:
        query = UsageQuery(
            account_id=account_id,
            from_us=to_us(since),
            to_us=_hour_after(call.now),
            group_by=("key",),
            filters={"key": only} if only else {},
            measures=_COUNTS,
            limit=PAGE_SIZE_MAX,
            offset=offset,
        )
        report = context.usage(query)
        for row in report.rows:
            counts[str(row["key"])] = _window(row, refused=bool(context.settings["count_refused"]))
        row_count = report.row_count
        offset += PAGE_SIZE_MAX
    return counts


def _window(row: Mapping[str, int], *, refused: bool = False) -> dict[str, int]:
    prompt = row.get("prompt_tokens", 0) + row.get("cached_prompt_tokens", 0)
    completion = row.get("completion_tokens", 0) + row.get("reasoning_tokens", 0)
    return {
        "requests": row.get("requests", 0) - (0 if refused else row.get("denied", 0)),
        "tokens": prompt + completion,
        "promptTokens": prompt,
        "completionTokens": completion,
    }


# -- /api/plans, /api/keys, /api/billing ---------------------------------------------------------------


def _plans(call: Call, context: ProfileContext) -> Reply:
    sold = [plan for plan in context.plans() if plan.sellable and plan.metadata.get("profile", NAME) == NAME]
    offers = []
    by_price = context.settings["plans_order"] == "price"
    for plan in sorted(sold, key=lambda plan: (plan.price_nanos if by_price else 0, plan.slug)):
        rpm, tpm = _amount_per_minute(plan.limits, "requests"), _amount_per_minute(plan.limits, "tokens")
        # A plan without either is another dialect's: this one sells both.
        if rpm is not None and tpm is not None:
            offers.append(
                {
                    "slug": _slug(plan),
                    "name": plan.name,
                    "priceUsdc": format_nanos(plan.price_nanos, places_min=0),
                    "rateLimits": {"tpm_limit": tpm, "rpm_limit": rpm},
                }
            )
    return Reply(200, offers)


def _list_keys(call: Call, context: ProfileContext) -> Reply:
    account_id = _dashboard_account(call, context)
    plans = _Plans(context, account_id)
    keys = _listed(context, account_id)
    items = [_key_item(call, context, plans, key) for key in keys]
    return Reply(200, _wrapped(items, context.settings["keys_envelope"]))


def _make_credit_key(call: Call, context: ProfileContext) -> Reply:
    by = _dashboard_customer(call, context)
    account_id = by.account_id
    name = _text(_body(call), "name")
    if context.balance_nanos(account_id) <= 0:
        return _api_error(402, "Insufficient credits: top up first")
    slug = str(context.settings["credit_plan"])
    plan = slug if any(plan.slug == slug for plan in context.plans()) else None
    limits = None if plan else [Limit(name="rpm", amount=int(context.settings["credit_rpm"]))]
    key = Key(
        id=context.new_key_id(),
        account=account_id,
        name=name,
        type="credit",
        profile=NAME,
        plan=plan,
        limits=limits,
    )
    return _made(call, context, key, by)


def _make_subscription_key(call: Call, context: ProfileContext) -> Reply:
    by = _dashboard_customer(call, context)
    account_id = by.account_id
    body = _body(call)
    name, subscription_id = _text(body, "name"), _text(body, "subscriptionId")
    subscription = _Plans(context, account_id).subscriptions.get(subscription_id)
    if subscription is None:
        return _api_error(404, "Subscription not found")
    if _plan_status(subscription, call.now)[0] != "active":
        return _api_error(409, "Subscription is not active")
    key = Key(
        id=context.new_key_id(), account=account_id, name=name, profile=NAME, subscription=subscription_id
    )
    return _made(call, context, key, by)


def _made(call: Call, context: ProfileContext, key: Key, by: Customer) -> Reply:
    try:
        stored, secret = context.issue_key(key, by)
    except Forbidden as exc:
        return _api_error(403, str(exc))
    item = _key_item(call, context, _Plans(context, key.account), stored)
    return Reply(201, _wrapped({**item, "apiKey": secret}, context.settings["keys_envelope"]))


def _patch_key(call: Call, context: ProfileContext) -> Reply:
    account_id = _dashboard_account(call, context)
    key = _own_key(call, context, account_id)
    active = _body(call).get("isActive")
    if not isinstance(active, bool):
        return _api_error(400, "isActive must be true or false")
    try:
        context.set_key_state(key, "active" if active else "inactive", Customer(account_id))
    except Forbidden as exc:
        return _api_error(403, str(exc))
    item = _key_item(call, context, _Plans(context, account_id), context.key(key.entry.id) or key)
    return Reply(200, _wrapped(item, context.settings["keys_envelope"]))


def _delete_key(call: Call, context: ProfileContext) -> Reply:
    account_id = _dashboard_account(call, context)
    key = _own_key(call, context, account_id)
    context.set_key_state(key, "deleted", Customer(account_id))
    return Reply(200, {"success": True})


def _key_item(call: Call, context: ProfileContext, plans: _Plans, key: StoredKey) -> dict[str, Any]:
    subscription = plans.subscription_of(key)
    item: dict[str, Any] = {
        "id": key.entry.id,
        "name": key.entry.name,
        "keyPlan": plans.slug_of(key),
        "keyType": key.entry.type,
        "isActive": _is_active(key, subscription, call.now, context),
    }
    if key.entry.type == "subscription":
        item["subscriptionStatus"], item["subscriptionExpiresAt"] = _plan_status(subscription, call.now)
    item["createdAt"] = timestamp(from_us(key.created_at_us))
    return item


def _billing_status(call: Call, context: ProfileContext) -> Reply:
    account_id = _dashboard_account(call, context)
    plans = _Plans(context, account_id)
    keys = [key for key in context.keys(account_id) if key.entry.state != "deleted"]
    subscriptions = []
    for subscription in plans.subscriptions.values():
        own = [key.entry for key in keys if key.entry.subscription == subscription.id]
        _, ends_at = _plan_status(subscription, call.now)
        canceled = subscription.status == "canceled"
        over = subscription.expires_at is not None and subscription.expires_at <= call.now
        subscriptions.append(
            {
                "id": subscription.id,
                "planSlug": plans.shown(subscription.plan),
                # A canceled one goes on to the end of what was paid.
                "status": "canceled" if over or (canceled and subscription.expires_at is None) else "active",
                "currentPeriodEnd": ends_at,
                "cancelAtPeriodEnd": canceled and not over and subscription.expires_at is not None,
                "keyCount": len(own),
                "keys": [{"id": entry.id, "name": entry.name} for entry in own],
            }
        )
    status = {
        "subscriptions": subscriptions,
        "creditBalance": format_nanos(context.balance_nanos(account_id)),
        "legacySubscriptionKeys": [],
    }
    return Reply(200, _wrapped(status, context.settings["billing_envelope"]))


def _billing_credits(call: Call, context: ProfileContext) -> Reply:
    account_id = _dashboard_account(call, context)
    credit_keys = [
        key.entry.id
        for key in context.keys(account_id)
        if key.entry.type == "credit" and key.entry.state != "deleted"
    ]
    credits = {
        "totalTopUp": format_nanos(context.top_ups_nanos(account_id)),
        "remaining": format_nanos(context.balance_nanos(account_id)),
        "hasCreditKey": bool(credit_keys),
        "creditKeyId": credit_keys[0] if credit_keys else None,
    }
    return Reply(200, _wrapped(credits, context.settings["billing_envelope"]))


# -- who asks, and for what ----------------------------------------------------------------------------


def _dashboard_account(call: Call, context: ProfileContext) -> str:
    """Return the account that a management key or a session stands for."""
    return _dashboard_customer(call, context).account_id


def _dashboard_customer(call: Call, context: ProfileContext) -> Customer:
    """Return the customer that a management key or a session stands for."""
    token = _bearer(call.headers)
    if token.startswith("mk_"):
        key = context.find_management_key(token)
        if (
            key is not None
            and key.entry.profile in ("native", NAME)
            and key.state_at(to_us(call.now)) == "active"
            and (entitlement := context.entitlement(key)) is not None
            and entitlement.account.active
        ):
            return Customer(key.entry.account, key.entry.id)
    elif token and (session := context.session(token)) is not None:
        return Customer(session.account_id)
    raise _Stop(_api_error(401, "Unauthorized", [("WWW-Authenticate", "Bearer")]))


def _own_key(call: Call, context: ProfileContext, account_id: str) -> StoredKey:
    """Return the account's key that the path names."""
    key_id = call.params["keyId"]
    # What is no id names nothing, and need not reach the store.
    key = context.key(key_id) if ID_PATTERN.match(key_id) else None
    if key is None or key.entry.account != account_id or key.entry.state == "deleted":
        raise _Stop(_api_error(404, "Key not found"))
    return key


def _body(call: Call) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(call.body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise _Stop(_api_error(400, "The body must be a JSON object"))
    return body


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise _Stop(_api_error(400, f"{name} is required and must be a string"))
    if len(value) > TEXT_CHARS_MAX:
        raise _Stop(_api_error(400, f"{name} must have at most {TEXT_CHARS_MAX} characters"))
    return value


class _Plans:
    """Plans and subscriptions of one account's keys, each read once."""

    def __init__(self, context: ProfileContext, account_id: str) -> None:
        self._context = context
        self.subscriptions = {found.id: found for found in context.subscriptions(account_id)}
        self._by_slug = {plan.slug: plan for plan in context.plans()}
        self._default: tuple[str | None] | None = None

    def subscription_of(self, key: StoredKey) -> Subscription | None:
        return None if key.entry.subscription is None else self.subscriptions.get(key.entry.subscription)

    def slug_of(self, key: StoredKey) -> str | None:
        """Return what a list shows as the plan of *key*."""
        if key.entry.type == "credit":
            return "credits"
        subscription = self.subscription_of(key)
        slug = key.entry.plan or (subscription.plan if subscription else None) or self._of_account(key)
        return None if slug is None else self.shown(slug)

    def shown(self, slug: str) -> str:
        """Return the vendor's name of a plan."""
        return _slug(self._by_slug.get(slug)) or slug

    def _of_account(self, key: StoredKey) -> str | None:
        if self._default is None:
            entitlement = self._context.entitlement(key)
            self._default = (None if entitlement is None else entitlement.account.plan,)
        return self._default[0]


def _is_active(
    key: StoredKey, subscription: Subscription | None, now: datetime, context: ProfileContext
) -> bool:
    """Return whether *key* may ask: some time after its subscription ended it counts as revoked."""
    if key.state_at(to_us(now)) != "active":
        return False
    if subscription is None or subscription.ends_at is None or key.entry.type == "credit":
        return True
    if subscription.expires_at is None:
        return False  # Canceled at once: no period runs out.
    return now < subscription.expires_at + timedelta(seconds=int(context.settings["expired_grace_s"]))


def _plan_status(subscription: Subscription | None, now: datetime) -> tuple[str, str | None]:
    """Return a subscription's status and the instant of its end, None without one."""
    if subscription is None or subscription.expires_at is None:
        return "active" if subscription is None or subscription.ends_at is None else "canceled", None
    status = "expired" if subscription.expires_at <= now else "active"
    return status, timestamp(subscription.expires_at)


def _slug(plan: Plan | None) -> str | None:
    """Return the vendor's name of *plan*: installations of several dialects have several plans `pro`."""
    return None if plan is None else plan.metadata.get("slug", plan.slug)


def _per_minute(entitlement: Entitlement) -> tuple[int | None, int | None]:
    limits = [scope.limit for scope in entitlement.limits]
    return _amount_per_minute(limits, "requests"), _amount_per_minute(limits, "tokens")


def _amount_per_minute(limits: Iterable[Limit], unit: str) -> int | None:
    for limit in limits:
        if limit.unit != unit or limit.algorithm == "concurrency" or limit.bucket is not None:
            continue
        if duration_s(limit.window) == 60:
            return limit.amount
    return None


def _bearer(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _sliding(limit: Limit) -> Limit:
    return Limit(name=limit.name, amount=limit.amount, window=limit.window, algorithm="sliding")


def _hour_after(now: datetime) -> int:
    """Return the next whole hour, so that the store answers from its rollups up to the present."""
    return to_us(now.replace(minute=0, second=0, microsecond=0) + _HOUR)


# -- wording -------------------------------------------------------------------------------------------


def dollars(nanos: int) -> float:
    """Return *nanos* in dollars as a JSON number; the one place where money leaves the integers."""
    # The quotient of two integers is the nearest double, also beyond 2**53.
    return nanos / NANOS_PER_UNIT


def timestamp(at: datetime) -> str:
    """Return *at* as `YYYY-MM-DDTHH:MM:SS.mmmZ`."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _wrapped(data: Any, envelope: Any) -> Any:
    return {"success": True, "data": data} if envelope else data


def _v1_error(
    status: int, message: str, type_: str, code: str, headers: Sequence[tuple[str, str]] = ()
) -> Reply:
    return Reply(status, {"error": {"message": message, "type": type_, "code": code}}, headers)


def _api_error(status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> Reply:
    return Reply(status, {"success": False, "error": message}, headers)


def _api_limited(denial: Denial) -> Reply:
    return _api_error(429, "Rate limit exceeded", [("Retry-After", str(denial.retry_after_s or 1))])


def _key_refusal(reason: str) -> Reply:
    if reason == "key_deleted":
        return _v1_error(404, "API key not found", "not_found_error", "key_not_found")
    if reason in ("key_missing", "key_unknown"):
        message = "Missing API key" if reason == "key_missing" else "Invalid API key"
        headers = [("WWW-Authenticate", "Bearer")]
        return _v1_error(401, message, "authentication_error", "invalid_api_key", headers)
    return _v1_error(403, "API key is deactivated", "permission_error", "key_deactivated")


def _refusal(call: Call, denial: Denial, entitlement: Entitlement | None) -> Reply:
    """Word what the gate refused, in the form of `/v1`."""
    reason = denial.reason
    limits = [] if entitlement is None else [scope.limit for scope in entitlement.limits]
    if reason.startswith("key_") or reason == "account_inactive":
        if reason == "key_deleted" and call.settings.get("deleted_key_status", 404) != 404:
            return _key_refusal("key_unknown")
        return _key_refusal(reason)
    if reason in ("rate_limited", "too_many_concurrent"):
        retry_after_s = denial.retry_after_s or 1
        message = f"Rate limit exceeded: {_rate(denial, limits)}"
        headers = [("Retry-After", str(retry_after_s))]
        return _v1_error(429, message, "rate_limit_error", "rate_limit_exceeded", headers)
    if reason == "budget_exhausted":
        return _budget_exceeded(call, denial)
    if reason == "credit_exhausted":
        status = int(call.settings.get("credit_exhausted_status", SETTINGS["credit_exhausted_status"]))
        message = "Insufficient credits: top up to continue"
        return _v1_error(status, message, "billing_error", "insufficient_credits")
    if reason == "route_unknown":
        return _v1_error(404, "Not found", "not_found_error", "route_not_found")
    if reason == "unavailable":
        headers = [("Retry-After", str(denial.retry_after_s or 1))]
        return _v1_error(503, "Service temporarily unavailable", "api_error", "service_unavailable", headers)
    return _v1_error(denial.status, denial.message, "permission_error", reason)


def _budget_exceeded(call: Call, denial: Denial) -> Reply:
    message = "Budget exceeded"
    headers = []
    resets_at_us = denial.resets_at_us
    # A budget without periods "ends" in the year 9999.
    if resets_at_us is not None and from_us(resets_at_us).year < 9999:
        message = f"Budget exceeded. Resets at {timestamp(from_us(resets_at_us))}"
        left_us = resets_at_us - to_us(call.now)
        headers = [("Retry-After", str(max(1, -(-left_us // 1_000_000))))]
    return _v1_error(429, message, "rate_limit_error", "budget_exceeded", headers)


def _rate(denial: Denial, limits: Sequence[Limit]) -> str:
    """Return what a limit allows, e.g. `60 requests per minute`."""
    limit = next((limit for limit in limits if limit.name == denial.limit), None)
    if denial.reason == "too_many_concurrent":
        return f"{denial.allowed} concurrent requests"
    if limit is None:
        return f"{denial.allowed} {denial.unit}"
    return f"{limit.amount} {limit.unit} per {_span(duration_s(limit.window))}"


def _span(seconds: int) -> str:
    for name, width in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds % width == 0:
            return name if seconds == width else f"{seconds // width} {name}s"
    return "second" if seconds == 1 else f"{seconds} seconds"


# -- the profile ---------------------------------------------------------------------------------------


class CheapestInference:
    """The dialect; see the module."""

    name: str = NAME
    key_prefix: str = "sk_live_"
    settings: Mapping[str, Any] = SETTINGS
    setting_types: Mapping[str, Any] = SETTING_TYPES
    catalog: str = CATALOG
    refusals_count: bool = False

    def __init__(self) -> None:
        handlers = (
            ("GET", "/v1/usage", _v1_usage),
            ("GET", "/api/usage", _api_usage),
            ("GET", "/api/usage/{keyId}", _api_usage_of_key),
            ("GET", "/api/plans", _plans),
            ("GET", "/api/keys", _list_keys),
            ("POST", "/api/keys/credit", _make_credit_key),
            ("POST", "/api/keys/subscription", _make_subscription_key),
            ("PATCH", "/api/keys/{keyId}", _patch_key),
            ("DELETE", "/api/keys/{keyId}", _delete_key),
            ("GET", "/api/billing/status", _billing_status),
            ("GET", "/api/billing/credits", _billing_credits),
        )
        self.endpoints: Sequence[Endpoint] = [
            Endpoint(method, path, _stoppable(handle)) for method, path, handle in handlers
        ]

    def credential(self, headers: Mapping[str, str]) -> str:
        return _bearer(headers)

    def not_found(self, call: Call, allowed: Sequence[str], context: ProfileContext) -> Reply:
        status, message, code = 404, "Not found", "route_not_found"
        headers = []
        if allowed:
            status, message, code = 405, "Method not allowed", "method_not_allowed"
            headers = [("Allow", ", ".join(allowed))]
        if _is_api(call.path):
            return _api_error(status, message, headers)
        type_ = "not_found_error" if status == 404 else "invalid_request_error"
        return _v1_error(status, message, type_, code, headers)

    def failed(self, call: Call, error: Exception) -> Reply:
        if _is_api(call.path):
            if isinstance(error, Unavailable):
                return _api_error(502, "Usage data temporarily unavailable")
            # The key changed between our look and our step.
            for kind, status in ((BadInput, 400), (NotFound, 404), (Conflict, 409)):
                if isinstance(error, kind):
                    return _api_error(status, str(error))
            return _api_error(500, "Internal server error")
        if isinstance(error, Unavailable):
            return _v1_error(502, "Usage data temporarily unavailable", "api_error", "usage_unavailable")
        if isinstance(error, BadInput):
            return _v1_error(400, str(error), "invalid_request_error", "invalid_request")
        return _v1_error(500, "Internal server error", "api_error", "internal_error")

    def refused(self, call: Call, denial: Denial, metered: Metered | None) -> Reply:
        if metered is None and denial.reason == "rate_limited":
            # Of an address, on any path; no limit of a key, for which the vendor's clients read the text.
            if _is_api(call.path):
                return _api_limited(denial)
            headers = [("Retry-After", str(denial.retry_after_s or 1))]
            return _v1_error(429, denial.message, "rate_limit_error", "rate_limit_exceeded", headers)
        return _refusal(call, denial, None if metered is None else metered.entitlement)

    def metered_headers(self, metered: Metered) -> Sequence[tuple[str, str]]:
        # The vendor documents none.
        return ()


def _stoppable(handle: Callable[[Call, ProfileContext], Reply]) -> Callable[[Call, ProfileContext], Reply]:
    """Return *handle* with an early stop turned into its reply."""

    def answer(call: Call, context: ProfileContext) -> Reply:
        try:
            return handle(call, context)
        except _Stop as stop:
            return stop.reply

    return answer


def _is_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")


PROFILE: Final = CheapestInference()
