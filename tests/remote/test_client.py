"""The client against a real server: the same answers as in process, over both transports and in both forms."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.end_to_end.server import Refused
from tests.remote.calls import both
from tests.remote.conftest import PRICE_NANOS, Place, verified
from tollkeeper import Denial, EventQuery, Outcome, Usage, UsageQuery
from tollkeeper.domain.decisions import STATUS_BY_REASON, UNITS
from tollkeeper.domain.requests import Usage as PlainUsage
from tollkeeper.errors import BadParameter, HoldEnded, Unauthenticated
from tollkeeper.http.denials import denial_problem
from tollkeeper.remote import Admission
from tollkeeper.remote.messages import denial_of

DEADLINE_S = 20


def wait_for(condition):
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.01)


@both
def test_a_request_is_admitted_held_and_booked(place: Place, form):
    calls = form(place.toll())
    admission = calls.admit(
        place.secret, "POST", "/chat", Usage(prompt_tokens=5, cost_nanos=7_000), tags={"user": "u1"}
    )
    assert isinstance(admission, Admission)
    assert (admission.account_id, admission.key_id) == (place.account, f"{place.account}-k")
    assert (admission.path, admission.amounts.nanos, admission.amounts.tokens) == ("/chat", 7_000, 5)
    assert place.used() == 1
    usage = Usage(
        prompt_tokens=3, completion_tokens=2, cost_nanos=6_000, credits=0, quantities={"seconds": "1.5"}
    )
    settled = calls.settle(admission, Outcome(200, usage, latency_us=1_234_567, bytes_out=9))
    assert (settled.id, settled.cost_nanos, settled.cost_state) == (admission.id, 6_000, "given")
    assert (settled.tokens, settled.quantities["seconds"]) == (5, 1_500_000)
    event = place.server.call("GET", f"/tk/v1/events/{admission.id}")
    assert (event["latency_ms"], event["bytes_out"], event["tags"]) == (1234.567, 9, {"user": "u1"})
    assert calls.settle(admission, Outcome(200, usage, latency_us=1_234_567, bytes_out=9)).replayed
    with pytest.raises(HoldEnded):
        calls.settle(admission, Outcome(500))
    assert place.totals()["requests"] == 1
    calls.close()


@both
def test_a_voided_request_never_was(place: Place, form):
    calls = form(place.toll())
    admission = calls.admit(place.secret, "POST", "/chat")
    calls.void(admission)
    calls.void(admission)
    assert place.used() == 0
    calls.close()


@both
def test_refusals_are_those_of_the_gate(place: Place, form):
    calls = form(place.toll())
    for _ in range(10):
        calls.settle(calls.admit(place.secret, "POST", "/chat"))
    denial = calls.admit(place.secret, "POST", "/chat")
    assert isinstance(denial, Denial)
    assert (denial.reason, denial.status, denial.limit) == ("budget_exhausted", 402, f"{place.account}-b")
    assert (denial.unit, denial.allowed, denial.used, denial.largest_fit) == ("requests", 10, 10, 0)
    assert denial.resets_at_us > time.time_ns() // 1000
    for secret in ("", "nobody", "x" * 600):
        found = calls.admit(secret, "POST", "/chat")
        assert found.status == 401, secret
    assert calls.admit(place.secret, "POST", "/nowhere").reason == "route_unknown"
    assert place.totals()["requests"] == 12
    calls.close()


@both
def test_usage_is_the_servers(place: Place, form):
    calls = form(place.toll())
    calls.settle(calls.admit(place.secret, "POST", "/chat", tags={"team": "a,b"}))
    calls.settle(calls.admit(place.secret, "POST", "/chat", tags={"team": "c"}))
    query = UsageQuery(
        account_id=place.account,
        from_us=0,
        to_us=4 * 10**15,
        granularity="day",
        group_by=("tag:team", "key"),
        filters={"tag:team": ("a,b", ""), "status": ("200",)},
        measures=("requests", "cost_nanos", "latency_ms_avg"),
        sort=("-cost_nanos",),
    )
    report = calls.usage(query)
    (row,) = report.rows
    assert (row["tag:team"], row["requests"], row["cost_nanos"]) == ("a,b", 1, PRICE_NANOS)
    assert report.complete
    assert report.row_count == 1
    with pytest.raises(BadParameter, match="group_by takes"):
        calls.usage(UsageQuery(account_id=None, from_us=0, to_us=1, group_by=("nothing",)))
    calls.close()


@both
def test_events_are_the_servers(place: Place, form):
    calls = form(place.toll())
    for team in ("a,b", "c", "c"):
        calls.settle(calls.admit(place.secret, "POST", "/chat", tags={"team": team}))
    query = EventQuery(account_id=place.account, from_us=0, to_us=4 * 10**15, limit=2)
    first = calls.events(query)
    second = calls.events(msgspec.structs.replace(query, cursor=first.next_cursor))
    assert (len(first.events), len(second.events), second.next_cursor) == (2, 1, None)
    assert first.complete
    listed = place.server.call("GET", f"/tk/v1/events?account={place.account}")
    assert [*first.events, *second.events] == listed["events"]
    (tagged,) = calls.events(msgspec.structs.replace(query, filters={"tag:team": ("a,b",)})).events
    assert (tagged["tags"], tagged["cost_nanos"]) == ({"team": "a,b"}, str(PRICE_NANOS))
    assert calls.events(msgspec.structs.replace(query, denied=True)).events == []
    with pytest.raises(BadParameter, match="next_cursor of the page before"):
        calls.events(msgspec.structs.replace(query, cursor="garbage"))
    calls.close()


@both
def test_a_key_that_is_no_operators_is_an_error_and_no_refusal(place: Place, form):
    """A wrong set-up must not look like a wrong key of the caller."""
    calls = form(place.toll(key="ok_" + "x" * 30))
    with pytest.raises(Unauthenticated):
        calls.admit(place.secret, "POST", "/chat")
    calls.close()


def test_an_admission_that_is_dropped_is_voided(place: Place):
    with place.toll() as toll:
        admission = toll.admit(place.secret, "POST", "/chat")
        assert place.used() == 1
        del admission
        wait_for(lambda: place.used() == 0)


def test_a_management_key_reads_the_usage_of_its_account(place: Place):
    entry = {"id": f"{place.account}-m", "account": place.account, "role": "management"}
    secret = place.server.post("/tk/v1/keys", entry)["secret"]
    with place.toll() as toll:
        toll.settle(toll.admit(place.secret, "POST", "/chat"))
    with place.toll(key=secret) as toll:
        query = UsageQuery(account_id=place.account, from_us=0, to_us=4 * 10**15)
        assert toll.usage(query).totals["requests"] == 1


def test_a_forked_child_has_connections_of_its_own(place: Place):
    """A server that preloads the application forks with one open: answers of two processes must not mix."""
    with place.toll() as toll:
        held = toll.admit(place.secret, "POST", "/chat")
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(DEADLINE_S)
                for _ in range(4):
                    toll.settle(toll.admit(place.secret, "POST", "/chat"))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        for _ in range(4):
            toll.settle(toll.admit(place.secret, "POST", "/chat"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        # The child dropped it too, and must not have voided it.
        assert toll.settle(held).cost_nanos == PRICE_NANOS
    assert place.used() == place.totals()["requests"] == 9


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://x", "unix:s", "http://", "http://u:p@h", "http://h:99999"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(BadParameter, match="url must"):
        Place(None, url, "", "").toll()  # type: ignore[arg-type]


@given(
    reason=st.sampled_from(sorted(STATUS_BY_REASON)),
    unit=st.sampled_from([*UNITS, "quantity.seconds"]),
    amounts=st.lists(st.none() | st.integers(0, 10**15), min_size=3, max_size=3),
    retry_after_s=st.integers(1, 10**6),
    resets_at_us=st.none() | st.integers(0, 4 * 10**15),
)
def test_a_denial_survives_the_way(reason, unit, amounts, retry_after_s, resets_at_us):
    allowed, used, largest_fit = amounts
    denial = Denial(
        reason, "No.", "rpm", unit, allowed, used, largest_fit, retry_after_s, resets_at_us, "model x*"
    )
    assert denial_of(denial_problem(denial)) == denial


def test_usage_of_a_providers_response_keeps_its_model(tcp_place: Place):
    """The response's model counts where neither the caller nor the hold names one."""
    with tcp_place.toll() as toll:
        admission = toll.admit(tcp_place.secret, "POST", "/chat")
        usage = PlainUsage(prompt_tokens=1_000_000, response_model="gpt-4o")
        toll.settle(admission, Outcome(200, usage))
    assert tcp_place.server.call("GET", f"/tk/v1/events/{admission.id}")["model"] == "gpt-4o"


