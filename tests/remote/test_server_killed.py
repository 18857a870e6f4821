"""The server is killed and started again, or gone, while clients work: nothing is counted twice, nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.end_to_end.server import OPERATOR_KEY, Server
from tests.remote.conftest import PRICE_NANOS, place_on, verified
from tests.remote.test_client import wait_for
from tollkeeper import Denial
from tollkeeper.errors import BadParameter, Unavailable
from tollkeeper.http.unix_socket import claim
from tollkeeper.remote import Tollkeeper

CLIENTS = 4
SOCKET = "s"


def started(directory: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a server that listens on a socket in *directory*; return it with its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tollkeeper", "serve", "--data", str(directory / "data")),
            *("--port", str(port), "--uds", str(directory / SOCKET)),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TOLLKEEPER_OPERATOR_KEY": OPERATOR_KEY},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            return process, f"http://127.0.0.1:{port}"
    raise AssertionError(f"the server did not start: {process.wait()}")


def test_a_server_that_is_killed_in_the_midst_counts_each_request_once(tmp_path):
    """Every settlement that was delivered, at once or after the restart, is in counter, ledger and events once."""
    process, url = started(tmp_path)
    place = place_on(Server(process, url), url, "acme", budget=100_000)  # type: ignore[arg-type]
    done = threading.Event()
    settled: list[str] = []
    kept: list[str] = []
    refused = []
    toll = Tollkeeper(f"unix:{tmp_path / SOCKET}", key=OPERATOR_KEY, timeout_s=1)

    def work() -> None:
        while not done.is_set():
            found = toll.admit(place.secret, "POST", "/chat")
            if isinstance(found, Denial):
                refused.append(found.reason)
                continue
            try:
                toll.settle(found)
                settled.append(found.id)
            except Unavailable:
                kept.append(found.id)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(settled) > 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: refused)
    process, url = started(tmp_path)
    try:
        before = len(settled)
        wait_for(lambda: len(settled) > before + 20)
        done.set()
        for thread in threads:
            thread.join()
        wait_for(lambda: not toll.undelivered_count)
        toll.close()
        assert toll.lost_count == 0
        assert set(refused) == {"unavailable"}
        place = place._replace(server=Server(process, url), url=url)  # type: ignore[arg-type]
        ids = settled + kept
        assert len(set(ids)) == len(ids)
        totals = place.totals()
        assert (totals["requests"], totals["cost_nanos"]) == (len(ids), len(ids) * PRICE_NANOS)
        # Holds that only a killed try knew are voided; the counter has what was booked.
        wait_for(lambda: place.used() == len(ids))
        assert verified(place.server)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert not (tmp_path / SOCKET).exists(), "a server that stops removes its socket"


def test_the_socket_is_private_and_has_one_server(server, tmp_path):
    path = Path(server.socket.removeprefix("unix:"))
    assert path.stat().st_mode & 0o777 == 0o600
    command = [sys.executable, "-m", "tollkeeper", "serve", "--data", str(tmp_path), "--uds", str(path)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1
    assert "Another server listens on" in second.stderr
    assert not list(tmp_path.iterdir()), "it is refused before it makes an installation"
    # TCP is served beside it.
    assert server.call("GET", "/readyz")
    with Tollkeeper(server.socket, key=OPERATOR_KEY) as toll:
        assert toll.admit("nobody", "POST", "/chat").reason == "key_unknown"


@pytest.mark.parametrize(
    ("path", "error", "says"),
    [
        ("file", Unavailable, "is no socket"),
        ("no/such/directory/s", BadParameter, "must be in a directory that exists"),
        ("x" * 120, BadParameter, "at most 107 bytes"),
    ],
)
def test_a_path_that_cannot_be_a_socket_is_refused(tmp_path, path, error, says):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(error, match=says):
        claim(tmp_path / path)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_file_of_a_server_that_is_gone_is_removed(tmp_path):
    path = tmp_path / SOCKET
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    assert claim(path) == path
    assert not path.exists()
