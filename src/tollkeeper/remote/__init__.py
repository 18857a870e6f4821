"""
A client of a running `tollkeeper serve`, for programs of several processes: the gate and its middleware.

    toll = tollkeeper.remote.Tollkeeper("unix:/run/tollkeeper.sock", key="ok_…")
    app = toll.middleware(app)

It decides and books nothing itself. `admit` refuses while the server is away. Every call has an id, so a retry cannot
count twice, and a settlement that could not be delivered is kept and sent again until the process ends.

Files:

* `client` (`Tollkeeper`), `door` (the gate of the middleware), `admission` (what `admit` and `settle` return).
* `address` (URLs), `connections` and `async_connections` (HTTP/1.1, kept open), `tries` (when a call is repeated).
* `messages` (the JSON of the calls), `usage_query` (of the usage query), `undelivered` (what is sent again).

Imports: `http` and what it imports; no store.
"""

from __future__ import annotations

from tollkeeper.remote.admission import Admission, Settled
from tollkeeper.remote.client import Tollkeeper

__all__ = ["Admission", "Settled", "Tollkeeper"]
