"""Without chDB all but the embedded usage store works, and the client without all; the rest says what to install."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
from packaging.requirements import Requirement

import tollkeeper
from tollkeeper import packages
from tollkeeper.errors import PackageMissing

ROOT: Final = Path(__file__).parents[2]
FULL: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())
CORE: Final = tomllib.loads((ROOT / "distribution/pyproject.toml").read_text())
REQUIREMENTS: Final[list[str]] = FULL["project"]["dependencies"]
SERVER_MODULES: Final = (
    *(
        "alembic",
        "chdb",
        "clickhouse_connect",
        "cryptography",
        "genai_prices",
        "granian",
        "jwt",
        "litestar",
        "lz4",
    ),
    *("numpy", "pandas", "psycopg", "pyarrow", "pydantic", "rich", "sqlalchemy", "typer", "uvloop"),
)
"""What `tollkeeper-core` alone does not install."""
ENTRIES: Final = """
[[accounts]]
id = "a"
name = "A"
[[keys]]
id = "k"
account = "a"
[[budgets]]
id = "one"
account = "a"
amount = 1
unit = "requests"
[[routes]]
id = "all"
method = "*"
path = "/*"
price_nanos = 1
"""


def run(code: str, *missing: str) -> subprocess.CompletedProcess[str]:
    """Run *code* where the packages *missing* are not installed."""
    hidden = f"import sys\nsys.modules.update(dict.fromkeys({missing!r}))\n"
    return subprocess.run(
        [sys.executable, "-c", hidden + code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


def test_without_chdb_everything_is_imported_and_help_is_printed() -> None:
    done = run(
        """
import importlib, pkgutil, tollkeeper
for module in pkgutil.walk_packages(tollkeeper.__path__, "tollkeeper."):
    if not module.name.endswith("__main__") and ".migrations." not in module.name:
        importlib.import_module(module.name)
sys.argv = ["tollkeeper", "--help"]
from tollkeeper.cli import main
main()
""",
        "chdb",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: tollkeeper" in done.stdout


def test_without_chdb_the_embedded_usage_store_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In words that name the package, and the other way."""
    monkeypatch.setitem(sys.modules, "chdb", None)
    with pytest.raises(PackageMissing, match=r"pip install tollkeeper.*clickhouse://") as refused:
        tollkeeper.Tollkeeper.open(str(tmp_path / "data"))
    assert isinstance(refused.value, ImportError)
    assert not (tmp_path / "data").exists()


def test_without_chdb_the_gate_admits_and_books_beside_a_clickhouse_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That server is away here, which stops no request: usage waits in the ledger."""
    monkeypatch.setitem(sys.modules, "chdb", None)
    usage = "clickhouse://nobody@127.0.0.1:9/usage"
    with tollkeeper.Tollkeeper.open(str(tmp_path / "data"), usage_url=usage) as toll:
        secrets = {issued.entry.id: issued.secret for issued in toll.apply(ENTRIES).issued}
        admission = toll.admit(secrets["k"], "GET", "/")
        assert isinstance(admission, tollkeeper.Admission)
        toll.settle(admission)
        assert isinstance(toll.admit(secrets["k"], "GET", "/"), tollkeeper.Denial)


def test_a_worker_needs_the_client_only() -> None:
    done = run(
        """
import tollkeeper
from tollkeeper import Outcome, Usage, remote
toll = remote.Tollkeeper("http://127.0.0.1:9", key="ok_x", timeout_s=0.2)
async def app(scope, receive, send): ...
def wsgi(environ, start_response): ...
toll.middleware(app), toll.wsgi_middleware(wsgi)
print(toll.admit("tk_x", "GET", "/", Usage(model="m")).status)
""",
        *SERVER_MODULES,
    )
    assert (done.stdout, done.returncode) == ("503\n", 0), done.stderr


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("from tollkeeper.cli import main; main()", "typer"),
        ("from tollkeeper import Tollkeeper", "sqlalchemy"),
        ("from tollkeeper import usage_from; usage_from('openai', {'prompt_tokens': 1})", "genai_prices"),
    ],
)
def test_what_needs_more_says_which_package_to_install(code: str, missing: str) -> None:
    done = run(code, *SERVER_MODULES)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert f"the package {missing}, which is not installed: `pip install tollkeeper`" in said
    assert "pip install 'tollkeeper-core[server]'" in said
    assert "`pip uninstall tollkeeper tollkeeper-core` first" in said


def test_a_module_of_others_that_is_missing_is_not_taken_for_ours() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as found, packages.needed():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(found.value, PackageMissing)


def test_both_distributions_are_made_of_the_same_sources() -> None:
    """What is not stated here, such as settings of tools, does not reach a wheel."""
    assert (FULL["project"]["name"], CORE["project"]["name"]) == ("tollkeeper", "tollkeeper-core")
    own = {"name", "description", "dependencies", "optional-dependencies"}
    assert without(FULL["project"], own) == without(CORE["project"], own)
    assert FULL["build-system"] == CORE["build-system"]
    assert FULL["tool"]["setuptools"] == CORE["tool"]["setuptools"]


def test_core_requires_what_the_embedded_product_requires_but_chdb() -> None:
    """With the same bounds, the client's part by itself and the rest as `server`."""
    extras = CORE["project"]["optional-dependencies"]
    assert list(extras) == ["server"]
    (chdb,) = [line for line in REQUIREMENTS if line.startswith("chdb")]
    assert sorted([*CORE["project"]["dependencies"], *extras["server"]]) == sorted(set(REQUIREMENTS) - {chdb})


def test_every_module_of_the_extra_server_is_known_by_its_name() -> None:
    """Otherwise its absence would be a ModuleNotFoundError that does not say what to install. uvloop may be absent."""
    modules = {"pyjwt": "jwt", "clickhouse-connect": "clickhouse_connect", "genai-prices": "genai_prices"}
    names = {Requirement(line).name for line in CORE["project"]["optional-dependencies"]["server"]}
    assert {modules.get(name, name) for name in names - {"uvloop"}} == packages.SERVER_MODULES


def without(project: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in project.items() if name not in names}


@pytest.mark.parametrize(
    ("implementation", "system", "machine", "has"),
    [
        ("CPython", "linux", "x86_64", True),
        ("CPython", "linux", "aarch64", True),
        ("CPython", "darwin", "arm64", True),
        ("CPython", "darwin", "x86_64", True),
        ("CPython", "linux", "armv7l", False),
        ("CPython", "linux", "ppc64le", False),
        ("CPython", "win32", "AMD64", False),
        ("PyPy", "linux", "x86_64", False),
    ],
)
def test_chdb_is_asked_for_where_it_has_a_wheel(
    implementation: str, system: str, machine: str, has: bool
) -> None:
    (line,) = [line for line in REQUIREMENTS if line.startswith("chdb")]
    marker = Requirement(line).marker
    assert marker is not None
    where = {
        "platform_python_implementation": implementation,
        "sys_platform": system,
        "platform_machine": machine,
    }
    assert marker.evaluate(where) is has
