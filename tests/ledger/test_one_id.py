"""
One id names one event of its account, through whichever door it comes: bulk events, holds, corrections.

Each test ends with `verify`, and with a count of the stored records of each id: a second event of one id is never
there, and every other use of it gets a conflict, the same one on every retry.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from tests.conftest import Install
from tests.ledger.test_holds import PRICE, Api, cost, expire
from tollkeeper.domain.adjustments import Adjustment
from tollkeeper.domain.bookings import HoldBody
from tollkeeper.domain.catalog import Project
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.events import Event
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.requests import NO_USAGE, Outcome
from tollkeeper.errors import Conflict, EventConflict, HoldEnded, NotFound, TollkeeperError, Unavailable
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import ReadBarrier
from tollkeeper.meter.decode import decode_events
from tollkeeper.record_columns import records_of
from tollkeeper.testing import ManualClock, verify

BETWEEN = ("pending", "delivered", "restarted")


@pytest.fixture
def api(install: Install, account: str) -> Iterator[Api]:
    """The client of an account; `between` may put another installation behind it."""
    api = Api(install(), account)
    yield api
    assert_one_event_an_id(api)


def assert_one_event_an_id(api: Api) -> None:
    found = verify(api.site)
    assert found.ok, found
    events: Counter[str] = Counter()
    for piece in api.site.store.export(api.account, 0, 2**62):
        for record in records_of(piece):
            if record.revision == 0 and record.sign > 0:
                events[record.id] += 1
            elif record.amendment_id:
                events[record.amendment_id] += 1
    assert set(events.values()) <= {1}, events


@pytest.fixture(params=BETWEEN)
def between(request: pytest.FixtureRequest, install: Install, api: Api) -> Callable[[], None]:
    """Do what may happen between two calls: nothing, a delivery by the relay, or a restart."""

    def happen() -> None:
        if request.param == "delivered":
            verify(api.site)
        elif request.param == "restarted":
            api.site.close()
            api.site = install()

    return happen


def record(api: Api, *ids: str, nanos: int = 5, now_us: int | None = None) -> tuple[int, int, list[str]]:
    """Send bulk events; return how many were accepted and repeated, and the codes of the others."""
    at = to_text(from_us((api.site.clock.now_us() if now_us is None else now_us) - 3_600_000_000))
    events = [{"id": id_, "time": at, "account": api.account, "cost_nanos": nanos} for id_ in ids]
    found = api.site.ingest.take(decode_events(events, now_us=api.site.clock.now_us()))
    return found.accepted, found.duplicates, [rejection.code for rejection in found.rejections]


def amend(api: Api, event_id: str, correction_id: str, nanos: int = 8) -> bool:
    """Amend an event; return whether that was a repeat."""
    changes = Event(id="-", time="-", cost_nanos=nanos)
    return api.site.amend.amend(api.account, event_id, correction_id, changes).repeated


def twice(error: type[TollkeeperError], call: Callable[[], Any], match: str | None = None) -> None:
    for _ in range(2):
        with pytest.raises(error, match=match):
            call()


# -- the id of an expired hold -----------------------------------------------------------------------


@pytest.mark.drawn(1)
def test_an_event_with_the_id_of_an_expired_hold_ends_the_hold(
    api: Api, clock: ManualClock, between: Callable[[], None]
) -> None:
    """A gateway that replays its log with its own request ids, while an old settle is on its way."""
    api.authorize("one", ttl_s=60)
    expire(api, clock)
    between()
    assert record(api, "one") == (1, 0, [])
    between()
    twice(HoldEnded, lambda: api.settle("one", cost(20)))
    twice(HoldEnded, lambda: api.void("one"))
    twice(HoldEnded, lambda: api.authorize("one"))
    between()
    clock.advance(seconds=-60)
    assert record(api, "one") == (0, 0, ["event_conflict"])
    twice(HoldEnded, lambda: api.settle("one", cost(20)))
    assert (api.charged(), api.requests()) == (5, 1)


@pytest.mark.drawn(1)
def test_an_event_with_the_id_of_a_late_settle_is_a_conflict(
    api: Api, clock: ManualClock, between: Callable[[], None]
) -> None:
    api.authorize("one", ttl_s=60)
    expire(api, clock)
    between()
    assert not api.settle("one", cost(20)).replayed
    between()
    for _ in range(2):
        assert record(api, "one", "other")[2] == ["event_conflict"]
    assert api.settle("one", cost(20)).replayed
    twice(HoldEnded, lambda: api.settle("one", cost(21)))
    twice(HoldEnded, lambda: api.void("one"))
    assert (api.charged(), api.requests()) == (25, 2)


@pytest.mark.drawn(1)
def test_a_correction_with_the_id_of_an_expired_hold_ends_the_hold(
    api: Api, clock: ManualClock, between: Callable[[], None]
) -> None:
    api.authorize("one", ttl_s=60)
    expire(api, clock)
    record(api, "event")
    assert not amend(api, "event", "one")
    between()
    twice(HoldEnded, lambda: api.settle("one", cost(20)))
    twice(HoldEnded, lambda: api.authorize("one"))
    assert amend(api, "event", "one")
    assert (api.charged(), api.requests()) == (8, 1)


# -- the id of a correction --------------------------------------------------------------------------


@pytest.mark.drawn(1)
def test_the_id_of_a_correction_names_nothing_else(api: Api, between: Callable[[], None]) -> None:
    record(api, "event", "other")
    assert not amend(api, "event", "fix")
    between()
    twice(HoldEnded, lambda: api.authorize("fix"))
    assert record(api, "fix") == (0, 0, ["event_conflict"])
    twice(EventConflict, lambda: amend(api, "other", "fix"))
    twice(NotFound, lambda: api.settle("fix", cost(20)))
    twice(NotFound, lambda: api.void("fix"))
    twice(NotFound, lambda: amend(api, "fix", "another"))
    assert amend(api, "event", "fix")
    assert api.used() == 13


@pytest.mark.drawn(1)
@pytest.mark.parametrize("door", ["bulk", "settle"])
def test_the_id_of_an_event_names_no_hold_and_no_correction(
    api: Api, between: Callable[[], None], door: str
) -> None:
    record(api, "event")
    if door == "bulk":
        record(api, "one")
    else:
        api.authorize("one")
        api.settle("one", cost(5))
    between()
    twice(HoldEnded, lambda: api.authorize("one"))
    twice(EventConflict, lambda: amend(api, "event", "one"))
    assert api.requests() == 2
    assert api.used() == 10


# -- the id of a hold that is open, or voided --------------------------------------------------------


@pytest.mark.drawn(1)
def test_the_id_of_an_open_hold_names_no_event_and_no_correction(
    api: Api, between: Callable[[], None]
) -> None:
    record(api, "event")
    api.authorize("one")
    between()
    assert record(api, "one") == (0, 0, ["event_conflict"])
    assert record(api, "one") == (0, 0, ["event_conflict"])
    twice(EventConflict, lambda: amend(api, "event", "one"), match="hold")
    api.settle("one", cost(20))
    between()
    assert record(api, "one") == (0, 0, ["event_conflict"])
    assert (api.charged(), api.requests()) == (25, 2)


@pytest.mark.drawn(1)
def test_the_id_of_a_request_under_way_in_this_process_names_nothing_else(
    api: Api, between: Callable[[], None]
) -> None:
    """Such an id is in no store before the settle; a stream's first bytes may have told it to the client."""
    record(api, "event")
    admission = api.site.holds.admit(api.secret(), "POST", "/chat/{room}")
    assert not isinstance(admission, Denial)
    for _ in range(2):
        assert record(api, admission.id, "other")[2] == ["event_conflict"]
    twice(HoldEnded, lambda: api.authorize(admission.id))
    twice(EventConflict, lambda: amend(api, "event", admission.id), match="hold")
    future = CommitFuture()
    api.site.holds.settle(admission, cost(20), future)
    future.wait()
    between()
    assert record(api, admission.id) == (0, 0, ["event_conflict"])
    twice(HoldEnded, lambda: api.authorize(admission.id))
    assert (api.charged(), api.requests()) == (30, 3)


