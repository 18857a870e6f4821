"""A Flask app behind the gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, request, send_file

from tests.stacks.gated import BLOCK, FILE, PIECES, reaches, report, toll
from tollkeeper import Usage

app = Flask(__name__)
app.wsgi_app = toll.wsgi_middleware(app.wsgi_app, exempt={"/ops"})  # type: ignore[method-assign]


@app.before_request
def reached() -> None:
    reaches(request.path)


@app.get("/ops")
def ops() -> Any:
    return report()


@app.get("/v1/work")
@app.get("/v1/é b")
def work() -> Any:
    return {"path": request.path}


@app.get("/v1/file")
def file() -> Any:
    return send_file(FILE, mimetype="text/plain")


@app.get("/v1/boom")
def boom() -> Any:
    raise RuntimeError("boom")


@app.get("/v1/stream")
def stream() -> Any:
    metering = request.environ["tollkeeper.metering"]

    def pieces() -> Iterator[bytes]:
        for number, piece in enumerate(PIECES):
            yield piece
            metering.usage = Usage(cost_nanos=10 * (number + 1))

    return Response(pieces(), mimetype="text/event-stream")


@app.get("/v1/endless")
def endless() -> Any:
    metering = request.environ["tollkeeper.metering"]

    def pieces() -> Iterator[bytes]:
        sent = 0
        try:
            while True:
                sent += 1
                yield BLOCK
        finally:
            metering.usage = Usage(cost_nanos=sent)

    return Response(pieces(), mimetype="application/octet-stream")
