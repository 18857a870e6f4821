"""Real servers with four worker processes each: exactly as many requests pass between them as the budget has."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.end_to_end.server import OPERATOR_KEY, Server, running_server
from tests.remote.conftest import place_on, verified
from tests.remote.test_client import wait_for

WORKERS = 4
BUDGET = 60
REQUESTS = 100
START_S_MAX = 60
ROOT = Path(__file__).resolve().parents[2]
APP = "tests.stacks.worker_app:app"

SERVERS = {
    "uvicorn": ["uvicorn", APP, "--port", "{port}", "--workers", str(WORKERS)],
    "gunicorn": [
        *("gunicorn", APP, "-b", "127.0.0.1:{port}", "-w", str(WORKERS)),
        *("-k", "uvicorn.workers.UvicornWorker"),
    ],
    "gunicorn --preload": [
        *("gunicorn", APP, "-b", "127.0.0.1:{port}", "-w", str(WORKERS), "--preload"),
        *("-k", "uvicorn.workers.UvicornWorker"),
    ],
    "granian": ["granian", APP, "--interface", "asgi", "--port", "{port}", "--workers", str(WORKERS)],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("workers")
    with running_server(directory / "data", "--uds", str(directory / "s")) as server:
        server.socket = f"unix:{directory / 's'}"  # type: ignore[attr-defined]
        yield server


def answer(url: str, secret: str = "") -> tuple[int, str]:
    """Return status and body of one request on a connection of its own, which any worker may take."""
    request = urllib.request.Request(url, method="POST", headers={"Authorization": f"Bearer {secret}"})
    try:
        with urllib.request.urlopen(request, timeout=START_S_MAX) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read().decode()
    except OSError:
        return 0, ""


@pytest.mark.drawn(2)
@pytest.mark.parametrize("name", SERVERS)
def test_exactly_the_budget_passes_between_the_workers(server, name):
    place = place_on(server, server.socket, name.replace(" --", "-"), budget=BUDGET)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *(part.format(port=port) for part in SERVERS[name])]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TOLL_URL": server.socket, "TOLL_KEY": OPERATOR_KEY},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        workers: set[str] = set()
        until = time.monotonic() + START_S_MAX
        with ThreadPoolExecutor(WORKERS * 2) as threads:
            while len(workers) < WORKERS:
                assert time.monotonic() < until, f"only {workers} answer"
                found = threads.map(answer, [url + "/who"] * WORKERS * 4)
                workers |= {body for status, body in found if status == 200}
            answers = list(threads.map(answer, [url + "/chat"] * REQUESTS, [place.secret] * REQUESTS))
        statuses = Counter(status for status, _ in answers)
        assert statuses == {200: BUDGET, 402: REQUESTS - BUDGET}
        assert len({body for status, body in answers if status == 200}) > 1, "one worker served all"
        wait_for(lambda: place.totals()["requests"] == REQUESTS)
        assert place.totals()["denied"] == REQUESTS - BUDGET
        assert verified(server)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
