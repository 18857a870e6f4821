"""
Which model of the price list a name means, as clients write names. It finds a model or none, and never a near one.

The rule, in order; the first reading of the name that the list knows wins:

1. Case, blanks around the name and `@` before a date do not matter; blanks inside are hyphens.
2. *The seller.* A seller in front decides (`azure/…`, `openrouter/…`, `openai:…`): what it does not sell has no
   price, even if another sells it. These forms name their seller without saying so: Bedrock ids
   (`anthropic.claude-…-v1:0`, with `us.`, `eu.`, `apac.`, `global.`, … in front) and ARNs are of `aws`; `models/…`,
   `publishers/<maker>/models/…` and `projects/…` of `google`; `ft:…` of `openai`. A name without a seller is that
   of its maker: the one that the list tells from the name, or the only maker that lists it.
3. *The model.* The name must be one that the list has, or begin with one and go on with a date, a version, `latest`,
   `preview` and the like. Another number or another word makes another model (`…-4-10` is not `…-4-1`, `…-flash-lite`
   is not `…-flash`). Of a date that the list does not have, the model without the date is meant; the same for
   `-latest`. Bedrock's version (`-v1:0`) may be left out. Claude's version may stand before or after its family.
4. *Where.* `global.` has the price of global endpoints; other regions of Bedrock that of a region. What the list has
   no price for is unknown: a global profile of which it has the regional price alone, Azure's data zones
   (`azure/eu/…`), GovCloud, application inference profiles, tuned and imported models. Give these an alias
   (`[[models]]`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from difflib import SequenceMatcher
from typing import Any, Final, NamedTuple

from tollkeeper.catalog.model_index import ModelIndex

NEAREST_MAX: Final = 5
_NEAR: Final = 0.6
"""How much alike a near name is, from 0 to 1."""

MAKERS: Final = (
    "openai",
    "anthropic",
    "google",
    "mistral",
    "cohere",
    "deepseek",
    "x-ai",
    "moonshotai",
    "minimax",
    "zhipuai",
    "perplexity",
    "voyageai",
    "elevenlabs",
    "arcee",
    "meta",
    "typesafe",
    "zai",
)
"""Sellers that make the models that they list, so that a name without a seller can mean theirs."""

_SELLERS: Final = {
    "azure_ai": "azure",
    "azure-ai": "azure",
    "azure-openai": "azure",
    "azure_openai": "azure",
    "microsoft": "azure",
    "fireworks_ai": "fireworks",
    "fireworks-ai": "fireworks",
    "google_ai_studio": "google",
    "x_ai": "x-ai",
    "z-ai": "zai",
    "z.ai": "zai",
    "zai-org": "zai",
    "mistralai": "mistral",
}
"""How clients write sellers of the list, beside its own ids and words."""
_SELLER_WORDS: Final = frozenset(
    [
        *(
            "ai",
            "api",
            "chat",
            "text",
            "completion",
            "completions",
            "embeddings",
            "language",
            "vision",
            "models",
        ),
        *("converse", "mantle", "invoke", "runtime", "cloud", "platform", "studio", "beta"),
        *("aws", "amazon", "google", "microsoft", "openai", "gemini", "vertex"),
    ]
)
"""Words beside a seller's own in a name of it (`vertex_ai-language-models`); with any other it is somebody else."""

