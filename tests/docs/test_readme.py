"""The programs and commands of README's first page run as they are written."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest
from starlette.testclient import TestClient

from tests.docs.shell import Call, blocks, commands_of, run_command
from tollkeeper import Tollkeeper, UsageQuery
from tollkeeper.http.app import build_app
from tollkeeper.http.server import ensure_operator_key

ROOT: Final = Path(__file__).resolve().parents[2]
README: Final = (ROOT / "README.md").read_text()
PROGRAMS: Final = list(blocks(README, "python"))
(PROVIDER,) = blocks(README, "toml")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def set_up(toll: Tollkeeper) -> str:
    """Apply the file of the page; return the secret of its key."""
    (issued,) = toll.apply(PROVIDER).issued
    assert issued.secret is not None
    return issued.secret


def program(directory: Path, framework: str) -> ModuleType:
    """Return the program of the page that uses *framework*, loaded from its file."""
    (code,) = [code for code in PROGRAMS if f"from {framework} import" in code]
    name = code.partition("\n")[0].removeprefix("# ")
    (directory / name).write_text(code)
    spec = importlib.util.spec_from_file_location(f"readme_{framework}", directory / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tokens(toll: Tollkeeper) -> int:
    query = UsageQuery(account_id="acme", from_us=0, to_us=2**52, measures=("tokens",))
    report = toll.usage(query)
    until = time.monotonic() + 30
    while not report.complete and time.monotonic() < until:
        report = toll.usage(query)  # On a busy machine an answer may say that it lacks something.
    found: int = report.totals["tokens"]
    return found


def test_fastapi(directory: Path) -> None:
    """A route may be added after the middleware, and the app is still the `FastAPI` that `fastapi run` looks for."""
    module = program(directory, "fastapi")
    with module.toll as toll:
        key = {"Authorization": f"Bearer {set_up(toll)}"}
        module.app.get("/later")(lambda: "added")
        assert type(module.app).__name__ == "FastAPI"
        with TestClient(module.app) as client:
            assert client.post("/v1/chat").status_code == 401
            assert client.post("/v1/chat", headers=key).json() == {"answer": "Hello."}
            assert client.get("/later", headers=key).json() == "added"
            assert client.get("/later").status_code == 401
            assert client.get("/docs").status_code == 200
            assert client.get("/openapi.json").status_code == 200
        assert tokens(toll) == 812 + 97


def test_flask(directory: Path) -> None:
    module = program(directory, "flask")
    with module.toll as toll:
        key = {"Authorization": f"Bearer {set_up(toll)}"}
        client = module.app.test_client()
        assert client.post("/v1/chat").status_code == 401
        assert client.post("/v1/chat", headers=key).json == {"answer": "Hello."}
        assert tokens(toll) == 812 + 97


def test_django_and_its_start_are_those_of_the_library_page() -> None:
    """Which `tests/stacks/test_wsgi_docs.py` runs under gunicorn."""
    library = (ROOT / "docs/library.md").read_text()
    (django,) = [code for code in PROGRAMS if "# mysite/wsgi.py" in code]
    assert django in list(blocks(library, "python"))
    assert "gunicorn -w 1 --threads 8 mysite.wsgi" in library
    assert "gunicorn -w 1 --threads 8 app:app" in library


@pytest.fixture
def service(directory: Path) -> Iterator[tuple[dict[str, str], Any]]:
    """Variables of a shell in which the page's service runs, and what sends its calls."""
    start, calls = blocks(README, "sh")
    variables: dict[str, str] = {}
    export, serve = commands_of(start)
    run_command(export.text, variables, directory, lambda call: "")
    assert serve.text == "tollkeeper serve --data ./data"
    with Tollkeeper.open("./data") as toll:
        variables["SECRET"] = set_up(toll)
        ensure_operator_key(toll.installation, variables["TOLLKEEPER_OPERATOR_KEY"])
        app = build_app(toll.installation)
        with TestClient(app) as client:

            def send(call: Call) -> str:
                assert call.url.startswith("localhost:8080/")
                url = call.url.removeprefix("localhost:8080")
                # What curl adds to -d.
                form = {"Content-Type": "application/x-www-form-urlencoded"} if call.body else {}
                found = client.request(call.method, url, headers={**form, **call.headers}, content=call.body)
                assert found.status_code == 200, found.text
                return found.text

            yield variables, (calls, send)
        app.close()


def test_the_service(directory: Path, service: Any) -> None:
    variables, (calls, send) = service
    outputs = [run_command(c.text, variables, directory, send) for c in commands_of(calls)]
    authorized, settled, usage = map(json.loads, outputs)
    assert authorized["allowed"]
    assert authorized["hold_id"] == "req-1"
    assert settled["cost_nanos"]
    assert usage["rows"][0]["key"] == "acme-prod"
    assert usage["rows"][0]["tokens"] == 812 + 97


def test_the_commands_that_the_page_names_exist() -> None:
    """As words of the text: `tollkeeper x`, `make y`, `gunicorn …`."""
    from tollkeeper.cli.app import app

    known = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    known |= {group.typer_instance.info.name for group in app.registered_groups if group.typer_instance}
    named = {shlex.split(text)[1] for text in re.findall(r"`(tollkeeper \w[^`]*)`", README)}
    assert named
    assert named <= known
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE)) <= targets
