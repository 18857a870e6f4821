"""
Looks the pinned packages up in the advisory database, by pip-audit: `make audit`.

Exit code 1: a package has a known vulnerability, or the audit itself failed. Exit code 0 otherwise, also when the
database cannot be reached or does not know the packages; the line that is printed says how many were looked up, so
that a run without the network is not taken for a clean one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

UNREACHABLE = (
    "could not connect",
    "connectionerror",
    "connection error",
    "timed out",
    "max retries exceeded",
)


def main(arguments: list[str]) -> int:
    """Audit each file of pinned requirements in *arguments*."""
    return max([audit(path) for path in arguments], default=0)


def audit(path: str) -> int:
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json"]
    done = subprocess.run([*command, "--requirement", path], capture_output=True, text=True, check=False)
    code, line = verdict(done.returncode, done.stdout, done.stderr)
    print(f"{path}: {line}")
    return code


def verdict(exit_code: int, output: str, errors: str) -> tuple[int, str]:
    """Return the exit code, and what to say, of one run of pip-audit."""
    try:
        packages: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if any(sign in errors.lower() for sign in UNREACHABLE):
            return 0, "NOT AUDITED: the advisory database cannot be reached from here"
        return 1, f"the audit failed (exit code {exit_code}): {errors.strip()[-2_000:]}"
    found = [
        f"{package['name']} {package['version']}: {vulnerability['id']}"
        f" (fixed in {', '.join(vulnerability['fix_versions']) or 'no version yet'})"
        for package in packages
        for vulnerability in package.get("vulns", ())
    ]
    if found:
        return 1, "\n  ".join(["known vulnerabilities", *found])
    audited = sum("vulns" in package for package in packages)
    if audited == 0:
        return 0, f"NOT AUDITED: the advisory database knows none of {len(packages)} packages"
    if exit_code != 0:
        return 1, f"the audit failed (exit code {exit_code}): {errors.strip()[-2_000:]}"
    return 0, f"no known vulnerability in {audited} of {len(packages)} packages that were looked up"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
