"""File handles: connections that say nothing take none that the stores need."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from tests.end_to_end.server import OPERATOR_KEY, running_server
from tollkeeper.http.problems import to_problem
from tollkeeper.http.server import connections_max

HANDLES: Final = 600
SILENT: Final = 700


@pytest.mark.parametrize(
    ("limit", "connections"), [(128, 64), (600, 300), (1024, 624), (20_000, 10_000), (2**63, 10_000)]
)
def test_connections_leave_handles_to_the_stores(limit: int, connections: int) -> None:
    assert connections_max(limit) == connections


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_call_that_finds_no_handle_may_be_repeated(number: int) -> None:
    for error in (OSError(number, "too many"), RuntimeError("cannot do it")):
        if isinstance(error, RuntimeError):
            error.__cause__ = OSError(number, "too many")
        problem = to_problem(error, instance="/tk/v1/events", request_id="req_1")
        assert (problem.status, problem.body["code"], problem.body["retryable"]) == (503, "unavailable", True)
        assert problem.headers["Retry-After"]


def test_silent_connections_starve_no_store(tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(running_server(tmp_path / "data", handles=HANDLES))
        address = urlsplit(server.url)
        assert address.hostname is not None
        assert address.port is not None
        taken = stack.enter_context(kept_connection(address.hostname, address.port))
        for _ in range(SILENT):
            stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=60))
        for number in range(3):
            event = {"id": f"e{number}", "account": "acme", "cost_nanos": 1, "time": "2026-03-18T12:00:00Z"}
            assert asked(taken, "POST", "/tk/v1/events", event) == 200
            assert asked(taken, "GET", "/tk/v1/usage") == 200
            assert asked(taken, "GET", "/readyz") == 200


@contextmanager
def kept_connection(host: str, port: int) -> Iterator[HTTPConnection]:
    connection = HTTPConnection(host, port, timeout=60)
    try:
        assert asked(connection, "PUT", "/tk/v1/accounts/acme", {"name": "Acme"}) == 201
        yield connection
    finally:
        connection.close()


def asked(connection: HTTPConnection, method: str, path: str, body: object = None) -> int:
    headers = {"Authorization": f"Bearer {OPERATOR_KEY}", "Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status
