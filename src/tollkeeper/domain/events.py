"""
Meter events: the JSON that callers send, and the record that we book.

`Event` is the wire format of one event. A record is the event after its references were resolved and its
price applied: one row of `RECORD_FIELDS`; `domain.meter` prices and builds it. Records are immutable; a correction
appends the old record with `sign = -1` and the new one with `sign = 1` and the next `revision`, so every measure is
a sum of `sign * value` and totals follow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any, Final, Literal, NamedTuple, Protocol

import msgspec

from tollkeeper.domain.instants import from_us, to_text, to_us
from tollkeeper.domain.quantities import (
    TOKEN_CLASSES,
    VARIANT_CHARS_MAX,
    BadQuantity,
    parse_quantities,
    quantities_json,
    tokens_of,
)
from tollkeeper.domain.quantities import TOKENS_MAX as TOKENS_MAX

ID_CHARS_MAX: Final = 128
TEXT_CHARS_MAX: Final = 256
ROUTE_CHARS_MAX: Final = 512
LATENCY_MS_MAX: Final = 7 * 86_400_000
COST_NANOS_MAX: Final = 10**15
"""A million units for one event; more is taken for a unit error."""
BYTES_MAX: Final = 2**50
TAGS_MAX: Final = 16
FUTURE_S_MAX: Final = 300
"""Most seconds that an event's time may be ahead of our clock."""
TIME_MIN_US: Final = 946_684_800_000_000
"""2000-01-01: an earlier time is taken for a unit error."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=ID_CHARS_MAX)]
Name = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
TokenCount = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]
Status = Annotated[int, msgspec.Meta(ge=0, le=999)]
Reason = Annotated[str, msgspec.Meta(max_length=64)]
LatencyMs = Annotated[float, msgspec.Meta(ge=0, le=LATENCY_MS_MAX)]
BytesOut = Annotated[int, msgspec.Meta(ge=0, le=BYTES_MAX)]
Nanos = Annotated[int, msgspec.Meta(ge=0, le=COST_NANOS_MAX)]
Credits = Nanos
Variant = Annotated[str, msgspec.Meta(max_length=VARIANT_CHARS_MAX)]
StatedQuantities = dict[str, str | int | float | None]
"""Name → units, as decimal text or number: at most 6 decimal places, and 32 names."""
Tags = Annotated[
    dict[Annotated[str, msgspec.Meta(min_length=1, max_length=64)], Name], msgspec.Meta(max_length=TAGS_MAX)
]


class Tokens(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    Disjoint classes of model tokens: a cached prompt token is not counted as a prompt token too.

    Those after the first four are another spelling of the quantities `<class>_tokens`. A provider's counts, most of
    which include each other, are for `Event.usage`.
    """

    prompt: TokenCount | None = None
    cached_prompt: TokenCount | None = None
    completion: TokenCount | None = None
    reasoning: TokenCount | None = None
    cache_write: TokenCount | None = None
    cache_write_1h: TokenCount | None = None
    audio_prompt: TokenCount | None = None
    audio_cached_prompt: TokenCount | None = None
    image_prompt: TokenCount | None = None
    image_cached_prompt: TokenCount | None = None
    video_prompt: TokenCount | None = None
    audio_completion: TokenCount | None = None
    image_completion: TokenCount | None = None
    video_completion: TokenCount | None = None


