"""Files of the usage store are damaged between two starts: that is reported, and derived data is rebuilt."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.effort import LONG, effort
from tests.faults.test_disk import run

COUNT: Final = 200
TOTALS: Final = {"requests": COUNT, "cost_nanos": COUNT * (COUNT + 1) // 2}

FILL: Final = """
    import json, sys
    from tollkeeper import Tollkeeper
    from tollkeeper.testing import NOON
    with Tollkeeper.open(sys.argv[1], unknown_route="allow") as toll:
        toll.apply('''
            [[accounts]]
            id = "acme"
            name = "A"
            [[budgets]]
            id = "b"
            account = "acme"
            amount = 1_000_000_000
            period = "total"
        ''')
        taken = toll.record([
            {"id": f"e{n}", "time": NOON.isoformat(), "account": "acme", "cost_nanos": n + 1} for n in range(200)
        ])
        print(json.dumps([taken.accepted, toll.verify().ok]))
"""

LOOK: Final = """
    import json, sys
    from tollkeeper import Tollkeeper, UsageQuery
    from tollkeeper.errors import Unavailable
    from tests.readiness import reasons_not_ready
    from tollkeeper.testing import NOON

    def said(call):
        try:
            return call()
        except Unavailable as exc:
            return f"Unavailable: {exc} {exc.fields}"

    def verdict():
        found = toll.verify()
        return [found.ok, [line.what for line in found.differences], found.store_differences]

    def totals():
        query = UsageQuery(account_id="acme", from_us=0, to_us=2**52, measures=("requests", "cost_nanos"))
        return toll.usage(query).totals

    def complete():
        return toll.usage(UsageQuery(account_id="acme", from_us=0, to_us=2**52, measures=("requests",))).complete

    def health():
        toll.installation.store.wait()
        pairing = toll.installation.pairing
        return [reasons_not_ready(toll.installation), pairing.warnings()]

    def again():
        event = {"id": "e1", "time": NOON.isoformat(), "account": "acme", "cost_nanos": 2}
        return toll.record([event]).accepted

    def more():
        return toll.record([{"id": "more", "time": NOON.isoformat(), "account": "acme", "cost_nanos": 1}]).accepted

    with Tollkeeper.open(sys.argv[1], unknown_route="allow") as toll:
        store = toll.installation.store
        steps = {"more": more, "usage": totals, "verify": verdict, "differences": store.differences,
                 "rebuild": lambda: dict(toll.rebuild()), "again": again, "complete": complete, "health": health}
        print(json.dumps([said(steps[name]) for name in sys.argv[2:]]))
