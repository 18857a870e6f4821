"""`GET /api/usage` and `/api/usage/{keyId}`: four rolling windows per key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.quantities import COMPLETION_CLASSES, MICROS, QUANTITY_PREFIX
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.profiles.base import Call, ProfileContext, Reply
from tollkeeper.profiles.cheapestinference.callers import dashboard_account, own_key
from tollkeeper.profiles.cheapestinference.keys import listed_keys
from tollkeeper.profiles.cheapestinference.plans import AccountPlans, is_active, plan_status
from tollkeeper.profiles.cheapestinference.settings import NAME
from tollkeeper.profiles.cheapestinference.wording import api_limited, wrapped
from tollkeeper.profiles.toolkit import answered, bearer_token, iso_millis, next_hour, pages, short_digest

WINDOWS: Final = (
    ("last1h", timedelta(hours=1)),
    ("last24h", timedelta(hours=24)),
    ("last7d", timedelta(days=7)),
    ("last30d", timedelta(days=30)),
)
LIST_LIMIT: Final = Limit(name="usage-list", amount=12, window="12h")
"""Per account, over all its credentials; the figure is the vendor's."""
_COUNTS: Final = (
    "requests",
    "denied",
    "tokens",
    "completion_tokens",
    "reasoning_tokens",
    *(QUANTITY_PREFIX + name for name in COMPLETION_CLASSES),
)


def answer_usage_of_keys(call: Call, context: ProfileContext) -> Reply:
    """Answer `GET /api/usage`."""
    account_id = dashboard_account(call, context)
    counter = NAME + ".usage"
    if context.settings["list_limit_per"] == "credential":
        counter += ":" + short_digest(bearer_token(call.headers) or "")
    from_first = context.settings["list_limit_window"] == "first_call"
    limit = LIST_LIMIT if from_first else _sliding(LIST_LIMIT)

    def listed() -> Reply:
        keys = listed_keys(context, account_id)
        cache_s = int(context.settings["list_cache_s"])
        headers = [("Cache-Control", f"private, max-age={cache_s}")] if cache_s else []
        return Reply(200, {"success": True, "data": _items(call, context, account_id, keys, ())}, headers)

    return _limited(context, account_id, counter, limit, listed, from_first=from_first)


def answer_usage_of_key(call: Call, context: ProfileContext) -> Reply:
    """Answer `GET /api/usage/{keyId}`."""
    account_id = dashboard_account(call, context)
    limit = Limit(name="usage-key", amount=int(context.settings["single_key_per_minute"]), window="1m")

    def single() -> Reply:
        key = own_key(call, context, account_id)
        item = _items(call, context, account_id, [key], (key.entry.id,))[0]
        return Reply(200, wrapped(item, context.settings["single_key_envelope"]))

    return _limited(context, account_id, NAME + ".usage-key", limit, single)


def _limited(
    context: ProfileContext,
    account_id: str,
    counter: str,
    limit: Limit,
    answer: Callable[[], Reply],
    *,
    from_first: bool = False,
) -> Reply:
    """Return *answer* if *limit* allows the call. A call that fails on our side is not counted."""
    counted = context.spend(account_id, counter, limit, from_first=from_first)
    if isinstance(counted, Denial):
        return api_limited(counted)
    return answered(context, counted, answer)


def _items(
    call: Call, context: ProfileContext, account_id: str, keys: Sequence[StoredKey], only: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the items of *keys*; *only* limits the query to these keys; empty: all keys of the account."""
    if not keys:
        return []
    plans = AccountPlans(context, account_id)
    counts = _counts_by_key(call, context, account_id, only)
    nothing = {name: _window({}) for name, _ in WINDOWS}
    items = []
    for key in keys:
        subscription = plans.subscription_of(key)
        credit = key.entry.type == "credit"
        item: dict[str, Any] = {
            "id": key.entry.id,
            "name": key.entry.name,
            "type": key.entry.type,
            "plan": plans.slug_of(key),
            "isActive": is_active(key, subscription, call.now),
            "usage": counts.get(key.entry.id, nothing),
        }
        if not credit:
            status, expires_at = plan_status(subscription, call.now)
            item["subscription"] = {"status": status, "expiresAt": expires_at}
        item["createdAt"] = iso_millis(from_us(key.created_at_us))
        items.append(item)
    return items


def _counts_by_key(
    call: Call, context: ProfileContext, account_id: str, only: tuple[str, ...]
) -> dict[str, dict[str, dict[str, int]]]:
    """Return key id → window → its counts, by one query: a window is the last parts of the longest one."""
    longest, *shorter = [to_us(call.now - span) for _, span in reversed(WINDOWS)]
    query = UsageQuery(
        account_id=account_id,
        from_us=longest,
        to_us=to_us(next_hour(call.now)),
        cuts_us=tuple(shorter),
        group_by=("key",),
        filters={"key": only} if only else {},
        measures=_COUNTS,
    )
    parts: dict[str, dict[int, Mapping[str, int]]] = {}
    for page in pages(context, query):
        for row in page.rows:
            parts.setdefault(row["key"], {})[row["part"]] = row
    refused = bool(context.settings["count_refused"])
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for key_id, rows in parts.items():
        summed = dict.fromkeys(_COUNTS, 0)
        counts[key_id] = {}
        # The shortest window is the last part.
        for (name, _), part in zip(WINDOWS, range(len(WINDOWS) - 1, -1, -1), strict=True):
            for measure, value in rows.get(part, {}).items():
                if measure in summed:
                    summed[measure] += value
            counts[key_id][name] = _window(summed, refused=refused)
    return counts


def _window(row: Mapping[str, int], *, refused: bool = False) -> dict[str, int]:
    tokens = row.get("tokens", 0)
    completion = row.get("completion_tokens", 0) + row.get("reasoning_tokens", 0)
    completion += sum(row.get(QUANTITY_PREFIX + name, 0) for name in COMPLETION_CLASSES) // MICROS
    return {
        "requests": row.get("requests", 0) - (0 if refused else row.get("denied", 0)),
        "tokens": tokens,
        "promptTokens": tokens - completion,
        "completionTokens": completion,
    }


def _sliding(limit: Limit) -> Limit:
    return Limit(name=limit.name, amount=limit.amount, window=limit.window, algorithm="sliding")
