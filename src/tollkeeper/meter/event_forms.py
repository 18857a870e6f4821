"""
The forms in which an event may come beside the plain one: money as text, and events as answers show them.

What `GET` answers of an event is accepted again: where its event is known, it is a repeat. What we said of the event
(when it was received, its revision, what the price list made of it) is ignored; what its sender stated counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollkeeper.domain.money_fields import BadMoney, twin_of, with_nanos
from tollkeeper.meter.rejections import ECHO_CHARS_MAX, Refused

MONEY_FIELDS: Final = ("cost_nanos", "estimated_cost_nanos", "provider_cost_nanos")
_SHOWN: Final = ("received_at", "price_version", "revision", "voided")
"""What an answer says of an event that nobody sends."""
_STATES: Final = ("given", "priced", "estimated", "unpriced", "free")
_ASKED: Final = frozenset((*_SHOWN, "cost_state", "adjustment_nanos", *map(twin_of, MONEY_FIELDS)))


def plain_event(sent: Any) -> dict[str, Any] | None:
    """
    Return *sent*, an event as JSON has it, in the plain form: whole nanos, and fields of `Event` alone.

    Returns None when it is in no other form.

    Raises:
        Refused: A field holds no money that can be taken, or it is no event.
    """
    if not isinstance(sent, Mapping) or not (
        _ASKED & sent.keys() or any(isinstance(sent.get(name), (str, float)) for name in MONEY_FIELDS)
    ):
        return None
    plain = {name: value for name, value in sent.items() if name not in _SHOWN}
    if plain.get("adjustment_nanos") is not None:
        raise Refused(
            "adjustment_nanos",
            "unknown_field",
            "an adjustment is no event: send it to POST /tk/v1/adjustments, or use tollkeeper adjust",
        )
    try:
        plain = with_nanos(plain, MONEY_FIELDS)
    except BadMoney as exc:
        raise Refused(exc.field, "wrong_type", f"{exc.field}: {exc}") from None
    state = plain.pop("cost_state", None)
    if state is not None:
        if state not in _STATES:
            raise Refused(
                "cost_state",
                "bad_value",
                f"cost_state is one of {', '.join(_STATES)}, not {str(state)[:ECHO_CHARS_MAX]!r}: leave it out",
            )
        if state != "given":
            # Ours: found from prices, or from the estimate, as it was the first time.
            plain.pop("cost_nanos", None)
            plain.pop("provider_cost_nanos", None)
    return plain
