"""
Events with the cardinality of real traces, drawn faster than any server takes them.

The figures are those of public traces: 26 accounts of an LLM service, the busiest with most of the requests and
each with one model; 20 endpoints of an API, four of them with two thirds of its calls; latency and token counts
with the medians and 95th percentiles of the same traces.
"""

from __future__ import annotations

import numpy as np

from bench.fixture import MODELS

ACCOUNTS = 26
ROUTES = 20
ROUTE_WEIGHTS = (422, 247, 172, 106) + (28,) * (ROUTES - 4)
STATUS_WEIGHTS = {200: 0.932, 500: 0.066, 499: 0.002}
POOL = 200_000
"""Distinct events that batches are drawn from; each gets its own id and time."""

PREFIX, BETWEEN = b'{"id":"', b'","time":"'
ID_AT = len(PREFIX)
TIME_AT = ID_AT + 36 + len(BETWEEN)
TIME_LENGTH = len("2026-01-01T00:00:00.000Z")
HEX_AT = np.array([at for at in range(36) if at not in (8, 13, 18, 23)]) + ID_AT
HEX = np.frombuffer("".join(f"{value:02x}" for value in range(256)).encode(), np.uint8).reshape(256, 2)

DECLARATION = (
    """
[[plans]]
slug = "pro"
limits = [{ name = "rpm", amount = 1000000000, window = "1m" }]
"""
    + "".join(
        f"""
[[accounts]]
id = "a{number}"
name = "Account {number}"
plan = "pro"
[[keys]]
id = "k{number}"
account = "a{number}"
[[budgets]]
id = "monthly-{number}"
account = "a{number}"
amount = 1000000000000000
"""
        for number in range(ACCOUNTS)
    )
    + "".join(
        f'[[routes]]\nid = "r{number}"\nmethod = "POST"\npath = "/v1/operation-{number}"\n'
        for number in range(ROUTES)
    )
)


class Trace:
    """Draws batches of events. The same seed and the same calls give the same bytes."""

    def __init__(self, seed: int = 7) -> None:
        self._random = np.random.default_rng(seed)
        self._lines = self._pool()

    def batch(self, count: int, *, start_ms: int, span_ms: int) -> bytes:
        """Return *count* events as NDJSON, with UUIDv7 ids, one every *span_ms* from *start_ms* on."""
        lines = self._lines[self._random.integers(0, POOL, count)]
        at_ms = start_ms + span_ms * np.arange(count, dtype=np.int64)
        ids = self._random.integers(0, 256, (count, 16), dtype=np.uint8)
        ids[:, :6] = at_ms.astype(">i8").view(np.uint8).reshape(count, 8)[:, 2:]
        ids[:, 6] = ids[:, 6] & 0x0F | 0x70
        ids[:, 8] = ids[:, 8] & 0x3F | 0x80
        lines[:, HEX_AT] = HEX[ids].reshape(count, 32)
        text = np.datetime_as_string(at_ms.astype("datetime64[ms]")).astype(f"S{TIME_LENGTH - 1}")
        lines[:, TIME_AT : TIME_AT + TIME_LENGTH - 1] = text.view(np.uint8).reshape(count, TIME_LENGTH - 1)
        return lines[lines != 0].tobytes()

    def one(self, key: str, *, at_ms: int) -> bytes:
        """Return one event of *key*, as `batch` does."""
        head, _, rest = self.batch(1, start_ms=at_ms, span_ms=1).partition(b'"key_id":"')
        return head + b'"key_id":"' + key.encode() + rest[rest.index(b'"') :]

    def _pool(self) -> np.ndarray:
        draw = self._random
        share = 1 / np.arange(1, ACCOUNTS + 1) ** 1.2
        accounts = draw.choice(ACCOUNTS, POOL, p=share / share.sum())
        weights = np.array(ROUTE_WEIGHTS) / sum(ROUTE_WEIGHTS)
        columns = (
            accounts,
            draw.choice(ROUTES, POOL, p=weights),
            draw.choice(list(STATUS_WEIGHTS), POOL, p=list(STATUS_WEIGHTS.values())),
            draw.lognormal(np.log(6974), 1.08, POOL),  # p50 7 s, p95 41 s
            draw.lognormal(np.log(19_000), 1.6, POOL).astype(np.int64),
            draw.lognormal(np.log(1025), 0.84, POOL).astype(np.int64),  # p50 1,025, p95 4,087
            draw.lognormal(np.log(116), 0.83, POOL).astype(np.int64) + 1,  # p50 116, p95 452
        )
        head = PREFIX + b"-" * 36 + BETWEEN + b"-" * (TIME_LENGTH - 1) + b"Z"
        lines = [
            head
            + (
                f'","key_id":"k{account}","method":"POST","route":"/v1/operation-{route}","status":{status},'
                f'"latency_ms":{latency:.3f},"bytes_out":{size},"model":"{MODELS[account % len(MODELS)]}",'
                f'"tokens":{{"prompt":{prompt},"completion":{completion}}}}}\n'
            ).encode()
            for account, route, status, latency, size, prompt, completion in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]
        width = max(map(len, lines))
        return np.frombuffer(b"".join(line.ljust(width, b"\0") for line in lines), np.uint8).reshape(
            -1, width
        )
