"""
A ledger that is older than its usage store: restored from a copy, or failed over to a database some commits behind.

It counts numbers of batches again that the store has seen, and has records in its outbox, and holds, that the store has
as events. Nothing that is acknowledged afterwards is lost, nothing counts twice, and what the ledger does not know is
said.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from tests.engines import fresh_url
from tests.faults.test_disk import run
from tests.faults.test_ledger_away import Customer, eventually
from tests.readiness import reasons_not_ready
from tollkeeper.adapters.batch_marks import FILE, FileMarks
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.adapters.sql.ledger_tables import outbox, progress
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.errors import LedgerInUse, StoresMismatch, Unavailable
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.meter.decode import decode_events
from tollkeeper.testing import NOON, Faulty, ManualClock, installation, open_installation, verify

NOON_US: Final = int(NOON.timestamp()) * 1_000_000
ACCOUNT: Final = "acme"

# -- with the stores of a directory, each time in a process of its own -------------------------------------------

LIFE: Final = """
    import json, sys
    from tollkeeper import Tollkeeper
    from tollkeeper.testing import NOON

    directory, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with Tollkeeper.open(directory, unknown_route="allow") as toll:
        toll.apply('''
            [[accounts]]
            id = "acme"
            name = "A"
            [[budgets]]
            id = "b"
            account = "acme"
            amount = 1_000_000_000
            period = "total"
        ''')
        accepted, relay = 0, toll.installation.relay
        for batch in range(first, last, 10):
            events = [{"id": f"e{n}", "time": NOON.isoformat(), "account": "acme", "cost_nanos": 1}
                      for n in range(batch, batch + 10)]
            accepted += toll.record(events).accepted
            assert relay.flush(toll.installation.pending.newest_seq(None), 60)
        stored = {}
        for piece in toll.installation.store.export("acme", 0, 2**52):
            for id_ in piece.column("id").to_pylist():
                stored[id_] = stored.get(id_, 0) + 1
        found = toll.verify()
        print(json.dumps([accepted, len(stored), max(stored.values()), found.ok,
                          [d.what for d in found.differences], found.store_differences]))
"""


def live(directory: Path, first: int, last: int) -> Any:
    return run(LIFE, str(directory), str(first), str(last))


def test_a_ledger_that_is_put_back_loses_nothing_that_comes_later(tmp_path: Path) -> None:
    """As by a restored backup of the ledger alone, while the usage store stayed."""
    directory = tmp_path / "data"
    ledger = directory / "ledger.sqlite3"
    assert live(directory, 0, 20)[:4] == [20, 20, 1, True]
    shutil.copy(ledger, tmp_path / "copy")
    assert live(directory, 20, 60)[:4] == [40, 60, 1, True]
    for name in directory.glob("ledger.sqlite3*"):
        name.unlink()
    shutil.copy(tmp_path / "copy", ledger)
    # Forty that came later, and forty that the store has and the ledger does not.
    accepted, stored, most, ok, differences, lines = live(directory, 20, 100)
    assert (accepted, stored, most) == (40, 100, 1)
    assert not ok
    assert differences == ["counter budget:b against its events"]
    assert [line for line in lines if "has 40 records that the ledger does not know" in line] == lines
    # Said again after a restart.
    accepted, stored, most, ok, differences, again = live(directory, 100, 110)
    assert (accepted, stored, most, ok, again) == (10, 110, 1, False, lines)


# -- with stores that are handed in --------------------------------------------------------------------------------


@pytest.fixture
def usage(tmp_path: Path) -> Iterator[ClickHouseUsageStore]:
    """A usage store of one installation alone."""
    store = ClickHouseUsageStore.open(f"chdb://{tmp_path / 'usage'}", memory_bytes_max=1 << 30)
    yield store
    store.close()


class Ledgers:
    """Databases that can be copied, and put back."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.url = fresh_url(name, directory)

    def copy(self) -> str:
        url = sa.make_url(self.url)
        name = f"tk_{uuid.uuid4().hex}"
        if url.get_backend_name() == "sqlite":
            # While it is in use, as backups are made.
            path = Path(str(url.database)).with_name(name)
            source, target = sqlite3.connect(str(url.database)), sqlite3.connect(path)
            source.backup(target)
            source.close()
            target.close()
            return f"sqlite:///{path}"
        server = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
        with server.connect() as connection:
            connection.execute(
                sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                {"name": url.database},
            )
            connection.execute(sa.text(f"CREATE DATABASE {name} TEMPLATE {url.database}"))
        server.dispose()
        return url.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite-file", "postgresql"])
def ledgers(request: pytest.FixtureRequest, tmp_path: Path) -> Ledgers:
    return Ledgers(request.param, tmp_path)


Start = Callable[..., Installation]


@pytest.fixture
def start(tmp_path: Path, usage: ClickHouseUsageStore, clock: ManualClock) -> Iterator[Start]:
    sites: list[Installation] = []

    def started(ledger_url: str, store: Any = None) -> Installation:
        for site in sites:
            site.close()
        sites.clear()
        sites.append(
            open_installation(
                tmp_path / "data",
                clock=clock,
                store=store or usage,
                store_is_shared=False,
                ledger_url=ledger_url,
            )
        )
        return sites[0]

    yield started
    for site in sites:
        site.close()


