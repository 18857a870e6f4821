"""Each answered request is in the latencies of the metrics and, where it is on, in the access log; no secret is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.conftest import OPERATOR_KEY, Api
from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.clock import SystemClock
from tollkeeper.http.app import App, build_app
from tollkeeper.http.observed import BOUNDS_S, Latencies, Observed, Observer
from tollkeeper.http.server import ensure_operator_key
from tollkeeper.testing import installation


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory, usage_store: ClickHouseUsageStore) -> Iterator[Api]:
    directory = tmp_path_factory.mktemp("observed")
    with installation(
        directory,
        clock=SystemClock(),
        store=usage_store,
        access_log=True,
        client_address_header="x-forwarded-for",
    ) as site:
        ensure_operator_key(site, OPERATOR_KEY)
        app = build_app(site)
        yield Api(app)
        app.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if record.name == "tollkeeper.access"]


@pytest.mark.parametrize(
    ("method", "path", "call", "status"),
    [
        ("GET", "/healthz", "health", 200),
        ("HEAD", "/healthz/", "health", 200),
        ("POST", "/tk/v1/authorize", "authorize", 400),
        ("POST", "/tk/v1/settle", "settle", 400),
        ("POST", "/tk/v1/events", "events", 400),
        ("GET", "/tk/v1/usage", "usage", 400),
        ("GET", "/tk/v1/accounts", "management", 400),
        ("GET", "/regsn/v1/usage", "regsn", 401),
        ("GET", "/nothing/at/all", "other", 404),
        ("OPTIONS", "/tk/v1/usage", "usage", 204),
    ],
)
def test_a_request_has_one_line_and_one_count(
    method: str, path: str, call: str, status: int, logged: Api, caplog: pytest.LogCaptureFixture
) -> None:
    before = count_of(logged, call, status)
    with caplog.at_level(logging.INFO, "tollkeeper.access"):
        found = logged(method, f"{path}?secret=in-the-query", content=b"{" if method == "POST" else None)
    (line,) = lines(caplog)
    assert found.status_code == status
    assert {name: line[name] for name in ("method", "path", "status", "call", "request_id")} == {
        "method": method,
        "path": path,
        "status": status,
        "call": call,
        "request_id": found.headers["x-request-id"],
    }
    assert line["bytes"] == (0 if method == "HEAD" else len(found.content))
    assert line["ms"] > 0
    assert "in-the-query" not in str(line)
    assert OPERATOR_KEY not in str({name: value for name, value in line.items() if name != "scope"})
    assert count_of(logged, call, status) == before + 1


def test_the_client_is_the_one_that_the_proxy_names(logged: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tollkeeper.access"):
        logged("GET", "/healthz", headers={"X-Forwarded-For": "6.6.6.6, 203.0.113.9"}, peer="127.0.0.1")
        logged("GET", "/healthz", peer="198.51.100.7")
    assert [line["client"] for line in lines(caplog)] == ["203.0.113.9", "198.51.100.7"]


def test_without_the_setting_nothing_is_logged(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tollkeeper.access"):
        api("GET", "/healthz")
    assert lines(caplog) == []


def test_a_caller_who_hangs_up_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was sent, and the answer was cancelled."""

    class Cancelled(App):
        def __init__(self) -> None:
            self._observer = Observer(access_log=True)

        async def _serve_http(self, *_: object) -> str:
            raise asyncio.CancelledError

    app = Cancelled()
    scope = {"type": "http", "method": "GET", "path": "/tk/v1/usage", "headers": []}

    async def nothing(*_: object) -> Any:
        raise AssertionError

    with caplog.at_level(logging.INFO, "tollkeeper.access"), pytest.raises(asyncio.CancelledError):
        asyncio.run(app(scope, nothing, nothing))
    assert [line["status"] for line in lines(caplog)] == [499]


def test_the_buckets_are_cumulative_and_end_with_the_count() -> None:
    latencies = Latencies()
    for seconds in (0.0005, 0.001, 0.0011, 31.0):
        latencies.add("usage", 200, seconds)
    latencies.add("usage", 503, 0.2)
    found = {
        (labels["status"], suffix, labels.get("le")): value for labels, value, suffix in latencies.samples()
    }
    assert found["2xx", "_bucket", "0.001"] == 2
    assert found["2xx", "_bucket", "0.0025"] == 3
    assert found["2xx", "_bucket", str(BOUNDS_S[-1])] == 3
    assert found["2xx", "_bucket", "+Inf"] == found["2xx", "_count", None] == 4
    assert found["2xx", "_sum", None] == pytest.approx(31.0026)
    assert found["5xx", "_count", None] == 1


def test_an_answer_is_passed_on_as_it_is() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def answer() -> Observed:
        observed = Observed({}, send)
        await observed.send(start)
        await observed.send(part)
        return observed

    start = {"type": "http.response.start", "status": 206, "headers": [(b"x-request-id", b"req_1")]}
    part = {"type": "http.response.body", "body": b"abc", "more_body": True}
    observed = asyncio.run(answer())
    assert sent == [start, part]
    assert (observed.status, observed.request_id, observed.sent_bytes) == (206, "req_1", 3)


def count_of(api: Api, call: str, status: int) -> float:
    samples = api.app._observer.latencies.samples()
    return sum(
        value
        for labels, value, suffix in samples
        if suffix == "_count" and (labels["call"], labels["status"]) == (call, f"{status // 100}xx")
    )
