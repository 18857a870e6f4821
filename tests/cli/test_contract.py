"""The contract that scripts depend on, by running the real command on a real data directory."""

from __future__ import annotations

import gzip
import json
import subprocess
from contextlib import redirect_stdout
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pytest

from tests.cli.commands import COMMAND, answer_of, environment, free_port, in_process, tollkeeper
from tests.traces import DATA, needs_traces
from tollkeeper.cli.app import run

OPERATOR_KEY: Final = "ok_0123456789abcdefghijklmnopqrstuv"

DECLARATION: Final = """
[[accounts]]
id = "acme"
name = "Acme"

[[projects]]
id = "web"
account = "acme"

[[keys]]
id = "k1"
account = "acme"
project = "web"

[[budgets]]
id = "monthly"
account = "acme"
amount = 1_000_000_000
"""
COST_NANOS: Final = 999_999_999_999_999
"""The most that one event may cost; ten of it are beyond what a float counts exactly."""


def events() -> bytes:
    """
    Return eleven good events and three bad ones.

    The bad ones are the events 11 to 13 counted from 0, and the lines 13 to 15 counted from 1: one is blank.
    """
    dear = [
        f'{{"id":"e{number}","time":"2026-01-01T00:00:00Z","key_id":"k1","cost_nanos":{COST_NANOS}}}'
        for number in range(10)
    ]
    now = datetime.now(UTC).isoformat()
    cheap = f'{{"id":"now","time":"{now}","account":"acme","status":500,"cost_nanos":1}}'
    bad = ['{"id":"e3"}', "this is no JSON", '{"id":"e4","time":"2026-01-01T00:45:00Z","account":"nobody"}']
    return "\n".join([*dear, "", cheap, *bad, ""]).encode()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that the tests of this module use one after the other."""
    directory = tmp_path_factory.mktemp("contract") / "data"
    (directory.parent / "toll.toml").write_text(DECLARATION)
    (directory.parent / "events.jsonl").write_bytes(events())
    return directory


@pytest.fixture(scope="module")
def applied(data: Path) -> dict[str, Any]:
    """What a dry run, a first and a second `apply` say."""
    file = data.parent / "toll.toml"
    return {
        "dry": answer_of(tollkeeper("apply", file, "--data", data, "--dry-run", "--json")),
        "first": answer_of(in_process("apply", file, "--data", data, "--json")),
        "again": in_process("apply", file, "--data", data),
    }


@pytest.fixture(scope="module")
def ingested(data: Path, applied: dict[str, Any]) -> dict[str, Any]:
    """What the first and the second ingest of the same events say: from a gzipped file, then from stdin."""
    plain = data.parent / "events.jsonl"
    gzipped = plain.with_suffix(".gz")
    gzipped.write_bytes(gzip.compress(plain.read_bytes()))
    options = ("--data", data, "--format", "jsonl", "--json", "--allow-rejects")
    return {
        "first": answer_of(in_process("ingest", gzipped, *options)),
        "again": answer_of(in_process("ingest", "-", *options, stdin=plain.read_bytes())),
    }


def test_a_dry_run_says_what_apply_then_does(applied: dict[str, Any]) -> None:
    """The same changes, but no key is made and the next run still finds everything to do."""
    assert applied["dry"]["dry_run"]
    assert applied["dry"]["issued"] == []
    assert applied["first"]["changes"] == applied["dry"]["changes"]
    assert {change["action"] for change in applied["first"]["changes"]} == {"created"}
    assert len(applied["first"]["changes"]) == 4


def test_apply_shows_a_new_secret_once_and_a_repeat_changes_nothing(applied: dict[str, Any]) -> None:
    (issued,) = applied["first"]["issued"]
    assert issued["entry"]["id"] == "k1"
    assert issued["secret"].startswith("tk_")
    again = applied["again"]
    assert again.returncode == 0
    assert again.stdout == "0 created, 0 changed, 4 unchanged\n"


def test_ingest_counts_and_names_what_it_rejects(ingested: dict[str, Any]) -> None:
    first = ingested["first"]
    assert {name: first[name] for name in ("accepted", "duplicates", "rejected")} == {
        "accepted": 11,
        "duplicates": 0,
        "rejected": 3,
    }
    assert [(error["index"], error["line"], error["field"], error["code"]) for error in first["errors"]] == [
        (11, 13, "time", "missing_field"),
        (12, 14, "", "malformed"),
        (13, 15, "account", "unknown_account"),
    ]
    assert all(error["reason"] for error in first["errors"])


def test_the_same_events_again_are_duplicates(ingested: dict[str, Any]) -> None:
    again = ingested["again"]
    assert (again["accepted"], again["duplicates"], again["rejected"]) == (0, 11, 3)


def test_usage_is_exact_beyond_what_javascript_can_count(data: Path, ingested: dict[str, Any]) -> None:
    """Without a range the answer is about everything there is, and money is text."""
    assert int(float(10 * COST_NANOS + 1)) != 10 * COST_NANOS + 1
    answer = answer_of(
        in_process("usage", "--data", data, "--account", "acme", "--group-by", "key", "--format", "json")
    )
    assert [(row["key"], row["requests"], row["cost_nanos"]) for row in answer["rows"]] == [
        ("", 1, "1"),
        ("k1", 10, str(10 * COST_NANOS)),
    ]
    assert answer["totals"]["requests"] == 11
    assert answer["totals"]["errors"] == 1
    assert answer["totals"]["cost_nanos"] == str(10 * COST_NANOS + 1)
    assert answer["row_count"] == 2
    assert answer["complete"]
    assert answer["as_of"].endswith("Z")


def test_events_are_listed_newest_first(data: Path, ingested: dict[str, Any]) -> None:
    """As JSON page by page, as CSV, and as a table with the cursor of the next page."""
    found: list[dict[str, Any]] = []
    cursor: list[str] = []
    while True:
        page = answer_of(
            in_process("events", "--data", data, "--account", "acme", "--limit", "4", "--json", *cursor)
        )
        found += page["events"]
        if page["next_cursor"] is None:
            break
        cursor = ["--cursor", page["next_cursor"]]
    order = [(event["time"], event["id"]) for event in found]
    assert order == sorted(order, reverse=True)
    assert len(order) == len(set(order)) == 11
    assert sum(int(event["cost_nanos"]) for event in found) == 10 * COST_NANOS + 1
    as_csv = in_process("events", "--data", data, "--filter", "key=k1", "--limit", "3", "--format", "csv")
    assert len(as_csv.stdout.splitlines()) == 4
    assert as_csv.stdout.startswith("time,id,account,")
    as_table = in_process("events", "--data", data, "--denied")
    assert as_table.stdout == "There is no such event.\n"
    shown = in_process("events", "--data", data, "--limit", "2").stdout
    assert "More: --cursor " in shown
    misused = in_process("events", "--data", data, "--filter", "colour=red")
    assert (misused.returncode, "colour" in misused.stderr) == (2, True)
    garbage = in_process("events", "--data", data, "--cursor", "garbage")
    assert (garbage.returncode, "next_cursor of the page before" in garbage.stderr) == (1, True)


@needs_traces
def test_a_real_access_log_gives_its_known_totals(data: Path, ingested: dict[str, Any]) -> None:
    """There is one account, so it need not be named. Then the same is served, and asked over HTTP."""
    known = json.loads((DATA / "expected_totals.json").read_text())["files"]["apache_access.log.gz"]
    log = DATA / "apache_access.log.gz"
    done = in_process(
        "ingest", log, "--data", data, "--format", "combined", "--client-field", "host", "--json"
    )
    assert answer_of(done) == {"accepted": known["rows"], "duplicates": 0, "rejected": 0, "errors": []}
    port = free_port()
    with subprocess.Popen(
        [*COMMAND, "serve", "--data", str(data), "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(TOLLKEEPER_OPERATOR_KEY=OPERATOR_KEY),
    ) as server:
        assert server.stdout is not None
        greeting = server.stdout.readline()
        assert f"http://127.0.0.1:{port}" in greeting
        try:
            _check_asked_over_http(f"http://127.0.0.1:{port}", known)
            _check_directory_in_use(data)
        finally:
            server.terminate()
            rest = server.communicate()[0]
    assert server.returncode == 0
    assert "Stopped" in rest
    assert OPERATOR_KEY not in greeting + rest


def _check_asked_over_http(url: str, known: dict[str, Any]) -> None:
    """The remote form of usage, ingest and verify, with the key from the environment."""
    server = ("--url", url, "--key", OPERATOR_KEY)
    log = DATA / "apache_access.log.gz"
    grouped = (
        "--account",
        "acme",
        "--from",
        "2015-01-01",
        "--to",
        "2016-01-01",
        "--measures",
        "requests,bytes_out",
    )
    newest = _run_here("events", *server, "--account", "acme", "--limit", "5", "--json")
    assert (len(newest["events"]), newest["complete"]) == (5, True)
    by_status = _run_here("usage", *server, *grouped, "--group-by", "status", "--json")
    assert {str(row["status"]): (row["requests"], row["bytes_out"]) for row in by_status["rows"]} == {
        status: (figures["count"], figures["bytes"]) for status, figures in known["per_status"].items()
    }
    by_hour = _run_here("usage", *server, *grouped, "--granularity", "hour", "--json")
    assert {row["time"][:13]: (row["requests"], row["bytes_out"]) for row in by_hour["rows"]} == {
        hour: (figures["count"], figures["bytes"]) for hour, figures in known["per_hour"].items()
    }
    clients = _run_here(
        "usage", *server, *grouped, "--group-by", "tag.client", "--sort=-requests", "--limit", "3", "--json"
    )
    assert clients["row_count"] == known["distinct"]["host"]
    assert [[row["tag:client"], row["requests"]] for row in clients["rows"]] == [
        [host, figures["count"]] for host, figures in known["top10_host"][:3]
    ]
    again = _run_here("ingest", log, *server, "--format", "combined", "--client-field", "host", "--json")
    assert again == {"accepted": 0, "duplicates": known["rows"], "rejected": 0, "errors": []}
    verdict = _run_here("verify", *server, "--json")
    assert verdict["ok"]
    assert verdict["differences"] == []


def _run_here(*arguments: object) -> Any:
    """Run a command that opens no store in this process, and return what it printed as JSON."""
    out = StringIO()
    with redirect_stdout(out):
        assert run([str(argument) for argument in arguments]) == 0
    return json.loads(out.getvalue())


def _check_directory_in_use(data: Path) -> None:
    """Who forgets that the server runs gets its answer all the same, through the socket in the directory."""
    done = in_process("usage", "--account", "acme", "--data", data, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["row_count"] == 1


def test_verify_finds_no_difference(data: Path, ingested: dict[str, Any]) -> None:
    answer = answer_of(in_process("verify", "--data", data, "--json"))
    assert answer == {"ok": True, "differences": [], "accounts": 1, "counters": answer["counters"]}
    assert answer["counters"] >= 1
