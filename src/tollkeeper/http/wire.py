"""The JSON of the hot endpoints: what authorize, settle, void and events take and answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from tollkeeper.domain.events import COST_NANOS_MAX, TAGS_MAX, Id, Name, TokenCount
from tollkeeper.domain.quantities import VARIANT_CHARS_MAX

Nanos = Annotated[int, msgspec.Meta(ge=0, le=COST_NANOS_MAX)]
StatedQuantities = dict[str, str | int | float | None]
"""Name → units, as decimal text or number: at most 6 decimal places, and 32 names."""
Variant = Annotated[str, msgspec.Meta(max_length=VARIANT_CHARS_MAX)]
Tags = Annotated[
    dict[
        Annotated[str, msgspec.Meta(min_length=1, max_length=64)],
        Annotated[str, msgspec.Meta(max_length=256)],
    ],
    msgspec.Meta(max_length=TAGS_MAX),
]


ProviderName = Annotated[str, msgspec.Meta(max_length=64)]


class TokenCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """
    Disjoint classes of model tokens: a cached prompt token is no prompt token, reasoning is no completion.

    A provider's own counts mostly include each other: send them as `usage`.
    """

    prompt: TokenCount = 0
    cached_prompt: TokenCount = 0
    completion: TokenCount = 0
    reasoning: TokenCount = 0
    cache_write: TokenCount | None = None
    """This and the others are another spelling of the quantities `<class>_tokens`."""
    cache_write_1h: TokenCount | None = None
    audio_prompt: TokenCount | None = None
    audio_cached_prompt: TokenCount | None = None
    image_prompt: TokenCount | None = None
    audio_completion: TokenCount | None = None
    image_completion: TokenCount | None = None


class AuthorizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    May this request go ahead? The estimates are the most that it may use.

    Give `id` to make a retry safe: the same id with the same request gets the same hold.
    """

    key: Annotated[str, msgspec.Meta(max_length=512)]
    """The api key as your caller sent it."""
    method: Annotated[str, msgspec.Meta(min_length=1, max_length=16)] = "POST"
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
    """The path as called, without the query string."""
    id: Id | None = None
    model: Name = ""
    tokens: TokenCounts = TokenCounts()
    usage: Any = None
    """A provider's usage object, as it was sent, in place of `tokens`."""
    usage_of: ProviderName | None = None
    cost_nanos: Nanos | None = None
    credits: Nanos | None = None
    quantities: StatedQuantities = {}
    variant: Variant = ""
    ttl_s: int | None = None
    """How long the hold stays open before it is voided."""
    tags: Tags = {}
    profile: Name = ""
    """Whose words a refusal uses when the key is not known; the native ones by default."""


class AuthorizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The hold that was made, durably. Settle or void it."""

    allowed: bool
    hold_id: str
    account: str
    key_id: str
    project: str | None
    route: str
    held_nanos: str
    held_tokens: int
    held_credits: int
    expires_at: str
    headers: dict[str, str]
    """What to add to your answer, as the key's profile has it; empty for native keys."""


class SettleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What the request used. Safe to repeat.

    With `estimated_cost_nanos` and no `cost_nanos` the job is still under way: the estimate counts until an
    amendment of the event brings the actual cost.
    """

    hold_id: Id
    account: Name | None = None
    """Needed only when several accounts use the same hold id."""
    status: Annotated[int, msgspec.Meta(ge=0, le=999)] = 200
    error_type: Name = ""
    latency_ms: Annotated[float, msgspec.Meta(ge=0, le=604_800_000)] | None = None
    bytes_out: Annotated[int, msgspec.Meta(ge=0, le=2**50)] = 0
    model: Name = ""
    tokens: TokenCounts = TokenCounts()
    usage: Any = None
    """The provider's usage object, as it was sent, in place of `tokens`: the response's own, or a stream's last."""
    usage_of: ProviderName | None = None
    """Whose usage object: `openai`, `openai-responses`, `anthropic`, `gemini`, `bedrock`, …; found when absent."""
    cache: Literal["", "hit", "miss", "none"] = ""
    cost_nanos: Nanos | None = None
    estimated_cost_nanos: Nanos | None = None
    credits: Nanos | None = None
    quantities: StatedQuantities = {}
    variant: Variant = ""
    tags: Tags = {}


class SettleAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What was booked, durably."""

    hold_id: str
    event_id: str
    account: str
    cost_nanos: str
    cost_state: str
    tokens: int
    """Model tokens that were booked, of all classes together."""
    credits: int
    quantities: dict[str, str]
    """Name → units, as decimal text."""
    beyond_hold_nanos: str
    """What was booked beyond the hold; it may have overdrawn a budget or balance."""
    replayed: bool
    """Whether this answers a repeat."""
    headers: dict[str, str]
    """What to add to your answer, in place of `authorize`'s of the same name; empty for most profiles."""


class VoidRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End a hold as if the request never was. Safe to repeat."""

    hold_id: Id
    account: Name | None = None


class VoidAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The hold is gone."""

    hold_id: str
    account: str
    voided: bool
