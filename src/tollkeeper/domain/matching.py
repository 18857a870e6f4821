"""
Matching: which requests a limit or budget counts, and which of them it counts apart.

A `Match` says which: by model, tags, kind and route. What is left out matches all. `per` says what has a counter of
its own: a key, a project, the account; and each value of a tag (`tag.user`) or of the model.

A pattern is text in which `*` stands for any characters, none included; everything else stands for itself. Models are
compared without regard to case (of ASCII letters) and to blanks around them, as the price list does. All of it is
decided from `Facts` alone, which a request has before it is admitted and a record has after it: gate, ledger and usage
store agree. `adapters/clickhouse/matching.py` is the twin in SQL, `meter/charges.py` the one for columns; property
tests hold them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Final, NamedTuple

import msgspec

from tollkeeper.domain.route_templates import template_objection

PATTERNS_MAX: Final = 64
"""Patterns of one list."""
TAG_NAME_CHARS_MAX: Final = 64
"""As a tag of an event."""
PATTERN_CHARS_MAX: Final = 512
OWNERS: Final = ("subscription", "key", "project", "account")
"""What a counter may belong to; at most one of them."""
VALUES_PER_MAX: Final = 4
"""Tags, and the model, that one limit may count apart."""
TAG: Final = "tag."
MODEL: Final = "model"
VALUE_MARK: Final = "#"
"""Between a counter's id and the values that it counts. No id of the catalog contains it."""
NO_TAGS: Final[Mapping[str, str]] = {}
_PLAIN_CHARS_MAX: Final = 32
_DIGEST_BYTES: Final = 16
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:@+-/")
_ASCII_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}

Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=PATTERN_CHARS_MAX)]
Patterns = Annotated[list[Pattern], msgspec.Meta(max_length=PATTERNS_MAX)]


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    Which requests a limit or budget counts: those for which every field that is given holds.

    `models`, `kinds` and `routes` hold when one of their patterns does, each of `tags` must hold.
    """

    models: Patterns = []
    """Patterns of model names, e.g. `gpt-4o*`. A request that names no model matches none of them."""
    tags: Annotated[
        dict[
            Annotated[str, msgspec.Meta(min_length=1, max_length=TAG_NAME_CHARS_MAX)],
            Annotated[str, msgspec.Meta(max_length=PATTERN_CHARS_MAX)],
        ],
        msgspec.Meta(max_length=16),
    ] = {}
    """Tag → pattern of its value. `*` matches any value, but not that there is none; `""` that there is none."""
    kinds: Patterns = []
    """Patterns of event kinds, e.g. `scan`."""
    routes: Patterns = []
    """Ids of routes, or `METHOD /path` with patterns, e.g. `POST /v1/chat*`, `* /v1/files/*`."""

    def __bool__(self) -> bool:
        return bool(self.models or self.tags or self.kinds or self.routes)


class Facts(NamedTuple):
    """What matching knows of a request or record: *route* is the path under which it is counted."""

    model: str
    tags: Mapping[str, str]
    kind: str
    method: str
    route: str


class Conditions(NamedTuple):
    """A `Match` in its one form, hashable: lists are sorted, route ids are patterns, models are folded."""

    models: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    kinds: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The conditions as one text: two that differ have different ones."""
        return msgspec.json.encode(self).decode()


class Per(NamedTuple):
    """A `per`, taken apart: who owns the counters (None: not said), and what is counted apart within."""

    owner: str | None
    values: tuple[str, ...]


# --- From the catalog --------------------------------------------------------------------------


