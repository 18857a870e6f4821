"""
What only a request's body says: its model and maximum are held before the model is called, and a stream goes on to the
last token that is paid for.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import fastapi
import pytest

from tests.conftest import Install
from tests.http.body_place import END, MODEL, START, Place, app_of, problem_of, status_of
from tollkeeper import Denied, Usage
from tollkeeper.asgi import Middleware
from tollkeeper.domain.extensions import Extension
from tollkeeper.errors import HoldEnded
from tollkeeper.http.asgi_types import ASGIApp, Message
from tollkeeper.metering import Metering
from tollkeeper.profiles import names
from tollkeeper.testing import unique

FITS: Final = Usage(prompt_tokens=100, completion_tokens=80, model=MODEL)
"""1,000 nanos: all of the budget."""
BEYOND: Final = FITS._replace(prompt_tokens=101)


@pytest.fixture
def place(install: Install) -> Place:
    return Place(install())


def test_the_real_maximum_is_held_and_the_real_usage_booked(place: Place) -> None:
    """The middleware held nothing, as it sees no body."""
    seen = []

    async def handler(metering: Metering) -> None:
        seen.append(place.held())
        await metering.expect(FITS)
        seen.append(place.held())
        metering.usage = Usage(prompt_tokens=100, completion_tokens=7)

    assert status_of(asyncio.run(place.call(place.toll.middleware(app_of(handler))))) == 200
    assert seen == [(0, 1), (1_000, 1)]
    (record,) = place.booked()
    assert (record.cost_nanos, record.model, record.cost_state) == (270, MODEL, "priced")
    assert record.estimated_cost_nanos == 1_000


@pytest.mark.drawn(2)
@pytest.mark.parametrize("profile", ["native", *names()])
def test_a_denial_that_is_let_go_is_the_answer_of_the_gate(install: Install, profile: str) -> None:
    """The caller gets what a refusal at the door looks like, in the dialect of the API."""
    place = Place(install(), profile)

    async def handler(metering: Metering) -> None:
        await metering.expect(BEYOND)
        raise AssertionError("it does not fit")

    def answer(app: ASGIApp) -> tuple[int, list[Any], int]:
        sent = asyncio.run(place.call(app))
        names = sorted(name for name, _ in sent[0]["headers"])
        return status_of(sent), names, len(sent[1]["body"])

    let_go = answer(place.toll.middleware(app_of(handler), profile=profile))
    at_the_door = answer(place.toll.middleware(app_of(handler), profile=profile, expect=lambda scope: BEYOND))
    assert let_go == at_the_door
    denied = place.booked()
    assert [(r.status, r.denied_reason, r.cost_nanos) for r in denied] == [(402, "budget_exhausted", 0)] * 2
    assert denied[0].model == MODEL


@pytest.mark.parametrize("model", ["gpt-nobody-knows", "m-2"])
def test_a_model_without_a_price_is_refused(place: Place, model: str) -> None:
    """The setting `unknown_price` holds for what a body names too."""

    async def handler(metering: Metering) -> None:
        await metering.expect(Usage(model=model, completion_tokens=1))

    sent = asyncio.run(place.call(place.toll.middleware(app_of(handler))))
    assert status_of(sent) == 403
    assert problem_of(sent)["code"] == "price_unknown"
    (record,) = place.booked()
    assert (record.denied_reason, record.model, record.cost_nanos) == ("price_unknown", model, 0)


def test_a_refused_request_may_ask_for_less(place: Place) -> None:
    """The denial says how much would fit; the request is booked once, with what it used."""
    denials = []

    async def handler(metering: Metering) -> None:
        try:
            await metering.expect(BEYOND)
        except Denied as exc:
            denials.append((exc.denial.limit, exc.denial.largest_fit, place.held()))
        await metering.expect(FITS)
        metering.usage = FITS

    assert status_of(asyncio.run(place.call(place.toll.middleware(app_of(handler))))) == 200
    assert denials == [("month", 1_000, (0, 1))]
    assert [record.cost_nanos for record in place.booked()] == [1_000]


def test_an_app_may_word_the_refusal_itself(place: Place) -> None:
    """Its answer is sent as it is, and the request counts as refused."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await scope["state"]["tollkeeper"].expect(BEYOND)
        except Denied as exc:
            await send({**START, "status": exc.denial.status, "headers": [(b"x-own", b"1")]})
            await send(END)

    sent = asyncio.run(place.call(place.toll.middleware(app)))
    assert sent[0]["headers"] == [(b"x-own", b"1")]
    assert [(record.status, record.denied_reason) for record in place.booked()] == [(402, "budget_exhausted")]


