"""What providers' usage objects mean: read as they are sent, into counts that share no token."""

from __future__ import annotations

import gzip
import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.traces import DATA, needs_traces
from tollkeeper.domain.events import TOKENS_MAX
from tollkeeper.domain.quantities import MICROS, TOKEN_CLASSES, completion_tokens_of, prompt_tokens_of
from tollkeeper.domain.requests import Usage
from tollkeeper.errors import BadParameter
from tollkeeper.meter.provider_usage import read_usage, usage_from
from tollkeeper.meter.usage_extractors import provider_names

BODIES: Final = DATA / "provider_usage_bodies.json.gz"

M5: Final = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "prompt_tokens_details": {"cached_tokens": 1920},
    "completion_tokens_details": {"reasoning_tokens": 192},
}


def columns(usage: Usage) -> tuple[int, int, int, int]:
    return usage[:4]


def amounts(usage: Usage) -> dict[str, float]:
    return {name: micros / MICROS for name, micros in usage.quantities.items()}


def nested(usage: Usage) -> tuple[int, int, int, int, int]:
    """The counts as the price list's package has them: prompt and completion whole, parts inside."""
    quantities = usage.quantities
    return (
        usage.prompt_tokens + usage.cached_prompt_tokens + prompt_tokens_of(quantities),
        usage.completion_tokens + usage.reasoning_tokens + completion_tokens_of(quantities),
        usage.cached_prompt_tokens
        + sum(quantities.get(f"{kind}_cached_prompt_tokens", 0) for kind in ("audio", "image")) // MICROS,
        usage.reasoning_tokens,
        (quantities.get("cache_write_tokens", 0) + quantities.get("cache_write_1h_tokens", 0)) // MICROS,
    )


@needs_traces
def test_every_recorded_body_is_read_as_its_provider_means_it() -> None:
    """Each of 1,100 real bodies, as a whole response and as the bare usage object."""
    entries = json.loads(gzip.decompress(BODIES.read_bytes()))
    assert len(entries) == 1100
    for entry in entries:
        body = entry["body"]
        readings = [
            (
                *(reading["usage"].get(name, 0) for name in ("input_tokens", "output_tokens")),
                reading["usage"].get("cache_read_tokens", 0),
                reading["usage"].get("output_reasoning_tokens", 0),
                reading["usage"].get("cache_write_tokens", 0),
            )
            for reading in entry["extracted"]
        ]
        # Of several readings the most detailed is right; Cohere charges its billed units, which have less.
        right = max(readings, key=lambda counts: sum(map(bool, counts)))
        if "billed_units" in body.get("usage", {}):
            right = (*body["usage"]["billed_units"].values(), 0, 0, 0)
        for form in (body, body.get("usage", body.get("usageMetadata"))):
            assert nested(read_usage(form).usage) == right, body
        assert read_usage(body).usage.response_model == entry.get("model", body.get("modelVersion", ""))


