"""Whatever is granted, spent and given back, a credit book accounts for every nano."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.periods import FAR_FUTURE
from tollkeeper.domain.pools import CreditBook, GrantBalance, book_of
from tollkeeper.errors import InvariantBroken

START = datetime(2026, 1, 1, tzinfo=UTC)
amounts = st.integers(0, 1_000)
days = st.integers(0, 12)


def day(number: int) -> datetime:
    return START + timedelta(days=number)


@st.composite
def grants(draw: st.DrawFn, count_max: int = 6) -> list[GrantBalance]:
    """Fresh grants with different ids; few priorities and expiries, so that ties come up."""
    made = []
    for index in range(draw(st.integers(0, count_max))):
        amount = draw(st.integers(1, 500))
        expires_at = draw(st.just(FAR_FUTURE) | st.integers(1, 12).map(day))
        made.append(GrantBalance(draw(st.integers(0, 2)), expires_at, f"g{index}", amount, amount))
    return draw(st.permutations(made))


steps = st.lists(st.tuples(st.sampled_from(("post", "charge", "refund")), amounts, days), max_size=25)


def check(book: CreditBook) -> None:
    assert book.overdraft_nanos >= 0
    assert all(0 <= grant.remaining_nanos <= grant.amount_nanos for grant in book.grants)
    assert list(book.grants) == sorted(book.grants)


@given(grants(), steps)
def test_any_history_spends_exactly_what_was_charged(pool, history):
    """The oracle is two integers: what was granted, and what was spent."""
    book, granted, spent, now = CreditBook(), 0, 0, START
    left = list(pool)
    for step, amount, days_on in history:
        now = max(now, day(days_on))
        if step == "post":
            if not left:
                continue
            grant = left.pop()
            book = book.posted(grant)
            granted += grant.amount_nanos
        elif step == "charge":
            book = book.charged(amount, now)
            spent += amount
        else:
            refund = min(amount, spent)
            book = book.charged(-refund, now)
            spent -= refund
        check(book)
        assert book.spent_nanos == spent
        # Before anything expires, what is left is what was granted less what was spent.
        assert book.balance_nanos(START - timedelta(days=1)) == granted - spent


@given(grants(), st.lists(amounts, max_size=5), amounts, days)
def test_grants_are_drawn_on_in_order(pool, before, amount, at):
    """By priority, then expiry, then id: nothing is drawn from a grant while an earlier one has some."""
    now = day(at)
    book = book_of(pool, 0)
    for earlier in before:
        book = book.charged(earlier, now)
    after = book.charged(amount, now)
    drawn = [
        (old, old.remaining_nanos - new.remaining_nanos)
        for old, new in zip(book.grants, after.grants, strict=True)
    ]
    usable = [(old, taken) for old, taken in drawn if old.expires_at > now]
    assert all(taken == 0 for old, taken in drawn if old.expires_at <= now), "an expired grant was drawn on"
    expected = []
    for (old, _), start in zip(
        usable, accumulate((o.remaining_nanos for o, _ in usable), initial=0), strict=False
    ):
        expected.append(min(old.remaining_nanos, max(0, amount - start)))
    assert [taken for _, taken in usable] == expected
    assert after.overdraft_nanos - book.overdraft_nanos == amount - sum(expected)


@given(grants(), st.lists(amounts, min_size=1, max_size=6), days)
def test_a_charge_split_anywhere_leaves_the_same_book(pool, parts, at):
    book = book_of(pool, 0)
    whole = book.charged(sum(parts), day(at))
    for part in parts:
        book = book.charged(part, day(at))
    assert book == whole


@given(grants(), amounts, st.integers(1, 1_000), days)
def test_more_than_was_spent_is_never_given_back(pool, spent, beyond, at):
    book = book_of(pool, 0).charged(spent, day(at))
    with pytest.raises(InvariantBroken):
        book.charged(-spent - beyond, day(at))


@given(grants(), amounts, amounts, days)
def test_a_refund_undoes_the_charge_made_last(pool, first, second, at):
    """The overdraft is paid back first, then grants are refilled in the reverse order: as if never drawn."""
    book = book_of(pool, 0).charged(first, day(at))
    assert book.charged(second, day(at)).charged(-second, day(at)) == book


@given(grants(), amounts, grants())
def test_a_new_grant_pays_the_overdraft_before_anything_else(pool, spent, more):
    book = book_of(pool, 0).charged(spent, START)
    for index, grant in enumerate(more):
        before = book
        book = book.posted(grant._replace(grant_id=f"later{index}"))
        check(book)
        assert book.spent_nanos == before.spent_nanos
        assert before.overdraft_nanos - book.overdraft_nanos == min(
            before.overdraft_nanos, grant.amount_nanos
        )
    if book.overdraft_nanos:
        assert all(not grant.remaining_nanos for grant in book.grants)


@given(grants(), amounts, days)
def test_the_balance_stands_still_until_the_next_expiry(pool, spent, at):
    """The gate counts the balance again only then."""
    now = day(at)
    book = book_of(pool, 0).charged(spent, now)
    falls_at = book.next_expiry(now)
    if falls_at is None:
        assert book.balance_nanos(FAR_FUTURE - timedelta(days=1)) == book.balance_nanos(now)
    else:
        assert book.balance_nanos(falls_at - timedelta(microseconds=1)) == book.balance_nanos(now)
        assert book.balance_nanos(falls_at) < book.balance_nanos(now)


@given(grants(), st.randoms(use_true_random=False))
def test_the_order_of_stored_grants_does_not_matter(pool, chance):
    shuffled = list(pool)
    chance.shuffle(shuffled)
    assert book_of(shuffled, 7) == book_of(pool, 7)
