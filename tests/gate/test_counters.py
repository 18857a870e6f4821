"""Every counter agrees with a brute-force oracle: a list of what was taken, and when."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.domain.catalog import Budget, Limit
from tollkeeper.domain.entitlements import scope_of_budget
from tollkeeper.domain.instants import US_PER_S, from_us, to_us
from tollkeeper.domain.periods import period_of
from tollkeeper.domain.top_ups import TopUps
from tollkeeper.gate.budget_counter import BudgetCounter
from tollkeeper.gate.counter import NotRead
from tollkeeper.gate.openings import Openings
from tollkeeper.gate.windows import SLIDING_SLOTS, WINDOWS

T0 = to_us(datetime(2026, 3, 18, 12, tzinfo=UTC))
WINDOW_US = 60 * US_PER_S
SLOT_US = WINDOW_US // SLIDING_SLOTS
ALGORITHMS = ("fixed", "sliding", "permits")


def window(
    algorithm: str, amount: int, *, unit: str = "tokens", now_us: int = T0, stored=None, **fields: Any
):
    if algorithm == "concurrency":
        unit = "requests"
    limit = Limit(name="l", amount=amount, window="1m", unit=unit, algorithm=algorithm, **fields)
    return WINDOWS[algorithm]("acme", "limit", limit, now_us, dict(stored or {}), [])


class Take(NamedTuple):
    """One request of a history: so many µs after the one before, for so much."""

    wait_us: int
    amount: int


waits = (
    st.integers(0, 3 * SLOT_US)
    | st.integers(0, 2 * WINDOW_US)
    | st.sampled_from((0, 1, SLOT_US - 1, SLOT_US, WINDOW_US - 1, WINDOW_US, WINDOW_US + SLOT_US))
)
histories = st.lists(st.builds(Take, waits, st.integers(0, 12)), max_size=40)
allowances = st.integers(0, 20)


def run(counter, history, now_us=T0):
    """Yield `(now, amount, admitted)` for a history of requests that keep what they took."""
    for wait_us, amount in history:
        now_us += wait_us
        admitted = counter.fits(amount, now_us)
        if admitted:
            counter.take(amount, now_us)
        yield now_us, amount, admitted


def played(counter, history, rows=None) -> int:
    """Run a history; return when it ends. After each request *rows* get what a commit would store."""
    now_us = T0
    for at_us, _, _ in run(counter, history):
        now_us = at_us
        if rows is not None:
            rows.update(counter.slots())
    return now_us


# -- windows -----------------------------------------------------------------------------------------


@given(histories, allowances)
def test_a_fixed_window_admits_exactly_what_fits_its_window(history, allowed):
    taken: dict[int, int] = defaultdict(int)
    for now_us, amount, admitted in run(window("fixed", allowed), history):
        index = now_us // WINDOW_US
        assert admitted == (taken[index] + amount <= allowed)
        taken[index] += amount if admitted else 0


@given(histories, allowances)
def test_a_sliding_window_never_passes_its_amount_in_any_span_as_long(history, allowed):
    taken: list[tuple[int, int]] = []
    for now_us, amount, admitted in run(window("sliding", allowed), history):
        if admitted:
            taken.append((now_us, amount))
            # Every span that ends at a take is checked, and a fullest span ends at one.
            assert sum(n for at, n in taken if at > now_us - WINDOW_US) <= allowed


@given(histories, allowances)
def test_a_sliding_window_denies_at_most_a_sixtieth_longer_than_needed(history, allowed):
    taken: list[tuple[int, int]] = []
    for now_us, amount, admitted in run(window("sliding", allowed), history):
        if admitted:
            taken.append((now_us, amount))
        else:
            longer = sum(n for at, n in taken if at > now_us - WINDOW_US - SLOT_US)
            assert longer + amount > allowed


class Gcra:
    """The generic cell rate algorithm: keeps the instant at which the bucket would be full, exactly."""

    def __init__(self, rate: int, burst: int) -> None:
        self.per_permit_us = Fraction(WINDOW_US, rate)
        self.burst = burst
        self.full_at = Fraction(T0)

    def admits(self, amount: int, now_us: int) -> bool:
        full_at = max(self.full_at, Fraction(now_us)) + amount * self.per_permit_us
        if full_at - now_us > self.burst * self.per_permit_us:
            return False
        self.full_at = full_at
        return True


@given(histories, st.integers(1, 20), st.integers(1, 30))
def test_a_permit_bucket_agrees_with_the_generic_cell_rate_algorithm(history, rate, burst):
    oracle = Gcra(rate, burst)
    for now_us, amount, admitted in run(window("permits", rate, burst=burst), history):
        assert admitted == oracle.admits(amount, now_us)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 5))
def test_concurrency_counts_what_is_under_way(starts, allowed):
    counter = window("concurrency", allowed)
    under_way = 0
    for index, start in enumerate(starts):
        if start:
            assert counter.fits(1, T0) == (under_way < allowed)
            if under_way < allowed:
                counter.take(1, T0)
                under_way += 1
        elif under_way:
            (counter.settle if index % 2 else counter.give_back)(0, 1, *([1] if index % 2 else []))
            under_way -= 1
        assert counter.allowed_used(T0) == (allowed, under_way)


# -- holds that end ----------------------------------------------------------------------------------

ways_to_end = st.sampled_from(("keep", "settle", "give back", "undo"))
endings = st.lists(st.tuples(waits, st.integers(0, 12), ways_to_end, st.integers(0, 20)), max_size=30)


@pytest.mark.parametrize("algorithm", ["fixed", "sliding"])
@given(history=endings)
def test_a_window_counts_what_was_really_used(algorithm, history):
    """The oracle keeps a list of amounts and corrects the entry; used is what of it is in the window."""
    counter = window(algorithm, 10**6)
    entries: list[list[int]] = []
    under_way: list[tuple[list[int], int, int]] = []
    now_us = T0
    for wait_us, amount, ending, actual in history:
        now_us += wait_us
        assert counter.fits(amount, now_us)
        entry = [now_us, amount]
        entries.append(entry)
        under_way.append((entry, counter.take(amount, now_us), amount))
        if ending != "keep":
            entry, mark, held = under_way.pop(0)
            if ending == "settle":
                counter.settle(mark, held, actual)
                entry[1] = actual
            elif ending == "give back":
                counter.give_back(mark, held)
                entry[1] = 0
            else:
                counter.settle(mark, held, actual)
                counter.unsettle(mark, held, actual)
        if algorithm == "fixed":
            used = sum(n for at, n in entries if at // WINDOW_US == now_us // WINDOW_US)
        else:
            used = sum(n for at, n in entries if at - at % SLOT_US > now_us - WINDOW_US - SLOT_US)
        assert counter.allowed_used(now_us) == (10**6, used)


@given(st.lists(st.tuples(waits, st.integers(1, 12), st.integers(0, 20)), max_size=30), st.integers(1, 20))
def test_a_permit_bucket_gets_back_what_was_not_used_and_is_never_more_than_full(history, rate):
    counter = window("permits", rate, burst=25)
    level, at_us, now_us = Fraction(25), T0, T0
    for wait_us, amount, actual in history:
        now_us += wait_us
        level = min(Fraction(25), level + Fraction((now_us - at_us) * rate, WINDOW_US))
        at_us = now_us
        assert counter.fits(amount, now_us) == (amount <= level)
        if amount <= level:
            counter.settle(counter.take(amount, now_us), amount, actual)
            level = min(Fraction(25), level - actual)


# -- when it lifts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(history=histories, allowed=st.integers(1, 20), amount=st.integers(1, 25))
def test_a_denial_lifts_at_the_instant_that_it_names(algorithm, history, allowed, amount):
    """Then, if nothing else happens, and not a microsecond before."""
    counter = window(algorithm, allowed)
    now_us = played(counter, history)
    if counter.fits(amount, now_us):
        return
    lifts_at_us = counter.lifts_at_us(amount, now_us)
    if amount > allowed:
        assert lifts_at_us is None
        return
    assert lifts_at_us is not None
    assert lifts_at_us > now_us
    assert not counter.fits(amount, lifts_at_us - 1)
    assert counter.fits(amount, lifts_at_us)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(history=histories, allowed=st.integers(1, 20))
def test_a_window_that_resets_is_empty(algorithm, history, allowed):
    counter = window(algorithm, allowed)
    now_us = played(counter, history)
    resets_at_us = counter.resets_at_us(now_us)
    assert resets_at_us >= now_us
    assert counter.fits(allowed, resets_at_us)


# -- a clock that goes back --------------------------------------------------------------------------

leaps = st.integers(-3 * WINDOW_US, 3 * WINDOW_US) | st.integers(-SLOT_US, SLOT_US)
jumps = st.lists(st.tuples(leaps, st.integers(1, 12)), max_size=30)


@given(jumps, allowances)
def test_a_fixed_window_does_not_overshoot_when_the_clock_goes_back(history, allowed):
    counter = window("fixed", allowed)
    taken: dict[int, int] = defaultdict(int)
    now_us = latest_us = T0
    for jump_us, amount in history:
        now_us += jump_us
        latest_us = max(latest_us, now_us)
        if counter.fits(amount, now_us):
            counter.take(amount, now_us)
            taken[latest_us // WINDOW_US] += amount
            assert taken[latest_us // WINDOW_US] <= allowed


@example([(-1_000_001, 1), (60_000_001, 1)], 1)
@given(jumps, allowances)
def test_a_sliding_window_does_not_overshoot_when_the_clock_goes_back(history, allowed):
    """By a clock that stands still until the real one has caught up, no span has more than allowed."""
    counter = window("sliding", allowed)
    taken: list[tuple[int, int]] = []
    now_us = latest_us = T0
    for jump_us, amount in history:
        now_us += jump_us
        latest_us = max(latest_us, now_us)
        if counter.fits(amount, now_us):
            counter.take(amount, now_us)
            taken.append((latest_us, amount))
            assert sum(n for at, n in taken if at > latest_us - WINDOW_US) <= allowed


@given(jumps, st.integers(1, 20), st.integers(1, 30))
def test_a_permit_bucket_does_not_overshoot_when_the_clock_goes_back(history, rate, burst):
    counter, oracle = window("permits", rate, burst=burst), Gcra(rate, burst)
    now_us = latest_us = T0
    for jump_us, amount in history:
        now_us += jump_us
        latest_us = max(latest_us, now_us)
        if counter.fits(amount, now_us):
            counter.take(amount, now_us)
            assert oracle.admits(amount, latest_us)


# -- a crash -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(before=histories, after=histories, allowed=st.integers(1, 20), down_us=waits)
def test_a_counter_rebuilt_from_what_was_stored_goes_on_as_if_nothing_had_happened(
    algorithm, before, after, allowed, down_us
):
    """Stored rows are replaced one by one and old ones stay, as in the table of windows."""
    counter = window(algorithm, allowed)
    rows: dict[int, int] = {}
    now_us = played(counter, before, rows)
    now_us += down_us
    rebuilt = window(algorithm, allowed, now_us=now_us, stored=rows)
    assert rebuilt.allowed_used(now_us) == counter.allowed_used(now_us)
    assert list(run(rebuilt, after, now_us)) == list(run(counter, after, now_us))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(before=histories, held=st.integers(0, 5), actual=st.integers(0, 30), down_us=st.integers(0, WINDOW_US))
def test_a_hold_that_outlives_a_crash_settles_where_it_was_taken(algorithm, before, held, actual, down_us):
    counter = window(algorithm, 40)
    rows: dict[int, int] = {}
    now_us = played(counter, before, rows)
    if not counter.fits(held, now_us):
        return
    mark = counter.take(held, now_us)
    rows.update(counter.slots())
    rebuilt = window(algorithm, 40, now_us=now_us + down_us, stored=rows)
    for each in (counter, rebuilt):
        each.settle(mark, held, actual)
    later_us = now_us + down_us
    assert rebuilt.allowed_used(later_us) == counter.allowed_used(later_us)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(
    before=histories,
    held=st.integers(0, 5),
    actual=st.integers(0, 30),
    open_us=waits,
    late_us=waits,
    restarted=st.booleans(),
)
def test_a_late_settle_counts_where_one_in_time_would(
    algorithm, before, held, actual, open_us, late_us, restarted
):
    """A permit bucket may be emptier than that: what it got back at the expiry may have been lost in a full one."""
    late, in_time = (window(algorithm, 40) for _ in range(2))
    rows: dict[int, int] = {}
    now_us = at_us = played(late, before, rows)
    played(in_time, before)
    if not late.fits(held, at_us):
        return
    in_time.fits(held, at_us)
    late_mark, mark = late.take(held, at_us), in_time.take(held, at_us)
    now_us += open_us
    late.fits(0, now_us)
    late.give_back(late_mark, held)
    rows.update(late.slots())
    now_us += late_us
    if restarted:
        late = window(algorithm, 40, now_us=now_us, stored=rows)
    undone = late.allowed_used(now_us)
    taken = late.take_late(actual, at_us, now_us)
    late.give_back(taken, actual)
    assert late.allowed_used(now_us) == undone
    late.take_late(actual, at_us, now_us)
    in_time.settle(mark, held, actual)
    assert late.dirty or late.allowed_used(now_us) == undone
    if algorithm == "permits":
        assert late.allowed_used(now_us)[1] >= min(in_time.allowed_used(now_us)[1], actual)
    else:
        assert late.allowed_used(now_us) == in_time.allowed_used(now_us)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(back_us=st.integers(1, 3 * WINDOW_US), amount=st.integers(1, 9))
def test_a_late_settle_counts_while_the_clock_is_behind(algorithm, back_us, amount):
    """The window that the clock showed last counts until the clock is there again."""
    counter = window(algorithm, 40)
    counter.fits(1, T0)
    counter.take(1, T0)
    counter.take_late(amount, T0 - back_us, T0 - back_us)
    assert counter.allowed_used(T0 - back_us) == (40, 1 + amount)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(history=histories, allowed=st.integers(1, 20))
def test_stored_slots_mean_nothing_from_their_expiry_on(algorithm, history, allowed):
    """They are purged then."""
    counter = window(algorithm, allowed)
    played(counter, history)
    at_us = max(counter.expires_at_us(), T0)
    stored = window(algorithm, allowed, now_us=at_us, stored=counter.slots())
    fresh = window(algorithm, allowed, now_us=at_us)
    assert stored.allowed_used(at_us) == fresh.allowed_used(at_us)
    assert stored.fits(allowed, at_us)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_is_stored_fits_in_64_bits_at_any_size(algorithm):
    """A bucket of money by the hour has a level of 1e23 nanos × µs."""
    amount = 9 * 10**18
    limit = Limit(name="l", amount=amount, window="52w", unit="nanos", algorithm=algorithm)
    counter = WINDOWS[algorithm]("acme", "limit", limit, T0, {}, [])
    counter.take(10**15, T0)
    assert counter.fits(1, T0 + 1)
    counter.take(1, T0 + 1)
    stored = counter.slots()
    assert all(-(2**63) <= n < 2**63 for n in (*stored, *stored.values(), counter.expires_at_us()))


@pytest.mark.parametrize("algorithm", ["fixed", "sliding", "concurrency"])
def test_a_changed_amount_applies_at_once_and_forgets_nothing(algorithm):
    counter = window(algorithm, 10)
    for _ in range(4):
        assert counter.fits(1, T0)
        counter.take(1, T0)
    for amount, fits in ((4, False), (5, True), (0, False)):
        counter.amend(Limit(name="l", amount=amount, window="1m", unit=counter.unit, algorithm=algorithm))
        assert counter.fits(1, T0) == fits


def test_a_smaller_bucket_holds_no_more_than_its_size():
    counter = window("permits", 10)
    counter.amend(Limit(name="l", amount=10, burst=3, window="1m", unit="tokens", algorithm="permits"))
    assert counter.fits(3, T0)
    assert not counter.fits(4, T0 + WINDOW_US)


# -- budgets -----------------------------------------------------------------------------------------


class FakeLedger:
    """Counters as the ledger has them: committed amounts by period, and the number of the last commit."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = defaultdict(int)
        self.commit = 0

    def stored(self, account_id: str, counter_id: str, period_start_us: int) -> tuple[int, int]:
        return self.rows[period_start_us], self.commit


