"""
One client process of a round: walks through the steps of its connections, all at once, and keeps its journal.

    python -m tollkeeper.prove.client PORT SEED ROUND CLIENT ROUNDS CLIENTS CONNECTIONS JOURNAL

It writes one byte to stdout per answer, so that its parent process can count. A call without an answer (the
server was killed, or the connection cut on purpose) is sent again, the same, until an answer comes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

import msgspec

from tollkeeper.api.paths import PREFIX
from tollkeeper.console.server_defaults import HOST
from tollkeeper.prove.journal import ANSWER_S_MAX, TIMED_OUT, Journal, Op
from tollkeeper.prove.plan import (
    Correct,
    Cut,
    Manage,
    Post,
    Scale,
    SpendStep,
    Step,
    event_of,
    secret_of,
    steps_of,
)
from tollkeeper.prove.server import OPERATOR_KEY

REFUSED: Final = (402, 429)
STUCK: Final = 3
"""Exit code of a client whose calls got no answer; its journal says which."""
CALL_S_MAX: Final = 600
"""One call with all its tries: longer than a start of the server and an answer."""
_AGAIN_S: Final = 0.02
_EXPIRY_S: Final = 1.5
"""How long after its end a hold has been expired: the server looks once a second."""


class Stuck(Exception):
    """A call got no answer within its time."""


class ClientConnection:
    """One connection of a client, in a thread of its own."""

    def __init__(self, port: int, seed: int, journal: Journal) -> None:
        self._http = HTTPConnection(HOST, port, timeout=ANSWER_S_MAX)
        self._seed = seed
        self._journal = journal
        self._doubtful: list[str] = []
        """Holds that were refused after an earlier try was cut off, which may yet have made them."""
        self._headers = {"Authorization": f"Bearer {OPERATOR_KEY}", "Content-Type": "application/json"}

    def walk(self, steps: Sequence[Step]) -> None:
        """Do *steps* in order. A hold ends some steps after it was made, one to be settled late after all."""
        held: list[tuple[int, SpendStep, float]] = []
        for index, step in enumerate(steps):
            for due in [at for at in held if at[0] <= index and at[1].ending != "late"]:
                held.remove(due)
                self._end(due[1])
            if not isinstance(step, SpendStep):
                self._do(step)
            elif self._authorize(step):
                held.append((index + step.after, step, time.monotonic()))
        for _, spend, since in held:
            if spend.ending == "late":
                time.sleep(max(0.0, since + spend.ttl_s + _EXPIRY_S - time.monotonic()))
            self._end(spend)
        for id_ in self._doubtful:
            self._call("void", id_, "POST", "/void", {"hold_id": id_}, ())
        self._http.close()

    def _do(self, step: Post | Correct | Manage) -> None:
        if isinstance(step, Post):
            events = [event_of(self._seed, id_, changed=step.changed) for id_ in step.events]
            self._call("events", step.id, "POST", "/events", events, step.cuts)
        elif isinstance(step, Manage):
            method = "PUT" if step.op in ("grants", "budgets") else "POST"
            self._call(step.op, step.id, method, step.path, step.body, step.cuts, step.given_up)
        else:
            op: Op = "void_event" if step.changes is None else "amend"
            body = {"correction_id": step.id, **(step.changes or {})}
            path = f"/events/{step.event}/{'void' if step.changes is None else 'amend'}"
            self._call(op, step.id, "POST", path, {**body, "event": step.event}, step.cuts)

    def _authorize(self, step: SpendStep) -> bool:
        """Return whether there is a hold to end."""
        body = {
            "key": secret_of(step.key),
            "path": "/v1/any",
            "id": step.id,
            "ttl_s": step.ttl_s,
            **step.asked,
            "tags": {**step.asked.get("tags", {}), "op": step.id},
        }
        given_up = step.given_up == "authorize"
        return self._call("authorize", step.id, "POST", "/authorize", body, step.cuts, given_up) == 200

    def _end(self, step: SpendStep) -> None:
        if step.ending == "none":
            return
        op: Op = "void" if step.ending == "void" else "settle"
        body = {"hold_id": step.id, **(step.used if op == "settle" else {})}
        self._call(op, step.id, "POST", f"/{op}", body, step.ending_cuts, step.given_up == "ending")

    def _call(
        self,
        op: Op,
        id_: str,
        method: str,
        path: str,
        body: Any,
        cuts: Sequence[Cut],
        given_up: bool = False,
    ) -> int:
        """
        Return the status of the answer; 0 when the call is given up after its cuts.

        Raises:
            Stuck: No answer came in time.
        """
        sent = {name: value for name, value in body.items() if name != "event"} if op in _OF_EVENT else body
        content = msgspec.json.encode(sent)
        for cut in cuts or (("unread",) if given_up else ()):
            self._cut(cut, op, id_, body, method, path, content)
        if given_up:
            return 0
        tries = len(cuts)
        until = time.monotonic() + CALL_S_MAX
        while time.monotonic() < until:
            try:
                self._connect()
                self._journal.write(op, id_, body)
                tries += 1
                self._http.request(method, PREFIX + path, content, self._headers)
                answer = self._http.getresponse()
                received = msgspec.json.decode(answer.read())
            except (OSError, HTTPException, msgspec.DecodeError) as exc:
                # A killed server resets or refuses the connection: only one that runs and hangs times out.
                if isinstance(exc, TimeoutError):
                    self._journal.write(op, id_, status=TIMED_OUT)
                self._http.close()
                time.sleep(_AGAIN_S)
                continue
            if answer.status == 503 or (answer.status == 409 and op in _BEING_ENDED):
                time.sleep(_AGAIN_S)
                continue
            self._journal.write(op, id_, received, answer.status)
            os.write(1, b".")
            if op == "authorize" and answer.status in REFUSED and tries > 1:
                self._doubtful.append(id_)
            return answer.status
        raise Stuck(f"{op} {id_} got no answer in {CALL_S_MAX} s")

    def _cut(self, cut: Cut, op: Op, id_: str, body: Any, method: str, path: str, content: bytes) -> None:
        """Send a call, or half of it, and close the connection without reading."""
        http = self._http
        try:
            self._connect()
            self._journal.write(op, id_, body)
            http.putrequest(method, PREFIX + path)
            for name, value in self._headers.items():
                http.putheader(name, value)
            http.putheader("Content-Length", str(len(content)))
            http.endheaders(content if cut == "unread" else content[: len(content) // 2])
        except (OSError, HTTPException):
            # The server is down: as good a cut as any.
            time.sleep(_AGAIN_S)
        finally:
            http.close()

    def _connect(self) -> None:
        if self._http.sock is None:
            self._http.connect()


_OF_EVENT: Final = ("amend", "void_event")
_BEING_ENDED: Final = ("settle", "void")
"""While the try that was cut off is still being committed, the next one gets 409: send it again."""


def main(port: int, seed: int, number: int, client: int, scale: Scale, journal: Journal) -> int:
    """Walk all connections of one client; return 0 when each came to its end."""
    stuck: list[str] = []
    failed: list[str] = []

    def walk(connection: int) -> None:
        try:
            steps = list(steps_of(seed, number, client, connection, scale))
            ClientConnection(port, seed, journal).walk(steps)
        except Stuck as exc:
            stuck.append(repr(exc))
        except Exception as exc:
            failed.append(repr(exc))

    threads = [threading.Thread(target=walk, args=(number,)) for number in range(scale.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if stuck or failed:
        print("\n".join(stuck + failed), file=sys.stderr)
    return 1 if failed else STUCK if stuck else 0


if __name__ == "__main__":
    *_numbers, _path = sys.argv[1:]
    _port, _seed, _round, _client, *_scale = map(int, _numbers)
    sys.exit(main(_port, _seed, _round, _client, Scale(*_scale), Journal(Path(_path))))
