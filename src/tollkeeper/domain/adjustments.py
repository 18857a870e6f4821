"""
Adjustments: an account's money up or down without a request. Goodwill, refunds and corrections by hand are these.

An adjustment is booked as a record that is no request and costs nothing: budgets and the credit balance are charged
with its negative. One that names no key is the account's: it moves the account's budgets and its credit balance. One
that names a key moves what the requests of that key are charged to.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tollkeeper.domain.events import (
    COST_NANOS_MAX,
    FUTURE_S_MAX,
    ID_CHARS_MAX,
    TEXT_CHARS_MAX,
    TIME_MIN_US,
    Record,
)
from tollkeeper.domain.instants import US_PER_S, from_us, to_text
from tollkeeper.domain.money import format_nanos

ADJUSTMENT_KIND: Final = "adjustment"
REASON_TAG: Final = "reason"
EVENT_TAG: Final = "event"


class BadAdjustment(ValueError):
    """One field of an adjustment breaks a rule: the message says what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class Adjustment(NamedTuple):
    """
    What a caller asks for.

    Attributes:
        id: Names this adjustment for ever, among the events of its account.
        amount_nanos: Above 0 in the customer's favour, below 0 against it.
        event_id: The event that it corrects; "" for none. The event itself stays as it is.
        key_id, project_id: Whose budgets it moves; "" for those of the account as a whole.
        at_us: When it counts; None for when it is booked.
    """

    id: str
    account_id: str
    amount_nanos: int
    reason: str
    event_id: str = ""
    key_id: str = ""
    project_id: str = ""
    at_us: int | None = None


def check_adjustment(asked: Adjustment, now_us: int) -> None:
    """Raise `BadAdjustment` when *asked* breaks a rule that it can know by itself."""
    if not 1 <= len(asked.id) <= ID_CHARS_MAX:
        raise BadAdjustment("id", f"an id has 1 to {ID_CHARS_MAX} characters")
    if not asked.amount_nanos:
        raise BadAdjustment(
            "amount", 'an amount is not 0: write e.g. "25.00" to give money, or "-25.00" to take it'
        )
    if abs(asked.amount_nanos) > COST_NANOS_MAX:
        raise BadAdjustment("amount", f"an amount is at most {format_nanos(COST_NANOS_MAX)} either way")
    if not asked.reason.strip():
        raise BadAdjustment("reason", 'a reason is required, e.g. "goodwill after the outage of 3 May"')
    for field, text in (("reason", asked.reason), ("event", asked.event_id)):
        if len(text) > TEXT_CHARS_MAX:
            raise BadAdjustment(field, f"at most {TEXT_CHARS_MAX} characters")
    if asked.at_us is not None:
        if asked.at_us < TIME_MIN_US:
            raise BadAdjustment(
                "time", "time is before the year 2000; check that it was made from the right unit"
            )
        if asked.at_us > now_us + FUTURE_S_MAX * US_PER_S:
            raise BadAdjustment("time", f"time is more than {FUTURE_S_MAX} s in the future")


def adjustment_record(asked: Adjustment, now_us: int) -> Record:
    """Return the record that books *asked*."""
    tags = {REASON_TAG: asked.reason}
    if asked.event_id:
        tags = {EVENT_TAG: asked.event_id, **tags}
    return Record(
        asked.account_id, asked.project_id, asked.key_id, now_us if asked.at_us is None else asked.at_us,
        now_us, asked.id, 0, 1, "", ADJUSTMENT_KIND, "", "", 0, "", "", None, 0, "", 0, 0, 0, 0, "", 0, 0, 0,
        "free", "", tags, adjustment_nanos=asked.amount_nanos,
    )  # fmt: skip


def same_adjustment(stored: Record, asked: Adjustment) -> bool:
    """Return whether *asked* is the adjustment that *stored* books; a time that is left out may be any."""
    made = adjustment_record(asked, stored.received_at_us)
    if asked.at_us is None:
        made = made._replace(occurred_at_us=stored.occurred_at_us)
    same = (
        made.account_id,
        made.project_id,
        made.key_id,
        made.occurred_at_us,
        made.id,
        made.adjustment_nanos,
    )
    return made.tags == stored.tags and same == (
        stored.account_id,
        stored.project_id,
        stored.key_id,
        stored.occurred_at_us,
        stored.id,
        stored.adjustment_nanos,
    )


def adjustment_json(record: Record) -> dict[str, object]:
    """Return an adjustment as the API shows it, which it accepts again."""
    body: dict[str, object] = {
        "id": record.id,
        "account": record.account_id,
        "time": to_text(from_us(record.occurred_at_us)),
        "received_at": to_text(from_us(record.received_at_us)),
        "amount": format_nanos(record.adjustment_nanos),
        "amount_nanos": str(record.adjustment_nanos),
        "reason": record.tags.get(REASON_TAG, ""),
        "event": record.tags.get(EVENT_TAG, ""),
        "key_id": record.key_id,
        "project": record.project_id,
        "voided": record.sign < 0,
    }
    return {name: value for name, value in body.items() if value != ""}