CASES: Final[list[tuple[str, Any, tuple[int, int, int, int], dict[str, float]]]] = [
    ("openai", M5, (86, 1920, 108, 192), {}),
    (
        "openai audio",
        {
            "prompt_tokens": 1200,
            "completion_tokens": 900,
            "total_tokens": 2100,
            "prompt_tokens_details": {"audio_tokens": 1100, "text_tokens": 100, "cached_tokens": 0},
            "completion_tokens_details": {"audio_tokens": 850, "text_tokens": 50, "reasoning_tokens": 0},
        },
        (100, 0, 50, 0),
        {"audio_prompt_tokens": 1100, "audio_completion_tokens": 850},
    ),
    (
        "openai cache writes",
        {
            "prompt_tokens": 3000,
            "completion_tokens": 300,
            "prompt_tokens_details": {"cached_tokens": 2000, "cache_write_tokens": 400},
        },
        (600, 2000, 300, 0),
        {"cache_write_tokens": 400},
    ),
    (
        "openai responses",
        {
            "input_tokens": 2006,
            "input_tokens_details": {"cached_tokens": 1920},
            "output_tokens": 300,
            "output_tokens_details": {"reasoning_tokens": 192},
            "total_tokens": 2306,
        },
        (86, 1920, 108, 192),
        {},
    ),
    (
        "openai realtime",
        {
            "total_tokens": 253,
            "input_tokens": 132,
            "output_tokens": 121,
            "input_token_details": {
                "text_tokens": 119,
                "audio_tokens": 13,
                "image_tokens": 0,
                "cached_tokens": 64,
                "cached_tokens_details": {"text_tokens": 58, "audio_tokens": 6, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": 30, "audio_tokens": 91},
        },
        (61, 58, 30, 0),
        {"audio_prompt_tokens": 7, "audio_cached_prompt_tokens": 6, "audio_completion_tokens": 91},
    ),
    (
        "openai realtime with cached images",
        {
            "total_tokens": 300,
            "input_tokens": 200,
            "output_tokens": 100,
            "input_token_details": {
                "text_tokens": 50,
                "image_tokens": 150,
                "cached_tokens": 100,
                "cached_tokens_details": {"text_tokens": 20, "image_tokens": 80},
            },
            "output_token_details": {"text_tokens": 100},
        },
        (30, 20, 100, 0),
        {"image_prompt_tokens": 70, "image_cached_prompt_tokens": 80},
    ),
    (
        "openai realtime with images that must have been cached, as there is not that much text",
        {
            "input_tokens": 200,
            "output_tokens": 100,
            "input_token_details": {"text_tokens": 50, "image_tokens": 150, "cached_tokens": 100},
            "output_token_details": {"text_tokens": 100},
        },
        (0, 50, 100, 0),
        {"image_prompt_tokens": 100, "image_cached_prompt_tokens": 50},
    ),
    (
        "openrouter's images in the answer, which no extractor of chat completions reads",
        {
            "prompt_tokens": 27,
            "completion_tokens": 1300,
            "completion_tokens_details": {"image_tokens": 1290, "reasoning_tokens": 0},
            "total_tokens": 1327,
            "server_tool_use_details": {"tool_calls_executed": 1},
        },
        (27, 0, 10, 0),
        {"image_completion_tokens": 1290, "tool_calls": 1},
    ),
    (
        "gemini video, some of it cached",
        {
            "promptTokenCount": 1000,
            "candidatesTokenCount": 10,
            "totalTokenCount": 1010,
            "promptTokensDetails": [
                {"modality": "VIDEO", "tokenCount": 900},
                {"modality": "TEXT", "tokenCount": 100},
            ],
            "cachedContentTokenCount": 400,
            "cacheTokensDetails": [{"modality": "VIDEO", "tokenCount": 400}],
        },
        (100, 400, 10, 0),
        {"video_prompt_tokens": 500},
    ),
    (
        "gemini video, cached without details",
        {
            "promptTokenCount": 1000,
            "candidatesTokenCount": 10,
            "promptTokensDetails": [
                {"modality": "VIDEO", "tokenCount": 900},
                {"modality": "TEXT", "tokenCount": 100},
            ],
            "cachedContentTokenCount": 400,
        },
        (0, 400, 10, 0),
        {"video_prompt_tokens": 600},
    ),
    (
        "gemini that makes a video",
        {
            "promptTokenCount": 10,
            "candidatesTokenCount": 5000,
            "candidatesTokensDetails": [{"modality": "VIDEO", "tokenCount": 5000}],
        },
        (10, 0, 0, 0),
        {"video_completion_tokens": 5000},
    ),
    (
        "x-ai's tools of a response, which it charges by the call",
        {
            "input_tokens": 10,
            "output_tokens": 5,
            "total_tokens": 15,
            "server_side_tool_usage_details": {"web_search_calls": 3, "x_search_calls": 2},
        },
        (10, 0, 5, 0),
        {"searches": 3, "social_searches": 2},
    ),
    (
        "anthropic code execution",
        {"input_tokens": 5, "output_tokens": 2, "server_tool_use": {"code_execution_requests": 2}},
        (5, 0, 2, 0),
        {"code_executions": 2},
    ),
    (
        "openai images",
        {
            "input_tokens": 50,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens": 1056,
            "total_tokens": 1106,
        },
        (10, 0, 1056, 0),
        {"image_prompt_tokens": 40},
    ),
    (
        "openai transcription by tokens",
        {
            "type": "tokens",
            "input_tokens": 14,
            "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
            "output_tokens": 45,
            "total_tokens": 59,
        },
        (0, 0, 45, 0),
        {"audio_prompt_tokens": 14},
    ),
    ("openai transcription by time", {"type": "duration", "seconds": 61.5}, (0, 0, 0, 0), {"seconds": 61.5}),
    ("openai embeddings", {"prompt_tokens": 8, "total_tokens": 8}, (8, 0, 0, 0), {}),
    (
        "anthropic",
        {
            "input_tokens": 12,
            "cache_creation_input_tokens": 10_000,
            "cache_creation": {"ephemeral_5m_input_tokens": 4000, "ephemeral_1h_input_tokens": 6000},
            "cache_read_input_tokens": 20_000,
            "output_tokens": 350,
            "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 1},
        },
        (12, 20_000, 350, 0),
        {"cache_write_tokens": 4000, "cache_write_1h_tokens": 6000, "searches": 3},
    ),
    (
        "anthropic with the split of cache writes alone",
        {
            "input_tokens": 12,
            "cache_creation": {"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 60},
            "output_tokens": 5,
        },
        (12, 0, 5, 0),
        {"cache_write_tokens": 40, "cache_write_1h_tokens": 60},
    ),
    (
        "anthropic thinking",
        {
            "input_tokens": 30,
            "cache_read_input_tokens": 0,
            "output_tokens": 400,
            "output_tokens_details": {"thinking_tokens": 350},
        },
        (30, 0, 50, 350),
        {},
    ),
    (
        "gemini",
        {
            "promptTokenCount": 19_208,
            "candidatesTokenCount": 200,
            "totalTokenCount": 19_408,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 8},
                {"modality": "AUDIO", "tokenCount": 19_200},
            ],
        },
        (8, 0, 200, 0),
        {"audio_prompt_tokens": 19_200},
    ),
    (
        "gemini with everything",
        {
            "promptTokenCount": 1000,
            "cachedContentTokenCount": 300,
            "candidatesTokenCount": 120,
            "thoughtsTokenCount": 80,
            "toolUsePromptTokenCount": 50,
            "totalTokenCount": 1250,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 400},
                {"modality": "IMAGE", "tokenCount": 250},
                {"modality": "AUDIO", "tokenCount": 350},
            ],
            "cacheTokensDetails": [
                {"modality": "TEXT", "tokenCount": 100},
                {"modality": "AUDIO", "tokenCount": 200},
            ],
            "candidatesTokensDetails": [
                {"modality": "TEXT", "tokenCount": 20},
                {"modality": "IMAGE", "tokenCount": 100},
            ],
        },
        (350, 100, 20, 80),
        {
            "audio_prompt_tokens": 150,
            "audio_cached_prompt_tokens": 200,
            "image_prompt_tokens": 250,
            "image_completion_tokens": 100,
        },
    ),
    (
        "gemini with a modality in two parts",
        {
            "promptTokenCount": 100,
            "candidatesTokenCount": 1,
            "promptTokensDetails": [
                {"modality": "AUDIO", "tokenCount": 30},
                {"modality": "TEXT", "tokenCount": 30},
                {"modality": "AUDIO", "tokenCount": 40},
            ],
        },
        (30, 0, 1, 0),
        {"audio_prompt_tokens": 70},
    ),
    (
        "gemini in snake case, as its Python client has it",
        {
            "prompt_token_count": 19_208,
            "candidates_token_count": 200,
            "thoughts_token_count": None,
            "total_token_count": 19_408,
            "prompt_tokens_details": [
                {"modality": "MediaModality.TEXT", "token_count": 8},
                {"modality": "AUDIO", "token_count": 19_200},
            ],
        },
        (8, 0, 200, 0),
        {"audio_prompt_tokens": 19_200},
    ),
    (
        "gemini live",
        {
            "promptTokenCount": 100,
            "responseTokenCount": 50,
            "totalTokenCount": 150,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 20},
                {"modality": "AUDIO", "tokenCount": 80},
            ],
            "responseTokensDetails": [{"modality": "AUDIO", "tokenCount": 50}],
        },
        (20, 0, 0, 0),
        {"audio_prompt_tokens": 80, "audio_completion_tokens": 50},
    ),
    (
        "bedrock",
        {
            "inputTokens": 12,
            "outputTokens": 350,
            "totalTokens": 30_362,
            "cacheReadInputTokens": 20_000,
            "cacheReadInputTokenCount": 20_000,
            "cacheWriteInputTokens": 10_000,
            "cacheDetails": [{"ttl": "5m", "inputTokens": 4000}, {"ttl": "1h", "inputTokens": 6000}],
            "serverToolUsage": {},
        },
        (12, 20_000, 350, 0),
        {"cache_write_tokens": 4000, "cache_write_1h_tokens": 6000},
    ),
    (
        "bedrock invocation metrics",
        {
            "amazon-bedrock-invocationMetrics": {
                "inputTokenCount": 12,
                "outputTokenCount": 350,
                "invocationLatency": 1700,
                "cacheReadInputTokenCount": 5,
                "cacheWriteInputTokenCount": 7,
            }
        },
        (12, 5, 350, 0),
        {"cache_write_tokens": 7},
    ),
    (
        "x-ai, whose completion is without reasoning",
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 150,
            "prompt_tokens_details": {"text_tokens": 100, "cached_tokens": 40},
            "completion_tokens_details": {"reasoning_tokens": 30},
            "num_sources_used": 0,
        },
        (60, 40, 20, 30),
        {},
    ),
    (
        "openrouter's grok, whose completion includes reasoning",
        {
            "completion_tokens": 240,
            "completion_tokens_details": {"reasoning_tokens": 165},
            "prompt_tokens": 687,
            "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 682},
            "total_tokens": 927,
        },
        (5, 682, 75, 165),
        {},
    ),
    (
        "deepseek",
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
        },
        (36, 64, 20, 0),
        {},
    ),
    (
        "moonshot",
        {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120, "cached_tokens": 64},
        (36, 64, 20, 0),
        {},
    ),
    (
        "databricks",
        {
            "prompt_tokens": 100,
            "completion_tokens": 20,
            "total_tokens": 120,
            "cache_read_input_tokens": 64,
            "reasoning_tokens": 5,
        },
        (36, 64, 15, 5),
        {},
    ),
    (
        "litellm for a model of Anthropic",
        {
            "prompt_tokens": 150,
            "completion_tokens": 10,
            "total_tokens": 160,
            "prompt_tokens_details": {"cached_tokens": 50, "cache_creation_tokens": 20},
            "cache_creation_input_tokens": 20,
            "cache_read_input_tokens": 50,
        },
        (80, 50, 10, 0),
        {"cache_write_tokens": 20},
    ),
    (
        "perplexity, which charges reasoning beside its total",
        {
            "prompt_tokens": 33,
            "completion_tokens": 7163,
            "total_tokens": 7196,
            "citation_tokens": 20_016,
            "num_search_queries": 20,
            "reasoning_tokens": 73_997,
        },
        (33, 0, 7163, 73_997),
        {"searches": 20, "citation_tokens": 20_016},
    ),
    (
        "cohere",
        {
            "billed_units": {"input_tokens": 2406.0, "output_tokens": 2.0},
            "tokens": {"input_tokens": 2935.0, "output_tokens": 4.0},
            "cached_tokens": 2928.0,
        },
        (2406, 0, 2, 0),
        {},
    ),
    (
        "bedrock's InvokeModel of a model of Meta, whose prompt_token_count is not Gemini's",
        {"generation": "x", "prompt_token_count": 12, "generation_token_count": 33, "stop_reason": "stop"},
        (12, 0, 33, 0),
        {},
    ),
    (
        "bedrock's InvokeModel of Titan",
        {"inputTextTokenCount": 12, "results": [{"tokenCount": 30, "outputText": "x"}, {"tokenCount": 3}]},
        (12, 0, 33, 0),
        {},
    ),
    (
        "bedrock's embeddings of Titan",
        {"embedding": [0.1, 0.2], "inputTextTokenCount": 12},
        (12, 0, 0, 0),
        {},
    ),
    (
        "mistral, which charges audio by its length",
        {
            "prompt_audio_seconds": 203,
            "prompt_tokens": 4,
            "completion_tokens": 635,
            "total_tokens": 3264,
        },
        (4, 0, 635, 0),
        {"seconds": 203},
    ),
    ("cohere's rerank", {"billed_units": {"search_units": 2}}, (0, 0, 0, 0), {"rerank_searches": 2}),
    ("cohere's embeddings of images", {"billed_units": {"images": 3}}, (0, 0, 0, 0), {"images": 3}),
    (
        "an assistant's run",
        {
            "prompt_tokens": 123,
            "completion_tokens": 456,
            "total_tokens": 579,
            "prompt_token_details": {"cached_tokens": 100},
        },
        (23, 100, 456, 0),
        {},
    ),
    (
        "mistral ocr",
        {"model": "mistral-ocr-2505", "usage_info": {"pages_processed": 29, "doc_size_bytes": 3002783}},
        (0, 0, 0, 0),
        {"pages": 29},
    ),
]