def parse_per(per: str | Sequence[str]) -> Per:
    """
    Return what *per* says; its values are sorted.

    Raises:
        ValueError: A part is unknown or there twice, or there are two owners.
    """
    parts = [per] if isinstance(per, str) else list(per)
    owners = [part for part in parts if part in OWNERS]
    values = sorted(part for part in parts if part not in OWNERS)
    for part in values:
        name = part.removeprefix(TAG)
        if part != MODEL and (part == name or not 0 < len(name) <= TAG_NAME_CHARS_MAX):
            raise ValueError(
                f"{part[:80]!r} is none of {', '.join(OWNERS)}, model, or tag.NAME such as tag.user"
            )
    if len(set(parts)) < len(parts):
        raise ValueError("each part of per is there once")
    if len(owners) > 1:
        raise ValueError(f"{' and '.join(owners)} are two owners: name one of them")
    if len(values) > VALUES_PER_MAX:
        raise ValueError(f"per has at most {VALUES_PER_MAX} of model and tags")
    return Per(owners[0] if owners else None, tuple(values))


def check_routes(patterns: Iterable[str]) -> None:
    """Raise ValueError unless each of *patterns* is `METHOD /path`, or may be the id of a route."""
    for pattern in patterns:
        method, blank, path = pattern.partition(" ")
        if blank and not (method and path.startswith(("/", "*"))):
            raise ValueError(
                f"{pattern[:80]!r} is neither the id of a route nor METHOD /path such as POST /v1/chat*"
            )
        if objection := template_objection(path):
            raise ValueError(objection)


def is_route_id(pattern: str) -> bool:
    """Return whether a pattern of routes is the id of one."""
    return " " not in pattern


def conditions_of(
    match: Match | None, routes: Mapping[str, tuple[str, str]] | None = None
) -> Conditions | None:
    """
    Return *match* in its one form; None when it matches everything.

    Args:
        routes: Method and path of each route, by its id. An id that is not there matches nothing.
    """
    if not match:
        return None
    known = routes or {}
    return Conditions(
        models=tuple(sorted({folded(model) for model in match.models})),
        tags=tuple(sorted(match.tags.items())),
        kinds=tuple(sorted(set(match.kinds))),
        routes=tuple(sorted({" ".join(known[route]) if route in known else route for route in match.routes})),
    )


def described(conditions: Conditions | None, values: Sequence[tuple[str, str]] = ()) -> str:
    """Return for people which requests are meant, e.g. `model gpt-4o*, tag.user = u1`; "" for all."""
    parts = []
    if conditions is not None:
        for name, patterns in (
            ("model", conditions.models),
            ("kind", conditions.kinds),
            ("route", conditions.routes),
        ):
            if patterns:
                parts.append(f"{name} {' or '.join(patterns)}")
        parts += [
            f"tag.{name} {pattern}" if pattern else f"no tag.{name}" for name, pattern in conditions.tags
        ]
    parts += [f"{name} = {value}" if value else f"no {name}" for name, value in values]
    return ", ".join(parts)


# --- Deciding ----------------------------------------------------------------------------------


def folded(model: str) -> str:
    """Return a model's name as it is compared: in lower case, without blanks around it."""
    model = model.strip(" ")
    return model.lower() if model.isascii() else model.translate(_ASCII_LOWER)


class Glob:
    """One pattern, compiled. It takes time that is linear in the text, whatever the pattern."""

    __slots__ = ("_first", "_last", "_middle", "_pattern")

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        first, *rest = pattern.split("*")
        self._first = first
        self._last = rest.pop() if rest else None
        self._middle = [part for part in rest if part]

    def matches(self, text: str) -> bool:
        """Return whether the whole of *text* matches."""
        if self._last is None:
            return text == self._pattern
        if not text.startswith(self._first):
            return False
        place = len(self._first)
        for part in self._middle:
            place = text.find(part, place)
            if place < 0:
                return False
            place += len(part)
        return len(text) - len(self._last) >= place and text.endswith(self._last)


