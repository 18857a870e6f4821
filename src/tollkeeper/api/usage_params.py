"""
The usage query as parameters: the query string of `GET /tk/v1/usage`, and the command line's options.

    account=acme&from=2026-01-01&to=2026-02-01&group_by=key,model&granularity=day&model=gpt-4o,gpt-4o-mini

Lists are separated by commas (`\\,` stands for a comma within a value) or given by repeating the parameter.
A filter's empty value stands for "none". Spans are half-open: an event at `to` is not in the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from difflib import get_close_matches
from typing import Final, NamedTuple, cast
from zoneinfo import ZoneInfo

from tollkeeper.domain.events import FUTURE_S_MAX, TIME_MIN_US, parse_time_us
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.periods import WEEKDAYS
from tollkeeper.domain.quantities import QUANTITIES_MAX, quantity_of_unit
from tollkeeper.domain.usage import (
    DIMENSIONS,
    GRANULARITIES,
    MEASURES,
    MEASURES_DEFAULT,
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MAX,
    Granularity,
    UsageQuery,
    is_measure,
    sort_term,
)
from tollkeeper.domain.zones import zone_of
from tollkeeper.errors import BadParameter, NotFound

OFFSET_MAX: Final = 10**9
VALUES_MAX: Final = 1_000
"""Values of one filter."""
GROUPS_MAX: Final = 8
OF_OPERATOR: Final = frozenset({"provider_cost_nanos"})
"""Measures that no customer is answered: what its provider earns."""
TAG: Final = "tag."
"""Begins the parameter of a tag's filter; `tag:` does too, as in the columns of the answer."""

_SCALARS: Final[tuple[str, ...]] = (
    "account",
    "from",
    "to",
    "granularity",
    "time_zone",
    "week_start",
    "limit",
    "offset",
)
_LISTS: Final[tuple[str, ...]] = ("group_by", "measures", "sort")
FILTERS: Final = tuple(name for name in DIMENSIONS if name != "account")
PARAMETERS: Final = (*_SCALARS, *_LISTS, *FILTERS)
"""Every parameter of a usage query, beside `tag.<name>`."""

_REPEATED: Final = frozenset({"account", *_LISTS, *FILTERS})
"""Parameters that may be given several times."""
_DATE: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)\Z", re.ASCII)
_COMMA: Final = re.compile(r"(?<!\\),")


class UsageScope(NamedTuple):
    """Whose usage may be asked for: of any account, of one, or of one key."""

    account_id: str | None = None
    key_id: str | None = None


EVERYTHING: Final = UsageScope()


class Selection(NamedTuple):
    """Which events a query is about: whose (None: all accounts'), of which span, with which values."""

    account_id: str | None
    from_us: int
    to_us: int
    filters: dict[str, tuple[str, ...]]


def parse_usage_query(
    params: Iterable[tuple[str, str]],
    *,
    scope: UsageScope = EVERYTHING,
    now: datetime,
    with_pending: Sequence[str] = (),
) -> UsageQuery:
    """
    Return the query that *params* state, within *scope*.

    Args:
        params: Names and values, in any order.
        now: An aware instant; the default range is everything up to it, to whole hours.
        with_pending: Parameters that the caller reads itself.

    Raises:
        BadParameter: A parameter is unknown or has a bad value: what it takes.
        NotFound: An account or key outside of *scope*.
    """
    given = gathered(params, PARAMETERS, with_pending)
    scalars = {name: given[name][0] for name in _SCALARS if name in given}
    zone = _zone(scalars.get("time_zone", "UTC"))
    selection = select(given, scope, now)
    granularity = _one_of(scalars, "granularity", GRANULARITIES)
    group_by = _group_by(_list(given, "group_by"))
    measures = tuple(_list(given, "measures")) or MEASURES_DEFAULT
    for name in measures:
        if not is_measure(name):
            raise _unknown(name, "measures", (*MEASURES, "quantity.<name>"))
        if not may_ask(name, scope):
            raise BadParameter(f"{name} is for the operator's key: leave it out", field="measures")
    if sum(quantity_of_unit(name) is not None for name in measures) > QUANTITIES_MAX:
        # Each is looked up in every row that is read.
        raise BadParameter(f"measures takes at most {QUANTITIES_MAX} quantities", field="measures")
    _check_once(measures, "measures")
    return UsageQuery(
        account_id=selection.account_id,
        from_us=selection.from_us,
        to_us=selection.to_us,
        granularity=cast("Granularity | None", granularity),
        time_zone=zone.key,
        week_start=_one_of(scalars, "week_start", WEEKDAYS) or "monday",
        group_by=group_by,
        filters=selection.filters,
        measures=measures,
        sort=_sort(_list(given, "sort"), measures, group_by, granularity),
        limit=whole_number(scalars, "limit", PAGE_SIZE_DEFAULT, 0, PAGE_SIZE_MAX),
        offset=whole_number(scalars, "offset", 0, 0, OFFSET_MAX),
    )


