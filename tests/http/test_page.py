"""How the page is served: its files and no others, cached safely, under any prefix, and words where it is not built."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.http.conftest import Api
from tollkeeper.errors import BadParameter
from tollkeeper.http.app import App
from tollkeeper.http.mounted import MountedApi
from tollkeeper.http.page import Page, built_files
from tollkeeper.profiles import load, names

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors {}; base-uri 'self'; form-action 'none'"
)
SCRIPT = b"console.log('a script that is long enough for gzip to be of use');" * 20
FILES = {
    "index.html": b"<!doctype html><script src=assets/main-AAAA1111.js></script>" * 9,
    "assets/main-AAAA1111.js": SCRIPT,
    "assets/main-BBBB2222.css": b"a{}",
    "assets/icon-CCCC3333.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>" * 9,
    "assets/.hidden": b"secret",
    "assets/notes.txt": b"secret",
    "licenses.txt": b"secret",
    "__init__.py": b"secret",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("page")
    for name, content in FILES.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    return directory


@pytest.fixture
def page(api: Api, built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """The application with a built page."""
    monkeypatch.setattr(api.app, "_page", Page(directory=built))
    return api


def get(api: Api, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    return api(
        method, path, key=None, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


def test_the_page_and_its_files_are_served_to_everybody(page: Api) -> None:
    for path, name, media_type in (
        ("/", "index.html", "text/html; charset=utf-8"),
        ("/assets/main-AAAA1111.js", "assets/main-AAAA1111.js", "text/javascript; charset=utf-8"),
        ("/assets/main-BBBB2222.css", "assets/main-BBBB2222.css", "text/css; charset=utf-8"),
        ("/assets/icon-CCCC3333.svg", "assets/icon-CCCC3333.svg", "image/svg+xml"),
    ):
        answer = get(page, path, Accept_Encoding="identity")
        assert (answer.status_code, answer.content) == (200, FILES[name])
        assert answer.headers["content-type"] == media_type
        assert answer.headers["content-security-policy"] == POLICY.format("'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "set-cookie" not in answer.headers
        head = get(page, path, "HEAD", Accept_Encoding="identity")
        assert (head.status_code, head.content) == (200, b"")
        assert dict(head.headers) == dict(answer.headers)


def test_a_hashed_file_is_kept_for_ever_and_the_index_is_asked_for_again(page: Api) -> None:
    assert get(page, "/").headers["cache-control"] == "no-cache"
    for name in ("main-AAAA1111.js", "main-BBBB2222.css"):
        assert get(page, f"/assets/{name}").headers["cache-control"] == "public, max-age=31536000, immutable"


def test_what_a_browser_has_is_not_sent_again(page: Api) -> None:
    for encoding in ("identity", "gzip"):
        first = get(page, "/", Accept_Encoding=encoding)
        etag = first.headers["etag"]
        for condition in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            again = get(page, "/", Accept_Encoding=encoding, If_None_Match=condition)
            assert (again.status_code, again.content) == (304, b""), condition
            assert again.headers["etag"] == etag
            assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
        assert get(page, "/", Accept_Encoding=encoding, If_None_Match=etag[:-2] + '"').status_code == 200
    plain, packed = (
        get(page, "/", Accept_Encoding=coding).headers["etag"] for coding in ("identity", "gzip")
    )
    assert plain != packed
    assert get(page, "/", Accept_Encoding="gzip", If_None_Match=plain).status_code == 200


@pytest.mark.parametrize(
    ("accepted", "packs"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=1.0", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("br", False),
        ("", False),
        ("x-gzip", False),
    ],
)
def test_files_are_packed_for_those_who_can_unpack(page: Api, accepted: str, packs: bool) -> None:
    answer = get(page, "/assets/main-AAAA1111.js", Accept_Encoding=accepted)
    assert answer.content == SCRIPT
    assert answer.headers["vary"] == "Accept-Encoding"
    assert (answer.headers.get("content-encoding") == "gzip") == packs
    assert (int(answer.headers["content-length"]) < len(SCRIPT)) == packs
    # Three bytes are no smaller in gzip.
    assert "content-encoding" not in get(page, "/assets/main-BBBB2222.css", Accept_Encoding="gzip").headers


@pytest.mark.parametrize(
    "path",
    [
        "/assets/",
        "/assets",
        "/assets/../index.html",
        "/assets/../__init__.py",
        "/assets/%2e%2e/__init__.py",
        "/assets/..%2f__init__.py",
        "/assets%2fmain-AAAA1111.js",
        "/assets/%252e%252e/__init__.py",
        "/assets/main-AAAA1111.js/",
        "/assets/main-AAAA1111.js%00.css",
        "/assets/MAIN-AAAA1111.js",
        "/assets//main-AAAA1111.js",
        "//assets/main-AAAA1111.js",
        "/assets/.hidden",
        "/assets/notes.txt",
        "/licenses.txt",
        "/index.html",
        "/__init__.py",
        "/assets/\\..\\__init__.py",
        "/assets//etc/passwd",
    ],
)
def test_no_other_file_is_served(page: Api, path: str) -> None:
    """A path is looked up among the names of the files, so there is nothing to climb."""
    raw = path.encode()

    async def call() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": httpx.URL("http://x" + path).path if "%" in path else path,
            "raw_path": raw,
            "query_string": b"",
            "headers": [],
            "client": ("192.0.2.1", 1),
        }
        await page.app(scope, receive, send)
        return sent

    sent = asyncio.run(call())
    assert sent[0]["status"] == 404, sent
    assert b"secret" not in b"".join(message.get("body", b"") for message in sent)


def test_the_page_is_read_and_nothing_else(page: Api) -> None:
    for path in ("/", "/assets/main-AAAA1111.js"):
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            answer = page(method, path)
            assert answer.status_code == 405, (method, path)
            assert answer.headers["allow"] == "GET, HEAD"


def test_no_request_reads_a_file(page: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered on the event loop, which must not wait for a disk."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "is_file", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(gzip, "compress", refuse)
    for path in ("/", "/assets/main-AAAA1111.js"):
        assert get(page, path).status_code == 200


def test_without_the_built_page_it_says_what_to_do(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.app, "_page", Page(directory=tmp_path))
    for accept, media_type in (
        ("text/html,*/*;q=0.8", "text/html; charset=utf-8"),
        ("*/*", "text/plain; charset=utf-8"),
        ("", "text/plain; charset=utf-8"),
    ):
        answer = get(api, "/", Accept=accept)
        assert (answer.status_code, answer.headers["content-type"]) == (404, media_type)
        assert "make ui" in answer.text
        assert "index.html" in answer.text
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"] == POLICY.format("'none'")
    # Half a build is none.
    (tmp_path / "half" / "assets").mkdir(parents=True)
    (tmp_path / "half" / "assets" / "main-AAAA1111.js").write_bytes(SCRIPT)
    assert built_files(tmp_path / "half") == {}


def test_other_sites_frame_it_only_by_the_setting(built: Path) -> None:
    page = Page("https://app.example.com, http://localhost:3000", built)
    answer = page.answer("/", [])
    assert answer is not None
    headers = dict(answer.headers)
    policy = POLICY.format("http://localhost:3000 https://app.example.com")
    assert headers[b"content-security-policy"].decode() == policy
    assert b"x-frame-options" not in headers


@pytest.mark.parametrize(
    "ancestors",
    [
        "*",
        "app.example.com",
        "https://a.example/path",
        "https://a.example; script-src *",
        "https://a.example\r\nx: y",
        "https://a.example b",
        "'self'",
        "javascript://a",
        "https://*.example.com",
        "https://é.example",
    ],
)
def test_a_setting_that_is_no_origin_is_refused(ancestors: str) -> None:
    """It stands in a header: what ends the directive or the header must not get there."""
    with pytest.raises(BadParameter, match="page_frame_ancestors"):
        Page(ancestors)


@pytest.mark.parametrize("profile", names())
def test_no_path_of_a_vendor_is_the_pages(profile: str) -> None:
    """So a root profile keeps all its paths; at `/` it answers whoever does not ask for HTML."""
    for endpoint in load(profile).endpoints:
        assert endpoint.path != "/"
        assert not endpoint.path.startswith("/assets")


def mounted(
    app: App, prefix: str, path: str, *, strips: bool, query: bytes = b"", method: str = "GET"
) -> Any:
    """Call the mounted application as a host does that leaves the prefix in the path, or strips it."""

    async def call() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": path[len(prefix) :] if strips else path,
            "raw_path": path.encode(),
            "root_path": prefix,
            "query_string": query,
            "headers": [],
            "client": ("192.0.2.1", 1),
        }
        await MountedApi(app)(scope, receive, send)
        return sent

    return asyncio.run(call())


@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("prefix", ["/billing", "/a/b"])
def test_it_is_served_under_a_prefix(page: Api, prefix: str, strips: bool) -> None:
    for path, name in (("/", "index.html"), ("/assets/main-AAAA1111.js", "assets/main-AAAA1111.js")):
        start, *body = mounted(page.app, prefix, prefix + path, strips=strips)
        assert start["status"] == 200
        assert b"".join(message["body"] for message in body) == FILES[name]


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/billing", b"./billing/"),
        ("/a/b", b"./b/"),
        ("//evil.example", b"./evil.example/"),
        ("/a:b", b"./a:b/"),
    ],
)
def test_a_prefix_without_its_slash_leads_to_the_one_with_it(page: Api, path: str, location: bytes) -> None:
    """URLs of the page are relative: from `/billing` they would lead to the host's own paths."""
    for method in ("GET", "HEAD"):
        start, _ = mounted(page.app, path, path, strips=False, query=b"from=2026-01-01", method=method)
        assert (start["status"], dict(start["headers"])[b"location"]) == (308, location + b"?from=2026-01-01")
