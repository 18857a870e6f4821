"""
Serves the page: `/`, and its files below `/assets/`, to everybody. What it shows comes from `/tk/v1`, by a login.

The built files (`tollkeeper/page`, made by `make ui`) are read once per process: a request reads no file, and a path
either is the name of one of them or is none. Without them `/` says what is missing.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from tollkeeper.http.asgi_types import RawHeaders
from tollkeeper.http.bodies import header
from tollkeeper.http.cors import origins_of

DIRECTORY: Final = Path(__file__).parents[1] / "page"
INDEX: Final = "/"
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors {ancestors}; base-uri 'self'; form-action 'none'"
)
_MEDIA_TYPES: Final = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".png": b"image/png",
    ".woff2": b"font/woff2",
}
_PACKED: Final = frozenset({".png", ".woff2"})
"""Files that gzip makes no smaller."""
_FOR_EVER: Final = b"public, max-age=31536000, immutable"
"""Files below `assets/` have a hash of their content in the name."""
_ASK_AGAIN: Final = b"no-cache"
_MISSING_TEXT: Final = (
    "Tollkeeper is running, without its page: the file tollkeeper/page/index.html is not in this installation.\n"
    "Wheels have it. In a clone of the repository, build it with `make ui` and start the server again: it takes Node\n"
    "from version 20 on, and installs one from PyPI where there is none.\n"
    "The API does not need it: tk/v1/openapi.json lists all calls.\n"
)
_MISSING_HTML: Final = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The page is not built</title></head><body>'
    "<h1>The page is not built</h1><p>Tollkeeper is running. Its page is not part of this installation: the file "
    "<code>tollkeeper/page/index.html</code> is missing.</p><p>Wheels have it. In a clone of the repository, build it "
    "with <code>make ui</code> and start the server again: it takes Node from version 20 on, and installs one from "
    'PyPI where there is none.</p><p>The API does not need it: <a href="tk/v1/openapi.json">tk/v1/openapi.json</a> '
    "lists all calls.</p></body></html>\n"
)


class PageAnswer(NamedTuple):
    """The answer to GET of a path of the page, with `Content-Length`."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class BuiltFile(NamedTuple):
    """A file of the page. *packed* is its gzip; empty where that is of no use."""

    media_type: bytes
    body: bytes
    packed: bytes
    etag: bytes
    cache_control: bytes


class Page:
    """
    The page of one server.

    Args:
        frame_ancestors: As the setting `page_frame_ancestors`.
        directory: Where the built files are.

    Raises:
        BadParameter: *frame_ancestors* names something that is no origin.
    """

    def __init__(self, frame_ancestors: str = "", directory: Path = DIRECTORY) -> None:
        origins = sorted(origins_of(frame_ancestors, "page_frame_ancestors", any_origin=False))
        policy = _POLICY.format(ancestors=" ".join(origins) or "'none'")
        self._files = built_files(directory)
        self._headers: list[tuple[bytes, bytes]] = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            # For browsers that do not know `frame-ancestors`; it cannot name an origin.
            *([] if origins else [(b"x-frame-options", b"DENY")]),
        ]

    def has(self, path: str) -> bool:
        """Return whether *path* is the page's: `/`, or one of its files."""
        return path == INDEX or path in self._files

    def answer(self, path: str, headers: RawHeaders) -> PageAnswer | None:
        """Return the answer to GET of *path*; None where it is not the page's."""
        found = self._files.get(path)
        if found is None:
            return self._missing(headers) if path == INDEX else None
        packs = bool(found.packed) and _takes_gzip(header(headers, b"accept-encoding"))
        # Each form is a representation of its own (RFC 9110, section 8.8.3).
        etag = b'"%s%s"' % (found.etag, b"-gzip" if packs else b"")
        sent = [*self._headers, (b"etag", etag), (b"cache-control", found.cache_control)]
        if found.packed:
            sent.append((b"vary", b"Accept-Encoding"))
        if _is_named(etag, header(headers, b"if-none-match")):
            return PageAnswer(304, sent, b"")
        if packs:
            sent.append((b"content-encoding", b"gzip"))
        return _answer(200, found.media_type, found.packed if packs else found.body, sent)

    def _missing(self, headers: RawHeaders) -> PageAnswer:
        sent = [*self._headers, (b"cache-control", b"no-store"), (b"vary", b"Accept")]
        if asks_for_html(headers):
            return _answer(404, _MEDIA_TYPES[".html"], _MISSING_HTML.encode(), sent)
        return _answer(404, b"text/plain; charset=utf-8", _MISSING_TEXT.encode(), sent)


@lru_cache(maxsize=8)
def built_files(directory: Path = DIRECTORY) -> Mapping[str, BuiltFile]:
    """Return the files of the page in *directory* by their path; none without `index.html`. Blocking, once."""
    index = directory / "index.html"
    if not index.is_file():
        return MappingProxyType({})
    found = {INDEX: _read(index, _ASK_AGAIN)}
    for path in sorted((directory / "assets").glob("*")):
        if path.suffix in _MEDIA_TYPES and path.is_file():
            found[f"/assets/{path.name}"] = _read(path, _FOR_EVER)
    return MappingProxyType(found)


def _read(path: Path, cache_control: bytes) -> BuiltFile:
    body = path.read_bytes()
    packed = b"" if path.suffix in _PACKED else gzip.compress(body, mtime=0)
    etag = hashlib.sha256(body).hexdigest()[:32].encode()
    return BuiltFile(
        _MEDIA_TYPES[path.suffix], body, packed if len(packed) < len(body) else b"", etag, cache_control
    )


def _answer(status: int, media_type: bytes, body: bytes, headers: list[tuple[bytes, bytes]]) -> PageAnswer:
    sent = [(b"content-type", media_type), (b"content-length", str(len(body)).encode()), *headers]
    return PageAnswer(status, sent, body)


def asks_for_html(headers: RawHeaders) -> bool:
    """Return whether `Accept` names HTML, as that of a browser does for an address that was typed."""
    return b"text/html" in header(headers, b"accept").lower()


def _takes_gzip(accepted: bytes) -> bool:
    """Return whether `Accept-Encoding` names gzip, and not to refuse it (RFC 9110, section 12.5.3)."""
    for part in accepted.lower().split(b","):
        coding, _, weight = part.partition(b";")
        if coding.strip() == b"gzip":
            return weight.replace(b" ", b"").rstrip(b"0.") != b"q="
    return False


def _is_named(etag: bytes, if_none_match: bytes) -> bool:
    """Return whether `If-None-Match` names *etag*, by weak comparison (RFC 9110, section 13.1.2)."""
    named = [one.strip().removeprefix(b"W/") for one in if_none_match.split(b",")]
    return etag in named or named == [b"*"]
