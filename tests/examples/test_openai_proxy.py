"""
The OpenAI-compatible proxy of `examples/`, before an upstream in memory that streams one token a chunk, as OpenAI does.

Every answer costs exactly what its tokens cost: whole, cut by the budget, cut by the client, or cut by the upstream.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.conftest import Install
from tests.http.body_place import MODEL, Place
from tollkeeper import Tollkeeper
from tollkeeper.testing import set_up, unique

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
LINES_MAX: Final = 60
PROMPT_NANOS, COMPLETION_NANOS = 2, 10
CHAT: Final = {"model": MODEL, "messages": [{"role": "user", "content": "Count."}]}


class Upstream:
    """
    A provider: it streams as many tokens as it is asked for, and counts the prompt as the proxy does.

    Attributes:
        dies_after: It breaks the connection after so many tokens.
        ended: Streams that were read to their end, or closed.
        prompt_tokens: What it counts for a prompt; one a byte of the body that the client sent unless given.
    """

    def __init__(self) -> None:
        self.tokens = 10
        self.dies_after: int | None = None
        self.ended = 0
        self.status = 200
        self.prompt_tokens: int | None = None
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        assert request.headers["authorization"] == "Bearer sk-upstream"
        if self.status == 0:
            raise httpx.ConnectError("no route to the provider")
        if self.status != 200:
            return httpx.Response(self.status, json={"error": {"message": "overloaded"}})
        if body.get("stream"):
            return httpx.Response(200, content=self._stream(body))
        tokens = min(self.tokens, body["max_completion_tokens"])
        choice = {"index": 0, "message": {"role": "assistant", "content": "t" * tokens}}
        return httpx.Response(200, json={"choices": [choice], "usage": self._usage(body, tokens)})

    async def _stream(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        try:
            yield _event({"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": None})
            for n in range(self.tokens):
                if n == self.dies_after:
                    raise httpx.ReadError("the provider is gone")
                yield _event({"choices": [{"delta": {"content": "t"}}], "usage": None})
                await asyncio.sleep(0)
            yield _event({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None})
            assert body["stream_options"] == {"include_usage": True}
            yield _event({"choices": [], "usage": self._usage(body, self.tokens)})
            yield b"data: [DONE]\n\n"
        finally:
            self.ended += 1

    def _usage(self, body: dict[str, Any], tokens: int) -> dict[str, int]:
        prompt = prompt_tokens(body) if self.prompt_tokens is None else self.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def prompt_tokens(body: dict[str, Any]) -> int:
    """Return the tokens of a prompt at one a byte of what the client sent, as the proxy holds it."""
    ours = ("max_completion_tokens",) if not body.get("stream") else ("stream_options",)
    return len(json.dumps({name: value for name, value in body.items() if name not in ours}))


def _event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


class Proxy(Place):
    """The example behind the gate of a test's installation."""

    def __init__(self, app: Any, upstream: Upstream, place: Place) -> None:
        self.app = app
        self.upstream = upstream
        self.place = place

    async def ask(self, **body: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://proxy") as client:
            return await client.post(
                "/v1/chat/completions",
                json={**CHAT, **body},
                headers={"Authorization": f"Bearer {self.place.secret}"},
            )

    def costs(self) -> list[int]:
        return [record.cost_nanos for record in self.place.booked()]


@pytest.fixture
def proxy(install: Install, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-upstream")
    place = Place(install(), amount=100_000, under_way=50)
    set_up(place.site, _route())
    monkeypatch.setattr(Tollkeeper, "open", lambda *_: place.toll)
    spec = importlib.util.spec_from_file_location("openai_proxy", EXAMPLES / "openai_proxy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    upstream = Upstream()
    kept = module.upstream
    module.upstream = httpx.AsyncClient(
        transport=httpx.MockTransport(upstream), base_url=kept.base_url, headers=kept.headers
    )
    return Proxy(module.app, upstream, place)


def _route() -> Any:
    from tollkeeper.domain.catalog import Route

    return Route(id=unique("openai"), method="POST", path="/v1/chat/completions")


def with_budget(proxy: Proxy, amount: int) -> None:
    from tollkeeper.domain.catalog import Budget

    set_up(proxy.place.site, Budget(id="month", account=proxy.place.account, amount=amount))


def cost(prompt: int, completion: int) -> int:
    return prompt * PROMPT_NANOS + completion * COMPLETION_NANOS


PROMPT: Final = len(json.dumps(CHAT))
STREAMED: Final = len(json.dumps({**CHAT, "stream": True}))


def tokens_of(answer: httpx.Response) -> tuple[int, Any]:
    """Return how many tokens a stream has, and its last event before the end."""
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    count = sum(c["delta"].get("content") == "t" for event in events for c in event.get("choices", ()))
    return count, events[-1]


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_examples_are_short(name: str) -> None:
    """One page each, so that they are read."""
    assert len((EXAMPLES / name).read_text().splitlines()) <= LINES_MAX


def test_an_answer_costs_what_its_tokens_cost(proxy: Proxy) -> None:
    """The maximum is held, whether the request states one or not; the upstream's counts are booked."""
    proxy.upstream.tokens = 7
    proxy.upstream.prompt_tokens = 20
    for stated in ({}, {"max_tokens": 50}, {"max_completion_tokens": 50}, {"max_tokens": None, "n": None}):
        answer = asyncio.run(proxy.ask(**stated))
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 7
    assert [body["max_completion_tokens"] for body in proxy.upstream.bodies] == [4096, 50, 50, 4096]
    assert proxy.costs() == [cost(20, 7)] * 4


def test_a_stream_costs_what_its_tokens_cost(proxy: Proxy) -> None:
    """More than one step; the usage that only the proxy asked for is not sent on."""
    proxy.upstream.tokens = 120
    answer = asyncio.run(proxy.ask(stream=True))
    count, last = tokens_of(answer)
    assert count == 120
    assert last["choices"][0]["finish_reason"] == "stop"
    assert proxy.costs() == [cost(STREAMED, 120)]
    answer = asyncio.run(proxy.ask(stream=True, stream_options={"include_usage": True}))
    assert tokens_of(answer)[1]["usage"]["completion_tokens"] == 120


def test_a_stream_is_cut_at_the_last_paid_token_with_the_reason(proxy: Proxy) -> None:
    """The account pays its budget to the last token, and no more; the upstream is told to stop."""
    proxy.upstream.tokens = 1_000
    with_budget(proxy, cost(STREAMED, 77) + 9)
    answer = asyncio.run(proxy.ask(stream=True))
    count, last = tokens_of(answer)
    assert count == 77
    assert last["error"]["code"] == "budget_exhausted"
    assert "month" in last["error"]["message"]
    assert proxy.upstream.ended == 1
    (record,) = proxy.place.booked()
    assert (record.cost_nanos, record.status, record.error_type) == (
        cost(STREAMED, 77),
        200,
        "budget_exhausted",
    )


def test_n_streams_share_a_budget_to_the_last_token(proxy: Proxy) -> None:
    """Each completes, is cut or is refused; together they pay the budget, and nothing beyond it."""
    proxy.upstream.tokens = 50
    budget = cost(STREAMED, 50) * 5
    with_budget(proxy, budget)

    async def all_of_them() -> list[httpx.Response]:
        return list(await asyncio.gather(*[proxy.ask(stream=True) for _ in range(12)]))

    answers = asyncio.run(all_of_them())
    begun = [tokens_of(answer) for answer in answers if answer.status_code == 200]
    assert all((count == 50) == ("error" not in last) for count, last in begun)
    costs = proxy.costs()
    assert sorted(costs) == sorted([0] * (12 - len(begun)) + [cost(STREAMED, count) for count, _ in begun])
    assert budget - COMPLETION_NANOS < sum(costs) <= budget


def test_exactly_as_many_answers_complete_as_the_budget_pays_for(proxy: Proxy) -> None:
    """An answer that is not streamed is held whole before the upstream is called."""
    whole = {**CHAT, "max_tokens": 50}
    proxy.upstream.tokens, proxy.upstream.prompt_tokens = 50, len(json.dumps(whole))
    each = cost(proxy.upstream.prompt_tokens, 50)
    with_budget(proxy, each * 6 - 1)

    async def all_of_them() -> list[httpx.Response]:
        return list(await asyncio.gather(*[proxy.ask(max_tokens=50) for _ in range(12)]))

    statuses = [answer.status_code for answer in asyncio.run(all_of_them())]
    assert (statuses.count(200), statuses.count(402)) == (5, 7)
    assert len(proxy.upstream.bodies) == 5
    assert sorted(proxy.costs()) == [0] * 7 + [each] * 5


def test_a_request_that_does_not_fit_never_reaches_the_upstream(proxy: Proxy) -> None:
    """In the form of OpenAI's errors."""
    with_budget(proxy, 100)
    answer = asyncio.run(proxy.ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (402, "budget_exhausted")
    answer = asyncio.run(proxy.ask(model="gpt-nobody-knows"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "price_unknown")
    assert proxy.upstream.bodies == []
    assert [record.denied_reason for record in proxy.place.booked()] == ["budget_exhausted", "price_unknown"]


def test_an_upstream_that_dies_in_a_stream_is_booked_as_far_as_it_came(proxy: Proxy) -> None:
    """The client is told, and pays for the tokens that it got."""
    proxy.upstream.dies_after = 3
    answer = asyncio.run(proxy.ask(stream=True))
    count, last = tokens_of(answer)
    assert (count, last["error"]["code"]) == (3, "upstream_failed")
    (record,) = proxy.place.booked()
    assert (record.cost_nanos, record.error_type) == (cost(STREAMED, 3), "upstream_failed")


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("status", "told"), [(0, 502), (503, 503), (429, 429)])
@pytest.mark.parametrize("stream", [True, False])
def test_an_upstream_that_does_not_answer_costs_nothing(
    proxy: Proxy, status: int, told: int, stream: bool
) -> None:
    """Its own error is passed on."""
    proxy.upstream.status = status
    answer = asyncio.run(proxy.ask(stream=stream))
    assert answer.status_code == told
    assert "error" in answer.json()
    assert [(r.cost_nanos, r.status) for r in proxy.place.booked()] == [(0, told)]


def test_a_client_that_leaves_pays_for_what_it_got(proxy: Proxy) -> None:
    """The upstream is told to stop, and nothing stays held."""
    proxy.upstream.tokens = 100_000
    got = 0
    left = asyncio.Event()

    async def leave() -> None:
        sent_body = False

        async def receive() -> Any:
            nonlocal sent_body
            if not sent_body:
                sent_body = True
                return {"type": "http.request", "body": json.dumps({**CHAT, "stream": True}).encode()}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            nonlocal got
            if left.is_set():
                return
            got += message.get("body", b"").count(b'"t"')
            if got >= 33:
                left.set()

        scope = {
            "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
            "headers": [(b"authorization", b"Bearer " + proxy.place.secret.encode())],
        }  # fmt: skip
        await asyncio.wait_for(proxy.app(scope, receive, send), 20)

    asyncio.run(leave())
    (record,) = proxy.place.booked()
    paid = record.completion_tokens
    assert 33 <= paid <= 40
    assert record.cost_nanos == cost(STREAMED, paid)
    assert proxy.upstream.ended == 1
