"""Ids and times of keys on the command line: a UUID unless one is given, and when an imported key was made."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from tests.cli.test_command_line import error_of
from tollkeeper.cli.app import run
from tollkeeper.domain.keys import hash_secret

MADE = "2024-02-29T10:00:00.000000Z"


def test_a_key_gets_a_uuid_and_keeps_when_it_was_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(tmp_path / "d")]
    assert run(["accounts", "put", "acme", "name=Acme", *data]) == 0
    capsys.readouterr()
    assert run(["keys", "issue", "account=acme", "name=one", "--json", *data]) == 0
    issued = json.loads(capsys.readouterr().out)
    assert uuid.UUID(issued["entry"]["id"])
    assert (issued["entry"]["name"], issued["secret"][:3]) == ("one", "tk_")
    fields = ["account=acme", f"sha256={hash_secret('old')}", f"created_at={MADE}"]
    line = error_of(capsys, ["keys", "issue", *fields, f"last_used_at={MADE}", *data], 1)
    assert "last_used_at" in line
    line = error_of(capsys, ["keys", "put", "k2", *fields, "prefix=old", *data], 1)
    assert "prefix" in line
    assert run(["keys", "issue", "k1", *fields, "--json", *data]) == 0
    entry = json.loads(capsys.readouterr().out)["entry"]
    assert (entry["id"], entry["created_at"]) == ("k1", MADE)
    assert run(["keys", "put", "k1", *fields, *data]) == 0
    capsys.readouterr()
    line = error_of(capsys, ["keys", "put", "k1", *fields[:2], "created_at=2024-03-01T00:00:00Z", *data], 1)
    assert MADE in line