@pytest.mark.parametrize(
    ("body", "expected", "quantities"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_a_body_is_read_into_disjoint_counts(
    body: Any, expected: tuple[int, int, int, int], quantities: dict[str, float]
) -> None:
    for form in (
        body,
        json.dumps(body),
        body
        if body.keys() & {"usage_info", "results", "embedding"}
        else {"id": "x", "usage": body, "choices": [], "other": [1, "a", None]},
        {**body, "brand_new": {"cost": 0.1, "of": None}, "flag": True},
    ):
        usage = read_usage(form).usage
        assert columns(usage) == expected
        assert amounts(usage) == quantities
    assert usage.tokens == sum(expected) + sum(
        count for name, count in quantities.items() if name in TOKEN_CLASSES
    )


@pytest.mark.parametrize(
    ("usage_of", "body"),
    [
        ("openai", CASES[0][1]),
        ("openai-chat", CASES[0][1]),
        ("azure", CASES[0][1]),
        ("OpenRouter", CASES[0][1]),
        ("openai", CASES[3][1]),
        ("openai-responses", CASES[3][1]),
        ("azure", CASES[3][1]),
        ("openai_responses", CASES[3][1]),
    ],
)
def test_a_named_provider_reads_its_forms(usage_of: str, body: Any) -> None:
    assert columns(read_usage(body, usage_of).usage) == (86, 1920, 108, 192)


@pytest.mark.parametrize("usage_of", ["moonshotai", "openai", None])
def test_cached_tokens_beside_the_details_are_read_under_any_name(usage_of: str | None) -> None:
    body = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120, "cached_tokens": 64}
    assert columns(read_usage(body, usage_of).usage) == (36, 64, 20, 0)


@pytest.mark.parametrize(
    ("usage_of", "body"),
    [
        ("voyageai", {"total_tokens": 10}),
        ("openai-embeddings", {"total_tokens": 10}),
        (None, {"object": "list", "model": "voyage-3", "usage": {"total_tokens": 10}}),
        (
            None,
            {
                "model": "voyage-multimodal-3",
                "usage": {"image_pixels": 2000, "text_tokens": 5, "total_tokens": 10},
            },
        ),
    ],
)
def test_embeddings_may_state_their_total_alone(usage_of: str | None, body: Any) -> None:
    assert columns(read_usage(body, usage_of).usage) == (10, 0, 0, 0)


def test_a_provider_that_adds_reasoning_is_taken_at_its_word_without_a_total() -> None:
    """Without a total nothing but the name tells: x-ai's completion excludes reasoning, OpenAI's includes it."""
    body = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    assert columns(read_usage(body, "xai").usage) == (10, 0, 20, 5)
    assert columns(read_usage(body, "openai").usage) == (10, 0, 15, 5)
    with_total = {**body, "total_tokens": 30}
    assert columns(read_usage(with_total, "xai").usage) == (10, 0, 15, 5)


def test_the_chunks_of_a_stream_are_read_together() -> None:
    anthropic: list[dict[str, Any]] = [
        {
            "type": "message_start",
            "message": {
                "model": "claude-sonnet-4-5",
                "usage": {
                    "input_tokens": 25,
                    "cache_creation_input_tokens": 7,
                    "cache_read_input_tokens": 11,
                    "output_tokens": 1,
                    "service_tier": "priority",
                },
            },
        },
        {"type": "content_block_delta", "delta": {"text": "hi"}},
        {"type": "message_delta", "usage": {"output_tokens": 15, "cache_read_input_tokens": None}},
    ]
    usage = read_usage(anthropic, "anthropic").usage
    assert columns(usage) == (25, 11, 15, 0)
    assert (usage.response_model, usage.variant) == ("claude-sonnet-4-5", "priority")
    openai = [
        {"model": "gpt-5-mini", "choices": [{"delta": {}}], "usage": None},
        {"model": "gpt-5-mini", "choices": [], "usage": M5},
    ]
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in openai) + "data: [DONE]\n"
    for form in (openai, lines, openai[-1]):
        assert columns(read_usage(form).usage) == (86, 1920, 108, 192)
    gemini = [
        {"modelVersion": "gemini-2.5-flash", "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5}},
        {
            "modelVersion": "gemini-2.5-flash",
            "usageMetadata": {
                "promptTokenCount": 5,
                "candidatesTokenCount": 9,
                "thoughtsTokenCount": 3,
                "totalTokenCount": 17,
            },
        },
    ]
    assert columns(read_usage(gemini).usage) == (5, 0, 9, 3)
    bedrock = [{"contentBlockDelta": {}}, {"metadata": {"usage": {"inputTokens": 4, "outputTokens": 2}}}]
    assert columns(read_usage(bedrock).usage) == (4, 0, 2, 0)


def test_a_stream_of_bedrock_is_read_with_the_details_of_the_models_maker() -> None:
    """Bedrock's own sums end the stream; they do not say what was written to the cache for an hour."""
    stream = [
        {
            "type": "message_start",
            "message": {
                "id": "m1",
                "usage": {
                    "input_tokens": 12,
                    "cache_creation_input_tokens": 100,
                    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 100},
                    "output_tokens": 1,
                },
            },
        },
        {"type": "message_delta", "usage": {"output_tokens": 50}},
        {
            "type": "message_stop",
            "amazon-bedrock-invocationMetrics": {
                "inputTokenCount": 12,
                "outputTokenCount": 50,
                "cacheWriteInputTokenCount": 100,
            },
        },
    ]
    usage = read_usage(stream).usage
    assert (columns(usage), amounts(usage)) == ((12, 0, 50, 0), {"cache_write_1h_tokens": 100})