NO_TOP_UPS = (TopUps(), {}, 0)


def nothing_opened() -> Openings:
    return Openings(lambda *of: (0, []))


class ReadBudget(BudgetCounter):
    """Reads each period when it needs it, as the gate does between two tries."""

    def __init__(self, scope, now_us, stored, openings=None):
        self.stored = stored
        super().__init__(scope, openings or nothing_opened())
        self.fits(0, now_us)

    def _turn_to(self, at_us):
        if self.needs_top_ups:
            self.end_top_ups(self.begin_top_ups(), NO_TOP_UPS)
        for start_us in self.unread(at_us):
            period = self.begin_read(start_us)
            self.end_read(period, self.stored(self.account_id, self.counter_id, period.start_us))
        super()._turn_to(at_us)


def budget(amount=100, period="day", unit="nanos"):
    return scope_of_budget(Budget(id="b", account="acme", amount=amount, period=period, unit=unit))


HOUR_US = 3600 * US_PER_S
moments = st.builds(
    lambda days, us: days * 24 * HOUR_US + us,
    st.integers(-2, 2),
    st.sampled_from((0, -12 * HOUR_US, 12 * HOUR_US - 1)),
)


@given(st.data())
def test_a_budget_agrees_with_three_lists_per_period(data):
    """
    Committed, settled and held are three lists; the clock moves in both directions, across days.

    In both directions because requests that began in the last microseconds of a period are decided after
    ones of the next: each counts in the period of its own time, as the meter will book it.
    """
    ledger = FakeLedger()
    counter = ReadBudget(budget(), T0, ledger.stored)
    held: list[tuple[int, int]] = []
    settled: list[tuple[int, int]] = []
    steps = ("take", "take", "settle", "give back", "undo", "commit", "foreign", "restart")
    for step in data.draw(st.lists(st.sampled_from(steps), max_size=40)):
        now_us = T0 + data.draw(moments)
        day = period_of(from_us(now_us), "day")
        start_us, end_us = to_us(day.start_at), to_us(day.end_at)
        used = sum(n for at, n in (*held, *settled) if at == start_us) + ledger.rows[start_us]
        assert counter.allowed_used(now_us) == (100, used)
        assert counter.resets_at_us(now_us) == end_us
        if step == "take":
            amount = data.draw(st.integers(0, 60))
            assert counter.fits(amount, now_us) == (used + max(1, amount) <= 100)
            if counter.fits(amount, now_us):
                assert counter.take(amount, now_us) == start_us
                held.append((start_us, amount))
        elif step in ("settle", "give back", "undo") and held:
            mark, amount = held.pop(data.draw(st.integers(0, len(held) - 1)))
            if step == "give back":
                counter.give_back(mark, amount)
                continue
            actual = data.draw(st.integers(0, 80))
            counter.settle(mark, amount, actual)
            if step == "undo":
                counter.unsettle(mark, amount, actual)
                held.append((mark, amount))
            else:
                settled.append((mark, actual))
        elif step == "commit" and settled:
            # Everything settled goes at once; charges of other nodes' batches come with it.
            ledger.commit += 1
            counted: dict[int, int] = defaultdict(int)
            for mark, actual in settled:
                counted[mark] += actual
            settled.clear()
            for mark, amount in counted.items():
                ledger.rows[mark] += amount
            for mark, amount in counted.items():
                counter.booked(mark, amount, counted=amount, commit=ledger.commit)
        elif step == "foreign":
            # A batch of ingested events, or a refund; sometimes the counter is read between commit and word.
            ledger.commit += 1
            amount = data.draw(st.integers(-5, 40))
            ledger.rows[start_us] += amount
            if data.draw(st.booleans()):
                fresh = ReadBudget(budget(), now_us, ledger.stored)
                fresh.booked(start_us, amount, counted=0, commit=ledger.commit)
                assert fresh.allowed_used(now_us)[1] == ledger.rows[start_us]
            counter.booked(start_us, amount, counted=0, commit=ledger.commit)
        elif step == "restart":
            # What was held or not yet committed is lost with the process.
            held.clear()
            settled.clear()
            counter = ReadBudget(budget(), now_us, ledger.stored)


