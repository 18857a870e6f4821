"""A usage store on a server, which two processes of one installation write: each sees the other's marks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
from tollkeeper.adapters.clickhouse.engine import Engine
from tollkeeper.adapters.clickhouse.marks import TableMarks
from tollkeeper.domain.pairing import BatchMark
from tollkeeper.errors import StoresMismatch


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """The engine in this process has the same table."""
    url = f"chdb://{tmp_path / 'usage'}"
    ClickHouseUsageStore.open(url).close()
    engine = Engine(url)
    yield engine
    engine.close()


def test_the_second_of_two_writers_stops(engine: Engine) -> None:
    """A copy of an installation beside its original: at most one batch of each is written, then one goes on alone."""
    original, copy = TableMarks(engine.connect()), TableMarks(engine.connect())
    original.all()
    original.note(BatchMark("i", "a", 1))
    original.note(BatchMark("i", "a", 1))
    original.note(BatchMark("i", "a", 2))
    assert copy.all() == {"i": BatchMark("i", "a", 2)}
    copy.note(BatchMark("i", "b", 3))
    for _ in range(2):
        with pytest.raises(StoresMismatch, match="Another process of installation i"):
            original.note(BatchMark("i", "a", 3))
    copy.note(BatchMark("i", "b", 4))
    # Started again it compares ledger and store first, and goes on from what is there.
    again = TableMarks(engine.connect())
    assert again.all() == {"i": BatchMark("i", "b", 4)}
    again.note(BatchMark("i", "c", 5))


def test_installations_that_share_a_store_on_purpose_do_not_see_each_other(engine: Engine) -> None:
    one, two = TableMarks(engine.connect()), TableMarks(engine.connect())
    one.all()
    two.all()
    for batch in range(1, 4):
        one.note(BatchMark("one", "a", batch))
        two.note(BatchMark("two", "b", batch))
    assert two.all() == {"one": BatchMark("one", "a", 3), "two": BatchMark("two", "b", 3)}


def test_a_note_whose_answer_was_lost_is_made_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    client = engine.connect()
    marks = TableMarks(client)
    marks.all()
    marks.note(BatchMark("i", "a", 1))
    command = client.command

    def lose(*args: object, **kwargs: object) -> None:
        command(*args, **kwargs)  # type: ignore[arg-type]
        raise RuntimeError("the answer was lost by the test")

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("refused by the test")

    for failing in (refuse, lose):
        monkeypatch.setattr(client, "command", failing)
        with pytest.raises(RuntimeError):
            marks.note(BatchMark("i", "a", 2))
        monkeypatch.undo()
    marks.note(BatchMark("i", "a", 2))
    assert marks.all() == {"i": BatchMark("i", "a", 2)}
