"""
Faults behind a real server with several worker processes: requests, streams and WebSockets through the middleware.

The application is `gated_app`, under Granian; its workers ask one `tollkeeper serve`. Beside them plain processes,
forked ones among them, use `tollkeeper.remote`. A worker or the server is killed on the way.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random
from typing import Final

from tollkeeper.console.server_defaults import HOST
from tollkeeper.errors import Unavailable
from tollkeeper.prove.attempts import Attempt, check_attempts
from tollkeeper.prove.gated_app import HOLD_S, LAST, OP_HEADER
from tollkeeper.prove.journal import ANSWER_S_MAX
from tollkeeper.prove.oracle import Finding
from tollkeeper.prove.plan import secret_of
from tollkeeper.prove.scene import Scene, at_once, key_declaration, once_at, some
from tollkeeper.prove.server import OPERATOR_KEY, START_S_MAX, environment, free_port
from tollkeeper.prove.websocket import WebSocket, WebSocketGone, WebSocketRefused

NOBODY: Final = "nobody"
A_WORKER: Final = "a worker"
THE_SERVER: Final = "the server"
"""Who is killed."""
WORKERS: Final = 3
UNITS: Final = 60
REQUESTS: Final = 60
"""Through the middleware; the plain processes send as many: two in three fit."""
PROCESSES: Final = 3
CALLS_EACH: Final = 10
TALKS: Final = 40
"""Streams and WebSockets, of 3 units on average: one in two fits."""
UNITS_EACH_MAX: Final = 5
DELIVERED_S: Final = 2 * HOLD_S
"""By then workers have delivered to a server that answers again: they pause for 5 s at most."""
APP: Final = "tollkeeper.prove.gated_app:app"
_ACCOUNT: Final = "crowd"
_KEY: Final = "crowd-1"
_BROKEN: Final = (OSError, HTTPException, WebSocketGone)


class Stack:
    """A server of *app* with several workers. The maker closes it."""

    def __init__(self, url: str, log: Path, app: str = APP) -> None:
        self.port = free_port()
        options = [
            "--interface",
            "asgi",
            "--workers",
            str(WORKERS),
            "--respawn-failed-workers",
            "--no-access-log",
        ]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "granian", app, *options, "--host", HOST, "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment({"PROVE_URL": url, "PROVE_KEY": OPERATOR_KEY}),
                start_new_session=True,
            )

    def start(self) -> None:
        """Return once it answers. Raises `Unavailable` when it does not."""
        until = time.monotonic() + START_S_MAX
        while self.worker() is None:
            if self._process.poll() is not None or time.monotonic() > until:
                raise Unavailable("The server of the workers does not start: its log says why.")
            time.sleep(0.05)

    def worker(self) -> int | None:
        """Return the process id of one of the workers; None when none answers."""
        connection = HTTPConnection(HOST, self.port, timeout=ANSWER_S_MAX)
        try:
            connection.request("GET", "/who")
            answer = connection.getresponse()
            return int(answer.read()) if answer.status == 200 else None
        except (OSError, HTTPException):
            return None
        finally:
            connection.close()

    def kill_worker(self) -> None:
        if (pid := self.worker()) is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End it with its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def running_stack(scene: Scene, directory: Path, app: str = APP) -> Iterator[Stack]:
    """Declare the crowd's bound and run the workers."""
    scene.declare(key_declaration(_ACCOUNT, _KEY, UNITS))
    stack = Stack(scene.server.url, directory / "workers.log", app)
    try:
        stack.start()
        yield stack
    finally:
        stack.close()


