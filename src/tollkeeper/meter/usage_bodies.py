"""
Finds the usage object in what a provider sent: a response, the chunks of a stream, JSON text, or the object itself.

It decides nothing: it brings each fact into one form (`_clean`), and says which model and variant stand beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from tollkeeper.domain.events import TEXT_CHARS_MAX
from tollkeeper.domain.quantities import VARIANT_CHARS_MAX
from tollkeeper.errors import BadParameter
from tollkeeper.meter.usage_extractors import ECHO_CHARS_MAX, family_name

BODY_CHARS_MAX: Final = 256 * 1024
"""Most characters of a body given as text; a usage object has fewer than 2,000."""
DEPTH_MAX: Final = 8
"""A response nests its usage at most five deep; a list of details one deeper."""
CHUNKS_MAX: Final = 100_000
"""Most chunks of a stream given as a list."""


_STANDARD: Final = frozenset(
    {"", "default", "standard", "auto", "on_demand", "scale", "not_available", "unspecified"}
)
"""Service tiers that are the list's own price."""


_EVERYWHERE: Final = frozenset({"", "global", "not_available"})
"""Values of Anthropic's `inference_geo` that are the list's own price."""
_REGION_CHARS_MAX: Final = 16

_GEMINI_SNAKE: Final = frozenset(
    {"prompt_token_count", "candidates_token_count", "total_token_count", "token_count"}
)
_NUMBER: Final = re.compile(r"\d{1,15}(\.\d{1,9})?\Z", re.ASCII)
_METRICS: Final = "amazon-bedrock-invocationMetrics"
_NESTED: Final = ("response", "message", "body", "result", "metadata", "data", "chunk", "x_groq")
"""Fields under which a response, or an event of a stream, has the part that states its usage."""


class Found(NamedTuple):
    """A usage object within a body, and what stands around it."""

    usage: dict[str, Any]
    model: str
    variant: str


def _parsed(body: Any, path: str) -> Any:
    """Return *body* as JSON values: text is parsed, as JSON or as the events of a stream (`data: {…}` lines)."""
    if isinstance(body, bytes | bytearray):
        body = bytes(body).decode("utf-8", "replace")
    if not isinstance(body, str):
        return body
    if len(body) > BODY_CHARS_MAX:
        raise BadParameter(
            f"{path} has {len(body):,} characters: send the usage object, of at most {BODY_CHARS_MAX:,}",
            field=path,
        )
    text = body.strip()
    try:
        if text.startswith(("data:", "event:", ":")):
            lines = (line[5:].strip() for line in text.splitlines() if line.startswith("data:"))
            return [json.loads(line) for line in lines if line and line != "[DONE]"]
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadParameter(
            f"{path} is text that is no JSON: send the usage object as the provider sent it", field=path
        ) from None


def located(body: Any, path: str) -> Found:
    """
    Return the usage object of *body*; of several chunks of a stream, what they say together.

    Raises:
        BadParameter: There is none.
    """
    body = _parsed(body, path)
    if isinstance(body, Mapping):
        found = _search(body, "", "", 0)
    elif isinstance(body, Sequence) and not isinstance(body, str):
        if len(body) > CHUNKS_MAX:
            raise BadParameter(f"{path} has over {CHUNKS_MAX:,} chunks: send the last", field=path)
        found = _of_chunks(body, path)
    else:
        raise BadParameter(
            f"{path} must be the usage object of a response, e.g. "
            '{"prompt_tokens": 2006, "completion_tokens": 300}',
            field=path,
        )
    if found is None and isinstance(body, Mapping) and any("oken" in str(name) for name in body):
        return Found(_clean(body), "", "")  # Counts, of no form that we know: see `family_of`.
    if found is None or not found.usage:
        raise BadParameter(
            f"{path} states no counts: send the response's usage object. A stream has it in its last chunk, "
            'with OpenAI if the request has "stream_options": {"include_usage": true}',
            field=path,
        )
    return _in_region(found)


def _of_chunks(chunks: Sequence[Any], path: str) -> Found | None:
    """
    Return what the chunks of one stream say together.

    Raises:
        BadParameter: They are of several responses, whose counts would have to be added.
    """
    found = None
    known_id = ""
    for chunk in chunks:
        part = _search(chunk, "", "", 0) if isinstance(chunk, Mapping) else None
        if part is None:
            continue
        response_id = _response_id(chunk)
        if known_id and response_id and response_id != known_id:
            raise BadParameter(
                f"{path} has the usage of several responses ({known_id[:ECHO_CHARS_MAX]}, "
                f"{response_id[:ECHO_CHARS_MAX]}): send an event for each",
                field=path,
            )
        known_id = known_id or response_id
        if found is not None and _METRICS in chunk and family_name(found.usage) != "bedrock":
            continue  # Bedrock's sums, with less detail than the usage of the model's maker before them.
        found = part if found is None else _joined(found, part)
    return found


def _response_id(chunk: Mapping[Any, Any]) -> str:
    """Return the id of the whole response that *chunk* is or ends; `""` for a chunk that is a piece of one."""
    if chunk.get("object") == "chat.completion.chunk":
        return ""  # Some servers give each chunk an id of its own.
    inner = chunk.get("response", chunk.get("message", chunk))
    value = inner.get("id") if isinstance(inner, Mapping) else None
    return value if isinstance(value, str) else ""


