"""The demonstration from start to end, without a terminal and on one."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import urllib.request
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from tests.cli.commands import COMMAND, environment, free_port, tollkeeper
from tollkeeper.cli.app import run
from tollkeeper.console.program import program
from tollkeeper.demo.declaration import CRAWLER_PER_MINUTE

PROGRAM = program()
"""How the printed commands start: this process, too, was not started as `tollkeeper`."""
LAST_LINE = "Serving until Ctrl-C."


def test_the_demo_without_a_terminal_stops_cleanly(tmp_path: Path) -> None:
    """It refuses for every reason that it shows, and everything agrees in the end."""
    data = tmp_path / "demo"
    done = tollkeeper("demo", "--no-serve", "--data", data, "--port", free_port())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for reason in (
        "key_revoked",
        "key_unknown",
        "credit_exhausted",
        "budget_exhausted",
        "price_unknown",
        "layer_not_allowed",
        "too_many_concurrent",
        "rate_limited",
    ):
        assert re.search(rf"^ *4\d\d +{reason} ", done.stdout, re.MULTILINE), reason
    assert f"{CRAWLER_PER_MINUTE} settled, {CRAWLER_PER_MINUTE} refused" in done.stdout
    assert "the same again: 2,000 duplicates, 0 accepted" in done.stdout
    assert "ok: counters, ledger and events agree" in done.stdout
    assert f"{PROGRAM} verify --data {data}" in done.stdout


def test_a_used_directory_is_refused(tmp_path: Path) -> None:
    """A second demo in the same directory could not show the secrets of its keys."""
    (tmp_path / "file").write_text("mine")
    out = StringIO()
    with redirect_stdout(out):
        assert run(["demo", "--no-serve", "--data", str(tmp_path)]) == 1
    assert out.getvalue() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_on_a_terminal_the_printed_commands_work_until_ctrl_c(tmp_path: Path) -> None:
    """What a person copies and pastes is run as it was printed: curl's calls, and our own commands."""
    ours, theirs = pty.openpty()
    # Nothing is wrapped where the terminal is wider than the longest command.
    variables = environment(COLUMNS="500", TERM="dumb")
    command = [*COMMAND, "demo", "--data", str(tmp_path / "demo"), "--port", str(free_port())]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=variables) as demo:
        os.close(theirs)
        screen = _read_until(ours, LAST_LINE)
        try:
            lines = [line.strip() for line in screen.splitlines()]
            curls = [line for line in lines if line.startswith("curl ")]
            commands = [line.removeprefix(PROGRAM) for line in lines if line.startswith(PROGRAM)]
            assert len(curls) == 5
            assert len(commands) == 3
            answers = [_curl(line) for line in curls]
            usage_of_key, left_of_key, usage_of_account, usage_of_all, decision = answers
            for line in commands:
                out = StringIO()
                with redirect_stdout(out):
                    assert run(shlex.split(line)) == 0
                assert out.getvalue()
            page = lines[lines.index("# The page. Open it in a browser:") + 1]
            with _opener().open(page) as answer:
                assert '<script type="module" src="assets/' in answer.read().decode()
            roles = [
                _log_in(page, line.split()[-1]) for line in lines if re.search(r"  (ok|mk|tk)_\S+$", line)
            ]
        finally:
            demo.send_signal(signal.SIGINT)
            rest = _read_until(ours, "Stopped")
    os.close(ours)
    assert demo.returncode == 0, rest
    assert json.loads(usage_of_key)["totals"]["denied"] == 4
    assert json.loads(left_of_key)["key_id"] == "research-lab"
    rows = json.loads(usage_of_account)["rows"]
    assert {row["key"] for row in rows} == {"assistant-live", "leaked", "nightly-batch", "research-lab"}
    assert "papertrail,rate_limited" in usage_of_all
    assert json.loads(decision)["allowed"]
    assert roles == [("operator", None), ("management", "northwind"), ("consumption", "northwind")]


def _read_until(terminal: int, marker: str) -> str:
    """Return what a terminal shows until *marker*, or its end."""
    shown = b""
    while marker.encode() not in shown:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # Linux says EIO when the other side is closed.
            break
        if not piece:
            break
        shown += piece
    text = shown.decode()
    assert marker in text, text
    return text


def _curl(line: str) -> str:
    """Do what a printed curl command does, so that the test needs no curl."""
    words = shlex.split(line)
    assert words[:2] == ["curl", "-s"]
    assert words[2] == "-H"
    name, _, value = words[3].partition(": ")
    body = words[words.index("-d") + 1].encode() if "-d" in words else None
    request = urllib.request.Request(words[4], data=body, headers={name: value})
    with _opener().open(request) as answer:
        text: str = answer.read().decode()
        return text


def _log_in(page: str, key: str) -> tuple[str, str | None]:
    """Log in as the page does; return the role and the account."""
    body, headers = json.dumps({"key": key}).encode(), {"Content-Type": "application/json"}
    with _opener().open(urllib.request.Request(f"{page}tk/v1/login", data=body, headers=headers)) as answer:
        found = json.load(answer)
        return found["role"], found["account"]


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))
