"""
Which extractors of the `genai-prices` package read which usage object.

Bodies with the same fields are a family, and so are the extractors that read them. The package is imported when the
first body comes (0.2 s); nothing here touches the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple

from tollkeeper.errors import BadParameter
from tollkeeper.packages import needed

ECHO_CHARS_MAX: Final = 64

_NAMES: Final = {
    "openai": "openai",
    "openai-chat": "openai/chat",
    "openai-responses": "openai/responses",
    "openai-realtime": "openai/realtime",
    "openai-images": "openai/images",
    "openai-embeddings": "openai/embeddings",
    "anthropic": "anthropic",
    "gemini": "google",
    "vertex": "google",
    "bedrock": "aws",
    "xai": "x-ai",
    "voyage": "openai/embeddings",
    "voyageai": "openai/embeddings",
}
"""Names of `usage_of` beside the providers of the list, `provider` or `provider/flavor`."""

FORMS: Final = ("openai", "openai-responses", "anthropic", "gemini", "bedrock", "azure", "mistral", "cohere")
"""The names of `usage_of` that an error lists; every provider of the list that has an extractor is one."""

_ALIKE: Final = {"perplexity": "chat", "anthropic": "responses", "responses": "anthropic"}
"""Family → one whose bodies differ in optional fields only: which of the two it is may not show."""


class Family(NamedTuple):
    """
    Bodies with the same fields.

    Attributes:
        name: As in messages.
        fields: Fields of which a body of the family has one, beside those that decide; for messages.
        common: Extractors to try beside the named provider's own, `provider/flavor`, the preferred first.
        counts_all: Whether the body's total, if it has one, is the sum of its classes.
        caches_images: Whether its sellers have a price of its own for cached image tokens.
    """

    name: str
    fields: str
    common: tuple[str, ...]
    counts_all: bool = True
    caches_images: bool = False


FAMILIES: Final = {
    family.name: family
    for family in (
        Family("gemini", "usageMetadata.promptTokenCount", ("google/default",)),
        Family("bedrock", "inputTokens and outputTokens", ("aws/default",)),
        Family("cursor", "tokenUsage.cacheReadTokens", ("cursor/usage-event",), counts_all=False),
        Family(
            "cohere",
            "billed_units",
            ("cohere/default", "cohere/embeddings", "cohere/tokens"),
            counts_all=False,
        ),
        Family("pages", "pages_processed", ("mistral/ocr",), counts_all=False),
        Family("seconds", "seconds", ("openai/live",), counts_all=False),
        Family("perplexity", "num_search_queries", ("perplexity/default",), counts_all=False),
        Family(
            "chat",
            "prompt_tokens and completion_tokens",
            (
                "openai/chat",
                "databricks/default",
                "anthropic/chat",
                "modal/chat",
                "x-ai/chat",
                "x-ai/default",
            ),
        ),
        Family("embeddings", "prompt_tokens", ("openai/embeddings",)),
        Family("realtime", "input_token_details", ("openai/realtime", "x-ai/realtime"), caches_images=True),
        Family("images", "input_tokens_details.image_tokens", ("openai/images",), caches_images=True),
        Family("anthropic", "input_tokens and cache_read_input_tokens", ("anthropic/default",)),
        Family("responses", "input_tokens and output_tokens", ("openai/responses", "perplexity/responses")),
    )
}


def provider_names() -> list[str]:
    """Return every name that `usage_of` may have."""
    return sorted({*_NAMES, *(source.partition("/")[0] for source in _extractors())})


def family_name(usage: Mapping[str, Any]) -> str:
    """Return the family that the fields of *usage* tell, `""` for none."""
    fields = usage.keys()
    if fields & {"promptTokenCount", "candidatesTokenCount", "totalTokenCount", "cachedContentTokenCount"}:
        return "gemini"
    if "tokenUsage" in fields:
        return "cursor"
    if isinstance(usage.get("billed_units", usage.get("tokens")), dict):
        return "cohere"
    if "pages_processed" in fields:
        return "pages"
    if "prompt_tokens" in fields:
        if fields & {"num_search_queries", "citation_tokens", "search_context_size"}:
            return "perplexity"
        return (
            "chat" if "completion_tokens" in fields or "completion_tokens_details" in fields else "embeddings"
        )
    if "completion_tokens" in fields:
        return "chat"
    if fields & {"inputTextTokenCount", "generation_token_count"}:
        return "bedrock"
    if fields & {"inputTokens", "outputTokens", "inputTokenCount", "outputTokenCount"}:
        # `cachedInputTokens`, `inputTokenDetails` and the like are of a client library, not of Bedrock.
        other = fields & {"cachedInputTokens", "reasoningTokens", "inputTokenDetails", "outputTokenDetails"}
        return "" if other else "bedrock"
    if fields & {"input_tokens", "output_tokens"}:
        details = usage.get("input_token_details", usage.get("output_token_details"))
        if isinstance(details, dict):
            known = details.keys() & {"text_tokens", "audio_tokens", "image_tokens", "cached_tokens"}
            return "realtime" if known or not details else ""
        if fields & {
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
            "cache_creation",
            "server_tool_use",
        }:
            return "anthropic"
        details = usage.get("input_tokens_details")
        if isinstance(details, dict) and "image_tokens" in details and "text_tokens" in details:
            return "images"
        if fields & {"total_tokens", "input_tokens_details"}:
            return "responses"
        details = usage.get("output_tokens_details")
        return "responses" if isinstance(details, dict) and "reasoning_tokens" in details else "anthropic"
    if "seconds" in fields:
        return "seconds"
    return "embeddings" if "total_tokens" in fields else ""


def family_of(usage: Mapping[str, Any], path: str) -> Family:
    name = family_name(usage)
    if name:
        return FAMILIES[name]
    seen = ", ".join(sorted(usage)[:8])[: 2 * ECHO_CHARS_MAX]
    raise BadParameter(
        f"{path} is of no known form: it has {seen or 'no fields'}, and no prompt_tokens, input_tokens, "
        "promptTokenCount or inputTokens with their details. Send the usage object as the model's provider sent "
        "it, not as a client library words it",
        field=path,
    )


def _family_of_extractor(extractor: Any) -> str:
    """Return the family of the bodies that an extractor of the package reads, `""` for one that we do not use."""
    root = (extractor.root,) if isinstance(extractor.root, str) else tuple(extractor.root)
    paths = [(m.path,) if isinstance(m.path, str) else tuple(m.path) for m in extractor.mappings]
    first = {path[0] for path in paths if isinstance(path[0], str)}
    names = first | {step for path in paths for step in path if isinstance(step, str)}
    if root == ("usageMetadata",):
        return "gemini"
    if root == ("tokenUsage",):
        return "cursor"
    if root[-1] == "billed_units" or "tokens" in first:
        return "cohere"
    if root == ("usage_info",):
        return "pages" if len({mapping.dest for mapping in extractor.mappings}) == 1 else ""
    if "inputTokens" in first:
        return "bedrock"
    if "num_search_queries" in first:
        return "perplexity"
    if "completion_tokens" in first:
        return "chat"
    if first == {"prompt_tokens"}:
        return "embeddings"
    if "input_token_details" in first:
        return "realtime"
    if first == {"seconds"}:
        return "seconds"
    if "cache_read_input_tokens" in first:
        return "anthropic"
    if "image_tokens" in names and "input_tokens_details" in first:
        return "images"
    return "responses" if "input_tokens" in first else ""


class Count(NamedTuple):
    """
    A count that an extractor looks for.

    Attributes:
        steps: The path to it within the usage object; of a count in a list of details, that to the list.
        name: Its own field.
        in_list: Whether it is a field of the items of a list.
        is_tokens: Whether it counts tokens, which are whole.
    """

    steps: tuple[str, ...]
    name: str
    in_list: bool
    is_tokens: bool


class Source(NamedTuple):
    """
    An extractor of the package, with its name and family.

    Attributes:
        root: The path to the usage object in a response.
        counts: What it looks for.
        fields: The paths of the fields that it reads, `prompt_tokens_details.cached_tokens`.
    """

    name: str
    family: str
    root: tuple[str, ...]
    extractor: Any
    counts: tuple[Count, ...]
    fields: frozenset[str]


@cache
def _extractors() -> dict[str, Source]:
    """Return the extractors of the installed list by `provider/flavor`."""
    with needed():
        from genai_prices.data import providers

    found = {}
    for provider in providers:
        for extractor in provider.extractors or ():
            root = (extractor.root,) if isinstance(extractor.root, str) else tuple(extractor.root)
            family = _family_of_extractor(extractor)
            if family:
                name = f"{provider.id}/{extractor.api_flavor}"
                counts = tuple(dict.fromkeys(map(_count_of, extractor.mappings)))
                fields = frozenset(".".join((*count.steps, count.name)) for count in counts)
                found[name] = Source(name, family, root, extractor, counts, fields)
    return found


def _count_of(mapping: Any) -> Count:
    path = (mapping.path,) if isinstance(mapping.path, str) else tuple(mapping.path)
    steps = tuple(step for step in path[:-1] if isinstance(step, str))
    return Count(steps, path[-1], len(steps) < len(path) - 1, "token" in mapping.dest)


@lru_cache(maxsize=256)  # Callers choose the names.
def _provider_id(name: str) -> str:
    """Return the id of the provider of the list that *name* names, `""` for none."""
    from genai_prices.data import providers
    from genai_prices.data_snapshot import find_provider_by_id

    provider = find_provider_by_id(providers, name)
    return "" if provider is None else provider.id


def named_sources(usage_of: str) -> tuple[Source, ...]:
    """Return the extractors that `usage_of` names."""
    if not isinstance(usage_of, str):
        raise BadParameter("usage_of must be text, e.g. openai", field="usage_of")
    name = usage_of.strip().lower().replace("_", "-")[:ECHO_CHARS_MAX]
    name = _NAMES.get(name, name)
    known = _extractors()
    if name in known:
        return (known[name],)
    provider = _provider_id(name) if name else ""
    own = tuple(source for source in known.values() if source.name.partition("/")[0] == provider)
    if own:
        return own
    near = get_close_matches(name, provider_names(), n=1)
    hint = (
        f"did you mean {near[0]}?" if near else f"it is one of {', '.join(FORMS)}, or a provider of the list"
    )
    raise BadParameter(
        f"usage_of is {usage_of[:ECHO_CHARS_MAX]!r}, which is unknown: {hint}", field="usage_of"
    )


def sources(family: Family, usage_of: str | None, path: str) -> Iterator[Source]:
    """
    Yield the extractors that may read a body of *family*, the preferred first.

    Raises:
        BadParameter: *usage_of* is unknown, or names a provider whose bodies are of another family.
    """
    known = _extractors()
    common = [known[name] for name in family.common if name in known]
    if usage_of is None:
        yield from common
        return
    named = named_sources(usage_of)
    own = [source for source in named if source.family == family.name]
    if own:
        yield from own
        # A provider of several APIs also relays those of others.
        yield from (source for source in common if source not in own and len(named) > 1)
        return
    alike = _ALIKE.get(family.name, "")
    own = [source for source in named if source.family == alike]
    if not own:
        raise BadParameter(
            f"usage_of is {usage_of[:ECHO_CHARS_MAX]!r}, but {path} has {family.fields}, as {family.name} bodies "
            "have: name its provider, or leave usage_of out to have it found",
            field="usage_of",
        )
    yield from own
