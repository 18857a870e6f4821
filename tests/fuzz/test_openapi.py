"""
Every operation that the served OpenAPI document names, called with what the document permits and what it forbids.

No answer is a 5xx, and each is one that the document tells of: status, media type, body.
"""

from __future__ import annotations

from typing import Any, Final

import pytest
import requests
import schemathesis
from hypothesis import Phase, given
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.core.transport import Response
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks as of_document

from tests.effort import effort
from tests.fuzz import examples
from tests.fuzz.asgi import Answer, Caller
from tests.http.conftest import OPERATOR_KEY, Api, World
from tollkeeper.domain.catalog import KINDS
from tollkeeper.http.routes.openapi import HOT

TAGS: Final = (
    *KINDS,
    "apply",
    "audit",
    "events",
    "health",
    "login",
    "maintenance",
    "requests",
    "sessions",
    "usage",
)
"""Every tag of the document; each is a test, so that they can run side by side."""
EXAMPLES: Final = effort(2, 8)
"""Cases per operation and kind of data, each with three credentials."""
CHECKS: Final = (
    of_document.status_code_conformance,
    of_document.content_type_conformance,
    of_document.response_schema_conformance,
    of_document.response_headers_conformance,
)


@pytest.fixture(scope="module")
def document(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api("GET", "/tk/v1/openapi.json", key=None).json()
    return found


@pytest.mark.drawn(1)
def test_the_tests_below_cover_every_tag(document: dict[str, Any]) -> None:
    assert {tag["name"] for tag in document["tags"]} == set(TAGS)


@pytest.mark.drawn(1)
def test_the_document_has_the_hot_endpoints(document: dict[str, Any]) -> None:
    """They are no routes of the framework, so nothing but this would notice."""
    assert set(HOT) == {f"/tk/v1/{name}" for name in ("authorize", "expect", "settle", "void", "events")}
    for path in HOT:
        # The list of events is a route of the framework, beside the hot endpoint.
        beside = ["get"] if path.endswith("/events") else []
        assert list(document["paths"][path]) == [*beside, "post"]


@pytest.mark.drawn
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("tag", TAGS)
def test_every_answer_is_documented(
    tag: str, mode: GenerationMode, document: dict[str, Any], call: Caller, world: World
) -> None:
    """A client that is generated from the document meets no unknown answer."""
    schema = schemathesis.openapi.from_dict(document)
    # Ids of the world, so that not every case is about what does not exist.
    ids = {"entry_id": world.a.ids.get(tag, "none"), "event_id": world.a.event_id}
    tried = 0
    for found in schema.include(tag=tag).get_all_operations():
        try:
            tried += _try(found.ok(), mode, ids, call, (OPERATOR_KEY, world.a.management_key, None))
        except Unsatisfiable:
            # Nothing is forbidden where there is nothing to say.
            assert mode is GenerationMode.NEGATIVE
    assert tried or (mode is GenerationMode.NEGATIVE and tag in ("health", "maintenance"))


def _try(
    operation: Any, mode: GenerationMode, ids: dict[str, str], call: Caller, keys: tuple[str | None, ...]
) -> int:
    """Call *operation* with generated requests and each of *keys*; return how often."""
    count = EXAMPLES if operation.path_parameters or operation.query or operation.body else 1
    tried = 0

    # What was called before changes what an answer is: a case cannot be replayed to be made smaller.
    @examples(count, phases=(Phase.generate,))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal tried
        case = data.draw(operation.as_strategy(mode))
        for name in case.path_parameters or {}:
            if data.draw(st.booleans()):
                case.path_parameters[name] = ids[name]
        prepared = requests.Request(**case.as_transport_kwargs(base_url="http://toll")).prepare()
        for key in keys:
            answer = _sent(call, prepared, key)
            assert answer.status < 500 or _is_readiness(operation, answer), answer.body
            case.validate_response(_response(answer, prepared), checks=list(CHECKS))
            tried += 1

    check()
    return tried


def _is_readiness(operation: Any, answer: Answer) -> bool:
    return bool(operation.path == "/readyz" and answer.status == 503)


def _sent(call: Caller, prepared: requests.PreparedRequest, key: str | None) -> Answer:
    target = (prepared.url or "").removeprefix("http://toll")
    headers = [
        (
            name.encode("latin-1") if isinstance(name, str) else name,
            value.encode("latin-1") if isinstance(value, str) else value,
        )
        for name, value in prepared.headers.items()
        if name.lower() not in ("authorization", "x-api-key")
    ]
    if key is not None:
        headers.append((b"authorization", b"Bearer " + key.encode()))
    body = prepared.body or b""
    return call(prepared.method or "", target, headers, body.encode() if isinstance(body, str) else body)


def _response(answer: Answer, prepared: requests.PreparedRequest) -> Response:
    headers: dict[str, list[str]] = {}
    for name, value in answer.headers:
        headers.setdefault(name.decode(), []).append(value.decode("latin-1"))
    return Response(answer.status, headers, answer.body, prepared, 0.0, verify=True)
