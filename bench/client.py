"""One keep-alive connection to a server under test, and what its questions took."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from typing import Any

from bench.fixture import OPERATOR_KEY

ANSWER_S_MAX = 900.0
BUSY_S_MAX = 300.0
TIMED_S_MAX = 30.0
IDLE_S_MAX = 5.0
"""A server may close a connection that was idle longer: it is opened again."""


class Client:
    """Speaks for the operator. Not for two threads."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S_MAX)
        self._used_at = time.monotonic()

    def call(self, method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> Any:
        """
        Return the answer, from JSON. A server that is busy (503) is asked again, for `BUSY_S_MAX`.

        Raises:
            RuntimeError: It answered something else than 2xx.
        """
        headers = {"Authorization": f"Bearer {OPERATOR_KEY}", "Content-Type": content_type}
        until = time.monotonic() + BUSY_S_MAX
        while True:
            if time.monotonic() - self._used_at > IDLE_S_MAX:
                self._connection.close()
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            content = answer.read()
            self._used_at = time.monotonic()
            if answer.status != 503 or time.monotonic() > until:
                break
            time.sleep(float(answer.headers.get("Retry-After", "1")))
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return json.loads(content)

    def once(self, method: str, path: str, body: bytes, answer_s_max: float) -> tuple[int, bytes]:
        """
        Return the status and the body of one answer, whatever it says.

        Raises:
            OSError, http.client.HTTPException: There was none within *answer_s_max* seconds. The next call
                connects again.
        """
        headers = {"Authorization": f"Bearer {OPERATOR_KEY}", "Content-Type": "application/json"}
        try:
            self._connection.timeout = answer_s_max
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise

    def send(self, events: bytes, count: int, path: str = "/tk/v1/events") -> float:
        """Send *count* new events as NDJSON; return the seconds until all were acknowledged."""
        started = time.perf_counter()
        answer = self.call("POST", path, events, "application/x-ndjson")
        took = time.perf_counter() - started
        if answer["accepted"] != count:
            raise RuntimeError(f"not all accepted: {answer}")
        return took

    def close(self) -> None:
        self._connection.close()


def timed_ms(
    work: Callable[[], object], count: int, before: Callable[[], object] | None = None
) -> list[float]:
    """
    Return what *work* took each of *count* times, in ms, sorted; *before* runs first and is not timed.

    What is slow is done less often: no more begins after `TIMED_S_MAX`.
    """
    times: list[float] = []
    until = time.monotonic() + TIMED_S_MAX
    for _ in range(count):
        if times and time.monotonic() > until:
            break
        if before is not None:
            before()
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1e3)
    return sorted(times)


def quantile(values: list[float], share: float) -> float:
    """Return the nearest-rank quantile of sorted *values*."""
    return values[max(0, -(-int(share * 1000) * len(values) // 1000) - 1)]
