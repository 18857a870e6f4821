"""
The command line and a running owner of a data directory: `apply`, `keys`, `usage` and `verify` work through the socket
in it, without a key, for the same user only; it is there as long as the owner is.
"""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Install
from tests.installation.test_forks import in_child
from tollkeeper import Tollkeeper
from tollkeeper.cli.app import run
from tollkeeper.http import control as control_room
from tollkeeper.http.control import ControlSocket, open_control
from tollkeeper.http.unix_socket import CONTROL_SOCKET, connect
from tollkeeper.installation import Installation
from tollkeeper.testing import unique

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.delenv("TOLLKEEPER_URL", raising=False)

    def cli(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return cli


def controlled(site: Installation) -> Iterator[ControlSocket]:
    control = open_control(site)
    assert isinstance(control, ControlSocket)
    yield control
    control.close()


@pytest.fixture
def control(site: Installation) -> Iterator[ControlSocket]:
    yield from controlled(site)


def test_commands_work_while_an_application_has_the_directory(
    control: ControlSocket, site: Installation, cli: Cli, tmp_path: Path
) -> None:
    """S11: set up, use, ask and check, without stopping anything and without a key."""
    data, account, key_id = site.settings.data_dir, unique("acct"), unique("key")
    file = tmp_path / "catalog.toml"
    file.write_text(
        f'[[accounts]]\nid = "{account}"\nname = "Acme"\n[[keys]]\nid = "{key_id}"\naccount = "{account}"\n'
        f'[[routes]]\nid = "{unique("route")}"\nmethod = "GET"\npath = "/v1/ping"\nprice_nanos = 250_000_000\n'
    )
    code, out, err = cli("apply", str(file), "--data", data, "--json")
    assert (code, err) == (0, "")
    secret = json.loads(out)["issued"][0]["secret"]
    toll = Tollkeeper(site)
    admission: Any = toll.admit(secret, "GET", "/v1/ping")
    toll.settle(admission, wait=True)
    code, out, err = cli("usage", "--account", account, "--group-by", "key", "--data", data, "--json")
    assert (code, err) == (0, "")
    assert [(row["key"], row["requests"]) for row in json.loads(out)["rows"]] == [(key_id, 1)]
    assert cli("keys", "deactivate", key_id, "--data", data)[0] == 0
    assert toll.admit(secret, "GET", "/v1/ping").reason == "key_inactive"  # type: ignore[union-attr]
    code, out, _ = cli("verify", "--data", data, "--json")
    assert (code, json.loads(out)["ok"]) == (0, True)
    code, _, err = cli("accounts", "show", "nobody", "--data", data)
    assert (code, "there is no such entry" in err) == (1, True)


def test_only_this_user_may_connect(
    control: ControlSocket, site: Installation, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stat.S_IMODE(control.path.stat().st_mode) == 0o600
    monkeypatch.setattr(control_room.os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(control_room, "_may_call", _as_other_user(control_room._may_call))
    code, _, err = cli("accounts", "list", "--data", site.settings.data_dir)
    assert (code, "cannot be reached" in err or "broke off" in err) == (1, True)


def _as_other_user(may_call: Callable[[socket.socket], bool]) -> Callable[[socket.socket], bool]:
    """The tests may run as root, who may call anybody's: the peer then has another user's number."""

    class Peer:
        def __init__(self, connection: socket.socket) -> None:
            self._connection = connection

        def getsockopt(self, *of: Any) -> bytes:
            pid, uid, gid = (
                int.from_bytes(self._connection.getsockopt(*of)[n : n + 4], "little") for n in (0, 4, 8)
            )
            return b"".join(n.to_bytes(4, "little") for n in (pid, uid or 12_345, gid))

    return lambda connection: may_call(Peer(connection))  # type: ignore[arg-type]


def test_what_a_caller_sends_as_a_credential_does_not_matter(control: ControlSocket) -> None:
    with connect(control.path, 5) as connection:
        connection.sendall(b"GET /tk/v1/accounts HTTP/1.1\r\nHost: x\r\nX-API-Key: tk_none\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert control.secret.encode() not in answer


def test_the_socket_is_gone_when_the_owner_is(site: Installation, cli: Cli) -> None:
    control = open_control(site)
    path = Path(site.settings.data_dir) / CONTROL_SOCKET
    assert path.is_socket()
    control.close()
    control.close()
    assert not path.exists()
    code, _, err = cli("accounts", "list", "--data", site.settings.data_dir)
    assert (code, "is in use by process" in err) == (1, True)


def test_a_socket_that_a_killed_process_left_is_replaced(site: Installation, cli: Cli) -> None:
    path = Path(site.settings.data_dir) / CONTROL_SOCKET
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert path.is_socket()
    for _ in controlled(site):
        assert cli("accounts", "list", "--data", site.settings.data_dir)[0] == 0
    assert not path.exists()


def test_a_file_of_another_kind_stays_and_the_owner_works_without(
    site: Installation, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(site.settings.data_dir) / CONTROL_SOCKET
    path.write_text("mine")
    control = open_control(site)
    assert not isinstance(control, ControlSocket)
    control.close()
    assert path.read_text() == "mine"
    assert "commands cannot reach this process" in caplog.records[-1].reason  # type: ignore[attr-defined]


def test_a_path_longer_than_an_address_works(install: Install, cli: Cli) -> None:
    site = install("d" * 100 + "/" + "e" * 100)
    for control in controlled(site):
        assert len(str(control.path)) > 200
        assert stat.S_IMODE(control.path.stat().st_mode) == 0o600
        assert cli("accounts", "list", "--data", site.settings.data_dir)[0] == 0


def test_a_forked_child_keeps_no_socket_on_which_callers_would_wait(
    control: ControlSocket, site: Installation
) -> None:
    """Nor does it remove the parent's, when it closes what it inherited."""

    def child() -> None:
        assert control._socket.fileno() == -1
        control.close()

    in_child(child)
    connect(control.path, 5).close()
