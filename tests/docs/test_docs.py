"""The pages in docs/ tell the truth: each setting, error, denial and rejection has its line, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

import pytest

from tests.docs import cli_help
from tollkeeper import errors
from tollkeeper.catalog.declaration import parse_declaration
from tollkeeper.domain.catalog import KINDS, Limit, PlanBudget
from tollkeeper.domain.decisions import STATUS_BY_REASON, Reason
from tollkeeper.domain.usage import DIMENSIONS, MEASURES
from tollkeeper.http.api import build_api
from tollkeeper.http.app import authenticator_of
from tollkeeper.http.problems import STATUS_BY_ERROR
from tollkeeper.http.routes.openapi import openapi_document
from tollkeeper.installation import Installation
from tollkeeper.settings import Settings

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"


def error_classes() -> Iterator[type[errors.TollkeeperError]]:
    queue = [errors.TollkeeperError]
    while queue:
        found = queue.pop()
        yield found
        queue += found.__subclasses__()


def ours() -> list[type[errors.TollkeeperError]]:
    return [error for error in error_classes() if error.__module__ == "tollkeeper.errors"]


def openapi_paths(site: Installation) -> dict[str, dict[str, object]]:
    return openapi_document(build_api(site, authenticator_of(site), version="1"), "1")["paths"]


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """Return the table below a heading: first cell without backticks → all cells."""
    text = (DOCS / page).read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")] = cells
    return found


def test_every_error_has_a_status_and_its_line() -> None:
    documented = rows("errors.md", "Codes")
    assert set(documented) == {error.code for error in ours()}
    for error in ours():
        status, _ = STATUS_BY_ERROR[error]
        cells = documented[error.code]
        assert cells[1].strip("`") == error.__name__
        assert int(cells[2]) == status


def test_no_error_is_left_out_of_the_mapping() -> None:
    assert set(STATUS_BY_ERROR) == set(ours())


def test_every_error_is_in_the_tree_that_the_module_draws() -> None:
    drawn = errors.__doc__ or ""
    for error in ours():
        assert re.search(rf"\b{error.__name__}\s+{error.code}\b", drawn), error


def test_every_denial_has_its_line() -> None:
    documented = rows("errors.md", "Denials")
    assert set(documented) == set(get_args(Reason)) == set(STATUS_BY_REASON)
    for reason, status in STATUS_BY_REASON.items():
        assert int(documented[reason][1]) == status


def test_every_rejection_has_its_line() -> None:
    """Codes are literals in the meter; each that they use is documented, and no other."""
    source = "".join(
        path.read_text() for path in sorted((ROOT / "src" / "tollkeeper" / "meter").glob("*.py"))
    )
    documented = rows("errors.md", "Rejected events")
    for code in documented:
        assert f'"{code}"' in source, f"{code} is documented but never given"
    given = set(re.findall(r'"((?:malformed|(?:missing|unknown|wrong|out|bad|time|event)_[a-z_]+))"', source))
    given -= {"missing_ok", "time_us", "time_ms", "time_ns", "time_local", "event_kind"}
    assert given <= set(documented), given - set(documented)


def test_every_setting_has_its_line_and_default() -> None:
    text = (DOCS / "settings.md").read_text()
    table = {}
    for line in text.splitlines():
        if match := re.match(r"\| `(\w+)` \| (?:`([^`]*)`|\(empty\)) \|", line):
            table[match[1]] = match[2] or ""
    defaults = {name: str(getattr(Settings(), name)) for name in Settings.__struct_fields__}
    assert table == defaults


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")) + sorted(DOCS.glob("*.md")), ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_file_has_its_line(kind: str) -> None:
    section = (DOCS / "declaration.md").read_text().partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    fields = set(KINDS[kind].__struct_fields__)
    if kind == "plans":
        fields |= set(Limit.__struct_fields__) | set(PlanBudget.__struct_fields__)
    assert documented == fields


def test_the_example_files_of_the_pages_are_accepted() -> None:
    for page in (ROOT / "README.md", DOCS / "declaration.md", DOCS / "matching.md"):
        for example in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
            assert parse_declaration(example)


def test_the_command_line_page_is_the_commands_own_help() -> None:
    assert cli_help.PAGE.read_text() == cli_help.page(), "run: python -m tests.docs.cli_help"


def test_every_path_of_the_api_has_its_line_and_no_other(site: Installation) -> None:
    text = (DOCS / "http.md").read_text()
    documented = set(re.findall(r"\| `(GET|POST|PUT|DELETE) (/[^`]*)`", text))
    for kind in KINDS:
        documented |= {(m, p.replace("<kind>", kind)) for m, p in documented if "<kind>" in p}
    documented = {(m, p) for m, p in documented if "<kind>" not in p}
    served = {
        (method.upper(), path)
        for path, operations in openapi_paths(site).items()
        for method in operations
        if method in ("get", "post", "put", "delete")
    }
    assert documented == served


def test_every_measure_and_dimension_is_named() -> None:
    text = (DOCS / "http.md").read_text()
    for name in (*MEASURES, *DIMENSIONS):
        assert name in text or name.removeprefix("latency_ms") in text or name.endswith("_tokens"), name
