"""Names of models as clients write them: the right model of the list or none, never a near one."""

from __future__ import annotations

import gzip
import json
import types
from decimal import Decimal
from typing import Any, Final

import pytest
from genai_prices.data import providers
from genai_prices.data_snapshot import DataSnapshot
from hypothesis import given
from hypothesis import strategies as st

from tests.traces import DATA, needs_traces
from tollkeeper.catalog.model_index import ModelIndex
from tollkeeper.catalog.model_names import ModelNames, find_listed, nearest_names

SNAPSHOT: Final = DataSnapshot(providers=providers, from_auto_update=False)
NAMES: Final = ModelNames(SNAPSHOT)

KNOWN: Final = {
    # As it is, in any case, with blanks.
    "gpt-4o": "openai/gpt-4o",
    "GPT-4o": "openai/gpt-4o",
    "  gpt-4o\n": "openai/gpt-4o",
    "GPT 4o": "openai/gpt-4o",
    "Claude Sonnet 4.5": "anthropic/claude-sonnet-4-5",
    # Its maker's, though the list cannot tell it from the name's beginning.
    "text-embedding-3-small": "openai/text-embedding-3-small",
    "text-embedding-ada-002": "openai/text-embedding-ada-002",
    "whisper-1": "openai/whisper-1",
    "chatgpt-4o-latest": "openai/chatgpt-4o-latest",
    "embed-v4.0": "cohere/embed-v4.0",
    "sonar-pro": "perplexity/sonar-pro",
    "voyage-3-large": "voyageai/voyage-3-large",
    "glm-4.6": "zai/GLM-4.6",
    # Dates and -latest.
    "gpt-4o-2024-05-13": "openai/gpt-4o-2024-05-13",
    "gpt-4o-2024-11-20": "openai/gpt-4o",
    "gpt-4o-20241120": "openai/gpt-4o",
    "gpt-4o-2025-01-01": "openai/gpt-4o",
    "gpt-4o-latest": "openai/gpt-4o",
    "gpt-5-mini-2025-08-07": "openai/gpt-5-mini",
    "o3-mini-2025-01-31": "openai/o3-mini",
    "claude-sonnet-4-5-20250929": "anthropic/claude-sonnet-4-5",
    "claude-sonnet-4-5@20250929": "anthropic/claude-sonnet-4-5",
    "claude-sonnet-4-5@default": "anthropic/claude-sonnet-4-5",
    "claude-3-5-sonnet-v2@20241022": "anthropic/claude-3-5-sonnet",
    "claude-3-5-sonnet-latest": "anthropic/claude-3-5-sonnet",
    "claude-opus-4": "anthropic/claude-opus-4-0",
    "claude-4.5-sonnet": "anthropic/claude-sonnet-4-5",
    "anthropic/claude-4.5-sonnet-20250929": "anthropic/claude-sonnet-4-5",
    "gemini-2.5-pro-preview-05-06": "google/gemini-2.5-pro",
    "gemini-2.5-flash-lite-preview-09-2025": "google/gemini-2.5-flash-lite",
    "gemini-1.5-pro-002": "google/gemini-1.5-pro",
    "mistral-large-latest": "mistral/mistral-large",
    "grok-4-latest": "x-ai/grok-4-0709",
    "gemini-2.0-flash-001": "google/gemini-2.0-flash",
    "vertex_ai/gemini-2.0-flash-001": "google/gemini-2.0-flash",
    # The seller before a colon, as libraries of many providers write it.
    "openai:gpt-4o": "openai/gpt-4o",
    "OpenAI:ft:gpt-4o-mini-2024-07-18:acme::id": "openai/ft:gpt-4o-mini",
    "azure:gpt-4o": "azure/gpt-4o",
    "anthropic:claude-sonnet-4-5-20250929": "anthropic/claude-sonnet-4-5",
    "google-vertex:gemini-2.5-flash": "google/gemini-2.5-flash",
    "bedrock:us.anthropic.claude-3-haiku-20240307-v1:0": (
        "aws/regional.anthropic.claude-3-haiku-20240307-v1:0"
    ),
    "openrouter:anthropic/claude-sonnet-4.5": "openrouter/anthropic/claude-sonnet-4.5",
    "groq:llama-3.3-70b-versatile": "groq/llama-3.3-70b-versatile",
    # The path of a call, with its method.
    "models/gemini-2.5-flash:generateContent": "google/gemini-2.5-flash",
    "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse": "google/gemini-2.5-flash",
    "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-flash:generateContent": (
        "google/gemini-2.5-flash"
    ),
    "projects/p/locations/us-central1/publishers/anthropic/models/claude-sonnet-4-5@20250929:rawPredict": (
        "google/claude-sonnet-4-5"
    ),
    # Fine-tuned.
    "ft:gpt-4o-2024-08-06:acme:support:9xyz": "openai/ft:gpt-4o",
    "ft:gpt-4o-mini-2024-07-18:acme::abc": "openai/ft:gpt-4o-mini",
    "ft:gpt-3.5-turbo-0125:acme::abc": "openai/ft:gpt-3.5-turbo-",
    "openai/ft:gpt-4o-mini-2024-07-18:acme::abc": "openai/ft:gpt-4o-mini",
    "gpt-4o-mini-2024-07-18.ft-abc": "openai/gpt-4o-mini-2024-07-18.ft-",
    # Bedrock.
    "anthropic.claude-3-5-sonnet-20240620-v1:0": "aws/regional.anthropic.claude-3-5-sonnet-20240620-v1:0",
    "anthropic.claude-v2:1": "anthropic/claude-2",
    "us.anthropic.claude-sonnet-4-5-20250929-v1:0": "aws/regional.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "eu.anthropic.claude-sonnet-4-5-20250929-v1:0": "aws/regional.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "jp.anthropic.claude-sonnet-4-5-20250929-v1:0": "aws/regional.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "au.anthropic.claude-sonnet-4-5-20250929-v1:0": "aws/regional.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "apac.anthropic.claude-sonnet-4-20250514-v1:0": "aws/regional.anthropic.claude-sonnet-4-20250514-v1:0",
    "global.anthropic.claude-sonnet-4-5-20250929-v1:0": "aws/global.anthropic.claude-sonnet-4-5-20250929-v1:0",
    "amazon.nova-pro-v1:0": "aws/amazon.nova-pro-v1:0",
    "amazon.nova-pro-v1:0:300k": "aws/amazon.nova-pro-v1:0",
    "amazon.nova-pro": "aws/amazon.nova-pro-v1:0",
    "us.meta.llama3-3-70b-instruct-v1:0": "aws/meta.llama3-3-70b-instruct-v1:0",
    "us.deepseek.r1-v1:0": "aws/deepseek.r1-v1:0",
    "mistral.mistral-large-2402-v1:0": "aws/mistral.mistral-large-2402-v1:0",
    "openai.gpt-oss-120b-1:0": "aws/openai.gpt-oss-120b-1:0",
    "openai.gpt-oss-120b": "aws/openai.gpt-oss-120b-1:0",
    "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0": "aws/amazon.nova-pro-v1:0",
    "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-pro-v1:0": "aws/amazon.nova-pro-v1:0",
    "bedrock/amazon.nova-pro-v1:0": "aws/amazon.nova-pro-v1:0",
    "bedrock/us-east-1/amazon.nova-pro-v1:0": "aws/amazon.nova-pro-v1:0",
    "bedrock/converse/us.amazon.nova-pro-v1:0": "aws/amazon.nova-pro-v1:0",
    "bedrock_converse/us.amazon.nova-pro-v1:0": "aws/amazon.nova-pro-v1:0",
    "bedrock/arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0": "aws/amazon.nova-pro-v1:0",
    # Gemini and Vertex.
    "models/gemini-2.5-pro": "google/gemini-2.5-pro",
    "models/gemini-2.0-flash-001": "google/gemini-2.0-flash",
    "publishers/google/models/gemini-2.5-flash": "google/gemini-2.5-flash",
    "projects/p/locations/us-central1/publishers/google/models/gemini-2.5-pro": "google/gemini-2.5-pro",
    "projects/p/locations/global/publishers/anthropic/models/claude-sonnet-4-5@20250929": "google/claude-sonnet-4-5",
    "gemini/gemini-2.5-pro": "google/gemini-2.5-pro",
    "google/gemini-2.5-pro": "google/gemini-2.5-pro",
    "google-vertex/gemini-2.5-pro": "google/gemini-2.5-pro",
    "vertex_ai/gemini-2.5-pro": "google/gemini-2.5-pro",
    "vertex_ai/claude-sonnet-4-5@20250929": "google/claude-sonnet-4-5",
    # Sellers in front.
    "openai/gpt-4o": "openai/gpt-4o",
    "azure/gpt-4o": "azure/gpt-4o",
    "azure_ai/gpt-4o": "azure/gpt-4o",
    "azure/global/gpt-4o": "azure/gpt-4o",
    "azure/gpt-35-turbo": "azure/gpt-3.5-turbo",
    "azure/DeepSeek-V3.2": "azure/deepseek-v3.2",
    "openrouter/anthropic/claude-3.5-sonnet": "openrouter/anthropic/claude-3.5-sonnet",
    "openrouter/deepseek/deepseek-chat-v3-0324:free": "openrouter/deepseek/deepseek-chat-v3-0324:free",
    "groq/llama-3.3-70b-versatile": "groq/llama-3.3-70b-versatile",
    "together_ai/meta-llama/Llama-3.3-70B-Instruct-Turbo": "together/meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "fireworks_ai/accounts/fireworks/models/llama-v3p1-8b-instruct": "fireworks/llama-v3p1-8b-instruct",
    "accounts/fireworks/models/llama-v3p1-8b-instruct": "fireworks/llama-v3p1-8b-instruct",
    "github_copilot/gpt-4o": "github-copilot/gpt-4o",
    "xai/grok-4": "x-ai/grok-4-0709",
    "moonshot/kimi-k2": "moonshotai/kimi-k2",
    "z-ai/glm-4.6": "zai/GLM-4.6",
    "@cf/meta/llama-3.1-8b-instruct": "cloudflare/@cf/meta/llama-3.1-8b-instruct",
}
"""Name → `seller/model` of the list."""

