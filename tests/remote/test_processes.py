"""Several processes with one server: exactly as many requests pass as the budget has."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import count

import pytest

from tests.end_to_end.server import OPERATOR_KEY
from tests.remote.conftest import place_on, verified

PROCESSES = 4
CALLS_EACH = 20
BUDGET = 50

PROGRAM = """
import asyncio, json, sys
from tollkeeper import Denial
from tollkeeper.remote import Tollkeeper

url, key, secret, calls, is_async = *sys.argv[1:4], int(sys.argv[4]), sys.argv[5] == "async"
found = []

def sync():
    with Tollkeeper(url, key=key) as toll:
        for _ in range(calls):
            admission = toll.admit(secret, "POST", "/chat")
            found.append(admission.reason if isinstance(admission, Denial) else "ok")
            if not isinstance(admission, Denial):
                toll.settle(admission)

async def use(toll):
    admission = await toll.admit_async(secret, "POST", "/chat")
    found.append(admission.reason if isinstance(admission, Denial) else "ok")
    if not isinstance(admission, Denial):
        await toll.settle_async(admission)

async def main():
    toll = Tollkeeper(url, key=key)
    await asyncio.gather(*(use(toll) for _ in range(calls)))
    await toll.aclose()

asyncio.run(main()) if is_async else sync()
print(json.dumps(found))
"""
_accounts = count()


@pytest.mark.parametrize("form", ["sync", "async"])
def test_exactly_the_budget_passes_between_processes(server, url, form):
    place = place_on(server, url, f"processes{next(_accounts)}", budget=BUDGET)
    command = [sys.executable, "-c", PROGRAM, url, OPERATOR_KEY, place.secret, str(CALLS_EACH), form]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    found = [answer for process in processes for answer in json.loads(process.communicate(timeout=60)[0])]
    assert [process.returncode for process in processes] == [0] * PROCESSES
    assert found.count("ok") == BUDGET
    assert found.count("budget_exhausted") == PROCESSES * CALLS_EACH - BUDGET
    totals = place.totals()
    assert (totals["requests"] - totals["denied"], totals["denied"]) == (BUDGET, len(found) - BUDGET)
    assert verified(server)
