"""
Posts grants of the catalog to their accounts' balances, once each, and revokes them.

Those that a crash left behind are posted at the start.
"""

from __future__ import annotations

import threading
from datetime import datetime

from tollkeeper.domain.bookings import RevokedGrant
from tollkeeper.domain.catalog import Grant
from tollkeeper.domain.pools import CreditBook
from tollkeeper.ledger.commit_future import CommitFuture, finish
from tollkeeper.ledger.commit_tasks import PostGrants, RevokeGrant
from tollkeeper.ledger.committer import Committer
from tollkeeper.ports import Ledger


class GrantPosting:
    """Any thread may `post`; `recover` and `retry` are for one thread at a time."""

    def __init__(self, ledger: Ledger, committer: Committer) -> None:
        self._ledger = ledger
        self._committer = committer
        self._recovered = CommitFuture()
        self._revoking = threading.Lock()

    def post(self, grant: Grant) -> bool:
        """Post a grant, durably; return whether this call did. Raises `Unavailable`."""
        if self._ledger.book(grant.account)[0].grant(grant.id) is not None:
            return False
        future = CommitFuture()
        self._committer.submit(PostGrants([grant], future))
        future.wait()
        return True

    def revoke(self, grant: Grant) -> tuple[datetime, bool]:
        """
        Revoke a grant, durably; return when it was revoked, and whether this call did it. Raises `Unavailable`.

        In force in the gate when this returns. One that a crash kept from its balance is posted first.
        """
        with self._revoking:
            self.post(grant)
            balance = self._ledger.book(grant.account)[0].grant(grant.id)
            if balance is not None and balance.revoked_at is not None:
                return balance.revoked_at, False
            future = CommitFuture()
            self._committer.submit(RevokeGrant(RevokedGrant(grant.account, grant.id), future))
            book: CreditBook = future.wait()
            revoked = book.grant(grant.id)
            assert revoked is not None
            assert revoked.revoked_at is not None
            return revoked.revoked_at, True

    def recover(self) -> int:
        """Queue the grants that the catalog has and no balance; return how many. Called once, at start."""
        unposted = self._ledger.unposted_grants()
        if unposted:
            self._committer.submit(PostGrants(unposted, self._recovered))
        else:
            finish([self._recovered])
        return len(unposted)

    def retry(self) -> None:
        """Queue them again if the ledger did not take them. Called by maintenance."""
        if self._recovered.ended and self._recovered.error is not None:
            self._recovered = CommitFuture()
            self._committer.submit(PostGrants(self._ledger.unposted_grants(), self._recovered))
