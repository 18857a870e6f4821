"""The JSON of the hot endpoints: what authorize, settle, void and events take and answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from tollkeeper.domain.events import (
    BytesOut,
    Credits,
    Id,
    LatencyMs,
    Name,
    Nanos,
    StatedQuantities,
    Status,
    Tags,
    TokenCount,
    Variant,
)

Credential = Annotated[str, msgspec.Meta(max_length=8192)]
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
    image_cached_prompt: TokenCount | None = None
    video_prompt: TokenCount | None = None
    audio_completion: TokenCount | None = None
    image_completion: TokenCount | None = None
    video_completion: TokenCount | None = None


class AuthorizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    May this request go ahead? The estimates are the most that it may use.

    Give `id` to make a retry safe: the same id with the same request gets the same hold.
    """

    key: Credential | None = None
    """
    The api key as your caller sent it. With the profile of a vendor whose dashboard users call its API (`regsn`), or
    with `sessions`, it may be a session token. A request has one of `key`, `session` and `account`.
    """
    other_keys: Annotated[list[Credential], msgspec.Meta(max_length=4)] = []
    """What came in other headers: of these and `key` the one that is known counts; two that differ are refused."""
    sessions: bool | None = None
    """Whether `key` may be a session token; as the vendor of `answer_as` or `profile` does unless given."""
    session: Credential | None = None
    """A session token: its account pays, from the same pools, without a key."""
    account: Name | None = None
    """The account that pays for a request without a key, such as one of your own dashboard."""
    user: Name = ""
    """With `account`: who signed in. Rate limits per key count each user apart."""
    project: Name | None = None
    """With `session` or `account`: the project that the request is for."""
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
    credits: Credits | None = None
    quantities: StatedQuantities = {}
    variant: Variant = ""
    ttl_s: int | None = None
    """Seconds until an open hold expires; defaults to the setting `hold_s`."""
    tags: Tags = {}
    profile: Name = ""
    """
    The profile whose form the refusal of an unknown key has; defaults to `native`. Of a request without a key, the one
    whose routes it may call; all unless given.
    """
    answer_as: Name = ""
    """
    The profile that your API speaks, or `native`: keys of other profiles are unknown to it, as in the middleware. A
    refusal is then a problem document, with the vendor's answer in its `reply`.
    """
    request_headers: dict[str, str] = {}
    """With `answer_as`: headers of your caller's request by lower-case name, from which the profile reads tags."""


class AuthorizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The hold, durably committed. Settle or void it."""

    allowed: bool
    hold_id: str
    account: str
    key_id: str
    """Empty for a request without a key."""
    project: str | None
    route: str
    held_nanos: str
    held_tokens: int
    held_credits: int
    expires_at: str
    headers: dict[str, str]
    """Headers to add to your answer, as in the key's profile; empty for native keys."""


class MoreUsage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be held in addition."""

    model: Name = ""
    tokens: TokenCounts = TokenCounts()
    cost_nanos: Nanos | None = None
    credits: Credits | None = None
    quantities: StatedQuantities = {}
    variant: Variant = ""


class ExpectRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    What an open hold is to hold from now on: the most that its request may use in all. Safe to repeat.

    With `more` as much of it as fits is added to that, all of it or the part that is left.
    """

    hold_id: Id
    account: Name | None = None
    """Needed only when several accounts use the same hold id."""
    model: Name = ""
    """That of the hold unless given."""
    tokens: TokenCounts = TokenCounts()
    usage: Any = None
    """A provider's usage object, as it was sent, in place of `tokens`."""
    usage_of: ProviderName | None = None
    cost_nanos: Nanos | None = None
    credits: Credits | None = None
    quantities: StatedQuantities = {}
    variant: Variant = ""
    more: MoreUsage | None = None
    ttl_s: int | None = None
    """The hold lasts at least so many seconds from now; defaults to the setting `hold_s`."""
    tags: Tags | None = None
    """Those of its event, by which limits and budgets may count it; those of the hold unless given."""
    key: Annotated[str, msgspec.Meta(max_length=512)] = ""
    """The api key as your caller sent it, for the words of a refusal in a profile."""
    answer_as: Name = ""
    request_headers: dict[str, str] = {}
    """These two as in `authorize`."""


class GrantedUsage(msgspec.Struct, frozen=True, kw_only=True):
    """The part of `more` that is held."""

    tokens: TokenCounts
    quantities: dict[str, str]
    cost_nanos: str | None
    credits: int | None


class ExpectAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The hold as it is now, durably committed."""

    hold_id: str
    account: str
    held_nanos: str
    held_tokens: int
    held_credits: int
    expires_at: str
    granted: GrantedUsage | None
    """With `more`: what of it is held, which may be nothing; null without."""
    denial: dict[str, Any] | None
    """With `more`: the problem document that says why it is not all; null when it is."""


class SettleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    The usage of the request. Safe to repeat.

    With `estimated_cost_nanos` and no `cost_nanos` the job is still under way: the estimate counts until an
    amendment of the event brings the actual cost.
    """

    hold_id: Id
    account: Name | None = None
    """Needed only when several accounts use the same hold id."""
    preview: bool = False
    """Books nothing: the answer is as of a settle at this moment, for the headers of a response that begins."""
    later_s: int | None = None
    """
    Leaves the hold open for so many seconds. This outcome is booked then, unless another settle comes before; the
    answer is as of `preview`.
    """
    status: Status = 200
    error_type: Name = ""
    latency_ms: LatencyMs | None = None
    bytes_out: BytesOut = 0
    model: Name = ""
    tokens: TokenCounts = TokenCounts()
    usage: Any = None
    """The provider's usage object, as it was sent, in place of `tokens`: the response's own, or a stream's last."""
    usage_of: ProviderName | None = None
    """Whose usage object: `openai`, `openai-responses`, `anthropic`, `gemini`, `bedrock`, …; found when absent."""
    cache: Literal["", "hit", "miss", "none"] = ""
    cost_nanos: Nanos | None = None
    estimated_cost_nanos: Nanos | None = None
    credits: Credits | None = None
    quantities: StatedQuantities = {}
    variant: Variant = ""
    tags: Tags = {}


class SettleAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The booked request, durably committed."""

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
    """The cost beyond the hold; it may have overdrawn a budget or balance."""
    replayed: bool
    """Whether this answers a repeat."""
    headers: dict[str, str]
    """Headers to add to your answer. They replace those of `authorize` with the same name; empty for most profiles."""


class VoidRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """End a hold as if the request never was. Safe to repeat."""

    hold_id: Id
    account: Name | None = None


class VoidAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The hold is gone."""

    hold_id: str
    account: str
    voided: bool
