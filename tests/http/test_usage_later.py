"""
Usage that is stated after the response: booked once, with the usage when it comes in time and without it otherwise,
also when the process ends in between. Without `settle_later` it raises where it is set.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tests.conftest import Install
from tests.http.body_place import MODEL, START, Place, app_of, status_of
from tollkeeper import Tollkeeper, Usage
from tollkeeper.domain.events import Record
from tollkeeper.errors import BadParameter, HoldEnded, Unavailable
from tollkeeper.metering import NOT_STATED, Metering
from tollkeeper.testing import ManualClock, commit_all, faulty_ledger, verify

USED = Usage(prompt_tokens=10, completion_tokens=5, model=MODEL)
"""70 nanos."""


@pytest.fixture
def place(install: Install) -> Place:
    return Place(install())


def later(place: Place, timeout_s: int | None = None) -> Metering:
    """Return the metering of a request that was answered, and whose usage is to come."""
    kept: list[Metering] = []

    async def handler(metering: Metering) -> None:
        kept.append(metering)
        await metering.expect(Usage(model=MODEL, completion_tokens=50))
        metering.settle_later(timeout_s)

    assert status_of(asyncio.run(place.call(place.toll.middleware(app_of(handler))))) == 200
    return kept[0]


def one(place: Place) -> Record:
    (record,) = place.booked()
    return record


def test_a_background_task_states_the_usage(place: Place) -> None:
    """The hold counts until then, and the record is of the request: its status, its time, its bytes."""
    metering = later(place)
    assert place.held() == (500, 1)
    metering.cache = "miss"
    metering.tags["user"] = "ada"  # type: ignore[index]
    metering.usage = USED
    record = one(place)
    assert (record.cost_nanos, record.status, record.bytes_out, record.error_type) == (70, 200, 2, "")
    assert (record.cache, record.tags, record.estimated_cost_nanos) == ("miss", {"user": "ada"}, 500)


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_it_may_be_stated_anywhere(place: Place, where: str) -> None:
    """In another task of the loop, and in a thread, which has none."""

    def state(metering: Metering) -> None:
        metering.usage = USED

    async def on_a_loop(metering: Metering) -> None:
        state(metering)

    metering = later(place)
    if where == "loop":
        asyncio.run(on_a_loop(metering))
    else:
        thread = threading.Thread(target=state, args=(metering,))
        thread.start()
        thread.join()
    assert one(place).cost_nanos == 70


def test_usage_stated_before_the_response_ends_is_booked_with_it(place: Place) -> None:
    """The task may be faster than the response."""

    async def handler(metering: Metering) -> None:
        metering.settle_later()
        metering.usage = USED

    assert status_of(asyncio.run(place.call(place.toll.middleware(app_of(handler))))) == 200
    assert one(place).cost_nanos == 70


def test_it_is_stated_once(place: Place) -> None:
    """The second would be lost."""
    metering = later(place)
    metering.usage = USED
    with pytest.raises(HoldEnded, match="stated before"):
        metering.usage = USED
    with pytest.raises(HoldEnded):
        metering.settle_later()
    with pytest.raises(TypeError):
        metering.tags["user"] = "ada"  # type: ignore[index]
    assert one(place).cost_nanos == 70


def test_threads_that_state_it_at_once_book_it_once(place: Place) -> None:
    """Exactly one of them; the others are told."""
    metering = later(place)
    raised: list[BaseException] = []
    start = threading.Barrier(8)

    def state() -> None:
        start.wait()
        try:
            metering.usage = USED
        except HoldEnded as exc:
            raised.append(exc)

    threads = [threading.Thread(target=state) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(raised) == 7
    assert one(place).cost_nanos == 70


def test_the_task_may_void_the_request(place: Place) -> None:
    """As before the response."""
    metering = later(place)
    metering.void = True
    assert place.booked() == []
    with pytest.raises(HoldEnded):
        metering.usage = USED


def test_without_usage_in_time_the_request_is_booked_all_the_same(place: Place, clock: ManualClock) -> None:
    """A task that raised, or hangs: the request counts, is marked, and holds nothing any more."""
    metering = later(place, 60)
    clock.advance(seconds=59)
    assert place.site.holds.expire() == 0
    clock.advance(seconds=1)
    assert place.site.holds.expire() == 1
    record = one(place)
    assert (record.cost_nanos, record.error_type, record.status, record.model) == (0, NOT_STATED, 200, MODEL)
    with pytest.raises(HoldEnded, match="too late"):
        metering.usage = USED


@pytest.mark.parametrize("timeout_s", [0, -1, 7 * 86_400 + 1])
def test_the_time_is_bounded(place: Place, timeout_s: int) -> None:
    """A hold must end."""

    async def handler(metering: Metering) -> None:
        with pytest.raises(BadParameter, match="timeout_s must be from 1"):
            metering.settle_later(timeout_s)

    asyncio.run(place.call(place.toll.middleware(app_of(handler))))


def test_a_process_that_ends_first_loses_nothing(
    install: Install, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped or killed: the ledger has the request, which is booked without usage when its time is up."""
    place = Place(install(), amount=1_000)
    metering = later(place, 600)
    place.site.close()
    with pytest.raises(Unavailable, match="closing"):
        metering.usage = USED
    place.site = site = install()
    place.toll = Tollkeeper(site)
    assert place.held() == (500, 1)
    clock.advance(seconds=600)
    assert site.holds.expire() == 1
    commit_all(site)
    assert place.held() == (0, 0)
    assert verify(site).ok
    assert any(record.message == "tollkeeper.hold.settled_at_expiry" for record in caplog.records)


