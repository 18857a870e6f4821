"""A value of the wrong type is refused in words that a caller of any language knows."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
import pytest

from tollkeeper.domain.requirements import requirement


class Body(msgspec.Struct):
    """One field of each kind that entries, settings and requests have."""

    number: Annotated[int, msgspec.Meta(ge=1, le=9)] | None = None
    text: Annotated[str, msgspec.Meta(min_length=1)] = "x"
    flag: bool = False
    share: float = 0.0
    at: datetime | None = None
    names: list[str] = []
    tags: dict[str, str] = {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"number": "1"}, "must be a whole number, not text"),
        ({"number": 0}, "must be a whole number >= 1"),
        ({"number": 10}, "must be a whole number <= 9"),
        ({"number": 1.5}, "must be a whole number, without a fraction or exponent"),
        ({"text": ""}, "must be text of length >= 1"),
        ({"text": None}, "must be text, not null"),
        ({"flag": 1}, "must be a boolean, not a whole number"),
        ({"share": "much"}, "must be a number, not text"),
        ({"at": 5}, "must be a date-time such as 2026-01-31T09:30:00Z, not a whole number"),
        ({"names": "a"}, "must be an array, not text"),
        ({"names": [[]]}, "must be text, not an array"),
        ({"tags": {"a": 1}}, "must be text, not a whole number"),
        ([], "must be an object, not an array"),
    ],
)
def test_it_says_what_must_be_sent_and_what_was(given: Any, says: str) -> None:
    with pytest.raises(msgspec.ValidationError) as caught:
        msgspec.convert(given, Body)
    assert requirement(str(caught.value)) == says


def test_another_message_is_kept() -> None:
    """An upgrade of msgspec may bring one that is not known here: better its own words than none."""
    assert requirement("Invalid `thing` - at `$.at`") == "Invalid thing"
