"""
A load generator on loopback: keep-alive connections that each send their next request when the last is
answered. Runs in a process of its own, so that it takes no time from the server's interpreter.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Callable
from typing import NamedTuple

import uvloop


class Load(NamedTuple):
    """What a run measured. A step is one request; a round is all steps of one script."""

    rounds_per_s: float
    steps_per_s: float
    p50_ms: float
    p99_ms: float
    failures: int


Step = Callable[[int, bytes], bytes]
"""Makes a request from the connection's number and the body of the answer before."""


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Return the bytes of one HTTP/1.1 request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def run(port: int, steps: list[Step], *, connections: int, seconds: float) -> Load:
    """Run *steps* in turn on each connection for *seconds*, from another process, and return the figures."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(there, port, steps, connections, seconds))
    process.start()
    there.close()  # Only the child has it then: should that fail, there is an error and no waiting for ever.
    answer = json.loads(here.recv())
    process.join()
    return Load(**answer)


class _Connection(asyncio.Protocol):
    def __init__(self, number: int, steps: list[Step], until: float, latencies: list[float]) -> None:
        self.number = number
        self.steps = steps
        self.until = until
        self.latencies = latencies
        self.step = 0
        self.rounds = 0
        self.failures = 0
        self.buffer = b""
        self.started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._send(b"")

    def _send(self, answer: bytes) -> None:
        self.started = time.perf_counter()
        self.transport.write(self.steps[self.step](self.number, answer))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head = self.buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self.buffer.lower().find(b"content-length:", 0, head)
        length = int(self.buffer[at + 15 : self.buffer.find(b"\r\n", at)])
        if len(self.buffer) < head + 4 + length:
            return
        self.latencies.append(time.perf_counter() - self.started)
        if self.buffer[9:10] != b"2":
            self.failures += 1
        body = self.buffer[head + 4 :]
        self.buffer = b""
        self.step += 1
        if self.step == len(self.steps):
            self.step = 0
            self.rounds += 1
            if time.perf_counter() >= self.until:
                self.transport.close()
                return
        self._send(body)


def _child(pipe, port: int, steps: list[Step], connections: int, seconds: float) -> None:  # type: ignore[no-untyped-def]
    pipe.send(json.dumps(uvloop.run(_drive(port, steps, connections, seconds))))


async def _drive(port: int, steps: list[Step], connections: int, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    started = time.perf_counter()
    protocols = []
    for number in range(connections):
        _, protocol = await loop.create_connection(
            lambda number=number: _Connection(number, steps, started + seconds, latencies), "127.0.0.1", port
        )
        protocols.append(protocol)
    await asyncio.sleep(seconds)
    took = time.perf_counter() - started
    count, rounds = len(latencies), sum(p.rounds for p in protocols)
    for protocol in protocols:
        protocol.transport.close()
    latencies.sort()
    return {
        "rounds_per_s": rounds / took,
        "steps_per_s": count / took,
        "p50_ms": latencies[count // 2] * 1e3,
        "p99_ms": latencies[count * 99 // 100] * 1e3,
        "failures": sum(p.failures for p in protocols),
    }
