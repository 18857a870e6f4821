"""`tollkeeper prices show|list|preview` and `models`: what a name costs and why, and history under other prices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import answer_of
from tests.cli.commands import in_process as tollkeeper
from tollkeeper.cli.app import run
from tollkeeper.console import output

CATALOG = """
[[accounts]]
id = "a"
name = "A"

[[models]]
id = "team/my deployment:1"
is = "azure/gpt-5-mini"

[[prices]]
id = "p1"
model = "our-model"
prompt_nanos_per_million = 150000000
request_nanos = 40000000

[[markups]]
id = "plus-fifth"
account = "a"
model = "gpt-*"
factor = "1.2"
"""
OTHER_PRICES = """
[[prices]]
id = "new"
model = "new-model"
prompt_nanos_per_million = 2000000000

[[prices]]
id = "mini"
model = "gpt-5-mini"
prompt_nanos_per_million = 1000000000
"""
USAGE = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "prompt_tokens_details": {"cached_tokens": 1920},
    "completion_tokens_details": {"reasoning_tokens": 192},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a catalog, and two events of which one has no price."""
    place = tmp_path_factory.mktemp("prices")
    (place / "catalog.toml").write_text(CATALOG)
    (place / "other.toml").write_text(OTHER_PRICES)
    events: list[dict[str, Any]] = [
        {"id": "1", "model": "gpt-5-mini", "usage": USAGE},
        {"id": "2", "model": "new-model", "tokens": {"prompt": 1_000_000}},
    ]
    lines = (json.dumps({"account": "a", "time": "2026-03-01T00:00:00Z", **event}) for event in events)
    (place / "events.jsonl").write_text("\n".join(lines))
    assert tollkeeper("apply", place / "catalog.toml", "--data", place / "data").returncode == 0
    taken = tollkeeper("ingest", place / "events.jsonl", "--data", place / "data")
    assert "2 accepted" in taken.stdout, taken
    return place


def shown(data: Path, *arguments: str, exit_code: int = 0) -> Any:
    return answer_of(tollkeeper("prices", *arguments, "--json", "--data", data / "data"), exit_code)


def test_the_price_of_a_name_is_shown_with_its_seller_and_the_reason(data: Path) -> None:
    found = shown(data, "show", "gpt-4o")
    assert (found["name"], found["model"], found["seller"]) == ("gpt-4o", "gpt-4o", "openai")
    assert "maker" in found["why"]
    assert found["rates"]["prompt_tokens"] == "2500000000"
    assert found["rates"]["completion_tokens"] == "10000000000"
    assert found["request_nanos"] == found["rates"]["request_nanos"] == "0"
    assert [tier["prompt_tokens_over"] for tier in shown(data, "show", "gemini-2.5-pro")["tiers"]] == [
        0,
        200_000,
    ]


def test_the_price_of_an_account_has_its_mark_up(data: Path) -> None:
    found = shown(data, "show", "gpt-4o", "--account", "a")
    assert found["rates"]["prompt_tokens"] == "3000000000"
    assert "plus-fifth" in found["why"]


def test_the_price_of_a_variant_is_shown(data: Path) -> None:
    assert shown(data, "show", "gpt-5-mini", "--variant", "flex")["rates"]["prompt_tokens"] == "125000000"


def test_an_alias_is_shown_with_what_it_stands_for(data: Path) -> None:
    found = shown(data, "show", "team/my deployment:1")
    assert (found["name"], found["model"], found["seller"]) == ("team/my deployment:1", "gpt-5-mini", "azure")
    assert "alias of azure/gpt-5-mini" in found["why"]


def test_an_own_price_is_shown(data: Path) -> None:
    found = shown(data, "show", "our-model")
    assert (found["model"], found["seller"], found["why"]) == ("our-model", "own", "price entry p1")
    assert found["request_nanos"] == "40000000"


def test_the_id_of_an_entry_still_shows_the_entry(data: Path) -> None:
    assert shown(data, "show", "p1")["model"] == "our-model"


