"""A path that another framework's placeholders would make a text that no request has is refused, with what to write."""

from __future__ import annotations

import pytest

from tollkeeper.domain.catalog import Invalid, Route
from tollkeeper.domain.matching import check_routes
from tollkeeper.domain.route_templates import template_objection


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v1/items/:id", "/v1/items/{id}"),
        ("/:tenant/items", "/{tenant}/items"),
        ("/v1/items/<id>", "/v1/items/{id}"),
        ("/v1/items/<int:item_id>/parts", "/v1/items/{item_id}/parts"),
        ("/v1/items/[id]", "/v1/items/{id}"),
        ("/v1/items/[...rest]", "{rest}"),
        ("/v1/items?page=1", "'/v1/items'"),
        ("/v1/items#top", "'/v1/items'"),
        ("/files/{path:path}", "end the path with *"),
        ("/v1/items/{id", "{id}"),
        ("/v1/items/id}", "{id}"),
    ],
)
def test_what_would_never_match_is_refused_with_what_to_write(path: str, wanted: str) -> None:
    objection = template_objection(path)
    assert objection is not None
    assert wanted in objection
    with pytest.raises(Invalid, match=r".") as caught:
        Route(id="r", method="GET", path=path).check()
    assert caught.value.field == "path"
    with pytest.raises(ValueError, match=r"."):
        check_routes([f"GET {path}"])


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1/items/{id}",
        "/v1/items/{id:int}",
        "/v1/models/{model}:generate",
        "/v1/models/gemini:stream",
        "/v1/*",
        "/*",
        "/a:b/c",
        "/v1/@me/~/x,y;z",
        "/v1/items/12:30",
    ],
)
def test_paths_that_servers_have_are_taken(path: str) -> None:
    assert template_objection(path) is None
    Route(id="r", method="GET", path=path).check()
    check_routes([f"GET {path}"])
