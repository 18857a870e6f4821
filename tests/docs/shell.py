"""
What the shell blocks of a page do, without a shell: `tollkeeper` in this process, `curl` by an HTTP client, `export`,
and `>` into a file. A command of another kind is an error of the page.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.cli.commands import in_process

_VARIABLE: Final = re.compile(r"\$(\w+)")


class Command(NamedTuple):
    """One command of a page, and the lines that the page shows as its output."""

    text: str
    shown: list[str]


class Call(NamedTuple):
    """What a curl command sends."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None


def blocks(page: str, *languages: str) -> Iterator[str]:
    """Yield the code blocks of a page in these languages, in order."""
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        if language in languages:
            yield code


def commands_of(block: str) -> list[Command]:
    """Return the commands of a block: lines behind `$ ` with their output, or all lines of a block without these."""
    found: list[Command] = []
    has_prompts = block.startswith("$ ")
    lines = iter(block.splitlines())
    for line in lines:
        if has_prompts and not line.startswith("$ "):
            found[-1].shown.append(line)
            continue
        text = line.removeprefix("$ ")
        while text.endswith("\\") or not _is_whole(text):
            text = text.removesuffix("\\") + "\n" + next(lines)
        if text.strip() and not text.startswith("#"):
            found.append(Command(text, []))
    return found


def run_command(text: str, variables: dict[str, str], directory: Path, send: Callable[[Call], str]) -> str:
    """Run one command and return its output; `export` adds to *variables*, *send* does what curl does."""
    expanded = _VARIABLE.sub(lambda name: variables[name[1]], text)
    words = shlex.split(expanded.replace("\\\n", " "))
    if words[0] == "export":
        for word in words[1:]:
            name, _, value = word.partition("=")
            variables[name] = value
        return ""
    if words[0] == "curl":
        return send(call_of(words))
    assert words[0] == "tollkeeper", text
    target = directory / words.pop() if words[-2:-1] == [">"] else None
    if target is not None:
        words.pop()
    done = in_process(*words[1:], variables=variables)
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    if target is not None:
        target.write_text(done.stdout)
        return ""
    return done.stdout


def call_of(words: list[str]) -> Call:
    """Return what the words of a curl command send. Raises `AssertionError` for an option that is not known here."""
    headers: dict[str, str] = {}
    body = None
    url = ""
    rest = iter(words[1:])
    for word in rest:
        if word == "-H":
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(rest).encode()
        elif word != "-s":
            assert not word.startswith("-"), word
            url = word
    return Call("GET" if body is None else "POST", url, headers, body)


def has_shown(shown: str, output: str) -> bool:
    """Return whether a line that a page shows is in an output; `…` stands for anything, blanks for any blanks."""
    parts = [r"\s+".join(map(re.escape, part.split())) for part in shown.split("…")]
    return re.search(r".*".join(part for part in parts), output) is not None


def _is_whole(text: str) -> bool:
    try:
        shlex.split(text)
    except ValueError:
        return False
    return True
