"""A credit balance is the committed book less what is under way, each request drawing on the grants of its own time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import example, given
from hypothesis import strategies as st

from tollkeeper.domain.draws import DrawRun, Draws
from tollkeeper.domain.instants import US_PER_S, from_us, to_us
from tollkeeper.domain.periods import FAR_FUTURE
from tollkeeper.domain.pools import CreditBook, GrantBalance
from tollkeeper.gate.credit import CreditPool

T0 = to_us(datetime(2026, 3, 18, 10, tzinfo=UTC))
HOUR_US = 3600 * US_PER_S
STEPS = (
    "take",
    "take",
    "settle",
    "give back",
    "undo",
    "commit",
    "grant",
    "revoke",
    "later",
    "earlier",
    "restart",
)


def left_of(book: CreditBook, under_way: list[tuple[int, int]], now_us: int) -> tuple[int, int]:
    """The oracle: every request of an earlier span draws on the book at its own time, and the rest is subtracted."""
    over = [to_us(at) for at in book.expiries if to_us(at) <= now_us]
    now_out = 0
    for at_us, amount in sorted(under_way):
        if any(at_us < expiry_us for expiry_us in over):
            book = book.charged(amount, from_us(at_us))
        else:
            now_out += amount
    return book.balance_nanos(from_us(now_us)), now_out


@given(st.data())
def test_a_balance_agrees_with_the_book_less_what_is_under_way(data):
    """Every hold and settlement by itself, with its own time, however they are mixed with expiries and commits."""
    books = {"book": CreditBook(), "commit": 0}
    pool = CreditPool("acme")
    pool.take_book(books["book"], books["commit"], T0)
    held: list[tuple[int, int]] = []
    settled: list[tuple[int, int]] = []
    now_us, latest_us, names = T0, T0, iter(range(1000))
    for step in data.draw(st.lists(st.sampled_from(STEPS), max_size=40)):
        book = books["book"]
        balance, out = left_of(book, held + settled, now_us)
        assert pool.allowed_used(now_us) == (max(0, balance), out)
        assert pool.out_nanos == sum(amount for _, amount in held + settled)
        assert pool.is_idle(now_us) == (not pool.out_nanos)
        if step == "take":
            amount = data.draw(st.integers(0, 60))
            assert pool.fits(amount, now_us) == (balance - out >= max(1, amount))
            if pool.fits(amount, now_us):
                held.append((pool.take(amount, now_us), amount))
        elif step in ("settle", "give back", "undo") and held:
            mark, amount = held.pop(data.draw(st.integers(0, len(held) - 1)))
            if step == "give back":
                pool.give_back(mark, amount)
                continue
            actual = data.draw(st.integers(0, 80))
            pool.settle(mark, amount, actual)
            if step == "undo":
                pool.unsettle(mark, amount, actual)
                held.append((mark, amount))
            else:
                settled.append((mark, actual))
        elif step == "later":
            now_us += data.draw(st.integers(0, 48 * HOUR_US))
            latest_us = max(latest_us, now_us)
        elif step == "earlier":
            # A clock that is set back before an expiry: the grant counts again, as in the book.
            now_us -= data.draw(st.integers(0, 48 * HOUR_US))
        elif step == "restart" and not settled:
            pool = CreditPool("acme")
            for mark, amount in held:
                assert pool.retake(amount, mark) == mark
            pool.take_book(books["book"], books["commit"], now_us)
        elif step in ("commit", "grant", "revoke"):
            draws = Draws()
            for at_us, amount in settled:
                draws.add(at_us, amount)
            if step == "grant":
                amount = data.draw(st.integers(1, 100))
                expires_at = from_us(latest_us) + timedelta(hours=data.draw(st.integers(1, 48)))
                expires_at = data.draw(st.sampled_from((expires_at, FAR_FUTURE)))
                book = book.posted(GrantBalance(1, expires_at, f"g{next(names)}", amount, amount))
            for at_us, amount in draws.between([to_us(at) for at in book.expiries]):
                book = book.charged(amount, from_us(at_us))
            if step == "revoke" and book.grants:
                grant = data.draw(st.sampled_from(book.grants))
                book = book.revoked(grant.grant_id, from_us(now_us))
            changed = book != books["book"]
            books["book"] = book
            books["commit"] += 1
            pool.booked(book if changed else None, counted=settled, commit=books["commit"], now_us=now_us)
            settled.clear()


def test_a_hold_on_an_expired_grant_leaves_paid_money_alone():
    """M18 while the hold is open: 70 are held on a grant that expires, 100 were bought; all 100 can be spent."""
    expires_us = T0 + US_PER_S
    book = CreditBook().posted(GrantBalance(1, from_us(expires_us), "gift", 100, 100))
    book = book.posted(GrantBalance(2, FAR_FUTURE, "paid", 100, 100))
    pool = CreditPool("acme")
    pool.take_book(book, 1, T0)
    mark = pool.take(70, T0)
    assert pool.fits(130, T0)
    assert not pool.fits(131, T0)
    assert pool.fits(100, expires_us)
    assert not pool.fits(101, expires_us)
    # It used more than the grant has: the rest is paid money's.
    pool.settle(mark, 70, 120)
    assert pool.fits(80, expires_us)
    assert not pool.fits(81, expires_us)
    pool.booked(book.charged(120, from_us(mark)), counted=[(mark, 120)], commit=2, now_us=expires_us)
    assert pool.fits(80, expires_us)
    assert not pool.fits(81, expires_us)
    assert pool.is_idle(expires_us)


amounts = st.integers(-50, 100)
draws_of_time = st.lists(st.tuples(st.integers(0, 12), amounts), max_size=12)


@given(draws_of_time, draws_of_time, st.lists(st.integers(0, 12), unique=True).map(sorted))
@example([(3, 5), (3, -5)], [(3, 1)], [3])
def test_draws_are_summed_between_expiries(singly, batch, expiries):
    """The oracle puts each draw into its span by itself; no draw is lost, and the instant given is one of the span."""
    draws = Draws()
    for at_us, amount in singly:
        draws.add(at_us, amount)
    batch = sorted(batch)
    running = [sum(amount for _, amount in batch[: place + 1]) for place in range(len(batch))]
    draws.add_run(DrawRun([at_us for at_us, _ in batch], running))

    def span(at_us: int) -> tuple[bool, ...]:
        return tuple(expiry_us > at_us for expiry_us in expiries)

    expected: dict[tuple[bool, ...], int] = {}
    for at_us, amount in singly + batch:
        expected[span(at_us)] = expected.get(span(at_us), 0) + amount
    found = draws.between(expiries)
    assert {span(at_us): amount for at_us, amount in found} == {k: v for k, v in expected.items() if v}
    assert [at_us for at_us, _ in found] == sorted(at_us for at_us, _ in found)
    assert draws.total_nanos == sum(expected.values())
