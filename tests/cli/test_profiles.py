"""`tollkeeper profiles` says of each dialect what its profile declares, and the demo of a dialect shows its calls."""

from __future__ import annotations

import http.client
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import answer_of, environment, free_port, in_process
from tests.profiles.test_sixth import as_a_module as as_a_module
from tollkeeper.api.profile_guide import curl_of
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.console import program
from tollkeeper.demo.dialect import sample_of
from tollkeeper.domain.catalog import Key
from tollkeeper.profiles import load, names
from tollkeeper.profiles.base import BEARER_KEY, NO_CREDENTIAL, Credential, Endpoint, setting_fault

PROFILES = names()


def nothing(call: Any, context: Any) -> Any:
    raise AssertionError


def test_all_profiles_are_listed() -> None:
    done = in_process("profiles")
    assert done.returncode == 0
    for name in PROFILES:
        assert f"\n{name} " in done.stdout
    assert [guide["name"] for guide in answer_of(in_process("profiles", "list", "--json"))] == list(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_shown_as_it_is_declared(name: str) -> None:
    profile = load(name)
    shown = answer_of(in_process("profiles", "show", name, "--json"))
    assert [(e["method"], e["path"]) for e in shown["endpoints"]] == [e[:2] for e in profile.endpoints]
    assert {s["name"]: s["default"] for s in shown["settings"]} == profile.settings
    assert shown["key_prefix"] == profile.key_prefix
    text = in_process("profiles", "show", name).stdout
    for endpoint in profile.endpoints:
        assert endpoint.path in text
    for guide in shown["endpoints"]:
        assert guide["curl"] in text


@pytest.mark.parametrize("name", PROFILES)
def test_the_allowed_values_of_a_setting_are_those_that_it_takes(name: str) -> None:
    """Each listed choice and bound is taken, and what is beyond a bound is refused."""
    profile = load(name)
    for setting in answer_of(in_process("profiles", "show", name, "--json"))["settings"]:
        allowed, default = setting["allowed"], setting["default"]
        if bounds := re.fullmatch(r"(\d+) to (\d+)", allowed):
            least, most = map(int, bounds.groups())
            assert setting_fault(profile, setting["name"], least) is None
            assert setting_fault(profile, setting["name"], most) is None
            assert setting_fault(profile, setting["name"], least - 1)
            assert setting_fault(profile, setting["name"], most + 1)
        elif ", " in allowed and isinstance(default, str | int) and not isinstance(default, bool):
            for choice in allowed.removesuffix(" or more").split(", "):
                value = int(choice) if choice.isdigit() else choice
                if not allowed.startswith("a whole number"):
                    assert setting_fault(profile, setting["name"], value) is None, (setting, value)


@pytest.mark.parametrize("name", PROFILES)
def test_catalog_and_sample_make_one_declarative_file(name: str) -> None:
    printed = in_process("profiles", "show", name, "--catalog", "--sample").stdout
    entries = parse_declaration(printed)
    assert len(entries) == len(parse_declaration(load(name).catalog)) + len(
        parse_declaration(sample_of(load(name)))
    )
    assert any(isinstance(entry, Key) and entry.profile == name for entry in entries)


def test_an_unknown_profile_is_refused_with_the_names() -> None:
    for command in (("profiles", "show", "shaol"), ("demo", "--profile", "shaol")):
        done = in_process(*command)
        assert done.returncode == 2
        assert ", ".join(PROFILES) in done.stderr
    assert in_process("profiles", "show", "shoal", "--catalog", "--json").returncode == 2


def test_a_call_is_quoted_for_a_shell() -> None:
    endpoint = Endpoint("POST", "/k/{keyId}", nothing, BEARER_KEY, "p={project}", '{"name": "it\'s"}')
    words = shlex.split(curl_of(endpoint, "http://h/", {"secret": "s$1", "keyId": "k 1", "project": "web"}))
    assert words[:4] == ["curl", "-s", "-X", "POST"]
    assert words[4:] == [
        "-H",
        "Authorization: Bearer s$1",
        "http://h/k/k 1?p=web",
        "-H",
        "Content-Type: application/json",
        "-d",
        '{"name": "it\'s"}',
    ]
    assert curl_of(Endpoint("GET", "/p", nothing, NO_CREDENTIAL), "http://h", {}) == "curl -s 'http://h/p'"
    other = Endpoint("GET", "/u", nothing, Credential("key", "X-Key: {secret}"), "id={project}")
    assert curl_of(other, "http://h", {}) == "curl -s -H 'X-Key: KEY' 'http://h/u?id=PROJECT'"


@pytest.mark.drawn(2)
@pytest.mark.parametrize("name", PROFILES)
def test_the_demo_of_a_dialect_shows_the_vendors_calls_and_their_answers(name: str, tmp_path: Path) -> None:
    done = in_process(
        "demo", "--profile", name, "--no-serve", "--data", tmp_path / "demo", "--port", free_port()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Booked 600 events of the last 30 days." in done.stdout
    assert "ok: counters, ledger and events agree" in done.stdout
    curls = re.findall(r"^curl .*$", done.stdout, re.MULTILINE)
    statuses = re.findall(r"^HTTP (\d+)$", done.stdout, re.MULTILINE)
    assert curls
    assert statuses == ["200"] * len(curls)
    profile = load(name)
    assert profile.endpoints[0].path in curls[0]
    assert profile.key_prefix in curls[0]
    # Of history and gate: no vendor's first answer is of an account without traffic.
    first = done.stdout.partition("HTTP 200\n")[2]
    assert re.search(r'"(used|request_count|totalRequests|spent)": [1-9]', first) or "0.0" in first


def test_a_dialect_is_served_again_and_called_as_printed(tmp_path: Path) -> None:
    port = free_port()
    shown = in_process(
        "demo", "--profile", "shoal", "--no-serve", "--data", tmp_path / "demo", "--port", port
    ).stdout
    (curl,) = re.findall(r"^curl .*$", shown, re.MULTILINE)
    answer = json.loads(shown.partition("HTTP 200\n")[2].partition("\n\n")[0])
    (serve,) = re.findall(r"^\S+ -m tollkeeper serve .*$", shown, re.MULTILINE)
    with subprocess.Popen(
        shlex.split(serve),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as server:
        assert server.stdout is not None
        try:
            while "Ctrl-C" not in (line := server.stdout.readline()):
                assert line, "the server ended"
            words = shlex.split(curl)
            name, _, value = words[3].partition(": ")
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", words[4].partition(f":{port}")[2], headers={name: value})
            found = json.loads(connection.getresponse().read())
            connection.close()
        finally:
            server.terminate()
    assert found["data"]["budget"] == answer["data"]["budget"]
    assert found["data"]["thisMonth"] == answer["data"]["thisMonth"] + 1


def test_commands_are_printed_as_the_reader_must_type_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the PATH by their name; from `.venv/bin` by that path, from inside and outside of the directory."""
    script = tmp_path / ".venv/bin/tollkeeper"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.chdir(tmp_path)
    assert program.program() == ".venv/bin/tollkeeper"
    monkeypatch.chdir("/")
    assert program.program() == str(script).removeprefix("/")
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    assert program.program() == str(script)
    monkeypatch.setenv("PATH", str(script.parent))
    assert program.program() == "tollkeeper"
    monkeypatch.setattr(sys, "argv", ["/some/where/__main__.py"])
    assert program.program().endswith("-m tollkeeper")


@pytest.mark.usefixtures("as_a_module")
def test_the_sixth_is_shown_as_the_five_are(tmp_path: Path) -> None:
    """`profiles show` and the demo need nothing of a profile but what it declares; it may have no sample."""
    shown = in_process("profiles", "show", "tally")
    assert "curl -s -H 'X-Tally-Key: KEY' 'http://127.0.0.1:8080/count'" in shown.stdout
    assert "401, 404" in shown.stdout
    done = in_process(
        "demo", "--profile", "tally", "--no-serve", "--data", tmp_path / "demo", "--port", free_port()
    )
    assert done.returncode == 0, done.stderr
    assert '"count": ' in done.stdout.partition("HTTP 200")[2]
