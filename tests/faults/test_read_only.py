"""The ledger's file cannot be written for a while: refused or told, never admitted and unrecorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from tests.conftest import Install
from tests.faults.test_ledger_away import Customer, eventually
from tests.faults.test_write_lock import settle
from tollkeeper.domain.catalog import Account
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Outcome
from tollkeeper.errors import Unavailable
from tollkeeper.installation import Installation
from tollkeeper.testing import commit_all, set_up, verify


@contextmanager
def read_only(site: Installation) -> Iterator[None]:
    """
    Have SQLite refuse every write of *site* until the block ends.

    Root may write any file, and an open one stays writable, so SQLite itself is told: what it answers then is
    what it answers on a file system that became read-only.
    """
    refusing = True

    def told(connection: Any, _record: Any, _proxy: Any = None) -> None:
        connection.execute(f"PRAGMA query_only={int(refusing)}")

    sa.event.listen(site.engine, "checkout", told)
    try:
        yield
    finally:
        # The listener stays: connections of the pool are told that they may write when they are next used.
        refusing = False


@pytest.mark.drawn(1)
@pytest.mark.parametrize("restart", [False, True])
def test_nothing_is_admitted_unrecorded_while_the_file_is_read_only(
    install: Install, account: str, restart: bool
) -> None:
    """When it can be written again all goes on, after a restart too, and the books are in order."""
    site = install()
    customer = Customer(site, account)
    customer.authorize("open")
    kept = customer.admit()
    with read_only(site):
        with pytest.raises(Unavailable, match=r"cannot be written.*readonly"):
            settle(site, account, "open", 5).wait()
        with pytest.raises(Unavailable, match="readonly"):
            customer.authorize("new")
        with pytest.raises(Unavailable, match="readonly"):
            customer.record("a")
        with pytest.raises(Unavailable):
            set_up(site, Account(id=f"{account}.other", name="B"))
        assert (customer.used(), site.holds.open_count) == (14, 1)
        site.holds.settle(kept, Outcome())
        eventually(lambda: site.gate.refusing is not None)
        for _ in range(20):
            refused = site.holds.admit(customer.secret, "POST", "/v1/chat")
            assert isinstance(refused, Denial)
            assert (refused.reason, refused.status) == ("unavailable", 503)
        assert [hold.hold_id for hold in site.ledger.open_holds()] == ["open"]
        assert site.ledger.counter(account, "budget:b", 0)[0] == 0
    eventually(lambda: site.gate.refusing is None)
    commit_all(site)
    if restart:
        site.close()
        site = customer.site = install()
    settle(site, account, "open", 5).wait()
    customer.authorize("new")
    settle(site, account, "new", 11).wait()
    assert customer.record("a") == 1
    set_up(site, Account(id=f"{account}.other", name="B"))
    assert customer.totals() == (4, 5 + 7 + 11 + 1)
    assert (customer.used(), site.holds.open_count, site.committer.lost_tasks) == (24, 0, 0)
    verdict = verify(site)
    assert verdict.ok, verdict
