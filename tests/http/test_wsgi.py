"""
WSGI apps behind the gate: admitted before the app is called, settled once at the end of the answer, whatever the app,
the server or the client does meanwhile. `wsgiref.validate` watches both sides of the middleware.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from tests.conftest import Install
from tests.installation.test_forks import in_child
from tollkeeper import Tollkeeper, Usage, asgi, wsgi
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Route
from tollkeeper.domain.events import Record
from tollkeeper.errors import BadParameter, HoldEnded, Unavailable
from tollkeeper.http.asgi_types import Receive, Send
from tollkeeper.installation import Installation
from tollkeeper.metering import WsgiMetering
from tollkeeper.testing import ManualClock, commit_all, faulty_ledger, installation, set_up, unique, verify

DIALECTS: Final = ["native", "shoal", "regpilot", "anylayer", "cheapestinference", "regsn"]
PLAIN: Final = [("Content-Type", "text/plain")]


class Place:
    """An account whose key may have two requests open and spend 1,000 nanos a month; a call of /v1 costs 100."""

    def __init__(self, site: Installation, profile: str = "native") -> None:
        self.site = site
        self.toll = Tollkeeper(site)
        self.account, self.key_id = unique("acct"), unique("key")
        key = Key(
            id=self.key_id,
            account=self.account,
            profile=profile,
            limits=[Limit(name="open", algorithm="concurrency", amount=2)],
        )
        called = itertools.product(("GET", "HEAD", "POST"), ("/v1", "/api/v1", "/v1/é b", "/"))
        self.secret = set_up(
            site,
            Account(id=self.account, name="Acme"),
            key,
            Budget(id="month", account=self.account, amount=1_000),
            *(
                Route(id=f"{profile}-{n}", method=method, path=path, profile=profile, price_nanos=100)
                for n, (method, path) in enumerate(called)
            ),
        )[self.key_id]

    @property
    def booked(self) -> list[Record]:
        """What was booked of this account, in order."""
        return [record for record in settled[id(self.site)] if record.account_id == self.account]

    def booked_once(self) -> Record:
        """Return the one record that was booked. The module ends with a check of counter, ledger and usage."""
        commit_all(self.site)
        (record,) = self.booked
        return record


settled: dict[int, list[Record]] = {}
"""Id of an installation → what its holds were settled with."""


def watched(site: Installation) -> Installation:
    """Return *site*, which notes what is settled."""
    booked = settled[id(site)] = []
    settle = site.holds.settle

    def noting(*args: Any, **kwargs: Any) -> Record:
        booked.append(settle(*args, **kwargs))
        return booked[-1]

    site.holds.settle = noting  # type: ignore[method-assign]
    return site


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore
) -> Iterator[Installation]:
    """One installation, whose clock stands still; tests keep apart by account."""
    directory = tmp_path_factory.mktemp("wsgi")
    with installation(directory, clock=ManualClock(), store=usage_store) as site:
        yield watched(site)
        assert verify(site).ok


@pytest.fixture
def place(shared: Installation) -> Place:
    return Place(shared)


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class OfTheServer:
    """The server's own `wsgi.file_wrapper`, whose files it sends itself."""

    def __init__(self, *_: Any) -> None:
        raise AssertionError("the server would send the file past the middleware")


