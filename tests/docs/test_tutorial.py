"""Every command of docs/tutorial.md is run in its order, and prints what the page shows."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.docs.shell import Call, blocks, commands_of, has_shown, run_command
from tests.end_to_end.server import OPERATOR_KEY, running_server

PAGE = (Path(__file__).resolve().parents[2] / "docs/tutorial.md").read_text()


def send(call: Call) -> str:
    request = urllib.request.Request(call.url, data=call.body, headers=call.headers, method=call.method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as exc:
        return exc.read().decode()


def test_the_commands_of_the_tutorial_work_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, _, content in re.findall(r"Save this as `([\w.]+)`:\n\n```(\w+)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(content)
    commands = [command for block in blocks(PAGE, "console", "sh") for command in commands_of(block)]
    (serve,) = [command.text for command in commands if command.text.startswith("tollkeeper serve")]
    variables: dict[str, str] = {}
    secret, run = "", 0
    with running_server(tmp_path / "data", *serve.split("--data ./data")[1].split()) as server:
        for text, shown in commands:
            if text == serve:
                continue
            output = run_command(text, variables, tmp_path, send)
            run += 1
            # The secrets and the port of this run in the place of those that a reader sees.
            if text.startswith("export TOLLKEEPER_URL="):
                variables["TOLLKEEPER_URL"] = server.url
            elif text.startswith("export TOLLKEEPER_KEY="):
                variables["TOLLKEEPER_KEY"] = OPERATOR_KEY
            elif text.startswith(("export SECRET=", "export SHOAL=")):
                variables[text.removeprefix("export ").partition("=")[0]] = secret
            if made := re.search(r":  ((?:tk|shoal)_\w+)", output):
                secret = made[1]
            for line in shown:
                assert has_shown(line, output), f"{text}\nshows {line}\nnot in {output}"
            if text.startswith("curl") and "402" not in "".join(shown):
                assert '"status":4' not in output, f"{text}\n{output}"
    assert run == len(commands) - 1 >= 30


def test_what_is_shown_is_compared() -> None:
    """Or the page could show anything."""
    assert has_shown("a  b … d", "x\na b c\td\n".replace("\n", "\n")) is True
    assert has_shown("a b", "a c") is False
    assert has_shown("3.00 added", "13.00  added") is True
    assert has_shown("(x)", "x") is False
