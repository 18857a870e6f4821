"""ISO 8601 as RegSn's clients write it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

_DATE_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[Tt](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,64}))?)?(?:([Zz])|([+ -])(\d\d)(?::?(\d\d))?)?)?\Z",
    re.ASCII,
)


def parse_instant(text: str) -> datetime:
    """
    Return the instant of an ISO 8601 date-time, or of the midnight of a date; UTC without an offset.

    A blank in the place of the offset's sign is a `+` that a URL turned into it. What is finer than a
    microsecond is dropped.

    Raises:
        ValueError: It is none.
        OverflowError: In UTC it is before the year 1 or after the year 9999.
    """
    match = _DATE_TIME.match(text)
    if match is None:
        raise ValueError(text[:64])
    year, month, day, hour, minute, second, part, _, sign, off_hours, off_minutes = match.groups()
    offset = timedelta(hours=int(off_hours or 0), minutes=int(off_minutes or 0))
    if int(off_minutes or 0) > 59:
        raise ValueError(text[:64])
    zone = timezone(-offset if sign == "-" else offset)
    micros = int((part or "")[:6].ljust(6, "0"))
    at = datetime(
        int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), micros, zone
    )
    return at.astimezone(UTC)