def environ_of(secret: str | None, path: str = "/v1", method: str = "GET", **more: Any) -> dict[str, Any]:
    """Return an environ as a server makes it: *path* decoded, its UTF-8 bytes as latin-1."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": "",
        "wsgi.file_wrapper": OfTheServer,
    }
    if secret is not None:
        environ["HTTP_AUTHORIZATION"] = f"Bearer {secret}"
    environ |= more
    setup_testing_defaults(environ)
    return environ


class Gateway:
    """The server's end of one request: what it was given, in which order, and what is still to come."""

    def __init__(self) -> None:
        self.started: list[tuple[str, list[tuple[str, str]]]] = []
        self.written: list[bytes] = []
        self.headers_sent = False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None and self.headers_sent:
            raise exc_info[1].with_traceback(exc_info[2])
        assert exc_info is not None or not self.started, "headers are set already"
        self.started.append((status, headers))
        return self._write

    def _write(self, piece: bytes) -> None:
        self.headers_sent = True
        self.written.append(piece)

    def run(self, app: Any, environ: dict[str, Any]) -> Answer:
        """Run one request to its end, as a server does."""
        found = app(environ, self.start_response)
        try:
            for piece in found:
                self._write(piece)
        finally:
            if hasattr(found, "close"):
                found.close()
        status, headers = self.started[-1]
        return Answer(int(status[:3]), headers, b"".join(self.written))


def metering_of(environ: dict[str, Any]) -> WsgiMetering:
    found: WsgiMetering = environ["tollkeeper.metering"]
    return found


def run(place: Place, app: Any, environ: dict[str, Any] | None = None, **options: Any) -> Answer:
    """Run one request through the middleware, with validators around it and within."""
    asked = environ_of(place.secret) if environ is None else environ
    return Gateway().run(validator(place.toll.wsgi_middleware(validator(app), **options)), asked)


def hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [*PLAIN, ("Content-Length", "5")])
    return [b"hello"]


def unreached(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    raise AssertionError("reached")


# -- who passes -----------------------------------------------------------------------------------------


def test_an_admitted_request_is_answered_and_booked(place: Place) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        metering = metering_of(environ)
        assert metering.admission.amounts.nanos == 100
        metering.usage = Usage(cost_nanos=7, model="gpt-4o")
        metering.tags["user"] = "u1"
        start_response("201 Created", PLAIN)
        return [b"a", b"bc"]

    answer = run(place, app)
    assert (answer.status, answer.headers, answer.body) == (201, PLAIN, b"abc")
    record = place.booked_once()
    assert (record.status, record.method, record.route, record.cost_nanos) == (201, "GET", "/v1", 7)
    assert (record.bytes_out, record.error_type, record.tags) == (3, "", {"user": "u1"})


async def asgi_hello(scope: Any, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"hello"})


