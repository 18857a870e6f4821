"""The credentials of a call, and the limits on calls to the vendor's own endpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeVar

from tollkeeper.domain.catalog import Limit, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.keys import SECRET_CHARS, StoredKey
from tollkeeper.domain.limit_status import Session
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
from tollkeeper.profiles.toolkit import EarlyReply, HeaderList, bearer_token, ends_early, short_digest

_KEY: Final = re.compile(rf"{KEY_PREFIX}[A-Za-z0-9]{{{SECRET_CHARS}}}\Z")
USAGE_ROUTE: Final = Route(
    id="regsn-usage", method="GET", path="/v1/usage", event_kind="read", bucket="reads", free=True
)
_Caller = TypeVar("_Caller")


def behind_credential(
    profile: Profile,
    admit: Callable[[Call, ProfileContext], tuple[_Caller, HeaderList]],
    handle: Callable[[Call, ProfileContext, _Caller, HeaderList], Reply],
) -> Callable[[Call, ProfileContext], Reply]:
    """Return *handle* behind *admit*: every answer to a known caller has its headers."""

    def answer(call: Call, context: ProfileContext) -> Reply:
        caller, headers = admit(call, context)
        try:
            return handle(call, context, caller, headers)
        except Exception as exc:
            # Here, and not in `failed` alone, since only here the caller's headers are known.
            reply = failure(profile, call, exc)
            return reply._replace(headers=[*headers, *reply.headers])

    return ends_early(answer)


def find_caller(call: Call, context: ProfileContext) -> StoredKey | Session:
    """Return the key or session that *call* carries."""
    token = bearer_token(call.headers) or ""
    if not token:
        raise EarlyReply(
            problem_reply(call, NO_CREDENTIAL, "Send Authorization: Bearer with a key or a session.")
        )
    if not token.startswith(KEY_PREFIX):
        session = context.session(token)
        if session is None:
            raise EarlyReply(problem_reply(call, BAD_CREDENTIAL, "The session token is not valid."))
        return session
    stored = context.find_key(token) if _KEY.match(token) else None
    entitlement = None if stored is None else context.entitlement(stored)
    if stored is None or entitlement is None or stored.state_at(to_us(call.now)) != "active":
        raise EarlyReply(problem_reply(call, BAD_CREDENTIAL, KEY_WRONG))
    if not entitlement.account.active:
        raise EarlyReply(problem_reply(call, FORBIDDEN, "The account of this API key is not active."))
    return stored


def account_of(caller: StoredKey | Session) -> str:
    """Return the account of a caller."""
    return caller.account_id if isinstance(caller, Session) else caller.entry.account


def usage_reader(call: Call, context: ProfileContext) -> tuple[StoredKey | Session, HeaderList]:
    """Count a read; return the caller of the usage endpoint and the headers of its reads."""
    caller = find_caller(call, context)
    if isinstance(caller, StoredKey):
        denial = context.pass_limits(caller, USAGE_ROUTE)
        limit_statuses = context.limit_statuses(caller)
        if denial is not None:
            raise EarlyReply(
                too_fast(call, denial, shown_limit(limit_statuses, USAGE_ROUTE.bucket, denial.limit))
            )
        limit_status = shown_limit(limit_statuses, USAGE_ROUTE.bucket)
        if limit_status is not None:
            return caller, rate_headers(limit_status, call.now)
    amount = context.settings["reads_per_minute"]
    return caller, _pass_per_minute(call, context, account_of(caller), "reads", _owner(caller), amount)


def key_manager(call: Call, context: ProfileContext) -> tuple[Session, HeaderList]:
    """Count a call to the key endpoints; return its session and the headers of its limit."""
    caller = find_caller(call, context)
    if not isinstance(caller, Session):
        kind = FORBIDDEN._replace(status=context.settings["session_only_status"])
        detail = "Keys are managed with a dashboard session, not a key."
        raise EarlyReply(problem_reply(call, kind, detail, headers=reads_left(call, context, caller)))
    amount = context.settings["key_mgmt_per_minute"]
    return caller, _pass_per_minute(call, context, caller.account_id, "key_mgmt", _owner(caller), amount)


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


def _pass_per_minute(
    call: Call, context: ProfileContext, account_id: str, bucket: str, owner: str, amount: int
) -> HeaderList:
    """Count a call of *owner* in a bucket that no plan has; return its headers."""
    limit, name = _per_minute(bucket, amount), _counter_of(bucket, owner)
    counted = context.spend(account_id, name, limit)
    limit_status = context.limit_status_of(account_id, name, limit)
    if isinstance(counted, Denial):
        raise EarlyReply(too_fast(call, counted, limit_status))
    return rate_headers(limit_status, call.now)


def _per_minute(bucket: str, amount: int) -> Limit:
    return Limit(name=bucket, amount=amount, window="1m", bucket=bucket)


def _counter_of(bucket: str, owner: str) -> str:
    # Hashed, since a user's name may have any length and characters.
    return f"{NAME}:{bucket}:{short_digest(owner)}"


def _owner(caller: StoredKey | Session) -> str:
    """Return the owner of a bucket that no plan has. A rotated key keeps its owner, and so its counts."""
    return "user:" + caller.user_id if isinstance(caller, Session) else "key:" + caller.rotation_chain_id