class Matcher:
    """Conditions, compiled: see `matcher_of`."""

    __slots__ = ("_kinds", "_models", "_routes", "_tags")

    def __init__(self, conditions: Conditions) -> None:
        self._models = [Glob(pattern) for pattern in conditions.models]
        self._tags = [(name, Glob(pattern) if pattern else None) for name, pattern in conditions.tags]
        self._kinds = [Glob(pattern) for pattern in conditions.kinds]
        self._routes = [Glob(pattern) for pattern in conditions.routes]

    def matches(self, facts: Facts) -> bool:
        """Return whether a request or record is one of those that are meant."""
        model, tags, kind, method, route = facts
        return self.matches_labels(model, kind, method, route) and all(
            self.matches_tag(name, tags.get(name, "")) for name, _ in self._tags
        )

    def matches_labels(self, model: str, kind: str, method: str, route: str) -> bool:
        """Return whether all but the tags matches."""
        return (
            (not self._models or self._is_model(model))
            and (not self._kinds or any(glob.matches(kind) for glob in self._kinds))
            and (not self._routes or self._is_route(f"{method} {route}"))
        )

    def matches_tag(self, tag: str, value: str) -> bool:
        """Return whether *value* of a tag matches what is asked of that tag; "" stands for none."""
        for name, glob in self._tags:
            if name == tag:
                return not value if glob is None else bool(value) and glob.matches(value)
        return True

    def names(self, field: str, text: str) -> bool:
        """Return whether a pattern of *field* (`model`, `kind`, `method`, `route`) may depend on *text*."""
        if field == "model":
            return self._is_model(text)
        if field == "kind":
            return any(glob.matches(text) for glob in self._kinds)
        return field in ("method", "route") and bool(self._routes)

    def _is_model(self, model: str) -> bool:
        name = folded(model)
        return bool(name) and any(glob.matches(name) for glob in self._models)

    def _is_route(self, called: str) -> bool:
        return any(glob.matches(called) for glob in self._routes)


@lru_cache(maxsize=4096)
def matcher_of(conditions: Conditions) -> Matcher:
    """Return *conditions* compiled."""
    return Matcher(conditions)


def value_of(per: str, facts: Facts) -> str:
    """Return the value of one part of `per` (`model`, `tag.NAME`) of a request or record; "" for none."""
    return folded(facts.model) if per == MODEL else facts.tags.get(per[len(TAG) :], "")


def values_of(per: Sequence[str], facts: Facts) -> tuple[str, ...]:
    """Return the value of each part of *per*: `model` or `tag.NAME`. Without one, it is ""."""
    return tuple(value_of(part, facts) for part in per)


def counter_of_values(counter_id: str, values: Sequence[str]) -> str:
    """
    Return the id of the counter of *values* within the one of *counter_id*.

    At most 34 characters longer. Values that are short and plain can be read in it; of others it has a digest.
    """
    text = VALUE_MARK.join(values)
    if len(text) > _PLAIN_CHARS_MAX or not all(_PLAIN.issuperset(value) for value in values):
        text = "~" + blake2b(msgspec.json.encode(values), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{counter_id}{VALUE_MARK}{text}"


def scope_counter_of(counter_id: str) -> str:
    """Return the id of the limit's or budget's own counter, without the values that this one counts."""
    return counter_id.partition(VALUE_MARK)[0]


# --- Allow-lists -------------------------------------------------------------------------------


class ModelList:
    """The models that a key or plan may use, compiled."""

    __slots__ = ("_globs", "patterns")

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(sorted({folded(pattern) for pattern in patterns}))
        self._globs = [Glob(pattern) for pattern in self.patterns]

    def allows(self, model: str) -> bool:
        """Return whether *model* may be used; "" may not."""
        name = folded(model)
        return bool(name) and any(glob.matches(name) for glob in self._globs)


def within(patterns: Iterable[str], others: Iterable[str]) -> bool:
    """
    Return whether every model of *patterns* is one of *others*, pattern by pattern.

    A pattern is within another that matches it as text: its `*` is matched by a `*` only.
    """
    globs = [Glob(folded(other)) for other in others]
    return all(any(glob.matches(folded(pattern)) for glob in globs) for pattern in patterns)