@pytest.mark.drawn(1)
def test_an_id_that_authorize_drew_may_name_an_event_once_its_hold_is_over(
    api: Api, clock: ManualClock, between: Callable[[], None]
) -> None:
    voided, expired = api.authorize().id, api.authorize(ttl_s=60).id
    api.void(voided)
    expire(api, clock)
    between()
    assert record(api, voided, expired) == (2, 0, [])
    assert record(api, voided, expired, now_us=clock.now_us()) == (0, 2, [])


@pytest.mark.drawn(1)
def test_the_id_of_a_voided_hold_may_name_an_event(api: Api, between: Callable[[], None]) -> None:
    api.authorize("one")
    api.void("one")
    between()
    assert record(api, "one") == (1, 0, [])
    between()
    twice(HoldEnded, lambda: api.authorize("one"))
    twice(HoldEnded, lambda: api.settle("one", cost(20)))
    api.void("one")
    assert (api.charged(), api.requests()) == (5, 1)


# -- a void of an expired hold -----------------------------------------------------------------------


@pytest.mark.drawn(1)
def test_a_voided_expired_hold_is_not_settled(
    api: Api, clock: ManualClock, between: Callable[[], None]
) -> None:
    """Its caller was answered that it is voided."""
    api.authorize("one", ttl_s=60)
    expire(api, clock)
    api.void("one")
    between()
    api.void("one")
    assert api.site.ledger.hold(api.account, "one").state == "voided"
    twice(HoldEnded, lambda: api.settle("one", cost(20)), match="voided")
    assert (api.used(), api.charged(), api.requests()) == (0, 0, 0)


