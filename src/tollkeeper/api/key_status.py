"""What a key has left: the remainder of each limit, budget and balance, as JSON."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.instants import to_text
from tollkeeper.domain.keys import StoredKey
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.domain.matching import TAG, Facts
from tollkeeper.domain.quantities import amount_json
from tollkeeper.gate.gate import Gate


class LimitStatusAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """
    The status of one limit, budget or balance.

    Amounts of money (unit `nanos`) and of quantities (unit `quantity.NAME`, in units) are text.
    `allowed` and `remaining` are null where there is no bound.
    """

    name: str
    unit: str
    allowed: int | str | None
    used: int | str | None
    """Used and held."""
    remaining: int | str | None
    resets_at: str | None
    """End of the window or period; null without one."""
    match: str | None = None
    """Which requests it counts, e.g. `model gpt-4o*, tag.user = u1`; null for all."""
    per: list[str] | None = None
    """What it counts apart, where the query names no value: then `used` and `remaining` are null."""


class KeyStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The remaining limits of a key. An inactive key and a management key have no counters here."""

    key_id: str
    account: str
    project: str | None
    state: str
    type: str
    plan: str | None
    subscription: str | None
    expires_at: str | None
    limits: list[LimitStatusAnswer]
    budgets: list[LimitStatusAnswer]
    credit: LimitStatusAnswer | None
    """The account's balance, for a key that draws on it."""


def key_status_of(
    stored: StoredKey, directory: Directory, gate: Gate, now_us: int, facts: Facts | None = None
) -> KeyStatus:
    """Return what a key has left; *facts* name the values of limits and budgets that count some apart."""
    key = stored.entry
    state = stored.state_at(now_us)
    entitlement = directory.entitlement_of(stored)
    limit_statuses: list[LimitStatus] = []
    # Only of a key that the gate admits: others use nothing.
    if entitlement is not None and state == "active" and key.role == "consumption":
        compiled_key = gate.compiled_key_of(lambda: directory.entitlement_of_id(key.id))
        if compiled_key is not None:
            limit_statuses = gate.limit_statuses(compiled_key, now_us, facts, every=True)
    of_credit = [s for s in limit_statuses if s.kind == "credit"]
    return KeyStatus(
        key_id=key.id,
        account=key.account,
        project=key.project,
        state=state,
        type=key.type,
        plan=entitlement.plan.slug if entitlement is not None and entitlement.plan is not None else None,
        subscription=key.subscription,
        expires_at=None if key.expires_at is None else to_text(key.expires_at),
        limits=[_limit_status_answer(s) for s in limit_statuses if s.kind in ("limit", "concurrency")],
        budgets=[_limit_status_answer(s) for s in limit_statuses if s.kind == "budget"],
        credit=_limit_status_answer(of_credit[0]) if of_credit else None,
    )


def facts_of(params: Mapping[str, str]) -> Facts | None:
    """Return what the query says of a request, `model=gpt-4o` and `tag.user=u1`; None when it says nothing."""
    tags = {name.removeprefix(TAG): value for name, value in params.items() if name.startswith(TAG)}
    return Facts(params.get("model", ""), tags, "", "", "") if tags or "model" in params else None


def _limit_status_answer(status: LimitStatus) -> LimitStatusAnswer:
    return LimitStatusAnswer(
        name=status.name,
        unit=status.unit,
        allowed=_amount(status.allowed, status.unit),
        used=None if status.per else _amount(status.used, status.unit),
        remaining=None if status.per else _amount(status.remaining, status.unit),
        resets_at=None if status.resets_at is None else to_text(status.resets_at),
        match=status.match or None,
        per=list(status.per) or None,
    )


def _amount(value: int | None, unit: str) -> int | str | None:
    return amount_json(value, unit)