def test_what_a_refused_request_states_is_booked(place: Place) -> None:
    """It was used, whatever the gate said."""

    async def handler(metering: Metering) -> None:
        metering.usage = Usage(prompt_tokens=50, model=MODEL)
        await metering.expect(BEYOND)

    assert status_of(asyncio.run(place.call(place.toll.middleware(app_of(handler))))) == 402
    (record,) = place.booked()
    assert (record.status, record.cost_nanos, record.denied_reason) == (402, 100, "")


def test_a_denial_after_the_answer_began_cuts_it(place: Place) -> None:
    """The answer cannot be taken back, and must not look whole."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await scope["state"]["tollkeeper"].expect(BEYOND)

    with pytest.raises(Denied):
        asyncio.run(place.call(place.toll.middleware(app)))
    assert [record.denied_reason for record in place.booked()] == ["budget_exhausted"]


def test_another_error_after_a_denial_is_the_apps(place: Place) -> None:
    """The caller gets the refusal, and the server's log the error."""

    async def handler(metering: Metering) -> None:
        try:
            await metering.expect(BEYOND)
        except Denied:
            raise KeyError("the handler's own") from None

    async def call() -> None:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/chat", "headers": place.headers}
        with pytest.raises(KeyError):
            await place.toll.middleware(app_of(handler))(scope, None, send)  # type: ignore[arg-type]
        assert status_of(sent) == 402

    asyncio.run(call())
    assert [record.denied_reason for record in place.booked()] == ["budget_exhausted"]


def test_tags_that_are_set_before_count(install: Install) -> None:
    """An end user that the body names has a budget of its own."""
    from tollkeeper.domain.catalog import Budget
    from tollkeeper.testing import set_up

    place = Place(install(), amount=10_000)
    budget = Budget(id=unique("user"), account=place.account, amount=300, per="tag.user")
    set_up(place.site, budget)
    statuses = []

    def handler_of(user: str) -> Any:
        async def handler(metering: Metering) -> None:
            metering.tags["user"] = user  # type: ignore[index]
            await metering.expect(Usage(model=MODEL, completion_tokens=20))
            metering.usage = Usage(completion_tokens=20)

        return handler

    for user in ("ada", "ada", "bob"):
        sent = asyncio.run(place.call(place.toll.middleware(app_of(handler_of(user)))))
        statuses.append(status_of(sent))
    assert statuses == [200, 402, 200]
    assert [record.tags for record in place.booked() if not record.denied_reason] == [
        {"user": "ada"},
        {"user": "bob"},
    ]


def test_n_bodies_at_once_get_exactly_the_budget(install: Install) -> None:
    """With a constant estimate at the door, five streams spent ten times the budget."""
    place = Place(install(), under_way=64)

    async def handler(metering: Metering) -> None:
        await metering.expect(Usage(model=MODEL, completion_tokens=10))
        await asyncio.sleep(0)
        metering.usage = Usage(completion_tokens=10)

    async def all_of_them() -> list[int]:
        app = place.toll.middleware(app_of(handler))
        return [status_of(sent) for sent in await asyncio.gather(*[place.call(app) for _ in range(64)])]

    statuses = asyncio.run(all_of_them())
    assert (statuses.count(200), statuses.count(402)) == (10, 54)
    assert sum(record.cost_nanos for record in place.booked()) == 1_000


async def _stream(metering: Metering, send: Any, step: int, most: int) -> None:
    """Send up to *most* tokens, each paid for before it is sent; say why when the money ends."""
    await metering.expect(Usage(model=MODEL, prompt_tokens=5))
    await send(START)
    paid = sent = 0
    extension = Extension()
    while sent < most:
        if sent == paid:
            extension = await metering.extend(Usage(completion_tokens=min(step, most - sent)))
            paid += extension.granted.completion_tokens
            if sent == paid:
                break
        sent += 1
        metering.usage = Usage(prompt_tokens=5, completion_tokens=sent)
        await send({"type": "http.response.body", "body": b"t", "more_body": True})
        await asyncio.sleep(0)
    reason = b"" if extension.denial is None else extension.denial.reason.encode()
    await send({"type": "http.response.body", "body": reason})


@pytest.mark.drawn(2)
@pytest.mark.parametrize("step", [1, 7, 50])
@pytest.mark.parametrize("streams", [1, 8])
def test_streams_are_cut_at_the_last_token_that_is_paid_for(
    install: Install, step: int, streams: int
) -> None:
    """Whatever the step, tokens of the whole budget are sent, and none beyond it."""
    place = Place(install(), under_way=8)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await _stream(scope["state"]["tollkeeper"], send, step, 200)

    async def all_of_them() -> list[list[Message]]:
        gated = place.toll.middleware(app)
        return await asyncio.gather(*[place.call(gated) for _ in range(streams)])

    answers = asyncio.run(all_of_them())
    tokens = sum(message.get("body") == b"t" for sent in answers for message in sent)
    started = [sent for sent in answers if sent[0]["status"] == 200]
    assert started
    assert tokens == (1_000 - len(started) * 10) // 10
    assert all(sent[-1]["body"] == b"budget_exhausted" for sent in started)
    records = place.booked()
    assert sum(record.cost_nanos for record in records) == len(started) * 10 + tokens * 10 <= 1_000
    assert sum(record.denied_reason == "budget_exhausted" for record in records) == streams - len(started)