def test_pieces_of_one_response_may_have_ids_of_their_own() -> None:
    chunks = [
        {
            "object": "chat.completion.chunk",
            "id": str(count),
            "usage": {**M5, "completion_tokens": 200 + count},
        }
        for count in (1, 100)
    ]
    assert columns(read_usage(chunks).usage) == (86, 1920, 108, 192)


@pytest.mark.parametrize(
    "body",
    [
        {"type": "response.completed", "response": {"model": "gpt-5-mini", "usage": CASES[3][1]}},
        {"custom_id": "1", "response": {"status_code": 200, "body": {"model": "gpt-5-mini", "usage": M5}}},
        {"usage": {"usage": M5}, "model": "gpt-5-mini"},
        {"choices": [], "model": "gpt-5-mini", "x_groq": {"id": "r", "usage": M5}},
        {"usage": json.dumps(M5), "model": "gpt-5-mini"},
        {
            "model": "gpt-5-mini",
            "usage": {name: str(n) if isinstance(n, int) else n for name, n in M5.items()},
        },
        {"model": "gpt-5-mini", "usage": {**M5, "completion_tokens": 300.0, "audio": None}},
    ],
)
def test_the_usage_is_found_in_what_is_around_it(body: Any) -> None:
    usage = read_usage(body).usage
    assert columns(usage) == (86, 1920, 108, 192)
    assert usage.response_model == "gpt-5-mini"
    assert usage.variant == ("batch" if "custom_id" in body else "")


