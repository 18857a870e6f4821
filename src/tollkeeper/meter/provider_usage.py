"""
What a model's provider says that a request used, read into our disjoint counts.

A response's usage object is taken as its provider sent it. The mapping of fields is that of the extractors of the
`genai-prices` package; this module finds the usage object in the body, chooses the extractor, and splits the counts,
which most providers nest (`prompt_tokens` includes `cached_tokens`), into classes that share no token.

The choice:

1. The fields say which *family* a body is of: chat completions, responses, Anthropic, Gemini, Bedrock, and so on
   (`usage_extractors.FAMILIES`). `usage_of` must name a provider that has an extractor of that family.
2. Several extractors of a family may fit, of which one adds reasoning to the completion and another does not. The
   body's own total decides; then the one that reads more of the details; then the provider's own.
3. A body whose parts exceed their whole, whose total is less than its parts, or that states cached tokens which no
   extractor of its family reads, is rejected: it would be counted twice, or priced wrong.

Unknown fields are ignored. Nothing here touches the network. The package is imported when the first body comes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper.domain.events import TOKENS_MAX, Event, Tokens
from tollkeeper.domain.quantities import (
    MICROS,
    QUANTITY_MICROS_MAX,
    QUANTITY_UNITS_MAX,
    TOKEN_CLASSES,
    quantities_json,
)
from tollkeeper.domain.requests import NO_USAGE, Usage
from tollkeeper.errors import BadParameter
from tollkeeper.meter.usage_bodies import located
from tollkeeper.meter.usage_extractors import Family, Source, family_of, named_sources, sources
from tollkeeper.meter.usage_fields import (
    CACHE_FIELDS,
    MODALITIES,
    PARTS_BESIDE,
    SPELLINGS,
    UNITS,
    UNITS_BESIDE,
)

_TOTALS: Final = ("total_tokens", "totalTokens", "totalTokenCount", "totalTokensCount")


_ECHO_CHARS_MAX: Final = 64


class ProviderUsage(NamedTuple):
    """
    What a body says, in disjoint counts.

    Attributes:
        usage: The counts; its `response_model` and `variant` are the body's, `""` where it has none.
        read_as: The extractor that read it, `provider/flavor`.
    """

    usage: Usage
    read_as: str


def usage_from(usage_of: str | None, body: Any, *, model: str = "") -> Usage:
    """
    Return what *body* says that a request used, for an estimate or an outcome.

        Outcome(usage=usage_from("openai", response["usage"], model="gpt-5-mini"))

    Args:
        usage_of: Whose body it is: `openai`, `openai-responses`, `anthropic`, `gemini`, `bedrock`, or any provider
            of the price list; None finds it by its fields.
        body: The usage object, the response around it, the chunks of a stream, or one of these as JSON text.
        model: Whose price applies. An estimate must have it; an outcome without has that of its hold, else the one
            that the response names.

    Raises:
        BadParameter: The body cannot be read: its field, and what is missing.
    """
    usage = read_usage(body, usage_of).usage
    return usage._replace(model=model) if model else usage


def counted_usage(stated: Usage, body: Any, usage_of: str | None) -> Usage:
    """
    Return *stated* with the counts of a provider's usage object; its own model, variant and cost stand.

    Args:
        stated: What a caller states beside the object; without tokens.
        body: The object, as for `usage_from`; None where the caller states none.

    Raises:
        BadParameter: Both state tokens, or the same quantity; or as `usage_from`.
    """
    if body is None:
        if usage_of is not None:
            raise BadParameter("usage is required where usage_of says whose it is", field="usage")
        return stated
    if stated.tokens:
        raise _both()
    usage = read_usage(body, usage_of).usage
    for name in stated.quantities:
        if name in usage.quantities:
            raise _twice(name)
    quantities = {**stated.quantities, **usage.quantities}
    return stated._replace(
        prompt_tokens=usage.prompt_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        response_model=usage.response_model,
        quantities={name: quantities[name] for name in sorted(quantities)},
        variant=stated.variant or usage.variant,
    )


def counted_event(event: Event, *, in_place_of_others: bool = False) -> Event:
    """
    Return *event* with the counts of its provider's usage object in place of the object.

    Args:
        in_place_of_others: Token classes that the object does not state are stated as 0, for an amendment.

    Raises:
        BadParameter: As `counted_usage`.
    """
    if event.usage is not None and event.tokens is not None:
        raise _both()
    usage = counted_usage(NO_USAGE, event.usage, event.usage_of)
    quantities: dict[str, Any] = {
        name: value for name, value in (event.quantities or {}).items() if value is not None
    }
    for name in usage.quantities:
        if name in quantities:
            raise _twice(name)
    if in_place_of_others:
        quantities |= dict.fromkeys(TOKEN_CLASSES, 0)
    quantities |= quantities_json(usage.quantities)
    return msgspec.structs.replace(
        event,
        tokens=Tokens(
            usage.prompt_tokens, usage.cached_prompt_tokens, usage.completion_tokens, usage.reasoning_tokens
        ),
        quantities=quantities or None,
        model=event.model or usage.response_model or None,
        variant=event.variant or usage.variant or None,
        usage=None,
        usage_of=None,
    )


def _both() -> BadParameter:
    return BadParameter(
        "tokens and usage both state the tokens: send usage, as the provider sent it, or tokens, whose counts share no "
        "token, but not both",
        field="tokens",
    )


def _twice(name: str) -> BadParameter:
    field = f"quantities.{name}"
    return BadParameter(f"{field} is stated by usage too: leave it out", field=field)


def read_usage(body: Any, usage_of: str | None = None, *, path: str = "usage") -> ProviderUsage:
    """
    Return what *body* says that a request used; arguments and errors as `usage_from`.

    Args:
        path: Where the body stands: begins the field of every error.
    """
    found = located(body, path)
    family = family_of(found.usage, path)
    if (
        family.name == "embeddings"
        and "prompt_tokens" not in found.usage
        and not _embeds(usage_of, found.model)
    ):
        raise BadParameter(
            f"{path}: prompt_tokens is missing, total_tokens alone does not say what was used: send the usage object "
            "whole, as the provider sent it. If it is of embeddings of Voyage, name voyageai in usage_of",
            field=path,
        )
    usage = _respelled(found.usage, family)
    if family.name == "gemini":
        _check_modalities(usage, path)
    best: _Reading | None = None
    failed: _Unreadable | None = None
    candidates = tuple(sources(family, usage_of, path))
    fields = frozenset[str]().union(*(source.fields for source in candidates))
    for source in candidates:
        try:
            reading = _read(source, usage, family, path)
        except _Unreadable as exc:
            if failed is None or exc.values_count > failed.values_count:
                failed = exc
            continue
        if best is None or reading.rank > best.rank:
            best = reading
        if reading.rank[0] and failed is None and not _unread(usage, fields - source.fields):
            break  # It agrees with the body's total, and no other extractor reads more of the body.
    # An extractor that leaves the contradicting field out does not make the body right.
    if best is None or (failed is not None and failed.values_count > best.rank[1]):
        assert failed is not None
        raise BadParameter(str(failed), field=path)
    _check_nothing_lost(best, usage, family, path)
    counts = best.counts
    quantities = {**counts.quantities, **_units_beside(usage, family, path)}
    return ProviderUsage(
        Usage(
            counts.prompt,
            counts.cached_prompt,
            counts.completion,
            counts.reasoning,
            quantities={name: quantities[name] for name in sorted(quantities)},
            variant=found.variant,
            response_model=found.model,
        ),
        best.source,
    )


# --- Reading -----------------------------------------------------------------------------------


class _Unreadable(Exception):
    """One extractor cannot read a body; of *values_count* counts that it found there."""

    def __init__(self, message: str, values_count: int = 0) -> None:
        super().__init__(message)
        self.values_count = values_count


class _Counts(NamedTuple):
    prompt: int
    cached_prompt: int
    completion: int
    reasoning: int
    quantities: dict[str, int]


class _Reading(NamedTuple):
    """What one extractor makes of a body; the reading of the highest `rank` is taken."""

    rank: tuple[bool, int]
    source: str
    counts: _Counts
    values: Mapping[str, Any]
    total: int | None
    """What the body says that its tokens are together."""
    counted: int
    read: frozenset[str]
    """The paths of the fields that the extractor reads."""


def _respelled(usage: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return *usage* with the names that the extractors of its family read."""
    usage = {name: dict(value) if isinstance(value, dict) else value for name, value in usage.items()}
    for there, wanted in SPELLINGS.get(family.name, ()):
        value = _at(usage, there)
        if isinstance(value, int | list) and _at(usage, wanted) in (None, 0):
            holder = usage
            *steps, last = wanted
            for step in steps:
                inner = holder.get(step)
                holder[step] = holder = dict(inner) if isinstance(inner, dict) else {}
            holder[last] = value
    if family.name == "anthropic" and isinstance(written := usage.get("cache_creation"), dict):
        stated = sum(value for value in written.values() if isinstance(value, int))
        usage.setdefault("cache_creation_input_tokens", stated)
    if family.name == "bedrock" and isinstance(details := usage.get("cacheDetails"), list):
        stated = sum(item["inputTokens"] for item in details if isinstance(item.get("inputTokens"), int))
        usage.setdefault("cacheWriteInputTokens", stated)
    if family.name == "bedrock" and isinstance(results := usage.get("results"), list):  # Titan's answers.
        counts = [item.get("tokenCount") for item in results]
        usage.setdefault("outputTokens", sum(count for count in counts if isinstance(count, int)))
    if family.name == "bedrock" and "embedding" in usage:
        usage.setdefault("outputTokens", 0)
    if family.name == "cohere" and isinstance(billed := usage.get("billed_units"), dict):
        usage.pop("tokens", None)  # All that the model saw; what is charged are the billed units.
        if any(path[-1] in billed for path, _ in UNITS_BESIDE["cohere"]):
            billed.setdefault("input_tokens", 0)  # Searches of a rerank, and images, have no tokens.
    if family.name == "chat" and "prompt_tokens" in usage:
        usage.setdefault("completion_tokens", 0)  # A request that was stopped before its first token.
    return usage


