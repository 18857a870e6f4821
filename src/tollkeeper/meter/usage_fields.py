"""
Fields of providers' usage objects that no extractor of the list reads, or reads under another name.

Only tables: `provider_usage.py` applies them, by the family of a body (`usage_extractors.FAMILIES`).
"""

from __future__ import annotations

from typing import Final

UNITS: Final = {
    "web_searches": "searches",
    "audio_seconds": "seconds",
    "input_characters": "characters",
    "input_document_pages": "pages",
    "social_searches": "social_searches",
    "storage_searches": "storage_searches",
    "rerank_searches": "rerank_searches",
    "code_executions": "code_executions",
    "input_text_messages": "messages",
}
"""Usage keys of the package that are no tokens → names of quantities."""


CACHE_FIELDS: Final = frozenset(
    {
        "cached_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cached_input_tokens",
        "cachedInputTokens",
        "cachedContentTokenCount",
        "cacheReadInputTokens",
        "cacheWriteInputTokens",
        "cache_read",
        "cache_creation",
        "cacheReadTokens",
        "cacheWriteTokens",
        "cache_read_tokens",
        "cache_write_tokens",
    }
)
"""Fields that state cached tokens in one dialect or another; one that an extractor leaves out is not ignored."""

SPELLINGS: Final = {
    "chat": (
        (("cache_creation_input_tokens",), ("prompt_tokens_details", "cache_write_tokens")),
        (("prompt_tokens_details", "cache_creation_tokens"), ("prompt_tokens_details", "cache_write_tokens")),
        (("prompt_cache_hit_tokens",), ("prompt_tokens_details", "cached_tokens")),
        (("prompt_token_details", "cached_tokens"), ("prompt_tokens_details", "cached_tokens")),
        (("cached_tokens",), ("prompt_tokens_details", "cached_tokens")),
    ),
    "embeddings": ((("total_tokens",), ("prompt_tokens",)),),  # Voyage states nothing else.
    "gemini": (  # As its Live API has them.
        (("responseTokenCount",), ("candidatesTokenCount",)),
        (("responseTokensDetails",), ("candidatesTokensDetails",)),
    ),
    "bedrock": (
        (("inputTokenCount",), ("inputTokens",)),
        (("outputTokenCount",), ("outputTokens",)),
        (("cacheReadInputTokenCount",), ("cacheReadInputTokens",)),
        (("cacheWriteInputTokenCount",), ("cacheWriteInputTokens",)),
        # As InvokeModel answers: models of Meta, and Titan.
        (("prompt_token_count",), ("inputTokens",)),
        (("generation_token_count",), ("outputTokens",)),
        (("inputTextTokenCount",), ("inputTokens",)),
        (("totalOutputTextTokenCount",), ("outputTokens",)),
    ),
}
"""Other spellings of a family's fields → the extractors' own, which is set where it is absent."""

_TOOLS_OF_XAI: Final = (
    (("num_sources_used",), "sources"),
    (("server_side_tool_usage_details", "web_search_calls"), "searches"),
    (("server_side_tool_usage_details", "x_search_calls"), "social_searches"),
    (("server_side_tool_usage_details", "code_interpreter_calls"), "code_executions"),
    (("server_side_tool_usage_details", "file_search_calls"), "storage_searches"),
)

UNITS_BESIDE: Final = {
    "chat": (
        (("prompt_audio_seconds",), "seconds"),  # Of Mistral, which charges audio by its length.
        (("server_tool_use_details", "tool_calls_executed"), "tool_calls"),  # Of OpenRouter.
        *_TOOLS_OF_XAI,
    ),
    "responses": _TOOLS_OF_XAI,
    "anthropic": ((("server_tool_use", "code_execution_requests"), "code_executions"),),
    "cohere": (
        (("billed_units", "search_units"), "rerank_searches"),
        (("billed_units", "images"), "images"),
        (("billed_units", "classifications"), "classifications"),
    ),
}
"""Fields of a family that state units and that no extractor reads → names of quantities."""

PARTS_BESIDE: Final = {
    "chat": (
        (("prompt_tokens_details", "audio_tokens"), "input_audio_tokens"),
        (("prompt_tokens_details", "image_tokens"), "input_image_tokens"),
        (("completion_tokens_details", "audio_tokens"), "output_audio_tokens"),
        (("completion_tokens_details", "image_tokens"), "output_image_tokens"),
        (("completion_tokens_details", "video_tokens"), "output_video_tokens"),
    ),
    "responses": (
        (("input_tokens_details", "audio_tokens"), "input_audio_tokens"),
        (("input_tokens_details", "image_tokens"), "input_image_tokens"),
        (("output_tokens_details", "audio_tokens"), "output_audio_tokens"),
        (("output_tokens_details", "image_tokens"), "output_image_tokens"),
        (("output_tokens_details", "video_tokens"), "output_video_tokens"),
    ),
    "realtime": (
        (("output_token_details", "image_tokens"), "output_image_tokens"),
        (("input_token_details", "video_tokens"), "input_video_tokens"),
        (("output_token_details", "video_tokens"), "output_video_tokens"),
    ),
}
"""
Fields of a family that state parts of the prompt or completion with a price of their own → the package's names. Not all
extractors of the family read them; a part that none reads would be charged as text. Video of the prompt is not among
them where no seller of the family has a price for it.
"""

MODALITIES: Final = ("TEXT", "AUDIO", "IMAGE", "VIDEO", "DOCUMENT", "MODALITY_UNSPECIFIED", "UNSPECIFIED")
"""Of Gemini's lists of details."""