UNKNOWN: Final = (
    # Another number or word is another model.
    "claude-opus-4-10", "claude-opus-4-1-5", "claude-3-haikux", "gpt-40", "gpt-9", "o10", "grok-5",
    "gemini-3.6-flash-lite", "gemini-2.5-flash-ultra", "gpt-5-nano-mega", "gemini-1.5-flash-8b",
    "amazon.nova-pro-max-v1:0", "my-moderation-model", "mistral-moderation-latest", "claude-haiku-4-5-mini",
    "openai:gpt-40", "mistral:7b", "llama3:8b", "gemini-2.0-flash-01x",
    "models/gemini-2.5-flash:explode", "https://example.com/v1/models/gemini-2.5-flash",
    # A part of a name.
    "claude", "gemini", "gpt", "claude-sonnet", "nova-lite", "", "   ", "/", "openai/", "/gpt-4o",
    # Whoever sells it does not have it in the list, or it is not said who sells it.
    "ft:gpt-4.1-2025-04-14:acme::x", "ft:unheard-of:acme::x", "dall-e-3", "azure/my-deployment",
    "custom_openai/gpt-4o", "my-gateway/gpt-4o", "not-google/gemini-2.5-pro", "llama-3.3-70b-versatile",
    "meta-llama/Llama-3.3-70B-Instruct", "openai/claude-sonnet-4-5", "anthropic/gpt-4o", "groq/gpt-4o",
    "projects/p/locations/us-central1/publishers/meta/models/gemini-2.5-pro-x",
    # Another price than the listed one.
    "azure/us/gpt-4o", "azure/eu/gpt-4o-2024-08-06", "global.amazon.nova-lite-v1:0",
    "global.anthropic.claude-3-opus-20240229-v1:0", "us-gov.amazon.nova-lite-v1:0",
    "bedrock/us-gov-west-1/amazon.nova-pro-v1:0", "bedrock/us-east-1/1-month-commitment/anthropic.claude-v2:1",
    "arn:aws-us-gov:bedrock:us-gov-west-1::foundation-model/amazon.nova-pro-v1:0",
    # Paths that do not say of which model.
    "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abcd1234",
    "arn:aws:bedrock:us-west-2:123456789012:provisioned-model/xyz", "tunedModels/my-gemini-2.5-pro",
    "projects/p/locations/us-central1/endpoints/123", "models/a/gemini-2.5-pro",
)  # fmt: skip


