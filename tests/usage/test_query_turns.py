"""How many usage queries of one account run at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tollkeeper.errors import TooManyQueries
from tollkeeper.usage import query_turns
from tollkeeper.usage.query_turns import OF_ACCOUNT, OF_OPERATOR, QueryTurns, Turns


def test_an_account_waits_for_its_own_and_keeps_nobody_else_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_turns, "OF_ACCOUNT", OF_ACCOUNT._replace(wait_s=0.0))
    turns = QueryTurns()
    with turns.taken("acme"), turns.taken("acme"):
        with pytest.raises(TooManyQueries) as refused, turns.taken("acme"):
            pass
        assert refused.value.retry_after_s >= 1
        with turns.taken("other"), turns.taken(None):
            pass
    with turns.taken("acme"):
        pass
    assert turns._queues == {}


def test_who_waits_gets_the_next_turn_and_more_than_may_wait_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(query_turns, "OF_ACCOUNT", Turns(1, 1, 60.0))
    turns = QueryTurns()
    entered = threading.Event()

    def second() -> None:
        with turns.taken("acme"):
            entered.set()

    with ThreadPoolExecutor(1) as pool:
        with turns.taken("acme"):
            waiting = pool.submit(second)
            while not turns._queues["acme"].waiting:
                assert not waiting.done()
            with pytest.raises(TooManyQueries), turns.taken("acme"):
                pass
            assert not entered.is_set()
        waiting.result()
    assert entered.is_set()
    assert turns._queues == {}


def test_the_operator_leaves_a_query_to_customers() -> None:
    from tollkeeper.adapters.clickhouse import engine

    assert OF_OPERATOR.running < engine.REPORTS[0]
