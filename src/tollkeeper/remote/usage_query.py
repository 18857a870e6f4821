"""The usage query as parameters of `GET /tk/v1/usage`, and its answer as a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from tollkeeper.api.usage_answer import MONEY, UsageResponse
from tollkeeper.domain.events import parse_time_us
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.usage import UsageQuery, UsageReport
from tollkeeper.errors import BadParameter
from tollkeeper.remote.connections import Answer
from tollkeeper.remote.messages import USAGE, decoded, error_of

_ANSWER: Final = msgspec.json.Decoder(UsageResponse)


def usage_path(query: UsageQuery) -> str:
    """Return the path and parameters that ask *query*: the reverse of `api.usage_params`."""
    if query.cuts_us:
        raise BadParameter("cuts_us cannot be asked over HTTP: ask once per part", field="cuts_us")
    params = [("from", to_text(from_us(query.from_us))), ("to", to_text(from_us(query.to_us)))]
    if query.account_id is not None:
        params.append(("account", query.account_id))
    if query.granularity is not None:
        params.append(("granularity", query.granularity))
    params += [("time_zone", query.time_zone), ("week_start", query.week_start)]
    for name, values in (("group_by", query.group_by), ("measures", query.measures), ("sort", query.sort)):
        if values:
            params.append((name, ",".join(values)))
    params += filter_params(query.filters)
    params += [("limit", str(query.limit)), ("offset", str(query.offset))]
    return f"{USAGE}?{urlencode(params)}"


def filter_params(filters: Mapping[str, Sequence[str]]) -> list[tuple[str, str]]:
    """Return filters as parameters: a comma within a value is written `\\,`; an empty value stands for "none"."""
    return [(name, value.replace(",", "\\,")) for name, values in filters.items() for value in values]


def report_of(answer: Answer) -> UsageReport:
    """Return the report that the server answered. Raises its error."""
    if answer.status != 200:
        raise error_of(answer)
    said: UsageResponse = decoded(_ANSWER, answer)
    return UsageReport(
        rows=[_with_nanos(row) for row in said.rows],
        totals=_with_nanos(said.totals),
        row_count=said.row_count,
        as_of_us=parse_time_us(said.as_of),
        complete=said.complete,
        behind_s=said.behind_s,
        detail_from_us=None if said.detail_from is None else parse_time_us(said.detail_from),
        lacks_detail=said.lacks_detail,
    )


def _with_nanos(row: dict[str, Any]) -> dict[str, Any]:
    return {name: int(value) if name in MONEY and value is not None else value for name, value in row.items()}
