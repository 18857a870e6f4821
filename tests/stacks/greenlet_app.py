"""Greenlets against the gate in this process, as `gunicorn -k gevent` has them: what they got, and what is booked."""

from __future__ import annotations

# First of all, as gunicorn does before it loads an application.
from gevent import monkey, pool

monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
from collections import Counter  # noqa: E402
from typing import Any  # noqa: E402

from tollkeeper import Tollkeeper, UsageQuery  # noqa: E402

CALLS = 60
ENTRIES = """
[[accounts]]
id = "a"
name = "A"
[[keys]]
id = "k"
account = "a"
[[budgets]]
id = "twenty"
account = "a"
amount = 20
unit = "requests"
[[routes]]
id = "all"
method = "*"
path = "/*"
price_nanos = 5
"""


def app(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


def call(number: int) -> str:
    answered: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": f"/{number}",
        "QUERY_STRING": "",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "HTTP_AUTHORIZATION": f"Bearer {secrets['k']}",
    }
    answer = gated(environ, lambda status, headers, exc_info=None: answered.append(status))
    b"".join(answer)
    if hasattr(answer, "close"):
        answer.close()
    return answered[0][:3]


with Tollkeeper.open(sys.argv[1]) as toll:
    secrets = {issued.entry.id: issued.secret for issued in toll.apply(ENTRIES).issued}
    gated = toll.wsgi_middleware(app)
    statuses = Counter(pool.Pool(CALLS).map(call, range(CALLS)))
    query = UsageQuery(account_id="a", from_us=0, to_us=2**52, group_by=("status",), measures=("requests",))
    rows = {str(row["status"]): row["requests"] for row in toll.usage(query).rows}
    print(json.dumps({"statuses": statuses, "rows": rows, "ok": toll.verify().ok}))