@pytest.mark.drawn(1)
@pytest.mark.parametrize(
    ("name", "near"), [("gpt-4oo", "openai/gpt-4o"), ("our-modell", "our-model"), ("claude-opus-4-10", None)]
)
def test_a_name_without_a_price_ends_with_1_and_the_nearest_names(
    data: Path, name: str, near: str | None
) -> None:
    found = shown(data, "show", name, exit_code=1)
    assert found["model"] is None
    assert found["nearest"]
    assert near is None or near in found["nearest"]
    told = tollkeeper("prices", "show", name, "--data", data / "data")
    assert told.returncode == 1
    assert found["nearest"][0] in told.stderr
    assert not told.stdout


def test_the_built_in_list_needs_no_installation() -> None:
    listed = answer_of(tollkeeper("prices", "list", "--built-in", "--seller", "anthropic", "--json"))
    by_model = {entry["model"]: entry for entry in listed}
    assert by_model["claude-sonnet-4-5"]["rates"]["cache_write_1h_tokens"] == "6000000000"
    assert len(answer_of(tollkeeper("prices", "list", "--built-in", "--json"))) > 2_000
    table = tollkeeper("prices", "list", "--built-in", "--format", "csv").stdout.splitlines()
    assert table[0] == (
        "seller,model,version,prompt_tokens,cached_prompt_tokens,completion_tokens,reasoning_tokens,request_nanos"
    )


def test_the_prices_of_the_catalog_are_listed_as_before(data: Path) -> None:
    assert [entry["id"] for entry in shown(data, "list")] == ["p1"]


def test_a_preview_prices_history_again_and_changes_nothing(data: Path) -> None:
    before = answer_of(tollkeeper("usage", "--json", "--data", data / "data"))["totals"]
    found = shown(data, "preview", str(data / "other.toml"))
    rows = {row["model"]: row for row in found["rows"]}
    # 2,006 prompt tokens at 1.00 and no price for the completion, with a fifth on top; booked by the list.
    assert (rows["gpt-5-mini"]["cost_nanos"], rows["gpt-5-mini"]["new_cost_nanos"]) == ("803400", "2407200")
    assert (rows["new-model"]["unpriced"], rows["new-model"]["new_unpriced"]) == (1, 0)
    assert rows["new-model"]["difference_nanos"] == "2000000000"
    assert found["totals"]["difference_nanos"] == str(2_000_000_000 + 2_407_200 - 803_400)
    assert answer_of(tollkeeper("usage", "--json", "--data", data / "data"))["totals"] == before
    assert [entry["id"] for entry in shown(data, "list")] == ["p1"]
    none = shown(data, "preview", str(data / "other.toml"), "--from", "2026-03-02")
    assert none["rows"] == []


def test_a_preview_takes_prices_only(data: Path, tmp_path: Path) -> None:
    (tmp_path / "plans.toml").write_text('[[plans]]\nslug = "pro"\n')
    done = tollkeeper("prices", "preview", tmp_path / "plans.toml", "--data", data / "data")
    assert (done.returncode, done.stdout) == (1, "")
    assert "models, prices, markups" in done.stderr


@pytest.mark.drawn(3)
@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["show", "claude-sonnet-4-5"], ["cache_write_1h_tokens", "over 200,000", "12.00", "10,000.00"]),
        (["show", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"], ["aws", "3.30", "16.50"]),
        (["list", "--built-in", "--seller", "aws"], ["completion", "aws/amazon.nova-pro-v1:0", "0.80"]),
        (
            ["preview", "other.toml"],
            ["gpt-5-mini", "0.0008034", "0.0024072", "+2.0016038", "Nothing was changed."],
        ),
    ],
)
def test_tables_fit_a_narrow_terminal(
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    width: int,
    arguments: list[str],
    texts: list[str],
) -> None:
    """No line is wider than the window, and no number is cut."""
    monkeypatch.setattr(output, "WIDTH_WITHOUT_TERMINAL", width)
    monkeypatch.chdir(data)
    place = [] if "--built-in" in arguments else ["--data", str(data / "data")]
    assert run(["prices", *arguments, *place]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    for text in texts:
        assert text in printed
    assert "…" not in printed
