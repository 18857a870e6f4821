"""Runs the application on granian, in this process: one process owns the gate's memory."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from tollkeeper.collector import freeze_gc
from tollkeeper.domain.keys import OPERATOR_PREFIX, hash_secret, new_secret
from tollkeeper.errors import BadParameter, Unavailable
from tollkeeper.http import unix_socket
from tollkeeper.http.app import App, build_app
from tollkeeper.installation import Installation

OPERATOR_KEY_CHARS_MIN: Final = 20
_MALLOC: Final = ((-8, 2), (-3, 32 << 20), (-1, 64 << 20))
"""mallopt(3): M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in bytes. Smaller ones return memory sooner, and
make every batch fault its pages in again: half of the ingest speed."""

SWITCH_INTERVAL_S: Final = 0.0005
"""
How long a thread may keep Python's lock while another one waits for it, a tenth of Python's default.

A decision that becomes durable takes the lock many times, on three threads: each statement of the ledger gives it up
and takes it again. Beside one thread that computes (a batch, the rows of a report), each time is a wait of up to this
interval. A fifth of it helped no more.
"""

_HANDLES_RESERVED: Final = 400
"""File handles that connections leave to the stores, which open files as they read and merge."""
_CONNECTIONS_MAX: Final = 10_000

log = logging.getLogger("tollkeeper.server")


def ensure_operator_key(installation: Installation, given: str | None) -> str | None:
    """
    Make sure that there is an operator key; return a fresh secret to show once, or None.

    Args:
        given: The secret of `TOLLKEEPER_OPERATOR_KEY`; when set it is the operator key from now on.

    Raises:
        BadParameter: *given* does not begin with `ok_` or is too short to be safe.
    """
    keys = installation.operator_keys
    now_us = installation.clock.now_us()
    if given:
        if not given.startswith(OPERATOR_PREFIX) or len(given) < OPERATOR_KEY_CHARS_MIN:
            raise BadParameter(
                f"TOLLKEEPER_OPERATOR_KEY must begin with {OPERATOR_PREFIX} and have at least "
                f"{OPERATOR_KEY_CHARS_MIN} characters",
                field="TOLLKEEPER_OPERATOR_KEY",
            )
        if keys.all() != {hash_secret(given)}:
            keys.replace(hash_secret(given), now_us)
        return None
    if keys.all():
        return None
    secret = new_secret(OPERATOR_PREFIX, secrets.choice)
    keys.replace(hash_secret(secret), now_us)
    return secret


def serve(
    installation: Installation,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    uds: Path | None = None,
    ready: Callable[[str], None] = lambda url: None,
    until: Callable[[], object] | None = None,
) -> None:
    """
    Serve until SIGINT or SIGTERM, or until *until* (run in a thread once the server is up) returns.

    Args:
        uds: A Unix socket to serve beside the port. Its file, of mode 0600, is removed at the end.
        ready: Called with the URL once connections are accepted.

    Raises:
        Unavailable: The port or socket is taken or not permitted.
        BadParameter: *uds* is no path for a socket.
    """
    _check_port(host, port)
    if uds is not None:
        uds = unix_socket.claim(uds)
    app = build_app(installation)
    handles = _raise_handle_limit()
    freeze_gc()
    _return_memory()
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        _runner()(_serve(app, host, port, uds, ready, until, connections_max(handles)))
    finally:
        app.close()
        sys.setswitchinterval(interval_s)


def connections_max(handles: int) -> int:
    """Return how many connections may be open at once in a process with so many file handles."""
    return min(max(handles - _HANDLES_RESERVED, handles // 2), _CONNECTIONS_MAX)


def _raise_handle_limit() -> int:
    """Let this process have as many file handles as its user may give it; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as exc:  # Some systems say "unlimited" and do not mean it.
            log.warning("tollkeeper.server.handle_limit", extra={"limit": soft, "reason": str(exc)})
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def _return_memory() -> None:
    """
    Have the memory of large batches go back to the system when they are delivered.

    Arrow's own allocator keeps what it had, and so does the C library, in an arena for each thread.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    c_library = _c_library()
    if c_library is not None:
        for setting, value in _MALLOC:
            c_library.mallopt(setting, value)


def trim_memory() -> None:
    """Give the memory that is free in the C library's arenas back to the system."""
    c_library = _c_library()
    if c_library is not None:
        c_library.malloc_trim(0)


def _c_library() -> Any:
    """Return the C library if it is glibc, else None: another one, such as musl, has no such calls."""
    c_library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return c_library if c_library is not None and hasattr(c_library, "malloc_trim") else None


def _runner() -> Callable[..., None]:
    try:
        import uvloop
    except ImportError:  # Not on this platform; asyncio's own loop serves too.
        return asyncio.run
    return uvloop.run  # type: ignore[no-any-return]


async def _serve(
    app: App,
    host: str,
    port: int,
    uds: Path | None,
    ready: Callable[[str], None],
    until: Callable[[], object] | None,
    connections: int,
) -> None:
    from granian.constants import HTTPModes
    from granian.server.embed import Server

    def listener(**address: Any) -> Any:
        return Server(
            app,
            **address,
            backlog=1024,
            # Those beyond wait in the backlog, with no handle of ours.
            backpressure=connections,
            # Of HTTP/2 it would take 16 MiB of headers on each of 200 streams, from anybody. A proxy speaks it better.
            http=HTTPModes.http1,
            log_enabled=False,
            websockets=False,
        )

    servers = [listener(address=host, port=port, interface="asgi")]
    if uds is not None:
        # The application begins and ends once, with the other listener.
        servers.append(listener(uds=uds, interface="asginl"))
        servers[1].uds_permissions = unix_socket.MODE
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signal_number, stopping.set)
    serving = [asyncio.create_task(server.serve()) for server in servers]
    url = f"http://{host if ':' not in host else f'[{host}]'}:{port}"
    await _wait_until_up(lambda: asyncio.open_connection(host, port), serving)
    if uds is not None:
        await _wait_until_up(lambda: asyncio.open_unix_connection(uds), serving)
    ready(url)
    waiting = [asyncio.create_task(stopping.wait()), *serving]
    if until is not None:
        waiting.append(asyncio.ensure_future(asyncio.to_thread(until)))
    done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for server in servers:
        server.stop()
    # They wait for the calls that are under way: those that may take long are stopped.
    await asyncio.to_thread(app.executors.stop_queries)
    await asyncio.gather(*serving)
    for task in done:
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]


async def _wait_until_up(
    connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]],
    serving: Sequence[asyncio.Task[None]],
) -> None:
    while not any(task.done() for task in serving):
        try:
            _, writer = await connect()
        except OSError:
            await asyncio.sleep(0.005)
            continue
        writer.close()
        return


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise Unavailable(
                f"Port {port} of {host} cannot be used: {exc.strerror}. Give another --port."
            ) from exc
