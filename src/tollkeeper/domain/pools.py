"""
The credit balance of an account: grants that are drawn on in a fixed order, an overdraft, and a surplus.

Invariants of every book:

* `spent = Σ (amount - remaining) + overdraft - surplus`. Spent is negative where more was given back than was spent.
* `0 ≤ remaining ≤ amount` for each grant; a revoked grant has both 0.
* `overdraft ≥ 0` and `surplus ≥ 0`, and one of them is 0.

The order of drawing: the surplus, the grants by priority, expiry and id, the overdraft. Money that is given back takes
the opposite way: it pays the overdraft, refills the grants from the last one on, and the rest is surplus, which never
expires. A grant pays for requests that were made before it expired, and is refilled by these alone.

Everything here is pure: it returns a new book.
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
    """What it adds to the balance: 0 once it is revoked."""
    remaining_nanos: int
    revoked_at: datetime | None = None


class CreditBook(NamedTuple):
    """
    All grants of one account, in the order of spending, the amount spent beyond them, and the amount given back beyond
    what was spent.
    """

    grants: tuple[GrantBalance, ...] = ()
    overdraft_nanos: int = 0
    surplus_nanos: int = 0

    @property
    def spent_nanos(self) -> int:
        """What was spent less what was given back."""
        drawn = sum(grant.amount_nanos - grant.remaining_nanos for grant in self.grants)
        return drawn + self.overdraft_nanos - self.surplus_nanos

    @property
    def expiries(self) -> list[datetime]:
        """When grants expire, ascending, each instant once."""
        return sorted({grant.expires_at for grant in self.grants})

    def grant(self, grant_id: str) -> GrantBalance | None:
        """Return what is left of one grant; None when it is not on the balance."""
        return next((grant for grant in self.grants if grant.grant_id == grant_id), None)

    def balance_nanos(self, now: datetime) -> int:
        """Return what may still be spent at *now*; negative while the account is overdrawn."""
        left = sum(g.remaining_nanos for g in self.grants if g.expires_at > now)
        return left + self.surplus_nanos - self.overdraft_nanos

    def posted(self, grant: GrantBalance) -> CreditBook:
        """Return the book with a new grant, which first pays back what is overdrawn."""
        repaid = min(self.overdraft_nanos, grant.remaining_nanos)
        grant = grant._replace(remaining_nanos=grant.remaining_nanos - repaid)
        return self._replace(
            grants=tuple(sorted((*self.grants, grant))), overdraft_nanos=self.overdraft_nanos - repaid
        )

    def revoked(self, grant_id: str, now: datetime) -> CreditBook:
        """
        Return the book after a grant was revoked at *now*: as if it had never been given.

        What is left of it goes. What was spent of it is drawn again on the rest of the book; beyond that it is
        overdraft. Nothing is spent or given back by this. A repeat returns the same book.

        Raises:
            KeyError: The grant is not on the balance.
        """
        grant = self.grant(grant_id)
        if grant is None:
            raise KeyError(grant_id)
        if grant.revoked_at is not None:
            return self
        gone = grant._replace(amount_nanos=0, remaining_nanos=0, revoked_at=now)
        grants = tuple(gone if other is grant else other for other in self.grants)
        book = self._replace(grants=grants)._drawn(grant.amount_nanos - grant.remaining_nanos, now)
        self._check(book, 0)
        return book

    def charged(self, amount_nanos: int, at: datetime) -> CreditBook:
        """
        Return the book after *amount_nanos* were spent by a request of *at*, or given back when negative.

        The module's docstring has the order. Grants that had expired at *at* are neither drawn on nor refilled.
        """
        book = self._drawn(amount_nanos, at) if amount_nanos >= 0 else self._given_back(-amount_nanos, at)
        self._check(book, amount_nanos)
        return book

    def _check(self, book: CreditBook, amount_nanos: int) -> None:
        """Raise `InvariantBroken` unless *book* is this one after *amount_nanos* were spent."""
        if book.spent_nanos != self.spent_nanos + amount_nanos or (
            book.overdraft_nanos and book.surplus_nanos
        ):
            raise InvariantBroken(
                "a charge does not balance", before=self, after=book, amount_nanos=amount_nanos
            )

    def _drawn(self, amount_nanos: int, at: datetime) -> CreditBook:
        of_surplus = min(amount_nanos, self.surplus_nanos)
        amount_nanos -= of_surplus
        grants = []
        for grant in self.grants:
            if amount_nanos and grant.remaining_nanos and grant.expires_at > at:
                drawn = min(amount_nanos, grant.remaining_nanos)
                amount_nanos -= drawn
                grant = grant._replace(remaining_nanos=grant.remaining_nanos - drawn)
            grants.append(grant)
        return CreditBook(tuple(grants), self.overdraft_nanos + amount_nanos, self.surplus_nanos - of_surplus)

    def _given_back(self, amount_nanos: int, at: datetime) -> CreditBook:
        repaid = min(self.overdraft_nanos, amount_nanos)
        amount_nanos -= repaid
        grants = []
        for grant in reversed(self.grants):
            if grant.expires_at > at:
                refilled = min(amount_nanos, grant.amount_nanos - grant.remaining_nanos)
                amount_nanos -= refilled
                grant = grant._replace(remaining_nanos=grant.remaining_nanos + refilled)
            grants.append(grant)
        return CreditBook(
            tuple(reversed(grants)), self.overdraft_nanos - repaid, self.surplus_nanos + amount_nanos
        )


def book_of(grants: Iterable[GrantBalance], overdraft_nanos: int, surplus_nanos: int = 0) -> CreditBook:
    """Return the book of stored grants, in drawing order."""
    return CreditBook(tuple(sorted(grants)), overdraft_nanos, surplus_nanos)
