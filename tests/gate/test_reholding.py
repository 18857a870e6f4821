"""
What a request under way holds is replaced in one step: all or nothing, never twice, never beyond a limit or budget.

The gate runs over a ledger in memory (`memory_site`): limits of requests, tokens and requests under way, a budget of
400 nanos a day, and a balance of 1,000.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.gate.memory_site import Site
from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.extensions import part_of, plus, size_of
from tollkeeper.domain.requests import Outcome, Usage
from tollkeeper.errors import HoldEnded
from tollkeeper.gate.admission import Admission
from tollkeeper.testing import ManualClock

NANOS = Usage(cost_nanos=0)


def admitted(site: Site, name: str = "a", *, tokens: int = 0, nanos: int = 0) -> Admission:
    found = site.admit(name, tokens, nanos)
    assert isinstance(found, Admission), found
    return found


def counts(site: Site, admission: Admission) -> dict[str, int]:
    """Return what each counter counts as used or held."""
    statuses = site.gate.limit_statuses(admission.compiled_key, site.clock.now_us())
    return {status.name: status.used for status in statuses}


def set_aside(site: Site, admission: Admission) -> int:
    """Return what open holds have set aside of the budget."""
    statuses = site.gate.limit_statuses(admission.compiled_key, site.clock.now_us())
    return sum(status.held for status in statuses if status.name == "b")


def replace(site: Site, admission: Admission, **expected: Any) -> Denial | None:
    return site.gate.reholds.replace(admission, Usage(**expected), lambda: None)


def test_the_new_hold_stands_in_place_of_the_old_one() -> None:
    """Each counter holds the new amount, not both; the request is still one request."""
    site = Site(ManualClock())
    one = admitted(site, tokens=30, nanos=100)
    assert replace(site, one, prompt_tokens=50, cost_nanos=390) is None
    held = counts(site, one)
    assert held == {"rpm": 1, "tpm": 50, "permits": 50, "open": 1, "shared": 50, "b": 390, "credit": 390}
    assert set_aside(site, one) == 390
    assert replace(site, one, prompt_tokens=10, cost_nanos=20) is None
    assert counts(site, one) == held | {"tpm": 10, "permits": 10, "shared": 10, "b": 20, "credit": 20}
    site.settle(one, 7, 15)
    assert set_aside(site, one) == 0
    assert counts(site, one) == held | {"tpm": 7, "permits": 7, "shared": 7, "b": 15, "credit": 15, "open": 0}


def test_a_denial_changes_nothing_and_says_what_would_fit() -> None:
    """`largest_fit` is of the whole request: what it holds itself is not in its way."""
    site = Site(ManualClock())
    others = admitted(site, nanos=150)
    one = admitted(site, tokens=30, nanos=100)
    before = counts(site, one)
    denial = replace(site, one, prompt_tokens=30, cost_nanos=251)
    assert denial is not None
    assert (denial.reason, denial.used, denial.largest_fit) == ("budget_exhausted", 150, 250)
    denial = replace(site, one, prompt_tokens=91, cost_nanos=100)
    assert denial is not None
    assert (denial.limit, denial.largest_fit) == ("permits", 90)
    assert counts(site, one) == before
    assert replace(site, one, prompt_tokens=90, cost_nanos=250) is None
    site.void(others)


def test_a_full_gate_lets_a_request_keep_what_it_holds() -> None:
    """A request under way is not refused by limits that it fills itself."""
    site = Site(ManualClock())
    requests = [admitted(site, tokens=10, nanos=133) for _ in range(3)]
    assert isinstance(site.admit("a", 0, 0), Denial)
    for request in requests:
        assert replace(site, request, prompt_tokens=20, cost_nanos=133) is None


def test_tokens_of_a_window_that_is_over_count_in_the_present_one() -> None:
    """Otherwise streams from before could use any number of tokens in this window."""
    clock = ManualClock()
    site = Site(clock)
    one = admitted(site, tokens=10, nanos=1)
    clock.advance(seconds=3600)
    other = admitted(site, tokens=80, nanos=1)
    assert counts(site, other)["tpm"] == 80
    denial = replace(site, one, prompt_tokens=21, cost_nanos=1)
    assert denial is not None
    assert (denial.limit, denial.largest_fit) == ("tpm", 20)
    assert replace(site, one, prompt_tokens=20, cost_nanos=1) is None
    assert counts(site, other)["tpm"] == counts(site, other)["shared"] == 100
    site.void(one)
    assert counts(site, other)["tpm"] == 80


def test_money_counts_in_the_period_of_the_request() -> None:
    """Its record is booked in it, so counter and ledger agree."""
    clock = ManualClock()
    site = Site(clock)
    one = admitted(site, nanos=10)
    clock.advance(seconds=86_400)
    other = admitted(site, nanos=400)
    assert replace(site, one, cost_nanos=400) is None
    assert counts(site, other)["b"] == 400
    denial = replace(site, one, cost_nanos=401)
    assert denial is not None
    assert (denial.limit, denial.largest_fit) == ("b", 400)
    site.settle(one, 0, 399)
    starts = {charge.period_start_us for charge in site.settled if charge.counter_id != "credit"}
    site.settle(other, 0, 1)
    later = {charge.period_start_us for charge in site.settled if charge.counter_id != "credit"} - starts
    assert len(starts) == len(later) == 1
    assert max(starts) < min(later)


def test_an_ended_request_holds_nothing_more() -> None:
    """Money could be held for ever otherwise."""
    site = Site(ManualClock())
    one, other = admitted(site, nanos=10), admitted(site, nanos=10)
    site.settle(one, 0, 10)
    site.void(other)
    for ended in (one, other):
        with pytest.raises(HoldEnded):
            replace(site, ended, cost_nanos=20)
    assert counts(site, one)["b"] == 10


def test_extending_grants_what_is_left_to_the_last_unit() -> None:
    """A stream is cut at the last token that is paid for, not at the last full step."""
    site = Site(ManualClock())
    one = admitted(site, nanos=300)
    got = []
    while True:
        extension = site.gate.reholds.extend(one, one.expected, Usage(cost_nanos=30), lambda: None)
        got.append(extension.granted.cost_nanos)
        if not extension:
            break
    assert got == [30, 30, 30, 10]
    assert extension.denial is not None
    assert extension.denial.reason == "budget_exhausted"
    extension = site.gate.reholds.extend(one, one.expected, Usage(cost_nanos=30), lambda: None)
    assert (extension.granted.cost_nanos, bool(extension)) == (0, False)
    assert counts(site, one)["b"] == 400


def test_a_repeated_extension_is_granted_once() -> None:
    """A call whose answer was lost is repeated from the same base."""
    site = Site(ManualClock())
    one = admitted(site, nanos=300)
    base = one.expected
    for _ in range(3):
        extension = site.gate.reholds.extend(one, base, Usage(cost_nanos=150), lambda: None)
        assert extension.granted.cost_nanos == 100
        assert counts(site, one)["b"] == 400


@pytest.mark.parametrize("step", [1, 7])
def test_streams_together_get_exactly_the_budget(step: int) -> None:
    """However they race, nothing is granted twice and nothing is left over."""
    site = Site(ManualClock())
    streams = [admitted(site, f"a.{n}", nanos=1) for n in range(3)]
    granted = [1, 1, 1]

    def run(n: int) -> None:
        while True:
            stream = streams[n]
            found = site.gate.reholds.extend(stream, stream.expected, Usage(cost_nanos=step), lambda: None)
            granted[n] += found.granted.cost_nanos or 0
            if not found:
                return

    threads = [threading.Thread(target=run, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) == 400
    assert counts(site, streams[0])["b"] == 400
    for n, stream in enumerate(streams):
        site.settle(stream, 0, granted[n])
    site.commit()
    assert sum(amount for at, amount in site.used.items() if at[0] == "a") == 400


def test_a_request_that_ends_while_its_hold_is_replaced_is_settled_once() -> None:
    """The settlement goes by the hold that counts: nothing stays held."""
    for _ in range(50):
        site = Site(ManualClock())
        one = admitted(site, nanos=10)
        refused: list[BaseException] = []

        def ask(one: Admission = one, site: Site = site, refused: list[BaseException] = refused) -> None:
            try:
                for nanos in range(11, 60):
                    replace(site, one, prompt_tokens=nanos, cost_nanos=nanos)
            except HoldEnded as exc:
                refused.append(exc)

        thread = threading.Thread(target=ask)
        thread.start()
        site.settle(one, 5, 5)
        thread.join()
        held = counts(site, one)
        assert (held["b"], held["tpm"], held["open"]) == (5, 5, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 120), st.integers(0, 500), st.integers(0, 90)),
        max_size=20,
    )
)
def test_what_was_replaced_holds_as_if_it_had_been_admitted_so(
    steps: list[tuple[int, int, int, int]],
) -> None:
    """The counters agree with plain sums, never pass their bounds, and are empty in the end."""
    clock = ManualClock()
    site = Site(clock)
    requests = [admitted(site, nanos=1) for _ in range(3)]
    holds = [(0, 1)] * 3
    for n, tokens, nanos, seconds in steps:
        if replace(site, requests[n], prompt_tokens=tokens, cost_nanos=nanos) is None:
            holds[n] = tokens, nanos
        held = counts(site, requests[0])
        assert held["b"] == held["credit"] == sum(nanos for _, nanos in holds) <= 400
        assert held["tpm"] <= 100
        assert held["shared"] <= 200
        assert held["open"] == 3
        clock.advance(seconds=seconds)
    for request in requests:
        site.void(request)
    held = counts(site, requests[0])
    assert {held[name] for name in ("tpm", "open", "shared", "b", "credit")} == {0}


usages = st.builds(
    Usage,
    *[st.integers(0, 1_000)] * 4,
    cost_nanos=st.none() | st.integers(0, 10**12),
    credits=st.none() | st.integers(0, 1_000),
    quantities=st.dictionaries(st.sampled_from(["seconds", "pages"]), st.integers(0, 10**9)),
)


@given(usages, usages, st.data())
def test_parts_are_whole_rounded_down_and_never_more_than_all(base: Usage, more: Usage, data: Any) -> None:
    """A larger part has no smaller amount, so the largest that fits is found by halving."""
    size = size_of(more)
    count = data.draw(st.integers(0, size))
    part, larger = part_of(more, count, size), part_of(more, min(count + 1, size), size)
    assert part_of(more, size, size) == more
    assert part.tokens <= larger.tokens <= more.tokens
    assert (part.cost_nanos or 0) <= (larger.cost_nanos or 0) <= (more.cost_nanos or 0)
    assert all(part.quantities[name] <= larger.quantities[name] for name in more.quantities)
    assert plus(base, more).tokens == base.tokens + more.tokens
    assert (plus(base, more).cost_nanos or 0) == (base.cost_nanos or 0) + (more.cost_nanos or 0)


def test_outcomes_survive_the_ledger() -> None:
    """A hold keeps the outcome that is booked when it expires."""
    import msgspec

    from tollkeeper import Usage as Stated
    from tollkeeper.domain.bookings import HoldBody

    outcome = Outcome(200, Stated(3, model="m", quantities={"seconds": "1.5"}), "x", 5, 7, "hit", {"a": "b"})
    body = HoldBody("k", "POST", "/", (1, 2, 3, 4), (1, 2, 3, 4, "m"), 1, 2, "", at_expiry=outcome)
    found = msgspec.json.decode(msgspec.json.encode(body), type=HoldBody)
    assert found.at_expiry == outcome
    assert type(found.at_expiry.usage) is Usage