"""


def cut_off(part: Path) -> None:
    data = part / "data.bin"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def flip(part: Path) -> None:
    data = part / "data.bin"
    content = bytearray(data.read_bytes())
    for place in range(len(content) // 4, len(content) - 20, 37):
        content[place] ^= 0xFF
    data.write_bytes(content)


def overwrite_checksums(part: Path) -> None:
    (part / "checksums.txt").write_bytes(b"x")


def remove_part(part: Path) -> None:
    shutil.rmtree(part)


DAMAGES: Final = [cut_off, flip, overwrite_checksums, remove_part]


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the processes of `run`, which work in another directory."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("filled") / "data"
    assert run(FILL, str(directory)) == [COUNT, True]
    return directory


@pytest.fixture
def damaged(filled: Path, tmp_path: Path) -> Callable[[str, Callable[[Path], None]], Path]:
    """Copy the filled directory, with all parts of one table damaged."""

    def damage(table: str, how: Callable[[Path], None]) -> Path:
        copy = tmp_path / "data"
        shutil.copytree(filled, copy, symlinks=True)
        # The engine names a table by a link to where its parts are.
        place = (copy / "usage" / "data" / "default" / table).readlink()
        parts = [
            path.parent
            for path in (copy / "usage" / "store" / place.parent.name / place.name).glob("*/checksums.txt")
        ]
        assert parts
        for part in parts:
            how(part)
        return copy

    return damage


def look(directory: Path, *steps: str) -> list[Any]:
    found = run(LOOK, str(directory), *steps)
    assert len(found) == len(steps)
    return list(found)


def of_derived(*damages: Callable[[Path], None]) -> list[Any]:
    """Return each of *damages* to a derived table; to both in `make test-long`."""
    pairs = [(table, how) for table in ("usage_rollups", "event_ids") for how in damages]
    chosen = [pair for place, pair in enumerate(pairs) if LONG or (place + place // len(damages)) % 2 == 0]
    return [pytest.param(table, how, id=f"{table}-{how.__name__}") for table, how in chosen]


@pytest.mark.drawn(1)
@pytest.mark.parametrize(("table", "how"), of_derived(*DAMAGES))
def test_what_is_derived_is_told_and_made_anew(damaged: Any, table: str, how: Any) -> None:
    """Verify names it; after a rebuild, answers are right at once, in the same process, and ids are known again."""
    directory = damaged(table, how)
    verdict, rebuilt, after, totals, again = look(directory, "verify", "rebuild", "verify", "usage", "again")
    if how is flip:
        assert "is damaged" in verdict
    else:
        assert verdict[0] is False
        assert any(line.startswith(table) for line in verdict[2])
    assert not isinstance(rebuilt, str), rebuilt
    assert rebuilt["event_ids"] == COUNT
    assert after == [True, [], []]
    assert totals == TOTALS
    assert again == 0


@pytest.mark.drawn(1)
@pytest.mark.parametrize(("table", "how"), of_derived(cut_off, overwrite_checksums))
def test_what_was_set_aside_is_not_passed_over(damaged: Any, table: str, how: Any) -> None:
    """Until the rebuild nothing is answered from what is left, which would look right, nor taken for new."""
    steps = ("usage", "again", "rebuild", "usage", "again")
    directory = damaged(table, how)
    usage, again, rebuilt, totals, repeated = look(directory, *steps)
    for refused in (usage, again):
        assert "is set aside: run `tollkeeper rebuild`" in refused
        assert f"{table} broken-on-start" in refused
    assert rebuilt["event_ids"] == COUNT
    assert (totals, repeated) == (TOTALS, 0)
    assert look(directory, "usage", "again") == [TOTALS, 0]


@pytest.mark.drawn(1)
@pytest.mark.parametrize("table", ["usage_rollups", "event_ids"])
def test_a_derived_part_that_is_gone_is_noticed_at_the_start(damaged: Any, table: str) -> None:
    """Nothing is left of it but the records that it was derived from. A known event must not be taken for new."""
    steps = ("health", "usage", "again", "rebuild", "health", "usage", "complete", "again")
    health, usage, again, rebuilt, healthy, totals, complete, repeated = look(
        damaged(table, remove_part), *steps
    )
    missing = f"{table}: {COUNT} of {COUNT} records are missing"
    assert health == [
        [f"the usage store lacks what is derived from its records: {missing}: run `tollkeeper rebuild`"], [],
    ]  # fmt: skip
    for refused in (usage, again):
        assert "run `tollkeeper rebuild`" in refused
        assert missing in refused
    assert rebuilt["event_ids"] == COUNT
    assert (healthy, totals, complete, repeated) == ([[], []], TOTALS, True, 0)


@pytest.mark.drawn(1)
@pytest.mark.parametrize("how", [cut_off, remove_part], ids=lambda how: how.__name__)
def test_an_answer_of_a_store_that_lacks_records_is_not_complete(damaged: Any, how: Any) -> None:
    """Set aside or gone: said from the start, and a rebuild cannot bring it back."""
    steps = ("health", "complete", "again", "rebuild", "verify", "complete", "health")
    health, complete, again, refused, verdict, later, still = look(damaged("events", how), *steps)
    assert (complete, later, again) == (False, False, 0)
    assert "nothing was rebuilt" in refused
    assert verdict[0] is False
    for reasons, warnings in (health, still):
        assert reasons == []
        assert f"{COUNT} records are missing in the usage store: answers are not complete" in warnings
        assert how is remove_part or "events broken-on-start" in str(warnings)


def test_an_answer_from_before_the_rebuild_does_not_outlive_it(damaged: Any) -> None:
    """It was computed from rollups that were gone, and nothing of the account is committed to say so."""
    before, rebuilt, after = look(damaged("usage_rollups", remove_part), "usage", "rebuild", "usage")
    assert before != TOTALS
    assert rebuilt["usage_rollups"] > 0
    assert after == TOTALS


@pytest.mark.drawn(1)
@pytest.mark.parametrize("how", [cut_off, flip, overwrite_checksums], ids=lambda how: how.__name__)
def test_damaged_records_are_named_and_take_nothing_else_along(damaged: Any, filled: Path, how: Any) -> None:
    """
    What was derived from them is right and is all that is left: a rebuild from nothing would empty it, and ids
    that are not known any more count twice. A copy that is put back is whole.
    """
    directory = damaged("events", how)
    verdict, lines, refused, totals = look(directory, "verify", "differences", "rebuild", "usage")
    if how is flip:
        assert "Unavailable: the usage store is damaged" in verdict
        assert "/data.bin" in verdict
        assert "part 202603_1_1_0 is damaged" in str(lines) or "is damaged: 202603_1_1_0/data.bin" in lines
    else:
        assert verdict[0] is False
        assert verdict[1] == ["counter budget:b against its events"]
        assert verdict[2][0] == "events: part broken-on-start_202603_1_1_0 was damaged and is set aside"
    assert "nothing was rebuilt" in refused
    assert "202603_1_1_0" in refused
    assert totals == TOTALS
    shutil.rmtree(directory / "usage")
    shutil.copytree(filled / "usage", directory / "usage", symlinks=True)
    assert look(directory, "verify", "usage", "again") == [[True, [], []], TOTALS, 0]


def test_records_that_were_removed_are_missed(damaged: Any) -> None:
    """Nothing is left to be named but what was counted of them: the ledger and the rollups."""
    verdict, refused, totals = look(damaged("events", remove_part), "verify", "rebuild", "usage")
    assert verdict[0] is False
    assert verdict[1] == ["counter budget:b against its events"]
    missing = f"events: {COUNT} of {COUNT} records are missing"
    assert verdict[2][0] == missing
    # Rebuilt from the remaining events, the rollups would forget them too.
    assert "nothing was rebuilt" in refused
    assert missing in refused
    assert any(line.startswith("usage_rollups: ") for line in verdict[2])
    assert any(line.startswith("event_ids: ") for line in verdict[2])
    assert totals == TOTALS


KILLED: Final = """
    import os, sys
    from tollkeeper import Tollkeeper

    with Tollkeeper.open(sys.argv[1], unknown_route="allow") as toll:
        client, left = toll.installation.store._store._engine.appender, int(sys.argv[2])
        command = client.command

        def count(*args, **options):
            global left
            if left == 0:
                print("killed", flush=True)
                os.kill(os.getpid(), 9)
            left -= 1
            return command(*args, **options)

        client.command = count
        toll.rebuild()
        print("ended", flush=True)
