"""
The one tree of errors. `str(error)` is safe to show to a caller; the fields are for the log.

    TollkeeperError                       internal
    ├── BadInput                          bad_input             the request cannot be understood
    │   ├── Malformed                     malformed             not the format that it claims to be
    │   ├── BodyTooLarge                  body_too_large
    │   ├── UnsupportedMediaType          unsupported_media_type
    │   ├── BadParameter                  bad_parameter         a parameter or field has a bad value
    │   └── QueryTooLarge                 query_too_large       a usage query takes more than one may
    ├── Unauthenticated                   unauthenticated       no credential, or an unknown one
    ├── Forbidden                         forbidden             a credential that may not do this
    ├── NotFound                          not_found
    │   ├── HoldUnknown                   hold_unknown          no open hold of this id
    │   └── DetailExpired                 detail_expired        the events were removed when their time was over
    ├── Conflict                          conflict              the present state forbids this
    │   ├── EventConflict                 event_conflict        the id has another body
    │   ├── IdempotencyConflict           idempotency_conflict  the idempotency key has another body
    │   ├── HoldEnded                     hold_ended            the hold had another ending
    │   └── QuotaExceeded                 quota_exceeded        the account has as many entries as it may make
    ├── TooManyQueries                    too_many_queries      too many usage queries of one account at once
    ├── Unavailable                       unavailable           a store cannot do it now; a retry may help
    │   ├── QueryTooSlow                  query_too_slow        a usage query took longer than one may
    │   ├── DataDirectoryInUse            data_directory_in_use another process owns the directory
    │   ├── LedgerInUse                   ledger_in_use         another process owns the database
    │   ├── TooMuchUnderWay               too_much_under_way    the caller's own batches fill its share
    │   └── StoresMismatch                stores_mismatch       ledger and usage store do not belong together
    ├── Forked                            forked                this process is a fork of the one that has it open
    ├── GreenletsRefused                  greenlets_refused     its threads are greenlets in part, or of eventlet
    ├── PackageMissing                    package_missing       it needs a package that is not installed
    └── InvariantBroken                   invariant_broken      money would be wrong: nothing was written
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
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
    said = (found.fields for found in _chain(error) if isinstance(found, TollkeeperError))
    detail = next(filter(None, (fields.get("detail") or fields.get("cause") for fields in said)), "")
    return _PASSWORD.sub(":***@", " ".join(str(detail).split()))[:_CAUSE_CHARS_MAX]


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
    """The endpoint does not take this content type or encoding."""

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


class QueryTooLarge(BadInput):
    """A usage query has more groups, or takes more memory, than one may. Nothing was answered: narrow it."""

    code = "query_too_large"


class Unauthenticated(TollkeeperError):
    """No credential was given, or it is unknown."""

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


class DetailExpired(NotFound):
    """The events themselves are needed and have expired: their sums are kept, and count."""

    code = "detail_expired"


class Conflict(TollkeeperError):
    """The present state of the entry or hold does not permit this."""

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


class TooManyQueries(TollkeeperError):
    """
    Too many usage queries of one account are under way.

    Args:
        retry_after_s: Seconds after which another may have its turn.
    """

    code = "too_many_queries"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: int = 1, **fields: Any) -> None:
        super().__init__(message, retry_after_s=retry_after_s, **fields)
        self.retry_after_s = retry_after_s


class QuotaExceeded(Conflict):
    """The account has as many entries of a kind as its own calls may make."""

    code = "quota_exceeded"


OUTCOME_UNKNOWN: Final = "outcome is unknown"
"""In the message of an `Unavailable` whose call may be carried out yet: clients give back what it may hold."""


class Unavailable(TollkeeperError):
    """A store cannot carry this out now. Nothing was acknowledged; a retry may help."""

    code = "unavailable"
    retryable = True


class QueryTooSlow(Unavailable):
    """A usage query took longer than one may; with fewer others beside it, or narrowed, it may not."""

    code = "query_too_slow"


class DataDirectoryInUse(Unavailable):
    """Another process owns the data directory."""

    code = "data_directory_in_use"


class LedgerInUse(Unavailable):
    """Another process owns the database of the ledger."""

    code = "ledger_in_use"


class Forked(TollkeeperError):
    """This process was forked from the one that has Tollkeeper open: it can use nothing of it."""

    code = "forked"


class GreenletsRefused(TollkeeperError):
    """The threads of this process were replaced by greenlets in a way that nothing can be gated with."""

    code = "greenlets_refused"


class PackageMissing(TollkeeperError, ImportError):
    """This needs a package that is not installed. An ImportError too, as Python programs expect."""

    code = "package_missing"


class TooMuchUnderWay(Unavailable):
    """The caller has as many bytes of batches under way as it may. Its earlier ones make room as they end."""

    code = "too_much_under_way"


class StoresMismatch(Unavailable):
    """The ledger and the usage store are not of one installation, or one has lost its past."""

    code = "stores_mismatch"
    retryable = False


class InvariantBroken(TollkeeperError):
    """A balance would have become wrong. Nothing was written."""

    code = "invariant_broken"


def without_handles(exc: BaseException) -> Unavailable | None:
    """Return what to say of *exc* if the process, or the machine, had no file handle left; else None."""
    for found in _chain(exc):
        if isinstance(found, OSError) and found.errno in (errno.EMFILE, errno.ENFILE):
            return Unavailable("The server has too many connections and files open: try again shortly.")
    return None


def _chain(exc: BaseException) -> Iterator[BaseException]:
    """
    Yield *exc* and the errors that led to it, each once.

    A chain may lead back to itself: an error that several callers get is raised by each, also while it is handled.
    """
    seen: set[int] = set()
    found: BaseException | None = exc
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__
