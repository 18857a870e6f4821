"""The credentials of a call, and the limits on calls to the vendor's own endpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

from tollkeeper.domain.catalog import Limit, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import LimitStatus, Session
from tollkeeper.profiles.base import Call, Profile, ProfileContext, Reply, failure
from tollkeeper.profiles.regsn.limits import rate_headers, shown_limit
from tollkeeper.profiles.regsn.problems import (
    BAD_CREDENTIAL,
    FORBIDDEN,
    KEY_WRONG,
    NO_CREDENTIAL,
    problem_reply,
    too_fast,
)
from tollkeeper.profiles.regsn.settings import KEY_PREFIX, NAME
from tollkeeper.profiles.toolkit import (
    EarlyReply,
    HeaderList,
    answered,
    bearer_token,
    ends_early,
    short_digest,
)

USAGE_ROUTE: Final = Route(
    id="regsn-usage", method="GET", path="/v1/usage", event_kind="read", bucket="reads", free=True
)
_Caller = TypeVar("_Caller")


class Counted(NamedTuple, Generic[_Caller]):
    """A call that the limits of its caller let pass: its caller, its headers, and the receipt for `give_back`."""

    caller: _Caller
    headers: HeaderList
    receipt: Any


def behind_credential(
    profile: Profile,
    admit: Callable[[Call, ProfileContext], Counted[_Caller]],
    handle: Callable[[Call, ProfileContext, _Caller, HeaderList], Reply],
) -> Callable[[Call, ProfileContext], Reply]:
    """Return *handle* behind *admit*: every answer to a known caller has its headers."""

    def answer(call: Call, context: ProfileContext) -> Reply:
        caller, headers, receipt = admit(call, context)
        try:
            return answered(context, receipt, lambda: handle(call, context, caller, headers))
        except Exception as exc:
            # Here, and not in `failed` alone, since only here the caller's headers are known.
            reply = failure(profile, call, exc)
            if admit is usage_reader:
                # Without this call, if it was given back.
                headers = reads_left(call, context, find_caller(call, context))
            return reply._replace(headers=[*headers, *reply.headers])

    return ends_early(answer)


def find_caller(call: Call, context: ProfileContext) -> StoredKey | Session:
    """Return the key or session that *call* carries."""
    token = bearer_token(call.headers) or ""
    if not token:
        raise EarlyReply(
            problem_reply(call, NO_CREDENTIAL, "Send Authorization: Bearer with a key or a session.")
        )
    # Looked up whatever it looks like: an imported key may have any form.
    stored = context.find_key(token)
    if stored is None and not token.startswith(KEY_PREFIX):
        session = context.session(token)
        if session is None:
            raise EarlyReply(problem_reply(call, BAD_CREDENTIAL, "The session token is not valid."))
        return session
    entitlement = None if stored is None else context.entitlement(stored)
    if stored is None or entitlement is None or stored.state_at(to_us(call.now)) != "active":
        raise EarlyReply(problem_reply(call, BAD_CREDENTIAL, KEY_WRONG))
    if not entitlement.account.active:
        raise EarlyReply(problem_reply(call, FORBIDDEN, "The account of this API key is not active."))
    return stored


def account_of(caller: StoredKey | Session) -> str:
    """Return the account of a caller."""
    return caller.account_id if isinstance(caller, Session) else caller.entry.account


def usage_reader(call: Call, context: ProfileContext) -> Counted[StoredKey | Session]:
    """Count a read of the usage endpoint."""
    caller = find_caller(call, context)
    if isinstance(caller, StoredKey):
        counted = context.count_call(caller, USAGE_ROUTE)
        limit_statuses = context.limit_statuses(caller)
        if isinstance(counted, Denial):
            record_usage_call(context, caller, 429, counted)
            raise EarlyReply(
                too_fast(call, counted, shown_limit(limit_statuses, USAGE_ROUTE.bucket, counted.limit))
            )
        limit_status = shown_limit(limit_statuses, USAGE_ROUTE.bucket)
        if limit_status is not None:
            return Counted(caller, rate_headers(limit_status, call.now), counted)
    amount = context.settings["reads_per_minute"]
    counted = _count_per_minute(context, account_of(caller), "reads", _owner(caller), amount)
    if isinstance(counted.receipt, Denial):
        record_usage_call(context, caller, 429, counted.receipt)
        raise EarlyReply(too_fast(call, counted.receipt, counted.limit_status))
    return Counted(caller, rate_headers(counted.limit_status, call.now), counted.receipt)


def record_usage_call(
    context: ProfileContext, caller: StoredKey | Session, status: int, denial: Denial | None = None
) -> None:
    """Record a call to the usage endpoint as a request of its account, unless the deployment counts none."""
    if not context.settings["usage_calls_counted"]:
        return
    if isinstance(caller, Session):
        context.record_unkeyed(caller.account_id, USAGE_ROUTE, status, denial)
    else:
        context.record(caller, USAGE_ROUTE, status, denial)


def key_manager(call: Call, context: ProfileContext) -> Counted[Session]:
    """Count a call to the key endpoints."""
    caller = find_caller(call, context)
    if not isinstance(caller, Session):
        kind = FORBIDDEN._replace(status=context.settings["session_only_status"])
        detail = "Keys are managed with a dashboard session, not a key."
        raise EarlyReply(problem_reply(call, kind, detail, headers=reads_left(call, context, caller)))
    amount = context.settings["key_mgmt_per_minute"]
    counted = _count_per_minute(context, caller.account_id, "key_mgmt", _owner(caller), amount)
    if isinstance(counted.receipt, Denial):
        raise EarlyReply(too_fast(call, counted.receipt, counted.limit_status))
    return Counted(caller, rate_headers(counted.limit_status, call.now), counted.receipt)


def reads_left(call: Call, context: ProfileContext, caller: StoredKey | Session) -> HeaderList:
    """Return the headers of *caller*'s reads without counting one."""
    limit_status = None
    if isinstance(caller, StoredKey):
        limit_status = shown_limit(context.limit_statuses(caller), USAGE_ROUTE.bucket)
    if limit_status is None:
        limit = _per_minute("reads", context.settings["reads_per_minute"])
        limit_status = context.limit_status_of(
            account_of(caller), _counter_of("reads", _owner(caller)), limit
        )
    return rate_headers(limit_status, call.now)


class _Spent(NamedTuple):
    receipt: Denial | Any
    limit_status: LimitStatus


def _count_per_minute(
    context: ProfileContext, account_id: str, bucket: str, owner: str, amount: int
) -> _Spent:
    """Count a call of *owner* in a bucket that no plan has; return the refusal or receipt, and where it stands."""
    limit, name = _per_minute(bucket, amount), _counter_of(bucket, owner)
    receipt = context.spend(account_id, name, limit)
    return _Spent(receipt, context.limit_status_of(account_id, name, limit))


def _per_minute(bucket: str, amount: int) -> Limit:
    return Limit(name=bucket, amount=amount, window="1m", bucket=bucket)


def _counter_of(bucket: str, owner: str) -> str:
    # Hashed, since a user's name may have any length and characters.
    return f"{NAME}:{bucket}:{short_digest(owner)}"


def _owner(caller: StoredKey | Session) -> str:
    """Return the owner of a bucket that no plan has. A rotated key keeps its owner, and so its counts."""
    return "user:" + caller.user_id if isinstance(caller, Session) else "key:" + caller.rotation_chain_id