def test_a_hold_whose_expiry_is_not_committed_yet_is_voided(api: Api, clock: ManualClock) -> None:
    api.authorize("one", ttl_s=60)
    clock.advance(seconds=60)
    with Blocked(api):
        api.site.holds.expire()
        _, future = api.site.holds.void_hold("one", CommitFuture(), account_id=api.account)
    assert future is not None
    future.wait()
    assert api.site.ledger.hold(api.account, "one").state == "voided"
    twice(HoldEnded, lambda: api.settle("one", cost(20)))


def test_of_a_void_and_a_late_settle_at_once_one_wins(api: Api, clock: ManualClock) -> None:
    count = 40
    for index in range(count):
        api.authorize(f"h{index}", ttl_s=60)
        expire(api, clock)

    def ended(call: Callable[[], Any]) -> bool:
        try:
            call()
        except (HoldEnded, Unavailable):
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        voids, settles = [], []
        for index in range(count):
            voids.append(pool.submit(ended, lambda name=f"h{index}": api.void(name)))
            settles.append(pool.submit(ended, lambda name=f"h{index}": api.settle(name, cost(7))))
    won = [(void.result(), settle.result()) for void, settle in zip(voids, settles, strict=True)]
    assert (True, True) not in won
    booked = sum(settle for _, settle in won)
    assert (api.charged(), api.requests()) == (7 * booked, booked)
    for index, (voided, _) in enumerate(won):
        stored = api.site.ledger.hold(api.account, f"h{index}")
        assert (stored is not None and stored.state == "voided") == voided


# -- at once -----------------------------------------------------------------------------------------


class Blocked:
    """Keep the commit thread busy until the block ends: what is submitted meanwhile makes one group."""

    def __init__(self, api: Api) -> None:
        self._committer = api.site.committer
        self._go_on = threading.Event()
        self._pool = ThreadPoolExecutor(4)

    def __enter__(self) -> Blocked:
        begun = threading.Event()

        def read() -> None:
            begun.set()
            self._go_on.wait()

        self._committer.submit(ReadBarrier(read, CommitFuture()))
        begun.wait()
        return self

    def start(self, call: Callable[[], Any]) -> Any:
        """Run *call* in a thread; return its future when it has submitted what it commits."""
        submitted = threading.Event()
        submit = self._committer.submit
        callers: set[int] = set()

        def run() -> Any:
            callers.add(threading.get_ident())
            return call()

        def submit_and_tell(task: Any) -> None:
            submit(task)
            # Maintenance submits too.
            if threading.get_ident() in callers:
                submitted.set()

        self._committer.submit = submit_and_tell  # type: ignore[method-assign]
        future = self._pool.submit(run)
        future.add_done_callback(lambda done: submitted.set())
        submitted.wait()
        self._committer.submit = submit  # type: ignore[method-assign]
        return future

    def __exit__(self, *exc: object) -> None:
        self._go_on.set()
        self._pool.shutdown()


