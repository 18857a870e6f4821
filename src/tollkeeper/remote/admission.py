"""What the calls of one request return: its admission, and its booking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from tollkeeper.domain.decisions import Amounts
from tollkeeper.domain.requests import Usage


class Admission:
    """
    The gate's yes, with its hold on the server. Settle or void it once; dropped without an ending, it is voided.

    Attributes:
        id: The id of the hold and of the meter event that settling it makes.
        path: The template of its route.
        amounts: What it holds.
        expires_at_us: When the server voids it by itself. Settled later, it is booked all the same.
        headers: Of the answer, in the dialect of the middleware.
        asked: How its caller asked, for the words of a refusal: api key, `answer_as`, headers of its request.
        refused: The last refusal of what it was to hold.
    """

    __slots__ = (
        "__weakref__",
        "_dropped",
        "account_id",
        "amounts",
        "asked",
        "expected",
        "expires_at_us",
        "headers",
        "id",
        "key_id",
        "method",
        "path",
        "project",
        "refused",
        "state",
        "tags",
    )

    def __init__(
        self,
        dropped: SimpleQueue[Any],
        *,
        id: str,
        account_id: str,
        key_id: str,
        project: str | None,
        method: str,
        path: str,
        amounts: Amounts,
        expected: Usage,
        tags: Mapping[str, str],
        expires_at_us: int,
        headers: Sequence[tuple[str, str]],
    ) -> None:
        self._dropped = dropped
        self.id = id
        self.account_id = account_id
        self.key_id = key_id
        self.project = project
        self.method = method
        self.path = path
        self.amounts = amounts
        self.expected = expected
        self.tags = tags
        self.expires_at_us = expires_at_us
        self.headers = headers
        self.asked: tuple[str, str, Mapping[str, str]] = ("", "", {})
        self.refused: Any = None
        self.state: Literal["open", "ended"] = "open"

    def __del__(self) -> None:
        # Runs wherever the last reference goes: this queue may be put to from there.
        if self.state == "open":
            self._dropped.put((self.id, self.account_id))


class Settled(NamedTuple):
    """
    What was booked for one request, durably.

    Attributes:
        id: Of its event: that of the admission.
        quantities: Name → micro-units.
        beyond_hold_nanos: The cost beyond the hold; it may have overdrawn a budget or balance.
        replayed: Whether this answers a repeat: it was booked before.
        headers: The dialect's headers with the usage.
    """

    id: str
    account_id: str
    cost_nanos: int
    cost_state: str
    tokens: int
    credits: int
    quantities: Mapping[str, int]
    beyond_hold_nanos: int
    replayed: bool
    headers: Mapping[str, str]
