"""Kept HTTP/1.1 connections to one server, for event loops."""

from __future__ import annotations

import asyncio
import weakref
from typing import Final, NamedTuple

from tollkeeper.remote.address import Address, host_header
from tollkeeper.remote.connections import CONNECTIONS_MAX, Answer
from tollkeeper.remote.tries import NoAnswer

_HEAD_BYTES_MAX: Final = 64 * 1024
_of_parent: list[_OfLoop] = []
"""Kept for ever in a forked child: to close one would take it out of the poll that the parent's loop waits on."""


class _Broken(Exception):
    """The connection ended, or does not speak HTTP/1.1."""


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def is_open(self) -> bool:
        return not (self.reader.at_eof() or self.writer.is_closing() or self.reader.exception())


class _OfLoop:
    """The connections of one event loop."""

    def __init__(self) -> None:
        self.idle: list[_Connection] = []
        self.turns = asyncio.Semaphore(CONNECTIONS_MAX)


class AsyncConnections:
    """Connections of one process, apart for each of its event loops. A connection has one call at a time."""

    def __init__(self, address: Address, headers: dict[str, str]) -> None:
        self._address = address
        lines = [f"{name}: {value}\r\n" for name, value in {**headers, "Host": host_header(address)}.items()]
        self._head = "".join(lines).encode("latin-1")
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _OfLoop] = (
            weakref.WeakKeyDictionary()
        )

    async def call(self, method: str, path: str, body: bytes | None, timeout_s: float) -> Answer:
        """Return the answer to one request: see `Connections.call`."""
        loop = asyncio.get_running_loop()
        mine = self._loops.get(loop)
        if mine is None:
            mine = self._loops[loop] = _OfLoop()
        sent = False
        request = f"{method} {self._address.prefix}{path} HTTP/1.1\r\n".encode() + self._head
        request += b"\r\n" if body is None else b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        try:
            async with asyncio.timeout(timeout_s), mine.turns:
                while mine.idle:
                    kept = mine.idle.pop()
                    if not kept.is_open:
                        kept.writer.close()
                        continue
                    sent = True
                    try:
                        return await _exchange(mine, kept, request)
                    except _Broken:
                        continue  # Closed by the server: as repeated calls do no harm, the next one is tried.
                try:
                    made = await self._connect()
                except OSError as exc:
                    raise NoAnswer(exc.strerror or str(exc), sent=sent) from exc
                sent = True
                try:
                    return await _exchange(mine, made, request)
                except _Broken as exc:
                    raise NoAnswer(str(exc), sent=True) from exc
        except TimeoutError as exc:
            raise NoAnswer(f"no answer within {timeout_s:.1f} s", sent=sent) from exc

    async def _connect(self) -> _Connection:
        address = self._address
        if address.path:
            made = await asyncio.open_unix_connection(address.path, limit=_HEAD_BYTES_MAX)
        else:
            made = await asyncio.open_connection(
                address.host, address.port, ssl=address.tls, limit=_HEAD_BYTES_MAX
            )
        return _Connection(*made)

    async def close(self) -> None:
        """Close the connections of the running loop that no call uses."""
        mine = self._loops.pop(asyncio.get_running_loop(), None)
        for kept in mine.idle if mine else ():
            kept.writer.close()

    def forget(self) -> None:
        """Drop all connections without closing them, after a fork: they are the parent's."""
        _of_parent.extend(self._loops.values())
        self._loops = weakref.WeakKeyDictionary()


async def _exchange(mine: _OfLoop, connection: _Connection, request: bytes) -> Answer:
    reader, writer = connection
    is_kept = False
    try:
        writer.write(request)
        answer, is_kept = await _read_answer(reader)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as exc:
        raise _Broken(str(exc) or type(exc).__name__) from exc
    finally:
        if not is_kept:
            writer.close()
    mine.idle.append(connection)
    return answer


async def _read_answer(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    """Return an answer (RFC 9112), and whether its connection stays open."""
    status = 100
    while 100 <= status < 200:
        first, *lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            raise ValueError("the answer is not HTTP/1.1")
        status = int(rest[:3])
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip().lower()
    is_kept = version == b"HTTP/1.1" and headers.get(b"connection") != b"close"
    if status in (204, 304):
        return Answer(status, b""), is_kept
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        return Answer(status, await _read_chunks(reader)), is_kept
    length = headers.get(b"content-length")
    if length is None:
        return Answer(status, await reader.read()), False
    return Answer(status, await reader.readexactly(int(length))), is_kept


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    pieces = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        pieces.append((await reader.readexactly(size + 2))[:-2])
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # Trailers say nothing that is needed.
    return b"".join(pieces)