def send(site: Installation, *ids: str) -> int:
    events = [{"id": id_, "time": NOON.isoformat(), "account": ACCOUNT, "cost_nanos": 1} for id_ in ids]
    return site.ingest.take(decode_events(events, now_us=NOON_US)).accepted


def deliver(site: Installation) -> None:
    assert site.delivery.fresh(None)


def settle(site: Installation, hold_id: str) -> None:
    _, future = site.holds.settle_hold(
        hold_id, Outcome(usage=Usage(cost_nanos=3)), CommitFuture(), account_id=ACCOUNT
    )
    assert future is not None
    future.wait()


def stored(store: ClickHouseUsageStore) -> dict[str, int]:
    counts: dict[str, int] = {}
    for piece in store.export(None, 0, 2**62):
        for id_ in piece.column("id").to_pylist():
            counts[id_] = counts.get(id_, 0) + 1
    return counts


@pytest.mark.drawn(2)
@pytest.mark.parametrize("begun", [False, True], ids=["waiting", "begun"])
def test_what_an_older_ledger_sends_again_counts_once(
    ledgers: Ledgers,
    start: Start,
    usage: ClickHouseUsageStore,
    caplog: pytest.LogCaptureFixture,
    begun: bool,
) -> None:
    """Rows of its outbox go into other batches than the first time; a hold that was settled is open again."""
    store: Any = Faulty(usage, "append")
    site = start(ledgers.url, store)
    customer = Customer(site, ACCOUNT)
    customer.authorize("hold")
    send(site, "a", "b")
    deliver(site)
    store.refuse(10_000)
    send(site, "c", "d")
    if begun:
        # Its batch has a number, and did not come anywhere.
        with pytest.raises(Unavailable):
            site.relay.deliver()
    # On PostgreSQL its sessions end here: it goes on with new ones.
    older = ledgers.copy()
    store.refuse(0)
    site = start(ledgers.url, store)
    send(site, "e")
    deliver(site)
    settle(site, "hold")
    for id_ in ("f", "g"):
        send(site, id_)
        deliver(site)
    before = stored(usage)
    assert before == dict.fromkeys([*"abcdefg", "hold"], 1)
    caplog.set_level(logging.INFO)

    site = start(older)
    assert any(r.getMessage() == "tollkeeper.pairing.ledger_is_behind" for r in caplog.records)
    assert reasons_not_ready(site) == []
    assert site.pairing.warnings()
    assert send(site, "f", "new0") == 1
    settle(site, "hold")
    deliver(site)
    for number in range(1, 5):
        assert send(site, f"new{number}") == 1
        deliver(site)
    assert stored(usage) == {**before, **{f"new{n}": 1 for n in range(5)}}
    verdict = verify(site)
    assert not verdict.ok
    # e, f and g; all else was sent again, and is known.
    (line,) = [line for line in verdict.store_differences if "does not know" in line]
    assert "has 3 records" in line
    assert verdict.store_differences == [line]
    assert [d.found - d.expected for d in verdict.differences if "against its events" in d.what] == [-3]
    # Nothing old is left to come.
    assert site.pairing.must_compare(usage)
    site.pairing.maintain()
    assert not site.pairing.must_compare(usage)
    assert send(site, "new5") == 1
    deliver(site)
    site = start(older)
    assert stored(usage)["new5"] == 1
    assert any("3 records" in line for line in site.pairing.warnings())


def test_a_ledger_that_goes_back_under_a_running_process_is_refused(ledgers: Ledgers, start: Start) -> None:
    """A fail-over that loses a batch's number would give it out again, under a token that the store has."""
    site = start(ledgers.url)
    Customer(site, ACCOUNT)
    with site.relay.exclusive():
        send(site, "a")
        with site.engine.connect() as tx:
            number = tx.execute(sa.select(progress.c.batch_seq)).scalar_one()
        found = site.ledger.outbox.next_batch(10)
        assert found is not None
        with site.engine.begin() as tx:
            tx.execute(sa.update(progress).values(batch_seq=number))
            tx.execute(sa.update(outbox).values(batch=None, batch_epoch=None))
        with pytest.raises(LedgerInUse, match="older than what this process wrote"):
            site.ledger.outbox.next_batch(10)
        with pytest.raises(LedgerInUse, match="older than what this process wrote"):
            site.ledger.outbox.delivered(found.mark)
        with site.engine.begin() as tx:
            tx.execute(sa.update(progress).values(batch_seq=found.mark.batch))


# -- a ledger without the past of its store ------------------------------------------------------------------------


