"""
Processes that use a server through `tollkeeper.remote`, forked from one that has used it before:

    python -m tollkeeper.prove.remote_callers URL KEY SECRET PREFIX CALLS sync|async PROCESSES

Each call is of one unit. A line of stdout is `booked|refused|perhaps ID SECONDS`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Final, Literal

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.requests import Outcome
from tollkeeper.errors import TollkeeperError
from tollkeeper.prove.gated_app import CALL_S_MAX, HOLD_S, units
from tollkeeper.remote import Tollkeeper

_CALL: Final = ("POST", "/one")
Result = Literal["booked", "refused", "perhaps"]


def main(url: str, key: str, secret: str, prefix: str, calls: int, form: str, processes: int) -> None:
    """Call, and end when all processes have."""
    toll = Tollkeeper(url, key=key, timeout_s=CALL_S_MAX, hold_s=HOLD_S)
    _call(toll, secret, f"{prefix}-first")
    children = []
    for number in range(processes - 1):
        child = os.fork()
        if not child:
            _calls(toll, secret, f"{prefix}-{number}", calls, form)
            os._exit(0)
        children.append(child)
    _calls(toll, secret, f"{prefix}-parent", calls, form)
    for child in children:
        os.waitpid(child, 0)


def _calls(toll: Tollkeeper, secret: str, prefix: str, calls: int, form: str) -> None:
    ids = [f"{prefix}-{number}" for number in range(calls)]
    if form == "async":
        asyncio.run(_calls_async(toll, secret, ids))
    else:
        for id_ in ids:
            _call(toll, secret, id_)
        toll.close()


async def _calls_async(toll: Tollkeeper, secret: str, ids: list[str]) -> None:
    await asyncio.gather(*(_call_async(toll, secret, id_) for id_ in ids))
    await toll.aclose()


def _call(toll: Tollkeeper, secret: str, id_: str) -> None:
    began_s = time.monotonic()
    result: Result = "refused"
    try:
        admission = toll.admit(secret, *_CALL, units(1), tags={"op": id_})
        if not isinstance(admission, Denial):
            result = "perhaps"
            toll.settle(admission, Outcome(usage=units(1)))
            result = "booked"
    except TollkeeperError:
        pass
    _say(result, id_, began_s)


async def _call_async(toll: Tollkeeper, secret: str, id_: str) -> None:
    began_s = time.monotonic()
    result: Result = "refused"
    try:
        admission = await toll.admit_async(secret, *_CALL, units(1), tags={"op": id_})
        if not isinstance(admission, Denial):
            result = "perhaps"
            await toll.settle_async(admission, Outcome(usage=units(1)))
            result = "booked"
    except TollkeeperError:
        pass
    _say(result, id_, began_s)


def _say(result: Result, id_: str, began_s: float) -> None:
    os.write(1, f"{result} {id_} {time.monotonic() - began_s:.3f}\n".encode())


if __name__ == "__main__":
    _url, _key, _secret, _prefix, _calls_each, _form, _processes = sys.argv[1:]
    main(_url, _key, _secret, _prefix, int(_calls_each), _form, int(_processes))
