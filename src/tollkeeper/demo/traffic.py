"""
The traffic of the demonstration: what a model gateway does for each request of its customers.

Each request is authorized with an estimate of its tokens, answered (nothing is really answered here), and
settled with what it used. Lengths are as in real chat traffic: some 1,000 tokens of prompt, 120 of answer.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from tollkeeper.demo.client import ApiAnswer, ApiClient
from tollkeeper.demo.declaration import CRAWLER_PER_MINUTE
from tollkeeper.domain.instants import to_text

THREADS: Final = 8
TRAFFIC_S_MAX: Final = 12.0
"""When this is over no more is sent, so that a slow machine shows less instead of waiting for more."""
ASSISTANT_REQUESTS: Final = 300
BATCH_EVENTS: Final = 2_000
CHEAP: Final = "gpt-4o-mini"
STRONG: Final = "claude-sonnet-4-5"
UNPRICED: Final = "gpt-unreleased"
CHAT: Final = ("POST", "/v1/chat/completions")
SCANS: Final = ("POST", "/v1/scans")

Say = Callable[[str, str], None]


class Refusal(NamedTuple):
    """Why requests of a key were refused."""

    key_id: str
    reason: str
    status: int


class Tally:
    """What the gateway saw. Any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.settled: Counter[str] = Counter()
        self.voided: Counter[str] = Counter()
        self.refused: Counter[Refusal] = Counter()
        self.details: dict[Refusal, str] = {}

    def settle(self, key_id: str) -> None:
        with self._lock:
            self.settled[key_id] += 1

    def void(self, key_id: str) -> None:
        with self._lock:
            self.voided[key_id] += 1

    def refuse(self, key_id: str, answer: ApiAnswer) -> None:
        """Count a refusal, and keep the first of its kind in the gate's own words."""
        refusal = Refusal(key_id, answer.body["code"], answer.status)
        with self._lock:
            self.refused[refusal] += 1
            self.details.setdefault(refusal, answer.body["detail"])

    def refused_of(self, key_id: str) -> int:
        return sum(count for refusal, count in self.refused.items() if refusal.key_id == key_id)


