"""
The text of the gate's refusals (402, 429): which limit, how much was asked, what would fit, and when it lifts.

`http/denials.py` makes the problem document of it, a profile its vendor's answer. Money is in whole units here, since
people read it; the fields of a `Denial` are in nanos.
"""

from __future__ import annotations

from collections.abc import Iterable

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import Denial, UnitAmounts, amount_at
from tollkeeper.domain.events import Record
from tollkeeper.domain.instants import US_PER_S, to_us
from tollkeeper.domain.meter import counted_path, free_record, refused_record
from tollkeeper.domain.money import format_nanos
from tollkeeper.domain.money_fields import MONEY_UNIT
from tollkeeper.domain.quantities import quantity_of_unit, quantity_text
from tollkeeper.gate.compiled_keys import CompiledKey
from tollkeeper.gate.counter import Counter


def denial_of(counter: Counter, counters: Iterable[Counter], amounts: UnitAmounts, now_us: int) -> Denial:
    """
    Return why *amounts* do not fit *counter*. The caller has the gate's lock. Raises NotRead.

    Args:
        counters: All that the request must fit: the largest amount that does is the least of what they have left.
    """
    amount = amount_at(amounts, counter.unit_index)
    allowed, used = counter.allowed_used(now_us)
    lifts_at_us = counter.lifts_at_us(amount, now_us)
    rooms = []
    for other in counters:
        if other.unit == counter.unit and other.reason != "too_many_concurrent":
            most, taken = other.allowed_used(now_us)
            if most is not None:
                rooms.append(most - taken)
    retry_after_s = None
    if lifts_at_us is not None:
        retry_after_s = max(1, -(-(lifts_at_us - now_us) // US_PER_S))
    return Denial(
        reason=counter.reason,  # type: ignore[arg-type]
        message=_message(counter, amount, allowed, used, retry_after_s),
        limit=counter.name,
        unit=counter.unit,
        allowed=allowed,
        used=used,
        largest_fit=0 if counter.reason == "too_many_concurrent" else max(0, min(rooms, default=0)),
        retry_after_s=retry_after_s,
        resets_at_us=counter.resets_at_us(now_us),
        match=counter.match,
    )


def denied_record(
    compiled_key: CompiledKey,
    id_: str,
    route: Route,
    method: str,
    path: str,
    denial: Denial,
    now_us: int,
    model: str,
) -> Record:
    """Return the record that counts a refused request of a key: see `Gate.denied_record`."""
    record = free_record(
        compiled_key.account_id,
        compiled_key.project_id,
        compiled_key.key_id,
        now_us,
        id_,
        route,
        method,
        counted_path(route, path),
        denial.status,
    )
    return refused_record(record, denial, model)


def expired(compiled_key: CompiledKey, now_us: int) -> Denial:
    """Return the refusal of a key that has expired, or whose subscription has ended."""
    subscription = compiled_key.entitlement.subscription
    ends_at = None if subscription is None else subscription.ends_at
    if ends_at is not None and now_us >= to_us(ends_at):
        whose = "this api key" if compiled_key.key_id else "the account"
        return Denial("key_expired", f"The subscription of {whose} has ended. Renew it to go on.")
    return Denial("key_expired", "The api key has expired. Ask for a new one.")


def _message(counter: Counter, amount: int, allowed: int | None, used: int, retry_after_s: int | None) -> str:
    if counter.reason == "credit_exhausted":
        return "The account's credit balance is used up. Top up to continue."
    name = f"{counter.name} ({counter.match})" if counter.match else counter.name
    if counter.reason == "budget_exhausted":
        return f"Budget {name} is used up: {_share(counter.unit, amount, allowed, used)}."
    if counter.reason == "too_many_concurrent":
        return f"Limit {name}: {used} of {allowed} requests are under way."
    advice = (
        "The limit never has room for that much: send a smaller request."
        if retry_after_s is None
        else f"Try again in {retry_after_s} s."
    )
    return f"Rate limit {name} exceeded: {_share(counter.unit, amount, allowed, used)}. {advice}"


def _share(unit: str, amount: int, allowed: int | None, used: int) -> str:
    """Return e.g. `61.5 of 100 seconds used, 50 needed`; money is in whole units: `0.63 of 25.00 used, …`."""
    name = "" if unit == MONEY_UNIT else f" {quantity_of_unit(unit) or unit}"
    most = "unlimited" if allowed is None else _number(allowed, unit)
    return f"{_number(used, unit)} of {most}{name} used, {_number(amount, unit)} needed"


def _number(amount: int, unit: str) -> str:
    if unit == MONEY_UNIT:
        return format_nanos(amount)
    return str(amount) if quantity_of_unit(unit) is None else quantity_text(amount)
