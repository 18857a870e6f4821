"""The installation that the apps of these tests are behind, in the process of a server: its data in `STACK_DATA`."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, Final

from tollkeeper import Tollkeeper, UsageQuery

ENTRIES: Final = """
[[accounts]]
id = "limited"
name = "Ten requests"
[[budgets]]
id = "ten"
account = "limited"
amount = 10
unit = "requests"
[[keys]]
id = "limited"
account = "limited"
[[accounts]]
id = "open"
name = "No limit"
[[keys]]
id = "open"
account = "open"
""" + "".join(
    f'[[routes]]\nid = "r{n}"\nmethod = "{method}"\npath = "{path}"\nprice_nanos = 5\n'
    for n, (method, path) in enumerate(
        [(method, path) for method in ("GET", "HEAD") for path in ("/v1/work", "/v1/stream", "/v1/endless")]
        + [("GET", "/v1/file"), ("GET", "/v1/é b"), ("GET", "/v1/boom")]
    )
)
FILE: Final = Path(__file__)
"""What the apps send as a file."""
PIECES: Final = [b"data: %d\n\n" % n for n in range(5)]
"""What the apps stream; each costs 10 nanos."""
BLOCK: Final = b"x" * 65_536

toll = Tollkeeper.open(os.environ["STACK_DATA"])
_secrets = Path(os.environ["STACK_DATA"], "secrets.json")
_issued = {issued.entry.id: issued.secret for issued in toll.apply(ENTRIES).issued if issued.secret}
if _issued:
    _secrets.write_text(json.dumps(_issued))
reached: list[str] = []
"""The paths of the requests that the app got."""
_lock = threading.Lock()


def reaches(path: str) -> None:
    with _lock:
        reached.append(path)


def report() -> dict[str, Any]:
    """Return what the app got, and what is booked by account, route and status: requests, bytes, cost."""
    query = UsageQuery(
        account_id=None,
        from_us=0,
        to_us=toll.installation.clock.now_us() + 1,
        group_by=("account", "route", "status", "error_type"),
        measures=("requests", "bytes_out", "cost_nanos"),
    )
    return {"reached": reached, "rows": toll.usage(query).rows, "ok": toll.verify().ok, "pid": os.getpid()}
