"""
What a caller can make the server hold, or work on, has a bound, and beyond it an answer.

What the server itself bounds is asked of a real one, over a socket; the rest of the application in process.
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from granian.http import HTTP1Settings

from tests.end_to_end.server import OPERATOR_KEY as SERVER_KEY
from tests.end_to_end.server import Server, running_server
from tests.fuzz.asgi import Caller
from tests.http.conftest import OPERATOR_KEY, World
from tests.traces import DATA, needs_traces
from tollkeeper.errors import BodyTooLarge, Malformed
from tollkeeper.http.bodies import (
    GZIP_FREE_BYTES,
    GZIP_MEMBERS_MAX,
    GZIP_RATIO_MAX,
    check_length,
    decompressed,
)
from tollkeeper.http.hot import SMALL_BODY_BYTES_MAX
from tollkeeper.http.profiles import BODY_BYTES_MAX as PROFILE_BODY_BYTES_MAX
from tollkeeper.http.profiles import QUERY_BYTES_MAX
from tollkeeper.http.routes.calls import APPLY_BYTES_MAX, BODY_BYTES_MAX, PARAMETERS_MAX

OPERATOR: Final = [(b"authorization", b"Bearer " + OPERATOR_KEY.encode())]
JSON: Final = (b"content-type", b"application/json")
NDJSON: Final = (b"content-type", b"application/x-ndjson")
GZIP: Final = (b"content-encoding", b"gzip")
EVENTS_BYTES_MAX: Final = 64 * 1024 * 1024
"""The default of the setting `body_bytes_max`."""


# -- bodies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "bytes_max"),
    [
        ("POST", "/tk/v1/authorize", SMALL_BODY_BYTES_MAX),
        ("POST", "/tk/v1/settle", SMALL_BODY_BYTES_MAX),
        ("POST", "/tk/v1/void", SMALL_BODY_BYTES_MAX),
        ("PUT", "/tk/v1/accounts/acme", BODY_BYTES_MAX),
        ("POST", "/tk/v1/keys", BODY_BYTES_MAX),
        ("POST", "/tk/v1/sessions", BODY_BYTES_MAX),
        ("POST", "/tk/v1/events/e/amend", BODY_BYTES_MAX),
        ("POST", "/tk/v1/apply", APPLY_BYTES_MAX),
    ],
)
@pytest.mark.parametrize("stated", [True, False], ids=["stated", "unstated"])
def test_a_body_has_a_bound(method: str, path: str, bytes_max: int, stated: bool, call: Caller) -> None:
    """Whether its length is stated or it comes in pieces: what is beyond the bound is not read."""
    body = b" " * (bytes_max + 1)
    headers = [*OPERATOR, (b"content-type", b"text/plain" if "apply" in path else b"application/json")]
    if stated:
        headers.append((b"content-length", str(len(body)).encode()))
    pieces = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
    answer = call(method, path, headers, pieces)
    assert (answer.status, answer.json["code"]) == (413, "body_too_large")


def test_events_have_the_bound_of_the_setting(call: Caller) -> None:
    headers = [*OPERATOR, JSON, (b"content-length", str(EVENTS_BYTES_MAX + 1).encode())]
    assert call("POST", "/tk/v1/events", headers, b"").status == 413
    assert call("POST", "/tk/v1/events", [*OPERATOR, JSON], [b" " * (1 << 20)] * 65).status == 413


def test_a_profile_reads_no_more_than_a_dialect_can_say(call: Caller) -> None:
    """What is longer is no request of any vendor's, and nobody is known yet when it comes."""
    answer = call(
        "POST", "/anylayer/v1/developer/keys", [], [b" " * 65_536] * (PROFILE_BODY_BYTES_MAX // 65_536 + 2)
    )
    assert answer.status == 401


@pytest.mark.parametrize("length", ["9" * 18, "9" * 19, "9" * 5_000, str(EVENTS_BYTES_MAX + 1)])
def test_an_absurd_length_is_too_large(length: str) -> None:
    with pytest.raises(BodyTooLarge):
        check_length([(b"content-length", length.encode())], EVENTS_BYTES_MAX)


@pytest.mark.parametrize("length", ["", "-1", "1e9", "0x9", "²", str(EVENTS_BYTES_MAX)])
def test_what_is_no_length_is_found_out_by_reading(length: str) -> None:
    check_length([(b"content-length", length.encode())], EVENTS_BYTES_MAX)


# -- decompression --------------------------------------------------------------------------------------


def test_a_bomb_is_not_blown_up(call: Caller) -> None:
    """A gigabyte of zeros is a megabyte of gzip: it is given up at the bound."""
    bomb = gzip.compress(bytes(EVENTS_BYTES_MAX + 1), 9)
    assert len(bomb) < EVENTS_BYTES_MAX // 900
    assert call("POST", "/tk/v1/events", [*OPERATOR, JSON, GZIP], bomb).status == 413
    small = gzip.compress(b" " * (BODY_BYTES_MAX + 1))
    assert call("PUT", "/tk/v1/accounts/acme", [*OPERATOR, JSON, GZIP], small).status == 413


def test_a_ratio_that_no_batch_has_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 KB that stand for 64 MB of lines are given up before they are made."""
    made = []
    engine = zlib.decompressobj

    class Watched:
        def __init__(self, window: int) -> None:
            self._engine = engine(window)

        def decompress(self, data: bytes, most: int) -> bytes:
            made.append(self._engine.decompress(data, most))
            return made[-1]

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

    monkeypatch.setattr("tollkeeper.http.bodies.zlib.decompressobj", Watched)
    body = gzip.compress(b"1\n" * 33_000_000)
    with pytest.raises(BodyTooLarge, match="250 times its size"):
        decompressed(body, [GZIP], EVENTS_BYTES_MAX + (4 << 20))
    assert sum(map(len, made)) <= len(body) * GZIP_RATIO_MAX + 1


def test_a_small_body_may_have_any_ratio() -> None:
    assert decompressed(gzip.compress(bytes(GZIP_FREE_BYTES)), [GZIP], 1 << 26) == bytes(GZIP_FREE_BYTES)


@needs_traces
@pytest.mark.parametrize("name", ["llm_spans.jsonl.gz", "llm_turns.jsonl.gz", "rpc_operations.jsonl.gz"])
def test_real_batches_have_a_ratio_far_below_the_bound(name: str) -> None:
    body = gzip.decompress((DATA / name).read_bytes())
    assert len(body) / len(gzip.compress(body)) < GZIP_RATIO_MAX / 10


def test_batches_alike_but_for_their_numbers_pass() -> None:
    event = '{"id": "event-%08d", "time": "2026-01-31T09:30:00Z", "account": "acme", "tags": {"team": "search"}}\n'
    body = "".join(event % number for number in range(50_000)).encode()
    assert decompressed(gzip.compress(body, 9), [GZIP], 1 << 26) == body


def test_a_batch_of_no_events_is_refused_in_words(call: Caller) -> None:
    answer = call("POST", "/tk/v1/events", [*OPERATOR, NDJSON], b"1\n" * 20_000)
    assert (answer.status, answer.json["code"]) == (400, "malformed")
    assert "None of the first 10,000 events" in answer.json["detail"]


@pytest.mark.parametrize("media_type", [JSON, NDJSON])
def test_a_batch_of_too_many_events_is_refused_in_words(
    media_type: tuple[bytes, bytes], call: Caller
) -> None:
    body = b"[" + b"1," * 1_000_000 + b"1]" if media_type == JSON else b"1\n" * 1_000_001
    answer = call("POST", "/tk/v1/events", [*OPERATOR, media_type], body)
    assert (answer.status, answer.json["code"]) == (413, "body_too_large")
    assert "1,000,000 events" in answer.json["detail"]


def test_all_rejections_are_counted_in_the_answer(call: Caller, world: World) -> None:
    good = b'{"id": "first", "time": "2026-01-31T09:30:00Z", "account": "%b"}\n' % world.a.account.encode()
    answer = call("POST", "/tk/v1/events", [*OPERATOR, NDJSON], good + b"{}\n" * 20_000)
    assert (answer.status, answer.json["accepted"], answer.json["rejected"]) == (200, 1, 20_000)
    assert len(answer.json["errors"]) == 1_000


def test_an_account_over_its_share_is_asked_to_wait(call: Caller, world: World) -> None:
    """Its batches under way leave no room; another account's, and the operator's, are taken."""
    batches = call.app.hot.batches
    share = 2 * EVENTS_BYTES_MAX
    batches.reserve(world.a.account, share)
    try:
        answers = [
            call("POST", "/tk/v1/events", [(b"authorization", b"Bearer " + key.encode()), JSON], b"[]")
            for key in (world.a.management_key, world.b.management_key, OPERATOR_KEY)
        ]
    finally:
        batches.release(world.a.account, share)
    assert [answer.status for answer in answers] == [429, 200, 200]
    assert answers[0].json["code"] == "too_much_under_way"
    assert answers[0].json["retryable"]
    assert answers[0].header("retry-after") == "1"


def test_what_a_batch_had_under_way_ends_with_its_answer(call: Caller) -> None:
    for body in (b"[]", b"{", b"[" + b" " * 100_000):
        call("POST", "/tk/v1/events", [*OPERATOR, JSON], [body, b""])
    assert call.app.hot.batches._bytes == {}


def test_a_body_of_two_lengths_is_refused(call: Caller) -> None:
    """RFC 9112, section 6.1: a proxy may go by the one that we do not go by."""
    headers = [*OPERATOR, (b"content-length", b"2"), (b"transfer-encoding", b"chunked")]
    for path in ("/tk/v1/void", "/tk/v1/accounts", "/shoal/v1/usage", "/healthz"):
        answer = call("POST", path, headers, b"{}")
        assert (answer.status, answer.json["code"]) == (400, "bad_input")
        assert answer.header("connection") == "close"


def test_a_bomb_in_a_bomb_is_opened_once(call: Caller) -> None:
    nested = gzip.compress(gzip.compress(b"[]"))
    assert call("POST", "/tk/v1/events", [*OPERATOR, JSON, GZIP], nested).status == 400
    twice = (b"content-encoding", b"gzip, gzip")
    assert call("POST", "/tk/v1/events", [*OPERATOR, JSON, twice], nested).status == 415


def test_many_members_are_one_body_up_to_a_bound() -> None:
    """Each costs time even if it is empty; and what followed one was copied once for each, before."""
    piece = gzip.compress(b"x" * 50)
    assert decompressed(piece * 2_000, [GZIP], 1 << 20) == b"x" * 100_000
    with pytest.raises(Malformed, match="members"):
        decompressed(gzip.compress(b"") * (GZIP_MEMBERS_MAX + 1), [GZIP], 1 << 20)
    with pytest.raises(BodyTooLarge):
        decompressed(piece * 2_000, [GZIP], 99_999)


@pytest.mark.parametrize("cut", [1, 4, 8, 10, 11, 20])
def test_a_body_that_ends_too_early_is_malformed(cut: int) -> None:
    with pytest.raises(Malformed):
        decompressed(gzip.compress(b"x" * 5_000)[:-cut], [GZIP], 1 << 20)


# -- what is asked --------------------------------------------------------------------------------------


def test_a_question_has_bounds(call: Caller, world: World) -> None:
    def status(query: str) -> int:
        return call("GET", f"/tk/v1/usage?{query}", OPERATOR).status

    assert status("&".join(["model=a"] * PARAMETERS_MAX)) == 200
    assert status("&".join(["model=a"] * (PARAMETERS_MAX + 1))) == 400
    assert status("model=" + ",".join(["a"] * 1_001)) == 400
    assert status("model=" + "a" * 100_001) == 400
    assert status("sort=" + ",".join(["requests"] * 2)) == 400
    assert status("measures=" + ",".join(["requests"] * 5_000)) == 400
    assert status("group_by=" + ",".join(f"tag.t{number}" for number in range(9))) == 400
    assert status("limit=" + "9" * 5_000) == 400
    assert status("offset=1000000001") == 400
    assert call("GET", "/tk/v1/accounts?limit=1001", OPERATOR).status == 400


def test_a_question_to_a_profile_has_a_bound(call: Caller) -> None:
    """It was cut off before, and answered as another question."""
    answer = call("GET", "/shoal/v1/usage?x=" + "a" * QUERY_BYTES_MAX)
    said = f"The query has more than {QUERY_BYTES_MAX} bytes: ask for less."
    assert (answer.status, answer.json) == (400, {"error": said})


# -- the server -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("bounds")) as running:
        yield running


def sent(server: Server, request: bytes) -> int:
    """Return the status of the answer to *request*; 0 for a connection that was closed without one."""
    with connected(server) as connection:
        # It may be refused before all of it was read; the answer is there then.
        with contextlib.suppress(OSError):
            connection.sendall(request)
        try:
            line = connection.recv(64).split(b" ")
        except ConnectionError:
            return 0
    return int(line[1]) if len(line) > 1 else 0


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)


def get(path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "Host: toll", f"Authorization: Bearer {SERVER_KEY}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(path: str, *headers: str, body: bytes = b"") -> bytes:
    return get(path, *headers).replace(b"GET", b"POST", 1) + body


CHUNKED: Final = "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        (get("/tk/v1/accounts/" + "a" * 70_000), {414}),
        (get("/tk/v1/usage?model=" + "a" * 70_000), {414}),
        (get("/healthz", "X-Long: " + "a" * 1_000_000), {431}),
        (get("/healthz", *(f"X-{number}: a" for number in range(150))), {431}),
        (get("/healthz", "X-Nul: a\0b"), {400}),
        (get("/healthz", "X Space: a"), {400}),
        (get("/healthz", "Host : other"), {400}),
        (b"GET /tk/v1/accounts/\xff HTTP/1.1\r\nHost: toll\r\n\r\n", {400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", {400}),
        # Two lengths are how a request is smuggled past a proxy.
        (post("/tk/v1/void", "Content-Length: 2", "Content-Length: 3", body=b"{} "), {400}),
        (post("/tk/v1/void", "Content-Length: " + "9" * 40), {400}),
        (post("/tk/v1/events", "Content-Length: 99999999999"), {413}),
        (post("/tk/v1/authorize", "Content-Length: 65537", body=b" " * 65_537), {413}),
        (post("/tk/v1/authorize", CHUNKED, body=(b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 3), {413}),
        (post("/tk/v1/void", CHUNKED, body=b"zz\r\n"), {400}),
        (post("/tk/v1/accounts", CHUNKED, body=b"zz\r\n"), {400}),
        (post("/shoal/v1/usage", CHUNKED, body=b"zz\r\n"), {405}),
        # The start of HTTP/2, which would bring bounds of its own.
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {0, 400, 404, 405, 505}),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else "",
)  # fmt: skip
def test_the_server_refuses_what_is_beyond_its_bounds(
    request_: bytes, statuses: set[int], server: Server
) -> None:
    assert sent(server, request_) in statuses
    assert sent(server, get("/healthz")) == 200


@pytest.mark.parametrize(
    "lengths",
    [
        ("Content-Length: 2", CHUNKED),
        (CHUNKED, "Content-Length: 2"),
        (CHUNKED, "Content-Length: 99"),
        (CHUNKED,),
    ],
)
@pytest.mark.parametrize("path", ["/tk/v1/void", "/tk/v1/accounts", "/shoal/v1/usage"])
def test_after_a_chunked_body_the_connection_ends(
    path: str, lengths: tuple[str, ...], server: Server
) -> None:
    """
    Of two lengths the server below shows us only one, so a second request on the connection is never read.

    RFC 9112, section 6.1, lets a server read such a body as chunked, and demands that it closes afterwards.
    """
    with connected(server) as connection:
        connection.sendall(post(path, *lengths, body=b"2\r\n{}\r\n0\r\n\r\n") + get("/healthz"))
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()


def test_connections_that_say_nothing_keep_nobody_out(server: Server) -> None:
    """
    300 that are silent, or in the middle of a header or a body, and calls are answered as before.

    The server closes one whose headers take longer than 30 s; a silent one costs a file handle.
    """
    assert HTTP1Settings().header_read_timeout == 30_000
    waiting = [connected(server) for _ in range(300)]
    try:
        for connection in waiting[:100]:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: toll\r\nX-Slow: ")
        for connection in waiting[100:200]:
            connection.sendall(post("/tk/v1/authorize", "Content-Length: 100", body=b"{"))
        for _ in range(20):
            assert sent(server, get("/healthz")) == 200
            assert sent(server, get("/tk/v1/accounts")) == 200
            assert sent(server, post("/tk/v1/authorize", "Content-Length: 0")) == 400
    finally:
        for connection in waiting:
            connection.close()
    assert sent(server, get("/healthz")) == 200


def test_the_server_shows_no_secret_in_its_arguments_or_output(tmp_path: Path) -> None:
    """Everybody on the machine sees the arguments of a process; the operator key comes in the environment."""
    with running_server(tmp_path) as running:
        process = psutil.Process(running.process.pid)
        seen = [" ".join(each.cmdline()) for each in (process, *process.children(recursive=True))]
        running.put("/tk/v1/accounts/acme", {"name": "Acme"})
        secret = running.post("/tk/v1/keys", {"account": "acme"})["secret"]
        running.process.terminate()
        output = running.process.stdout.read() if running.process.stdout else ""
        running.process.wait(60)
    assert not any(SERVER_KEY in arguments for arguments in seen)
    assert SERVER_KEY not in output
    assert secret not in output
