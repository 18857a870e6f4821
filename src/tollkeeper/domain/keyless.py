"""
Requests without a key: of a user who signed in to an account's dashboard, or of the account itself.

They count in the account's own budgets, and in the limits and budgets of its plan, as those of one more key would.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, TypedDict

from tollkeeper.domain.catalog import Account, Budget, Key, Plan, Subscription
from tollkeeper.domain.entitlements import KEYLESS, NO_ROUTES, Entitlement, RouteCalls, resolve
from tollkeeper.domain.instants import to_us
from tollkeeper.errors import BadParameter


class Keyless(NamedTuple):
    """
    The caller of a request without a key.

    Attributes:
        user_id: Who signed in; "" for the account itself. Rate limits per key count each user apart.
        project_id: The project that the request is for; "" for none.
        profile: The dialect of the request: routes of other profiles are unknown to it.
    """

    account_id: str
    user_id: str = ""
    project_id: str = ""
    profile: str = "native"

    @property
    def place(self) -> str:
        """Names the caller among the compiled keys, whose names are hashes."""
        # The user comes last, as ids of the catalog and profiles have no line breaks.
        return "\n".join(("keyless", self.account_id, self.project_id, self.profile, self.user_id))

    @property
    def limited_as(self) -> str:
        """Return what stands for its key in the counters of limits per key."""
        if not self.user_id:
            return KEYLESS
        # Hashed, since a user's name may have any length and characters.
        return f"(user:{hashlib.sha256(self.user_id.encode()).hexdigest()[:32]})"


Caller: TypeAlias = str | Keyless
"""The secret of an api key as the caller sent it, or a caller without a key."""


class WithoutKey(TypedDict, total=False):
    """How a client names the caller of a request without a key: see `embedded.Tollkeeper.admit`."""

    session: str
    account: str
    user: str
    project: str
    profile: str


def check_keyless(api_key: str, session: str, account: str, user: str) -> None:
    """Raise `BadParameter` unless a request without a key names one of *session* and *account*."""
    named = {"api_key": api_key, "session": session, "account": account}
    given = [name for name, value in named.items() if value]
    if len(given) != 1 or api_key:
        raise BadParameter(
            f"a request must have one of api_key, session and account, not {' and '.join(given) or 'none'}; user, "
            "project and profile go with session or account",
            field=given[-1] if given else "account",
        )
    if user and not account:
        raise BadParameter("user goes with account: a session names its user", field="user")


def plan_without_key(
    account: Account, subscriptions: Sequence[Subscription]
) -> tuple[Subscription | None, str | None]:
    """
    Return the subscription and the plan's slug in force for what an account does without a key.

    That is the account's own plan; without one, that of its only subscription.
    """
    if account.plan is None and len(subscriptions) == 1:
        return subscriptions[0], subscriptions[0].plan
    return None, account.plan


def draws_from_us(account: Account) -> int | None:
    """Return from when on what an account does without a key draws on its credit balance; None for never."""
    return None if account.keyless_credit_at is None else to_us(account.keyless_credit_at)


def resolve_keyless(
    caller: Keyless,
    *,
    account: Account,
    subscription: Subscription | None,
    plan: Plan | None,
    budgets: Sequence[Budget],
    routes: RouteCalls = NO_ROUTES,
    now_us: int,
) -> Entitlement:
    """
    Return what a caller without a key may do: a key without an id, with the user as its name.

    Arguments as in `entitlements.resolve`.

    Args:
        now_us: Its draws on credit may begin later: the entitlement is then valid until that.
    """
    draws_us = draws_from_us(account)
    key = Key(
        id="",
        account=account.id,
        project=caller.project_id or None,
        name=caller.user_id,
        profile=caller.profile,
        type="credit" if draws_us is not None and now_us >= draws_us else "subscription",
    )
    found = resolve(
        key,
        rotation_chain=(),
        limited_as=caller.limited_as,
        account=account,
        subscription=subscription,
        plan=plan,
        budgets=budgets,
        routes=routes,
    )
    if draws_us is None or now_us >= draws_us:
        return found
    return found._replace(valid_until_us=draws_us)
