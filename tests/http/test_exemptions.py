"""What passes the middleware without a key is what its entries say, and no path that climbs out of them."""

from __future__ import annotations

import pytest

from tollkeeper.errors import BadParameter
from tollkeeper.http.exemptions import Exemptions

EXEMPT = Exemptions(["/healthz", "/static/*", "GET /docs/*", "POST /hooks"])


@pytest.mark.parametrize(
    ("method", "path", "passes"),
    [
        ("GET", "/healthz", True),
        ("DELETE", "/healthz", True),
        ("GET", "/healthz/", False),
        ("GET", "/healthzx", False),
        ("GET", "/static/a/b.css", True),
        ("GET", "/static", False),
        ("GET", "/static/../v1/chat", False),
        ("GET", "/static/./x", False),
        ("GET", "/static//v1", False),
        ("GET", "/static/..\\v1", False),
        ("GET", "/static/a/", True),
        ("GET", "/docs/x", True),
        ("HEAD", "/docs/x", True),
        ("POST", "/docs/x", False),
        ("POST", "/hooks", True),
        ("GET", "/hooks", False),
        ("GET", "/v1/chat", False),
    ],
)
def test_it_is_by_path_beginning_and_method(method: str, path: str, passes: bool) -> None:
    assert EXEMPT.cover(method, path) == passes


@pytest.mark.parametrize("entry", ["", "healthz", "/a*b", "get /x", "FETCH /x", "GET  /x", "GET", "*"])
def test_what_is_no_entry_is_refused_in_words(entry: str) -> None:
    with pytest.raises(BadParameter, match="such as"):
        Exemptions([entry])


def test_nothing_is_exempt_by_default() -> None:
    assert not Exemptions([]).cover("GET", "/")
