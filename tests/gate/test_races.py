"""
However many ask at once, exactly what is allowed passes: threads and tasks against a real installation.

The clock stands still, so nothing lifts by itself; and nobody settles until all were answered.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import msgspec
import pytest

from tollkeeper.domain.catalog import Account, Budget, Entry, Grant, Key, Limit, Plan, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.keys import hash_secret
from tollkeeper.domain.requests import NO_USAGE, Outcome, Usage
from tollkeeper.errors import HoldEnded, TollkeeperError, Unavailable
from tollkeeper.gate.gate import Admission
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.testing import set_up, verify

CALLERS = 1_000
THREADS = 20
FITS = 100
PRICE = 7


def in_threads(calls: list[Callable[[], Any]], threads: int = THREADS) -> list[Any]:
    """Run all *calls* from *threads* threads that begin at once; return what they returned or raised."""
    barrier = threading.Barrier(threads)
    results: list[Any] = [None] * len(calls)

    def run(first: int) -> None:
        barrier.wait()
        for index in range(first, len(calls), threads):
            try:
                results[index] = calls[index]()
            except TollkeeperError as exc:
                results[index] = exc

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(run, first) for first in range(threads)]:
            done.result()
    return results


def entries(account: str, bound: str) -> list[Entry]:
    """Return a catalog in which *bound*, and nothing else, lets 100 requests or 100 × `PRICE` nanos pass."""
    plan = {
        # As long as a window may be: on a busy machine a minute ends in the midst of the calls.
        "fixed": Limit(name="l", amount=FITS, window="1d"),
        "sliding": Limit(name="l", amount=FITS, window="1d", algorithm="sliding"),
        "permits": Limit(name="l", amount=FITS, window="1d", algorithm="permits"),
        "concurrency": Limit(name="l", amount=FITS, algorithm="concurrency"),
        "nanos limit": Limit(name="l", amount=FITS * PRICE, window="1d", unit="nanos"),
    }
    made: list[Entry] = [
        Account(id=account, name="Acme"),
        Plan(slug=f"{account}-plan", limits=[plan[bound]] if bound in plan else []),
        Key(
            id=f"{account}-key",
            account=account,
            plan=f"{account}-plan",
            type="credit" if bound == "credit" else "subscription",
        ),
        Route(id="chat", method="POST", path="/chat", price_nanos=PRICE),
    ]
    if bound == "budget":
        made.append(Budget(id="b", account=account, amount=FITS * PRICE, period="day"))
    if bound == "requests budget":
        made.append(Budget(id="b", account=account, amount=FITS, unit="requests", period="day"))
    if bound == "credit":
        made.append(Grant(id="g1", account=account, amount_nanos=FITS * PRICE - 3))
        made.append(Grant(id="g2", account=account, amount_nanos=3))
    return made


def secret_of(site: Installation, account: str, bound: str) -> str:
    return set_up(site, *entries(account, bound))[f"{account}-key"]


BOUNDS = (
    "fixed",
    "sliding",
    "permits",
    "concurrency",
    "nanos limit",
    "budget",
    "requests budget",
    "credit",
)
MONEY = ("nanos limit", "budget", "credit")


@pytest.mark.drawn(3)
@pytest.mark.parametrize("bound", BOUNDS)
def test_of_a_thousand_threads_calls_exactly_a_hundred_pass(site, account, bound):
    secret = secret_of(site, account, bound)
    results = in_threads([lambda: site.holds.admit(secret, "POST", "/chat")] * CALLERS)
    admitted = [result for result in results if isinstance(result, Admission)]
    denied = [result for result in results if isinstance(result, Denial)]
    assert (len(admitted), len(denied)) == (FITS, CALLERS - FITS)
    assert {denial.largest_fit for denial in denied} == {0}
    assert len({admission.id for admission in admitted}) == FITS
    for admission in admitted:
        site.holds.settle(admission, Outcome())
    # What was settled stays used, but for what only counts what is under way.
    again = site.holds.admit(secret, "POST", "/chat")
    assert isinstance(again, Admission if bound == "concurrency" else Denial)
    assert verify(site).ok


@pytest.mark.drawn(3)
@pytest.mark.parametrize("bound", BOUNDS)
def test_of_a_thousand_tasks_durable_holds_exactly_a_hundred_pass(site, account, bound):
    secret = secret_of(site, account, bound)

    async def call() -> Admission | Denial:
        future = CommitFuture(asyncio.get_running_loop())
        found = site.holds.authorize(secret, "POST", "/chat", NO_USAGE, future)
        if isinstance(found, Denial):
            return found
        await found[1].committed()
        return found[0]

    async def all_calls() -> list[Admission | Denial]:
        return await asyncio.gather(*(call() for _ in range(CALLERS)))

    results = asyncio.run(all_calls())
    assert sum(isinstance(result, Admission) for result in results) == FITS
    assert sum(isinstance(result, Denial) for result in results) == CALLERS - FITS
    assert len(site.ledger.open_holds()) == FITS
    assert verify(site).ok


@pytest.mark.parametrize("bound", MONEY)
def test_with_mixed_amounts_nothing_is_overshot_and_nothing_denied_that_fits(site, account, bound):
    """
    Nothing is given back, so what is left only shrinks. So exactly this can be checked: the sum is within
    the bound; each denial names less room than was asked; and what is left in the end, which any denied
    caller could at least have had, is less than the least that was denied.
    """
    secret = secret_of(site, account, bound)
    allowed = FITS * PRICE
    amounts = [1 + (index * 7919) % 60 for index in range(CALLERS)]
    calls = [
        lambda nanos=nanos: site.holds.admit(secret, "POST", "/chat", Usage(cost_nanos=nanos))
        for nanos in amounts
    ]
    results = in_threads(calls)
    passed = sum(nanos for nanos, r in zip(amounts, results, strict=True) if isinstance(r, Admission))
    denied = [(nanos, r) for nanos, r in zip(amounts, results, strict=True) if isinstance(r, Denial)]
    assert passed <= allowed
    assert all(denial.largest_fit < nanos for nanos, denial in denied)
    left = allowed - passed
    assert left < min(nanos for nanos, _ in denied)
    # And what is left can be had, to the last nano.
    if left:
        assert isinstance(site.holds.admit(secret, "POST", "/chat", Usage(cost_nanos=left + 1)), Denial)
        results.append(site.holds.admit(secret, "POST", "/chat", Usage(cost_nanos=left)))
        assert isinstance(results[-1], Admission)


def test_what_one_settles_below_its_hold_others_can_have(site, account):
    """Callers hold 10, use 3 and go on until they are denied: in the end less than one hold is left."""
    secret = secret_of(site, account, "budget")
    allowed, held, used = FITS * PRICE, 10, 3

    def call() -> int:
        count = 0
        while isinstance(
            found := site.holds.admit(secret, "POST", "/chat", Usage(cost_nanos=held)), Admission
        ):
            site.holds.settle(found, Outcome(usage=Usage(cost_nanos=used)))
            count += 1
        return count

    spent = used * sum(in_threads([call] * THREADS))
    # A caller may be denied while others' holds are open; the last one to be denied saw them settled.
    while isinstance(found := site.holds.admit(secret, "POST", "/chat", Usage(cost_nanos=held)), Admission):
        site.holds.settle(found, Outcome(usage=Usage(cost_nanos=used)))
        spent += used
    assert allowed - held < spent <= allowed
    assert isinstance(found, Denial)
    assert found.used == spent
    assert verify(site).ok
    assert counters(site, account) == {"budget:b": spent}


def counters(site: Installation, account: str) -> dict[str, int]:
    """Return what the ledger has charged each counter."""
    return {counter_id: used for (counter_id, _), used in site.ledger.counter_rows(account).items()}


def test_of_many_who_settle_one_admission_one_wins(site, account):
    secret = secret_of(site, account, "budget")
    for _ in range(20):
        admission = site.holds.admit(secret, "POST", "/chat")
        results = in_threads([lambda a=admission: site.holds.settle(a, Outcome())] * 8, threads=8)
        assert Counter(type(result).__name__ for result in results) == {"Record": 1, "HoldEnded": 7}
    assert verify(site).ok
    assert counters(site, account) == {"budget:b": 20 * PRICE}


def durable(site: Installation, secret: str, hold_id: str | None = None, **options: Any) -> Admission:
    future = CommitFuture()
    found = site.holds.authorize(secret, "POST", "/chat", NO_USAGE, future, hold_id=hold_id, **options)
    assert not isinstance(found, Denial), found
    found[1].wait()
    return found[0]


def test_a_durable_hold_has_exactly_one_ending(site, account, clock):
    """Eight settle, eight void, four look for expired holds, all at once: one of them ends it."""
    secret = secret_of(site, account, "budget")
    endings: Counter[str] = Counter()

    def settle(hold_id: str) -> str:
        future = CommitFuture()
        settled, commit = site.holds.settle_hold(hold_id, Outcome(), future)
        if commit is not None:
            commit.wait()
        return "replayed" if settled.replayed else "settled"

    def void(hold_id: str) -> str:
        future = CommitFuture()
        _, commit = site.holds.void_hold(hold_id, future)
        if commit is None:
            return "was ended"
        commit.wait()
        return "voided"

    def expire(hold_id: str) -> str:
        return f"expired {site.holds.expire()}"

    for number in range(12):
        admission = durable(site, secret, f"{account}-{number}", ttl_s=1)
        # The maintenance thread of the installation looks for expired holds too.
        clock.advance(seconds=1 if number % 2 else 0)
        calls = [*[settle] * 8, *[void] * 8, *[expire] * 4]
        results = in_threads([lambda c=call, a=admission: c(a.id) for call in calls])
        stored = site.ledger.hold(account, admission.id)
        counts = Counter(result for result in results if isinstance(result, str))
        ended = "settled" if stored is None else stored.state
        endings[ended] += 1
        assert counts["voided"] == (ended == "voided")
        # A hold that expired may still be settled, late and once.
        assert counts["settled"] == (ended == "settled")
        # Beside another call that is ending it: told to come again.
        assert all(isinstance(result, str | HoldEnded | Unavailable) for result in results)
    assert site.holds.open_count == 0
    assert site.ledger.open_holds() == []
    assert verify(site).ok
    assert counters(site, account).get("budget:b", 0) == endings["settled"] * PRICE


def test_one_name_authorized_by_many_at_once_is_one_hold(site, account):
    secret = secret_of(site, account, "budget")

    def authorize() -> str:
        return durable(site, secret, "one-name").id

    assert set(in_threads([authorize] * THREADS)) == {"one-name"}
    assert len(site.ledger.open_holds()) == 1
    assert site.gate.limit_statuses(site.gate.compiled_key(secret), site.clock.now_us())[0].used == PRICE


def test_abandoned_admissions_free_their_holds(site, account):
    secret = secret_of(site, account, "concurrency")

    def call() -> int:
        found = site.holds.admit(secret, "POST", "/chat")
        return int(isinstance(found, Admission))  # And forget it.

    for _ in range(3):
        results = in_threads([call] * FITS)
        assert sum(results) == FITS
        gc.collect()
    results = in_threads([lambda: site.holds.admit(secret, "POST", "/chat")] * CALLERS)
    assert sum(isinstance(result, Admission) for result in results) == FITS


def test_requests_of_two_periods_at_once_are_each_charged_to_their_own(site, account, clock):
    """At midnight requests of both days come in any order: what the meter books is what the gate charged."""
    secret = secret_of(site, account, "budget")
    clock.set(clock.now().replace(hour=0))

    def call(us: int) -> bool:
        clock.advance(us=us)
        found = site.holds.admit(secret, "POST", "/chat")
        if isinstance(found, Admission):
            site.holds.settle(found, Outcome())
        return isinstance(found, Admission)

    passed = sum(in_threads([lambda us=us: call(us) for us in (1, -3, 2) * (CALLERS // 3)]))
    assert FITS <= passed <= 2 * FITS
    assert verify(site).ok
    rows = site.ledger.counter_rows(account)
    assert sum(rows.values()) == passed * PRICE
    assert all(used <= FITS * PRICE for used in rows.values())


# -- what is read of the catalog while it changes ----------------------------------------------------


def change_meanwhile(site: Installation, method: str, change: Callable[[], Any]) -> None:
    """Make *change* happen once, after the gate's next reading of *method* and before the gate has the answer."""
    sources: Any = site.directory
    read = getattr(sources, method)

    def read_then_change(*args: Any) -> Any:
        delattr(sources, method)
        answer = read(*args)
        change()
        return answer

    setattr(sources, method, read_then_change)


