"""
Every answered request, observed: how long it took, for the metrics, and a line in the access log where that is on.

A line has the path without its query, which may hold what is nobody else's business, and no credential.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Final

from tollkeeper.http.asgi_types import Message, Scope, Send
from tollkeeper.http.forwarding import forwarded_address

BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram's buckets, in seconds."""
PATH_CHARS_MAX: Final = 512
HUNG_UP: Final = 499
"""The status in metrics and log of a request whose caller hung up before an answer began, as nginx has it."""

log = logging.getLogger("tollkeeper.access")


class Latencies:
    """How long requests took, by call and class of status. Written on the event loop alone."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str], list[int]] = {}
        self._seconds: dict[tuple[str, str], float] = {}

    def add(self, call: str, status: int, seconds: float) -> None:
        """Count one request that took *seconds* from its headers to the end of its answer."""
        key = (call, f"{status // 100}xx")
        buckets = self._buckets.get(key)
        if buckets is None:
            # Set last: who reads finds both.
            self._seconds[key] = 0.0
            buckets = self._buckets[key] = [0] * (len(BOUNDS_S) + 1)
        buckets[bisect_left(BOUNDS_S, seconds)] += 1
        self._seconds[key] += seconds

    def samples(self) -> Iterator[tuple[Mapping[str, str], float, str]]:
        """Yield labels, value and the suffix of the name, as Prometheus's histograms have them."""
        for (call, status), buckets in sorted(self._buckets.copy().items()):
            labels = {"call": call, "status": status}
            counts = list(accumulate(buckets))
            for bound, count in zip((*map(str, BOUNDS_S), "+Inf"), counts, strict=True):
                yield {**labels, "le": bound}, count, "_bucket"
            yield labels, self._seconds[call, status], "_sum"
            yield labels, counts[-1], "_count"


class Observer:
    """
    Observes the requests of one server.

    Args:
        access_log: Whether each request has a line in the log.
        address_header: As the setting `client_address_header`.
    """

    def __init__(self, *, access_log: bool, address_header: str = "") -> None:
        self.latencies = Latencies()
        self._access_log = access_log
        self._address_header = address_header.lower().encode()

    def ended(self, observed: Observed, call: str) -> None:
        """Count a request that is over; *call* says which kind it was."""
        seconds = time.perf_counter() - observed.began_at
        self.latencies.add(call, observed.status, seconds)
        if self._access_log:
            self._log(observed, call, seconds)

    def _log(self, observed: Observed, call: str, seconds: float) -> None:
        scope = observed.scope
        peer = scope.get("client")
        address = forwarded_address(scope["headers"], self._address_header) if self._address_header else ""
        log.info(
            "tollkeeper.access",
            extra={
                "request_id": observed.request_id,
                "method": scope["method"],
                "path": scope["path"][:PATH_CHARS_MAX],
                "status": observed.status,
                "ms": round(seconds * 1000, 3),
                "bytes": observed.sent_bytes,
                "call": call,
                "client": address or (str(peer[0]) if peer else ""),
            },
        )


class Observed:
    """One request under way, from now on. Who answers it sends by `send`."""

    __slots__ = ("_send", "began_at", "request_id", "scope", "sent_bytes", "status")

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.status = HUNG_UP
        self.request_id = ""
        self.sent_bytes = 0
        self.began_at = time.perf_counter()
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            for name, value in message.get("headers", ()):
                if name == b"x-request-id":
                    self.request_id = value.decode("latin-1")
        else:
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)