def over_asgi(place: Place, method: str, headers: dict[str, str], **options: Any) -> Answer:
    """Return the answer of the ASGI middleware to the same request."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/v1", "headers": raw, "query_string": b""}
    asyncio.run(place.toll.middleware(asgi_hello, **options)(scope, receive, send))
    given = [(name.decode(), value.decode("latin-1")) for name, value in sent[0]["headers"]]
    return Answer(sent[0]["status"], given, b"".join(message.get("body", b"") for message in sent[1:]))


def over_wsgi(place: Place, method: str, headers: dict[str, str], **options: Any) -> Answer:
    fields = {"HTTP_" + name.upper().replace("-", "_"): value for name, value in headers.items()}

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("content-type", "text/plain")])
        return [b"hello"]

    return run(place, app, environ_of(None, method=method, **fields), **options)


def without_ids(answer: Answer) -> Answer:
    """Ids of requests differ from one to the next."""
    ids = re.compile(r"(req|acct|key)[_-]\w+")
    return Answer(
        answer.status,
        [(name, ids.sub("id", value)) for name, value in answer.headers],
        ids.sub("id", answer.body.decode()).encode(),
    )


@pytest.mark.drawn(14)
@pytest.mark.parametrize("profile", DIALECTS)
@pytest.mark.parametrize("case", ["no key", "unknown", "foreign", "good", "spent", "open", "no route"])
def test_every_answer_is_the_one_of_the_asgi_middleware(
    shared: Installation, profile: str, case: str
) -> None:
    """Status, headers and body, in every dialect."""
    other = "shoal" if profile == "native" else "native"
    answers = []
    for ask in (over_asgi, over_wsgi):
        place = Place(shared, other if case == "foreign" else profile)
        headers = {"Authorization": f"Bearer {place.secret}", "X-API-Key": place.secret}
        options: dict[str, Any] = {"profile": profile}
        holds = []
        if case == "no key":
            headers = {}
        elif case == "unknown":
            headers = dict.fromkeys(headers, "tk_made_up")
        elif case == "spent":
            options["expect"] = lambda _: Usage(cost_nanos=1_001)
        elif case == "open":
            holds = [place.toll.admit(place.secret, "GET", "/v1") for _ in range(2)]
        answer = ask(place, "DELETE" if case == "no route" else "GET", headers, **options)
        assert (answer.status == 200) == (case == "good" or (case == "foreign" and profile == "native"))
        answers.append(without_ids(answer))
        assert len(holds) in (0, 2)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("profile", DIALECTS)
def test_a_refused_request_does_not_reach_the_app(shared: Installation, profile: str) -> None:
    place = Place(shared, profile)
    answer = run(place, unreached, environ_of("tk_made_up"), profile=profile)
    assert 400 <= answer.status < 500
    assert json.loads(answer.body)
    assert dict(answer.headers)["content-length"] == str(len(answer.body))
    assert not place.booked


def test_a_refused_head_has_the_headers_of_a_get_and_no_body(place: Place) -> None:
    """Not every server drops it, and a client would read it as the start of the next answer."""
    get = run(place, unreached, environ_of(None))
    head = run(place, unreached, environ_of(None, method="HEAD"))
    assert (head.status, head.headers, head.body) == (401, get.headers, b"")


@pytest.mark.parametrize(
    "fields",
    [
        {"HTTP_X_API_KEY": "{}"},
        {"HTTP_AUTHORIZATION": "{}"},
        {"HTTP_AUTHORIZATION": "bearer {}"},
        {"HTTP_AUTHORIZATION": "Bearer {}", "HTTP_X_API_KEY": "other"},
    ],
)
def test_the_key_is_read_as_over_asgi(place: Place, fields: dict[str, str]) -> None:
    sent = {name: value.format(place.secret) for name, value in fields.items()}
    assert run(place, hello, environ_of(None, **sent)).status == 200


def test_two_keys_in_one_field_are_none(place: Place) -> None:
    """A server joins repeated fields: neither key is guessed from it."""
    joined = f"Bearer {place.secret},Bearer {place.secret}"
    assert run(place, unreached, environ_of(None, HTTP_AUTHORIZATION=joined)).status == 401


@pytest.mark.parametrize(
    ("script", "path", "route"),
    [
        ("", "/v1", "/v1"),
        ("/api", "/v1", "/v1"),
        ("/api/v1", "", "/"),
        ("", "", "/"),
        ("", "/v1/é b", "/v1/é b"),
        ("/é", "/v1/é b", "/v1/é b"),
    ],
)
def test_the_path_is_the_apps_and_decoded(place: Place, script: str, path: str, route: str) -> None:
    """Mounted or not, in UTF-8, and never empty."""
    assert run(place, hello, environ_of(place.secret, path, SCRIPT_NAME=script)).status == 200
    assert place.booked_once().route == route


def test_bytes_that_are_not_utf_8_are_a_path_without_a_route(place: Place) -> None:
    environ = environ_of(place.secret)
    environ["PATH_INFO"] = "/v1\xff"
    answer = run(place, unreached, environ)
    assert (answer.status, json.loads(answer.body)["code"]) == (403, "route_unknown")


def test_a_method_counts_in_any_case(place: Place) -> None:
    """An app that takes `get` for GET must not get round the route of GET."""
    # The validator knows methods in upper case only.
    app = place.toll.wsgi_middleware(hello)
    assert Gateway().run(app, environ_of(place.secret, method="get")).status == 200
    assert place.booked_once().method == "GET"


@pytest.mark.parametrize("exempt", [True, False])
def test_an_exempt_path_passes_without_a_key(place: Place, exempt: bool) -> None:
    options = {"exempt": {"/healthz"} if exempt else set()}
    for script in ("", "/api"):
        environ = environ_of(None, "/healthz", SCRIPT_NAME=script)
        assert run(place, hello, environ, **options).status == (200 if exempt else 401)
    assert not place.booked


def test_expect_and_tags_are_given_the_environ(place: Place) -> None:
    def expect(environ: dict[str, Any]) -> Usage:
        return Usage(cost_nanos=int(environ["HTTP_X_MOST"]))

    options: dict[str, Any] = {"expect": expect, "tags": lambda environ: {"user": environ["HTTP_X_USER"]}}
    assert (
        run(place, hello, environ_of(place.secret, HTTP_X_MOST="1001", HTTP_X_USER="u"), **options).status
        == 402
    )
    assert (
        run(place, hello, environ_of(place.secret, HTTP_X_MOST="9", HTTP_X_USER="u"), **options).status == 200
    )
    assert place.booked[0].tags == {"user": "u"}


def test_headers_of_a_dialect_have_the_usage_that_is_set_when_the_answer_starts(shared: Installation) -> None:
    place = Place(shared, "regpilot")

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        metering_of(environ).usage = Usage(prompt_tokens=3, completion_tokens=4, cost_nanos=9)
        start_response("200 OK", PLAIN)
        return [b"x"]

    answer = run(place, app, environ_of(None, HTTP_X_API_KEY=place.secret), profile="regpilot")
    names = dict(answer.headers)
    assert answer.status == 200
    assert (names["x-regpilot-prompt-tokens"], names["x-regpilot-completion-tokens"]) == ("3", "4")
    assert next(iter(names)) == "Content-Type"


# -- when it is settled ---------------------------------------------------------------------------------


class Story(NamedTuple):
    """What an app does, what the client has of it, and what is booked."""

    app: Callable[[dict[str, Any], Any], Iterable[bytes]]
    body: bytes
    status: int = 200
    bytes_out: int | None = None


def lists(*pieces: bytes, length: int | None = None) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [*PLAIN, *_lengths(length)])
        return list(pieces)

    return app


def tuples(*pieces: bytes) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return pieces

    return app


def generates(*pieces: bytes, length: int | None = None) -> Any:
    """An app that is itself a generator: it starts its answer when it is first asked for a piece."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [*PLAIN, *_lengths(length)])
        yield from pieces

    return app