def test_a_key_that_is_revoked_while_it_is_looked_up_is_not_remembered_as_good(site, account):
    """A stale answer kept would let the key in for good."""
    secret = secret_of(site, account, "budget")
    site.gate.forget()
    change_meanwhile(
        site, "entitlement", lambda: site.manage.set_key_state(None, f"{account}-key", "revoked")
    )
    assert site.holds.admit(secret, "POST", "/chat").reason == "key_revoked"
    assert site.holds.admit(secret, "POST", "/chat").reason == "key_revoked"


def test_a_key_that_is_made_while_it_is_looked_up_is_not_remembered_as_unknown(site, account):
    secret_of(site, account, "budget")
    secret = f"tk_{account}"
    key = Key(id=f"{account}-late", account=account, sha256=hash_secret(secret))
    change_meanwhile(site, "entitlement", lambda: site.manage.put(key))
    assert site.holds.admit(secret, "POST", "/chat").reason == "key_unknown"
    assert isinstance(site.holds.admit(secret, "POST", "/chat"), Admission)


def test_a_route_that_is_made_while_routes_are_read_is_not_missed(site, account):
    secret = secret_of(site, account, "budget")
    site.gate.forget()
    # Its entitlement reads the routes too, for those that limits and budgets name.
    assert site.gate.compiled_key(secret)
    route = Route(id="new", method="GET", path="/new")
    change_meanwhile(site, "routes", lambda: site.manage.put(route))
    assert site.holds.admit(secret, "GET", "/new").reason == "route_unknown"
    assert isinstance(site.holds.admit(secret, "GET", "/new"), Admission)


