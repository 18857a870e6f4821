"""
The two forms in which a caller states tokens, and what to say of the one under the name of the other.

`tokens` has our counts, which share no token: cached prompt tokens are not prompt tokens, reasoning is not completion.
`usage` has the object of the model's provider as it was sent, whose counts mostly include each other; it is read by
`meter.provider_usage`.
"""

from __future__ import annotations

from typing import Final

from tollkeeper.domain.quantities import TOKEN_CLASSES, UNITS_KNOWN

PROVIDER_FIELDS: Final = frozenset(
    {
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
        "prompt_tokens_details",
        "completion_tokens_details",
        "input_tokens",
        "output_tokens",
        "input_tokens_details",
        "output_tokens_details",
        "input_token_details",
        "output_token_details",
        "cached_tokens",
        "reasoning_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_creation",
        "server_tool_use",
        "usageMetadata",
        "usage_metadata",
        "promptTokenCount",
        "candidatesTokenCount",
        "totalTokenCount",
        "thoughtsTokenCount",
        "cachedContentTokenCount",
        "inputTokens",
        "outputTokens",
        "totalTokens",
        "cacheReadInputTokens",
        "cacheWriteInputTokens",
    }
)
"""Fields of providers' usage objects that none of ours is called."""

_CLASSES: Final = {
    "cached": "tokens.cached_prompt",
    "cache_read": "tokens.cached_prompt",
    "cache_creation": "tokens.cache_write",
    "input": "tokens.prompt",
    "output": "tokens.completion",
}
"""What callers write for classes of ours → where these are."""

_VARIANTS: Final = frozenset({"service_tier", "serviceTier", "processing", "speed", "tier"})
"""What providers and callers call the variant of a model."""
_COSTS: Final = frozenset({"cost_usd", "total_cost", "costUsd", "totalCost"})


def form_hint(field: str) -> str:
    """Return what to write instead of *field*, which is none of ours; `""` if that cannot be told."""
    name = field.rpartition(".")[2]
    if name in PROVIDER_FIELDS:
        return (
            f"{field} is a field of a provider's usage object: send that object whole as usage, e.g. "
            '"usage": {"prompt_tokens": 2006, "completion_tokens": 300, "prompt_tokens_details": '
            '{"cached_tokens": 1920}}. The counts in tokens share no token: '
            "here prompt 86, cached_prompt 1920, completion 300"
        )
    if field.startswith("tokens.") and name in _CLASSES:
        return f"{field} is not a class of tokens: write {_CLASSES[name]}"
    if field in _VARIANTS:
        return f'{field} is not a field: write it as variant, e.g. "variant": "flex"'
    if field in UNITS_KNOWN or field in TOKEN_CLASSES:
        return f'{field} is a quantity: write it in quantities, e.g. "quantities": {{"{field}": 2}}'
    if field == "quantity":
        return 'quantity is not a field: write quantities, e.g. "quantities": {"seconds": "61.5"}'
    if field in _COSTS:
        return f'{field} is not a field: write it as cost, money as text, e.g. "cost": "0.0123"'
    return ""


def type_hint(field: str) -> str:
    """Return what to write in place of a value of another type than *field* has, `""` where its type says enough."""
    if field == "credits":
        return (
            "credits must be a whole number: parts of a credit are a quantity, e.g. "
            '"quantities": {"credits": "0.25"}'
        )
    return ""
