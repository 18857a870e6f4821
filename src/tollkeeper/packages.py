"""
Says which package is to be installed where one is missing.

`tollkeeper-core` alone has what the client of a server needs; its extra `server` has the rest but chDB, and `embedded`,
which is what `pip install tollkeeper` installs, has chDB too. Every part is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

from tollkeeper.errors import PackageMissing

_SERVER: Final = frozenset(
    {
        "alembic",
        "clickhouse_connect",
        "genai_prices",
        "granian",
        "jwt",
        "litestar",
        "numpy",
        "psycopg",
        "pyarrow",
    }
    | {"rich", "sqlalchemy", "typer"}
)
"""Modules of the extra `server`. Those that they need come with them."""


@contextmanager
def needed() -> Iterator[None]:
    """Turn the failing import of a package that an extra has into `PackageMissing`, which says how to install it."""
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package not in _SERVER:
            raise
        raise PackageMissing(
            f"This needs the package {package}, which is not installed: `pip install tollkeeper` has all that it "
            "needs. Without the embedded usage store: `pip install 'tollkeeper-core[server]'`."
        ) from exc


def check_usage_store(usage_url: str) -> None:
    """Raise `PackageMissing` if *usage_url* is in this process and chDB is not installed."""
    if usage_url.startswith("chdb:") and find_spec("chdb") is None:
        raise PackageMissing(
            "The embedded usage store needs the package chdb, which is not installed: `pip install tollkeeper`. "
            "chDB has wheels for CPython on Linux with glibc (x86_64, aarch64) and macOS (x86_64, arm64). "
            "Elsewhere, and where usage is to be on a ClickHouse server, set usage_url (TOLLKEEPER_USAGE_URL, "
            "`serve --usage-url`) to clickhouse://user:password@host/database."
        )