def select(given: dict[str, list[str]], scope: UsageScope, now: datetime) -> Selection:
    """
    Return which events the parameters *given* select, within *scope*: `account`, `from`, `to`, `time_zone` and filters.

    Raises:
        BadParameter: A parameter has a bad value: what it takes.
        NotFound: An account or key outside of *scope*.
    """
    scalars = {name: values[0] for name, values in given.items()}
    from_us, to_us_ = _range(scalars, _zone(scalars.get("time_zone", "UTC")), now)
    filters = _filters(given)
    account_id = _account(given, scope, filters)
    if scope.key_id is not None:
        if any(key_id != scope.key_id for key_id in filters.get("key", ())):
            raise NotFound("There is no such key.")
        filters["key"] = (scope.key_id,)
    return Selection(account_id, from_us, to_us_, filters)


def may_ask(measure: str, scope: UsageScope) -> bool:
    """Return whether callers of *scope* may ask for a measure."""
    return scope.account_id is None or measure not in OF_OPERATOR


def gathered(
    params: Iterable[tuple[str, str]], known: Sequence[str], with_pending: Sequence[str] = ()
) -> dict[str, list[str]]:
    """
    Return the values of each parameter.

    Args:
        known: The parameters there are, beside `tag.<name>`. Filters and lists may be given several times.
        with_pending: Parameters that the caller reads itself: they are left out.

    Raises:
        BadParameter: A parameter is unknown, given twice, or too long.
    """
    given: dict[str, list[str]] = {}
    for name, value in params:
        if name in with_pending:
            continue
        if name.startswith(("tag.", "tag:")):
            name = f"tag:{name[4:]}"
            if name == "tag:":
                raise BadParameter("a tag's filter must be tag.<name>=<value>", field="tag.")
        elif name not in known:
            raise _unknown_parameter(name, (*known, *with_pending))
        if name in given and name not in _REPEATED and not name.startswith("tag:"):
            raise BadParameter(f"{name} is given twice: give it once", field=name)
        if "\x00" in value or len(value) > 100_000:
            raise BadParameter(f"{name} has a NUL or is too long", field=name)
        given.setdefault(name, []).append(value)
    return given


def _unknown_parameter(name: str, known: Sequence[str]) -> BadParameter:
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return BadParameter(
        f"{name[:64]} is not a parameter: {hint}The parameters are {', '.join(known)} and tag.<name>",
        field=name[:64],
    )


def _unknown(name: str, field: str, known: Iterable[str]) -> BadParameter:
    return BadParameter(f"{field} takes {', '.join(known)}, not {name[:64]!r}", field=field)


def _list(given: dict[str, list[str]], name: str) -> list[str]:
    return [value for text in given.get(name, ()) for value in _split(text) if value]


def _split(text: str) -> list[str]:
    return [part.replace("\\,", ",") for part in _COMMA.split(text)]


def _zone(name: str) -> ZoneInfo:
    try:
        return zone_of(name)
    except ValueError:
        raise BadParameter(
            f"time_zone must be an IANA name such as Europe/Berlin, not {name[:64]!r}", field="time_zone"
        ) from None


def _range(scalars: dict[str, str], zone: ZoneInfo, now: datetime) -> tuple[int, int]:
    # Whole hours, since these are the cheapest to answer. Clocks of callers may be ahead of ours by so much.
    ahead = now.astimezone(UTC) + timedelta(seconds=FUTURE_S_MAX)
    end = ahead.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    to_us_ = _instant_us(scalars["to"], "to", zone) if "to" in scalars else to_us(end)
    if "from" in scalars:
        from_us_ = _instant_us(scalars["from"], "from", zone)
    else:
        # No event is older; a range that ends before is empty, not a mistake.
        from_us_ = min(TIME_MIN_US, to_us_ - 1)
    if from_us_ >= to_us_:
        raise BadParameter(
            f"from must be before to: {from_us(from_us_).isoformat()} is not before {from_us(to_us_).isoformat()}",
            field="from",
        )
    return from_us_, to_us_