@pytest.mark.parametrize(
    ("around", "variant"),
    [
        ({"service_tier": "flex"}, "flex"),
        ({"service_tier": "default"}, ""),
        ({"service_tier": "auto"}, ""),
        ({"serviceTier": {"type": "priority"}}, "priority"),
        ({"service_tier": None}, ""),
        ({"performanceConfig": {"latency": "optimized"}}, "optimized"),
        ({"performanceConfig": {"latency": "standard"}}, ""),
        ({"service_tier": "x" * 65}, ""),
    ],
)
def test_the_variant_is_the_service_tier(around: dict[str, Any], variant: str) -> None:
    assert read_usage({**around, "model": "m", "usage": M5}).usage.variant == variant


@pytest.mark.parametrize(
    ("fields", "variant"),
    [
        ({"trafficType": "ON_DEMAND"}, ""),
        ({"trafficType": "ON_DEMAND_PRIORITY"}, "priority"),
        ({"serviceTier": "SERVICE_TIER_FLEX"}, "flex"),
        ({"serviceTier": "standard"}, ""),
        ({"trafficType": "PROVISIONED_THROUGHPUT"}, "provisioned_throughput"),
    ],
)
def test_the_variant_of_gemini(fields: dict[str, Any], variant: str) -> None:
    usage = {"promptTokenCount": 5, "candidatesTokenCount": 9, "totalTokenCount": 14, **fields}
    assert read_usage({"usageMetadata": usage}).usage.variant == variant


