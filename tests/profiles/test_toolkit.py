"""What profiles share is shared through the toolkit: no vendor's dialect depends on another's."""

from __future__ import annotations

import ast
import tomllib
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest

import tollkeeper.profiles
from tollkeeper.domain.catalog import Limit
from tollkeeper.domain.usage import PAGE_SIZE_MAX, UsageQuery, UsageReport
from tollkeeper.profiles import load, names
from tollkeeper.profiles.toolkit import (
    bearer_token,
    dollars,
    iso_millis,
    iso_seconds,
    json_object,
    limits_over,
    next_hour,
    pages,
    quotient,
    seconds_up,
)

ROOM: Final = Path(tollkeeper.profiles.__file__).parent


@pytest.mark.parametrize("profile", names())
def test_no_profile_imports_another(profile: str) -> None:
    """A correction of one vendor must touch no other."""
    files = sorted((ROOM / profile).glob("*.py")) or [ROOM / f"{profile}.py"]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tollkeeper.profiles"):
                parts = (node.module or "").split(".")
                assert len(parts) > 2, path
                assert parts[2] in (profile, "base", "toolkit"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("profile", names())
def test_a_catalog_is_the_file_beside_the_profiles(profile: str) -> None:
    assert load(profile).catalog == (ROOM / f"{profile}.toml").read_text()


def test_the_catalogs_are_packaged() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())
    assert "profiles/*.toml" in project["tool"]["setuptools"]["package-data"]["tollkeeper"]


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer   abc ", "abc"),
        ("Bearer", ""),
        ("Bearer ", ""),
        ("Basic abc", None),
        ("abc", None),
        ("", None),
    ],
)
def test_a_bearer_token_a_blank_one_and_none_are_three_answers(header: str, token: str | None) -> None:
    assert bearer_token({"authorization": header}) == token
    assert bearer_token({}) is None


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b"{}", {}),
        (b"", None),
        (b"[]", None),
        (b"null", None),
        (b'{"a"', None),
        (b'{"a": "\xff"}', None),
        (b"[" * 100_000, None),
    ],
)
def test_a_body_that_is_no_json_object_is_none(body: bytes, found: dict[str, Any] | None) -> None:
    assert json_object(body) == found


def test_instants_are_shown_in_utc_and_cut() -> None:
    at = datetime(2026, 3, 1, 1, 59, 59, 999_999, timezone(timedelta(hours=2)))
    assert iso_seconds(at) == "2026-02-28T23:59:59Z"
    assert iso_millis(at) == "2026-02-28T23:59:59.999Z"
    assert next_hour(at.astimezone(UTC)) == datetime(2026, 3, 1, tzinfo=UTC)
    assert next_hour(datetime(2026, 3, 1, tzinfo=UTC)) == datetime(2026, 3, 1, 1, tzinfo=UTC)


def test_numbers_are_the_nearest_that_json_has() -> None:
    assert (seconds_up(0), seconds_up(1), seconds_up(1_000_000), seconds_up(-1)) == (0, 1, 1, 0)
    assert str(dollars(20_000_000_000)) == "20.0"
    assert dollars(10**18 + 1) == 1_000_000_000.000000001
    assert (str(quotient(20, 10)), str(quotient(25, 10))) == ("2", "2.5")


def test_limits_over_a_window_are_those_on_all_routes() -> None:
    general = Limit(name="rpm", amount=60, window="60s")
    others = [
        Limit(name="rph", amount=60, window="1h"),
        Limit(name="tpm", amount=60, unit="tokens"),
        Limit(name="reads", amount=60, bucket="reads"),
        Limit(name="open", amount=60, algorithm="concurrency"),
    ]
    assert limits_over([*others, general], 60) == [general]
    assert limits_over([*others, general], 60, "tokens") == [others[1]]


class _Context:
    """Answers a query with its page of so many rows."""

    def __init__(self, row_count: int) -> None:
        self.row_count = row_count
        self.offsets: list[int] = []

    def usage(self, query: UsageQuery) -> UsageReport:
        self.offsets.append(query.offset)
        found = range(self.row_count)[query.offset : query.offset + query.limit]
        return UsageReport(
            rows=[{"row": row} for row in found],
            totals={},
            row_count=self.row_count,
            as_of_us=0,
            complete=True,
        )


@pytest.mark.parametrize(
    "row_count", [0, 1, PAGE_SIZE_MAX - 1, PAGE_SIZE_MAX, PAGE_SIZE_MAX + 1, 2 * PAGE_SIZE_MAX]
)
def test_the_pages_of_a_report_have_every_row_once(row_count: int) -> None:
    context = _Context(row_count)
    query = UsageQuery(account_id="acct", from_us=0, to_us=1, measures=("requests",))
    found = [row["row"] for page in pages(context, query) for row in page.rows]  # type: ignore[arg-type]
    assert found == list(range(row_count))
    assert len(context.offsets) == max(1, -(-row_count // PAGE_SIZE_MAX))
