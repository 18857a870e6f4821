"""
The credit balance of an account: grants that are drawn on in a fixed order, and an overdraft.

Invariant of every book: `spent = Σ (amount - remaining) + overdraft`, with `0 ≤ remaining ≤ amount` for each
grant and `overdraft ≥ 0`. Drawing and refunding are pure: they return a new book.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

from tollkeeper.errors import InvariantBroken


class GrantBalance(NamedTuple):
    """The remainder of one grant. Its fields are in the order in which grants are spent."""

    priority: int
    expires_at: datetime
    """`FAR_FUTURE` for a grant that never expires."""
    grant_id: str
    amount_nanos: int
    remaining_nanos: int


class CreditBook(NamedTuple):
    """All grants of one account, in the order of spending, and the amount spent beyond them."""

    grants: tuple[GrantBalance, ...] = ()
    overdraft_nanos: int = 0

    @property
    def spent_nanos(self) -> int:
        return sum(grant.amount_nanos - grant.remaining_nanos for grant in self.grants) + self.overdraft_nanos

    def balance_nanos(self, now: datetime) -> int:
        """Return what may still be spent at *now*; negative while the account is overdrawn."""
        return sum(g.remaining_nanos for g in self.grants if g.expires_at > now) - self.overdraft_nanos

    def next_expiry(self, now: datetime) -> datetime | None:
        """Return when the balance next falls by itself, or None."""
        left = (g.expires_at for g in self.grants if g.expires_at > now and g.remaining_nanos)
        return min(left, default=None)

    def last_expiry(self, now: datetime) -> datetime | None:
        """Return when the balance last fell by itself, or None; a clock set back before it raises it again."""
        lost = (g.expires_at for g in self.grants if g.expires_at <= now and g.remaining_nanos)
        return max(lost, default=None)

    def posted(self, grant: GrantBalance) -> CreditBook:
        """Return the book with a new grant, which first pays back what is overdrawn."""
        repaid = min(self.overdraft_nanos, grant.remaining_nanos)
        grant = grant._replace(remaining_nanos=grant.remaining_nanos - repaid)
        return CreditBook(tuple(sorted((*self.grants, grant))), self.overdraft_nanos - repaid)

    def charged(self, amount_nanos: int, now: datetime) -> CreditBook:
        """
        Return the book after *amount_nanos* were spent at *now*, or given back when negative.

        Spending beyond the unexpired grants becomes overdraft. A refund pays back the overdraft first,
        then refills grants in the reverse of the drawing order.

        Raises:
            InvariantBroken: More would be given back than was ever spent.
        """
        book = self._drawn(amount_nanos, now) if amount_nanos >= 0 else self._refunded(-amount_nanos)
        if book.spent_nanos != self.spent_nanos + amount_nanos:
            raise InvariantBroken(
                "a charge does not balance", before=self, after=book, amount_nanos=amount_nanos
            )
        return book

    def _drawn(self, amount_nanos: int, now: datetime) -> CreditBook:
        grants = []
        for grant in self.grants:
            if amount_nanos and grant.remaining_nanos and grant.expires_at > now:
                drawn = min(amount_nanos, grant.remaining_nanos)
                amount_nanos -= drawn
                grant = grant._replace(remaining_nanos=grant.remaining_nanos - drawn)
            grants.append(grant)
        return CreditBook(tuple(grants), self.overdraft_nanos + amount_nanos)

    def _refunded(self, amount_nanos: int) -> CreditBook:
        repaid = min(self.overdraft_nanos, amount_nanos)
        amount_nanos -= repaid
        grants = []
        for grant in reversed(self.grants):
            refilled = min(amount_nanos, grant.amount_nanos - grant.remaining_nanos)
            amount_nanos -= refilled
            grants.append(grant._replace(remaining_nanos=grant.remaining_nanos + refilled))
        return CreditBook(tuple(reversed(grants)), self.overdraft_nanos - repaid)


def book_of(grants: Iterable[GrantBalance], overdraft_nanos: int) -> CreditBook:
    """Return the book of stored grants, in drawing order."""
    return CreditBook(tuple(sorted(grants)), overdraft_nanos)
