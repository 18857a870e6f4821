"""Errors over HTTP: every class has its problem, nothing inside gets out, the document tells all of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.conftest import Api
from tollkeeper import errors
from tollkeeper.http.problems import STATUS_BY_ERROR, to_problem
from tollkeeper.http.routes.openapi import PROBLEM_WORDS
from tollkeeper.installation import Installation

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"


def tree(of: type[errors.TollkeeperError] = errors.TollkeeperError) -> Iterator[type[errors.TollkeeperError]]:
    yield of
    for below in of.__subclasses__():
        if below.__module__.startswith("tollkeeper"):
            yield from tree(below)


def made(kind: type[errors.TollkeeperError]) -> errors.TollkeeperError:
    return kind("said", field="path") if issubclass(kind, errors.BadParameter) else kind("said", secret="s")


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.code)
def test_every_error_has_its_problem(kind: type[errors.TollkeeperError]) -> None:
    """Status and title are of the class, the detail is of the occurrence, the fields are for the log."""
    problem = to_problem(made(kind), instance="/p", request_id="req_1")
    assert problem.status == problem.body["status"] == STATUS_BY_ERROR[kind][0]
    assert problem.body["type"].endswith(f"/{kind.code}")
    assert (problem.body["code"], problem.body["detail"]) == (kind.code, "said")
    assert (problem.body["instance"], problem.body["request_id"]) == ("/p", "req_1")
    assert problem.body["retryable"] is kind.retryable
    assert "secret" not in problem.body
    assert problem.status in PROBLEM_WORDS


@pytest.mark.parametrize("kind", list(tree()), ids=lambda kind: kind.code)
def test_every_error_is_documented(kind: type[errors.TollkeeperError]) -> None:
    """In the docs, and in the docstring that draws the tree."""
    assert f"`{kind.code}`" in DOCS.read_text(encoding="utf-8")
    assert re.search(rf"{kind.__name__} +{kind.code}\b", errors.__doc__ or "")


@pytest.mark.parametrize("link", ["__context__", "__cause__"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_errors_that_lead_back_to_each_other_are_told(link: str, length: int) -> None:
    """One error that several callers get may be raised while it is handled. Walked for ever, it stopped the server."""
    chain = [errors.Unavailable(f"said {number}") for number in range(length)]
    for before, after in zip(chain, [*chain[1:], chain[0]], strict=True):
        setattr(before, link, after)
    assert to_problem(chain[0], instance="/p", request_id="req_1").body["detail"] == "said 0"
    assert errors.cause_of(chain[0]) == ""
    chain[-1].fields["detail"] = "the disk is full"
    assert errors.cause_of(chain[0]) == "the disk is full"


def test_what_is_not_ours_is_told_without_details(
    api: Api, installation: Installation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the trace, under the request id that the caller has too."""

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("password=hunter2 in /srv/app.py")

    monkeypatch.setattr(installation.manage, "list", fails)
    found = api("GET", "/tk/v1/accounts")
    assert (found.status_code, found.json()["code"]) == (500, "internal")
    assert "hunter2" not in found.text
    assert "Traceback" not in found.text
    assert found.headers["content-type"] == "application/problem+json"
    assert found.json()["request_id"] == found.headers["x-request-id"]
    assert any(getattr(r, "request_id", "") == found.headers["x-request-id"] for r in caplog.records)


def test_a_store_that_is_away_is_unavailable(
    api: Api, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise errors.Unavailable("away")

    monkeypatch.setattr(installation.reports, "usage", fails)
    found = api("GET", "/tk/v1/usage")
    assert (found.status_code, found.json()["code"], found.json()["retryable"]) == (503, "unavailable", True)
    assert found.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nowhere", 404, None),
        ("GET", "/tk/v1/nowhere", 404, None),
        ("GET", "/tk/v2/usage", 404, None),
        ("PATCH", "/tk/v1/keys/x", 405, "DELETE, GET, OPTIONS, PUT"),
        ("DELETE", "/tk/v1/usage", 405, "GET, OPTIONS"),
        ("GET", "/tk/v1/authorize", 405, "POST"),
        ("PUT", "/tk/v1/events", 405, "GET, OPTIONS, POST"),
    ],
)
def test_what_is_no_operation_is_a_problem_too(
    api: Api, method: str, path: str, status: int, allow: str | None
) -> None:
    found = api(method, path, key=None)
    assert (found.status_code, found.json()["status"]) == (status, status)
    assert found.headers["content-type"] == "application/problem+json"
    assert found.headers.get("allow") == allow
    assert found.json()["instance"] == path


def test_one_who_keeps_failing_to_authenticate_is_slowed_down(api: Api) -> None:
    """By address, so that nobody else is."""
    statuses = {api("GET", "/tk/v1/usage", key="tk_guess", peer="192.0.2.1").status_code for _ in range(60)}
    assert statuses == {401, 429}
    assert api("GET", "/tk/v1/usage", peer="192.0.2.2").status_code == 200


@pytest.fixture(scope="module")
def document(api: Api) -> dict[str, Any]:
    found = api("GET", "/tk/v1/openapi.json", key=None)
    assert found.status_code == 200
    document: dict[str, Any] = found.json()
    return document


class TestDocument:
    """The OpenAPI document, as clients are generated from it."""

    def test_every_reference_leads_somewhere(self, document: dict[str, Any]) -> None:
        for ref in re.findall(r"'\$ref': '([^']*)'", str(document)):
            found: Any = document
            for part in ref.removeprefix("#/").split("/"):
                found = found[part]
            assert found

    def test_every_operation_is_whole(self, document: dict[str, Any]) -> None:
        """A summary, a name of its own, its path parameters, an answer, and the problems it may have."""
        assert document["openapi"].startswith("3.1")
        names = []
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                where = f"{method} {path}"
                names.append(operation["operationId"])
                assert operation["summary"], where
                assert operation["description"], where
                in_path = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
                assert in_path == set(re.findall(r"\{(\w+)\}", path)), where
                assert any(status.startswith("2") for status in operation["responses"]), where
                expected = {"400", "429", "500", "503"} | ({"401", "403"} if operation["security"] else set())
                assert expected <= set(operation["responses"]), where
                if "requestBody" in operation:
                    for content in operation["requestBody"]["content"].values():
                        assert content["schema"], where
        assert len(set(names)) == len(names)

    def test_every_struct_and_every_parameter_is_described(self, document: dict[str, Any]) -> None:
        for name, schema in document["components"]["schemas"].items():
            assert schema.get("description") or name == "IssuedKey", name
        for operations in document["paths"].values():
            for operation in operations.values():
                for parameter in operation["parameters"]:
                    assert parameter["in"] == "path" or parameter["description"]

    def test_the_examples_are_good_requests(self, document: dict[str, Any], api: Api) -> None:
        """An example that is refused as bad input teaches the wrong thing."""
        tried = 0
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                    if "example" not in content or media_type != "application/json":
                        continue
                    tried += 1
                    at = path.replace("{entry_id}", "example").replace("{event_id}", "example")
                    body = dict(content["example"])
                    if method == "put":
                        body.pop("id", None)
                        body.pop("slug", None)
                    found = api(method.upper(), at, body)
                    # References of an example may lead nowhere here; its fields are sound.
                    told = found.json().get("detail", "")
                    assert found.status_code != 400 or "create it first" in told or "sha256" in told, told
        assert tried > 15
