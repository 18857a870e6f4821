"""The first day of a person: what is left, rotated names, what exists already, and slips that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import answer_of
from tests.cli.commands import in_process as tollkeeper
from tollkeeper import Outcome, Tollkeeper, Usage
from tollkeeper.errors import NotFound
from tollkeeper.gate.admission import Admission

CATALOG = """
[[plans]]
slug = "starter"
limits = [{ name = "per-minute", amount = 60 }]
budgets = [{ name = "tokens", amount = 5_000, unit = "tokens", per = "tag.user" }]

[[accounts]]
id = "acme"
name = "Acme"
plan = "starter"

[[accounts]]
id = "idle"
name = "Idle"

[[budgets]]
id = "monthly"
account = "acme"
amount = "25.00"

[[keys]]
id = "acme-prod"
account = "acme"

[[keys]]
id = "acme-prepaid"
account = "acme"
type = "credit"

[[grants]]
id = "welcome"
account = "acme"
amount = "3.00"

[[routes]]
id = "everything"
method = "*"
path = "/*"
price = "0.50"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory in which acme-prod made three requests of user u1."""
    place = tmp_path_factory.mktemp("first") / "data"
    with Tollkeeper.open(str(place)) as toll:
        (issued, *_) = [key for key in toll.apply(CATALOG).issued if key.entry.id == "acme-prod"]
        assert issued.secret is not None
        for _ in range(3):
            found = toll.admit(issued.secret, "GET", "/v1/x", Usage(prompt_tokens=100), tags={"user": "u1"})
            assert isinstance(found, Admission)
            toll.settle(found, Outcome(200, Usage(prompt_tokens=100)), wait=True)
        (of_user,) = [
            b for b in toll.key_status("acme-prod", params={"tag.user": "u1"}).budgets if b.name == "tokens"
        ]
        assert (of_user.used, of_user.remaining) == (300, 4700)
        with pytest.raises(NotFound):
            toll.key_status("acme-prod", account="idle")
    return place


def test_a_key_says_what_it_has_left(data: Path) -> None:
    status = answer_of(tollkeeper("keys", "state", "acme-prod", "--json", "--data", data))
    (monthly,) = [budget for budget in status["budgets"] if budget["name"] == "monthly"]
    assert (monthly["allowed"], monthly["used"], monthly["remaining"]) == (
        "25000000000",
        "1500000000",
        "23500000000",
    )
    text = tollkeeper("keys", "state", "acme-prod", "--data", data).stdout
    assert "Key acme-prod of account acme is active, plan starter." in text
    assert [line.split()[:6] for line in text.splitlines() if line.startswith("monthly")] == [
        ["monthly", "all", "money", "25.00", "1.50", "23.50"]
    ]
    assert "each tag.user" in text
    of_user = tollkeeper("keys", "state", "acme-prod", "--tag", "user=u1", "--data", data).stdout
    assert [line.split()[-5:-2] for line in of_user.splitlines() if line.startswith("tokens")] == [
        ["5,000", "300", "4,700"]
    ]


def test_an_account_says_what_is_left_of_its_budgets_and_credit(data: Path) -> None:
    text = tollkeeper("budgets", "left", "--account", "acme", "--data", data).stdout
    rows = [line.split() for line in text.splitlines()]
    assert ["acme-prod", "monthly", "all", "money", "25.00", "1.50", "23.50"] in [row[:7] for row in rows]
    assert ["acme-prepaid", "credit", "all", "money", "3.00", "0.00", "3.00"] in rows
    found = answer_of(tollkeeper("budgets", "left", "--account", "acme", "--json", "--data", data))
    assert {(bound["key"], bound["name"]) for bound in found} >= {("acme-prod", "monthly")}
    idle = tollkeeper("budgets", "left", "--account", "idle", "--data", data)
    assert (idle.returncode, idle.stderr) == (
        1,
        "error: Account idle has no active key: nothing counts for its budgets.\n",
    )


def test_a_rotated_key_keeps_its_name(data: Path) -> None:
    for expected in ("acme-prepaid-2", "acme-prepaid-3"):
        before = expected.removesuffix("-2").replace("-3", "-2")
        issued = answer_of(tollkeeper("keys", "rotate", before, "--json", "--data", data))
        assert issued["entry"]["id"] == expected
    chosen = tollkeeper("keys", "rotate", "acme-prepaid-3", "--id", "acme-live", "--json", "--data", data)
    assert answer_of(chosen)["entry"]["id"] == "acme-live"
    taken = tollkeeper("keys", "rotate", "acme-live", "--id", "acme-prod", "--data", data)
    assert (taken.returncode, "is taken" in taken.stderr) == (1, True)
    bad = tollkeeper("keys", "rotate", "acme-live", "--id", "a b", "--data", data)
    assert (bad.returncode, "is not an id" in bad.stderr) == (1, True)


def test_the_list_of_prices_says_that_there_are_built_in_ones(data: Path) -> None:
    text = tollkeeper("prices", "list", "--data", data).stdout
    assert "no prices of your own yet" in text
    assert "models" in text
    assert "prices list --built-in" in text
    assert answer_of(tollkeeper("prices", "list", "--json", "--data", data)) == []


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("usage", "--account", "nobody"), "no account 'nobody'"),
        (("usage", "--account", "acme,nobody"), "no account 'nobody'"),
        (("keys", "list", "--account", "nobody"), "no account 'nobody'"),
        (("budgets", "left", "--account", "nobody"), "among the accounts"),
        (("keys", "issue", "k9", "--account", "nobody"), "no 'nobody' among the accounts"),
        (("adjust", "nobody", "1.00", "--id", "a", "--reason", "r"), "account"),
        (
            ("keys", "issue", "k9", "--account", "acme", "expires_at=2020-01-01T00:00:00Z"),
            "expires_at must be later than now",
        ),
        (("routes", "put", "items", "method=GET", "path=/v1/items/:id"), "as in /v1/items/{id}"),
    ],
)
def test_a_slip_is_refused_with_words(data: Path, command: tuple[str, ...], said: str) -> None:
    done = tollkeeper(*command, "--data", data)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout == ""


def test_an_old_key_may_be_imported(data: Path) -> None:
    """What a key did that has ended is history; only a new secret that could never work is a slip."""
    done = tollkeeper(
        "keys", "put", "old", "--account", "acme", f"sha256={'a' * 64}", "expires_at=2020-01-01T00:00:00Z",
        "--data", data,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = answer_of(tollkeeper("keys", "show", "old", "--json", "--data", data))
    assert shown["state"] == "expired"
    status = tollkeeper("keys", "state", "old", "--data", data).stdout
    assert "is expired" in status
    assert "makes no requests" in status