def test_a_ledger_that_is_away_at_the_statement_gets_it_later(place: Place) -> None:
    """It is kept until the ledger takes it."""
    metering = later(place)
    with faulty_ledger(place.site) as ledger:
        ledger.refuse(2)
        metering.usage = USED
        commit_all_of(place)
    assert one(place).cost_nanos == 70


def test_a_ledger_that_is_away_at_the_response_cuts_it(place: Place) -> None:
    """As with usage in time: an answer that was sent whole is in the ledger. The request is not lost either."""
    kept: list[Metering] = []

    async def handler(metering: Metering) -> None:
        kept.append(metering)
        metering.settle_later()

    with faulty_ledger(place.site) as ledger:
        ledger.refuse(1)
        with pytest.raises(Unavailable):
            asyncio.run(place.call(place.toll.middleware(app_of(handler))))
    kept[0].usage = USED
    assert one(place).cost_nanos == 70


def commit_all_of(place: Place) -> None:
    """Wait until all is committed, over failures of the ledger."""
    while True:
        try:
            commit_all(place.site)
            return
        except Unavailable:
            continue


@pytest.mark.drawn(4)
@pytest.mark.parametrize("name", ["usage", "cache", "error_type", "estimated", "tags", "void"])
@pytest.mark.parametrize("where", ["task", "thread"])
def test_without_it_setting_anything_after_the_response_raises(place: Place, name: str, where: str) -> None:
    """It was lost without a word (fastapi#2215); the error says what to call."""
    values = {"usage": USED, "tags": {"a": "b"}, "void": True, "estimated": True}
    kept: list[Metering] = []

    async def handler(metering: Metering) -> None:
        kept.append(metering)

    def state() -> None:
        with pytest.raises(HoldEnded, match=r"metering\.settle_later\(\)"):
            setattr(kept[0], name, values.get(name, "hit"))

    async def call() -> None:
        await place.call(place.toll.middleware(app_of(handler)))
        if where == "thread":
            await asyncio.to_thread(state)
        else:
            await asyncio.create_task(_async(state))

    asyncio.run(call())
    assert one(place).cost_nanos == 0


async def _async(call: Any) -> None:
    call()


def test_starlettes_background_task_is_told(place: Place) -> None:
    """Its error reaches the server's log, as it is raised where the usage is set."""
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        metering = request.state.tollkeeper
        if request.query_params.get("later"):
            metering.settle_later()

        def state() -> None:
            metering.usage = USED

        return Response("ok", background=BackgroundTask(state))

    app = place.toll.middleware(Starlette(routes=[Route("/v1/chat", chat, methods=["POST"])]))
    with pytest.raises(HoldEnded):
        asyncio.run(place.call(app))
    asyncio.run(place.call(app, query_string=b"later=1"))
    assert [record.cost_nanos for record in place.booked()] == [0, 70]


def test_a_client_that_leaves_does_not_end_the_task(place: Place) -> None:
    """The response has no end then, and the usage is still to come."""
    kept: list[Metering] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(scope["state"]["tollkeeper"])
        kept[0].settle_later()
        await send(START)
        raise OSError("the client is gone")

    with pytest.raises(OSError, match="gone"):
        asyncio.run(place.call(place.toll.middleware(app)))
    kept[0].usage = USED
    assert one(place).cost_nanos == 70


def test_a_socket_may_settle_later_too(place: Place) -> None:
    """After its end, as a request."""
    kept: list[Metering] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept.append(scope["state"]["tollkeeper"])
        kept[0].settle_later()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 1000})

    scope = {"type": "websocket", "path": "/ws"}
    asyncio.run(place.call(place.toll.middleware(app), **scope))
    assert place.held()[1] == 1
    kept[0].usage = USED
    assert (one(place).cost_nanos, one(place).status) == (70, 101)


def test_not_durable_ones_are_booked_too(place: Place) -> None:
    """The response does not wait for the hold in the ledger."""
    kept: list[Metering] = []

    async def handler(metering: Metering) -> None:
        kept.append(metering)
        metering.settle_later()

    asyncio.run(place.call(place.toll.middleware(app_of(handler), durable=False)))
    kept[0].usage = USED
    assert one(place).cost_nanos == 70