def writes(*written: bytes, then: Iterable[bytes] = (), length: int | None = None) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", [*PLAIN, *_lengths(length)])
        for piece in written:
            write(piece)
        return list(then)

    return app


def sends_a_file(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)
    found: Iterable[bytes] = environ["wsgi.file_wrapper"](io.BytesIO(b"x" * 20_000), 8192)
    return found


def starts_twice(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [*PLAIN, ("Content-Length", "2")])
    try:
        raise KeyError("late")
    except KeyError:
        start_response("500 Oops", PLAIN, sys.exc_info())
    return [b"sorry"]


def _lengths(length: int | None) -> list[tuple[str, str]]:
    return [] if length is None else [("Content-Length", str(length))]


STORIES: Final = {
    "list": Story(lists(b"ab", b"", b"c"), b"abc"),
    "list of one": Story(lists(b"abc", length=3), b"abc"),
    "list of none": Story(lists(), b""),
    "tuple": Story(tuples(b"a", b"b"), b"ab"),
    "generator": Story(generates(b"a", b"", b"bc"), b"abc"),
    "generator of one with a length": Story(generates(b"abc", length=3), b"abc"),
    "generator with a length": Story(generates(b"a", b"bc", b"", length=3), b"abc"),
    "generator of none": Story(generates(), b""),
    "generator with length 0": Story(generates(b"", length=0), b""),
    "beyond its length": Story(generates(b"abc", b"def", length=3), b"abc", bytes_out=6),
    "write": Story(writes(b"a", b"bc"), b"abc"),
    "write with a length": Story(writes(b"a", b"bc", length=3), b"abc"),
    "write, then a list": Story(writes(b"a", then=[b"bc"]), b"abc"),
    "write, then a list, with a length": Story(writes(b"a", then=[b"bc"], length=3), b"abc"),
    "file": Story(sends_a_file, b"x" * 20_000),
    "two starts": Story(starts_twice, b"sorry", 500),
}


