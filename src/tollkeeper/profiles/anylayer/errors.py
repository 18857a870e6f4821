"""AnyLayer's errors: its codes, their words, and the flat envelope."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tollkeeper.domain.decisions import Denial
from tollkeeper.profiles.base import Call, Reply
from tollkeeper.profiles.toolkit import CallerError, iso_seconds, retry_after

ERROR_TYPES: Final = {
    "rate_limited": "RATE_LIMIT_EXCEEDED",
    "too_many_concurrent": "RATE_LIMIT_EXCEEDED",
    "budget_exhausted": "QUOTA_EXCEEDED",
    "credit_exhausted": "QUOTA_EXCEEDED",
    "account_inactive": "FORBIDDEN",
    "route_unknown": "NOT_FOUND",
    "layer_not_allowed": "FORBIDDEN",
    "model_not_allowed": "FORBIDDEN",
    "model_required": "FORBIDDEN",
}
"""Reason of a denial → the vendor's code. Other error types are shown as they were reported."""
TYPE_BY_STATUS: Final = {
    400: "INVALID_PARAMETER",
    401: "UNAUTHORIZED",
    402: "QUOTA_EXCEEDED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    429: "RATE_LIMIT_EXCEEDED",
}
"""Type of an error that was reported without one."""
DESCRIPTIONS: Final = {
    "INVALID_PARAMETER": "Invalid request",
    "UNAUTHORIZED": "Invalid or missing API key",
    "QUOTA_EXCEEDED": "Quota exceeded",
    "FORBIDDEN": "Insufficient permissions",
    "NOT_FOUND": "Resource not found",
    "RATE_LIMIT_EXCEEDED": "Too many requests",
    "INTERNAL_ERROR": "Internal server error",
}


class InvalidRequest(CallerError):
    """A bad parameter or body: the code and message of its 400, and the supported values if these can be listed."""

    def __init__(self, code: str, message: str, supported: Sequence[str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.supported = supported


def error_type(kind: str, status: int) -> str:
    """Return the vendor's code of an error that was reported with a type (or none) and a status."""
    if kind:
        return ERROR_TYPES.get(kind, kind)
    return TYPE_BY_STATUS.get(status, "INTERNAL_ERROR" if status >= 500 else f"HTTP_{status}")


def description(code: str) -> str:
    """Return an error type as text; an unknown one is itself, with blanks for underscores."""
    return DESCRIPTIONS.get(code) or code.replace("_", " ").strip().capitalize()


def error_reply(
    call: Call,
    status: int,
    code: str,
    message: str,
    *,
    supported: Sequence[str] | None = None,
    headers: Sequence[tuple[str, str]] = (),
) -> Reply:
    """Return an error in the flat envelope."""
    body: dict[str, Any] = {
        "success": False,
        "error": code,
        "message": message,
        "timestamp": iso_seconds(call.now),
    }
    if supported is not None:
        body["supported"] = list(supported)
    return Reply(status, body, headers)


def forbidden(call: Call) -> Reply:
    """Return the 403 of a key that may not do this."""
    return error_reply(call, 403, "FORBIDDEN", "Insufficient permissions for this operation")


def unauthorized(call: Call) -> Reply:
    """Return the 401 of every key that is not good, and of none."""
    return error_reply(call, 401, "UNAUTHORIZED", "Invalid or missing API key")


def over_limit(call: Call, denial: Denial, headers: Sequence[tuple[str, str]]) -> Reply:
    """Return the 429 of a rate limit; *headers* are the key's."""
    return error_reply(
        call,
        429,
        "RATE_LIMIT_EXCEEDED",
        "Too many requests. Please try again later.",
        headers=[*headers, retry_after(denial.retry_after_s)],
    )


def invalid_parameter(name: str, supported: Sequence[str] | None = None) -> InvalidRequest:
    """Return the error of a bad parameter or member of a body; *supported* are the values that it may have."""
    return InvalidRequest("INVALID_PARAMETER", f"Invalid parameter: {name}", supported)