def test_a_budget_that_is_set_while_a_key_is_looked_up_charges_the_request(site, account):
    """The key is looked up again: the budget is in force."""
    secret = secret_of(site, account, "fixed")
    site.gate.forget()
    budget = Budget(id="b", account=account, amount=10**9, period="day")
    change_meanwhile(site, "entitlement", lambda: site.manage.put(budget))
    admission = site.holds.admit(secret, "POST", "/chat")
    assert admission.compiled_key.budgets
    site.holds.settle(admission, Outcome())
    assert verify(site).ok
    assert counters(site, account) == {"budget:b": PRICE}


LOWERED = ("fixed", "sliding", "permits", "concurrency", "nanos limit", "budget", "requests budget")
FEW = 5


def lowered(account: str, bound: str, where: str) -> Entry:
    """Return the entry that lets `FEW` requests pass where `entries` lets `FITS`."""
    entry = next(
        e for e in entries(account, bound) if e.kind == ("budgets" if "budget" in bound else "plans")
    )
    if isinstance(entry, Budget):
        return msgspec.structs.replace(entry, amount=entry.amount // FITS * FEW)
    limit = msgspec.structs.replace(entry.limits[0], amount=entry.limits[0].amount // FITS * FEW)
    if where == "key":
        return Key(id=f"{account}-key", account=account, limits=[limit], plan=f"{account}-plan")
    return msgspec.structs.replace(entry, limits=[limit])


@pytest.mark.drawn(6)
@pytest.mark.parametrize("door", ["admit", "state"])
@pytest.mark.parametrize(
    ("bound", "where"),
    [(bound, "plan") for bound in LOWERED] + [(bound, "key") for bound in LOWERED if "budget" not in bound],
)
def test_what_was_lowered_while_a_key_was_looked_up_stays_lowered(site, account, bound, where, door):
    """The look-up read the catalog before the change and goes on after it: it must not undo the change."""
    made = entries(account, bound)
    if where == "key":
        made = [msgspec.structs.replace(e, limits=made[1].limits) if isinstance(e, Key) else e for e in made]
    secret = set_up(site, *made)[f"{account}-key"]
    # So that the counter is there, and shared.
    assert isinstance(site.holds.admit(secret, "POST", "/chat"), Admission)
    gc.collect()
    passed = []

    def change() -> None:
        assert site.manage.put(lowered(account, bound, where)).action == "changed"
        passed.extend(admitted(site, secret, 3))

    site.gate.forget()
    if door == "admit":
        change_meanwhile(site, "entitlement", change)
    else:
        reader = site.directory.entitlement_of_id

        def read() -> Any:
            answer = reader(f"{account}-key")
            if not passed:
                change()
            return answer

        site.gate.compiled_key_of(read)
    passed.extend(admitted(site, secret, FITS))
    assert len(passed) == FEW


def admitted(site: Installation, secret: str, calls: int) -> list[Admission]:
    found = [site.holds.admit(secret, "POST", "/chat") for _ in range(calls)]
    return [admission for admission in found if isinstance(admission, Admission)]


def test_credit_spent_while_a_key_was_looked_up_is_spent(site, account):
    secret = secret_of(site, account, "credit")
    site.gate.forget()
    passed: list[Admission] = []
    change_meanwhile(site, "book", lambda: None)
    change_meanwhile(site, "entitlement", lambda: passed.extend(admitted(site, secret, 60)))
    passed += admitted(site, secret, FITS)
    assert len(passed) == FITS


def test_a_request_whose_key_was_looked_up_before_a_change_is_decided_by_the_change(site, account):
    """Between the look-up and the decision the budget is lowered: the request must find the lower one."""
    secret = secret_of(site, account, "budget")
    site.holds.admit(secret, "POST", "/chat")
    gc.collect()
    change = lowered(account, "budget", "plan")
    gate: Any = site.gate
    keys = gate._keys
    routes = keys.routes

    class Changing:
        def match(self, *args: Any) -> Any:
            keys.routes = routes
            site.manage.put(change)
            admitted_after.extend(admitted(site, secret, FEW))
            return routes.match(*args)

    admitted_after: list[Admission] = []
    keys.routes = Changing()
    assert site.holds.admit(secret, "POST", "/chat").reason == "budget_exhausted"
    assert len(admitted_after) == FEW


def rotated(site: Installation, account: str, algorithm: str, where: str) -> list[str]:
    """Return the secrets of a key of `FEW` and of its successor, which was moved to `FITS`."""
    small = Limit(name="l", amount=FEW, algorithm=algorithm)
    large = Limit(name="l", amount=FITS, algorithm=algorithm)
    set_up(
        site,
        Account(id=account, name="Acme"),
        Plan(slug=f"{account}-s", limits=[small]),
        Plan(slug=f"{account}-l", limits=[large]),
        Route(id="chat", method="POST", path="/chat"),
    )
    old = Key(id=f"{account}-key", account=account, plan=f"{account}-s", sha256=hash_secret(account))
    if where == "key":
        old = msgspec.structs.replace(old, limits=[small])
    site.manage.put(old)
    issued = site.manage.rotate_key(account, old.entry_id, 3600)
    moved = {"limits": [large]} if where == "key" else {"plan": f"{account}-l"}
    site.manage.put(msgspec.structs.replace(issued.entry, **moved))
    return [account, str(issued.secret)]


@pytest.mark.drawn
@pytest.mark.parametrize("algorithm", ["fixed", "sliding", "permits", "concurrency"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("where", ["plan", "key"])
def test_two_keys_of_one_line_are_each_held_to_their_own_amount(site, account, algorithm, order, where):
    """Rotated, then moved to a larger limit: whichever of them was compiled last, neither gets the other's."""
    secrets = rotated(site, account, algorithm, where)
    for index in order:
        site.gate.compiled_key(secrets[index])
    kept = admitted(site, secrets[0], FITS)
    assert len(kept) == FEW
    # What one used counts for the other; a bucket of permits has one pace, the lesser.
    more = admitted(site, secrets[1], FITS)
    assert len(more) == (0 if algorithm == "permits" else FITS - FEW)
    assert not admitted(site, secrets[0], 1)


def test_what_the_directory_reads_while_it_is_told_to_forget_is_not_remembered(site, account, monkeypatch):
    secret_of(site, account, "budget")
    directory = site.directory
    directory.forget()
    for read, method in (
        (lambda: directory.account(account), "get"),
        (lambda: directory.key(f"{account}-key"), "find_key"),
    ):
        with monkeypatch.context() as patch:
            # What was read before, None, comes to the directory after it was told to forget.
            patch.setattr(directory._catalog, method, lambda *args: directory.forget(account))
            assert read() is None
        assert read() is not None


@pytest.mark.drawn(2)
@pytest.mark.parametrize("bound", ["fixed", "sliding", "permits"])
@pytest.mark.parametrize("restarted", [False, True])
def test_who_comes_after_late_settles_has_what_these_left(install, account, clock, bound, restarted):
    """A late settle is recorded even if it overshoots, and nobody new is admitted into a window that is full."""
    site = install()
    secret = secret_of(site, account, bound)
    late_count = 40
    late_settles = late_holds(site, secret, account, late_count, clock)
    assert {type(result) for result in in_threads(late_settles)} == {tuple}
    verify(site)
    if restarted:
        site.close()
        site = install()
    results = in_threads([lambda: site.holds.admit(secret, "POST", "/chat")] * CALLERS)
    assert sum(isinstance(result, Admission) for result in results) == FITS - late_count
    assert verify(site).ok


@pytest.mark.drawn(1)
@pytest.mark.parametrize("algorithm", ["fixed", "sliding"])
def test_a_late_settle_counts_where_keys_share_a_window_and_have_their_own_amounts(
    site, account, clock, algorithm
):
    secrets = rotated(site, account, algorithm, "key")
    late_count = 3
    for late_settle in late_holds(site, secrets[1], account, late_count, clock):
        late_settle()
    assert len(admitted(site, secrets[0], FITS)) == FEW - late_count


@pytest.mark.drawn(1)
@pytest.mark.parametrize("bound", ["fixed", "sliding", "permits"])
def test_late_settles_among_new_requests_pass_a_window_by_no_more_than_themselves(
    site, account, clock, bound
):
    secret = secret_of(site, account, bound)
    late_count = 40
    late_settles = late_holds(site, secret, account, late_count, clock)
    admissions = [lambda: site.holds.admit(secret, "POST", "/chat")] * CALLERS
    calls = [call for pair in zip(late_settles, admissions, strict=False) for call in pair] + admissions
    results = in_threads(calls)
    admitted = sum(isinstance(result, Admission) for result in results)
    assert FITS - late_count <= admitted <= FITS
    (status,) = site.gate.limit_statuses(site.gate.compiled_key(secret), clock.now_us())
    assert status.used == admitted + late_count
    assert isinstance(site.holds.admit(secret, "POST", "/chat"), Denial)
    assert verify(site).ok


def late_holds(site, secret: str, account: str, count: int, clock) -> list[Callable[[], Any]]:
    """Open *count* holds and let them expire; return the calls that settle them late."""
    for index in range(count):
        found = site.holds.authorize(
            secret, "POST", "/chat", NO_USAGE, CommitFuture(), hold_id=f"h{index}", ttl_s=1
        )
        assert not isinstance(found, Denial)
        found[1].wait()
    clock.advance(seconds=1)
    site.holds.expire()
    verify(site)

    def settle(hold_id: str) -> tuple[Any, Any]:
        settled, future = site.holds.settle_hold(hold_id, Outcome(), CommitFuture(), account_id=account)
        future.wait()
        return settled, future

    return [partial(settle, f"h{index}") for index in range(count)]
