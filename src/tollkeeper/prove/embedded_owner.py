"""
A process that has an installation open itself, and forks while its threads spend:

    python -m tollkeeper.prove.embedded_owner DATA LEDGER_URL|- CALLS FORKS

It sends requests of one unit of the key that the installation has; a line of stdout is `booked|refused|perhaps ID
SECONDS`, and `begun ID` before it. Each child tries everything that books, must be refused, and says `child ok` or what
happened.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Outcome
from tollkeeper.domain.usage import UsageQuery
from tollkeeper.embedded import Tollkeeper
from tollkeeper.errors import Forked, TollkeeperError
from tollkeeper.gate.gate import Admission
from tollkeeper.prove.gated_app import units
from tollkeeper.prove.plan import secret_of

ACCOUNT: Final = "forks"
KEY: Final = "forks-1"
THREADS: Final = 4
CHILD_S_MAX: Final = 30
_CALL: Final = ("POST", "/v1/any")


def main(data: str, ledger_url: str, calls: int, forks: int) -> None:
    """Spend in threads and fork beside them, until all calls are made."""
    settings: dict[str, Any] = {} if ledger_url == "-" else {"ledger_url": ledger_url}
    with Tollkeeper.open(data, **settings) as toll:
        held = toll.admit(secret_of(KEY), *_CALL, units(1), tags={"op": "held"})
        _say("begun held")
        if isinstance(held, Denial):
            raise SystemExit(f"The first request is refused: {held.message}")
        done = threading.Semaphore(0)
        threads = [
            threading.Thread(target=_spend, args=(toll, f"f-{number}", calls // THREADS, done))
            for number in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        for number in range(forks):
            # So many calls apart, in the midst of others.
            for _ in range(calls // (forks + 1)):
                done.acquire()
            _fork(toll, number, held)
        for thread in threads:
            thread.join()
        _settle(toll, "held", held, time.monotonic())


def _spend(toll: Tollkeeper, prefix: str, calls: int, done: threading.Semaphore) -> None:
    for number in range(calls):
        id_, began_s = f"{prefix}-{number}", time.monotonic()
        _say(f"begun {id_}")
        found = toll.admit(secret_of(KEY), *_CALL, units(1), tags={"op": id_})
        if isinstance(found, Denial):
            _said("refused", id_, began_s)
        else:
            _settle(toll, id_, found, began_s)
        done.release()


def _settle(toll: Tollkeeper, id_: str, admission: Admission, began_s: float) -> None:
    try:
        toll.settle(admission, Outcome(usage=units(1), tags={"op": id_}), wait=True)
    except TollkeeperError:
        _said("perhaps", id_, began_s)
    else:
        _said("booked", id_, began_s)


def _fork(toll: Tollkeeper, number: int, held: Admission) -> None:
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        # The child says so itself when a call waits for what only its parent has.
        signal.signal(signal.SIGALRM, _waits)
        signal.alarm(CHILD_S_MAX)
        wrong = [f"{name} {what}" for name, call in _uses(toll, number, held).items() if (what := _got(call))]
        _say("child " + ("; ".join(wrong) or "ok").replace("\n", " "))
    except BaseException as exc:
        _say(f"child {exc!r}")
    finally:
        os._exit(0)


def _uses(toll: Tollkeeper, number: int, held: Admission) -> dict[str, Callable[[], object]]:
    tags = {"op": f"child-{number}"}
    event = {"id": f"child-{number}", "key_id": KEY, "cost_nanos": 1, "tags": tags}
    query = UsageQuery(account_id=ACCOUNT, from_us=0, to_us=2**52)
    return {
        "admit": lambda: toll.admit(secret_of(KEY), *_CALL, units(1), tags=tags),
        "settle": lambda: toll.settle(held, Outcome(usage=units(1), tags=tags), wait=True),
        "void": lambda: toll.void(held),
        "record": lambda: toll.record([event]),
        "usage": lambda: toll.usage(query),
        "verify": toll.verify,
    }


def _got(call: Callable[[], object]) -> str:
    """Return what a call in a child got in place of its refusal; nothing when it was refused."""
    try:
        return f"gave {call()!r}"[:200]
    except Forked:
        return ""
    except Exception as exc:
        return f"raised {exc!r}"[:200]


def _waits(number: int, frame: object) -> None:
    _say(f"child waits for more than {CHILD_S_MAX} s")
    os._exit(0)


def _said(outcome: str, id_: str, began_s: float) -> None:
    _say(f"{outcome} {id_} {time.monotonic() - began_s:.3f}")


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