@pytest.mark.drawn(1)
def test_a_new_ledger_beside_a_used_store_is_refused(
    ledgers: Ledgers, start: Start, tmp_path: Path, usage: ClickHouseUsageStore
) -> None:
    """Another URL on a living directory, or a ledger that was deleted; said each time, and the right one goes on."""
    site = start(ledgers.url)
    Customer(site, ACCOUNT)
    send(site, "a")
    deliver(site)
    new = fresh_url(ledgers.name, tmp_path)
    for _ in range(2):
        with pytest.raises(StoresMismatch) as caught:
            start(new)
        for words in ("belongs to installation", "is new", "must be of one installation", "Put the ledger"):
            assert words in str(caught.value)
    site = start(ledgers.url)
    assert send(site, "a", "b") == 1
    assert verify(site).ok


@pytest.mark.drawn(1)
def test_a_store_of_another_installation_is_refused(
    ledgers: Ledgers, start: Start, tmp_path: Path, usage: ClickHouseUsageStore
) -> None:
    """Not a new one, but one with a past of its own."""
    site = start(ledgers.url)
    Customer(site, ACCOUNT)
    send(site, "a")
    deliver(site)
    with installation(tmp_path / "other", store=usage) as other:
        Customer(other, "other")
        other.ledger.outbox.raise_delivered(1)
        with other.engine.begin() as tx:
            tx.execute(sa.update(progress).values(batch_seq=5, batch_epoch="e"))
        url = other.settings.ledger
    with pytest.raises(StoresMismatch, match="belongs to installation"):
        start(url)


REFUSED: Final = """
    import json, sys
    from tollkeeper.errors import StoresMismatch
    from tollkeeper.testing import open_installation
    try:
        open_installation(sys.argv[1]).close()
        print(json.dumps(None))
    except StoresMismatch as exc:
        print(json.dumps(str(exc)))
"""


@pytest.mark.drawn(1)
@pytest.mark.parametrize("marked", [True, False], ids=["marked", "of an earlier version"])
def test_a_deleted_ledger_is_noticed_at_the_start(tmp_path: Path, marked: bool) -> None:
    """Its log too: all that it had may be there, and then the ledger is empty, or older."""
    directory = tmp_path / "data"
    assert live(directory, 0, 20)[:4] == [20, 20, 1, True]
    shutil.copytree(directory, tmp_path / "kept", symlinks=True)
    if not marked:
        (directory / "usage" / FILE).unlink()
    for name in directory.glob("ledger.sqlite3*"):
        name.unlink()
    for _ in range(2):
        refused = run(REFUSED, str(directory))
        assert "Put the ledger of this usage store back" in refused
        assert ("belongs to installation" if marked else "has 20 records, and the ledger is new") in refused
    for name in directory.glob("ledger.sqlite3*"):
        name.unlink()
    shutil.copy(tmp_path / "kept" / "ledger.sqlite3", directory)
    assert live(directory, 20, 30)[:4] == [10, 30, 1, True]


# -- the mark ------------------------------------------------------------------------------------------------------


@pytest.mark.drawn(1)
def test_the_mark_is_there_before_the_batch(
    start: Start, ledgers: Ledgers, usage: ClickHouseUsageStore
) -> None:
    """A store that has a batch says so, whatever happens in between; that it may have one costs a comparison."""
    store: Any = Faulty(usage, "append")
    site = start(ledgers.url, store)
    Customer(site, ACCOUNT)
    store.refuse(10_000)
    send(site, "a")
    with pytest.raises(Unavailable):
        site.relay.deliver()
    last = usage.past(site.ledger.installation_id).last
    assert last is not None
    assert last == site.ledger.outbox.past().last
    store.refuse(0)
    site = start(ledgers.url, store)
    deliver(site)
    # The batch that was begun keeps its token; the next one is of this start's epoch.
    assert usage.past(site.ledger.installation_id).last == last
    send(site, "b")
    deliver(site)
    later = usage.past(site.ledger.installation_id).last
    assert later is not None
    assert (later.batch, later.epoch != last.epoch) == (last.batch + 1, True)
    assert verify(site).ok
    assert site.pairing.warnings() == []


def test_marks_are_kept_in_a_file_and_damage_is_said(tmp_path: Path) -> None:
    marks = FileMarks(tmp_path)
    assert marks.all() == {}
    one, other = BatchMark("i", "e", 1), BatchMark("j", "f", 7)
    for mark in (one, other, one._replace(batch=2)):
        marks.note(mark)
    assert marks.all() == {"i": one._replace(batch=2), "j": other}
    (tmp_path / FILE).write_bytes(b"")
    with pytest.raises(Unavailable, match="is damaged"):
        marks.all()


@pytest.mark.drawn(1)
def test_what_a_crash_left_half_appended_is_no_loss(
    ledgers: Ledgers, start: Start, usage: ClickHouseUsageStore
) -> None:
    """Rollups of a batch that was begun may be missing until its repeat: looked at before, they would be refused."""
    store: Any = Faulty(usage, "losses")
    failing: Any = Faulty(store, "append")
    site = start(ledgers.url, failing)
    looked = store.calls
    assert looked == 1
    Customer(site, ACCOUNT)
    failing.refuse(10_000)
    send(site, "a")
    with pytest.raises(Unavailable):
        site.relay.deliver()
    site = start(ledgers.url, failing)
    assert store.calls == looked
    failing.refuse(0)
    deliver(site)
    eventually(lambda: store.calls == looked + 1)