def test_a_stream_that_fits_completes(place: Place) -> None:
    """The hold beyond what it used is released."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await _stream(scope["state"]["tollkeeper"], send, 7, 30)

    sent = asyncio.run(place.call(place.toll.middleware(app)))
    assert sent[-1]["body"] == b""
    assert [record.cost_nanos for record in place.booked()] == [310]


def test_a_stream_whose_client_leaves_is_booked_as_far_as_it_came(place: Place) -> None:
    """What it held beyond is there for others at once."""
    came = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        metering = scope["state"]["tollkeeper"]
        await metering.expect(FITS)
        await send(START)
        metering.usage = Usage(prompt_tokens=100, completion_tokens=3)
        came.set()
        await asyncio.Event().wait()

    async def leave() -> None:
        call = asyncio.ensure_future(place.call(place.toll.middleware(app)))
        await came.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(leave())
    (record,) = place.booked()
    assert (record.cost_nanos, record.error_type) == (230, "CancelledError")


def test_a_key_that_is_revoked_meanwhile_gets_nothing_more(place: Place) -> None:
    """To admit anew means by what is in force now."""

    async def handler(metering: Metering) -> None:
        await asyncio.to_thread(place.site.manage.set_key_state, place.account, place.key_id, "revoked")
        await metering.expect(Usage(model=MODEL))

    sent = asyncio.run(place.call(place.toll.middleware(app_of(handler))))
    assert status_of(sent) == 401
    assert problem_of(sent)["code"] == "key_revoked"


def test_a_budget_that_is_lowered_meanwhile_counts(place: Place) -> None:
    """The catalog changed under the open request, whose hold is still counted once."""
    from tollkeeper.domain.catalog import Budget
    from tollkeeper.testing import set_up

    seen = []

    async def handler(metering: Metering) -> None:
        await metering.expect(Usage(model=MODEL, completion_tokens=40))
        lowered = Budget(id="month", account=place.account, amount=500)
        await asyncio.to_thread(set_up, place.site, lowered)
        try:
            await metering.expect(FITS)
        except Denied as exc:
            seen.append(exc.denial.largest_fit)
        await metering.expect(Usage(model=MODEL, completion_tokens=50))
        seen.append(place.held()[0])
        metering.usage = Usage(completion_tokens=45)

    assert status_of(asyncio.run(place.call(place.toll.middleware(app_of(handler))))) == 200
    assert seen == [500, 500]
    assert [record.cost_nanos for record in place.booked()] == [450]


def test_handlers_in_threads_have_the_same(place: Place) -> None:
    """A form for each: called in the wrong place, either says which one to call."""
    said: list[str] = []

    def in_a_thread(metering: Metering) -> None:
        for wrong in (metering.expect, metering.extend):
            with pytest.raises(RuntimeError, match=r"metering\.\w+_sync"):
                wrong(FITS)
        with pytest.raises(Denied):
            metering.expect_sync(BEYOND)
        metering.expect_sync(Usage(model=MODEL, prompt_tokens=100))
        extension = metering.extend_sync(Usage(completion_tokens=90))
        said.append(f"{extension.granted.completion_tokens} {bool(extension)}")
        metering.usage = Usage(prompt_tokens=100, completion_tokens=80)

    async def handler(metering: Metering) -> None:
        for wrong in (metering.expect_sync, metering.extend_sync):
            with pytest.raises(RuntimeError, match="await metering"):
                wrong(FITS)
        await asyncio.to_thread(in_a_thread, metering)

    assert status_of(asyncio.run(place.call(place.toll.middleware(app_of(handler))))) == 200
    assert said == ["80 False"]
    assert [record.cost_nanos for record in place.booked()] == [1_000]


def test_nothing_is_asked_after_the_end(place: Place) -> None:
    """It would be held for nobody."""
    kept: list[Metering] = []

    async def handler(metering: Metering) -> None:
        kept.append(metering)

    async def call() -> None:
        await place.call(place.toll.middleware(app_of(handler)))
        for ask in (kept[0].expect, kept[0].extend):
            with pytest.raises(HoldEnded):
                await ask(FITS)

    asyncio.run(call())
    assert place.held() == (0, 0)


# -- WebSockets -----------------------------------------------------------------------------------

HANDSHAKE: Final = {"type": "websocket", "path": "/ws"}
ANSWERED: Final = {**HANDSHAKE, "extensions": {"websocket.http.response": {}}}


@pytest.mark.parametrize("asked", [False, True])
def test_a_socket_that_is_refused_before_it_opens_never_does(place: Place, asked: bool) -> None:
    """Whether or not the app has read that the client asks."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if asked:
            await receive()
        await scope["state"]["tollkeeper"].expect(BEYOND)

    gated = place.toll.middleware(app)
    assert asyncio.run(place.call(gated, **HANDSHAKE)) == [{"type": "websocket.close", "code": 1008}]
    start, body = asyncio.run(place.call(gated, **ANSWERED))
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 402)
    assert b"budget_exhausted" in body["body"]
    assert [record.denied_reason for record in place.booked()] == ["budget_exhausted"] * 2