def parse_span(params: Mapping[str, str], now: datetime) -> tuple[int, int]:
    """
    Return the span that `from` and `to` of *params* state, microseconds since the Unix epoch; all events' by default.

    Raises:
        BadParameter: One is no date or time, or from is not before to.
    """
    return _range(dict(params), zone_of("UTC"), now)


def _instant_us(text: str, name: str, zone: ZoneInfo) -> int:
    """Return the instant of an RFC 3339 date-time, or of the midnight in *zone* that a date begins with."""
    try:
        match = _DATE.match(text)
        if match is not None:
            day = date(int(match[1]), int(match[2]), int(match[3]))
            return to_us(datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC))
        return parse_time_us(text)
    except (ValueError, OverflowError):
        hint = "; in a URL, write + as %2B" if re.search(r" \d\d:\d\d\Z", text) else ""
        raise BadParameter(
            f"{name} must be a date such as 2026-01-31, or a date-time with an offset such as "
            f"2026-01-31T09:30:00Z, not {text[:64]!r}{hint}",
            field=name,
        ) from None


def _one_of(scalars: dict[str, str], name: str, allowed: Sequence[str]) -> str | None:
    value = scalars.get(name)
    if value is not None and value not in allowed:
        raise BadParameter(f"{name} must be one of {', '.join(allowed)}, not {value[:64]!r}", field=name)
    return value


def _group_by(names: list[str]) -> tuple[str, ...]:
    groups = tuple(f"tag:{name[4:]}" if name.startswith(("tag.", "tag:")) else name for name in names)
    for name in groups:
        if name not in DIMENSIONS and not (name.startswith("tag:") and len(name) > 4):
            raise _unknown(name, "group_by", (*DIMENSIONS, "tag.<name>"))
    if len(groups) > GROUPS_MAX:
        raise BadParameter(f"group_by takes at most {GROUPS_MAX} dimensions", field="group_by")
    _check_once(groups, "group_by")
    return groups


def _check_once(names: Sequence[str], field: str) -> None:
    for index, name in enumerate(names):
        # Stops at the first repeat, so at most at as many names as there are.
        if name in names[:index]:
            raise BadParameter(f"{field} has {name} twice: name it once", field=field)


def _filters(given: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    filters: dict[str, tuple[str, ...]] = {}
    for name, texts in given.items():
        if name not in FILTERS and not name.startswith("tag:"):
            continue
        values = tuple(value for text in texts for value in _split(text))
        if len(values) > VALUES_MAX:
            raise BadParameter(f"{name} takes at most {VALUES_MAX} values", field=name)
        if name == "status":
            for value in values:
                if value and not (value.isascii() and value.isdigit() and len(value) <= 3):
                    raise BadParameter(
                        f"status must be an HTTP status such as 429, not {value[:64]!r}", field="status"
                    )
        filters[name] = values
    return filters


def _account(
    given: dict[str, list[str]], scope: UsageScope, filters: dict[str, tuple[str, ...]]
) -> str | None:
    accounts = _list(given, "account")
    if scope.account_id is not None:
        if any(account != scope.account_id for account in accounts):
            raise NotFound("There is no such account.")
        return scope.account_id
    if len(accounts) == 1:
        return accounts[0]
    if len(accounts) > VALUES_MAX:
        raise BadParameter(f"account takes at most {VALUES_MAX} values", field="account")
    if accounts:
        filters["account"] = tuple(accounts)
    return None


def _sort(
    terms: list[str], measures: tuple[str, ...], group_by: tuple[str, ...], granularity: str | None
) -> tuple[str, ...]:
    columns = (*(("time",) if granularity else ()), *group_by, *measures)
    done = []
    for text in terms:
        sign, name = ("-", text[1:]) if text.startswith("-") else ("", text)
        name = f"tag:{name[4:]}" if name.startswith("tag.") else name
        term = sort_term(sign + name, columns)
        if term is None:
            raise BadParameter(
                f"sort takes columns of the answer, each with - in front for descending: "
                f"{', '.join(columns)}, not {text[:64]!r}",
                field="sort",
            )
        done.append((sign + name, term.column))
    _check_once([column for _, column in done], "sort")
    return tuple(text for text, _ in done)


def whole_number(scalars: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """Return the number that a parameter states, *default* without it. Raises `BadParameter`."""
    text = scalars.get(name)
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) <= 18 and least <= int(text) <= most:
        return int(text)
    raise BadParameter(f"{name} must be a whole number from {least} to {most}, not {text[:64]!r}", field=name)