COLUMN_CLASSES: Final = ("prompt", "cached_prompt", "completion", "reasoning")
"""The classes of `Tokens` that have columns."""
QUANTITY_CLASSES: Final = tuple(name.removesuffix("_tokens") for name in TOKEN_CLASSES)
"""The classes of `Tokens` that are quantities."""


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One meter event as callers send it. Only `id`, `time` and one of `account`, `key_id` are required."""

    id: Id
    time: str
    """RFC 3339 with an offset; kept to the microsecond."""
    account: Name | None = None
    project: Name | None = None
    key_id: Name | None = None
    method: Annotated[str, msgspec.Meta(max_length=16)] | None = None
    route: Annotated[str, msgspec.Meta(max_length=ROUTE_CHARS_MAX)] | None = None
    kind: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """`request` when absent."""
    status: Status | None = None
    error_type: Name | None = None
    denied_reason: Reason | None = None
    latency_ms: LatencyMs | None = None
    bytes_out: BytesOut | None = None
    model: Name | None = None
    tokens: Tokens | None = None
    cache: Literal["hit", "miss", "none"] | None = None
    credits: Credits | None = None
    cost_nanos: Nanos | None = None
    """The actual cost; computed from tokens and route when absent."""
    estimated_cost_nanos: Nanos | None = None
    """The expected cost of a job; it counts until a correction brings the actual cost."""
    provider_cost_nanos: Nanos | None = None
    """The provider's own cost; computed when absent (see `meter`)."""
    variant: Variant | None = None
    """Of the model: `batch`, `flex`, …"""
    quantities: StatedQuantities | None = None
    """Name → units; see `quantities.parse_quantities`."""
    usage: Any = None
    """The usage object of the model's provider, as it was sent; in place of `tokens` (see `usage_forms`)."""
    usage_of: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """Whose usage object: `openai`, `anthropic`, …; found by its fields when absent."""
    tags: Tags | None = None


class TokenClasses(Protocol):
    """Tokens per class as a caller states them, of the classes that are quantities; None for those left out."""

    @property
    def cache_write(self) -> int | None: ...

    @property
    def cache_write_1h(self) -> int | None: ...

    @property
    def audio_prompt(self) -> int | None: ...

    @property
    def audio_cached_prompt(self) -> int | None: ...

    @property
    def image_prompt(self) -> int | None: ...

    @property
    def image_cached_prompt(self) -> int | None: ...

    @property
    def video_prompt(self) -> int | None: ...

    @property
    def audio_completion(self) -> int | None: ...

    @property
    def image_completion(self) -> int | None: ...

    @property
    def video_completion(self) -> int | None: ...


def stated_quantities(quantities: Mapping[str, object] | None, tokens: TokenClasses | None) -> dict[str, int]:
    """
    Return the quantities that a caller states, in micro-units, those that it spells as `tokens` among them.

    A name that is stated as 0 is left out. Raises `quantities.BadQuantity`.
    """
    if tokens is None:
        return parse_quantities(quantities) if quantities else {}
    stated = dict(quantities) if quantities else {}
    for name in QUANTITY_CLASSES:
        count = getattr(tokens, name)
        if count is None:
            continue
        if stated.get(f"{name}_tokens") is not None:
            raise BadQuantity(
                f"tokens.{name}",
                "bad_value",
                f"tokens.{name} and quantities.{name}_tokens are the same: state one",
            )
        stated[f"{name}_tokens"] = count
    return parse_quantities(stated) if stated else {}


CostState = Literal["given", "priced", "estimated", "unpriced", "free"]
"""
Where `cost_nanos` comes from: the caller, the price book, an estimate (a job under way), nowhere yet
(`unpriced`: counts 0 until a price arrives), or nothing is to be charged.
"""


class Record(NamedTuple):
    """
    One booked row; the order and names of the columns of every record batch and of the events table.

    Absent text is `""`, absent counts are 0; only `latency_us` tells absent (None) from 0.

    Attributes:
        quantities: Name → micro-units, in the order of the names; none is 0.
        provider_cost_nanos: What the request costs the provider: the list price, before any mark-up.
        adjustment_nanos: Money given (above 0) or taken (below); a record with one is an adjustment and no request.
    """

    account_id: str
    project_id: str
    key_id: str
    occurred_at_us: int
    received_at_us: int
    id: str
    revision: int
    sign: int
    amendment_id: str
    kind: str
    method: str
    route: str
    status: int
    error_type: str
    denied_reason: str
    latency_us: int | None
    bytes_out: int
    model: str
    prompt_tokens: int
    cached_prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    cache: str
    credits: int
    cost_nanos: int
    estimated_cost_nanos: int
    cost_state: str
    price_version: str
    tags: dict[str, str]
    quantities: Mapping[str, int] = {}
    provider_cost_nanos: int = 0
    variant: str = ""
    adjustment_nanos: int = 0

    @property
    def tokens(self) -> int:
        """Model tokens of all classes, those among the quantities included."""
        tokens = (
            self.prompt_tokens + self.cached_prompt_tokens + self.completion_tokens + self.reasoning_tokens
        )
        return tokens + tokens_of(self.quantities) if self.quantities else tokens