@given(st.data())
def test_commits_while_a_period_is_read_count_once_whenever_it_was_read(data):
    """The ledger is read without the gate's lock: holds, endings and commits go on, and several may read at once."""
    ledger = FakeLedger()
    counter = BudgetCounter(budget(), nothing_opened())
    counter.end_top_ups(counter.begin_top_ups(), NO_TOP_UPS)
    mark = budget().span_us(T0)[0]
    readers: list[list[Any]] = []
    held: list[int] = []
    settled: list[int] = []
    unheard: list[tuple[int, int, int]] = []
    steps = ("take", "settle", "give back", "undo", "commit", "heard", "begin", "read", "end", "fail")
    for step in data.draw(st.lists(st.sampled_from(steps), max_size=40)):
        if step == "take":
            amount = data.draw(st.integers(0, 60))
            assert counter.retake(amount, T0) == mark
            held.append(amount)
        elif step in ("settle", "give back", "undo") and held:
            amount, actual = held.pop(), data.draw(st.integers(0, 80))
            if step == "give back":
                counter.give_back(mark, amount)
                continue
            counter.settle(mark, amount, actual)
            if step == "undo":
                counter.unsettle(mark, amount, actual)
                held.append(amount)
            else:
                settled.append(actual)
        elif step == "commit":
            # What was settled, and something that did not pass the gate.
            ledger.commit += 1
            counted, foreign = sum(settled), data.draw(st.integers(0, 40))
            settled.clear()
            ledger.rows[mark] += counted + foreign
            unheard.append((counted + foreign, counted, ledger.commit))
        elif step == "heard" and unheard:
            amount, counted, commit = unheard.pop(0)
            counter.booked(mark, amount, counted=counted, commit=commit)
        elif step == "begin":
            readers.append([counter.begin_read(mark), None])
        elif step == "read" and readers:
            reader = data.draw(st.sampled_from(readers))
            reader[1] = reader[1] or ledger.stored("acme", "b", mark)
        elif step in ("end", "fail") and readers:
            period, committed = readers.pop(data.draw(st.integers(0, len(readers) - 1)))
            counter.end_read(period, committed if step == "end" else None)
    for amount, counted, commit in unheard:
        counter.booked(mark, amount, counted=counted, commit=commit)
    for period, committed in readers:
        counter.end_read(period, committed)
    if counter.unread(T0):
        with pytest.raises(NotRead):
            counter.fits(0, T0)
        counter.end_read(counter.begin_read(mark), ledger.stored("acme", "b", mark))
    assert counter.allowed_used(T0) == (100, ledger.rows[mark] + sum(held) + sum(settled))


