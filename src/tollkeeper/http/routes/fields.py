"""Small request bodies as structs, and how their faults are told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from tollkeeper.catalog.manage import OVERLAP_S_MAX
from tollkeeper.domain.events import (
    BYTES_MAX,
    LATENCY_MS_MAX,
    TAGS_MAX,
    TEXT_CHARS_MAX,
    Id,
    Name,
    Tokens,
)
from tollkeeper.domain.usage_forms import form_hint
from tollkeeper.errors import BadParameter
from tollkeeper.http.wire import Nanos, StatedQuantities, Variant

S = TypeVar("S", bound=msgspec.Struct)

_AT: Final = re.compile(r"(?P<what>.*) - at `\$(?P<path>.*)`\Z", re.DOTALL)
_NAMED: Final = re.compile(r"Object (?:contains unknown|missing required) field `(?P<name>.*)`\Z", re.DOTALL)


class RotateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the old key goes on working beside the new one."""

    overlap_s: Annotated[int, msgspec.Meta(ge=0, le=OVERLAP_S_MAX)] = 0


class StateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state that a key shall have."""

    state: Literal["active", "inactive", "revoked", "deleted"]


class Amendment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What an event shall say instead; what is left out stays. The cost is found anew.

    What names an event (account, project, key, method, route, kind, time) cannot be amended: void it, and
    send another event.
    """

    correction_id: Id | None = None
    """Makes a retry safe: the same id again is the same correction. Without one, a retry amends again."""
    status: Annotated[int, msgspec.Meta(ge=0, le=999)] | None = None
    error_type: Name | None = None
    denied_reason: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    latency_ms: Annotated[float, msgspec.Meta(ge=0, le=LATENCY_MS_MAX)] | None = None
    bytes_out: Annotated[int, msgspec.Meta(ge=0, le=BYTES_MAX)] | None = None
    model: Name | None = None
    tokens: Tokens | None = None
    usage: Any = None
    """The provider's usage object, as it was sent, in place of `tokens`: it replaces all counts of tokens."""
    usage_of: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """Whose usage object; found by its fields when absent."""
    cache: Literal["hit", "miss", "none"] | None = None
    credits: Nanos | None = None
    cost_nanos: Nanos | None = None
    """The actual cost; found from tokens and prices when absent."""
    estimated_cost_nanos: Nanos | None = None
    provider_cost_nanos: Nanos | None = None
    variant: Variant | None = None
    quantities: StatedQuantities | None = None
    """Those that are named; the others stay. 0 takes one away."""
    tags: (
        Annotated[
            dict[
                Annotated[str, msgspec.Meta(min_length=1, max_length=64)],
                Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)],
            ],
            msgspec.Meta(max_length=TAGS_MAX),
        ]
        | None
    ) = None


class VoidEventRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Takes an event out of all totals."""

    correction_id: Id | None = None
    """Makes a retry safe: the same id again is the same correction."""


def fields_of(raw: Mapping[str, Any], of: type[S]) -> S:
    """
    Return the struct that a request's JSON object stands for.

    Raises:
        BadParameter: A field is unknown, missing or of a bad value: which, and what it takes.
    """
    try:
        return msgspec.convert(raw, of)
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
    elif named:
        what = "missing: this field is required"
    raise BadParameter(f"{field or 'body'}: {what.replace('`', '')}{hint}", field=field)