@pytest.mark.drawn(16)
@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("name", STORIES)
@pytest.mark.parametrize("validated", [True, False])
def test_an_answer_is_booked_with_what_was_sent(
    place: Place, name: str, durable: bool, validated: bool
) -> None:
    story = STORIES[name]
    environ = environ_of(place.secret)
    if validated:
        answer = run(place, story.app, environ, durable=durable)
    else:
        answer = Gateway().run(place.toll.wsgi_middleware(story.app, durable=durable), environ)
    assert (answer.status, answer.body) == (story.status, story.body)
    record = place.booked_once()
    assert record.status == story.status
    assert record.bytes_out == (len(story.body) if story.bytes_out is None else story.bytes_out)
    assert record.error_type == ("KeyError" if name == "two starts" else "")


class Client(threading.Thread):
    """Runs one request in a thread of a server, and says what its client has of the answer so far."""

    def __init__(self, app: Any, environ: dict[str, Any]) -> None:
        super().__init__()
        self.gateway = Gateway()
        self._call = lambda: self.gateway.run(app, environ)
        self.ended = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._call()
        except BaseException as exc:
            self.error = exc
        self.ended = True

    def has_all(self) -> bool:
        """Whether the answer is complete for the client: by its length, or since the server ended the body."""
        if self.ended or not self.gateway.written:
            return self.ended
        length = dict(self.gateway.started[-1][1]).get("Content-Length")
        return length is not None and len(b"".join(self.gateway.written)) >= int(length)


@pytest.mark.parametrize("name", STORIES)
def test_the_end_of_an_answer_waits_for_the_commit(place: Place, name: str) -> None:
    story = STORIES[name]
    with faulty_ledger(place.site) as ledger:
        ledger.delay()
        client = Client(place.toll.wsgi_middleware(story.app), environ_of(place.secret))
        client.start()
        try:
            assert ledger.delayed.wait(60)
            assert len(place.booked) == 1
            assert not client.has_all()
        finally:
            ledger.go_on()
            client.join()
    assert client.error is None
    assert client.has_all()
    assert b"".join(client.gateway.written) == story.body


def test_a_middleware_that_is_not_durable_does_not_wait(place: Place) -> None:
    with faulty_ledger(place.site) as ledger:
        ledger.delay()
        client = Client(place.toll.wsgi_middleware(hello, durable=False), environ_of(place.secret))
        client.start()
        client.join()
        assert client.has_all()
        assert len(place.booked) == 1
        ledger.go_on()
    assert place.booked_once().bytes_out == 5


def test_no_piece_of_a_stream_waits_for_the_next(place: Place) -> None:
    """A client sees each piece when the app makes it; only the end of the body waits."""
    made = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        for number in range(3):
            made.append(number)
            yield b"%d" % number

    found = iter(place.toll.wsgi_middleware(app)(environ_of(place.secret), Gateway().start_response))
    for number in range(3):
        assert next(found) == b"%d" % number
        assert len(made) == number + 1
        assert not place.booked
    assert next(found, None) is None
    assert place.booked_once().bytes_out == 3