def outcome_of(future: Any) -> Any:
    try:
        return future.result()
    except Conflict as exc:
        return exc.code


@pytest.mark.drawn(1)
@pytest.mark.parametrize("first", ["settle", "event"])
def test_of_a_late_settle_and_an_event_in_one_group_the_first_counts(
    api: Api, clock: ManualClock, first: str
) -> None:
    """Both looked the id up before either was committed."""
    api.authorize("one", ttl_s=60)
    expire(api, clock)
    calls = {"settle": lambda: api.settle("one", cost(20)), "event": lambda: record(api, "one")}
    with Blocked(api) as group:
        futures = {name: group.start(calls[name]) for name in sorted(calls, key=lambda name: name != first)}
    if first == "settle":
        assert outcome_of(futures["event"]) == (0, 0, ["event_conflict"])
        assert not outcome_of(futures["settle"]).replayed
    else:
        assert outcome_of(futures["event"]) == (1, 0, [])
        assert outcome_of(futures["settle"]) == "hold_ended"
        twice(HoldEnded, lambda: api.settle("one", cost(20)))
    assert api.requests() == 1


def test_an_event_that_is_delivered_while_a_late_settle_looks_is_seen(
    api: Api, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no longer pending when the settle is committed, and was not in the store when that was asked."""
    api.authorize("one", ttl_s=60)
    expire(api, clock)
    before(monkeypatch, api.site.gate, "compiled_key_of", lambda: record_and_deliver(api, "one"))
    twice(HoldEnded, lambda: api.settle("one", cost(20)))
    assert api.requests() == 1


def test_an_event_that_is_delivered_while_an_authorize_looks_is_seen(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, api.site.gate, "admit", lambda: record_and_deliver(api, "one"))
    twice(HoldEnded, lambda: api.authorize("one"))
    assert (api.used(), api.requests()) == (5, 1)


def test_an_event_that_is_delivered_while_a_correction_looks_is_seen(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(api, "event")
    before(monkeypatch, api.site.directory, "charges_of_all", lambda: record_and_deliver(api, "one"))
    twice(EventConflict, lambda: amend(api, "event", "one"))
    assert api.requests() == 2


def record_and_deliver(api: Api, id_: str) -> None:
    record(api, id_)
    api.site.relay.deliver_up_to(api.site.committer.outbox_seq)


def before(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, happens: Callable[[], None]) -> None:
    """Have *happens* called once before the next call of a method."""
    called = getattr(target, name)

    def first(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(target, name, called)
        happens()
        return called(*args, **kwargs)

    monkeypatch.setattr(target, name, first)


def test_a_settle_of_a_hold_that_was_never_committed_books_nothing(api: Api) -> None:
    """Its authorize had not been answered yet, and is refused: the id names an event by then."""
    with Blocked(api) as group:
        event = group.start(lambda: record(api, "one"))
        opened = group.start(lambda: api.authorize("one"))
        settled = group.start(lambda: api.settle("one", cost(20)))
    assert outcome_of(event) == (1, 0, [])
    assert (outcome_of(opened), outcome_of(settled)) == ("hold_ended", "hold_ended")
    assert (api.used(), api.used("open"), api.site.holds.open_count) == (5, 0, 0)
    twice(HoldEnded, lambda: api.authorize("one"))
    assert api.requests() == 1


def test_a_hold_that_is_opened_while_a_settle_looks_is_settled_once(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settle overtook its authorize: it must end the hold that is open, and not one like it."""
    before(monkeypatch, api.site.ledger, "hold", lambda: open_hold(api, "one"))
    assert not api.settle("one", cost(20)).replayed
    assert api.settle("one", cost(20)).replayed
    assert (api.used(), api.used("open"), api.site.holds.open_count) == (20, 0, 0)


def test_a_hold_that_is_opened_while_a_void_looks_is_voided(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, api.site.ledger, "hold", lambda: open_hold(api, "one"))
    api.void("one")
    twice(HoldEnded, lambda: api.settle("one", cost(20)))
    assert (api.used(), api.used("open"), api.site.holds.open_count) == (0, 0, 0)


def open_hold(api: Api, hold_id: str) -> None:
    """Authorize without a look at the ledger, which is being read."""
    site = api.site
    found = site.holds._authorize(
        api.secret(), "POST", "/chat/1", NO_USAGE, CommitFuture(), hold_id, "", 300, {}
    )
    assert not isinstance(found, Denial)
    found[1].wait()


def test_events_and_late_settles_of_the_same_ids_at_once_make_one_event_each(
    api: Api, clock: ManualClock
) -> None:
    count = 40
    for index in range(count):
        api.authorize(f"h{index}", ttl_s=60)
        if index % 10 == 9:
            expire(api, clock)

    def settled(name: str) -> bool:
        try:
            api.settle(name, cost(PRICE))
        except HoldEnded:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        settles, events = [], []
        for index in range(count):
            events.append(pool.submit(record, api, f"h{index}"))
            settles.append(pool.submit(settled, f"h{index}"))
    for event, settle in zip(events, settles, strict=True):
        assert (event.result()[0] == 1) != settle.result()
    booked = sum(settle.result() for settle in settles)
    assert (api.charged(), api.requests()) == (PRICE * booked + 5 * (count - booked), count)


# -- what a hold keeps -------------------------------------------------------------------------------


def test_an_outcome_that_cannot_be_stored_leaves_the_hold_as_it_was(api: Api, clock: ManualClock) -> None:
    api.authorize("one", ttl_s=60)
    expire(api, clock)
    with pytest.raises(TollkeeperError):
        api.settle("one", Outcome(status=10**6))
    assert record(api, "one") == (1, 0, [])


@pytest.mark.drawn(1)
@pytest.mark.parametrize("ends", ["late", "restarted", "late and restarted"])
def test_a_hold_is_booked_to_the_project_of_its_request(
    api: Api, clock: ManualClock, install: Install, ends: str
) -> None:
    """Its key may belong to another project by the time that it is settled."""
    key_id = f"{api.account}-plain"
    for project in ("then", "now"):
        api.site.manage.put(Project(id=project, account=api.account, name=project))
    move(api, key_id, "then")
    api.authorize("one", ttl_s=60)
    move(api, key_id, "now")
    if ends != "restarted":
        expire(api, clock)
    if ends != "late":
        api.site.close()
        api.site = install()
    assert api.settle("one", cost(20)).record.project_id == "then"
    api.authorize("two")
    assert api.settle("two", cost(20)).record.project_id == "now"


def move(api: Api, key_id: str, project: str) -> None:
    key = api.site.manage.get("keys", key_id, api.account)
    api.site.manage.put(msgspec.structs.replace(key, project=project))


def test_a_hold_stored_without_a_project_is_that_of_its_key() -> None:
    """As an earlier version stored it."""
    body = (
        b'{"key_id":"k","method":"POST","path":"/chat","amounts":[1,0,0,0],"expected":[0,0,0,0,""],'
        b'"at_us":1,"expires_at_us":2,"fingerprint":"","tags":{}}'
    )
    assert msgspec.json.decode(body, type=HoldBody).project is None


@pytest.mark.parametrize("door", ["event", "adjustment"])
def test_a_repeat_of_what_is_being_committed_waits_for_it(
    api: Api, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """Else it would be answered as booked, and be nowhere: here the commit fails."""

    def post() -> bool:
        """Return whether it was answered as a repeat."""
        if door == "adjustment":
            asked = Adjustment("one", api.account, 5, "goodwill")
            return api.site.adjustments.post(asked).repeated
        return record(api, "one")[1] == 1

    committing, go_on = threading.Event(), threading.Event()
    ledger = api.site.ledger
    commit = ledger.commit

    def fail_once(group: Any) -> Any:
        if not group.outbox:
            return commit(group)
        monkeypatch.setattr(ledger, "commit", commit)
        committing.set()
        go_on.wait(60)
        raise RuntimeError("this commit fails")

    monkeypatch.setattr(ledger, "commit", fail_once)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post)
        assert committing.wait(60)
        again = pool.submit(post)
        # Time to look the id up, and to answer if it does not wait.
        with pytest.raises(TimeoutError):
            again.result(0.5)
        go_on.set()
        assert again.result(10) is False, "it is the first that is booked"
        assert first.exception(10) is not None
    assert post() is True
