"""The command line where it opens no store: help, mistakes, errors, and that it stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tollkeeper as package
from tollkeeper.cli import app as app_module
from tollkeeper.cli.app import run
from tollkeeper.console.failures import Failure
from tollkeeper.domain.catalog import KINDS
from tollkeeper.errors import Unavailable
from tollkeeper.settings import Settings

COMMANDS = ["serve", "demo", "apply", "ingest", "usage", "adjust", "verify", "rebuild", *KINDS]
GROUP_COMMANDS = ["list", "show", "put", "delete"]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours, and a directory without a `data` in it."""
    for name in ("URL", "KEY", "DATA_DIR", "OPERATOR_KEY", "LEDGER_URL"):
        monkeypatch.delenv(f"TOLLKEEPER_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


def error_of(capsys: pytest.CaptureFixture[str], arguments: list[str], exit_code: int) -> str:
    """Run a command that fails; return its one line of error."""
    assert run(arguments) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"tollkeeper {command}" in out
    if command in KINDS:
        assert all(f" {name} " in out for name in GROUP_COMMANDS)


def test_serve_takes_every_setting(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # So that no long option is cut.
    assert run(["serve", "--help"]) == 0
    out = capsys.readouterr().out
    for name in Settings.__struct_fields__:
        option = "--data" if name == "data_dir" else f"--{name.replace('_', '-')}"
        assert option in out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"tollkeeper {package.__version__}\n"


@pytest.mark.drawn(7)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["usage", "--frm", "2026-01-01"], "--frm"),
        (["usage", "--group-by", "colour"], "colour"),
        (["usage", "--from", "yesterday"], "yesterday"),
        (["usage", "--filter", "colour=red"], "colour"),
        (["usage", "--json", "--format", "csv"], "--json"),
        (["usage", "--data", "d", "--url", "http://127.0.0.1:1", "--key", "ok_x"], "--url"),
        (["usage", "--url", "http://127.0.0.1:1"], "--key"),
        (["usage", "--url", "file:///etc/passwd", "--key", "ok_x"], "file:///etc/passwd"),
        (["usage", "--key", "ok_x"], "--url"),
        (["ingest", "log", "--format", "xml"], "xml"),
        (["ingest", "log", "--account", "acme"], "--account"),
        (["ingest"], "FILE"),
        (["serve", "--port", "0"], "port"),
        (["keys", "rotate", "k1", "--overlap", "soon"], "soon"),
        (["keys", "issue", "k1", "name"], "name"),
        (["keys", "issue", "k1", "name=a", "name=b"], "twice"),
        (["keys", "issue", "k1", "account=a", "--account", "b"], "account"),
        (["plans", "list", "--account", "acme"], "--account"),
        (["grants", "post", "g1", "--amount", "many"], "many"),
        (["nonsense"], "nonsense"),
    ],
)
def test_a_wrong_command_line_ends_with_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that names what is wrong; nothing was opened or made."""
    assert told in error_of(capsys, arguments, 2)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["usage"], ["verify"], ["rebuild"], ["accounts", "list"], ["keys", "revoke", "k1"]],
    ids=lambda arguments: " ".join(arguments),
)
def test_a_command_that_reads_makes_no_directory(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped directory is an error, not an empty installation."""
    line = error_of(capsys, [*arguments, "--data", "mistyped"], 1)
    assert "mistyped" in line
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ('[[accounts]]\nid = "a"\nname = \n', "line 3"),
        ('[[accounts]]\nid = "a"\nnmae = "A"\n', "did you mean name?"),
        ('[[acounts]]\nid = "a"\n', "did you mean accounts?"),
    ],
)
def test_a_wrong_declaration_is_told_by_its_place(
    toml: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is read before anything is opened, so it leaves nothing behind."""
    Path("wrong.toml").write_text(toml)
    assert told in error_of(capsys, ["apply", "wrong.toml", "--data", "d"], 1)
    assert not Path("d").exists()


def test_plans_apply_takes_plans_only(capsys: pytest.CaptureFixture[str]) -> None:
    Path("all.toml").write_text('[[plans]]\nslug = "pro"\n[[accounts]]\nid = "a"\nname = "A"\n')
    assert "accounts" in error_of(capsys, ["plans", "apply", "all.toml", "--data", "d"], 1)
    assert not Path("d").exists()


@pytest.mark.parametrize("command", ["apply", "ingest"])
def test_a_file_that_is_not_there_is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing.file" in error_of(capsys, [command, "missing.file", "--data", "d"], 1)
    assert not Path("d").exists()


@pytest.mark.parametrize("error", [Unavailable("The disk is full."), Failure("The disk is full.")])
def test_what_is_wrong_outside_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app_module.typer.main, "get_command", lambda app: _Raising(error))
    assert error_of(capsys, ["usage"], 1) == "error: The disk is full."


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module.typer.main, "get_command", lambda app: _Raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run(["usage"])


def test_an_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app_module.typer.main, "get_command", lambda app: _Raising(KeyboardInterrupt()))
    assert error_of(capsys, ["usage"], 130) == "error: interrupted"


class _Raising:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def main(self, *arguments: object, **options: object) -> None:
        raise self._error


def test_the_command_line_loads_nothing_heavy() -> None:
    """
    Help and mistakes are answered at once: stores, Arrow and the server are loaded by who needs them.

    The package's own `__init__` is left out here, since what a library offers is its own matter.
    """
    root = Path(package.__file__).parent
    code = f"""
import sys, types
package = types.ModuleType("tollkeeper")
package.__path__ = [{str(root)!r}]
sys.modules["tollkeeper"] = package
import tollkeeper.cli.app
heavy = {{"pyarrow", "numpy", "sqlalchemy", "chdb", "litestar", "granian", "genai_prices", "urllib.request"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
