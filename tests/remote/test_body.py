"""`expect`, `extend` and `settle_later` through a server: as in process, and safe to repeat."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.end_to_end.server import Server
from tests.remote.conftest import Place, place_on, verified
from tests.remote.proxy import Proxy
from tests.remote.test_middleware import asked
from tollkeeper import Denied, Usage, remote
from tollkeeper.domain.decisions import Denial
from tollkeeper.errors import HoldEnded
from tollkeeper.metering import NOT_STATED, Metering

MODEL: Final = "m-remote"
"""2 nanos per prompt token, 10 per completion token."""
FITS: Final = Usage(prompt_tokens=100, completion_tokens=80, model=MODEL)
"""1,000 nanos, and 1,000 of the route: all of the budget."""
BEYOND: Final = FITS._replace(prompt_tokens=101)
_accounts = iter(range(1_000_000))


@pytest.fixture
def spender(server: Server) -> Place:
    """An account that may spend 2,000 nanos a day."""
    account = f"body{next(_accounts)}"
    more = f"""
[[budgets]]
id = "{account}-money"
account = "{account}"
amount = 2000
period = "day"
[[prices]]
id = "m-remote"
model = "{MODEL}"
prompt_nanos_per_million = 2000000
completion_nanos_per_million = 10000000
"""
    return place_on(server, server.url, account, budget=100, more=more)


def money(place: Place) -> int:
    """Return what the budget of money counts, with what is held."""
    (budget,) = [found for found in place.state()["budgets"] if found["name"].endswith("-money")]
    return int(budget["used"])


def totals(place: Place) -> tuple[int, int, int]:
    """Return the requests that were booked, those that were refused, and their cost."""
    found = place.totals()
    assert verified(place.server)
    return found["requests"], found["denied"], found["cost_nanos"]


def app_of(handler: Callable[[Metering], Any]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handler(scope["state"]["tollkeeper"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    return app


def run(
    place: Place, handler: Callable[[Metering], Any], url: str | None = None, **options: Any
) -> list[Any]:
    """Return the messages of one request to an app behind the server's gate."""

    async def call() -> list[Any]:
        toll = place.toll(url)
        try:
            return await asked(toll.middleware(app_of(handler), **options), place.secret)
        finally:
            await toll.aclose()

    return asyncio.run(call())


def test_the_real_maximum_is_held_and_the_real_usage_booked(spender: Place) -> None:
    """The hold of the middleware is replaced, and the denial says what would fit."""
    seen: list[Any] = []

    async def handler(metering: Metering) -> None:
        try:
            await metering.expect(BEYOND)
        except Denied as exc:
            seen.append((exc.denial.limit, exc.denial.largest_fit))
        await metering.expect(FITS)
        seen.append(await asyncio.to_thread(money, spender))
        metering.usage = Usage(prompt_tokens=100, completion_tokens=7)

    assert run(spender, handler)[0]["status"] == 200
    assert seen == [(f"{spender.account}-money", 2_000), 2_000]
    assert totals(spender) == (1, 0, 1_270)


@pytest.mark.parametrize("profile", ["native", "shoal", "regpilot"])
def test_a_denial_that_is_let_go_is_the_answer_of_the_gate(server: Server, profile: str) -> None:
    """In the dialect of the API, as at the door; the request is booked as refused."""
    account = f"body{next(_accounts)}"
    more = f'[[budgets]]\nid = "{account}-money"\naccount = "{account}"\namount = 2000\nperiod = "day"\n'
    place = place_on(server, server.url, account, budget=100, more=more)
    key = {"id": f"{account}-p", "account": account, "profile": profile}
    issued = server.post("/tk/v1/keys", key)
    route = {"id": f"{account}-{profile}", "method": "POST", "path": "/chat", "profile": profile}
    if profile != "native":
        server.post("/tk/v1/routes", {**route, "layer": "inference"})
        place = place._replace(secret=issued["secret"])
    too_much = Usage(cost_nanos=2_001)

    async def handler(metering: Metering) -> None:
        await metering.expect(too_much)

    def shown(sent: list[Any]) -> tuple[int, list[bytes], int]:
        start, body = sent
        return start["status"], sorted(name for name, _ in start["headers"]), len(body["body"])

    try:
        let_go = shown(run(place, handler, profile=profile))
        assert let_go == shown(run(place, handler, profile=profile, expect=lambda scope: too_much))
    finally:
        if profile != "native":  # Other tests have the same server, and its dialects.
            server.call("DELETE", f"/tk/v1/routes/{route['id']}")
    assert let_go[0] in (402, 429)
    assert totals(place)[1:] == (2, 0)