def test_an_open_socket_is_closed_with_the_reason(place: Place) -> None:
    """What its messages used before is booked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        metering = scope["state"]["tollkeeper"]
        await send({"type": "websocket.accept"})
        for tokens in (40, 80, 120):
            await metering.expect(Usage(model=MODEL, completion_tokens=tokens))
            metering.usage = Usage(completion_tokens=tokens)

    sent = asyncio.run(place.call(place.toll.middleware(app), **HANDSHAKE))
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert sent[1]["code"] == 1008
    assert "month" in sent[1]["reason"]
    assert [(record.cost_nanos, record.status) for record in place.booked()] == [(800, 101)]


def test_a_socket_extends_as_a_stream_does(place: Place) -> None:
    """It is one request, however many messages it has."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        metering = scope["state"]["tollkeeper"]
        await send({"type": "websocket.accept"})
        await metering.expect(Usage(model=MODEL))
        used = 0
        while (extension := await metering.extend(Usage(completion_tokens=30))).granted.completion_tokens:
            used += extension.granted.completion_tokens
            metering.usage = Usage(completion_tokens=used)
        await send({"type": "websocket.close", "code": 4002, "reason": extension.denial.reason})

    sent = asyncio.run(place.call(place.toll.middleware(app), **HANDSHAKE))
    assert sent[-1] == {"type": "websocket.close", "code": 4002, "reason": "budget_exhausted"}
    assert [record.cost_nanos for record in place.booked()] == [1_000]


# -- frameworks -----------------------------------------------------------------------------------


def _fastapi(inside: bool, place: Place) -> ASGIApp:
    app = fastapi.FastAPI()

    @app.post("/v1/chat")
    async def chat(request: fastapi.Request) -> dict[str, str]:
        await request.state.tollkeeper.expect(BEYOND)
        return {}

    if not inside:
        return place.toll.middleware(app)  # type: ignore[arg-type]
    app.add_middleware(Middleware, toll=place.toll)  # type: ignore[arg-type]
    return app  # type: ignore[return-value]


def _fastapi_in_a_thread(inside: bool, place: Place) -> ASGIApp:
    app = fastapi.FastAPI()

    @app.post("/v1/chat")
    def chat(request: fastapi.Request) -> dict[str, str]:
        request.state.tollkeeper.expect_sync(BEYOND)
        return {}

    if not inside:
        return place.toll.middleware(app)  # type: ignore[arg-type]
    app.add_middleware(Middleware, toll=place.toll)  # type: ignore[arg-type]
    return app  # type: ignore[return-value]


def _starlette(inside: bool, place: Place) -> ASGIApp:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware as Entry
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        await request.state.tollkeeper.expect(BEYOND)
        return Response()

    middleware = [Entry(Middleware, toll=place.toll)] if inside else []  # type: ignore[arg-type]
    app = Starlette(routes=[Route("/v1/chat", chat, methods=["POST"])], middleware=middleware)
    return app if inside else place.toll.middleware(app)  # type: ignore[return-value, arg-type]


def _litestar(inside: bool, place: Place) -> ASGIApp:
    from litestar import Litestar, Request, post

    @post("/v1/chat")
    async def chat(request: Request[Any, Any, Any]) -> None:
        await request.scope["state"]["tollkeeper"].expect(BEYOND)

    def gated(app: Any) -> Any:
        return place.toll.middleware(app)

    app = Litestar([chat], middleware=[gated] if inside else [], openapi_config=None)
    return app if inside else gated(app)  # type: ignore[return-value, no-any-return]


@pytest.mark.drawn(3)
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("framework", [_fastapi, _fastapi_in_a_thread, _starlette, _litestar])
def test_frameworks_let_a_denial_become_the_refusal(place: Place, framework: Any, inside: bool) -> None:
    """Each answers 500 for an exception that it does not know: the middleware answers in its place."""
    sent = asyncio.run(place.call(framework(inside, place)))
    assert sent[0]["status"] == 402
    assert problem_of(sent)["limit"] == "month"
    assert [record.denied_reason for record in place.booked()] == ["budget_exhausted"]