_BEDROCK_MAKERS: Final = (
    "ai21|amazon|anthropic|cohere|deepseek|google|luma|meta|minimax|mistral|moonshot|moonshotai|nvidia|openai|qwen|"
    "stability|twelvelabs|writer|xai|zai"
)
_BEDROCK: Final = re.compile(
    rf"(?:(?P<where>[a-z]{{2,6}}(?:-gov)?)\.)?(?P<maker>{_BEDROCK_MAKERS})\.(?P<model>[a-z0-9].*)"
)
_PLACE: Final = re.compile(rf"(?!global\.)(?:[a-z]{{2,6}}\.)?(?:(?:{_BEDROCK_MAKERS})\.)?")
"""What may stand before a listed part of a Bedrock id. GovCloud and global endpoints have prices of their own."""
_BEDROCK_VERSION: Final = re.compile(r"(?:-v\d+(?::\d+)?|-\d+:\d+|:\d+)(?::\d+k)?\Z")
_ARN: Final = re.compile(
    r"arn:aws(?P<partition>-[a-z-]+)?:bedrock:(?P<region>[a-z0-9-]*):\d*:(?P<kind>[a-z-]+)/(?P<name>.+)"
)
_ARN_KINDS: Final = frozenset({"foundation-model", "inference-profile"})
_AWS_REGION: Final = re.compile(r"[a-z]{2}(?:-gov)?-[a-z]+-\d\Z")
_AWS_APIS: Final = frozenset({"converse", "invoke", "converse_like", "runtime"})
_VERTEX: Final = re.compile(
    r"(?:projects/[^/]+/)?(?:locations/[^/]+/)?publishers/(?P<maker>[^/]+)/models/(?P<model>[^/]+)\Z"
)
_GOOGLE_URL: Final = re.compile(r"(?:https://[a-z0-9.-]*googleapis\.com)?/?(?:v\d+(?:(?:alpha|beta)\d*)?/)?")
"""What stands before the path of a model of Google in the URL of a call."""
_GOOGLE_METHOD: Final = re.compile(
    r":(?:generatecontent|streamgeneratecontent|(?:batch)?embedcontents?|counttokens|bidigeneratecontent|"
    r"(?:streamraw|raw|stream)?predict|predictlongrunning)(?:\?.*)?\Z"
)
_CLAUDE: Final = re.compile(
    r"(?P<before>(?:anthropic/|anthropic\.)?claude)-(?P<version>\d(?:[.-]\d)?)-(?P<family>opus|sonnet|haiku)(?P<rest>(?:[-@:].*)?)\Z"
)
_COMPACT_DATE: Final = re.compile(r"-(20\d\d)(\d\d)(\d\d)(?=[-:@]|\Z)")
_DATE_END: Final = re.compile(r"[-@](?:20\d\d-\d\d-\d\d|20\d{6}|\d\d-\d\d-20\d\d)\Z")

_TAIL: Final = re.compile(
    r"(?:[-@:.](?:latest|preview|exp|experimental|beta|default|stable|v\d+(?::\d+)?|20\d{6}|20\d\d-\d\d-\d\d|"
    r"\d\d-\d\d(?:-20\d\d)?|\d\d-20\d\d|\d{3}|(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])|2\d(?:0[1-9]|1[0-2])|customtools)|"
    r":\d+k?|:thinking)*\Z"
)
"""What may follow a listed beginning of a name: dates (four digits are mmdd or yymm), builds and versions of it."""
_FINE_TUNED_TAIL: Final = re.compile(r"(?:-?\d{4}|\d\d-\d\d)?(?::.*)?\Z")
"""What follows the base model in `ft:<base>:<organisation>:<name>:<id>`."""


class Listed(NamedTuple):
    """
    What a name means.

    Attributes:
        seller: The provider of the list.
        model: Its model.
        why: How the name was read, in words for people.
    """

    seller: Any
    model: Any
    why: str


class ModelNames:
    """
    The price list as names are looked up in it.

    Args:
        snapshot: The `DataSnapshot` of genai-prices.
    """

    def __init__(self, snapshot: Any) -> None:
        self.providers = snapshot.providers
        self.sellers = {provider.id: provider for provider in snapshot.providers}
        self._indexes: dict[str, ModelIndex] = {}
        self._without_version: dict[str, list[Any]] | None = None

    def index(self, seller_id: str) -> ModelIndex:
        """Return the index of a seller's models, made when it is first asked for."""
        index = self._indexes.get(seller_id)
        if index is None:
            index = self._indexes[seller_id] = ModelIndex(self.sellers[seller_id].models)
        return index

    def without_version(self, name: str) -> list[Any]:
        """Return the models of Bedrock whose ids are *name*, which has no version, but for their versions."""
        found = self._without_version
        if found is None:
            found = {}
            for model in self.sellers["aws"].models:
                found.setdefault(_BEDROCK_VERSION.sub("", model.id.lower()), []).append(model)
            self._without_version = found
        return found.get(name, [])


