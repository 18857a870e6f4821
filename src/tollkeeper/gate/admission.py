"""The results of the gate: an admission with the amounts that it holds, or one counted call."""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

from tollkeeper.domain.catalog import Route
from tollkeeper.domain.decisions import UnitAmounts
from tollkeeper.domain.events import Record
from tollkeeper.domain.matching import NO_TAGS, Facts
from tollkeeper.domain.meter import PriceOf, admitted_record
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.gate.compiled_keys import CompiledKey
from tollkeeper.gate.counter import Counter, Taken
from tollkeeper.gate.matched import Matched


class Charge(NamedTuple):
    """The amount that one settled request adds to one counter of the ledger, in the counter's unit."""

    account_id: str
    counter_id: str
    period_start_us: int
    amount: int


class Moved(NamedTuple):
    """What a settlement did that was matched otherwise than its hold: the counters it left, what it took elsewhere."""

    left: frozenset[str]
    joined: list[Taken]


class CountedCall(NamedTuple):
    """One call that a rate limit counted, for `KeylessLimits.give_back`."""

    counter: Counter
    mark: int


class Admission:
    """
    The gate's yes, with its hold. Settle or void it once; dropped without an ending, it is voided.

    Attributes:
        id: UUIDv7; the id of the hold and of the meter event that settling it makes.
        expires_at_us: When a hold made over HTTP expires; in-process holds die with the admission.
        durable: Whether the hold was committed to the ledger.
        matched: What its counters depend on, of its key and route; None where they do not depend on the request.
        moved: Where its settlement counted, when its model or tags were others; None when they were not.
    """

    __slots__ = (
        "__weakref__",
        "_abandoned",
        "amounts",
        "at_us",
        "compiled_key",
        "durable",
        "expected",
        "expires_at_us",
        "fingerprint",
        "id",
        "matched",
        "method",
        "moved",
        "path",
        "route",
        "state",
        "tags",
        "taken",
    )

    def __init__(
        self,
        abandoned: deque[tuple[CompiledKey, list[Taken]]],
        id_: str,
        compiled_key: CompiledKey,
        route: Route,
        method: str,
        amounts: UnitAmounts,
        expected: Usage,
        taken: list[Taken],
        at_us: int,
    ) -> None:
        """
        Make an admission. Called by the gate and by those who restore its holds.

        Args:
            abandoned: Where it leaves what it has taken when it is dropped without an ending.
        """
        self._abandoned = abandoned
        self.id = id_
        self.compiled_key = compiled_key
        self.route = route
        self.method = method
        self.path = route.path
        self.amounts = amounts
        self.expected = expected
        self.taken = taken
        self.at_us = at_us
        self.expires_at_us = 0
        self.durable = False
        self.fingerprint = ""
        self.tags = NO_TAGS
        self.matched: Matched | None = None
        self.moved: Moved | None = None
        self.state: Literal["open", "ending", "ended"] = "open"

    @property
    def account_id(self) -> str:
        return self.compiled_key.account_id

    @property
    def key_id(self) -> str:
        return self.compiled_key.key_id

    @property
    def facts(self) -> Facts:
        """What its counters were found by."""
        return Facts(self.expected.model, self.tags, self.route.event_kind, self.method, self.path)

    def record(self, price_of: PriceOf, outcome: Outcome, received_at_us: int) -> Record:
        """Return the priced record of this request with its *outcome*."""
        compiled_key = self.compiled_key
        return admitted_record(
            price_of,
            compiled_key.account_id,
            compiled_key.project_id,
            compiled_key.key_id,
            self.at_us,
            received_at_us,
            self.id,
            self.route,
            self.method,
            self.path,
            self.amounts.nanos,
            self.expected.model,
            self.tags,
            outcome,
            compiled_key.plan_slug,
            self.expected.variant,
        )

    def __del__(self) -> None:
        # Runs wherever the last reference goes, perhaps inside the gate's lock: only leave a note.
        if self.state == "open" and not self.durable:
            self._abandoned.append((self.compiled_key, self.taken))
