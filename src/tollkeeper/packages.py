"""
Says which package is to be installed where one is missing.

These modules come as `tollkeeper`, which requires all that they need, or as `tollkeeper-core`, which requires what the
client of a server needs, and with its extra `server` all but chDB. Every part is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Final

from tollkeeper.errors import PackageMissing

SERVER_MODULES: Final = frozenset(
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
        "rich",
        "sqlalchemy",
        "typer",
    }
)
"""Modules of the extra `server` without which there is no server. Those that they need come with them."""
_ONE_OF_THEM: Final = "They have the same files: to change, `pip uninstall tollkeeper tollkeeper-core` first."


@contextmanager
def needed() -> Iterator[None]:
    """Turn the failing import of a package that a server needs into `PackageMissing`, which says how to install it."""
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package not in SERVER_MODULES:
            raise
        raise PackageMissing(
            f"This needs the package {package}, which is not installed: `pip install tollkeeper` has all that it "
            f"needs, `pip install 'tollkeeper-core[server]'` all but the embedded usage store. {_ONE_OF_THEM}"
        ) from exc


def check_usage_store(usage_url: str) -> None:
    """Raise `PackageMissing` if *usage_url* is in this process and chDB is not installed."""
    if usage_url.startswith("chdb:") and find_spec("chdb") is None:
        raise PackageMissing(
            "The embedded usage store needs the package chdb, which is not installed: `pip install tollkeeper`, in "
            f"place of tollkeeper-core. {_ONE_OF_THEM} "
            "chDB has wheels for CPython on Linux with glibc (x86_64, aarch64) and macOS (x86_64, arm64). "
            "Elsewhere, and where usage is to be on a ClickHouse server, set usage_url (TOLLKEEPER_USAGE_URL, "
            "`serve --usage-url`) to clickhouse://user:password@host/database."
        )