class _Reading(NamedTuple):
    """One way to read a name: a seller's id (`""` for the maker's), the name there, and in words."""

    seller: str
    name: str
    why: str


def find_listed(names: ModelNames, name: str) -> Listed | None:
    """
    Return the model of the list that *name* means, None if there is none: see the rule above.

    Args:
        name: As a client writes it, at most 256 characters.
    """
    for reading in _readings(names, name):
        for spelled, note in _spellings(reading.name):
            if reading.seller:
                found = _sold_by(names, names.sellers.get(reading.seller), spelled)
            else:
                found = _of_maker(names, spelled)
            if found is not None:
                return Listed(found[0], found[1], f"{reading.why}{note}")
    return None


def nearest_names(names: ModelNames, name: str) -> list[str]:
    """Return the names of the list that look most like *name*, with their seller, the nearest first."""
    plain = _plain(name)
    wanted = plain.rpartition("/")[2]
    matcher = SequenceMatcher(b=wanted, autojunk=False)
    scores: dict[str, float] = {}
    seller = _seller_of(names, plain.partition("/")[0])
    for provider in names.providers:
        for model in provider.models:
            matcher.set_seq1(model.id.lower().rpartition("/")[2])
            if matcher.real_quick_ratio() < _NEAR or matcher.quick_ratio() < _NEAR:
                continue
            score = matcher.ratio()
            if score >= _NEAR:
                # Of equals, the seller that was named, then a maker, before the many that resell.
                own = 0.2 if seller == provider.id else 0.1 if provider.id in MAKERS else 0.0
                scores[f"{provider.id}/{model.id}"] = score + own
    return sorted(scores, key=lambda near: (-scores[near], near))[:NEAREST_MAX]


# --- Reading a name ----------------------------------------------------------------------------


def _plain(name: str) -> str:
    return re.sub(r"\s+", "-", name.strip().lower())


def _readings(names: ModelNames, name: str) -> Iterator[_Reading]:
    plain = _plain(name)
    if not plain:
        return
    if arn := _ARN.fullmatch(plain):
        if arn["kind"] in _ARN_KINDS and not _is_gov(arn["partition"] or "", arn["region"]):
            yield from _bedrock_readings(arn["name"], "the ARN of a Bedrock model")
        return
    path = _GOOGLE_URL.sub("", plain, count=1)
    if path.startswith(("projects/", "publishers/", "locations/", "models/")):
        plain = _GOOGLE_METHOD.sub("", path)
    if plain.startswith(("projects/", "publishers/", "locations/")):
        if vertex := _VERTEX.match(plain):
            yield _Reading("google", vertex["model"], "the path of a Vertex AI model")
        return  # Endpoints, tuned and deployed models: their path does not say of what.
    if plain.startswith(("models/", "tunedmodels/")):
        if plain.startswith("models/") and plain.count("/") == 1:
            yield _Reading("google", plain.removeprefix("models/"), "the path of a Gemini model")
        return
    if plain.startswith("ft:"):
        yield _Reading("openai", plain, "a fine-tuned model of OpenAI")
        return
    if _BEDROCK.fullmatch(plain):
        yield from _bedrock_readings(plain, "the id of a Bedrock model")
        return
    front, slash, rest = plain.partition("/")
    seller = _seller_of(names, front) if slash and rest else ""
    if not seller and ":" in front:
        # As clients of many providers write it: `openai:gpt-4o`, `google-vertex:gemini-2.5-flash`.
        front, _, rest = plain.partition(":")
        seller = _seller_of(names, front) if rest else ""
    if seller == "aws":
        yield from _aws_readings(rest, f"seller {front} in front")
    elif seller == "google":
        yield from (_Reading("google", part, f"seller {front} in front") for part in _google_names(rest))
    elif seller:
        if seller == "azure":
            rest = re.sub(r"\A(?:global|global-standard|global_standard)/", "", rest)
        yield _Reading(seller, rest, f"seller {front} in front")
    else:
        yield _Reading("", plain, "the model's maker")