def _search(body: Mapping[Any, Any], model: str, variant: str, depth: int) -> Found | None:
    """Return the usage object within *body*, itself included, with the model and variant said around it."""
    model = _model_of(body) or model
    variant = _variant_of(body) or variant
    for name in ("usage", "usageMetadata", "usage_metadata", "tokenUsage", "usage_info"):
        part = body.get(name)
        if isinstance(part, str) and name == "usage":
            part = _parsed(part, "usage")
        if isinstance(part, Mapping):
            inner = _search(part, model, variant, depth + 1) if depth < DEPTH_MAX else None
            if inner is not None:
                return inner
            if name == "tokenUsage":
                return Found({"tokenUsage": _clean(part)}, model, variant)
            return Found(_clean(part), _model_of(part) or model, _variant_of(part) or variant)
    if _METRICS in body:
        part = body[_METRICS]
        return Found(_clean(part), model, variant) if isinstance(part, Mapping) else None
    if isinstance(meta := body.get("meta"), Mapping) and isinstance(meta.get("billed_units"), Mapping):
        return Found(_clean(meta), model, variant)
    clean = _clean(body)
    if family_name(clean):
        return Found(clean, model, variant)
    for name in _NESTED:
        part = body.get(name)
        if isinstance(part, Mapping) and depth < DEPTH_MAX:
            inner = _search(part, model, variant or ("batch" if "custom_id" in body else ""), depth + 1)
            if inner is not None:
                return inner
    return None


def _model_of(body: Mapping[Any, Any]) -> str:
    for name in ("model", "modelVersion", "model_version"):
        if isinstance(value := body.get(name), str) and len(value) <= TEXT_CHARS_MAX:
            return value
    return ""


def _in_region(found: Found) -> Found:
    """
    Return *found* with the region where Anthropic had to run the request, as part of its variant: `us`, `batch-us`.

    Such a request has another price, which the list does not say.
    """
    value = found.usage.get("inference_geo")
    region = value.strip().lower()[:_REGION_CHARS_MAX] if isinstance(value, str) else ""
    if region in _EVERYWHERE:
        return found
    return found._replace(variant="-".join(part for part in (found.variant, region) if part))


def _variant_of(body: Mapping[Any, Any]) -> str:
    """Return which variant of a model *body* says was used; `""` for its ordinary one."""
    for name in ("speed", "service_tier", "serviceTier", "trafficType", "traffic_type", "performanceConfig"):
        value = body.get(name)
        if isinstance(value, Mapping):  # Bedrock: {"type": "priority"}, {"latency": "optimized"}.
            value = value.get("type", value.get("latency"))
        if not isinstance(value, str) or len(value) > VARIANT_CHARS_MAX:
            continue
        # Enums come with their type in front: `SERVICE_TIER_FLEX`, `TrafficType.ON_DEMAND_PRIORITY`.
        value = value.rpartition(".")[2].lower().removeprefix("service_tier_")
        value = value.removeprefix("on_demand_")
        if value not in _STANDARD:
            return value
    return ""


def _joined(before: Found, part: Found) -> Found:
    """Return what two chunks of a stream say together: counts of a stream grow, so the greater one is the later."""
    return Found(
        _greatest(before.usage, part.usage), part.model or before.model, part.variant or before.variant
    )


def _greatest(before: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    joined = dict(before)
    for name, value in later.items():
        old = joined.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            joined[name] = _greatest(old, value)
        elif isinstance(old, int | float) and isinstance(value, int | float):
            joined[name] = max(old, value)
        else:
            joined[name] = value
    return joined


def _clean(body: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
    """
    Return *body* with one form for each fact: no nulls, numbers as numbers, and Gemini's names in camel case.

    Counts come as text from 64-bit fields of protocol buffers, as `20.0` from languages with one type of number, and
    in snake case from Gemini's Python client.
    """
    # Models of Meta on Bedrock have `prompt_token_count` too.
    gemini = not body.keys().isdisjoint(_GEMINI_SNAKE) and "generation_token_count" not in body
    clean: dict[str, Any] = {}
    for name, value in body.items():
        if not isinstance(name, str):
            continue
        key = _camel(name) if gemini else name
        kept = _clean_value(value, depth)
        if kept is not None:
            clean[key] = kept
    if "cacheTokensDetails" not in clean and "cachedContentTokensDetails" in clean:
        clean["cacheTokensDetails"] = clean["cachedContentTokensDetails"]
    return clean


def _clean_value(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        if not _NUMBER.match(value):
            return value
        number = Decimal(value)
        return int(number) if number == number.to_integral_value() else float(number)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, bool) or value is None or depth > DEPTH_MAX:
        return None
    if isinstance(value, Mapping):
        return _clean(value, depth + 1)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        parts = [_clean(part, depth + 1) for part in value if isinstance(part, Mapping)]
        return _merged(parts)
    return value


def _merged(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return lists of details with one item for each modality, or time to live: extractors take the first."""
    merged: dict[str, dict[str, Any]] = {}
    rest = []
    for part in parts:
        label = part.get("modality", part.get("ttl"))
        if not isinstance(label, str):
            rest.append(part)
            continue
        if "modality" in part:
            part = {**part, "modality": label.rpartition(".")[2].upper()}
            label = part["modality"]
        known = merged.get(label)
        if known is None:
            merged[label] = dict(part)
            continue
        for name in ("tokenCount", "inputTokens"):
            if isinstance(part.get(name), int):
                known[name] = known.get(name, 0) + part[name]
    return [*merged.values(), *rest]


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
