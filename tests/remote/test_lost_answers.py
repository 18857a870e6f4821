"""Answers that are lost, before or after the server did the work: a call counts once, or says that it failed."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import Any

import greenlet
import msgspec
import pytest

from tests.remote.calls import Async, Sync, both
from tests.remote.conftest import Place, verified
from tests.remote.proxy import Proxy
from tests.remote.test_client import wait_for
from tollkeeper import Denial, Outcome
from tollkeeper.errors import Unavailable
from tollkeeper.remote import Admission, Tollkeeper, messages, undelivered
from tollkeeper.remote.connections import Answer, Connections

FAULTS = ("before", "after", "502")


@both
@pytest.mark.parametrize("faults", [*itertools.product(FAULTS, repeat=2), ("close", "close")], ids="-".join)
def test_each_call_counts_once_whatever_is_lost(tcp_place: Place, proxy: Proxy, form, faults):
    calls = form(tcp_place.toll(proxy.url))
    proxy.faults.extend(faults)
    admission = calls.admit(tcp_place.secret, "POST", "/chat")
    assert isinstance(admission, Admission)
    assert tcp_place.used() == 1
    proxy.faults.clear()
    proxy.faults.extend(faults)
    settled = calls.settle(admission)
    assert settled.id == admission.id
    proxy.faults.clear()
    other = calls.admit(tcp_place.secret, "POST", "/chat")
    proxy.faults.extend(faults)
    calls.void(other)
    assert tcp_place.used() == tcp_place.totals()["requests"] == 1
    calls.close()


@both
def test_a_connection_that_the_server_closed_is_no_failure(tcp_place: Place, proxy: Proxy, form):
    """Nor does it use up a try: every kept connection may have been closed while it was idle."""
    calls = form(tcp_place.toll(proxy.url))
    admissions = []  # One that is dropped would be voided, by a call more.
    for _ in range(4):
        proxy.faults.append("close")
        admissions.append(calls.admit(tcp_place.secret, "POST", "/chat"))
        time.sleep(0.02)
    assert all(isinstance(found, Admission) for found in admissions)
    assert (len(proxy.calls), proxy.connection_count) == (4, 4)
    calls.close()


@both
def test_connections_are_kept(tcp_place: Place, proxy: Proxy, form):
    calls = form(tcp_place.toll(proxy.url))
    for _ in range(5):
        calls.settle(calls.admit(tcp_place.secret, "POST", "/chat"))
    assert (len(proxy.calls), proxy.connection_count) == (10, 1)
    calls.close()


@both
def test_an_authorize_that_was_never_answered_holds_nothing(tcp_place: Place, proxy: Proxy, form):
    """The caller is refused; the hold that the server made all the same is voided once it answers again."""
    calls = form(tcp_place.toll(proxy.url))
    proxy.faults.extend(["after"] * 3)
    found = calls.admit(tcp_place.secret, "POST", "/chat")
    assert isinstance(found, Denial)
    assert (found.reason, found.status, found.retry_after_s) == ("unavailable", 503, 1)
    wait_for(lambda: tcp_place.used() == 0)
    calls.close()


@both
def test_an_authorize_whose_server_ended_under_it_holds_nothing(tcp_place: Place, proxy: Proxy, form):
    """It was sent on a kept connection; what the server took is not known from the next one, which is refused."""
    toll = tcp_place.toll(proxy.url)
    calls = form(toll)
    calls.void(calls.admit(tcp_place.secret, "POST", "/chat"))
    proxy.faults.append("last")
    assert calls.admit(tcp_place.secret, "POST", "/chat").reason == "unavailable"
    assert (proxy.connection_count, tcp_place.used()) == (1, 1)
    proxy.listen()
    wait_for(lambda: tcp_place.used() == 0)
    calls.close()


@both
def test_a_settlement_that_was_not_delivered_is_kept_and_booked(tcp_place: Place, proxy: Proxy, form):
    toll = tcp_place.toll(proxy.url)
    calls = form(toll)
    admission = calls.admit(tcp_place.secret, "POST", "/chat")
    proxy.faults.extend(["before"] * 5)
    with pytest.raises(Unavailable, match="is kept"):
        calls.settle(admission, Outcome(201))
    wait_for(lambda: tcp_place.totals()["requests"] == 1)
    assert calls.settle(admission, Outcome(201)).replayed
    assert (toll.undelivered_count, toll.lost_count) == (0, 0)
    calls.close()


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, greenlet.GreenletExit])
def test_an_interrupted_authorize_holds_nothing(tcp_place: Place, monkeypatch, interruption):
    """By a signal, or as its greenlet is killed: nobody has the hold that the server made."""
    toll = tcp_place.toll(tcp_place.url)
    exchange = Connections._exchange

    def interrupted(self: Connections, *call: Any) -> Answer:
        answer = exchange(self, *call)
        if messages.AUTHORIZE in call:
            raise interruption
        return answer

    monkeypatch.setattr(Connections, "_exchange", interrupted)
    with pytest.raises(interruption):
        toll.admit(tcp_place.secret, "POST", "/chat")
    wait_for(lambda: tcp_place.used() == 0)
    toll.close()


@both
def test_a_void_that_overtakes_its_authorize_is_sent_again(tcp_place: Place, proxy: Proxy, form):
    """The client gives up while the call is still under way, and the server has it after the void."""
    calls = form(tcp_place.toll(proxy.url, timeout_s=0.3))
    proxy.faults.extend(["late"] * 3)
    assert calls.admit(tcp_place.secret, "POST", "/chat").reason == "unavailable"
    late_count = proxy.calls.count(messages.AUTHORIZE)
    wait_for(lambda: messages.VOID in proxy.passed)
    proxy.release.set()
    wait_for(lambda: proxy.passed.count(messages.AUTHORIZE) == late_count)
    wait_for(lambda: tcp_place.used() == 0)
    calls.close()


def test_a_cancelled_settlement_is_booked(tcp_place: Place, proxy: Proxy):
    """A client that hangs up cancels the task of its request."""
    toll = tcp_place.toll(proxy.url)

    async def cancelled() -> None:
        admission = await toll.admit_async(tcp_place.secret, "POST", "/chat")
        proxy.faults.append("before")
        task = asyncio.create_task(toll.settle_async(admission))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    wait_for(lambda: tcp_place.totals()["requests"] == 1)
    toll.close()


def test_what_is_lost_is_in_the_log(tcp_place: Place, proxy: Proxy, monkeypatch, caplog):
    """Beyond the bound of memory, and at the end of the process: each with what it would have booked."""
    monkeypatch.setattr(undelivered, "KEPT_MAX", 1)
    toll = tcp_place.toll(proxy.url, timeout_s=0.5)
    admissions = [toll.admit(tcp_place.secret, "POST", "/chat") for _ in range(2)]
    proxy.faults.extend(["before"] * 1_000)
    with pytest.raises(Unavailable, match="is kept"):
        toll.settle(admissions[0])
    with pytest.raises(Unavailable, match="is lost"):
        toll.settle(admissions[1])
    toll._undelivered.close(0.1)
    lost = [record for record in caplog.records if record.msg == "tollkeeper.remote.lost"]
    assert [record.levelno for record in lost] == [logging.ERROR] * 2
    assert {record.hold_id for record in lost} == {admission.id for admission in admissions}
    assert all('"status":200' in record.body for record in lost)
    assert toll.lost_count == 2


@pytest.mark.parametrize("form", [Sync, Async])
def test_a_call_ends_within_its_time(tcp_place: Place, form):
    """A server that takes connections and never answers."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        calls = form(tcp_place.toll(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.3))
        started = time.monotonic()
        assert calls.admit(tcp_place.secret, "POST", "/chat").reason == "unavailable"
        assert time.monotonic() - started < 2
        if form is Sync:
            calls.admit.__self__._undelivered.close(0)
        else:
            calls._toll._undelivered.close(0)


