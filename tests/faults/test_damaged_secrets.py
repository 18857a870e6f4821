"""A secret of the installation that was emptied, cut off or overwritten is refused by name, and signs nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Install
from tollkeeper.errors import Unavailable

NAMES = ("session.secret", "webhook.secret")
DAMAGES = {
    "emptied": lambda good: b"",
    "one byte short": lambda good: good[:-1],
    "cut off": lambda good: good[: len(good) // 2],
    "zeros": lambda good: bytes(len(good)),
    "other bytes": lambda good: b"\xff" * len(good),
    "spaces": lambda good: b" " * len(good),
}


@pytest.mark.drawn(4)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_secret_is_named_and_never_signs(
    install: Install, tmp_path: Path, name: str, damage: str
) -> None:
    """With an empty secret anybody could sign; the copy that is put back opens, as nothing else was touched."""
    install().close()
    path = tmp_path / "data" / name
    good = path.read_bytes()
    path.write_bytes(DAMAGES[damage](good))
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            install()
        assert str(path) in str(caught.value)
        assert "remove it" in str(caught.value)
        assert good.decode() not in str(caught.value)
    assert path.read_bytes() == DAMAGES[damage](good)
    path.write_bytes(good)
    install().close()
    assert path.read_bytes() == good


@pytest.mark.parametrize("name", NAMES)
def test_a_removed_secret_is_made_anew(install: Install, tmp_path: Path, name: str) -> None:
    """As the message says; the new one is another, for its owner alone."""
    install().close()
    path = tmp_path / "data" / name
    before = path.read_bytes()
    path.unlink()
    install().close()
    assert path.read_bytes() != before
    assert len(path.read_bytes()) == 64
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", NAMES)
def test_a_secret_that_cannot_be_read_is_named(install: Install, tmp_path: Path, name: str) -> None:
    """A directory in its place, as a slip when copies are put back makes it."""
    install().close()
    path = tmp_path / "data" / name
    path.unlink()
    path.mkdir()
    with pytest.raises(Unavailable) as caught:
        install()
    assert str(path) in str(caught.value)
