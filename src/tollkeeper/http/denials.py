"""A denial over HTTP: its RFC 9457 problem document and its headers. `gate/denials.py` has its text."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from tollkeeper.domain.decisions import Denial
from tollkeeper.domain.instants import from_us, to_text

PROBLEM_BASE: Final = "https://tollkeeper.dev/problems/"
_TITLES: Final = {
    401: "Not authenticated",
    402: "Nothing left to spend",
    403: "Not permitted",
    429: "Too many requests",
    503: "Unavailable",
}
_encode: Final = msgspec.json.Encoder().encode


def denial_problem(denial: Denial) -> dict[str, Any]:
    """Return the members of the problem document of *denial*; absent values are left out."""
    problem: dict[str, Any] = {
        "type": PROBLEM_BASE + denial.reason,
        "title": _TITLES[denial.status],
        "status": denial.status,
        "detail": denial.message,
        "code": denial.reason,
        "limit": denial.limit or None,
        "unit": denial.unit or None,
        "allowed": _amount(denial.allowed, denial.unit),
        "used": _amount(denial.used, denial.unit),
        "largest_fit": _amount(denial.largest_fit, denial.unit),
        "retry_after_s": denial.retry_after_s,
        "resets_at": None if denial.resets_at_us is None else to_text(from_us(denial.resets_at_us)),
    }
    return {name: value for name, value in problem.items() if value is not None}


def denial_body(denial: Denial) -> bytes:
    """Return the problem document of *denial* as JSON."""
    return _encode(denial_problem(denial))


def denial_headers(denial: Denial) -> list[tuple[bytes, bytes]]:
    """Return the headers of a refusal: `Retry-After` where waiting helps, `WWW-Authenticate` on 401."""
    headers = []
    if denial.retry_after_s is not None:
        headers.append((b"retry-after", str(denial.retry_after_s).encode()))
    if denial.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def _amount(value: int | None, unit: str) -> int | str | None:
    # Money is a string in JSON: JavaScript loses integers above 2**53.
    return str(value) if value is not None and unit == "nanos" else value
