"""
Webhooks: which thresholds a budget has crossed, the message about one, its signature, when to send it again.

A message has the id of its webhook, budget, period and threshold: made again, it is the same message.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from tollkeeper.domain.catalog import Webhook
from tollkeeper.domain.entitlements import BudgetScope
from tollkeeper.domain.instants import US_PER_S, from_us

RETRY_AFTER_S: Final = (60, 300, 900, 3_600, 21_600)
"""How long after each failure a message is tried again: five times after the first, which is at once."""
SECRET_PREFIX: Final = "whsec_"
LIMIT_PERCENT: Final = 100
"""The threshold from which on a message says that the limit is exceeded."""

_encode = msgspec.json.Encoder().encode


class StoredWebhook(NamedTuple):
    """A webhook as it is stored; *created_at_us* distinguishes it from an earlier one of its id."""

    entry: Webhook
    created_at_us: int


class WebhookMessage(NamedTuple):
    """
    Says to one receiver, once, that a budget crossed a threshold in one period.

    Attributes:
        body: JSON, kept so that each attempt sends the same bytes.
        disables_keys: The keys that the budget counts are to become inactive.
        due_at_us: When to send it next.
        attempts: How often it was sent, each time in vain.
    """

    account_id: str
    webhook_id: str
    counter_id: str
    period_start_us: int
    period_end_us: int
    threshold: int
    id: str
    body: str
    disables_keys: bool
    due_at_us: int
    attempts: int = 0


def crossed(used: int, amount: int | None, thresholds: Sequence[int]) -> list[int]:
    """Return the *thresholds*, in percent of *amount*, that *used* reaches; none of a budget without a bound."""
    if amount is None or used <= 0:
        return []
    return [threshold for threshold in thresholds if used * 100 >= threshold * amount]


def message_of(
    hook: StoredWebhook,
    scope: BudgetScope,
    period_us: tuple[int, int],
    used: int,
    threshold: int,
    now_us: int,
) -> WebhookMessage:
    """
    Return the message which says to *hook* that the budget of *scope* reached *threshold*.

    Its body has the vendor's shape `{id, type, timestamp, project_id, data}`; amounts are text, as in the API.

    Args:
        period_us: `[start, end)` of the budget's period.
        used: What the budget was charged in that period, in its unit.
    """
    entry, (start_us, end_us) = hook.entry, period_us
    id_ = _id_of(entry.account, entry.id, hook.created_at_us, scope.counter_id, start_us, threshold)
    disables = threshold == entry.actions.disable_keys
    notify_at = entry.actions.notify_admins
    actions = ["notify_admins"] if notify_at is not None and threshold >= notify_at else []
    body = {
        "id": id_,
        "type": "usage.limit_exceeded" if threshold >= LIMIT_PERCENT else "usage.threshold_reached",
        "timestamp": _instant(now_us),
        "project_id": scope.project_id or None,
        "data": {
            "account_id": entry.account,
            "webhook_id": entry.id,
            "budget": scope.name,
            "threshold": threshold,
            "unit": scope.unit,
            "used": str(used),
            "limit": str(scope.amount),
            "period": {"start": _instant(start_us), "end": _instant(end_us)},
            "actions": [*actions, "disable_keys"] if disables else actions,
        },
    }
    return WebhookMessage(
        account_id=entry.account,
        webhook_id=entry.id,
        counter_id=scope.counter_id,
        period_start_us=start_us,
        period_end_us=end_us,
        threshold=threshold,
        id=id_,
        body=_encode(body).decode(),
        disables_keys=disables,
        due_at_us=now_us,
    )


def next_due_us(attempts: int, now_us: int) -> int | None:
    """Return when a message is sent again whose attempt number *attempts* (from 1) failed now; None: never."""
    if attempts > len(RETRY_AFTER_S):
        return None
    return now_us + RETRY_AFTER_S[attempts - 1] * US_PER_S


def secret_of(root: bytes, hook: StoredWebhook) -> str:
    """
    Return the secret that signs the messages of *hook*: `whsec_` and 32 bytes in base64.

    It is made from *root*, the installation's own, and kept nowhere. To sign, a secret has to be known, so a hash
    of it would not do. It is derived at each use, so it is in no database, and a copy of one lets nobody sign.
    """
    entry = hook.entry
    name = f"webhook\n{entry.account}\n{entry.id}\n{hook.created_at_us}"
    digest = hmac.digest(root, name.encode(), hashlib.sha256)
    return SECRET_PREFIX + base64.b64encode(digest).decode()


def headers_of(message_id: str, body: bytes, secret: str, now_us: int) -> Mapping[str, str]:
    """
    Return the headers that prove the sender of a message, as Standard Webhooks has them (standardwebhooks.com).

    The key is the bytes that the base64 after `whsec_` encodes. The time is signed too, so that a receiver can refuse
    an old message.
    """
    at_s = now_us // US_PER_S
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = hmac.digest(key, f"{message_id}.{at_s}.".encode() + body, hashlib.sha256)
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": "v1," + base64.b64encode(signed).decode(),
    }


class DeliveryResult(NamedTuple):
    """
    The outcome of one attempt.

    Attributes:
        status: Of the answer; 0 without one.
        reason: Why it failed, as text that is safe to log; "" for a success.
    """

    status: int
    reason: str

    @property
    def outcome(self) -> Literal["delivered", "failed"]:
        return "delivered" if 200 <= self.status < 300 else "failed"


def _id_of(*parts: str | int) -> str:
    return "evt_" + hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def _instant(at_us: int) -> str:
    return from_us(at_us).isoformat(timespec="milliseconds").replace("+00:00", "Z")