def test_the_server_refuses_what_it_does_not_know(server):
    """A misspelt profile must not pass as native, nor a preview of a hold that is gone as a booking."""
    request = {"key": "nobody", "path": "/chat", "answer_as": "nothing"}
    with pytest.raises(Refused, match="answer_as must be one of native") as refused:
        server.post("/tk/v1/authorize", request)
    assert refused.value.status == 400
    with pytest.raises(Refused, match="hold_unknown") as refused:
        server.post("/tk/v1/settle", {"hold_id": "nothing", "preview": True})
    assert refused.value.status == 404


def test_the_ledger_agrees_at_the_end(server):
    assert verified(server)


@both
def test_a_request_without_a_key_names_its_account_or_session(place: Place, form):
    """As in process: the same pool as the key's, and refused with words."""
    calls = form(place.toll())
    asked = json.dumps({"account": place.account, "user": "ada"}).encode()
    token = place.server.call("POST", "/tk/v1/sessions", asked, {"Content-Type": "application/json"})["token"]
    for who in ({"account": place.account}, {"session": token}):
        admission = calls.admit("", "POST", "/chat", **who)
        assert isinstance(admission, Admission)
        assert (admission.account_id, admission.key_id) == (place.account, "")
        calls.settle(admission)
    assert place.used() == 2
    for who in ({"session": "a.b.c"}, {"account": "nobody-here"}):
        assert isinstance(calls.admit("", "POST", "/chat", **who), Denial)
    with pytest.raises(BadParameter):
        calls.admit(place.secret, "POST", "/chat", account=place.account)
    calls.close()
