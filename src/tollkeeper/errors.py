"""
The one tree of errors. `str(error)` is safe to show to a caller; the fields are for the log.

    TollkeeperError                       internal
    ├── BadInput                          bad_input             the request cannot be understood
    │   ├── Malformed                     malformed             not the format that it claims to be
    │   ├── BodyTooLarge                  body_too_large
    │   ├── UnsupportedMediaType          unsupported_media_type
    │   └── BadParameter                  bad_parameter         a parameter or field has a bad value
    ├── Unauthenticated                   unauthenticated       no credential, or not one of ours
    ├── Forbidden                         forbidden             a credential that may not do this
    ├── NotFound                          not_found
    │   └── HoldUnknown                   hold_unknown          no open hold of this id
    ├── Conflict                          conflict              the state does not permit this
    │   ├── EventConflict                 event_conflict        the id has another body
    │   ├── IdempotencyConflict           idempotency_conflict  the idempotency key has another body
    │   └── HoldEnded                     hold_ended            the hold had another ending
    ├── Unavailable                       unavailable           a store cannot do it now; a retry may help
    │   ├── DataDirectoryInUse            data_directory_in_use another process owns the directory
    │   ├── LedgerInUse                   ledger_in_use         another process owns the database
    │   └── StoresMismatch                stores_mismatch       ledger and usage store do not belong together
    └── InvariantBroken                   invariant_broken      money would be wrong: nothing was written
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

_CAUSE_CHARS_MAX: Final = 1_000
_PASSWORD: Final = re.compile(r"(?<=\w):[^:/@\s]+@")
"""In a URL, `user:password@host`."""


class TollkeeperError(Exception):
    """Base of our errors. `str(error)` is safe to show; its fields are for the log."""

    code: ClassVar[str] = "internal"
    """Stable and documented; the end of the problem's `type`."""

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later without a change by the caller."""

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.fields = fields


def cause_of(error: TollkeeperError) -> str:
    """Return what the engine said of *error*, for the log: shortened, and without passwords of URLs."""
    told = error.fields.get("detail") or error.fields.get("cause") or ""
    if not told and isinstance(error.__cause__, TollkeeperError):
        return cause_of(error.__cause__)
    return _PASSWORD.sub(":***@", " ".join(str(told).split()))[:_CAUSE_CHARS_MAX]


class BadInput(TollkeeperError):
    """The request cannot be understood; nothing was done."""

    code = "bad_input"


class Malformed(BadInput):
    """The body is not the format that it claims to be."""

    code = "malformed"


class BodyTooLarge(BadInput):
    """The body, or what it decompresses to, is over the stated bound."""

    code = "body_too_large"


class UnsupportedMediaType(BadInput):
    """The content type or encoding is none of those that the endpoint takes."""

    code = "unsupported_media_type"


class BadParameter(BadInput):
    """
    One field or parameter has a bad value.

    Args:
        message: What is wrong and what to do, naming the field.
        field: Path of the field, e.g. `plans[0].limits[1].window`.
    """

    code = "bad_parameter"

    def __init__(self, message: str, *, field: str, **fields: Any) -> None:
        super().__init__(message, field=field, **fields)
        self.field = field


class Unauthenticated(TollkeeperError):
    """No credential was given, or it is none of ours."""

    code = "unauthenticated"


class Forbidden(TollkeeperError):
    """The credential is good but may not do this."""

    code = "forbidden"


class NotFound(TollkeeperError):
    """The thing named does not exist, or belongs to another account."""

    code = "not_found"


class HoldUnknown(NotFound):
    """No hold of this id is open, and none is remembered."""

    code = "hold_unknown"


class Conflict(TollkeeperError):
    """The state of the thing does not permit this."""

    code = "conflict"


class EventConflict(Conflict):
    """The id was used before, for an event or a correction with another body."""

    code = "event_conflict"


class IdempotencyConflict(Conflict):
    """The idempotency key was used before with a different body."""

    code = "idempotency_conflict"


class HoldEnded(Conflict):
    """The hold already had another ending."""

    code = "hold_ended"


class Unavailable(TollkeeperError):
    """A store cannot carry this out now. Nothing was acknowledged; a retry may help."""

    code = "unavailable"
    retryable = True


class DataDirectoryInUse(Unavailable):
    """Another process owns the data directory."""

    code = "data_directory_in_use"


class LedgerInUse(Unavailable):
    """Another process owns the database of the ledger."""

    code = "ledger_in_use"


class StoresMismatch(Unavailable):
    """The ledger and the usage store are not of one installation, or one has lost its past."""

    code = "stores_mismatch"
    retryable = False


class InvariantBroken(TollkeeperError):
    """A balance would have become wrong. Nothing was written."""

    code = "invariant_broken"