RECORD_FIELDS: Final = Record._fields

_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:([Zz])|([+-])(\d\d):(\d\d))\Z",
    re.ASCII,
)


def parse_time_us(text: str) -> int:
    """
    Return the microseconds since the Unix epoch of an RFC 3339 date-time; finer digits are cut off.

    Raises:
        ValueError: Not RFC 3339, no offset, or no such day or time.
    """
    match = _RFC3339.match(text)
    if match is None:
        raise ValueError("time must be an RFC 3339 date-time with an offset, e.g. 2026-01-31T09:30:00.125Z")
    year, month, day, hour, minute, second, fraction, _, sign, off_h, off_m = match.groups()
    zone = UTC
    if sign is not None:
        minutes = int(off_h) * 60 + int(off_m)
        if int(off_m) > 59 or minutes >= 1440:
            raise ValueError(f"{text!r} has no valid offset")
        zone = timezone(timedelta(minutes=-minutes if sign == "-" else minutes))
    micros = int(((fraction or "") + "000000")[:6])
    try:
        at = datetime(
            int(year), int(month), int(day), int(hour), int(minute), int(second), micros, tzinfo=zone
        )
    except ValueError as exc:
        raise ValueError(f"{text!r} is not a date-time: {exc}") from None
    return to_us(at)


def latency_us(latency_ms: float) -> int:
    """Return *latency_ms* in whole microseconds, half to even; the one place that rounds a latency."""
    return round(latency_ms * 1000)


def record_to_event(record: Record) -> dict[str, Any]:
    """Return the JSON of *record* as an event, with absent values left out."""
    tokens = {
        name: value
        for name, value in (
            ("prompt", record.prompt_tokens),
            ("cached_prompt", record.cached_prompt_tokens),
            ("completion", record.completion_tokens),
            ("reasoning", record.reasoning_tokens),
        )
        if value
    }
    body: dict[str, Any] = {
        "id": record.id,
        "time": to_text(from_us(record.occurred_at_us)),
        "received_at": to_text(from_us(record.received_at_us)),
        "account": record.account_id,
        "project": record.project_id,
        "key_id": record.key_id,
        "method": record.method,
        "route": record.route,
        "kind": record.kind,
        "status": record.status,
        "error_type": record.error_type,
        "denied_reason": record.denied_reason,
        "latency_ms": None if record.latency_us is None else record.latency_us / 1000,
        "bytes_out": record.bytes_out,
        "model": record.model,
        "tokens": tokens,
        "cache": record.cache,
        "credits": record.credits,
        "cost_nanos": str(record.cost_nanos),
        "estimated_cost_nanos": str(record.estimated_cost_nanos) if record.estimated_cost_nanos else None,
        "cost_state": record.cost_state,
        "price_version": record.price_version,
        "revision": record.revision,
        "tags": record.tags,
        "quantities": quantities_json(record.quantities),
        # Left out beside a stated cost it would be that cost: see `domain.meter.cost_of`.
        "provider_cost_nanos": str(record.provider_cost_nanos)
        if record.provider_cost_nanos or (record.cost_state == "given" and record.cost_nanos)
        else None,
        "variant": record.variant,
        "adjustment_nanos": str(record.adjustment_nanos) if record.adjustment_nanos else None,
    }
    return {name: value for name, value in body.items() if value not in ("", None, {})}
