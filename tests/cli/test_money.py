"""Money on the command line: as people write it, given, taken back, and spent over an expiry (M11, M17)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import answer_of
from tests.cli.commands import in_process as tollkeeper
from tollkeeper.cli.app import run

FILE = """
[[accounts]]
id = "acme"
name = "Acme"
[[keys]]
id = "k"
account = "acme"
type = "credit"
[[budgets]]
id = "monthly"
account = "acme"
amount = "25.00"
[[budgets]]
id = "slip"
account = "acme"
amount = 25
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("money") / "data"


def call(data: Path, *arguments: object, stdin: str = "") -> Any:
    done = tollkeeper(*arguments, "--data", data, stdin=stdin.encode())
    assert done.returncode == 0, done.stderr
    return done


def test_money_as_people_write_it(data: Path) -> None:
    """Lists show 25.00 and `put` takes it; `25` is nanos, said so and warned of."""
    applied = call(data, "apply", "-", stdin=FILE)
    assert "+ budgets monthly (amount 25.00)" in applied.stdout
    assert "+ budgets slip (amount 0.000000025)" in applied.stdout
    assert applied.stderr.count("warning:") == 1
    assert '"25.00"' in applied.stderr
    assert "25.00" in call(data, "budgets", "list").stdout
    repeated = call(data, "budgets", "put", "monthly", "amount=25.00", "--account", "acme")
    assert "monthly: unchanged" in repeated.stdout
    changed = call(data, "budgets", "put", "slip", "amount=26.50", "--account", "acme")
    assert "amount: 0.000000025 → 26.50" in changed.stdout
    plan = call(
        data,
        "plans",
        "put",
        "pro",
        "price=49.00",
        'budgets=[{"name": "m", "amount": 12.50, "unit": "nanos"}]',
    )
    assert "price: 49.00" in plan.stdout
    assert "budgets[0].amount: 12.50" in plan.stdout
    shown = answer_of(tollkeeper("plans", "show", "pro", "--json", "--data", data))
    assert (shown["price_nanos"], shown["budgets"][0]["amount"]) == ("49000000000", "12500000000")


def test_a_chargeback_and_adjustments(data: Path) -> None:
    """M11 on the command line: 1,000.00 bought, 50.00 spent, charged back."""
    call(data, "apply", "-", stdin=FILE)
    call(data, "grants", "post", "top-up", "--amount", "1000.00", "source=top_up", "--account", "acme")
    event = '{"id": "e", "time": "2026-01-05T00:00:00Z", "key_id": "k", "cost": "50.00"}\n'
    call(data, "ingest", "-", stdin=event)
    measures = ("usage", "--account", "acme", "--measures", "requests,cost_nanos,adjustments_nanos", "--json")
    before = answer_of(tollkeeper(*measures, "--data", data))["totals"]
    assert "grants top-up: changed" in call(data, "grants", "revoke", "top-up", "--account", "acme").stdout
    assert "grants top-up: unchanged" in call(data, "grants", "revoke", "top-up", "--account", "acme").stdout
    assert answer_of(tollkeeper(*measures, "--data", data))["totals"] == before
    shown = answer_of(tollkeeper("grants", "show", "top-up", "--account", "acme", "--json", "--data", data))
    assert shown["revoked_at"] is not None

    adjust = ("adjust", "acme", "75.00", "--id", "goodwill", "--reason", "outage", "--event", "e")
    assert "75.00 given to acme: outage" in call(data, *adjust).stdout
    assert "booked before" in call(data, *adjust).stdout
    taken = call(data, "adjust", "acme", "-5.50", "--id", "fee", "--reason", "a fee", "--json")
    assert '"amount":"-5.50"' in taken.stdout
    other = tollkeeper("adjust", "acme", "76", "--id", "goodwill", "--reason", "outage", "--data", data)
    assert (other.returncode, "goodwill" in other.stderr) == (1, True)
    totals = answer_of(tollkeeper(*measures, "--data", data))["totals"]
    assert totals == {"requests": 1, "cost_nanos": "50000000000", "adjustments_nanos": "69500000000"}
    assert call(data, "verify").returncode == 0


@pytest.mark.parametrize("amount", ["lots", "1e3", "0.0000000001"])
def test_an_amount_that_is_none_is_misused(amount: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["adjust", "acme", amount, "--id", "x", "--reason", "r"]) == 2
    assert "AMOUNT" in capsys.readouterr().err


def test_the_command_line_tops_up_a_data_directory(tmp_path: Path) -> None:
    data = ("--data", tmp_path / "data")
    answer_of(tollkeeper("accounts", "put", "acme", "name=Acme", "--json", *data))
    answer_of(
        tollkeeper(
            "budgets",
            "put",
            "pool",
            "--account",
            "acme",
            "amount=1000000000",
            "period=month",
            "--json",
            *data,
        )
    )
    command = ("budgets", "top-up", "pool", "5.00", "--account", "acme", "--id", "t1", *data)
    made = answer_of(tollkeeper(*command, "--json"))
    assert (made["allowed"], made["until_used"], made["repeated"]) == ("6.00", False, False)
    told = tollkeeper(*command)
    assert told.returncode == 0, told.stderr
    assert told.stdout == "5.00 was added before to budget pool.\nIts period allows 6.00 now.\n"
    refused = tollkeeper(*command, "--until-used")
    assert refused.returncode == 1
    assert "use another id" in refused.stderr
    negative = tollkeeper("budgets", "top-up", "pool", "-5.00", "--account", "acme", "--id", "t2", *data)
    assert negative.returncode == 1
    assert "'-5.00' is not more than 0" in negative.stderr
    twice = tollkeeper(*command, "--value", "tag.user=u1", "--value", "tag.user=u2")
    assert twice.returncode == 2
    assert "tag.user is there twice" in twice.stderr
