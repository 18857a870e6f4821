"""
Errors over HTTP: RFC 9457 problem documents. `to_problem` is the one place that knows their statuses.

`code` is the end of `type`, stable and documented in docs/errors.md; a test walks the tree of errors so
that none is unmapped or undocumented.
"""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple

from tollkeeper import errors
from tollkeeper.http.denials import PROBLEM_BASE

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"

STATUS_BY_ERROR: Final[dict[type[errors.TollkeeperError], tuple[int, str]]] = {
    errors.TollkeeperError: (500, "Internal error"),
    errors.BadInput: (400, "Bad input"),
    errors.Malformed: (400, "Malformed body"),
    errors.BodyTooLarge: (413, "Body too large"),
    errors.UnsupportedMediaType: (415, "Unsupported media type"),
    errors.BadParameter: (400, "Bad parameter"),
    errors.QueryTooLarge: (400, "Query too large"),
    errors.Unauthenticated: (401, "Not authenticated"),
    errors.Forbidden: (403, "Not permitted"),
    errors.NotFound: (404, "Not found"),
    errors.HoldUnknown: (404, "No such hold"),
    errors.DetailExpired: (410, "Detail expired"),
    errors.Conflict: (409, "Conflict"),
    errors.EventConflict: (409, "Event conflict"),
    errors.IdempotencyConflict: (409, "Idempotency conflict"),
    errors.HoldEnded: (409, "Hold ended"),
    errors.TooManyQueries: (429, "Too many queries"),
    errors.QuotaExceeded: (409, "Quota exceeded"),
    errors.Unavailable: (503, "Unavailable"),
    errors.QueryTooSlow: (503, "Query too slow"),
    errors.DataDirectoryInUse: (503, "Data directory in use"),
    errors.LedgerInUse: (503, "Ledger in use"),
    errors.Forked: (503, "Forked process"),
    errors.GreenletsRefused: (503, "Greenlets refused"),
    errors.PackageMissing: (503, "Package missing"),
    errors.TooMuchUnderWay: (429, "Too much under way"),
    errors.StoresMismatch: (503, "Ledger and usage store do not match"),
    errors.InvariantBroken: (500, "Invariant broken"),
}
"""Class → status and title. The title is the same for every occurrence, the detail is not."""

log = logging.getLogger("tollkeeper.http")


class ProblemReply(NamedTuple):
    """A problem document with its status and headers."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def to_problem(exc: BaseException, *, instance: str, request_id: str) -> ProblemReply:
    """
    Return the problem document of *exc*. An error that is not ours is logged, and shown without details.

    Args:
        instance: The path that was called.
        request_id: As in the `X-Request-Id` header.
    """
    exc = errors.without_handles(exc) or exc
    if not isinstance(exc, errors.TollkeeperError):
        log.error("tollkeeper.http.failed", exc_info=exc, extra={"request_id": request_id, "path": instance})
        exc = errors.TollkeeperError("The request failed on our side. Quote the request id when you ask.")
    status, title = STATUS_BY_ERROR[type(exc)]
    body: dict[str, Any] = {
        "type": PROBLEM_BASE + exc.code,
        "title": title,
        "status": status,
        "detail": str(exc),
        "instance": instance,
        "code": exc.code,
        "request_id": request_id,
        "retryable": exc.retryable,
    }
    if isinstance(exc, errors.BadParameter):
        body["field"] = exc.field
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(exc, errors.TooManyQueries):
        headers["Retry-After"] = str(exc.retry_after_s)
    elif status in (429, 503):
        headers["Retry-After"] = "1"
    return ProblemReply(status, body, headers)