def test_the_variant_of_anthropic() -> None:
    body = {"input_tokens": 1, "output_tokens": 2, "service_tier": "batch"}
    assert read_usage(body).usage.variant == "batch"
    assert read_usage({**body, "service_tier": "standard", "speed": "fast"}).usage.variant == "fast"


@pytest.mark.parametrize(
    ("body", "usage_of", "field", "words"),
    [
        ({}, None, "usage", "states no counts"),
        (None, None, "usage", "must be the usage object"),
        (17, None, "usage", "must be the usage object"),
        ("not json", None, "usage", "no JSON"),
        ({"choices": [], "usage": None}, None, "usage", "include_usage"),
        ({"foo": 1}, None, "usage", "states no counts"),
        ({"usage": {"foo": 1}}, None, "usage", "it has foo"),
        ({"prompt_tokens": 5, "completion_tokens": -1}, None, "usage.completion_tokens", "negative"),
        ({"prompt_tokens": "many", "completion_tokens": 1}, None, "usage.prompt_tokens", "must be a number"),
        ({"prompt_tokens": 1.5, "completion_tokens": 1}, None, "usage.prompt_tokens", "whole number"),
        ({"completion_tokens": 1}, None, "usage", "prompt_tokens is missing"),
        ({"output_tokens": 15}, "anthropic", "usage", "input_tokens is missing"),
        (
            {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": "x"}},
            None,
            "usage.prompt_tokens_details.cached_tokens",
            "must be a number",
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 6}},
            None,
            "usage",
            "fewer than its parts",
        ),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 1,
                "total_tokens": 6,
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            None,
            "usage",
            "fewer than its parts",
        ),
        (M5, "anthropik", "usage_of", "did you mean anthropic"),
        (M5, "bedrock", "usage_of", "name its provider"),
        (M5, "", "usage_of", "unknown"),
        (
            {"input_tokens": 9, "cache_read_input_tokens": 100, "output_tokens": 4},
            "openai",
            "usage.cache_read_input_tokens",
            "name the provider",
        ),
        (
            {"input_tokens": 150, "cache_read_input_tokens": 50, "output_tokens": 10, "total_tokens": 160},
            None,
            "usage",
            "160 tokens in total",
        ),
        (
            {"inputTokens": 2006, "outputTokens": 300, "cachedInputTokens": 1920, "reasoningTokens": 192},
            None,
            "usage",
            "not as a client library",
        ),
        (
            {
                "input_tokens": 2006,
                "output_tokens": 300,
                "total_tokens": 2306,
                "input_token_details": {"cache_read": 1920},
            },
            None,
            "usage",
            "not as a client library",
        ),
        (
            {
                "prompt_tokens": 1200,
                "completion_tokens": 1,
                "prompt_tokens_details": {"audio_tokens": 1100, "cached_tokens": 1024},
            },
            None,
            "usage",
            "cached_tokens_details is missing",
        ),
        ({"prompt_tokens": TOKENS_MAX + 1, "completion_tokens": 1}, None, "usage", "at most 1,000,000,000"),
        ({"total_tokens": 10}, None, "usage", "prompt_tokens is missing"),
        ({"total_tokens": 10}, "openai", "usage", "prompt_tokens is missing"),
        ({"inputTextTokenCount": 10}, "bedrock", "usage", "outputTokens is missing"),
        (
            {"input_tokens": 10, "cache_read_tokens": 3, "output_tokens": 5},
            None,
            "usage.cache_read_tokens",
            "send the counts as tokens",
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": 5},
            None,
            "usage.prompt_tokens_details",
            "must be an object of counts",
        ),
        (
            {"prompt_tokens": 4, "completion_tokens": 1, "prompt_audio_seconds": "long"},
            None,
            "usage.prompt_audio_seconds",
            "must be a number",
        ),
        (
            [
                {"type": "response.done", "response": {"id": "r1", "usage": CASES[4][1]}},
                {"type": "response.done", "response": {"id": "r2", "usage": CASES[4][1]}},
            ],
            None,
            "usage",
            "send an event for each",
        ),
    ],
)
def test_what_cannot_be_read_is_rejected_by_name(
    body: Any, usage_of: str | None, field: str, words: str
) -> None:
    with pytest.raises(BadParameter) as raised:
        read_usage({"usage": body} if isinstance(body, dict) and not body else body, usage_of)
    assert raised.value.field == field
    assert words in str(raised.value)


