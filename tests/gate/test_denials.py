"""A refusal says in its text which limit it was, what is used, what the request needs, and what to do."""

from __future__ import annotations

import pytest

from tests.gate.memory_site import Site
from tollkeeper.domain.decisions import Denial
from tollkeeper.testing import ManualClock


@pytest.fixture
def place() -> Site:
    return Site(ManualClock())


def refused(place: Site, **needs: int) -> Denial:
    denial = place.admit("acme.key", **needs)
    assert isinstance(denial, Denial)
    return denial


def spend(place: Site, **needs: int) -> None:
    admission = place.admit("acme.key", **needs)
    assert not isinstance(admission, Denial)
    place.settle(admission, **needs)


def test_a_budget_of_money_is_told_in_whole_units(place: Site) -> None:
    """People read money, not nanos; the fields of the denial stay exact."""
    spend(place, nanos=399)
    denial = refused(place, nanos=5)
    assert denial.message == "Budget b is used up: 0.000000399 of 0.0000004 used, 0.000000005 needed."
    assert (denial.unit, denial.allowed, denial.used, denial.largest_fit) == ("nanos", 400, 399, 1)


def test_a_rate_limit_says_when_to_try_again(place: Site) -> None:
    for _ in range(6):
        spend(place)
    denial = refused(place)
    assert denial.message == (
        f"Rate limit rpm exceeded: 6 of 6 requests used, 1 needed. Try again in {denial.retry_after_s} s."
    )
    assert denial.retry_after_s is not None


def test_a_request_that_never_fits_is_not_sent_to_wait(place: Site) -> None:
    denial = refused(place, tokens=101)
    assert denial.message == (
        "Rate limit tpm exceeded: 0 of 100 tokens used, 101 needed. "
        "The limit never has room for that much: send a smaller request."
    )
    assert denial.retry_after_s is None
