"""Rate limits whose windows open with the first request: `algorithm = "from_first"`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from tests.gate.test_races import in_threads
from tollkeeper.domain.catalog import Account, Key, Limit, Plan, Route
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import to_us
from tollkeeper.domain.requests import NO_USAGE, Outcome
from tollkeeper.gate.gate import Admission
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.testing import commit_all, set_up, unique, verify

FIRST = datetime(2026, 3, 18, 19, 58, tzinfo=UTC)
WINDOW = timedelta(hours=5)
AMOUNT = 10


def secret_of(site: Installation, account: str, **fields: str) -> str:
    plan = unique("plan")
    made = set_up(
        site,
        Account(id=account, name="Acme"),
        Plan(
            slug=plan,
            limits=[Limit(name="five", amount=AMOUNT, window="5h", algorithm="from_first", **fields)],
        ),
        Key(id=f"{account}-k", account=account, plan=plan),
        Route(id="chat", method="POST", path="/chat"),
    )
    return made[f"{account}-k"]


def passed(site: Installation, secret: str, count: int) -> int:
    found = [site.holds.admit(secret, "POST", "/chat") for _ in range(count)]
    admitted = [answer for answer in found if isinstance(answer, Admission)]
    for admission in admitted:
        site.holds.settle(admission, Outcome())
    return len(admitted)


def test_a_window_opens_with_the_first_request_and_again_after_a_pause(site, account, clock):
    secret = secret_of(site, account)
    clock.set(FIRST)
    assert passed(site, secret, 6) == 6
    clock.set(FIRST + timedelta(hours=4, minutes=59))
    assert passed(site, secret, 6) == 4
    refused = site.holds.admit(secret, "POST", "/chat")
    assert isinstance(refused, Denial)
    assert (refused.status, refused.retry_after_s) == (429, 60)
    assert refused.resets_at_us == to_us(FIRST + WINDOW)
    clock.set(FIRST + timedelta(hours=6))
    assert passed(site, secret, 20) == AMOUNT
    clock.set(FIRST + timedelta(hours=10, minutes=59))
    assert passed(site, secret, 20) == 0
    clock.set(FIRST + timedelta(hours=11))
    assert passed(site, secret, 20) == AMOUNT


def test_its_status_says_when_it_began_and_ends(site, account, clock):
    secret = secret_of(site, account)
    clock.set(FIRST)
    assert passed(site, secret, 1) == 1
    clock.advance(seconds=600)
    compiled_key = site.gate.compiled_key(secret)
    assert not isinstance(compiled_key, Denial)
    (status,) = site.gate.limit_statuses(compiled_key, clock.now_us())
    assert (status.starts_at, status.resets_at, status.used) == (FIRST, FIRST + WINDOW, 1)


def test_a_restart_goes_on_in_the_window_with_what_is_held(install, account, clock):
    site = install()
    secret = secret_of(site, account)
    clock.set(FIRST)
    hold_id, future = unique("h"), CommitFuture()
    asked = (secret, "POST", "/chat", NO_USAGE, future)
    assert not isinstance(site.holds.authorize(*asked, hold_id=hold_id, ttl_s=4 * 3600), Denial)
    future.wait()
    clock.advance(seconds=1800)
    assert passed(site, secret, 3) == 3
    commit_all(site)
    site.close()
    site = install()
    clock.advance(seconds=1800)
    future = CommitFuture()
    site.holds.void_hold(hold_id, future)
    future.wait()
    assert passed(site, secret, 20) == 7
    clock.set(FIRST + WINDOW)
    assert passed(site, secret, 20) == AMOUNT
    assert verify(site).ok


def test_at_the_opening_exactly_the_amount_passes(site, account, clock):
    secret = secret_of(site, account)
    for number in range(3):
        clock.set(FIRST + number * timedelta(hours=7))
        found = in_threads([partial(site.holds.admit, secret, "POST", "/chat") for _ in range(200)])
        admitted = [answer for answer in found if isinstance(answer, Admission)]
        assert len(admitted) == AMOUNT
        for admission in admitted:
            site.holds.settle(admission, Outcome())


@pytest.mark.parametrize("algorithm", ["from_first", "fixed"])
def test_only_from_first_keeps_two_amounts_a_whole_window_apart(site, account, clock, algorithm):
    """Fixed windows are aligned to the Unix epoch: two of them may be used up around one bound."""
    plan = unique("plan")
    secret = set_up(
        site,
        Account(id=account, name="Acme"),
        Plan(slug=plan, limits=[Limit(name="l", amount=AMOUNT, window="1h", algorithm=algorithm)]),
        Key(id=f"{account}-k", account=account, plan=plan),
        Route(id="chat", method="POST", path="/chat"),
    )[f"{account}-k"]
    clock.set(datetime(2026, 3, 18, 19, 59, tzinfo=UTC))
    assert passed(site, secret, 20) == AMOUNT
    clock.advance(seconds=120)
    assert passed(site, secret, 20) == (0 if algorithm == "from_first" else AMOUNT)
