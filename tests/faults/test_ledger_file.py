"""The ledger's file is removed or replaced while it is open: nothing more is acknowledged into nowhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Install
from tests.readiness import reasons_not_ready
from tollkeeper.domain.catalog import Account
from tollkeeper.errors import Unavailable
from tollkeeper.meter.decode import decode_events
from tollkeeper.testing import NOON, set_up

NOON_US = int(NOON.timestamp()) * 1_000_000


@pytest.mark.drawn(2)
@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_ledger_that_is_gone_from_its_place_takes_nothing(
    install: Install, tmp_path: Path, account: str, suffix: str, replaced: bool
) -> None:
    """SQLite goes on writing to a file without a name. What is put back is taken up again."""
    site = install()
    set_up(site, Account(id=account, name="A"))

    def send(id_: str) -> int:
        event = {"id": id_, "time": NOON.isoformat(), "account": account, "cost_nanos": 1}
        return site.ingest.take(decode_events([event], now_us=NOON_US)).accepted

    assert send("a") == 1
    assert site.delivery.fresh(account)
    path, aside = tmp_path / "data" / f"ledger.sqlite3{suffix}", tmp_path / "aside"
    path.rename(aside)
    if replaced:
        shutil.copy(aside, path)
    with pytest.raises(Unavailable, match="was removed or replaced"):
        send("b")
    with pytest.raises(Unavailable, match="was removed or replaced"):
        site.ledger.outbox.next_batch(10)
    (reason,) = [reason for reason in reasons_not_ready(site) if "removed or replaced" in reason]
    assert str(path) in reason
    aside.rename(path)
    assert send("b") == 1
    assert reasons_not_ready(site) == []
    site.close()
    assert (
        install()
        .ingest.take(
            decode_events(
                [{"id": "b", "time": NOON.isoformat(), "account": account, "cost_nanos": 1}], now_us=NOON_US
            )
        )
        .duplicates
        == 1
    )