@given(st.integers(1, 100), st.integers(0, 300))
def test_a_hold_of_yesterday_settles_yesterday(held, actual):
    """The charge must lie where the event does, whenever it is settled."""
    ledger = FakeLedger()
    counter = ReadBudget(budget(), T0, ledger.stored)
    tomorrow_us = T0 + 24 * HOUR_US
    mark = counter.take(held, T0)
    assert counter.allowed_used(tomorrow_us) == (100, 0)
    counter.settle(mark, held, actual)
    assert counter.allowed_used(tomorrow_us) == (100, 0)
    assert counter.allowed_used(T0) == (100, actual)


def test_periods_that_nothing_is_under_way_in_are_forgotten():
    counter = ReadBudget(budget(), T0, FakeLedger().stored)
    for days in range(400):
        now_us = T0 + days * 24 * HOUR_US
        assert counter.fits(1, now_us)
        mark = counter.take(1, now_us)
        counter.settle(mark, 1, 1)
        counter.booked(mark, 1, counted=1, commit=days)
    assert len(counter._periods) <= 2


@pytest.mark.parametrize(
    ("unit", "fits"), [("nanos", False), ("tokens", False), ("requests", False), ("credits", True)]
)
def test_an_empty_budget_stops_calls_whose_cost_is_not_known(unit, fits):
    """What a call costs in credits is set with its route; what it costs in money or tokens may be open."""
    counter = ReadBudget(budget(10, unit=unit), T0, FakeLedger().stored)
    assert counter.fits(10, T0)
    counter.take(10, T0)
    assert counter.fits(0, T0) == fits
    assert not counter.fits(1, T0)


def test_a_budget_without_an_amount_counts_without_a_bound():
    scope = budget()._replace(amount=None)
    counter = ReadBudget(scope, T0, FakeLedger().stored)
    assert counter.fits(10**30, T0)
    counter.take(7, T0)
    assert counter.allowed_used(T0) == (None, 7)


def test_a_changed_period_keeps_what_is_under_way():
    """On the first of a month its day and month begin together: what is held of one is held of the other."""
    first_us = to_us(datetime(2026, 3, 1, tzinfo=UTC))
    ledger = FakeLedger()
    counter = ReadBudget(budget(period="month"), first_us, ledger.stored)
    mark = counter.take(30, first_us)
    counter.amend(budget(period="day"))
    assert counter.allowed_used(first_us) == (100, 30)
    counter.amend(budget(period="month"))
    assert counter.allowed_used(first_us + 48 * HOUR_US) == (100, 30)
    counter.settle(mark, 30, 20)
    assert counter.allowed_used(first_us) == (100, 20)
