"""Flask and Django behind the gate, on gunicorn with threads, waitress and granian: real servers, each a process."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.end_to_end.server import free_port

ROOT: Final = Path(__file__).parents[2]
START_S_MAX: Final = 90
DEADLINE_S: Final = 60
"""Only bounds a run that has failed."""

SERVERS: Final[dict[str, Callable[[int, str], list[str]]]] = {
    "gunicorn": lambda port, app: [
        # Without it a connection is closed after 2 s without a request: sooner than a busy machine sends one.
        *("gunicorn", "-w", "1", "--threads", "8", "--keep-alive", "60", "-b", f"127.0.0.1:{port}", app)
    ],
    "waitress": lambda port, app: ["waitress", f"--listen=127.0.0.1:{port}", "--threads=8", app],
    "granian": lambda port, app: [
        *("granian", "--interface", "wsgi", "--workers", "1", "--blocking-threads", "8"),
        *("--port", str(port), app),
    ],
}


class Stack:
    """A running server with an app behind the gate."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, directory: Path, log: Path) -> None:
        self.process = process
        self.port = port
        self.directory = directory
        self.log = log

    def secret(self, name: str) -> str:
        found: str = json.loads((self.directory / "secrets.json").read_text())[name]
        return found

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def ask(self, method: str, path: str, key: str | None) -> tuple[int, bytes]:
        connection = self.connection()
        try:
            return ask(connection, method, path, None if key is None else self.secret(key))
        finally:
            connection.close()

    def report(self) -> dict[str, Any]:
        status, body = self.ask("GET", "/ops", None)
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def rows(self, account: str, route: str) -> list[dict[str, Any]]:
        """Return what is booked of an account's calls of a route, by status and error type."""
        report = self.report()
        assert report["ok"]
        return [row for row in report["rows"] if (row["account"], row["route"]) == (account, route)]

    def kill(self) -> None:
        """End the server and its worker as a power cut would: they are a group of their own."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, secret: str | None
) -> tuple[int, bytes]:
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


@contextmanager
def started(server: str, app: str, directory: Path, *more: str) -> Iterator[Stack]:
    """Start a server on *directory* and a free port of loopback; kill it in the end."""
    port = free_port()
    with serving([*SERVERS[server](port, app), *more], port, directory) as stack:
        yield stack


@contextmanager
def serving(command: list[str], port: int, directory: Path, cwd: Path = ROOT) -> Iterator[Stack]:
    """Start a module of Python with its arguments in *cwd*, and yield once it answers; kill it in the end."""
    directory.mkdir(exist_ok=True)
    log = directory / "server.log"
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=output,
            stderr=output,
            cwd=cwd,
            start_new_session=True,
            env={**os.environ, "STACK_DATA": str(directory), "PYTHONPATH": paths},
        )
    stack = Stack(process, port, directory, log)
    try:
        deadline = time.monotonic() + START_S_MAX
        while True:
            running = process.poll() is None and time.monotonic() < deadline
            assert running, log.read_text()[-4000:]
            try:
                stack.ask("GET", "/ops", None)
                break
            except OSError:
                time.sleep(0.1)
        yield stack
    finally:
        if process.poll() is None:
            stack.kill()


@pytest.fixture(
    scope="module",
    params=["gunicorn flask", "gunicorn django", "waitress flask", "granian django"],
)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    server, _, framework = request.param.partition(" ")
    with started(server, f"tests.stacks.{framework}_app:app", tmp_path_factory.mktemp("stack")) as found:
        yield found


@pytest.mark.drawn(2)
def test_of_many_requests_just_so_many_pass_as_the_budget_has(stack: Stack) -> None:
    """30 at once with 10 requests left: 10 pass, are booked and reach the app; the others never do."""
    answers: list[int] = []
    start = threading.Barrier(30)

    def call() -> None:
        start.wait()
        answers.append(stack.ask("GET", "/v1/work", "limited")[0])

    threads = [threading.Thread(target=call) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] * 10 + [402] * 20
    booked = {row["status"]: row["requests"] for row in stack.rows("limited", "/v1/work")}
    assert booked[200] == 10
    assert stack.report()["reached"].count("/v1/work") == 10


def test_a_request_without_a_good_key_does_not_reach_the_app(stack: Stack) -> None:
    """Nor does the body of a refused HEAD, which would be read as the start of the next answer."""
    before = stack.report()["reached"].count("/v1/work")
    connection = stack.connection()
    for method in ("HEAD", "GET", "HEAD"):
        status, body = ask(connection, method, "/v1/work", "tk_made_up")
        assert status == 401
        assert (json.loads(body)["code"] == "key_unknown") if method == "GET" else not body
    assert stack.report()["reached"].count("/v1/work") == before
    status, body = ask(connection, "GET", "/v1/work", stack.secret("open"))
    assert (status, json.loads(body)) == (200, {"path": "/v1/work"})
    connection.close()


def test_a_stream_is_booked_with_all_that_it_used(stack: Stack) -> None:
    """Also what it states after its last piece; bytes as the app made them."""
    for _ in range(3):
        status, body = stack.ask("GET", "/v1/stream", "open")
        assert (status, body) == (200, b"".join(b"data: %d\n\n" % n for n in range(5)))
    (row,) = stack.rows("open", "/v1/stream")
    assert (row["requests"], row["bytes_out"], row["cost_nanos"]) == (3, 3 * len(body), 3 * 50)


def test_a_client_that_leaves_is_booked_with_what_the_app_sent_until_then(stack: Stack) -> None:
    connection = stack.connection()
    connection.request("GET", "/v1/endless", headers={"Authorization": f"Bearer {stack.secret('open')}"})
    answer = connection.getresponse()
    assert len(answer.read(300_000)) == 300_000
    answer.close()
    connection.close()
    deadline = time.monotonic() + DEADLINE_S
    while not (rows := stack.rows("open", "/v1/endless")):
        assert time.monotonic() < deadline, stack.log.read_text()[-4000:]
        time.sleep(0.2)
    (row,) = rows
    assert (row["requests"], row["status"], row["error_type"]) == (1, 200, "")
    assert row["bytes_out"] == 65_536 * row["cost_nanos"] > 300_000


def test_a_file_is_counted(stack: Stack) -> None:
    """Though servers can send files by themselves."""
    sent = (ROOT / "tests/stacks/gated.py").read_bytes()
    assert stack.ask("GET", "/v1/file", "open") == (200, sent)
    (row,) = stack.rows("open", "/v1/file")
    assert (row["requests"], row["bytes_out"]) == (1, len(sent))


def test_a_path_is_decoded_as_the_app_decodes_it(stack: Stack) -> None:
    status, body = stack.ask("GET", "/v1/%C3%A9%20b", "open")
    assert (status, json.loads(body)) == (200, {"path": "/v1/é b"})
    assert [row["requests"] for row in stack.rows("open", "/v1/é b")] == [1]


def test_what_a_view_raises_is_booked_as_500(stack: Stack) -> None:
    assert stack.ask("GET", "/v1/boom", "open")[0] == 500
    assert [row["status"] for row in stack.rows("open", "/v1/boom")] == [500]


@pytest.mark.drawn(1)
@pytest.mark.parametrize("case", ["gunicorn flask", "waitress django", "granian flask"])
def test_kill_9_loses_no_request_that_was_answered(tmp_path: Path, case: str) -> None:
    server, _, framework = case.partition(" ")
    app = f"tests.stacks.{framework}_app:app"
    answered: list[str] = []
    asked: list[str] = []
    enough = threading.Event()

    def call(stack: Stack, path: str, secret: str) -> None:
        connection = stack.connection()
        try:
            while True:
                asked.append(path)
                if ask(connection, "GET", path, secret)[0] == 200:
                    answered.append(path)
                if len(answered) >= 40:
                    enough.set()
        except (OSError, http.client.HTTPException):
            return  # It was killed.

    with started(server, app, tmp_path / "data") as stack:
        secret = stack.secret("open")
        paths = ["/v1/work", "/v1/stream"] * 2
        threads = [threading.Thread(target=call, args=(stack, path, secret)) for path in paths]
        for thread in threads:
            thread.start()
        assert enough.wait(DEADLINE_S)
        stack.kill()
        for thread in threads:
            thread.join()
    with started(server, app, tmp_path / "data") as stack:
        for path, cost in (("/v1/work", 5), ("/v1/stream", 50)):
            (row,) = stack.rows("open", path)
            assert answered.count(path) <= row["requests"] <= asked.count(path)
            assert row["cost_nanos"] == cost * row["requests"]


def test_workers_that_gunicorn_forks_after_the_app_was_loaded_answer_503(tmp_path: Path) -> None:
    with started("gunicorn", "tests.stacks.flask_app:app", tmp_path / "data", "--preload") as stack:
        status, body = stack.ask("GET", "/v1/work", "open")
        assert (status, json.loads(body)["code"]) == (503, "forked")
