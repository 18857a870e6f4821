"""An opener of `urllib` that follows no redirect, for requests whose answer or credential is one host's alone."""

from __future__ import annotations

import urllib.request
from typing import IO, Any


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect to the handler of errors, which raises `HTTPError`: only the named host answers."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None
