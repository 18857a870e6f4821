"""
Which models of a seller may mean a name: an index over the matching rules of the price list.

A rule costs a call per part, and the list has thousands of them, so a batch of names that are all new took a
millisecond for each name. The index finds the few rules of which one necessary part holds; whether such a rule holds is
asked of the rule itself. So the index changes what a look-up costs, never what it finds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


class ModelIndex:
    """
    The models of one seller, by the texts of their rules.

    Args:
        models: The `ModelInfo`s of genai-prices, in the order of the list.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        self._models = models
        self._equal: dict[str, list[int]] = {}
        self._first: dict[str, list[int]] = {}
        self._last: dict[str, list[int]] = {}
        self._within: list[tuple[str, int]] = []
        self._patterns: list[tuple[re.Pattern[str], int]] = []
        self._always: list[int] = []
        self._by_id: dict[str, Any] = {}
        for place, model in enumerate(models):
            self._add(model.match, place)
            self._by_id.setdefault(model.id.lower(), model)
        self._first_lengths = sorted({len(text) for text in self._first})
        self._last_lengths = sorted({len(text) for text in self._last})

    def of_id(self, id_: str) -> Any:
        """Return the first model with this id, in small letters; None if there is none."""
        return self._by_id.get(id_)

    def candidates(self, name: str) -> list[Any]:
        """Return the models whose rules may match *name*, in the order of the list: all that do, and few others."""
        text = name.lower()
        places = set(self._always)
        places.update(self._equal.get(text, ()))
        for length in self._first_lengths:
            places.update(self._first.get(text[:length], ()))
        for length in self._last_lengths:
            places.update(self._last.get(text[-length:], ()))
        places.update(place for part, place in self._within if part in text)
        # The list's expressions see the name as it is.
        places.update(place for pattern, place in self._patterns if pattern.search(name))
        return [self._models[place] for place in sorted(places)]

    def _add(self, match: Any, place: int) -> None:
        """Add a rule of the model at *place*, under parts of which one holds whenever the rule does."""
        kind = type(match).__name__
        if kind == "ClauseOr":
            for part in match.or_:
                self._add(part, place)
        elif kind == "ClauseAnd" and match.and_:
            # All of them hold then, so any one will do.
            self._add(match.and_[0], place)
        elif kind == "ClauseEquals":
            self._equal.setdefault(match.equals.lower(), []).append(place)
        elif kind == "ClauseStartsWith" and match.starts_with:
            self._first.setdefault(match.starts_with.lower(), []).append(place)
        elif kind == "ClauseEndsWith" and match.ends_with:
            self._last.setdefault(match.ends_with.lower(), []).append(place)
        elif kind == "ClauseContains":
            self._within.append((match.contains.lower(), place))
        elif kind == "ClauseRegex":
            self._patterns.append((re.compile(match.regex), place))
        else:
            self._always.append(place)  # A rule of a later release.
