"""Whatever is granted, spent and given back, a credit book accounts for every nano."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.domain.periods import FAR_FUTURE
from tollkeeper.domain.pools import CreditBook, GrantBalance, book_of

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


steps = st.lists(
    st.tuples(
        st.sampled_from(("post", "charge", "late charge", "refund", "late refund", "revoke")), amounts, days
    ),
    max_size=25,
)


def check(book: CreditBook) -> None:
    assert book.overdraft_nanos >= 0
    assert book.surplus_nanos >= 0
    assert not (book.overdraft_nanos and book.surplus_nanos)
    assert all(0 <= grant.remaining_nanos <= grant.amount_nanos for grant in book.grants)
    assert all(grant.revoked_at is None or grant.amount_nanos == 0 for grant in book.grants)
    assert list(book.grants) == sorted(book.grants)


@given(grants(), steps)
def test_any_history_spends_exactly_what_was_charged(pool, history):
    """The oracle is two integers: what was granted, and what was spent; late or not, taken back or not."""
    book, granted, spent, now = CreditBook(), 0, 0, START
    left = list(pool)
    for step, amount, days_on in history:
        if not step.startswith("late"):
            now = max(now, day(days_on))
        at = day(days_on) if step.startswith("late") else now
        before = book.balance_nanos(at)
        if step == "post":
            if not left:
                continue
            grant = left.pop()
            book = book.posted(grant)
            granted += grant.amount_nanos
        elif step == "revoke":
            if not book.grants:
                continue
            grant = book.grants[amount % len(book.grants)]
            granted -= grant.amount_nanos
            book = book.revoked(grant.grant_id, now)
            assert book.revoked(grant.grant_id, now + timedelta(days=1)) == book
        elif step.endswith("charge"):
            book = book.charged(amount, at)
            spent += amount
            assert book.balance_nanos(at) == before - amount
        else:
            book = book.charged(-amount, at)
            spent -= amount
            assert book.balance_nanos(at) == before + amount
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
def test_more_than_was_spent_is_a_surplus_that_is_drawn_first(pool, spent, beyond, at):
    """A goodwill of 10 to an account that spent nothing is 10 more, which no expiry takes away."""
    book = book_of(pool, 0).charged(spent, day(at)).charged(-spent - beyond, day(at))
    check(book)
    assert book == book_of(pool, 0, beyond)
    assert (book.spent_nanos, book.balance_nanos(FAR_FUTURE)) == (-beyond, beyond)
    assert book.charged(beyond, day(at)) == book_of(pool, 0)


@given(grants(), amounts, amounts, days, days)
def test_a_grant_pays_for_what_was_requested_before_it_expired(pool, soon, late, first, second):
    """However late a request is booked: grants that had expired at its time are neither drawn on nor refilled."""
    book = book_of(pool, 0).charged(soon, day(first))
    for amount in (late, -late):
        after = book.charged(amount, day(second))
        for old, new in zip(book.grants, after.grants, strict=True):
            assert old.expires_at > day(second) or old == new
        book = after


@given(grants(), amounts, days)
def test_a_revoked_grant_is_as_if_never_given(pool, spent, at):
    """What it paid is drawn on the others, in their order, and is overdraft beyond them."""
    book = book_of(pool, 0).charged(spent, START)
    for grant in pool:
        gone = book.revoked(grant.grant_id, START)
        others = [other for other in pool if other.grant_id != grant.grant_id]
        never = book_of(others, 0).charged(spent, START)
        assert gone.overdraft_nanos == never.overdraft_nanos
        assert tuple(g for g in gone.grants if g.grant_id != grant.grant_id) == never.grants
        assert gone.balance_nanos(day(at)) == never.balance_nanos(day(at))


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
    falls_at = min((expiry for expiry in book.expiries if expiry > now), default=FAR_FUTURE)
    lost = sum(grant.remaining_nanos for grant in book.grants if grant.expires_at == falls_at)
    assert book.balance_nanos(falls_at - timedelta(microseconds=1)) == book.balance_nanos(now)
    assert book.balance_nanos(falls_at) == book.balance_nanos(now) - lost


@given(grants(), st.randoms(use_true_random=False))
def test_the_order_of_stored_grants_does_not_matter(pool, chance):
    shuffled = list(pool)
    chance.shuffle(shuffled)
    assert book_of(shuffled, 7) == book_of(pool, 7)
