"""An account behind the middleware, whose requests state model and maximum in their handler."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tollkeeper import Tollkeeper
from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Route
from tollkeeper.domain.events import Record
from tollkeeper.domain.price_entries import Price
from tollkeeper.http.asgi_types import ASGIApp, Message
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_tasks import Settle
from tollkeeper.metering import Metering
from tollkeeper.testing import set_up, unique, verify

MODEL: Final = "m-1"
"""2 nanos per prompt token, 10 per completion token."""
START: Final = {"type": "http.response.start", "status": 200, "headers": []}
END: Final = {"type": "http.response.body", "body": b"ok"}

Handler = Callable[[Metering], Awaitable[None]]


class Place:
    """An account whose key may spend *amount* nanos a month, and have *open* requests under way."""

    def __init__(
        self, site: Installation, profile: str = "native", *, amount: int = 1_000, under_way: int = 3
    ) -> None:
        self.site = site
        self.account, self.key_id = unique("acct"), unique("key")
        self.toll = Tollkeeper(site)
        limits = [Limit(name="open", algorithm="concurrency", amount=under_way)]
        self.secret = set_up(
            site,
            Account(id=self.account, name="Acme"),
            Key(id=self.key_id, account=self.account, profile=profile, limits=limits),
            Budget(id="month", account=self.account, amount=amount),
            Route(id=f"{profile}-chat", method="POST", path="/v1/chat", profile=profile),
            Route(id=f"{profile}-ws", method="GET", path="/ws", profile=profile),
            Price(
                id=MODEL,
                model=MODEL,
                prompt_nanos_per_million=2_000_000,
                completion_nanos_per_million=10_000_000,
            ),
        )[self.key_id]
        self._booked: list[Record] = []
        submit = site.committer.submit

        def watched(task: Any) -> None:
            submit(task)
            if isinstance(task, Settle) and task.record.account_id == self.account:
                self._booked.append(task.record)

        site.committer.submit = watched  # type: ignore[method-assign]

    def held(self) -> tuple[int, int]:
        """Return what the budget counts, and how many requests are open."""
        gate, now_us = self.site.gate, self.site.clock.now_us()
        compiled_key = gate.compiled_key(self.secret)
        used = {status.name: status.used for status in gate.limit_statuses(compiled_key, now_us)}  # type: ignore[arg-type]
        return used["month"], used["open"]

    def booked(self) -> list[Record]:
        """Return what was booked, in order; counter, ledger and sum of events agree, and nothing is held."""
        assert verify(self.site).ok
        records = list(self._booked)
        assert self.held() == (sum(record.cost_nanos for record in records), 0)
        return records

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        given = self.secret.encode()
        return [(b"authorization", b"Bearer " + given), (b"x-api-key", given)]

    async def call(self, app: ASGIApp, **scope: Any) -> list[Message]:
        """Return what *app* sends for one request."""
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        is_socket = scope.get("type") == "websocket"

        async def receive() -> Message:
            return {"type": "websocket.connect"} if is_socket else {"type": "http.request", "body": b""}

        given = {"type": "http", "path": "/v1/chat", "query_string": b"", "headers": self.headers}
        await app({**given, **({} if is_socket else {"method": "POST"}), **scope}, receive, send)
        return sent


def app_of(handler: Handler) -> ASGIApp:
    """Return an ASGI app that runs *handler*, then answers."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await handler(scope["state"]["tollkeeper"])
        await send(START)
        await send(END)

    return app


def status_of(sent: list[Message]) -> int:
    """Return the status of an answer that was sent whole."""
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return int(sent[0]["status"])


def problem_of(sent: list[Message]) -> dict[str, Any]:
    """Return the problem document of a refusal."""
    found: dict[str, Any] = json.loads(sent[1]["body"])
    return found
