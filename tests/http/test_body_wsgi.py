"""`expect`, `extend` and `settle_later` over WSGI: as over ASGI, without `await`. The validator watches both sides."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from tests.conftest import Install
from tests.http.body_place import MODEL, Place
from tollkeeper import Denied, Usage
from tollkeeper.errors import HoldEnded
from tollkeeper.metering import NOT_STATED, WsgiMetering
from tollkeeper.profiles import names
from tollkeeper.testing import ManualClock

FITS = Usage(prompt_tokens=100, completion_tokens=80, model=MODEL)
"""1,000 nanos: all of the budget."""
BEYOND = FITS._replace(prompt_tokens=101)
PLAIN = [("Content-Type", "text/plain")]


@pytest.fixture
def place(install: Install) -> Place:
    return Place(install())


def call(place: Place, app: Callable[..., Any], **options: Any) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one request."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/v1/chat",
        "QUERY_STRING": "",
        "HTTP_AUTHORIZATION": f"Bearer {place.secret}",
        "HTTP_X_API_KEY": place.secret,
        "wsgi.input": io.BytesIO(b""),
    }
    setup_testing_defaults(environ)
    started: list[Any] = []

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        started[:] = [int(status[:3]), {name.lower(): value for name, value in headers}]
        return lambda piece: None

    answer = validator(place.toll.wsgi_middleware(app, **options))(environ, start)  # type: ignore[arg-type]
    try:
        body = b"".join(answer)
    finally:
        answer.close()  # type: ignore[attr-defined]
    return started[0], started[1], body


def app_of(handler: Callable[[WsgiMetering], None]) -> Callable[..., Any]:
    def app(environ: Any, start: Any) -> Any:
        handler(environ["tollkeeper.metering"])
        start("200 OK", PLAIN)
        return [b"ok"]

    return app


def test_the_real_maximum_is_held_and_the_real_usage_booked(place: Place) -> None:
    """As over ASGI."""
    seen = []

    def handler(metering: WsgiMetering) -> None:
        with pytest.raises(Denied):
            metering.expect(BEYOND)
        metering.expect(FITS)
        seen.append(place.held())
        metering.usage = Usage(prompt_tokens=100, completion_tokens=7)

    assert call(place, app_of(handler))[0] == 200
    assert seen == [(1_000, 1)]
    assert [record.cost_nanos for record in place.booked()] == [270]


def raises(environ: Any, start: Any) -> Any:
    """Let the denial go, before it answers."""
    environ["tollkeeper.metering"].expect(BEYOND)


def raises_late(environ: Any, start: Any) -> Iterator[bytes]:
    """Let it go when the server asks for the first piece."""
    environ["tollkeeper.metering"].expect(BEYOND)
    start("200 OK", PLAIN)
    yield b"never"


def answers_500(environ: Any, start: Any) -> Any:
    """Answer as frameworks do for an exception that they do not know."""
    try:
        environ["tollkeeper.metering"].expect(BEYOND)
    except Denied:
        start("500 INTERNAL SERVER ERROR", [*PLAIN, ("Content-Length", "4")])
    return [b"oops"]


def answers_500_late(environ: Any, start: Any) -> Iterator[bytes]:
    yield from answers_500(environ, start)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("profile", ["native", *names()])
def test_a_denial_that_is_let_go_is_the_answer_of_the_gate(install: Install, profile: str) -> None:
    """The caller gets what a refusal at the door looks like, in the dialect of the API."""
    place = Place(install(), profile)

    def shown(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, list[str], int]:
        return answer[0], sorted(answer[1]), len(answer[2])

    at_the_door = shown(call(place, raises, profile=profile, expect=lambda environ: BEYOND))
    assert at_the_door[0] in (402, 429)
    for app in (raises, raises_late, answers_500, answers_500_late):
        assert shown(call(place, app, profile=profile)) == at_the_door
    booked = place.booked()
    assert [(r.status, r.denied_reason, r.cost_nanos) for r in booked] == [(402, "budget_exhausted", 0)] * 5


def test_a_stream_is_cut_at_the_last_token_that_is_paid_for(place: Place) -> None:
    """In steps that do not divide what is left."""

    def app(environ: Any, start: Any) -> Iterator[bytes]:
        metering = environ["tollkeeper.metering"]
        metering.expect(Usage(model=MODEL, prompt_tokens=5))
        start("200 OK", PLAIN)
        used = 0
        while (extension := metering.extend(Usage(completion_tokens=7))).granted.completion_tokens:
            used += extension.granted.completion_tokens
            metering.usage = Usage(prompt_tokens=5, completion_tokens=used)
            yield b"t" * extension.granted.completion_tokens
        yield extension.denial.reason.encode()

    assert call(place, app)[2] == b"t" * 99 + b"budget_exhausted"
    assert [record.cost_nanos for record in place.booked()] == [1_000]


def test_usage_after_the_response_is_booked_or_refused(place: Place, clock: ManualClock) -> None:
    """By a thread, in time or not; without `settle_later` it raises."""
    kept: list[WsgiMetering] = []

    def handler(metering: WsgiMetering) -> None:
        kept.append(metering)
        if len(kept) < 3:
            metering.settle_later(60)

    for _ in range(3):
        assert call(place, app_of(handler))[0] == 200
    assert place.held()[1] == 2

    def state() -> None:
        kept[0].usage = FITS

    thread = threading.Thread(target=state)
    thread.start()
    thread.join()
    clock.advance(seconds=60)
    assert place.site.holds.expire() == 1
    for metering in kept:
        with pytest.raises(HoldEnded):
            metering.usage = FITS
    with pytest.raises(HoldEnded, match=r"metering\.settle_later\(\)"):
        kept[2].void = True
    booked = {(record.cost_nanos, record.error_type) for record in place.booked()}
    assert booked == {(0, ""), (1_000, ""), (0, NOT_STATED)}


def test_flask_lets_a_denial_become_the_refusal(place: Place) -> None:
    """It answers 500 for an exception that it does not know."""
    import flask

    app = flask.Flask("body")

    @app.post("/v1/chat")
    def chat() -> str:
        flask.request.environ["tollkeeper.metering"].expect(BEYOND)
        return "never"

    status, headers, body = call(place, app.wsgi_app)
    assert (status, headers["content-type"]) == (402, "application/problem+json")
    assert b"month" in body
    assert [record.denied_reason for record in place.booked()] == ["budget_exhausted"]