"""


def test_a_rebuild_that_is_killed_changes_no_answer(filled: Path, tmp_path: Path) -> None:
    """At whichever step; the next one takes up nothing that it left."""
    for step in itertools.count(step=effort(12, 1)):
        directory = shutil.copytree(filled, tmp_path / str(step), symlinks=True)
        ended = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(KILLED), str(directory), str(step)],
            check=False, capture_output=True, text=True, timeout=120, cwd="/",
        )  # fmt: skip
        assert ended.stdout in ("killed\n", "ended\n"), ended.stderr
        usage, again, more, verdict = look(directory, "usage", "again", "more", "verify")
        assert (usage, again, more, verdict) == (TOTALS, 0, 1, [True, [], []]), step
        if ended.stdout == "ended\n":
            break
        tables = {path.name for path in (directory / "usage" / "data" / "default").iterdir()}
        assert not any("rebuilt" in name for name in tables)
    assert step >= 11


ONE_OF_MANY: Final = """
    import json, sys
    from pathlib import Path
    from tests.contract.test_usage_store import record
    from tollkeeper.adapters.clickhouse import ClickHouseUsageStore
    from tollkeeper.record_columns import table_of

    store = ClickHouseUsageStore.open("chdb://" + sys.argv[1])
    found = [store.differences()]
    store._engine.appender.command("SYSTEM STOP MERGES events")
    for number in range(3):
        store.append(table_of([record("acct")._replace(id=f"e{number}")]), f"token{number}")
    found.append(store.differences())
    parts = store._engine.rows("SELECT path FROM system.parts WHERE table = 'events' AND active ORDER BY name", {})
    data = Path(parts[1][0]) / "data.bin"
    data.write_bytes(bytes(byte ^ 0xFF for byte in data.read_bytes()))
    found += [len(parts), store._audit.damages(0)]
    store.close()
    print(json.dumps(found))
"""


def test_one_damaged_part_of_many_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first one; and an empty store has no damage, nor has one of several parts that are whole."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    assert run(ONE_OF_MANY, str(tmp_path / "usage")) == [
        [],
        [],
        3,
        ["events: part 202603_2_2_0 is damaged"],
    ]
