"""Tables at any width: no digit of a number is lost, and no column."""

from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.effort import effort
from tollkeeper.console.output import Column, money, print_table, shown
from tollkeeper.console.usage_table import print_report


def printed(width: int, columns: list[Column], rows: list[list[Any]], **options: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, highlight=False, emoji=False)
    print_table(columns, rows, console=console, **options)
    return out.getvalue()


numbers = st.one_of(
    st.integers(-(10**15), 10**22), st.integers(0, 10**20).map(money), st.floats(0, 1e12).map(lambda x: x)
)
texts = st.one_of(
    st.text("ab cd-é漢 ", max_size=30), st.sampled_from(["", "acme", "GET /v1/items/{id}/parts"])
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[Column], list[list[Any]], list[Any] | None]:
    numeric = draw(st.lists(st.booleans(), min_size=1, max_size=10))
    headings = st.sampled_from(["requests", "prompt tokens", "cost", "key", "latency ms p99"])
    columns = [Column(draw(headings), number) for number in numeric]

    def row() -> list[Any]:
        return [draw(numbers if number else texts) for number in numeric]

    rows = [row() for _ in range(draw(st.integers(0, 4)))]
    return columns, rows, row() if draw(st.booleans()) else None


@settings(max_examples=effort(75, 600), deadline=None)
@given(tables(), st.integers(20, 200))
@example(([Column("a", True)], [[10**22]], None), 20)
@example(([Column("k"), *[Column("n", True)] * 7], [["acme", *[534_000_000] * 7]], None), 80)
def test_every_number_is_printed_whole_at_any_width(
    table: tuple[list[Column], list[list[Any]], list[Any] | None], width: int
) -> None:
    columns, rows, totals = table
    text = printed(width, columns, rows, totals=totals)
    words = text.split()
    for row in [*rows, *([totals] if totals else [])]:
        for column, value in zip(columns, row, strict=True):
            if column.numeric:
                assert shown(value) in words
            else:
                assert all(word in words for word in shown(value).split())
    for column in columns if rows else ():
        assert all(word in words for word in column.heading.split())


@settings(max_examples=effort(30, 200), deadline=None)
@given(tables(), st.integers(20, 200))
def test_lines_fit_the_width_unless_one_word_is_longer(
    table: tuple[list[Column], list[list[Any]], list[Any] | None], width: int
) -> None:
    columns, rows, totals = table
    wide = printed(1_000, columns, rows, totals=totals)
    longest = max((len(word.encode()) for word in wide.split()), default=0)
    text_longest = max((len(str(v)) * 2 for row in [*rows, totals or []] for v in row), default=0)
    assert all(
        len(line) <= max(width, longest + 2, text_longest + 2)
        for line in printed(width, columns, rows, totals=totals).splitlines()
    )


MEASURES = ["requests", "errors", "denied", "tokens", "cost_nanos", "credits", "bytes_out"]


def answer_of(**groups: Any) -> dict[str, Any]:
    measures = dict.fromkeys(MEASURES, 440_638) | {"cost_nanos": "7315208850", "requests": 534}
    return {
        "rows": [{**groups, **measures}],
        "totals": measures,
        "row_count": 1,
        "complete": True,
        "as_of": "",
        "behind_s": 0,
    }


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_a_report_of_seven_measures_has_them_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """At 80 columns it showed 53 for 534, and no account."""
    monkeypatch.setattr("tollkeeper.console.output.WIDTH_WITHOUT_TERMINAL", width)
    print_report(["account", "status", *MEASURES], answer_of(account="acme-industries", status=200), offset=0)
    words = capsys.readouterr().out.split()
    for text in ("acme-industries", "200", "534", "440,638", "7.31520885"):
        assert words.count(text) >= 1
    assert words.count("534") == words.count("7.31520885") == 2
    assert "None" not in words
    assert "total" in words


def test_a_report_says_where_single_events_end(capsys: pytest.CaptureFixture[str]) -> None:
    """When it lacks expired ones, and when it begins before them; not when it is of later ones only."""
    ends = {"detail_from": "2026-03-08T00:00:00.000000Z"}
    before, after = ({"from": f"2026-{month:02}-01T00:00:00.000000Z"} for month in (1, 4))
    for said, more in (
        (
            "not complete: this needs single events from before 2026-03-08",
            {"complete": False, "lacks_detail": True},
        ),
        ("single events are kept from 2026-03-08", {}),
    ):
        print_report(["account", *MEASURES], answer_of(account="a") | ends | before | more, offset=0)
        assert said in capsys.readouterr().out
    print_report(["account", *MEASURES], answer_of(account="a") | ends | after, offset=0)
    assert "single events" not in capsys.readouterr().out


def test_a_narrow_table_repeats_its_first_columns() -> None:
    columns = [Column("key"), *(Column(f"measure{place}", True) for place in range(6))]
    text = printed(40, columns, [["k1", *[1_000_000] * 6]])
    assert text.count("k1") > 1
    assert max(len(line) for line in text.splitlines()) <= 40