def found(name: str) -> str | None:
    listed = find_listed(NAMES, name)
    return None if listed is None else f"{listed.seller.id}/{listed.model.id}"


@pytest.mark.parametrize("name", KNOWN)
def test_a_name_as_clients_write_it_means_a_model(name: str) -> None:
    assert found(name) == KNOWN[name]


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_is_none_of_the_list_means_none(name: str) -> None:
    """A wrong price is worse than none: an unpriced request is seen, and priced when its price arrives."""
    assert found(name) is None


def test_regional_and_global_endpoints_have_their_own_price() -> None:
    regional = find_listed(NAMES, "us.anthropic.claude-sonnet-4-5-20250929-v1:0")
    everywhere = find_listed(NAMES, "global.anthropic.claude-sonnet-4-5-20250929-v1:0")
    assert regional is not None
    assert everywhere is not None
    assert _input(regional.model) == Decimal("3.3")
    assert _input(everywhere.model) == Decimal("3")


def test_every_model_of_the_list_is_found_under_its_seller_and_id() -> None:
    for provider in providers:
        for model in provider.models:
            listed = find_listed(NAMES, f"{provider.id}/{model.id}")
            assert listed is not None, (provider.id, model.id)
            assert listed.seller is provider, (provider.id, model.id)
            assert listed.model is model or _input(listed.model) == _input(model), (provider.id, model.id)


