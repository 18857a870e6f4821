"""
Every page names only what exists: files, commands and their options, settings, calls of the API, names of the code.

A page is checked with its code blocks; `<…>` and capitals stand for what a reader fills in.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from tests.docs.test_docs import openapi_paths
from tollkeeper import environment
from tollkeeper.cli.app import app
from tollkeeper.installation import Installation
from tollkeeper.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
BASES: Final = (ROOT, ROOT / "src" / "tollkeeper", ROOT / "src", ROOT / "docs")
"""Where a file of a page may lie: pages leave `src/tollkeeper/` out."""
OF_THE_READER: Final = {"FILE.toml", "provider.toml", "shoal.toml"}
"""Files that the examples of the pages make."""
FILE: Final = re.compile(r"[\w./-]+\.(?:py|toml|txt|svg|sql)")
SOURCES: Final = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("src", "tests", "bench", ".ci", "deploy")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".toml", ".sql", ".txt", ".yaml") and path != Path(__file__)
) + "".join((ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", "pyproject.toml"))
TARGETS: Final = set(re.findall(r"^(\w[\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
ENVIRONMENT: Final = {
    f"TOLLKEEPER_{name.upper()}{suffix}"
    for name in (*Settings.__struct_fields__, *environment.OTHERS, "NAME")
    for suffix in ("", environment.FILE_SUFFIX)
}
"""Variables that mean something; `TOLLKEEPER_NAME` stands for all of them."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def quoted(page: Path) -> list[str]:
    """Return what stands between backticks within a line."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


def typed(page: Path) -> Iterator[str]:
    """Yield the commands of a page: between backticks, and the lines of its `console` blocks."""
    yield from quoted(page)
    for block in re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.removeprefix("$ ").partition("  #")[0].strip()


def files_of(page: Path) -> set[str]:
    return {name for text in quoted(page) for name in text.split() if FILE.fullmatch(name)} - OF_THE_READER


@pages
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    named = files_of(page)
    assert [name for name in named if not any((base / name).is_file() for base in BASES)] == []


@pages
def test_every_folder_that_a_page_names_is_there(page: Path) -> None:
    named = {text for text in quoted(page) if re.fullmatch(r"(?:\w+/)+", text)}
    assert [name for name in named if not any((base / name).is_dir() for base in BASES)] == []


def test_the_pages_name_files() -> None:
    """If this finds none, the tests above find nothing either."""
    assert {"gate/gate.py", "tests/test_layers.py"} <= files_of(ROOT / "ARCHITECTURE.md")
    assert len(files_of(ROOT / "docs" / "security.md")) > 8


@pages
def test_every_make_target_is_there(page: Path) -> None:
    named = {found[1] for text in typed(page) if (found := re.match(r"make ([\w-]+)", text))}
    assert named <= TARGETS


@pages
def test_every_command_and_its_options_are_there(page: Path) -> None:
    for text in typed(page):
        if text.startswith("tollkeeper "):
            words = [word.strip("[]") for word in shlex.split(text.replace("…", " "))][1:]
            check_command(words, text)
        elif found := re.match(r"python -m ([\w.]+)", text):
            assert importlib.util.find_spec(found[1]) is not None, text
        elif text.startswith("--") and "with-dashes" not in text:
            names = re.findall(r"--[\w-]+", text)
            assert all(name in SOURCES for name in names), text


def check_command(words: list[str], text: str) -> None:
    """Fail unless *words* are a command, its arguments and options; `<kind>` stands for any kind."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words:
        name = "accounts" if words[0] == "<kind>" else words[0]
        assert name in command.commands, text
        command, words = command.commands[name], words[1:]
    options = {name for parameter in command.params for name in parameter.opts}
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in options | {"--help"}, text


@pages
def test_every_variable_of_the_environment_is_there(page: Path) -> None:
    named = set(re.findall(r"\bTOLLKEEPER_[A-Z_]+\b(?!…)", page.read_text(encoding="utf-8")))
    assert [name for name in named - ENVIRONMENT if f'"{name}"' not in SOURCES] == []


@pages
def test_every_name_between_backticks_is_in_the_source(page: Path) -> None:
    """A renamed function, class, setting, field, code or header would leave its old name on a page."""
    named = {
        found[1]
        for text in quoted(page)
        if (found := re.fullmatch(r"(?:[\w.]+\.)?([A-Za-z_]\w+)(?:\(.*\))?", text))
    }
    words = set(re.findall(r"\w+", SOURCES))
    assert sorted(named - words - ENVIRONMENT) == []


def test_every_call_of_the_api_is_served(site: Installation) -> None:
    served = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path))
        for path, operations in openapi_paths(site).items()
        for method in operations
    }
    for page in PAGES:
        for method, path in re.findall(
            r"(GET|POST|PUT|DELETE) (/tk/v1/[\w/{}<>.-]*)", page.read_text(encoding="utf-8")
        ):
            plain = re.sub(r"\{\w+\}|<id>", "{}", path.rstrip(".").replace("<kind>", "accounts"))
            assert (method, plain) in served, f"{page.name}: {method} {path}"