def test_a_helper_makes_the_usage_of_an_outcome() -> None:
    usage = usage_from("openai", {"model": "gpt-5-mini-2025-08-07", "usage": M5})
    assert usage == Usage(86, 1920, 108, 192, response_model="gpt-5-mini-2025-08-07")
    assert (
        usage_from("openai", {"model": "x", "usage": M5}, model="azure/gpt-5-mini").model
        == "azure/gpt-5-mini"
    )


def test_every_provider_of_the_list_with_an_extractor_can_be_named() -> None:
    names = provider_names()
    assert {
        "openai",
        "anthropic",
        "gemini",
        "bedrock",
        "azure",
        "mistral",
        "groq",
        "openai-responses",
    } <= set(names)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            [
                "usage", "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens",
                "prompt_tokens_details", "cached_tokens", "input_token_details", "usageMetadata", "response",
                "promptTokenCount", "promptTokensDetails", "modality", "tokenCount", "cache_creation", "model",
                "inputTokens", "cacheDetails", "ttl", "billed_units", "meta", "seconds", "service_tier", "tokenUsage",
            ]
        ),
        inner,
        max_size=6,
    ),
    max_leaves=20,
)  # fmt: skip


@given(
    body=json_values, usage_of=st.sampled_from([None, "openai", "anthropic", "gemini", "bedrock", "cohere"])
)
def test_any_json_is_read_or_rejected(body: Any, usage_of: str | None) -> None:
    """What comes in is the caller's: nothing but `BadParameter` comes of it, and no count is negative."""
    try:
        usage = read_usage(body, usage_of).usage
    except BadParameter:
        return
    assert min(columns(usage)) >= 0
    assert all(micros > 0 for micros in usage.quantities.values())