@needs_traces
def test_another_table_of_names_agrees_on_the_prices() -> None:
    """
    Names of 4,552 models, as a gateway's users write them, with that gateway's prices.

    The two tables disagree on some prices themselves; no more than these may be told apart by us.
    """
    table: dict[str, Any] = json.loads(
        gzip.decompress((DATA / "prices" / "litellm_model_prices.json.gz").read_bytes()), parse_float=Decimal
    )
    known = agreed = 0
    for name, entry in table.items():
        stated = entry.get("input_cost_per_token")
        listed = find_listed(NAMES, name)
        ours = None if listed is None else _input(listed.model)
        if not stated or ours is None:
            continue
        known += 1
        agreed += abs(stated * 1_000_000 - ours) <= ours / 500
    assert known >= 1_000
    assert agreed / known >= 0.86


def _input(model: Any) -> Decimal | None:
    prices = model.prices[-1].prices if isinstance(model.prices, list) else model.prices
    price = prices.input_mtok
    return price if price is None or isinstance(price, Decimal) else price.base


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("gpt4o", "openai/gpt-4o"),
        ("claude-opus-4-10", "anthropic/claude-opus-4-1"),
        ("azure/gpt-4oo", "openai/gpt-4o"),
        ("gemini-2.5-flesh", "google/gemini-2.5-flash"),
    ],
)
def test_the_nearest_names_are_told(name: str, near: str) -> None:
    nearest = nearest_names(NAMES, name)
    assert near in nearest
    assert len(nearest) <= 5


def test_nothing_is_near_a_name_like_no_other() -> None:
    assert nearest_names(NAMES, "my-deployment") == []


@given(st.text(max_size=64))
def test_any_text_means_a_model_or_none(name: str) -> None:
    find_listed(NAMES, name)


@pytest.mark.parametrize("word", ["-mini", "-pro", "-lite", "x", "-turbo", "-7b", ".5", "-1", "2"])
def test_a_name_with_another_word_at_its_end_is_not_the_same_model(word: str) -> None:
    """It is another model of the list, or none."""
    ends = ("v2@20241022", ".ft-abc", ":0", ":1", "?alt=sse")
    same = []
    for name, model in KNOWN.items():
        longer = found(name.strip() + word)
        # What follows the base model of a fine-tuned one is the organisation's own name.
        of_organisation = ":" in name and model.startswith("openai/ft:")
        # The whole id of a model may end with the word: openai.gpt-oss-120b is openai.gpt-oss-120b-1:0.
        is_whole = model.partition("/")[2].startswith(name + word)
        if longer == model and not (of_organisation or is_whole or name.endswith(ends)):
            same.append(name)
    assert same == []


@given(name=st.sampled_from(sorted(KNOWN)), seed=st.randoms(use_true_random=False))
def test_case_and_blanks_around_a_name_do_not_matter(name: str, seed: Any) -> None:
    mixed = "".join(letter.upper() if seed.random() < 0.5 else letter.lower() for letter in name)
    assert found(f"  {mixed}\t") == KNOWN[name]


LISTED_IDS: Final = sorted({model.id for provider in providers for model in provider.models})


@given(
    st.sampled_from(providers),
    st.one_of(
        st.text(max_size=64),
        st.builds(str.__add__, st.sampled_from(LISTED_IDS), st.text(max_size=12)),
        st.builds(str.__add__, st.text(max_size=12), st.sampled_from(LISTED_IDS)),
    ),
)
def test_the_index_leaves_out_no_model_whose_rule_holds(provider: Any, name: str) -> None:
    """Else a model loses its price, or a name gets that of another model further down the list."""
    candidates = NAMES.index(provider.id).candidates(name)
    matching = [model.id for model in provider.models if model.match.is_match(name)]
    assert [model.id for model in candidates if model.match.is_match(name)] == matching


def test_every_listed_model_is_a_candidate_of_its_own_id() -> None:
    for provider in providers:
        index = NAMES.index(provider.id)
        for model in provider.models:
            name = model.id.lower()
            if model.match.is_match(name):
                assert any(found is model for found in index.candidates(name))
            assert index.of_id(name).id.lower() == name


def test_a_rule_of_a_later_release_is_always_asked() -> None:
    model = types.SimpleNamespace(id="later", match=object())
    assert ModelIndex([model]).candidates("anything") == [model]


def test_a_name_that_is_nobodys_asks_few_rules() -> None:
    """A batch of names that are all new must not cost a call of every rule for each of them."""
    asked = sum(len(NAMES.index(provider.id).candidates("m-d1795863468-4711")) for provider in providers)
    assert asked <= 5
