"""
How long single events are kept: `90d`, `12w`, or `none` for ever. Their sums stay.

Which of them may go is decided by `domain.expiry`.
"""

from __future__ import annotations

import re
from typing import Final

FOR_EVER: Final = "none"
RETENTION_PATTERN: Final = "^(none|[1-9][0-9]{0,4}[dw])$"
_FORM: Final = re.compile(r"([1-9][0-9]{0,4})([dw])\Z")
_DAYS: Final = {"d": 1, "w": 7}
_DAYS_MAX: Final = 36_500
_DAY_US: Final = 86_400_000_000


def retention_us(text: str) -> int | None:
    """
    Return the microseconds of a retention; None for `none`.

    Raises:
        ValueError: *text* is neither `none` nor a number of days or weeks, of at most a century.
    """
    if text == FOR_EVER:
        return None
    found = _FORM.match(text)
    days = int(found[1]) * _DAYS[found[2]] if found else 0
    if not 0 < days <= _DAYS_MAX:
        raise ValueError(
            f"{text[:64]!r} is no retention: use days or weeks such as 90d or 12w, or none to keep events for ever"
        )
    return days * _DAY_US
