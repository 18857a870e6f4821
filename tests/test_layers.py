"""Imports point one way, the domain is pure, and drivers stay in their adapters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import tollkeeper

ROOT: Final = Path(tollkeeper.__file__).parent

LAYERS: Final = {
    "errors": 0,
    "version": 0,
    "domain": 1,
    "blocking": 2,
    "callers": 2,
    "clock": 2,
    "collector": 2,
    "ports": 2,
    "columns": 2,
    "gate": 3,
    "services": 4,
    "settings": 4,
    "adapters": 5,
    "installation": 6,
    "embedded": 7,
    "testing": 7,
    "profiles": 3,
    "http": 8,
    "asgi": 8,
    "demo": 9,
    "prove": 9,
    "cli": 9,
    "__main__": 10,
    "__init__": 10,
}
"""Each part may import parts of its own or a lower number. `embedded` names `asgi` only inside a method."""

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


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    nodes = list(tree.body) if top_level_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in LAYERS, f"{part} has no layer: say where it belongs"
    for name in imports(path, top_level_only=True):
        parts = name.split(".")
        if parts[0] == "tollkeeper" and len(parts) > 1:
            assert LAYERS[parts[1]] <= LAYERS[part], f"{path.name} imports {name}"


def test_the_domain_is_pure() -> None:
    """It has no clock, randomness, I/O, logging or async, so one copy serves library, middleware and server."""
    for path in modules():
        if part_of(path) != "domain":
            continue
        found = {name.split(".")[0] for name in imports(path)}
        assert not found & (IMPURE | DRIVERS | SERVERS | {"pyarrow", "numpy"}), path
        tree = ast.parse(path.read_text())
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.AsyncFunctionDef | ast.Await)], path
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not {
            name for name in called if name in ("open", "print", "datetime.now", "datetime.utcnow")
        }, path


def test_drivers_stay_in_their_adapters() -> None:
    for path in modules():
        found = {name.split(".")[0] for name in imports(path)}
        if part_of(path) != "adapters":
            assert not found & DRIVERS, path
        if part_of(path) not in ("http", "cli", "demo"):
            assert not found & SERVERS, path


def test_the_gate_needs_no_arrow() -> None:
    """The hot path starts without it: loading it takes longer than everything that the gate does."""
    for path in modules():
        if part_of(path) == "gate":
            assert not {n for n in imports(path) if n.split(".")[0] in ("pyarrow", "numpy")}, path
