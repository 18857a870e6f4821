"""The files of `deploy/` and the image say what is so: metrics, settings and commands that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml  # type: ignore[import-untyped]

from tollkeeper import environment
from tollkeeper.http.metrics import METRICS
from tollkeeper.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[2]
DEPLOY: Final = ROOT / "deploy"
FILES: Final = [ROOT / "Dockerfile", *sorted(DEPLOY.iterdir())]


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\btollkeeper_[a-z_]+\b", text))


def samples() -> set[str]:
    names = {metric.name for metric in METRICS if metric.type != "histogram"}
    for metric in METRICS:
        if metric.type == "histogram":
            names |= {f"{metric.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")}
    return names


def test_the_alerts_are_about_metrics_that_there_are() -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert metrics_in(" ".join(rule["expr"] for rule in rules)) <= samples()
    said = (ROOT / "docs" / "operate.md").read_text()
    assert re.findall(r"^\| `(Tollkeeper\w+)` \|", said, re.MULTILINE) == [rule["alert"] for rule in rules]
    assert all(rule["annotations"]["summary"].endswith(".") for rule in rules)


def test_the_board_shows_metrics_that_there_are() -> None:
    board: dict[str, Any] = json.loads((DEPLOY / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(queries) > 20
    assert metrics_in(" ".join(queries)) <= samples()
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_variables_are_settings(file: Path) -> None:
    named = re.findall(r"\bTOLLKEEPER_[A-Z_]*[A-Z]", file.read_text())
    environment.check_known(Settings.__struct_fields__, dict.fromkeys(named, ""))


def test_the_service_starts_as_an_unprivileged_user() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    service = compose["services"]["tollkeeper"]
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert service["ports"] == ["127.0.0.1:8080:8080"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert dockerfile.index("\nUSER tollkeeper") < dockerfile.index("\nENTRYPOINT")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_unit_is_one_that_systemd_reads(tmp_path: Path) -> None:
    unit = tmp_path / "tollkeeper.service"
    # The binary is checked for, too.
    unit.write_text(
        (DEPLOY / "tollkeeper.service")
        .read_text()
        .replace("/opt/tollkeeper/bin/tollkeeper serve", "/bin/true")
    )
    found = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", str(unit)], capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")
