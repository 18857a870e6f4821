"""A limiter around a Starlette app: slowapi, beside our middleware around the same app on the same server."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import load
from bench.fixture import directory, set_up
from bench.peers.comparison import Comparison, Found, Scale
from bench.processes import free_port, started
from bench.servers import serve_app

TITLE = "A limiter around an ASGI app"
PACKAGES = ("slowapi", "limits", "starlette", "granian")
SECONDS_MAX = 240
CONNECTIONS = 64
ROUNDS = 3
SETTINGS = """
* One Starlette app with one route that answers 11 bytes of JSON, on granian (one worker, embedded, uvloop),
  each variant in a process of its own; 64 keep-alive connections, 50 keys, the variants in turn, the median of
  3 rounds.
* slowapi: `SlowAPIASGIMiddleware`, memory storage, limits of 10⁹ per minute and per hour, by the
  `Authorization` header.
* Ours: key look-up, a limit per minute and one per hour, a budget, the request recorded with its status,
  latency and bytes. "Durable": the answer waits for the fsync. slowapi keeps two counts in memory and records
  nothing.
"""
VARIANTS = ("bare", "slowapi", "tollkeeper", "tollkeeper-async")


def run(scale: Scale) -> Found:
    with ExitStack() as stack:
        steps: dict[str, tuple[int, load.Step]] = {}
        for variant in VARIANTS:
            path, port = stack.enter_context(directory()), free_port()
            command = [sys.executable, "-m", "bench.peers.asgi_limiter", variant, str(port), str(path)]
            stack.enter_context(started(command, port, path))
            steps[variant] = port, _with_key(json.loads((path / "secrets.json").read_text()))
        runs: dict[str, list[load.Load]] = {variant: [] for variant in VARIANTS}
        for _ in range(ROUNDS):
            for variant, (port, step) in steps.items():
                runs[variant].append(load.run(port, [step], connections=CONNECTIONS, seconds=scale.seconds))
    assert not any(one.failures for many in runs.values() for one in many)

    def of(variant: str, what: Callable[[load.Load], float]) -> float:
        return statistics.median(map(what, runs[variant]))

    figures = []
    for variant, label in (("tollkeeper", "durable"), ("tollkeeper-async", "booked within ms")):
        for peer, name in (("slowapi", "slowapi"), ("bare", "the bare app")):
            baseline = peer == "bare"
            figures += [
                Comparison(
                    f"middleware, {label}: requests/s",
                    name,
                    of(peer, lambda one: one.steps_per_s),
                    of(variant, lambda one: one.steps_per_s),
                    "/s",
                    more=True,
                    baseline=baseline,
                ),
                Comparison(
                    f"middleware, {label}: p99",
                    name,
                    of(peer, lambda one: one.p99_ms),
                    of(variant, lambda one: one.p99_ms),
                    "ms",
                    baseline=baseline,
                ),
            ]
    return Found(figures)


def _with_key(secrets: list[str]) -> load.Step:
    requests = [load.request("GET", "/", Authorization=f"Bearer {secret}") for secret in secrets]
    return lambda number, answer: requests[number % len(requests)]


def _app() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def hello(request: Request) -> JSONResponse:
        return JSONResponse({"ok": True})

    return Starlette(routes=[Route("/", hello)])


def _serve(variant: str, port: int, path: Path) -> None:
    app = _app()
    secrets = path / "secrets.json"
    if variant in ("bare", "slowapi"):
        secrets.write_text(json.dumps([f"key-{number}" for number in range(50)]))
    if variant == "slowapi":
        from slowapi import Limiter
        from slowapi.middleware import SlowAPIASGIMiddleware

        app.state.limiter = Limiter(
            key_func=lambda request: request.headers.get("authorization", ""),
            default_limits=["1000000000/minute", "1000000000/hour"],
        )
        app.add_middleware(SlowAPIASGIMiddleware)
    if variant in ("bare", "slowapi"):
        serve_app(app, port)
        return
    from tollkeeper import Tollkeeper

    with Tollkeeper.open(str(path / "data")) as toll:
        secrets.write_text(json.dumps(set_up(toll)))
        toll.installation.store.ready() or toll.verify()
        serve_app(toll.middleware(app, durable=variant == "tollkeeper"), port)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
