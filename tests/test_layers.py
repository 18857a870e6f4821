"""Imports point one way, the domain is pure, and drivers and the network stay in adapters and surfaces."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import tollkeeper

ROOT: Final = Path(tollkeeper.__file__).parent

ORDER: Final = (
    "errors version",
    "domain",
    "clock collector blocking callers forks greenlets memory packages",
    "audit event_expiry event_lists",
    "ports record_columns",
    "profiles",
    "gate",
    "catalog",
    "ledger",
    "meter",
    "usage",
    "alerts",
    "maintenance",
    "environment page",
    "settings",
    "adapters",
    "profile_context reactions",
    "installation",
    "api metering restoring",
    "http",
    "asgi wsgi",
    "embedded testing remote",
    "console",
    "demo prove",
    "cli",
    "__main__ __init__",
)
"""The parts, from the one that imports none of the others on. A part imports parts above it, in every line."""
RANK: Final = {part: rank for rank, parts in enumerate(ORDER) for part in parts.split()}

SAME_RANK_ALLOWED: Final = {("__main__", "__init__")}

IMPURE: Final = {
    "asyncio",
    "logging",
    "os",
    "random",
    "secrets",
    "socket",
    "subprocess",
    "threading",
    "time",
    "uuid",
}
DRIVERS: Final = {"sqlalchemy", "alembic", "psycopg", "clickhouse_connect", "chdb", "sqlite3"}
SERVERS: Final = {"litestar", "granian", "uvloop", "typer", "rich"}
NETWORK: Final = {"socket", "ssl", "http", "urllib", "httpx", "requests", "jwt", "ctypes"}
"""Of these `urllib.parse` and `http.HTTPStatus` only take text apart: see `NO_NETWORK`."""
NO_NETWORK: Final = {"urllib.parse"}
OF_THE_PROCESS: Final = {"forks"}
"""Calls the C library, since nothing else can end a forked child without waiting for threads that it lacks."""
SURFACES: Final = {"http", "asgi", "wsgi", "remote", "console", "demo", "prove", "cli"}


class Import(NamedTuple):
    """One import of a module: by which file, in which line."""

    path: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[Import]:
    """Yield every import of a file, inside functions and under `TYPE_CHECKING` too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "tollkeeper":
                # A part of ours, or a name of `__init__`.
                for alias in node.names:
                    inner = f"tollkeeper.{alias.name}"
                    yield Import(path, node.lineno, inner if alias.name in RANK else "tollkeeper.__init__")
            else:
                yield Import(path, node.lineno, node.module)


def target_of(found: Import) -> str | None:
    """Return the part of ours that is imported, or None."""
    names = found.module.split(".")
    if names[0] != "tollkeeper":
        return None
    return names[1] if len(names) > 1 else "__init__"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in RANK, f"{part} has no place in ORDER: say where it belongs"
    for found in imports(path):
        target = target_of(found)
        if target is None or target == part or (part, target) in SAME_RANK_ALLOWED:
            continue
        assert target in RANK, str(found)
        assert RANK[target] < RANK[part], str(found)


def test_the_domain_is_pure() -> None:
    """It has no clock, randomness, I/O, logging or async, so one copy serves library, middleware and server."""
    for path in modules():
        if part_of(path) != "domain":
            continue
        found = {entry.module.split(".")[0] for entry in imports(path)}
        assert not found & (IMPURE | DRIVERS | SERVERS | {"pyarrow", "numpy"}), path
        tree = ast.parse(path.read_text())
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef | ast.Await)], path
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not {
            name for name in called if name in ("open", "print", "datetime.now", "datetime.utcnow")
        }, path


def test_drivers_stay_in_their_adapters() -> None:
    for path in modules():
        found = {entry.module.split(".")[0] for entry in imports(path)}
        if part_of(path) != "adapters":
            assert not found & DRIVERS, path
        if part_of(path) not in ("http", "console", "cli", "demo", "prove"):
            assert not found & SERVERS, path


def test_the_network_is_a_matter_of_adapters_and_surfaces() -> None:
    """What opens a connection, checks a token or calls C cannot be tested by values, nor bounded in one place."""
    for path in modules():
        if part_of(path) in SURFACES | OF_THE_PROCESS | {"adapters"}:
            continue
        for found in imports(path):
            if found.module not in NO_NETWORK:
                assert found.module.split(".")[0] not in NETWORK, str(found)


def test_the_gate_needs_no_arrow() -> None:
    """The hot path starts without it: loading it takes longer than everything that the gate does."""
    for path in modules():
        if part_of(path) == "gate":
            assert not {e.module for e in imports(path) if e.module.split(".")[0] in ("pyarrow", "numpy")}, (
                path
            )
