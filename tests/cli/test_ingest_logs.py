"""`ingest` of access logs: the option that reads a file, sources, and the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import answer_of, in_process
from tests.meter.test_log_formats import CADDY, COMBINED, IIS, OWN_JSON, OWN_MAP, VHOST

ONE_ACCOUNT = b'[[accounts]]\nid = "acme"\nname = "Acme"\n'


@pytest.fixture
def data(tmp_path: Path) -> Path:
    assert in_process("apply", "-", "--data", tmp_path / "data", stdin=ONE_ACCOUNT).returncode == 0
    return tmp_path / "data"


def write(data: Path, text: str) -> Path:
    file = data.parent / "log"
    file.write_text(text)
    return file


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    ("text", "arguments", "advice"),
    [
        (COMBINED, (), "--log-format combined"),
        (COMBINED + ' "-"', (), "--log-format nginx-main"),
        (VHOST, ("--format", "combined"), "--log-format vhost-combined"),
        (CADDY, ("--log-format", "combined"), "--log-format json"),
        (IIS, (), "--log-format w3c"),
        (COMBINED + " 0.031", ("--format", "combined"), "$remote_addr"),
        (COMBINED, ("--format", "csv"), "--log-format combined"),
        (CADDY, ("--format", "csv"), "--log-format json"),
    ],
)
def test_a_file_in_another_format_is_named_and_nothing_is_booked(
    data: Path, text: str, arguments: tuple[str, ...], advice: str
) -> None:
    done = in_process("ingest", write(data, text), "--data", data, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert advice in done.stderr
    assert "Nothing was booked" in done.stderr
    answer = answer_of(in_process("usage", "--data", data, "--json"))
    assert answer["totals"]["requests"] == 0


def test_an_option_of_logs_without_a_format_says_which_format_the_file_has(data: Path) -> None:
    for text, option in ((COMBINED, "--log-format combined"), (CADDY, "--log-format json")):
        done = in_process("ingest", write(data, text), "--data", data, "--account", "acme")
        assert (done.returncode, done.stdout) == (2, "")
        assert f"give {option}" in done.stderr


def test_a_byte_order_mark_is_no_part_of_the_first_line(data: Path) -> None:
    options = ("--data", data, "--log-format", "w3c", "--json")
    done = in_process("ingest", write(data, "\ufeff" + IIS + "nonsense\n"), *options)
    answer = answer_of(done, exit_code=1)
    assert (answer["accepted"], answer["rejected"]) == (1, 1)
    assert answer["errors"][0]["line"] == IIS.count("\n") + 1


def test_rejects_and_empty_files_exit_1(data: Path) -> None:
    """A script that books logs must not take half a file for the whole."""
    mixed = write(data, f"{COMBINED}\nnonsense\n")
    options = ("--data", data, "--log-format", "combined", "--json")
    done = in_process("ingest", mixed, *options)
    answer = answer_of(done, exit_code=1)
    assert (answer["accepted"], answer["rejected"], answer["errors"][0]["line"]) == (1, 1, 2)
    assert "--allow-rejects" in done.stderr
    again = answer_of(in_process("ingest", mixed, *options, "--allow-rejects"))
    assert (again["duplicates"], again["rejected"]) == (1, 1)
    nothing = in_process("ingest", write(data, "\n"), *options, "--allow-rejects")
    assert nothing.returncode == 1
    assert "no events" in nothing.stderr
    none = in_process("ingest", write(data, "nonsense\n"), *options, "--allow-rejects")
    assert answer_of(none, exit_code=1)["rejected"] == 1
    clean = answer_of(in_process("ingest", write(data, COMBINED), *options))
    assert clean["duplicates"] == 1


def test_two_servers_lines_count_apart_and_a_rotated_copy_does_not(data: Path) -> None:
    log = write(data, f"{COMBINED}\n")
    options = ("--data", data, "--log-format", "combined", "--json")
    taken = [
        answer_of(in_process("ingest", log, *options, "--source", source))["accepted"]
        for source in ("web-1", "web-2", "web-1")
    ]
    assert taken == [1, 1, 0]


def test_lines_are_numbered_as_they_stand_in_a_file_with_directives(data: Path) -> None:
    log = write(data, IIS + "\n2026-11-20 short\n")
    done = in_process("ingest", log, "--data", data, "--log-format", "w3c", "--json")
    (error,) = answer_of(done, exit_code=1)["errors"]
    assert (error["index"], error["line"]) == (1, 7)


def test_a_log_of_json_gives_its_latency(data: Path) -> None:
    mapped = ",".join(f"{name}={path}" for name, path in OWN_MAP.items())
    log = write(data, OWN_JSON)
    options = ("--data", data, "--log-format", "json", "--field-map", mapped, "--json")
    assert answer_of(in_process("ingest", log, *options))["accepted"] == 1
    measures = ("--measures", "requests,latency_ms_avg,bytes_out", "--group-by", "route,status,tag.client")
    (row,) = answer_of(in_process("usage", "--data", data, "--json", *measures))["rows"]
    assert (row["route"], row["status"], row["tag:client"]) == ("/v1/items", 200, "203.0.113.7")
    assert (row["requests"], row["latency_ms_avg"], row["bytes_out"]) == (1, 31.0, 512)


@pytest.mark.drawn(3)
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--log-format", "xml"), "nginx-main"),
        (("--log-format", "w3c", "--format", "combined"), "drop one"),
        (("--source", "web-1"), "--source"),
        (("--log-format", "json", "--field-map", "time"), "NAME=PATH"),
        (("--log-format", "json", "--field-map", "latency=d"), "latency_s"),
        (("--log-format", "$status $time_local"), "request"),
        (("--log-format", "combined", "--source", "a\nb"), "printable"),
    ],
)
def test_options_that_do_not_go_together_are_misuse(
    data: Path, arguments: tuple[str, ...], named: str
) -> None:
    done = in_process("ingest", write(data, COMBINED), "--data", data, *arguments)
    assert done.returncode == 2
    assert named in done.stderr
