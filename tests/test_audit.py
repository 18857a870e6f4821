"""CI's audit of the pinned packages is red on a finding or a failure of its own, and never for want of a network."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[1]
_SPEC: Final = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
assert _SPEC is not None
assert _SPEC.loader is not None
audit: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(audit)

CLEAN: Final = {"name": "a", "version": "1", "vulns": []}
BAD: Final = {"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["2.1"]}]}
UNKNOWN: Final = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("exit_code", "packages", "errors", "expected", "said"),
    [
        (0, [CLEAN, UNKNOWN], "", 0, "in 1 of 2 packages"),
        (1, [CLEAN, BAD], "", 1, "b 2: X-1 (fixed in 2.1)"),
        (0, [BAD, UNKNOWN], "", 1, "X-1"),
        (0, [UNKNOWN, UNKNOWN], "", 0, "NOT AUDITED: the advisory database knows none of 2"),
        (1, [CLEAN], "boom", 1, "failed (exit code 1): boom"),
        (1, None, "requests.exceptions.ProxyError: Max retries exceeded", 0, "NOT AUDITED"),
        (1, None, "ERROR: Could not connect to the vulnerability feed", 0, "NOT AUDITED"),
        (1, None, "Traceback: KeyError", 1, "failed"),
        (2, None, "usage: unknown option", 1, "failed"),
        (0, None, "", 1, "failed"),
    ],
)
def test_an_audit_says_what_it_looked_at(
    exit_code: int, packages: list[Any] | None, errors: str, expected: int, said: str
) -> None:
    output = "" if packages is None else json.dumps({"dependencies": packages})
    code, line = audit.verdict(exit_code, output, errors)
    assert code == expected
    assert said in line


@pytest.mark.parametrize("path", ["constraints.txt", ".ci/audit-constraints.txt"])
def test_every_version_is_pinned(path: str) -> None:
    lines = (ROOT / path).read_text(encoding="utf-8").split()
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []


def test_the_installer_is_pinned_too() -> None:
    assert re.search(r"^pip==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert "--upgrade pip" not in (ROOT / "Makefile").read_text(encoding="utf-8")
