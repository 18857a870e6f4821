"""
Quantities in the ledger, on a real installation: budgets and limits of a quantity count what every door reports.

After each test the counter of the ledger is the sum of the events (`verify`).
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest import Install
from tollkeeper import Tollkeeper, Usage
from tollkeeper.domain.bookings import HoldBody, OutboxEntry
from tollkeeper.domain.catalog import Account, Budget, Key, Limit, Plan, Price, Route
from tollkeeper.domain.decisions import Amounts, Denial
from tollkeeper.domain.events import Event, Record, Tokens
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.quantities import MICROS, QUANTITY_UNITS_MAX
from tollkeeper.domain.requests import Outcome
from tollkeeper.domain.requests import Usage as Parsed
from tollkeeper.domain.usage import UsageQuery, UsageReport, quantities_as_text
from tollkeeper.errors import BadParameter
from tollkeeper.gate.admission import Admission
from tollkeeper.installation import Installation
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import encode_rows
from tollkeeper.ledger.holds import _fingerprint
from tollkeeper.ledger.relay import Unreadable, decode_rows, table_of_entry
from tollkeeper.meter.decode import decode_events
from tollkeeper.record_columns import records_of, table_of, to_ipc
from tollkeeper.testing import commit_all, set_up, verify

SECONDS = "quantity.seconds"


class Shop:
    """One account, whose two keys share a budget of 100 seconds a day; one has a limit of 60 seconds a minute."""

    def __init__(self, site: Installation, account: str, secrets: dict[str, str] | None = None) -> None:
        self.site, self.account = site, account
        self.secrets = secrets or set_up(
            site,
            Account(id=account, name="Acme"),
            Plan(slug=f"{account}-plan", limits=[Limit(name="spm", unit=SECONDS, amount=60 * MICROS)]),
            Key(id=f"{account}-limited", account=account, plan=f"{account}-plan"),
            Key(id=f"{account}-plain", account=account),
            Route(id="any", method="*", path="/*"),
            Route(id="free", method="GET", path="/free", free=True),
        )

    def budget(self, amount: int = 100, unit: str = SECONDS, name: str = "b") -> None:
        budget = Budget(id=name, account=self.account, unit=unit, amount=amount * MICROS, period="day")
        self.site.manage.put(budget)

    def admit(self, key: str = "plain", path: str = "/audio", **stated: Any) -> Admission | Denial:
        method = "GET" if path == "/free" else "POST"
        return self.site.holds.admit(self.secrets[f"{self.account}-{key}"], method, path, Usage(**stated))

    def held(self, key: str = "plain", **stated: Any) -> Admission:
        found = self.admit(key, **stated)
        assert isinstance(found, Admission), found
        return found

    def settle(self, admission: Admission, **stated: Any) -> None:
        self.site.holds.settle(admission, Outcome(usage=Usage(**stated)))
        commit_all(self.site)

    def use(self, key: str = "plain", **stated: Any) -> None:
        self.settle(self.held(key, **stated), **stated)

    def send(self, id_: str, **stated: Any) -> None:
        now_us = self.site.clock.now_us()
        event = {"id": id_, "time": to_text(from_us(now_us)), "key_id": f"{self.account}-plain", **stated}
        result = self.site.ingest.take(decode_events([event], now_us=now_us))
        assert result.accepted == 1, result.rejections

    def used(self, name: str = "b", key: str = "plain") -> Decimal:
        compiled_key = self.site.gate.compiled_key(self.secrets[f"{self.account}-{key}"])
        assert not isinstance(compiled_key, Denial)
        statuses = self.site.gate.limit_statuses(compiled_key, self.site.clock.now_us())
        (used,) = [status.used for status in statuses if status.name == name]
        return Decimal(used) / MICROS

    def totals(self, *measures: str) -> list[Any]:
        now_us = self.site.clock.now_us()
        query = UsageQuery(account_id=self.account, from_us=0, to_us=now_us + 1, measures=measures)
        report: UsageReport = quantities_as_text(query, self.site.reports.usage(query))
        return list(report.totals.values())


@pytest.fixture
def shop(install: Install, account: str) -> Iterator[Shop]:
    shop = Shop(install(), account)
    yield shop
    assert verify(shop.site).ok


def test_every_door_counts_alike(shop: Shop) -> None:
    shop.budget()
    shop.use(quantities={"seconds": "61.5", "images": 2})
    shop.send("e", quantities={"seconds": 0.25})
    shop.site.amend.amend(shop.account, "e", "fix", Event(id="-", time="-", quantities={"seconds": "1"}))
    commit_all(shop.site)
    assert shop.used() == Decimal("62.5")
    assert shop.totals("requests", SECONDS, "quantity.images") == [2, "62.5", "2"]
    shop.site.amend.void(shop.account, "e", "void")
    assert shop.used() == Decimal("61.5")
    assert shop.totals("requests", SECONDS) == [1, "61.5"]


def test_a_budget_of_a_period_under_way_starts_from_what_was_used(shop: Shop) -> None:
    shop.use(quantities={"seconds": "0.000001"})
    shop.send("e", quantities={"seconds": 20, "pages": 3})
    shop.budget()
    shop.budget(unit="quantity.pages", name="pages")
    shop.budget(unit="quantity.other", name="other")
    assert (shop.used(), shop.used("pages"), shop.used("other")) == (Decimal("20.000001"), 3, 0)


def test_a_budget_counts_what_is_held_when_it_comes_into_force(shop: Shop) -> None:
    """By requests of a key that counted no quantity when it admitted them, with and without quantities."""
    one, other = shop.held(quantities={"seconds": 7}), shop.held()
    assert (type(other.amounts), one.amounts.requests) == (Amounts, 1)
    shop.budget()
    assert shop.used() == 7
    shop.settle(other, quantities={"seconds": 2})
    assert shop.used() == 9
    shop.settle(one, quantities={"seconds": 5})
    assert shop.used() == 7
    assert isinstance(shop.admit(quantities={"seconds": "93.000001"}), Denial)
    assert isinstance(shop.admit(quantities={"seconds": 93}), Admission)


def test_a_limit_counts_one_key_and_free_routes_too(shop: Shop) -> None:
    shop.use("limited", quantities={"seconds": 40})
    refused = shop.admit("limited", path="/free", quantities={"seconds": 21})
    assert isinstance(refused, Denial)
    assert (refused.unit, refused.largest_fit) == (SECONDS, 20 * MICROS)
    assert "40 of 60 seconds used, 21 needed" in refused.message
    assert isinstance(shop.admit("limited", quantities={"images": 9}), Admission)
    assert isinstance(shop.admit("plain", quantities={"seconds": 9_000}), Admission)


def test_holds_keep_their_quantities_over_a_restart(install: Install, account: str) -> None:
    shop = Shop(install(), account)
    shop.budget()
    secret = shop.secrets[f"{account}-limited"]
    found = shop.site.holds.authorize(
        secret,
        "POST",
        "/audio",
        Usage(quantities={"seconds": "12.5", "own": 1}, variant="batch"),
        CommitFuture(),
        hold_id="h",
    )
    assert not isinstance(found, Denial)
    found[1].wait()
    shop.site.close()
    shop = Shop(install(), account, shop.secrets)
    assert (shop.used(), shop.used("spm", "limited")) == (Decimal("12.5"), Decimal("12.5"))
    outcome = Outcome(usage=Parsed(quantities={"seconds": 3 * MICROS}))
    settled, future = shop.site.holds.settle_hold("h", outcome, CommitFuture(), account_id=account)
    if future is not None:
        future.wait()
    assert settled.record.quantities == {"seconds": 3 * MICROS}
    assert (shop.used(), shop.used("spm", "limited")) == (3, 3)
    assert verify(shop.site).ok


def test_sums_beyond_64_bits_are_told_exactly(shop: Shop) -> None:
    """Ten records of the most units pass the micro-units that 64 bits hold."""
    for number in range(11):
        shop.send(f"e{number}", quantities={"bytes": QUANTITY_UNITS_MAX})
    assert shop.totals("quantity.bytes") == [str(11 * QUANTITY_UNITS_MAX)]


def test_a_class_of_tokens_counts_as_tokens(shop: Shop) -> None:
    shop.site.manage.put(Budget(id="t", account=shop.account, unit="tokens", amount=100, period="day"))
    shop.use(prompt_tokens=1, quantities={"cache_write_tokens": 40, "seconds": 9})
    shop.send("e", tokens={"prompt": 2, "image_prompt": 7})
    shop.site.amend.amend(
        shop.account, "e", "fix", Event(id="-", time="-", tokens=Tokens(audio_completion=10))
    )
    commit_all(shop.site)
    assert shop.used("t") * MICROS == 60
    assert shop.totals("tokens", "quantity.image_prompt_tokens") == [60, "7"]


M10 = [
    ("transcribe", {"seconds": "0.006/60"}, {"seconds": "61.5"}, 6_150_000),
    ("speak", {"characters": "15.00/1000000"}, {"characters": 1234}, 18_510_000),
]


@pytest.mark.parametrize(("model", "rates", "quantities", "nanos"), M10)
def test_units_are_priced_alike_by_gate_and_ingest(
    shop: Shop, model: str, rates: dict[str, Any], quantities: dict[str, Any], nanos: int
) -> None:
    """M10: a minute's price for seconds, a million's for characters; held, booked and sent it is the same."""
    name = f"{model}-{shop.account}"
    shop.site.manage.put(Price(id=name, model=name, effective_at=from_us(0), rates=rates))
    shop.site.manage.put(Budget(id="money", account=shop.account, amount=10**9, period="day"))
    held = shop.held(model=name, quantities=quantities)
    assert held.amounts.nanos == nanos
    shop.settle(held, quantities=quantities)
    shop.send("e", model=name, quantities=quantities)
    assert shop.totals("cost_nanos", "provider_cost_nanos") == [2 * nanos, 2 * nanos]
    assert shop.used("money") * MICROS == 2 * nanos


class TestLibrary:
    def test_a_program_states_units(self) -> None:
        """As text, number or decimal; inside they are micro-units."""
        usage = Usage(
            7, model="m", quantities={"seconds": "61.5", "images": 2, "own": Decimal("0.25"), "none": 0}
        )
        assert usage.quantities == {"images": 2_000_000, "own": 250_000, "seconds": 61_500_000}
        assert usage == Parsed(7, model="m", quantities=usage.quantities)
        # A copy is not parsed again.
        assert usage._replace(model="x").quantities == usage.quantities

    @pytest.mark.parametrize(
        ("stated", "field"),
        [
            ({"quantities": {"seconds": -1}}, "quantities.seconds"),
            ({"quantities": {"S": 1}}, "quantities"),
            ({"variant": "x" * 65}, "variant"),
        ],
    )
    def test_what_is_out_of_bounds_is_refused_at_once(self, stated: dict[str, Any], field: str) -> None:
        with pytest.raises(BadParameter) as refused:
            Usage(**stated)
        assert refused.value.field == field

    def test_micro_units_of_a_wrong_kind_fail_alone(self, shop: Shop) -> None:
        """What was not made by `Usage` is checked before it reaches the records of its group."""
        wrong = Outcome(usage=Parsed(quantities={"seconds": "61.5"}))  # type: ignore[dict-item]
        future, other = CommitFuture(), shop.held()
        shop.site.holds.settle(shop.held(), wrong, future)
        shop.settle(other, quantities={"seconds": 1})
        with pytest.raises(BadParameter, match="micro-units"):
            future.wait()
        assert shop.totals("requests", SECONDS) == [1, "1"]

    def test_a_report_has_decimal_text(self, shop: Shop, tmp_path: Path) -> None:
        toll = Tollkeeper(shop.site)
        shop.use(quantities={"seconds": "1.5"})
        query = UsageQuery(
            account_id=shop.account, from_us=0, to_us=2**60, group_by=("key",), measures=(SECONDS, "requests")
        )
        report = toll.usage(query)
        assert report.rows == [{"key": f"{shop.account}-plain", SECONDS: "1.5", "requests": 1}]
        assert toll.usage(query).totals == report.totals == {SECONDS: "1.5", "requests": 1}


class TestBefore:
    """What was written before there were quantities is read: it had none, and its provider cost is its cost."""

    OLD = Record(
        "acme", "", "k", 5, 6, "id", 0, 1, "", "request", "POST", "/v1", 200, "", "", None, 7, "m", 1, 2, 3, 4,
        "", 8, 9, 10, "priced", "v", {"a": "b"},
    )  # fmt: skip
    READ = OLD._replace(provider_cost_nanos=9)

    @pytest.mark.parametrize("count", [1, 15, 16, 70_000])
    def test_rows_of_the_outbox(self, count: int) -> None:
        payload = msgspec.msgpack.encode([tuple(self.OLD)[:29]] * count)
        records = decode_rows(payload)
        assert len(records) == count
        assert set(map(repr, records)) == {repr(self.READ)}
        entry = OutboxEntry("rows", payload, count)
        assert table_of_entry(entry).num_rows == count
        new = self.OLD._replace(quantities={"seconds": 1}, provider_cost_nanos=2, variant="batch")
        assert decode_rows(encode_rows([new])) == [new]

    def test_columns_of_the_outbox(self) -> None:
        table = table_of([self.OLD, self.OLD._replace(cost_nanos=0)])
        old = table.select(table.column_names[:29])
        entry = OutboxEntry("arrow", to_ipc(old), 2)
        assert records_of(table_of_entry(entry)) == [self.READ, self.OLD._replace(cost_nanos=0)]
        # Not of a table that lacks anything else.
        other = old.rename_columns([*old.column_names[:28], "labels"])
        with pytest.raises(Unreadable):
            table_of_entry(OutboxEntry("arrow", to_ipc(other), 2))

    def test_holds(self) -> None:
        body = {
            "key_id": "k", "method": "POST", "path": "/", "amounts": [1, 2, 3, 4], "expected": [2, 0, 0, 0, "m"],
            "at_us": 5, "expires_at_us": 6, "fingerprint": "f", "tags": {}, "project": "",
        }  # fmt: skip
        read = msgspec.json.decode(msgspec.json.encode(body), type=HoldBody)
        assert (read.quantities, read.variant) == ({}, "")

    def test_a_retry_of_a_hold_from_before_is_the_same_request(self) -> None:
        before = '["k","POST","/p",1,0,2,0,"m",null,null]'
        assert _fingerprint("k", "POST", "/p", Parsed(1, 0, 2, 0, "m"), {}) == before
        stated = Parsed(1, 0, 2, 0, "m", quantities={"seconds": 1})
        assert _fingerprint("k", "POST", "/p", stated, {}) != before
        assert _fingerprint("k", "POST", "/p", Parsed(1, 0, 2, 0, "m", variant="x"), {"a": "b"}) != before
