"""
A small installation whose bound a crowd spends: its declaration, its callers, and what it says in the end.

Calls go over HTTP. `ask` tries a call again with the same id until it is answered, as a server may be killed meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from tollkeeper.api.paths import PREFIX
from tollkeeper.console.server_client import Server
from tollkeeper.console.server_defaults import HOST
from tollkeeper.domain.keys import hash_secret
from tollkeeper.errors import Unavailable
from tollkeeper.prove.attempts import UNIT_NANOS, Attempt, Spent
from tollkeeper.prove.journal import ANSWER_S_MAX
from tollkeeper.prove.look import usage, verify, wait_for_holds
from tollkeeper.prove.plan import secret_of
from tollkeeper.prove.server import OPERATOR_KEY, ServerProcess

THREADS: Final = 8
"""Callers at once."""
CALL_S_MAX: Final = 600
"""One call with all its tries: longer than a start of the server and an answer."""
HOLD_S: Final = 60
"""Of holds that are settled at once."""
_AGAIN_S: Final = 0.02
_DONE: Final = 300
T = TypeVar("T")


class Answer(NamedTuple):
    """The answer of a server, and after how many tries it came."""

    status: int
    body: Any
    tries: int


def ask(port: int, method: str, path: str, body: Any = None) -> Answer:
    """
    Return the answer to a call of the operator. A call without an answer, or answered 503, is sent again.

    Raises:
        Unavailable: A server that runs does not answer within `ANSWER_S_MAX`, or all tries take too long.
    """
    until, tries = time.monotonic() + CALL_S_MAX, 0
    headers = {"Authorization": f"Bearer {OPERATOR_KEY}", "Content-Type": "application/json"}
    content = None if body is None else msgspec.json.encode(body)
    while time.monotonic() < until:
        connection = HTTPConnection(HOST, port, timeout=ANSWER_S_MAX)
        tries += 1
        try:
            connection.request(method, PREFIX + path, content, headers)
            answer = connection.getresponse()
            received = answer.read()
            if answer.status != 503:
                return Answer(answer.status, msgspec.json.decode(received) if received else None, tries)
        except TimeoutError:
            raise Unavailable(f"{method} {path} had no answer within {ANSWER_S_MAX} s") from None
        except (OSError, HTTPException):
            pass  # It is being killed, and starts again.
        finally:
            connection.close()
        time.sleep(_AGAIN_S)
    raise Unavailable(f"{method} {path} got no answer in {CALL_S_MAX} s")


def spend(port: int, id_: str, caller: dict[str, Any], hold_s: int = HOLD_S) -> Attempt:
    """Send one request of one unit through `authorize` and `settle`; *caller* is its key, account or session."""
    began_s = time.monotonic()
    body = {"path": "/v1/any", "id": id_, "cost_nanos": UNIT_NANOS, "ttl_s": hold_s, "tags": {"op": id_}}
    held = ask(port, "POST", "/authorize", {**caller, **body})
    if held.status >= _DONE:
        # Of a call that is sent again: its first try made the hold, which has expired since.
        return Attempt(id_, "refused")
    settled = ask(port, "POST", "/settle", {"hold_id": id_, "cost_nanos": UNIT_NANOS})
    is_late = time.monotonic() > began_s + hold_s - 1
    return Attempt(id_, "booked" if settled.status < _DONE else "perhaps", is_late=is_late)


def at_once(calls: Sequence[Callable[[], T]], after: Callable[[int], None] = lambda done: None) -> list[T]:
    """
    Make *calls*, some at once, and return what they return.

    Args:
        after: Is called with the number of those that are through, after each; calls go on meanwhile.
    """
    lock, done = threading.Lock(), 0

    def make(call: Callable[[], T]) -> T:
        nonlocal done
        result = call()
        with lock:
            done += 1
            count = done
        after(count)
        return result

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(make, calls))


def once_at(count: int, act: Callable[[], None]) -> Callable[[int], None]:
    """Return what does *act* when it is called with *count*."""
    return lambda done: act() if done == count else None


def key_declaration(account: str, key: str, units: int) -> str:
    """Return an account with a key, and the budget of the key."""
    return (
        '[[routes]]\nid = "any"\nmethod = "*"\npath = "/*"\n'
        f'[[accounts]]\nid = "{account}"\nname = "{account}"\n'
        f'[[keys]]\nid = "{key}"\naccount = "{account}"\nsha256 = "{hash_secret(secret_of(key))}"\n'
        f'[[budgets]]\nid = "bound"\naccount = "{account}"\nkey = "{key}"\namount = {units * UNIT_NANOS}\n'
        'unit = "nanos"\nperiod = "total"\n'
    )


class Scene:
    """A running server, and the accounts whose bounds are spent."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.client = Server(server.url, OPERATOR_KEY)

    def declare(self, declaration: str) -> None:
        self.client.call("POST", "/apply", body=declaration.encode(), media_type="application/toml")

    def crash(self) -> None:
        """Kill the server and start it again."""
        self.server.kill()
        self.server.start()

    def fill(self, units: int, prefix: str, caller: dict[str, Any]) -> list[Attempt]:
        """Spend what is left when no hold is open any more; return the requests, the refused one among them."""
        wait_for_holds(self.server.url, OPERATOR_KEY)
        sent: list[Attempt] = []
        while len(sent) <= units + 1:
            sent.append(spend(self.server.port, f"{prefix}-{len(sent)}", caller))
            if sent[-1].outcome == "refused":
                break
        return sent

    def spent(self, account: str, used: int, *, is_full: bool = True) -> Spent:
        """Return what the server says of an account of which a counter has *used* nanos."""
        events = dict(usage(self.client, (account,), "tag.op", [("denied_reason", "")]))
        return Spent(events, used, verify(self.client), is_full)

    def used(self, key: str, budget: str = "bound") -> int:
        """Return the nanos that a budget of a key has used."""
        budgets = self.client.call("GET", f"/keys/{key}/state")["budgets"]
        return next((int(state["used"]) for state in budgets if state["name"] == budget), 0)


def some(attempts: Iterable[Attempt], outcome: str) -> int:
    """Return how many have this outcome."""
    return sum(attempt.outcome == outcome for attempt in attempts)
