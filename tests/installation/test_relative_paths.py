"""A data directory that is named relative to the working directory stays where it was when it was opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tollkeeper import Tollkeeper
from tollkeeper.domain.catalog import Account


def test_a_change_of_the_working_directory_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The import of chDB changes it for a moment, in a thread, while the directory is being opened."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    with Tollkeeper.open("./data") as toll:
        monkeypatch.chdir(elsewhere)
        assert Path(toll.installation.settings.data_dir) == tmp_path / "data"
        toll.manage.put(Account(id="acme", name="Acme"))
        toll.record([{"id": "e1", "time": "2026-01-01T00:00:00Z", "account": "acme"}])
        assert toll.verify().ok
    assert list(elsewhere.iterdir()) == []
    monkeypatch.chdir(tmp_path)
    with Tollkeeper.open("./data") as toll:
        assert toll.manage.get("accounts", "acme")
