"""docs/security.md promises nothing without a test, and states the bounds that are in force."""

from __future__ import annotations

import re
from pathlib import Path

from tollkeeper.api.usage_params import GROUPS_MAX, VALUES_MAX
from tollkeeper.domain.usage import PAGE_SIZE_MAX
from tollkeeper.http.auth import _REMEMBERED_MAX, FAILURES_MAX
from tollkeeper.http.bodies import GZIP_MEMBERS_MAX
from tollkeeper.http.credentials import SECRET_CHARS_MAX
from tollkeeper.http.hot import SMALL_BODY_BYTES_MAX
from tollkeeper.http.profiles import BODY_BYTES_MAX as PROFILE_BODY_BYTES_MAX
from tollkeeper.http.profiles import QUERY_BYTES_MAX
from tollkeeper.http.routes.calls import APPLY_BYTES_MAX, BODY_BYTES_MAX, PARAMETERS_MAX
from tollkeeper.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


def test_every_promise_names_its_test() -> None:
    """`tests/docs/test_names.py` checks that each of them is there."""
    promises = [
        line
        for table in re.findall(r"^\| Promise \| Test \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
        for line in table.splitlines()
    ]
    assert len(promises) > 20
    assert [line for line in promises if not re.search(r"`tests/[\w/]+\.py` \|$", line)] == []


def test_the_bounds_of_the_page_are_those_in_force() -> None:
    assert Settings().body_bytes_max == 64 << 20
    assert SMALL_BODY_BYTES_MAX == PROFILE_BODY_BYTES_MAX == 64 << 10
    assert (APPLY_BYTES_MAX, BODY_BYTES_MAX) == (16 << 20, 1 << 20)
    for words in (
        f"{GZIP_MEMBERS_MAX:,} members",
        f"the query of a profile {QUERY_BYTES_MAX:,}",
        f"{PARAMETERS_MAX} parameters, {VALUES_MAX:,} values",
        f"{GROUPS_MAX} groups",
        f"a credential {SECRET_CHARS_MAX} characters",
        f"pages of at most {PAGE_SIZE_MAX:,} rows",
        f"{FAILURES_MAX} failed authentications",
        f"{_REMEMBERED_MAX:,} addresses",
    ):
        assert words in PAGE, words