counts = st.integers(0, 10**6)


@given(
    plain=counts, cached=counts, written=counts, audio=counts, out=counts, reasoning=counts, audio_out=counts
)
def test_inclusive_counts_come_back_as_the_parts_they_were_made_of(
    plain: int, cached: int, written: int, audio: int, out: int, reasoning: int, audio_out: int
) -> None:
    whole_in, whole_out = plain + cached + written + audio, out + reasoning + audio_out
    usage = read_usage(
        {
            "prompt_tokens": whole_in,
            "completion_tokens": whole_out,
            "total_tokens": whole_in + whole_out,
            "prompt_tokens_details": {
                "cached_tokens": cached,
                "cache_write_tokens": written,
                "audio_tokens": audio,
            },
            "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": audio_out},
        }
    ).usage
    assert columns(usage) == (plain, cached, out, reasoning)
    assert usage.tokens == whole_in + whole_out


@pytest.mark.parametrize(
    ("inference_geo", "service_tier", "variant"),
    [
        ("us", "standard", "us"),
        ("us", "batch", "batch-us"),
        ("global", "batch", "batch"),
        ("global", "standard", ""),
        ("not_available", "standard", ""),
        (None, "standard", ""),
    ],
)
def test_a_region_that_anthropic_charges_for_is_part_of_the_variant(
    inference_geo: str | None, service_tier: str, variant: str
) -> None:
    """The list does not say its price: as the standard one it would be a tenth too cheap."""
    usage = {
        "input_tokens": 10,
        "cache_read_input_tokens": 0,
        "output_tokens": 5,
        "inference_geo": inference_geo,
        "service_tier": service_tier,
    }
    assert read_usage(usage).usage.variant == variant
    assert read_usage({"model": "claude-opus-4-7", "usage": usage}).usage.variant == variant


def test_a_region_is_kept_beside_what_stands_around_the_usage() -> None:
    """A batch is known by its envelope."""
    usage = {"input_tokens": 10, "cache_read_input_tokens": 0, "output_tokens": 5, "inference_geo": "us"}
    line = {"custom_id": "a", "result": {"type": "succeeded", "message": {"model": "m", "usage": usage}}}
    assert read_usage(line).usage.variant == "batch-us"


def test_tokens_of_an_unknown_modality_are_rejected_by_name() -> None:
    body = {
        "promptTokenCount": 300,
        "candidatesTokenCount": 5,
        "promptTokensDetails": [{"modality": "SMELL", "tokenCount": 258}],
    }
    with pytest.raises(BadParameter, match="258 tokens of the modality 'SMELL'"):
        read_usage(body)
    body["promptTokensDetails"] = [{"modality": "MODALITY_UNSPECIFIED", "tokenCount": 258}]
    assert columns(read_usage(body).usage) == (300, 0, 5, 0)