def test_a_stream_is_cut_at_the_last_token_that_is_paid_for(spender: Place) -> None:
    """Several at once, in steps that do not divide what is left."""
    tokens: list[int] = []

    async def handler(metering: Metering) -> None:
        used = 0
        await metering.expect(Usage(model=MODEL))
        while (extension := await metering.extend(Usage(completion_tokens=7))).granted.completion_tokens:
            used += extension.granted.completion_tokens
            metering.usage = Usage(completion_tokens=used)
        assert extension.denial is not None
        assert extension.denial.reason == "budget_exhausted"
        tokens.append(used)

    run(spender, handler)
    assert tokens == [100]
    assert totals(spender) == (1, 0, 2_000)


def test_a_handler_in_a_thread_has_the_same(spender: Place) -> None:
    """With the client's connections for threads."""

    def in_a_thread(metering: Metering) -> None:
        with pytest.raises(Denied):
            metering.expect_sync(BEYOND)
        metering.expect_sync(Usage(model=MODEL, prompt_tokens=100))
        extension = metering.extend_sync(Usage(completion_tokens=90))
        assert (extension.granted.completion_tokens, bool(extension)) == (80, False)
        metering.usage = Usage(prompt_tokens=100, completion_tokens=80)

    async def handler(metering: Metering) -> None:
        await asyncio.to_thread(in_a_thread, metering)

    assert run(spender, handler)[0]["status"] == 200
    assert totals(spender) == (1, 0, 2_000)


def test_usage_after_the_response_is_booked(spender: Place) -> None:
    """By a task or thread of the client; the second statement is refused where it is made."""
    kept: list[Metering] = []

    async def handler(metering: Metering) -> None:
        kept.append(metering)
        metering.settle_later()

    async def call() -> None:
        async with _closing(spender.toll()) as toll:
            await asked(toll.middleware(app_of(handler)), spender.secret)
            assert await asyncio.to_thread(money, spender) == 1_000
            kept[0].usage = FITS
            with pytest.raises(HoldEnded):
                kept[0].usage = FITS

    asyncio.run(call())
    assert totals(spender) == (1, 0, 2_000)


def test_usage_that_never_comes_is_booked_by_the_server(spender: Place) -> None:
    """Also when the client is gone: the server has the time, and the outcome."""

    async def handler(metering: Metering) -> None:
        metering.settle_later(1)

    run(spender, handler)
    until = time.monotonic() + 20
    while totals(spender)[0] == 0 and time.monotonic() < until:
        time.sleep(0.2)
    assert totals(spender) == (1, 0, 1_000)
    assert money(spender) == 1_000
    path = f"/tk/v1/usage?account={spender.account}&group_by=error_type&from=2020-01-01T00:00:00Z"
    assert NOT_STATED in json.dumps(spender.server.call("GET", path))


def test_a_lost_answer_is_repeated_and_counts_once(spender: Place, proxy: Proxy) -> None:
    """Both calls state the whole of what is wanted."""

    async def handler(metering: Metering) -> None:
        proxy.faults.append("after")
        await metering.expect(Usage(model=MODEL, prompt_tokens=100))
        proxy.faults.append("after")
        extension = await metering.extend(Usage(completion_tokens=50))
        assert bool(extension)
        assert await asyncio.to_thread(money, spender) == 1_700
        metering.usage = Usage(prompt_tokens=100, completion_tokens=50)

    assert run(spender, handler, proxy.url)[0]["status"] == 200
    assert totals(spender) == (1, 0, 1_700)


def test_while_the_server_is_away_nothing_more_is_held(spender: Place, proxy: Proxy) -> None:
    """The request is refused, the stream is cut; nothing goes on unpaid."""
    seen: list[Denial | None] = []

    async def handler(metering: Metering) -> None:
        # A kept connection that breaks is replaced once more.
        proxy.faults.extend(["before"] * 9)
        seen.append((await metering.extend(Usage(completion_tokens=5))).denial)
        try:
            await metering.expect(FITS)
        finally:
            proxy.faults.clear()

    sent = run(spender, handler, proxy.url)
    assert [denial.reason for denial in seen if denial] == ["unavailable"]
    assert sent[0]["status"] == 503
    assert totals(spender)[2] == 0


class _closing:
    def __init__(self, toll: remote.Tollkeeper) -> None:
        self._toll = toll

    async def __aenter__(self) -> remote.Tollkeeper:
        return self._toll

    async def __aexit__(self, *_: object) -> None:
        await self._toll.aclose()
