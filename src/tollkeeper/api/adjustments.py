"""Adjustments as JSON, the same over HTTP, on the command line and in the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from tollkeeper.domain.adjustments import Adjustment, adjustment_json
from tollkeeper.domain.events import parse_time_us
from tollkeeper.domain.money import format_nanos
from tollkeeper.domain.money_fields import BadMoney, cent_warning, stated_nanos
from tollkeeper.errors import BadParameter

if TYPE_CHECKING:
    from tollkeeper.meter.adjustments import Adjusted

_TEXTS: Final = ("id", "account", "reason", "event", "key_id", "project", "time")
_READ_ONLY: Final = ("received_at", "voided")
"""What an answer says beside what was asked; ignored in requests, so that an answer can be sent back."""
FIELDS: Final = (*_TEXTS[:2], "amount", "amount_nanos", *_TEXTS[2:])


class AdjustmentAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """
    An adjustment as it was booked.

    `repeated`: it was booked before, and this call changed nothing. `warnings` say what looks like a slip.
    """

    adjustment: dict[str, Any]
    repeated: bool
    warnings: list[str] = []


def adjustment_of(raw: Mapping[str, Any]) -> Adjustment:
    """
    Return the adjustment that a JSON object asks for.

    Raises:
        BadParameter: A field is unknown, missing or of a bad value: which, and what to do.
    """
    for name in raw:
        if name not in (*FIELDS, *_READ_ONLY):
            raise BadParameter(
                f"{name[:64]}: unknown field: the fields are {', '.join(FIELDS)}", field=name[:64]
            )
    texts: dict[str, str] = {}
    for name in _TEXTS:
        value = raw.get(name)
        if value is not None and not isinstance(value, str):
            raise BadParameter(f"{name}: write it as text", field=name)
        texts[name] = value or ""
    try:
        nanos = stated_nanos(raw, "amount_nanos")
    except BadMoney as exc:
        raise BadParameter(f"{exc.field}: {exc}", field=exc.field) from None
    for name, missing in (("account", not texts["account"]), ("amount", nanos is None)):
        if missing:
            raise BadParameter(f"{name}: missing: this field is required", field=name)
    assert nanos is not None
    try:
        at_us = parse_time_us(texts["time"]) if texts["time"] else None
        "".join(texts.values()).encode()
    except UnicodeEncodeError:
        raise BadParameter("a text holds half a surrogate pair: remove it", field="reason") from None
    except ValueError as exc:
        raise BadParameter(f"time: {exc}", field="time") from None
    return Adjustment(
        texts["id"],
        texts["account"],
        nanos,
        texts["reason"],
        texts["event"],
        texts["key_id"],
        texts["project"],
        at_us,
    )


def adjustment_answer(adjusted: Adjusted) -> AdjustmentAnswer:
    """Return the answer to an adjustment that was posted."""
    warning = cent_warning("amount", adjusted.record.adjustment_nanos)
    return AdjustmentAnswer(
        adjustment=adjustment_json(adjusted.record),
        repeated=adjusted.repeated,
        warnings=[] if warning is None else [warning],
    )


def adjustment_line(answer: AdjustmentAnswer) -> str:
    """Return the line for people: whose money moved, by how much, and why."""
    made = answer.adjustment
    nanos = int(made["amount_nanos"])
    did = f"{format_nanos(abs(nanos))} {'given to' if nanos > 0 else 'taken from'} {made['account']}"
    again = " (booked before: nothing changed)" if answer.repeated else ""
    return f"adjustment {made['id']}: {did}: {made['reason']}{again}"