@pytest.mark.parametrize("length", [None, 2])
def test_usage_may_be_set_after_the_last_piece(place: Place, length: int | None) -> None:
    """Also where that piece completes the answer: the app is run to its end before the piece leaves."""

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [*PLAIN, *_lengths(length)])
        yield b"ab"
        metering_of(environ).usage = Usage(cost_nanos=42)

    assert run(place, app).body == b"ab"
    assert place.booked_once().cost_nanos == 42


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "304 Not Modified"])
def test_an_answer_without_a_body_ends_with_its_headers(place: Place, status: str) -> None:
    """They leave with the first piece, so none may leave before the booking; the app still runs to its end."""
    method = "HEAD" if status == "200 OK" else "GET"
    ran = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response(status, PLAIN)
        yield b""
        yield b"not for this method"
        ran.append(environ["tollkeeper.metering"])

    gateway = Gateway()
    assert gateway.run(place.toll.wsgi_middleware(app), environ_of(place.secret, method=method)).body == b""
    assert len(ran) == 1
    assert place.booked_once().status == int(status[:3])


def test_a_void_request_is_not_booked(place: Place) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        metering_of(environ).void = True
        return hello(environ, start_response)

    assert run(place, app).body == b"hello"
    assert not place.booked


def test_the_latency_is_the_time_to_the_end_of_the_answer(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = [1_000_000]
    monkeypatch.setattr("time.perf_counter_ns", lambda: now_ns[0])

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"a"
        now_ns[0] += 7_000_000

    run(place, app)
    assert place.booked_once().latency_us == 7_000


# -- what goes wrong ------------------------------------------------------------------------------------


class Boom(Exception):
    """What an app of these tests raises."""


def raises_before(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    raise Boom


def raises_after_start(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("202 Accepted", PLAIN)
    raise Boom


def raises_in_the_midst(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    yield b"abc"
    raise Boom


def raises_at_the_end(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [*PLAIN, ("Content-Length", "3")])
    yield b"abc"
    raise Boom


def raises_after_write(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", PLAIN)(b"ab")
    raise Boom


def starts_again_too_late(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", PLAIN)
    yield b"abc"
    try:
        raise Boom
    except Boom:
        start_response("500 Oops", PLAIN, sys.exc_info())
    yield b"never"


@pytest.mark.parametrize(
    ("app", "status", "bytes_out", "sent"),
    [
        (raises_before, 500, 0, b""),
        (raises_after_start, 202, 0, b""),
        (raises_in_the_midst, 200, 3, b"abc"),
        (raises_at_the_end, 200, 3, b""),
        (raises_after_write, 200, 2, b"ab"),
        (starts_again_too_late, 200, 3, b"abc"),
    ],
)
def test_what_an_app_raises_passes_and_is_booked(
    place: Place, app: Any, status: int, bytes_out: int, sent: bytes
) -> None:
    gateway = Gateway()
    with pytest.raises(Boom):
        gateway.run(place.toll.wsgi_middleware(app), environ_of(place.secret))
    record = place.booked_once()
    assert (record.status, record.error_type, record.bytes_out) == (status, "Boom", bytes_out)
    assert b"".join(gateway.written) == sent


def test_an_error_that_the_app_names_stands(place: Place) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["tollkeeper.metering"].error_type = "upstream_timeout"
        raise Boom

    with pytest.raises(Boom):
        Gateway().run(place.toll.wsgi_middleware(app), environ_of(place.secret))
    assert place.booked_once().error_type == "upstream_timeout"


class Closing:
    """An iterable that counts its closings, and states its usage in the last of them."""

    def __init__(self, environ: dict[str, Any], *pieces: bytes, error: BaseException | None = None) -> None:
        self.metering: WsgiMetering = environ["tollkeeper.metering"]
        self.pieces = iter(pieces)
        self.error = error
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self.pieces

    def close(self) -> None:
        self.closed += 1
        self.metering.usage = Usage(cost_nanos=55)
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("pieces_read", [0, 1, 2])
def test_an_answer_that_is_closed_before_its_end_is_booked_as_it_is(place: Place, pieces_read: int) -> None:
    """As servers do when the client has left: with the usage that the app states when it is closed."""
    made: list[Closing] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        made.append(Closing(environ, b"ab", b"cd", b"ef"))
        return made[0]

    found: Any = place.toll.wsgi_middleware(app)(environ_of(place.secret), Gateway().start_response)
    for _ in range(pieces_read):
        next(found)
    assert not place.booked
    found.close()
    found.close()
    assert made[0].closed == 1
    record = place.booked_once()
    assert (record.status, record.bytes_out, record.cost_nanos) == (200, 2 * pieces_read, 55)
    assert record.error_type == ""


def test_a_generator_that_is_closed_states_what_it_sent(place: Place) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        sent = 0
        try:
            while True:
                sent += 1
                yield b"token "
        finally:
            environ["tollkeeper.metering"].usage = Usage(cost_nanos=sent)

    found: Any = place.toll.wsgi_middleware(app)(environ_of(place.secret), Gateway().start_response)
    for _ in range(4):
        next(found)
    found.close()
    assert place.booked_once().cost_nanos == 4


def test_an_answer_is_closed_once_after_its_end(place: Place) -> None:
    """After it was booked: what it states then comes too late, and says so to the server."""
    made: list[Closing] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        made.append(Closing(environ, b"ab", error=Boom()))
        return made[0]

    with pytest.raises(HoldEnded, match="settle_later"):
        Gateway().run(place.toll.wsgi_middleware(app), environ_of(place.secret))
    assert made[0].closed == 1
    assert (place.booked_once().error_type, place.booked_once().cost_nanos) == ("", 100)


def test_what_closing_raises_before_the_end_is_booked(place: Place) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return Closing(environ, b"ab", error=Boom())

    found: Any = place.toll.wsgi_middleware(app)(environ_of(place.secret), Gateway().start_response)
    with pytest.raises(Boom):
        found.close()
    assert place.booked_once().error_type == "Boom"


@pytest.mark.parametrize("app", [hello, generates(b"abc", length=3), generates(b"abc")])
def test_an_answer_that_cannot_be_booked_does_not_end_well(install: Install, app: Any) -> None:
    place = Place(watched(install()))
    with faulty_ledger(place.site) as ledger:
        ledger.refuse(times=1_000)
        client = Client(place.toll.wsgi_middleware(app), environ_of(place.secret))
        client.start()
        client.join(60)
        assert isinstance(client.error, Unavailable)
        assert b"".join(client.gateway.written) in (b"", b"abc")
        assert not client.gateway.written or "Content-Length" not in dict(client.gateway.started[0][1])
        ledger.refuse(times=0)


# -- many at once, and other processes ------------------------------------------------------------------


@pytest.mark.parametrize("app", [hello, generates(b"a", b"b")])
def test_of_many_threads_just_so_many_pass_as_there_is_money_for(place: Place, app: Any) -> None:
    """40 ask at once for 100 of 1,000 nanos each: 10 pass, each is booked, and no other reaches the app."""
    reached: list[int] = []
    answers: list[int] = []
    site = place.site
    site.manage.put(Key(id=place.key_id, account=place.account))  # Without its limit of two at once.

    def counted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        reached.append(1)
        found: Iterable[bytes] = app(environ, start_response)
        return found

    metered = place.toll.wsgi_middleware(counted)
    start = threading.Barrier(40)

    def ask() -> None:
        start.wait()
        answers.append(Gateway().run(metered, environ_of(place.secret)).status)

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] * 10 + [402] * 30
    assert len(reached) == len(place.booked) == 10
    assert sum(record.cost_nanos for record in place.booked) == 1_000


@pytest.mark.parametrize("profile", ["native", "shoal"])
def test_a_forked_child_answers_503(place: Place, profile: str) -> None:
    metered = place.toll.wsgi_middleware(hello, exempt={"/healthz"}, profile=profile)

    def child() -> None:
        answer = Gateway().run(metered, environ_of(place.secret))
        assert answer.status == 503
        assert json.loads(answer.body)["code"] == "forked"
        assert "after the fork" in json.loads(answer.body)["detail"]
        assert Gateway().run(metered, environ_of(place.secret, method="HEAD")).body == b""
        assert Gateway().run(metered, environ_of(None, "/healthz")).body == b"hello"

    in_child(child)
    assert not place.booked


# -- which app it is ------------------------------------------------------------------------------------


async def asgi_app(scope: Any, receive: Any, send: Any) -> None: ...


async def asgi_of_any(*args: Any) -> None: ...


def asgi_of_a_function(scope: Any, receive: Any, send: Any) -> Any: ...


class AsgiObject:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


class WsgiObject:
    def __call__(self, environ: Any, start_response: Any) -> Any: ...


class WsgiClass:
    """The example of PEP 3333: to make one is to answer."""

    def __init__(self, environ: Any, start_response: Any) -> None: ...

    def __iter__(self) -> Iterator[bytes]: ...  # type: ignore[empty-body]


def wsgi_with_more(environ: Any, start_response: Any, exc_info: Any = None) -> Any: ...


def _frameworks() -> tuple[list[Any], list[Any]]:
    import django.core.asgi
    import django.core.wsgi
    import flask
    from django.conf import settings
    from litestar import Litestar

    if not settings.configured:
        settings.configure(ROOT_URLCONF=__name__)
    of_asgi = [Litestar([]), django.core.asgi.get_asgi_application()]
    return of_asgi, [flask.Flask("app"), flask.Flask("app").wsgi_app, django.core.wsgi.get_wsgi_application()]


def test_an_app_of_the_other_kind_is_refused_when_the_middleware_is_made(place: Place) -> None:
    of_asgi, of_wsgi = _frameworks()
    of_asgi += [asgi_app, asgi_of_any, asgi_of_a_function, AsgiObject(), place.toll.middleware(asgi_app)]
    of_wsgi += [hello, WsgiObject(), WsgiObject().__call__, WsgiClass, wsgi_with_more]
    of_wsgi.append(place.toll.wsgi_middleware(hello))
    for app in of_asgi:
        place.toll.middleware(app)
        with pytest.raises(BadParameter, match=r"is an ASGI application. Use toll.middleware\(app\)"):
            place.toll.wsgi_middleware(app)
    for app in of_wsgi:
        place.toll.wsgi_middleware(app)
        with pytest.raises(BadParameter, match=r"is a WSGI application. Use .*toll.wsgi_middleware\("):
            place.toll.middleware(app)


def test_a_flask_app_is_refused_with_the_line_to_write(place: Place) -> None:
    import flask

    with pytest.raises(BadParameter) as refused:
        place.toll.middleware(flask.Flask("app"))
    assert str(refused.value).startswith("app must be an ASGI application")
    assert "flask.app.Flask is a WSGI application" in str(refused.value)
    assert "app.wsgi_app = toll.wsgi_middleware(app.wsgi_app)" in str(refused.value)


@pytest.mark.parametrize("app", [None, "app:app", lambda: None, lambda scope: None, {}])
def test_what_is_no_app_is_refused(place: Place, app: Any) -> None:
    for make in (place.toll.middleware, place.toll.wsgi_middleware):
        with pytest.raises(BadParameter, match="app must be"):
            make(app)


def test_an_app_that_takes_anything_is_accepted(place: Place) -> None:
    """It may be of either kind; the wrong one fails at each request and is never served."""

    def anything(*args: Any) -> Any:
        return asgi_app(*args, None)

    place.toll.middleware(anything)
    metered = place.toll.wsgi_middleware(anything)
    with pytest.warns(RuntimeWarning, match="never awaited"), pytest.raises(TypeError):
        Gateway().run(metered, environ_of(place.secret))
    assert place.booked_once().status == 500


def test_both_middlewares_take_the_same_of_an_app() -> None:
    """What each has of its own is how it waits."""
    assert asgi.Metering.__base__ is wsgi.Metering.__base__
    assert {name for name in vars(asgi.Metering) if name[0] != "_"} == {
        "expect",
        "expect_sync",
        "extend",
        "extend_sync",
    }
