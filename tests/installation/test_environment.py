"""`TOLLKEEPER_…`: each as a value or a file, none that means nothing, and nothing of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tollkeeper import environment
from tollkeeper.errors import BadParameter
from tollkeeper.settings import Settings, load

KUBERNETES = {
    "TOLLKEEPER_SERVICE_HOST": "10.0.171.239",
    "TOLLKEEPER_SERVICE_PORT": "8080",
    "TOLLKEEPER_SERVICE_PORT_HTTP_API": "8080",
    "TOLLKEEPER_PORT": "tcp://10.0.171.239:8080",
    "TOLLKEEPER_PORT_8080_TCP": "tcp://10.0.171.239:8080",
    "TOLLKEEPER_PORT_8080_TCP_PROTO": "tcp",
    "TOLLKEEPER_PORT_8080_TCP_PORT": "8080",
    "TOLLKEEPER_PORT_8080_TCP_ADDR": "10.0.171.239",
}
"""What a pod finds beside a service called `tollkeeper` (kubernetes.io, "Accessing the Service")."""


@pytest.mark.parametrize("name", [*Settings.__struct_fields__, *environment.OTHERS])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_each_variable_can_be_a_file(name: str, end: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"said{end}", newline="")
    environ = {f"TOLLKEEPER_{name.upper()}_FILE": str(file)}
    assert environment.variable(name.upper(), environ) == "said"
    environment.check_known(Settings.__struct_fields__, environ)


def test_a_setting_comes_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://toll:s3cret@db/toll\n")
    found = load({}, {"TOLLKEEPER_LEDGER_URL_FILE": str(tmp_path / "url")})
    assert found.ledger == "postgresql://toll:s3cret@db/toll"


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read: No such file"), (b"\xff\xfe", "must be UTF-8"), (b"x" * 1_000_001, "at most")],
)
def test_a_file_that_cannot_be_the_value_is_refused(content: bytes | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadParameter, match=f"TOLLKEEPER_HOLD_S_FILE: .*{says}"):
        load({}, {"TOLLKEEPER_HOLD_S_FILE": str(file)})


def test_a_value_and_a_file_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(BadParameter, match="both set"):
        load({}, {"TOLLKEEPER_HOLD_S": "3", "TOLLKEEPER_HOLD_S_FILE": str(tmp_path)})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TOLLKEEPER_HOLDS", "TOLLKEEPER_HOLD_S"),
        ("TOLLKEEPER_LEDGERURL", "TOLLKEEPER_LEDGER_URL"),
        ("TOLLKEEPER_hold_s", "TOLLKEEPER_HOLD_S"),
        ("TOLLKEEPER_OPERATORKEY", "TOLLKEEPER_OPERATOR_KEY"),
        ("TOLLKEEPER_", "docs/settings.md"),
        ("TOLLKEEPER_XYZZY_FILE", "docs/settings.md"),
    ],
)
def test_a_variable_that_nothing_reads_is_an_error(name: str, meant: str) -> None:
    with pytest.raises(BadParameter, match=f"{name} is set and is no setting.*{meant}") as refused:
        load({}, {name: "3"})
    assert refused.value.field == name


def test_a_service_called_tollkeeper_is_no_setting() -> None:
    assert load({}, KUBERNETES) == Settings()
    assert environment.variable("PORT", KUBERNETES) is None
    assert environment.variable("PORT", {"TOLLKEEPER_PORT": "9000"}) == "9000"


def test_an_error_names_the_variable_that_it_came_from() -> None:
    with pytest.raises(BadParameter, match=r"setting hold_s \(TOLLKEEPER_HOLD_S\): must be"):
        load({}, {"TOLLKEEPER_HOLD_S": "abc"})
    with pytest.raises(BadParameter, match="setting hold_s: must be"):
        load({"hold_s": "abc"}, {"TOLLKEEPER_HOLD_S": "3"})
