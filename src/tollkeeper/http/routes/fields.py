"""Small request bodies as structs, and the errors for a body that does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from tollkeeper.catalog.manage import OVERLAP_S_MAX
from tollkeeper.domain.events import (
    BytesOut,
    Credits,
    Id,
    LatencyMs,
    Name,
    Nanos,
    Reason,
    StatedQuantities,
    Status,
    Tags,
    Tokens,
    Variant,
)
from tollkeeper.domain.money_fields import BadMoney, is_money_name, with_nanos
from tollkeeper.domain.requirements import requirement
from tollkeeper.domain.usage_forms import form_hint, type_hint
from tollkeeper.errors import BadParameter

S = TypeVar("S", bound=msgspec.Struct)

_AT: Final = re.compile(r"(?P<what>.*) - at `\$(?P<path>.*)`\Z", re.DOTALL)
_NAMED: Final = re.compile(r"Object (?:contains unknown|missing required) field `(?P<name>.*)`\Z", re.DOTALL)


class RotateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds for which the old key stays valid beside the new one."""

    overlap_s: Annotated[int, msgspec.Meta(ge=0, le=OVERLAP_S_MAX)] = 0
    id: Id | None = None
    """Of the new key; that of the first key with the next number when absent: `acme-prod-2`."""


class StateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state that the key must have from now on."""

    state: Literal["active", "inactive", "revoked", "deleted"]


class Amendment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The fields of an event to change; a field that is left out stays. The cost is computed again.

    The fields that identify an event (account, project, key, method, route, kind, time) cannot be amended: void the
    event and send another one.
    """

    correction_id: Id | None = None
    """Makes a retry safe: the same id again is the same correction. Without one, a retry amends again."""
    status: Status | None = None
    error_type: Name | None = None
    denied_reason: Reason | None = None
    latency_ms: LatencyMs | None = None
    bytes_out: BytesOut | None = None
    model: Name | None = None
    tokens: Tokens | None = None
    usage: Any = None
    """The provider's usage object, as it was sent, in place of `tokens`: it replaces all counts of tokens."""
    usage_of: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """Whose usage object; found by its fields when absent."""
    cache: Literal["hit", "miss", "none"] | None = None
    credits: Credits | None = None
    cost_nanos: Nanos | None = None
    """The actual cost; found from tokens and prices when absent."""
    estimated_cost_nanos: Nanos | None = None
    provider_cost_nanos: Nanos | None = None
    variant: Variant | None = None
    quantities: StatedQuantities | None = None
    """Those that are named; the others stay. 0 takes one away."""
    tags: Tags | None = None


class VoidEventRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Takes an event out of all totals."""

    correction_id: Id | None = None
    """Makes a retry safe: the same id again is the same correction."""


@cache
def money_names(of: type[msgspec.Struct]) -> tuple[str, ...]:
    """Return the fields of a body that hold money: each takes whole nanos, or money under its twin's name."""
    return tuple(name for name in of.__struct_fields__ if is_money_name(name))


def fields_of(raw: Mapping[str, Any], of: type[S]) -> S:
    """
    Return the struct that a request's JSON object stands for.

    Raises:
        BadParameter: A field is unknown, missing or of a bad value: which, and what it takes.
    """
    try:
        return msgspec.convert(with_nanos(raw, money_names(of)), of)
    except BadMoney as exc:
        raise BadParameter(f"{exc.field}: {exc}", field=exc.field) from None
    except msgspec.ValidationError as exc:
        text = str(exc)
    at = _AT.match(text)
    what, path = (at["what"], at["path"].lstrip(".")) if at else (text, "")
    named = _NAMED.match(what)
    field = ".".join(part for part in (path, named["name"][:64] if named else "") if part)
    hint = ""
    if what.startswith("Object contains unknown"):
        if form := form_hint(field):
            raise BadParameter(form, field=field)
        hint = f": the fields are {', '.join(of.__struct_fields__)}" if not path else ""
        what = "unknown field"
    elif hint := type_hint(field):
        raise BadParameter(hint, field=field)
    elif named:
        what = "missing: this field is required"
    raise BadParameter(f"{field or 'body'}: {requirement(what)}{hint}", field=field)
