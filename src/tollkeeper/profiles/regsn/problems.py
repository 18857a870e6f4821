"""RegSn's answers: the vendor's table of problems, and the headers that every answer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.limit_status import LimitStatus
from tollkeeper.profiles.base import Call, Reply
from tollkeeper.profiles.regsn.limits import rate_headers

PROBLEM_MEDIA_TYPE: Final = "application/problem+json; charset=utf-8"


class ProblemKind(NamedTuple):
    """One row of the vendor's table of errors."""

    status: int
    slug: str
    code: str
    title: str


MALFORMED: Final = ProblemKind(400, "invalid_request", "invalid_request", "Invalid request")
NO_CREDENTIAL: Final = ProblemKind(401, "auth", "authentication_required", "Authentication required")
BAD_CREDENTIAL: Final = ProblemKind(401, "auth", "authentication_invalid", "Authentication invalid")
EXHAUSTED: Final = ProblemKind(402, "budget_exhausted", "budget_exhausted", "Budget exhausted")
FORBIDDEN: Final = ProblemKind(403, "forbidden", "forbidden", "Forbidden")
NOT_FOUND: Final = ProblemKind(404, "not_found", "not_found", "Not found")
INVALID: Final = ProblemKind(422, "validation", "validation_error", "Validation error")
TOO_FAST: Final = ProblemKind(429, "rate_limited", "rate_limit_exceeded", "Rate limit exceeded")
INTERNAL: Final = ProblemKind(500, "internal", "internal_error", "Internal error")
UNAVAILABLE: Final = ProblemKind(503, "unavailable", "service_unavailable", "Service unavailable")
KEY_WRONG: Final = "The API key is malformed, unknown or revoked."
RETRY_S: Final = 5


class InvalidParameter(ValueError):
    """A parameter or member has a bad value; the message is the vendor's."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def success(call: Call, status: int, body: Any, headers: Sequence[tuple[str, str]]) -> Reply:
    return Reply(status, body, [*headers, ("X-Request-Id", call.request_id)])


def problem_reply(
    call: Call,
    kind: ProblemKind,
    detail: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    errors: Sequence[Mapping[str, str]] = (),
) -> Reply:
    body: dict[str, Any] = {
        "type": call.settings["problem_base"] + kind.slug,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": call.path,
        "code": kind.code,
        "request_id": call.request_id,
    }
    if errors:
        body["errors"] = list(errors)
    return Reply(kind.status, body, [*headers, ("X-Request-Id", call.request_id)], PROBLEM_MEDIA_TYPE)


def invalid(call: Call, fault: InvalidParameter, headers: Sequence[tuple[str, str]]) -> Reply:
    kind = INVALID._replace(status=call.settings["invalid_parameter_status"])
    errors = [{"path": fault.path, "code": "invalid", "message": str(fault)}]
    return problem_reply(call, kind, str(fault), headers=headers, errors=errors)


def too_fast(call: Call, denial: Denial, limit_status: LimitStatus | None) -> Reply:
    retry_s = denial.retry_after_s
    bucket = (None if limit_status is None else limit_status.bucket) or denial.limit
    detail = f"Rate limit exceeded for {bucket} bucket." + (f" Retry after {retry_s}s." if retry_s else "")
    headers = rate_headers(limit_status, call.now)
    if retry_s is not None:
        headers.append(("Retry-After", str(retry_s)))
    return problem_reply(call, TOO_FAST, detail, headers=headers)


def wording_of(call: Call, denial: Denial) -> tuple[ProblemKind, str]:
    """Return the problem and detail of a refusal other than a rate limit's."""
    if denial.status == 402:
        return EXHAUSTED, "Monthly budget exhausted. Top up to continue."
    if denial.reason == "key_missing":
        return NO_CREDENTIAL, "Send Authorization: Bearer with a key."
    if denial.reason in ("session_invalid", "session_expired"):
        return BAD_CREDENTIAL, denial.message
    if denial.status == 401:
        return BAD_CREDENTIAL, KEY_WRONG
    if denial.reason == "route_unknown":
        return NOT_FOUND, f"There is no {call.method} {call.path[:256]}."
    if denial.status == 403:
        return FORBIDDEN, "This API key may not call this endpoint."
    return UNAVAILABLE, "The request cannot be decided now. Retry it."
