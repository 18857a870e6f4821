"""`POST /tk/v1/backup`: an operator's, below one directory, complete when it is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.http.conftest import Api
from tollkeeper.installation import Installation
from tollkeeper.restoring import check_backup


def test_a_backup_is_complete_when_it_is_answered(api: Api, installation: Installation, account: str) -> None:
    api("POST", "/tk/v1/accounts", {"id": account, "name": "A"})
    event = {"id": "b", "time": "2026-01-31T00:00:00Z", "account": account, "cost_nanos": 3}
    assert api("POST", "/tk/v1/events", event).status_code == 200
    installation.delivery.fresh(account)
    answer = api("POST", "/tk/v1/backup", {"target": "monday"})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    path = Path(installation.settings.backups) / "monday"
    assert said["path"] == str(path)
    manifest = check_backup(path)
    assert said["bytes"] == manifest.bytes
    assert said["files"] == len(manifest.files)
    assert 0 < said["totals"]["events"] == manifest.totals.events
    shown = manifest.made_at_us // 1_000_000
    assert f"tollkeeper_backup_timestamp_seconds {shown}\n" in api("GET", "/metrics").text
    again = api("POST", "/tk/v1/backup", {"target": str(path)}).json()
    assert again["written_bytes"] < said["bytes"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "target: missing"),
        ({"target": 7}, "target"),
        ({"target": ""}, "target"),
        ({"target": "a", "more": 1}, "more: unknown field"),
        ({"target": "../up"}, "target must be a name"),
        ({"target": "/etc/tollkeeper"}, "target must be a name"),
        ({"target": "a/b"}, "target must be a name"),
        ({"target": ".ssh"}, "target must be a name"),
    ],
)
def test_nothing_is_written_elsewhere(api: Api, body: dict[str, object], said: str) -> None:
    answer = api("POST", "/tk/v1/backup", body)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert answer.json()["code"] == "bad_parameter"


def test_what_is_there_already_is_a_conflict(api: Api, installation: Installation) -> None:
    mine = Path(installation.settings.backups) / "mine"
    mine.mkdir(parents=True)
    (mine / "letter").write_text("dear")
    answer = api("POST", "/tk/v1/backup", {"target": "mine"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert [path.name for path in mine.iterdir()] == ["letter"]
