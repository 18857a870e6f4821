"""CSV in: an export of one installation, ingested by a new one, has the same totals; what cannot be taken is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import answer_of, in_process

CATALOG = b"""
[[accounts]]
id = "acme"
name = "Acme"
[[accounts]]
id = "bolt"
name = "Bolt"
[[keys]]
id = "k1"
account = "acme"
"""
GROUPS = "account,key,method,route,model,status,error_type,tag.team"
MEASURES = (
    "requests,errors,failed,denied,prompt_tokens,cached_prompt_tokens,completion_tokens,reasoning_tokens,tokens,cost_nanos,"
    "estimated_cost_nanos,credits,bytes_out,quantity.seconds"
)


def events() -> bytes:
    lines = []
    for number in range(60):
        event: dict[str, Any] = {
            "id": f"e-{number}",
            "time": f"2026-03-{1 + number % 3:02}T10:00:{number % 60:02}Z",
            "account": "bolt" if number % 5 == 0 else "acme",
            "method": "POST",
            "route": "/v1/chat" if number % 2 else "=SUM(A1)",
            "status": 429 if number % 7 == 0 else 200,
            "model": "house-1",
            "bytes_out": 100 + number,
            "tokens": {"prompt": number, "completion": 3 * number},
            "cost_nanos": 1_000_003 * number,
            "quantities": {"seconds": f"{number}.5"},
            "tags": {"team": "-blue" if number % 3 else 'größe, "x"'},
        }
        if event["account"] == "acme":
            event["key_id"] = "k1"
        lines.append(json.dumps(event).encode())
    return b"\n".join(lines)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("csv")


def installation(path: Path) -> Path:
    assert in_process("apply", "-", "--data", path, stdin=CATALOG).returncode == 0
    return path


@pytest.fixture(scope="module")
def exported(place: Path) -> str:
    data = installation(place / "old")
    answer_of(in_process("ingest", "-", "--data", data, "--json", stdin=events()))
    done = in_process(
        "usage",
        "--data",
        data,
        "--granularity",
        "day",
        "--group-by",
        GROUPS,
        "--measures",
        MEASURES,
        "--format",
        "csv",
    )
    assert done.returncode == 0
    return done.stdout


@pytest.fixture(scope="module")
def new(place: Path) -> Path:
    return installation(place / "new")


def report(data: Path) -> Any:
    answer = answer_of(
        in_process(
            "usage",
            "--data",
            data,
            "--granularity",
            "day",
            "--group-by",
            GROUPS,
            "--measures",
            MEASURES,
            "--json",
        )
    )
    return answer["totals"], answer["rows"]


def test_an_export_gives_equal_totals_in_a_new_installation(place: Path, exported: str, new: Path) -> None:
    """Row by row and in all, and once, however often it is read."""
    file = place / "usage.csv"
    file.write_text(exported, newline="")
    options = ("--data", new, "--format", "csv", "--json")
    assert answer_of(in_process("ingest", file, *options))["accepted"] == 60
    assert report(new) == report(place / "old")
    again = answer_of(in_process("ingest", file, *options))
    assert (again["accepted"], again["duplicates"]) == (0, 60)
    assert answer_of(in_process("verify", "--data", new, "--json"))["ok"]


def test_an_export_of_the_default_columns_gives_equal_totals(place: Path) -> None:
    """It does not say which errors and which tokens; how many there were, it does."""
    old, new = installation(place / "old-2"), installation(place / "plain")
    answer_of(in_process("ingest", "-", "--data", old, "--json", stdin=events()))
    query = ("usage", "--granularity", "hour", "--group-by", "account")
    denied = {
        "id": "d",
        "time": "2026-03-01T10:00:00Z",
        "account": "acme",
        "denied_reason": "rate_limited",
        "status": 429,
    }
    assert in_process("ingest", "-", "--data", old, stdin=json.dumps(denied).encode()).returncode == 0
    text = in_process(*query, "--data", old, "--format", "csv").stdout
    taken = answer_of(
        in_process("ingest", "-", "--data", new, "--format", "csv", "--json", stdin=text.encode())
    )
    assert (taken["accepted"], taken["rejected"]) == (61, 0)
    before, after = (answer_of(in_process(*query, "--data", data, "--json")) for data in (old, new))
    assert before["totals"] == after["totals"]
    assert before["rows"] == after["rows"]
    assert after["totals"]["denied"] == 1
    assert after["totals"]["errors"] > 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("time,account,colour,requests\n", "'colour'"),
        ("time,account,requests,latency_ms_p99\n", "'latency_ms_p99'"),
        ("account,requests\nacme,1\n", "no column time"),
        ("time,account,key,key_id\n", "two columns"),
        ('time,account\n2026-03-01T00:00:00Z,"a\n', "not CSV"),
    ],
)
def test_columns_that_cannot_be_taken_are_named(new: Path, text: str, named: str) -> None:
    done = in_process("ingest", "-", "--data", new, "--format", "csv", stdin=text.encode())
    assert done.returncode == 1
    assert named in done.stderr


@pytest.mark.drawn(4)
@pytest.mark.parametrize(
    ("header", "row", "field"),
    [
        ("requests,errors,status,error_type", "10,3,200,", "errors"),
        ("requests,denied,denied_reason", "10,9,rate_limited", "denied"),
        ("requests,failed", "10,3", "failed"),
        ("requests,errors", "2,3", "requests"),
        ("requests,tokens,prompt_tokens", "1,9,8", "tokens"),
        ("requests,tokens,model", "1,9,house-1", "tokens"),
        ("requests,cost_nanos", "1,1.5", "cost_nanos"),
        ("requests,cost_nanos", "0,7", "requests"),
        ("requests,cost_nanos,estimated_cost_nanos", "2,7,3", "estimated_cost_nanos"),
        ("requests", "-1", "requests"),
        ("requests", "1,2", ""),
    ],
)
def test_a_row_that_events_cannot_say_is_rejected(new: Path, header: str, row: str, field: str) -> None:
    text = f"time,account,{header}\n\n2026-03-01T00:00:00Z,acme,{row}\n"
    done = in_process("ingest", "-", "--data", new, "--format", "csv", "--json", stdin=text.encode())
    (error,) = answer_of(done, exit_code=1)["errors"]
    assert (error["line"], error["field"]) == (3, field)


def test_a_row_per_event_with_columns_of_other_names(place: Path) -> None:
    data = installation(place / "mapped")
    text = (
        "when,uid,customer,path,status,latency_ms,in,out\r\n"
        '2026-03-01T00:00:00Z,a,acme,"/v1/a,b",200,31.5,10,5\r\n'
        "2026-03-01T00:00:01Z,b,acme,/v1/c,200,2,1,0\r\n"
    )
    mapped = "time=when,id=uid,account=customer,route=path,prompt_tokens=in,completion_tokens=out"
    options = ("--data", data, "--format", "csv", "--field-map", mapped, "--json")
    assert answer_of(in_process("ingest", "-", *options, stdin=text.encode()))["accepted"] == 2
    measures = ("--measures", "requests,tokens,latency_ms_max", "--group-by", "route")
    rows = answer_of(in_process("usage", "--data", data, "--json", *measures))["rows"]
    assert [(r["route"], r["tokens"], r["latency_ms_max"]) for r in rows] == [
        ("/v1/a,b", 15, 31.5),
        ("/v1/c", 1, 2.0),
    ]
    # The file names its accounts; one that does not has to be told.
    bare = in_process("ingest", "-", "--data", data, "--format", "csv", stdin=b"time\n2026-03-01T00:00:00Z\n")
    assert bare.returncode == 2
    assert "--account" in bare.stderr
