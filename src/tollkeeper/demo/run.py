"""Runs the demonstration: one installation, its server, the traffic, the story."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tollkeeper.console.output import stdout
from tollkeeper.console.program import program
from tollkeeper.console.server_defaults import HOST, OPERATOR_KEY_VARIABLE, PORT
from tollkeeper.demo.client import ApiClient
from tollkeeper.demo.declaration import DECLARATION
from tollkeeper.demo.dialect import DialectStory
from tollkeeper.demo.story import commands, commands_on_data, page_lines, tell
from tollkeeper.demo.traffic import Traffic
from tollkeeper.errors import Conflict
from tollkeeper.profiles import load as load_profile
from tollkeeper.profiles.base import Profile
from tollkeeper.settings import load

DIRECTORY_PREFIX: Final = "tollkeeper-demo-"
_KEY_WIDTH: Final = 16
"""Of the longest key id."""


def run_demo(data: str | None, port: int | None, *, stay: bool, profile: str | None = None) -> bool:
    """
    Run the demonstration and return whether everything agreed in the end.

    Args:
        data: A directory that is empty or not there yet; a fresh one of the system's when None.
        port: Where to serve; when None, the usual port or, if that is taken, any.
        stay: Go on serving until SIGINT or SIGTERM.
        profile: The dialect to show, served at the root; the two customers of `demo.declaration` when None.

    Raises:
        Conflict: *data* holds something.
        Unavailable: The port is taken, the directory cannot be written, or the server does not answer.
    """
    from tollkeeper.http.server import ensure_operator_key, serve, trim_memory
    from tollkeeper.installation import build

    data_dir = _directory(data)
    port = _free_port() if port is None else port
    spoken = {} if profile is None else {"root_profile": profile, "profiles": profile}
    # Nothing of the environment: it may name the ledger of a real installation.
    settings = load({"data_dir": data_dir, **spoken}, environ={})
    installation = build(settings, trim_memory=trim_memory)
    try:
        given = os.environ.get(OPERATOR_KEY_VARIABLE)
        operator_key = ensure_operator_key(installation, given) or given
        assert operator_key is not None  # The directory is new: without one given, one was made.
        demo = _Demo(data_dir, port, operator_key, stay=stay, profile=profile)
        serve(installation, host=HOST, port=port, ready=demo.ready, until=demo.run)
    finally:
        installation.close()
    print("Stopped; everything acknowledged is stored.", flush=True)
    return demo.agreed


class _Demo:
    """What runs beside the server, in a thread of its own."""

    def __init__(
        self, data_dir: str, port: int, operator_key: str, *, stay: bool, profile: str | None
    ) -> None:
        self.agreed = False
        self._data_dir = data_dir
        self._port = port
        self._operator_key = operator_key
        self._stay = stay
        self._profile = profile
        self._stop = threading.Event()
        self._url = ""
        self._logins = {"the operator": operator_key}

    def ready(self, url: str) -> None:
        """Note where the server is; called on its loop once it accepts connections."""
        self._url = url
        # In place of the server's own: a signal ends `run`, and that ends the server, so that nothing is
        # cut off in the middle of a call.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop.set)

    def run(self) -> None:
        api = ApiClient(HOST, self._port, self._operator_key)
        try:
            # On a busy machine the usage store opens after the first calls; those that need it would be refused.
            api.await_ready()
            self._run(api)
        finally:
            api.close()

    def _run(self, api: ApiClient) -> None:
        console = stdout()
        console.print(f"Tollkeeper serves {self._url} on {self._data_dir}\n", soft_wrap=True)
        if self._profile is not None:
            self._show_dialect(api, load_profile(self._profile))
        else:
            self._show_customers(api)
        print(flush=True)
        if self._stay and not self._stop.is_set():
            self._print(page_lines(self._url, self._logins))
            print("Serving until Ctrl-C.", flush=True)
            self._stop.wait()

    def _show_dialect(self, api: ApiClient, profile: Profile) -> None:
        story = DialectStory(api, profile, say=print, stopped=self._stop.is_set)
        story.run()
        if self._stop.is_set():
            return
        self.agreed = story.tell(self._url)
        if not self._stay:
            self._print(
                [
                    "# The server has stopped; its data is kept. To serve it again, and then call it as above:",
                    f"{program()} serve --data {shlex.quote(self._data_dir)} --port {self._port} "
                    f"--root-profile {profile.name} --profiles {profile.name}",
                ]
            )

    def _show_customers(self, api: ApiClient) -> None:
        applied = api.get("POST", "/apply", DECLARATION.encode(), media_type="application/toml")
        secrets = {issued["entry"]["id"]: issued["secret"] for issued in applied["issued"]}
        print(
            f"Set up {len(applied['changes'])} entries: two accounts, plans, keys, budgets, credit, routes."
        )
        print("Now their traffic, through the gate over HTTP:\n", flush=True)
        traffic = Traffic(api, secrets, say=_say, stopped=self._stop.is_set)
        tally = traffic.run()
        if self._stop.is_set():
            return
        self.agreed = tell(api, tally)
        self._logins |= {
            "a customer, Northwind": secrets["northwind-admin"],
            "one of its keys": secrets["assistant-live"],
        }
        print()
        if not self._stay:
            directory = shlex.quote(self._data_dir)
            self._print(commands_on_data(directory, self._port))
        self._print(commands(self._url, self._operator_key, secrets))

    def _print(self, lines: Iterable[str]) -> None:
        console = stdout()
        for line in lines:
            console.print(line, soft_wrap=True, style=_style(line))


def _say(key_id: str, line: str) -> None:
    from rich.table import Table

    row = Table.grid(padding=(0, 1))
    row.add_column(min_width=_KEY_WIDTH)
    row.add_column()
    row.add_row(key_id, line)
    stdout().print(row)
    sys.stdout.flush()


def _style(line: str) -> str:
    return "bold" if line.startswith("#") else ""


def _directory(data: str | None) -> str:
    if data is None:
        return tempfile.mkdtemp(prefix=DIRECTORY_PREFIX)
    path = Path(data)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise Conflict(f"{data} is not empty: name another directory, or remove it. The demo starts afresh.")
    return data


def _free_port() -> int:
    """Return the usual port, or any that is free."""
    for port in (PORT, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            number: int = probe.getsockname()[1]
            return number
    return PORT  # Nothing is free: the server says so.
