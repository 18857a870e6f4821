"""Each file of `examples/` is short, and does what it says: it is run here, in this process where that can be."""

from __future__ import annotations

import importlib.util
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import httpx
import pytest
from django.conf import settings as django_settings
from django.urls import clear_url_caches
from django.utils.functional import empty
from starlette.testclient import TestClient

from tests.end_to_end.server import OPERATOR_KEY, Server, running_server
from tollkeeper import Tollkeeper, TollkeeperError, UsageQuery

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
PROVIDER: Final = (EXAMPLES / "provider.toml").read_text()
LINES_MAX: Final = 60

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Load an example as a server does, in an empty directory; its installation is closed at the end."""
    monkeypatch.chdir(tmp_path)
    loaded: list[ModuleType] = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        loaded.append(module)
        return module

    yield load
    for module in loaded:
        if hasattr(module, "toll"):
            module.toll.close()


def secrets_of(toll: Tollkeeper) -> dict[str, str]:
    return {issued.entry.id: str(issued.secret) for issued in toll.apply(PROVIDER).issued}


def tokens_of(toll: Any) -> int:
    query = UsageQuery(account_id="acme", from_us=0, to_us=2**52, measures=("tokens",))
    tokens: int = toll.usage(query).totals["tokens"]
    return tokens


def check_gate(call: Callable[[str, str, dict[str, str]], Any], toll: Tollkeeper) -> None:
    """An open path, a free one, one that is charged, and the three refusals: no key, no route, no permit."""
    key = {"Authorization": f"Bearer {secrets_of(toll)['acme-prod']}"}
    assert call("GET", "/healthz", {}) == (200, {"ok": True})
    assert call("POST", "/v1/chat", {})[0] == 401
    assert call("GET", "/v1/models/m1", key) == (200, {"name": "m1"})
    assert call("GET", "/elsewhere", key)[0] == 403
    passed = 0
    # More than the limit of a minute, since a minute may begin meanwhile.
    for _ in range(5 * 60):
        status, body = call("POST", "/v1/chat", key)
        if status == 429:
            break
        assert (status, body) == (200, {"answer": "Hello."})
        passed += 1
    assert status == 429
    # The list of models counted too.
    assert passed >= 59
    assert tokens_of(toll) == passed * (812 + 97)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_named(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= LINES_MAX
    if file.name != "openai_proxy.py":
        assert file.name in (EXAMPLES / "README.md").read_text()


def test_fastapi(load: Load) -> None:
    module = load("fastapi_app")
    with TestClient(module.app) as client:

        def call(method: str, path: str, headers: dict[str, str]) -> Any:
            found = client.request(method, path, headers=headers)
            return found.status_code, found.json()

        check_gate(call, module.toll)
        assert client.get("/openapi.json").status_code == 200
    # The lifespan has closed it: the directory is free.
    Tollkeeper.open("./data").close()


def test_flask(load: Load) -> None:
    module = load("flask_app")
    client = module.app.test_client()

    def call(method: str, path: str, headers: dict[str, str]) -> Any:
        found = client.open(path, method=method, headers=headers)
        return found.status_code, found.json

    check_gate(call, module.toll)


def test_django(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    # A process has one Django site, which another test may have been before.
    # Of the object behind the lazy one: to look at that asks for settings.
    monkeypatch.setitem(vars(django_settings), "_wrapped", empty)
    clear_url_caches()
    module = load("django_app")
    with httpx.Client(transport=httpx.WSGITransport(module.application), base_url="http://h") as client:

        def call(method: str, path: str, headers: dict[str, str]) -> Any:
            found = client.request(method, path, headers=headers)
            return found.status_code, found.json()

        check_gate(call, module.toll)


def test_background_ingest(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    """Batches that fail are sent again and count once; what is rejected is told; `None` ends it."""
    module = load("background_ingest")
    with Tollkeeper.open("./data") as toll:
        toll.apply(PROVIDER)
        calls: queue.Queue[int] = queue.Queue()

        class Flaky:
            def record(self, batch: list[dict[str, Any]]) -> Any:
                calls.put(len(batch))
                booked = toll.record(batch)
                if calls.qsize() == 1:
                    raise TollkeeperError("the answer was lost")
                return booked

        for number in range(2_500):
            module.report("acme-prod", "gpt-4o-mini", prompt=100 + number % 2, completion=10)
        module.report("nobody", "gpt-4o-mini", prompt=1, completion=1)
        module.events.put(None)
        worker = threading.Thread(target=module.book, args=(Flaky(),))
        worker.start()
        worker.join(60)
        assert not worker.is_alive()
        assert tokens_of(toll) == 2_500 * 110 + 1_250
    assert [calls.get() for _ in range(4)] == [1_000, 1_000, 1_000, 501]
    printed = capsys.readouterr().out
    assert "not booked yet: the answer was lost" in printed
    assert printed.count("rejected: ") == 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("served")
    with running_server(directory / "data", "--uds", str(directory / "toll.socket")) as server:
        server.place = directory  # type: ignore[attr-defined]
        yield server


def test_remote_workers_and_the_dashboard(server: Any, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes a worker is on the page; a refusal and a stranger's account are not."""
    applied = server.call("POST", "/tk/v1/apply", PROVIDER.encode(), {"Content-Type": "application/toml"})
    secrets = {issued["entry"]["id"]: issued["secret"] for issued in applied["issued"]}
    monkeypatch.chdir(server.place)
    monkeypatch.setenv("TOLLKEEPER_OPERATOR_KEY", OPERATOR_KEY)
    workers = load("remote_workers")
    with TestClient(workers.app) as client:
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/chat").status_code == 401
        for _ in range(3):
            found = client.post("/v1/chat", headers={"Authorization": f"Bearer {secrets['acme-prod']}"})
            assert (found.status_code, found.json()["answer"]) == (200, "Hello.")
    monkeypatch.setenv("TOLLKEEPER_URL", server.url)
    monkeypatch.setenv("TOLLKEEPER_KEY", secrets["acme-dashboard"])
    dashboard = load("dashboard")
    with TestClient(dashboard.app, raise_server_exceptions=False) as client:
        page = client.get("/").text
        assert "<td>gpt-4o-mini</td><td>3</td><td>0</td><td>2727</td>" in page
        assert client.get("/", params={"account": "other"}).status_code == 500
        assert "<script" not in client.get("/", params={"account": "<script>"}).text
