"""What the workloads share: a throw-away installation with keys, limits and a budget, and synthetic events."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tollkeeper import Tollkeeper

OPERATOR_KEY = "ok_0123456789abcdefghijABCDEFGHIJ42"
KEYS = 50
BATCH = 100_000

DECLARATION = """
[[plans]]
slug = "pro"
limits = [
  { name = "rpm", amount = 1000000000, window = "1m" },
  { name = "rph", amount = 1000000000, window = "1h", algorithm = "sliding" },
]
[[accounts]]
id = "acme"
name = "Acme"
plan = "pro"
[[budgets]]
id = "monthly"
account = "acme"
amount = 1000000000000000
[[routes]]
id = "chat"
method = "POST"
path = "/v1/chat"
price_nanos = 1000
[[routes]]
id = "hello"
method = "GET"
path = "/"
free = true
""" + "".join(f'[[keys]]\nid = "k{i}"\naccount = "acme"\n' for i in range(KEYS))


@contextmanager
def directory() -> Iterator[Path]:
    """Give a data directory for one workload."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-bench-") as path:
        yield Path(path)


def set_up(toll: Tollkeeper) -> list[str]:
    """Apply the declaration; return the secrets of its keys."""
    return [issued.secret or "" for issued in toll.apply(DECLARATION).issued]


MODELS = ("gpt-4o-mini", "gpt-4o", "claude-sonnet-4-5", "gemini-2.5-flash", "claude-opus-4-6")
ROUTES = ("/v1/chat", "/v1/complete", "/v1/embeddings", "/v1/search")


def events(count: int, *, start_ms: int, seed: int = 7, span_ms: int = 1, quantities: bool = False) -> bytes:
    """
    Return *count* events of about 250 bytes as NDJSON, with time-ordered UUIDv7 ids.

    Args:
        start_ms: Time of the first event, ms since the epoch; one follows every *span_ms*.
        quantities: Whether each has two quantities beside its tokens.
    """
    rng = random.Random(seed + start_ms)
    lines = []
    for index in range(count):
        at_ms = start_ms + index * span_ms
        seconds, ms = divmod(at_ms, 1000)
        value = at_ms << 80 | 7 << 76 | rng.getrandbits(12) << 64 | 2 << 62 | rng.getrandbits(62)
        text = f"{value:032x}"
        event_id = f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
        lines.append(
            f'{{"id":"{event_id}","time":"{_utc(seconds)}.{ms:03d}Z","key_id":"k{rng.randrange(KEYS)}",'
            f'"method":"POST","route":"{rng.choice(ROUTES)}","status":{200 if rng.random() < 0.97 else 500},'
            f'"latency_ms":{rng.lognormvariate(6, 1):.3f},"bytes_out":{rng.randrange(200, 9000)},'
            f'"model":"{rng.choice(MODELS)}",'
            f'"tokens":{{"prompt":{rng.randrange(20, 4000)},"completion":{rng.randrange(1, 600)}}}'
            + (
                f',"quantities":{{"seconds":"{rng.randrange(1, 9000) / 10}","images":{rng.randrange(1, 5)}}}}}'
                if quantities
                else "}"
            )
        )
    return "\n".join(lines).encode()


def fill(toll: Tollkeeper, done: int, size: int, *, start_ms: int, span_ms: int) -> int:
    """Book events, one every *span_ms* from *start_ms* on, until there are *size* where *done* are; return *size*."""
    from tollkeeper.meter.decode import decode_ndjson

    for begun in range(done, size, BATCH):
        body = events(min(BATCH, size - begun), start_ms=start_ms + begun * span_ms, span_ms=span_ms)
        decoded = decode_ndjson(body, now_us=toll.installation.clock.now_us() + 10**15)
        result = toll.installation.ingest.take(decoded)
        assert result.accepted == min(BATCH, size - begun), result.rejections[:2]
    return size


def _utc(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