class Traffic:
    """
    Sends the traffic, one scene after the other.

    Args:
        secrets: Key id → secret.
        say: Takes a key and what became of its requests, for people, after each scene.
        stopped: Asked between requests: whether to end early.
    """

    def __init__(
        self, api: ApiClient, secrets: Mapping[str, str], *, say: Say, stopped: Callable[[], bool]
    ) -> None:
        self.tally = Tally()
        self._api = api
        self._secrets = secrets
        self._say = say
        self._ends_at = time.monotonic() + TRAFFIC_S_MAX
        self._stopped = stopped

    def run(self) -> Tally:
        """
        Send everything and return what the gateway saw.

        Raises:
            Unavailable: The server does not answer, or not as it should.
        """
        for scene in (
            self._assistant,
            self._crawler,
            self._research,
            self._prepaid,
            self._leaked,
            self._scans,
            self._batch,
        ):
            scene()
        return self.tally

    # -- scenes ---------------------------------------------------------------------------------------

    def _assistant(self) -> None:
        """Ordinary traffic on many connections, with retries, cancellations, provider errors, cache hits."""
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._assistant_request, self._until_over(range(ASSISTANT_REQUESTS))))
        settled, voided = self.tally.settled["assistant-live"], self.tally.voided["assistant-live"]
        self._say(
            "assistant-live",
            f"{settled} requests settled, {voided} cancelled by their users; every 20th was sent twice and "
            f"counts once; {self.tally.refused_of('assistant-live')} refused, for a model without a price",
        )

    def _assistant_request(self, number: int) -> None:
        rng = random.Random(number)
        if number % 60 == 59:
            self._chat("assistant-live", rng, model=UNPRICED)
            return
        model = STRONG if rng.random() < 0.2 else CHEAP
        ending = "void" if number % 25 == 24 else "fail" if number % 40 == 39 else "settle"
        request_id = f"assistant-{number:04d}" if number % 20 == 0 else None
        self._chat("assistant-live", rng, model=model, ending=ending, request_id=request_id)

    def _crawler(self) -> None:
        """A burst beyond the rate limit; and a route that its plan does not include."""
        with ThreadPoolExecutor(THREADS) as pool:
            numbers = self._until_over(range(2 * CRAWLER_PER_MINUTE))
            list(pool.map(lambda number: self._chat("crawler", random.Random(number)), numbers))
        settled = self.tally.settled["crawler"]
        refused = self.tally.refused_of("crawler")
        self._authorize("crawler", *SCANS, cost_nanos=1_000_000)
        self._say(
            "crawler",
            f"a burst of {settled + refused} at a limit of {CRAWLER_PER_MINUTE} a minute: "
            f"{settled} settled, {refused} refused; and a scan, which its plan does not include",
        )

    def _research(self) -> None:
        """Until the project's budget is spent, and a few more."""
        self._spend("research-lab", tries_after=4)
        self._say(
            "research-lab",
            f"{self.tally.settled['research-lab']} requests until the budget of its project was spent, then "
            f"{self.tally.refused_of('research-lab')} refused",
        )

    def _prepaid(self) -> None:
        """Until the account's credit is spent; what is free still goes."""
        self._spend("notebook-prepaid", tries_after=3)
        held = self._authorize("notebook-prepaid", "GET", "/v1/models")
        if held is not None:
            self._settle("notebook-prepaid", held, status=200, latency_ms=3.5, bytes_out=2_048)
        self._say(
            "notebook-prepaid",
            f"{self.tally.settled['notebook-prepaid'] - 1} requests until the credit was spent, then "
            f"{self.tally.refused_of('notebook-prepaid')} refused; the free list of models is still answered",
        )

    def _leaked(self) -> None:
        """A key that is revoked while it is in use; and secrets that never were keys."""
        for number in range(3):
            self._chat("leaked", random.Random(number))
        self._api.get("POST", "/keys/leaked/state?account=northwind", {"state": "revoked"})
        for number in range(5):
            self._chat("leaked", random.Random(number))
        for _ in range(2):
            self._authorize("nobody", *CHAT, model=CHEAP)
        self._say(
            "leaked",
            f"{self.tally.settled['leaked']} requests, then revoked: {self.tally.refused_of('leaked')} more "
            f"refused, as were {self.tally.refused_of('nobody')} with made-up keys",
        )

    def _scans(self) -> None:
        """Jobs that are settled with an estimate and amended when they are done; two at once at most."""
        held = [self._authorize("assistant-live", *SCANS, cost_nanos=40_000_000) for _ in range(3)]
        started = [hold_id for hold_id in held if hold_id is not None]
        for hold_id in started:
            self._settle(
                "assistant-live", hold_id, status=202, estimated_cost_nanos=40_000_000, latency_ms=12.5
            )
        for number, hold_id in enumerate(started):
            self._api.get(
                "POST",
                f"/events/{hold_id}/amend?account=northwind",
                {
                    "correction_id": f"{hold_id}-done",
                    "status": 200,
                    "cost_nanos": 31_250_000 + number * 2_500_000,
                },
            )
        self._say(
            "assistant-live",
            f"{len(started)} scans settled with an estimate of 0.04 each, and amended to what they cost "
            "when they were done; a third one at the same time was refused",
        )

    def _batch(self) -> None:
        """Usage that never passed the gate, as NDJSON: sent twice, as after a lost answer; two bad lines."""
        lines = [*_batch_lines(BATCH_EVENTS), b'{"id":"batch-bad-1"}', b"not JSON"]
        body = b"\n".join(lines)
        first = self._api.get("POST", "/events", body, media_type="application/x-ndjson")
        again = self._api.get("POST", "/events", body, media_type="application/x-ndjson")
        self._say(
            "nightly-batch",
            f"{first['accepted']:,} events of the last day in one batch, {first['rejected']} bad lines "
            f"rejected; the same again: {again['duplicates']:,} duplicates, {again['accepted']} accepted",
        )

    # -- requests -------------------------------------------------------------------------------------

    def _spend(self, key_id: str, *, tries_after: int) -> None:
        rng = random.Random(key_id)
        for _ in self._until_over(range(200)):
            self._chat(key_id, rng, model=STRONG)
            if self.tally.refused_of(key_id) >= tries_after:
                return

    def _chat(
        self,
        key_id: str,
        rng: random.Random,
        *,
        model: str = CHEAP,
        ending: str = "settle",
        request_id: str | None = None,
    ) -> None:
        prompt = int(rng.lognormvariate(6.9, 0.5)) + 1
        completion = int(rng.lognormvariate(4.6, 0.6)) + 1
        # The most that it may use: the prompt is known, the answer is bounded by the caller.
        most = {"prompt": prompt, "completion": max(300, completion)}
        tries = 1 if request_id is None else 2
        for _ in range(tries):
            held = self._authorize(key_id, *CHAT, id=request_id, model=model, tokens=most)
        if held is None:
            return
        if ending == "void":
            self._api.get("POST", "/void", {"hold_id": held})
            self.tally.void(key_id)
            return
        latency_ms = round(rng.lognormvariate(6.5, 0.4), 1)
        if ending == "fail":
            self._settle(key_id, held, status=502, error_type="provider_timeout", latency_ms=latency_ms)
            return
        cached = prompt // 2 if rng.random() < 0.3 else 0
        used = {"prompt": prompt - cached, "cached_prompt": cached, "completion": completion}
        self._settle(
            key_id,
            held,
            tries=tries,
            status=200,
            model=model,
            tokens=used,
            latency_ms=latency_ms,
            bytes_out=completion * 5,
        )

    def _authorize(self, key_id: str, method: str, path: str, **estimate: Any) -> str | None:
        """Return the id of the hold, or None when the gate refused."""
        stated = {name: value for name, value in estimate.items() if value is not None}
        secret = self._secrets.get(key_id, "tk_made_up_by_somebody")
        answer = self._api.send(
            "POST", "/authorize", {"key": secret, "method": method, "path": path, **stated}
        )
        if answer.status == 200:
            hold_id: str = answer.body["hold_id"]
            return hold_id
        self.tally.refuse(key_id, answer)
        return None

    def _settle(self, key_id: str, hold_id: str, *, tries: int = 1, **outcome: Any) -> None:
        for _ in range(tries):
            self._api.get("POST", "/settle", {"hold_id": hold_id, **outcome})
        self.tally.settle(key_id)

    def _until_over(self, numbers: Iterable[int]) -> Iterable[int]:
        for number in numbers:
            if self._stopped() or time.monotonic() > self._ends_at:
                return
            yield number


def _batch_lines(count: int) -> list[bytes]:
    rng = random.Random(count)
    now = datetime.now(UTC)
    return [
        msgspec.json.encode(
            {
                "id": f"batch-{number:05d}",
                "time": to_text(now - timedelta(seconds=rng.randrange(86_400))),
                "key_id": "nightly-batch",
                "method": "POST",
                "route": "/v1/chat/completions",
                "kind": "completion",
                "status": 200,
                "latency_ms": round(rng.lognormvariate(6.5, 0.4), 1),
                "model": CHEAP,
                "tokens": {
                    "prompt": int(rng.lognormvariate(6.9, 0.5)) + 1,
                    "completion": int(rng.lognormvariate(4.6, 0.6)) + 1,
                },
                "tags": {"job": rng.choice(["summaries", "labels"])},
            }
        )
        for number in range(count)
    ]