def _embeds(usage_of: str | None, model: str) -> bool:
    """Return whether a body is said to be of embeddings, whose only tokens are those of the prompt."""
    if usage_of is None:
        return model.lower().rpartition("/")[2].startswith("voyage")
    return all(source.family == "embeddings" for source in named_sources(usage_of))


def _units_beside(usage: Mapping[str, Any], family: Family, path: str) -> dict[str, int]:
    """
    Return the quantities of `UNITS_BESIDE` that a body states.

    Raises:
        BadParameter: One is no amount.
    """
    found = {}
    for steps, name in UNITS_BESIDE.get(family.name, ()):
        value = _at(usage, steps)
        if value in (None, 0) or isinstance(value, Mapping | list):
            continue
        field = ".".join((path, *steps))
        if not isinstance(value, int | float) or not 0 < value <= QUANTITY_UNITS_MAX:
            raise BadParameter(
                f"{field} must be a number from 0 to {QUANTITY_UNITS_MAX:,}, not {str(value)[:_ECHO_CHARS_MAX]}",
                field=field,
            )
        found[name] = int((Decimal(str(value)) * MICROS).to_integral_value(ROUND_HALF_EVEN))
    return found


def _check_modalities(usage: Mapping[str, Any], path: str) -> None:
    """Raise if tokens are of a modality that we do not know: they would be charged as text."""
    for name, details in usage.items():
        for item in details if isinstance(details, list) else ():
            modality = item.get("modality")
            if isinstance(modality, str) and modality not in MODALITIES and item.get("tokenCount"):
                raise BadParameter(
                    f"{path}.{name} has {item['tokenCount']:,} tokens of the modality {modality[:_ECHO_CHARS_MAX]!r}, "
                    f"which has no price here: it must be one of {', '.join(MODALITIES[:5])}. Send the counts as "
                    "tokens and quantities, each token in one class",
                    field=f"{path}.{name}",
                )