def _aws_readings(rest: str, why: str) -> Iterator[_Reading]:
    if arn := _ARN.fullmatch(rest):
        if arn["kind"] in _ARN_KINDS and not _is_gov(arn["partition"] or "", arn["region"]):
            yield from _bedrock_readings(arn["name"], why)
        return
    *front, name = rest.split("/")
    for part in front:
        if part in _AWS_APIS or (_AWS_REGION.match(part) and not _is_gov(part)):
            continue
        return  # A commitment, GovCloud, or what we do not know.
    yield from _bedrock_readings(name, why)


def _bedrock_readings(name: str, why: str) -> Iterator[_Reading]:
    yield _Reading("aws", name, why)
    bedrock = _BEDROCK.fullmatch(name)
    if bedrock is None:
        return
    if bedrock["where"] is None:
        # Old models that the list has at their maker alone, with a rule for Bedrock's ids.
        if bedrock["maker"] == "anthropic":
            yield _Reading("anthropic", name, f"{why}, at its maker's price")
        return
    if bedrock["where"] != "global" and not _is_gov(bedrock["where"]):
        regional = f"{bedrock['maker']}.{bedrock['model']}"
        yield _Reading("aws", regional, f"{why}, at the price of a region")


def _google_names(rest: str) -> Iterator[str]:
    if vertex := _VERTEX.match(rest):
        yield vertex["model"]
    elif rest.startswith("models/"):
        yield rest.removeprefix("models/")
    elif rest.partition("/")[0] in ("google", "gemini", "anthropic", "publishers"):
        yield rest.partition("/")[2]
    else:
        yield rest


def _is_gov(*places: str) -> bool:
    return any("-gov" in place for place in places)


def _seller_of(names: ModelNames, front: str) -> str:
    """Return the id of the seller that *front* names, `""` for none."""
    if front in _SELLERS:
        return _SELLERS[front]
    for provider in names.providers:
        if provider.id in (front, front.replace("_", "-")):
            return str(provider.id)
    words = set(re.split(r"[-_. ]+", front))
    for provider in names.providers:
        match = provider.provider_match
        if match is None or not match.is_match(front):
            continue
        named = {word for text in _texts(match) for word in re.split(r"[-_. ]+", text)}
        if words - _SELLER_WORDS <= named and words & named:
            return str(provider.id)
    return ""


def _spellings(name: str) -> Iterator[tuple[str, str]]:
    """Yield *name* and the ways in which the list may spell it, each with a note for people."""
    seen = set()
    for spelled, note in _all_spellings(name):
        if spelled and spelled not in seen:
            seen.add(spelled)
            yield spelled, note


def _all_spellings(name: str) -> Iterator[tuple[str, str]]:
    names = [name]
    if "@" in name.lstrip("@"):
        # Vertex writes versions so; `@cf/…` is another thing.
        front, _, version = name.rpartition("@")
        if front:
            names.append(front if version in ("default", "latest") else f"{front}-{version}")
    if claude := _CLAUDE.match(names[-1]):
        version = claude["version"].replace(".", "-")
        names.append(f"{claude['before']}-{claude['family']}-{version}{claude['rest']}")
    for each in names:
        yield each, ""
        dashed = _COMPACT_DATE.sub(_dashed, each)
        yield dashed, ""
    for each in names:
        without = _DATE_END.sub("", each)
        if without != each:
            yield without, ", without the date, which the list does not have"
        if each.endswith("-latest"):
            yield each.removesuffix("-latest"), ", without -latest"


def _dashed(match: re.Match[str]) -> str:
    year, month, day = match.groups()
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return match[0]
    return f"-{year}-{month}-{day}"


# --- Finding a model ---------------------------------------------------------------------------


def _of_maker(names: ModelNames, name: str) -> tuple[Any, Any] | None:
    """Return the model of its maker: whom the list tells from the name, or the only one that lists it."""
    for provider in names.providers:
        if provider.model_match is not None and provider.model_match.is_match(name):
            found = _sold_by(names, provider, name)
            if found is not None:
                return found
            break
    makers = (names.sellers[maker] for maker in MAKERS if maker in names.sellers)
    listed = [
        found for maker in makers if (model := _model_of(names, maker, name)) and (found := (maker, model))
    ]
    return listed[0] if len(listed) == 1 else None