def test_the_ledger_agrees_at_the_end(server):
    assert verified(server)


@pytest.mark.parametrize(
    ("status", "detail", "is_voided"),
    [
        (503, "The ledger did not commit in time. The outcome is unknown: retry with the same id.", True),
        (503, "The ledger cannot be written now. Nothing is admitted until it can.", False),
        (502, "", True),
        (504, "", True),
    ],
)
def test_a_hold_that_may_be_made_yet_is_voided(monkeypatch: pytest.MonkeyPatch, status, detail, is_voided):
    """The server, or a proxy before it, waited too long: what the commit holds in the end has no caller."""
    called: list[str] = []

    def call(self: Connections, method: str, path: str, body: bytes | None, timeout_s: float) -> Answer:
        called.append(path)
        if path != messages.AUTHORIZE:
            return Answer(200, b"{}")
        problem = {"code": "unavailable", "detail": detail} if detail else {}
        return Answer(status, msgspec.json.encode(problem))

    monkeypatch.setattr(Connections, "call", call)
    toll = Tollkeeper("http://127.0.0.1:1", key="ok_any", timeout_s=0.3)
    found = toll.admit("tk_any", "POST", "/chat")
    assert isinstance(found, Denial)
    assert found.reason == "unavailable"
    toll.close()
    assert called.count(messages.VOID) == is_voided