def _at(usage: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = usage
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


def _read(source: Source, usage: dict[str, Any], family: Family, path: str) -> _Reading:
    """
    Return what *source* makes of *usage*.

    Raises:
        _Unreadable: A count is missing, or the counts contradict each other.
        BadParameter: A count is no number.
    """
    _check_types(source, usage, path)
    body: Any = usage
    # These two are part of what was found, since they say which family it is.
    root = source.root[:-1] if source.root[-1] in ("billed_units", "tokenUsage") else source.root
    for step in reversed(root):
        body = {step: body}
    try:
        _, extracted = source.extractor.extract(body)
    except ValueError as exc:
        raise _Unreadable(f"{path}: {_in_words(exc)}") from None
    values = {
        name: value
        for name in extracted.__dict__
        if (value := extracted.__dict__[name]) and isinstance(value, int | float | Decimal)
    }
    for steps, name in PARTS_BESIDE.get(family.name, ()):
        part = _at(usage, steps)
        if type(part) is int and part > 0:
            values.setdefault(name, part)
    counts = _split(values, path, family)
    total = next((usage[name] for name in _TOTALS if isinstance(usage.get(name), int)), None)
    counted = int(values.get("input_tokens", 0)) + int(values.get("output_tokens", 0))
    agrees = total is None or not family.counts_all or total == counted
    return _Reading((agrees, len(values)), source.name, counts, values, total, counted, source.fields)


def _check_types(source: Source, usage: Mapping[str, Any], path: str) -> None:
    """Raise unless every count that the extractor looks for is a number: it would take another for absent."""
    inside = usage.get("tokenUsage", usage.get("billed_units", usage))
    for count in source.counts:
        holder = inside
        for step in count.steps:
            holder = holder.get(step) if type(holder) is dict else None
            if holder is not None and type(holder) not in (dict, list):
                field = f"{path}.{step}"
                raise BadParameter(
                    f"{field} must be an object of counts, not {str(holder)[:_ECHO_CHARS_MAX]}: send the usage object "
                    "whole, as the provider sent it",
                    field=field,
                )
        holders = holder if count.in_list and type(holder) is list else (holder,)
        for each in holders:
            value = each.get(count.name) if type(each) is dict else None
            if value is None or (type(value) is int and value >= 0):
                continue
            field = ".".join((path, *count.steps, count.name))
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BadParameter(f"{field} must be a number, not {type(value).__name__}", field=field)
            if value < 0:
                raise BadParameter(f"{field} must not be negative", field=field)
            if count.is_tokens:
                raise BadParameter(f"{field} must be a whole number of tokens", field=field)


def _in_words(error: ValueError) -> str:
    """Return what the package says of a body, and what to do."""
    text = str(error)
    if found := re.search(r"Missing value at `(?:[^`]*\.)?([^`.]*)`", text):
        return f"{found[1]} is missing: send the usage object whole, as the provider sent it"
    if text.startswith("No usage information"):
        return "it states no counts: send the usage object whole, as the provider sent it"
    return text.replace("`", "")


def _split(values: Mapping[str, Any], path: str, family: Family) -> _Counts:
    """
    Return nested counts as disjoint ones.

    Raises:
        _Unreadable: Parts exceed their whole, or cached tokens are of text or of audio and the body does not say.
    """

    def of(name: str) -> int:
        return int(values.get(name, 0))

    whole_in = of("input_tokens") or of("input_text_tokens") + of("input_audio_tokens") + of(
        "input_image_tokens"
    )
    whole_out = of("output_tokens") or (
        of("output_text_tokens") + of("output_audio_tokens") + of("output_image_tokens")
    )
    written = of("cache_write_tokens") or of("cache_write_5m_tokens") + of("cache_write_1h_tokens")
    written_1h = of("cache_write_1h_tokens")
    if written_1h > written:
        raise _Unreadable(
            f"{path}: {written_1h:,} tokens were written to the cache for an hour, but {written:,} at all: "
            "send the usage object whole, as the provider sent it",
            len(values),
        )
    cached, cached_audio = of("cache_read_tokens"), of("cache_audio_read_tokens")
    audio, image = of("input_audio_tokens"), of("input_image_tokens")
    video, video_out = of("input_video_tokens"), of("output_video_tokens")
    cached_image, cached_video = of("cache_image_read_tokens"), of("cache_video_read_tokens")
    other = whole_in - audio - image - video - written
    # Cached tokens of text, as far as the body says.
    unlisted = cached - cached_audio - cached_image - cached_video
    if unlisted > other >= 0 and "cache_image_read_tokens" not in values:
        # More than the text has, so that at least these were of images.
        cached_image = min(image, unlisted - other)
        unlisted -= cached_image
    if unlisted > other >= 0 and "cache_video_read_tokens" not in values:
        cached_video = min(video, unlisted - other)
        unlisted -= cached_video
    if unlisted > other >= 0 and audio and "cache_audio_read_tokens" not in values and cached <= whole_in:
        raise _Unreadable(
            f"{path}: of {audio:,} audio tokens some were cached, and the body does not say how many: "
            "cached_tokens_details is missing",
            len(values),
        )
    prompt = other - unlisted
    plain_audio, plain_image, plain_video = audio - cached_audio, image - cached_image, video - cached_video
    if min(prompt, unlisted, plain_audio, plain_image, plain_video) < 0:
        parts = {
            "cached": cached,
            "written to the cache": written,
            "audio": audio,
            "image": image,
            "video": video,
        }
        raise _exceeded(path, "prompt", whole_in, parts, len(values))
    reasoning = of("output_reasoning_tokens")
    audio_out, image_out = of("output_audio_tokens"), of("output_image_tokens")
    citations = of("output_citation_tokens")  # Of Perplexity, at a rate of their own; no class of ours.
    completion = whole_out - reasoning - audio_out - image_out - video_out - citations
    if completion < 0:
        parts = {
            "reasoning": reasoning,
            "audio": audio_out,
            "image": image_out,
            "video": video_out,
            "citation": citations,
        }
        raise _exceeded(path, "completion", whole_out, parts, len(values))
    tokens = {
        "cache_write_tokens": written - written_1h,
        "cache_write_1h_tokens": written_1h,
        "audio_prompt_tokens": plain_audio,
        "audio_cached_prompt_tokens": cached_audio,
        "image_prompt_tokens": plain_image,
        "image_cached_prompt_tokens": cached_image if family.caches_images else 0,
        "video_prompt_tokens": plain_video,
        "audio_completion_tokens": audio_out,
        "image_completion_tokens": image_out,
        "video_completion_tokens": video_out,
        "citation_tokens": citations,
    }
    quantities = {name: count * MICROS for name, count in tokens.items() if count}
    for key, name in UNITS.items():
        amount = values.get(key) or (values.get("input_audio_seconds") if key == "audio_seconds" else None)
        if amount:
            micros = int((Decimal(str(amount)) * MICROS).to_integral_value(ROUND_HALF_EVEN))
            if micros > QUANTITY_MICROS_MAX:
                raise _Unreadable(f"{path}: {amount} {name} is more than {QUANTITY_UNITS_MAX:,}", len(values))
            quantities[name] = micros
    # No seller has a price of its own for cached video tokens: they are cached tokens like those of text.
    cached_prompt = cached - cached_audio - (cached_image if family.caches_images else 0)
    counts = _Counts(prompt, cached_prompt, completion, reasoning, quantities)
    if max(whole_in, whole_out) > TOKENS_MAX:
        raise _Unreadable(f"{path}: a request has at most {TOKENS_MAX:,} tokens of a class", len(values))
    return counts


def _exceeded(path: str, whole: str, count: int, parts: Mapping[str, int], values_count: int) -> _Unreadable:
    listed = ", ".join(f"{value:,} {name}" for name, value in parts.items() if value)
    return _Unreadable(
        f"{path}: the {whole} has {count:,} tokens, fewer than its parts ({listed}): the counts contradict each "
        "other. Send the usage object whole, as the provider sent it, and name the provider in usage_of",
        values_count,
    )


def _check_nothing_lost(reading: _Reading, usage: Mapping[str, Any], family: Family, path: str) -> None:
    """Raise if a reading counts tokens twice, or leaves out cached tokens, by what the body itself says."""
    if family.counts_all and reading.total is not None and 0 < reading.total < reading.counted:
        raise BadParameter(
            f"{path} says that it has {reading.total:,} tokens in total, but read as {reading.source} it has "
            f"{reading.counted:,}: its counts include each other in another way than there. Send the provider's "
            "own usage object, and name the provider in usage_of",
            field=path,
        )
    known = {int(reading.values.get(name, 0)) for name in ("cache_read_tokens", "cache_write_tokens")}
    if not family.counts_all:
        return
    for field, value in _leaves(usage, path):
        name, inner = field.rpartition(".")[2], field.removeprefix(f"{path}.")
        if name in CACHE_FIELDS and inner not in reading.read and value and value not in known:
            raise BadParameter(
                f"{field} is {value:,}, which bodies read as {reading.source} do not have: name the provider whose "
                "body this is in usage_of, or send the counts as tokens, each token in one class",
                field=field,
            )


def _unread(usage: Mapping[str, Any], fields: Set[str], path: str = "") -> bool:
    """Return whether *usage* has a count other than 0 at one of the paths *fields*."""
    return any(
        _unread(value, fields, f"{path}{name}.") if type(value) is dict else value and path + name in fields
        for name, value in usage.items()
    )


def _leaves(usage: Mapping[str, Any], path: str) -> Iterator[tuple[str, int]]:
    for name, value in usage.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.{name}")
        elif isinstance(value, int):
            yield f"{path}.{name}", value
