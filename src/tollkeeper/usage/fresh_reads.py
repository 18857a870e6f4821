"""
What a read of the usage store needs beside it, so that its answer has every event acknowledged before the call.

Commits under way are waited for first (`Delivery.booked`). Then the first that applies:

1. Few records of the account are pending, none is a correction, and no batch is on its way: the read takes them along.
2. All that is pending is delivered in time (at once if nothing is pending), and the store is read.
3. The store is read, and the answer is not complete.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from tollkeeper.domain.events import Record
from tollkeeper.ledger.delivery import Delivery
from tollkeeper.usage.freshness import Freshness

T = TypeVar("T")

PENDING_TRIES: Final = 3
"""How often pending records are given to the store, each time because a batch moved meanwhile."""


class FreshAnswer(NamedTuple, Generic[T]):
    """
    An answer of the usage store, which has all acknowledged events if it is *complete*.

    Attributes:
        behind_s: How many seconds ago the oldest event was acknowledged that may be missing, rounded up; else 0.
    """

    answer: T
    complete: bool
    behind_s: int


class FreshReads:
    """Blocking. Any thread may call."""

    def __init__(self, freshness: Freshness, delivery: Delivery) -> None:
        self._freshness = freshness
        self._delivery = delivery

    def read(
        self, account_id: str | None, ask: Callable[[Sequence[Record]], T], *, booked: bool
    ) -> FreshAnswer[T]:
        """
        Return what *ask* finds about an account (None: all).

        Args:
            ask: Reads the store, with records that it lacks. May be called several times.
            booked: Whether commits under way came in time.

        Raises:
            Unavailable: The usage store cannot be read.
        """
        if booked and (found := self._with_pending(account_id, ask)) is not None:
            return FreshAnswer(found, self._freshness.lacks_nothing(), 0)
        delivered = booked and self._delivery.delivered(account_id)
        complete = delivered and self._freshness.lacks_nothing()
        # Before the query: what is delivered meanwhile makes the answer better than it says.
        behind_s = 0 if complete else self._freshness.behind_s()
        return FreshAnswer(ask(()), complete, behind_s)

    def _with_pending(self, account_id: str | None, ask: Callable[[Sequence[Record]], T]) -> T | None:
        if not self._freshness.is_pending(account_id):
            return None
        for _ in range(PENDING_TRIES):
            pending = self._freshness.pending_records(account_id)
            if pending is None:
                return None
            found = ask(pending.records)
            if self._freshness.still_pending(pending):
                return found
        return None