def check_workers(
    scene: Scene, directory: Path, variant: str, chance: Random, app: str = APP
) -> list[Finding]:
    """Have workers and plain processes spend one budget; *variant* says who is killed: nobody, a worker, the server."""
    with running_stack(scene, directory, app) as stack:
        plain = [_plain(scene, form) for form in ("sync", "async")]
        ids = [f"w-{number}" for number in range(REQUESTS)]
        acts = {A_WORKER: stack.kill_worker, THE_SERVER: scene.crash}
        act = acts.get(variant, lambda: None)
        sent = at_once(
            [partial(_request, stack.port, id_) for id_ in ids],
            once_at(chance.randrange(5, REQUESTS // 2), act),
        )
        sent += [attempt for process in plain for attempt in _said(process)]
        if variant == THE_SERVER:
            # Workers deliver what it did not take, perhaps when its hold has expired.
            time.sleep(DELIVERED_S)
            sent = [
                attempt._replace(is_late=attempt.is_late or attempt.outcome == "perhaps") for attempt in sent
            ]
        return _checked(scene, sent, variant)


def check_streams(
    scene: Scene, directory: Path, variant: str, chance: Random, app: str = APP
) -> list[Finding]:
    """Have streams and WebSockets spend one budget piece by piece: cut by their clients, by the money, or by a kill."""
    with running_stack(scene, directory, app) as stack:
        calls: list[Callable[[], Attempt]] = []
        for number in range(TALKS):
            count, ending = (
                chance.randrange(1, UNITS_EACH_MAX + 1),
                chance.choice(("whole", "close", "cut", "cut")),
            )
            pieces = chance.randrange(count + 1)
            if number % 2:
                call = partial(_talk, stack.port, f"t-{number}", count, ending)
            else:
                call = partial(_stream, stack.port, f"s-{number}", count, pieces if ending == "cut" else None)
            # A worker may die before it has booked what its client has ended.
            calls.append(partial(call, unsure="perhaps" if variant == A_WORKER else "booked"))
        calls += [
            partial(_uninvited, stack.port, f"u-{number}", key)
            for number, key in enumerate(("", "tk_made_up"))
        ]
        chance.shuffle(calls)
        killed = once_at(chance.randrange(5, TALKS // 2), stack.kill_worker)
        sent = at_once(calls, killed if variant == A_WORKER else lambda done: None)
        return _checked(scene, sent, variant)


def _checked(scene: Scene, sent: list[Attempt], variant: str) -> list[Finding]:
    found, broken = [], some(sent, "perhaps")
    if variant == NOBODY and broken:
        found.append(Finding("other", f"{broken} requests were broken off, and nobody was killed"))
    sent += scene.fill(UNITS, "fill", {"key": secret_of(_KEY)})
    return found + check_attempts(sent, UNITS, scene.spent(_ACCOUNT, scene.used(_KEY)))


def _headers(id_: str, secret: str = "") -> dict[str, str]:
    return {"Authorization": f"Bearer {secret or secret_of(_KEY)}", OP_HEADER: id_}


def _request(port: int, id_: str) -> Attempt:
    """Send one request on a connection of its own, which any worker may take."""
    began_s = time.monotonic()
    connection = HTTPConnection(HOST, port, timeout=ANSWER_S_MAX)
    try:
        connection.request("POST", "/one", headers=_headers(id_))
        answer = connection.getresponse()
        whole = answer.read() == b"done"
    except _BROKEN:
        return _ended(id_, "perhaps", 1, 1, began_s)
    finally:
        connection.close()
    if answer.status == 200 and whole:
        return _ended(id_, "booked", 1, 1, began_s)
    # A settlement that could not be delivered: 500, and it follows.
    return _ended(id_, "perhaps" if answer.status == 500 else "refused", 1, 1, began_s)


def _stream(port: int, id_: str, count: int, cut_after: int | None, *, unsure: str) -> Attempt:
    """Read a stream of *count* pieces to its end, or break off after so many: it is *unsure* then."""
    began_s = time.monotonic()
    connection = HTTPConnection(HOST, port, timeout=ANSWER_S_MAX)
    pieces, line = 0, b""
    try:
        connection.request("POST", f"/stream/{count}", headers=_headers(id_))
        answer = connection.getresponse()
        if answer.status != 200:
            return _ended(id_, "refused", 0, 0, began_s)
        while pieces != cut_after and (line := answer.readline()).startswith(b"piece"):
            pieces += 1
    except _BROKEN:
        return _ended(id_, "perhaps", pieces, count, began_s)
    finally:
        connection.close()
    if line == LAST:
        return _ended(id_, "booked", pieces, pieces, began_s)
    return _ended(id_, "perhaps" if cut_after is None else unsure, pieces, count, began_s)


def _talk(port: int, id_: str, count: int, ending: str, *, unsure: str) -> Attempt:
    """Send so many messages on a WebSocket, and have the app close it, close it or drop it: it is *unsure* then."""
    began_s = time.monotonic()
    sent = answered = 0
    try:
        with WebSocket(port, "/talk", _headers(id_), ANSWER_S_MAX) as talk:
            for _ in range(count):
                sent += 1
                talk.send(str(sent))
                if talk.receive() is None:
                    return _ended(id_, "booked", answered, answered, began_s)
                answered += 1
            if ending == "whole":
                talk.send("close")
                while talk.receive() is not None:
                    pass
            elif ending == "close":
                talk.close()
    except WebSocketRefused:
        return _ended(id_, "refused", 0, 0, began_s)
    except _BROKEN:
        return _ended(id_, "perhaps", answered, sent, began_s)
    return _ended(id_, "booked" if ending == "whole" else unsure, answered, answered, began_s)


def _uninvited(port: int, id_: str, secret: str) -> Attempt:
    """Ask for a WebSocket without a good key: opened, it would be a request that was refused and counts."""
    headers = {OP_HEADER: id_} | ({"Authorization": f"Bearer {secret}"} if secret else {})
    with suppress(WebSocketRefused, *_BROKEN), WebSocket(port, "/talk", headers, ANSWER_S_MAX):
        return Attempt(id_, "booked", 1, 1)
    return Attempt(id_, "refused")


def _ended(id_: str, outcome: str, least: int, most: int, began_s: float) -> Attempt:
    is_late = time.monotonic() > began_s + HOLD_S - 1
    if outcome == "booked":
        return Attempt(id_, "booked", least, most, is_late)
    return Attempt(id_, "perhaps" if outcome == "perhaps" else "refused", least, most, is_late)


def _plain(scene: Scene, form: str) -> subprocess.Popen[str]:
    numbers = [str(CALLS_EACH), form, str(PROCESSES)]
    target = [scene.server.url, OPERATOR_KEY, secret_of(_KEY), f"p-{form}"]
    return subprocess.Popen(
        [sys.executable, "-m", "tollkeeper.prove.remote_callers", *target, *numbers],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment({}),
        text=True,
        start_new_session=True,
    )


def _said(process: subprocess.Popen[str]) -> list[Attempt]:
    """Return what the calls of a plain process came to."""
    try:
        said, _ = process.communicate(timeout=ANSWER_S_MAX * 2)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise Unavailable("The processes that use the remote client do not end.") from None
    attempts = []
    for line in said.splitlines():
        outcome, id_, took_s = line.split()
        attempts.append(_ended(id_, outcome, 1, 1, time.monotonic() - float(took_s)))
    due = CALLS_EACH * PROCESSES + 1
    if process.returncode or len(attempts) != due:
        raise Unavailable(f"Of {due} calls of the remote client {len(attempts)} ended.")
    return attempts