def _sold_by(names: ModelNames, provider: Any, name: str) -> tuple[Any, Any] | None:
    """Return the model *name* of a seller; of one that also sells other makers' at their price, of these."""
    if provider is None:
        return None
    model = _model_of(names, provider, name)
    for maker in provider.fallback_model_providers or () if model is None else ():
        model = _model_of(names, names.sellers.get(maker), name)
        if model is not None:
            break
    if model is None and provider.id == "aws":
        model = _without_version(names, name)
    return None if model is None else (provider, model)


def _model_of(names: ModelNames, provider: Any, name: str) -> Any:
    if provider is None:
        return None
    index = names.index(provider.id)
    for model in index.candidates(name):
        if model.match.is_match(name) and _matches(model.match, name):
            return model
    # The list's own name for it, which its rules may not have.
    return index.of_id(name)


def _without_version(names: ModelNames, name: str) -> Any:
    """Return the only model of Bedrock whose id is *name* but for its version."""
    found = names.without_version(_BEDROCK_VERSION.sub("", name))
    return found[0] if len(found) == 1 else None


def _matches(match: Any, name: str) -> bool:
    """
    Return whether *match*, a matching rule of the list, means *name*, and not another model that begins alike.

    The list's rules are wide (`claude-opus-4-1` is the beginning of `claude-opus-4-10`): what is beyond the text of a
    rule must be a version of the same model.
    """
    kind = type(match).__name__
    if kind == "ClauseOr":
        return any(_matches(part, name) for part in match.or_)
    if kind == "ClauseAnd":
        # An expression beside a text only excludes names (`…-tts`).
        texts = [part for part in match.and_ if type(part).__name__ != "ClauseRegex"]
        return bool(match.is_match(name)) and any(_matches(part, name) for part in texts or match.and_)
    if not match.is_match(name):
        return False
    if kind in ("ClauseEquals", "ClauseRegex"):
        return True
    if kind == "ClauseStartsWith":
        return _goes_on(match.starts_with.lower(), name)
    if kind == "ClauseEndsWith":
        return _begins_at_a_boundary(name.removesuffix(match.ends_with.lower()))
    if kind == "ClauseContains":
        text = match.contains.lower()
        before, _, after = name.rpartition(text)
        return _begins_at_a_boundary(before) and _goes_on(text, text + after)
    return False  # A rule of a later release: no model, rather than a wrong one.


def _begins_at_a_boundary(before: str) -> bool:
    """Return whether what stands before a model's name is the place or maker of a Bedrock id, or nothing."""
    if not before:
        return True
    return _PLACE.fullmatch(before) is not None


def _goes_on(beginning: str, name: str) -> bool:
    """Return whether *name*, which starts with *beginning*, only adds a version to it."""
    tail = name[len(beginning) :]
    if not tail:
        return True
    if beginning.startswith("ft:"):
        return _FINE_TUNED_TAIL.match(tail) is not None
    if beginning.endswith(".ft-"):
        return True
    if beginning[-1].isalnum() and tail[0].isalnum():
        # A rule may stop inside a date (`claude-sonnet-4-2025`) or a build (`gemini-2.0-flash-0`), and else names no
        # word.
        word = re.search(r"-(20\d*|0\d?)\Z", beginning)
        if word is None:
            return False
        return _TAIL.match("-" + word[1] + tail) is not None
    if not beginning[-1].isalnum():
        tail = beginning[-1] + tail
    return _TAIL.match(tail) is not None


def _texts(match: Any) -> Iterator[str]:
    """Yield the texts of a matching rule's parts."""
    for part in getattr(match, "or_", None) or getattr(match, "and_", None) or (match,):
        if part is not match:
            yield from _texts(part)
            continue
        for field in ("equals", "starts_with", "ends_with", "contains"):
            if text := getattr(match, field, None):
                yield str(text).lower()
