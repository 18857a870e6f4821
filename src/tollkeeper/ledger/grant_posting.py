"""Posts grants of the catalog to their accounts' balances, once each; those that a crash left behind at the start."""

from __future__ import annotations

from tollkeeper.domain.catalog import Grant
from tollkeeper.ledger.commit_future import CommitFuture, finish
from tollkeeper.ledger.commit_tasks import PostGrants
from tollkeeper.ledger.committer import Committer
from tollkeeper.ports import Ledger


class GrantPosting:
    """Any thread may `post`; `recover` and `retry` are for one thread at a time."""

    def __init__(self, ledger: Ledger, committer: Committer) -> None:
        self._ledger = ledger
        self._committer = committer
        self._recovered = CommitFuture()

    def post(self, grant: Grant) -> bool:
        """Post a grant, durably; return whether this call did. Raises `Unavailable`."""
        book, _ = self._ledger.book(grant.account)
        if any(balance.grant_id == grant.id for balance in book.grants):
            return False
        future = CommitFuture()
        self._committer.submit(PostGrants([grant], future))
        future.wait()
        return True

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
