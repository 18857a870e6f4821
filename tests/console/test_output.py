"""What is printed cannot act: not in a terminal, not in a spreadsheet; and money is exact."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollkeeper.api.csv_cells import FORMULA_STARTS, csv_cell
from tollkeeper.console.output import (
    Column,
    Lines,
    money,
    plain,
    print_csv,
    print_json,
    print_table,
    progress,
    shown,
)
from tollkeeper.domain.money import parse_nanos


@given(st.text())
def test_no_text_cell_of_csv_is_a_formula(text: str) -> None:
    """What a spreadsheet would run gets a quote in front; all other text stays as it is, numbers too."""
    cell = csv_cell(text)
    assert not str(cell).startswith(FORMULA_STARTS) or re.fullmatch(r"-[0-9]+(\.[0-9]+)?", cell)
    assert cell in (text, "'" + text)


def test_numbers_of_csv_stay_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"key": "=1+1", "cost_nanos": "9007199254740993", "left": -5, "kinds": {"scan": 2}, "none": None}]
    print_csv(["key", "cost_nanos", "left", "kinds", "none"], rows)
    (header, row) = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["key", "cost_nanos", "left", "kinds", "none"]
    assert row == ["'=1+1", "9007199254740993", "-5", '{"scan":2}', ""]


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    assert not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in plain(text))
    assert len(plain(text)) == len(text)
    plain(text).encode()


HOSTILE = "a\x1b[2J\x9b31m\u202egnp.exe\u2066\u200b\ufeff\u2028\U000e0041\x7fz"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "char", list("\x00\x1b\x7f\x9b\u061c\u200e\u202a\u202e\u2066\u2069\u200b\ufeff\u2028\u2029\xad")
)
def test_what_turns_text_around_or_hides_is_replaced(char: str) -> None:
    """A path may say `gpj.exe` backwards; two keys may look alike."""
    assert plain(f"a{char}b") == "a�b"
    assert plain("aé€日🙂ع") == "aé€日🙂ع"


def test_csv_on_a_terminal_has_nothing_that_it_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a file it is the data itself, for programs."""
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        print_csv(["key", HOSTILE], [{"key": HOSTILE, HOSTILE: {HOSTILE: 1}}, {"key": 7}])
        (head, row, last) = csv.reader(io.StringIO(stream.getvalue()))
        shown_text = HOSTILE if not stream.isatty() else plain(HOSTILE)
        assert (head, row[0], last[0]) == (["key", shown_text], shown_text, "7")
        if stream.isatty():
            assert stream.getvalue().replace("\r\n", "") == plain(stream.getvalue().replace("\r\n", ""))


def test_json_on_a_terminal_is_the_same_value_in_visible_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        print_json({"key": HOSTILE, HOSTILE: [1]})
        assert json.loads(stream.getvalue()) == {"key": HOSTILE, HOSTILE: [1]}
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    print_json({"key": HOSTILE})
    assert terminal.getvalue().replace("\n", "") == plain(terminal.getvalue().replace("\n", ""))


def test_a_table_shows_brackets_and_no_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    """A key may be called [red]; a path may hold what would clear the screen."""
    print_table(
        [Column("key"), Column("n", numeric=True)], [["[red]", 1234], ["\x1b[2J", 5]], totals=["total", 1239]
    )
    out = capsys.readouterr().out
    assert "[red]" in out
    assert "\x1b" not in out
    assert "1,234" in out
    assert out.splitlines()[-1].split() == ["total", "1,239"]


def test_a_table_that_nobody_watches_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([Column("a"), Column("b")], [["x" * 300, "y" * 300]])
    assert "x" * 300 in capsys.readouterr().out


@given(st.integers(-(2**63), 2**63 - 1))
def test_money_loses_no_nano(nanos: int) -> None:
    assert money(nanos) == money(str(nanos))
    text = money(nanos).replace(",", "")
    if nanos > -(2**63):  # Of which the absolute value fits in no column.
        assert parse_nanos(text) == nanos


def test_what_people_read() -> None:
    assert money(-1_234_500_000_000) == "-1,234.50"
    assert money(None) == ""
    assert shown(None) == ""
    assert shown(True) == "yes"
    assert shown({"request": 1200}) == "request=1,200"
    assert shown(["a", "b"]) == "a, b"
    assert shown(Lines(["a\x1b", "b"])) == "a�\nb"


def test_json_of_no_terminal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"ok": True, "n": [1, 2]})
    assert capsys.readouterr().out == '{"ok":true,"n":[1,2]}\n'


def test_progress_is_for_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work", 10) as advance:
        advance(5)
    assert capsys.readouterr() == ("", "")
