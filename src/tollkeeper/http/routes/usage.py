"""`GET /tk/v1/usage`: the usage query over HTTP, answered as JSON or CSV."""

from __future__ import annotations

from typing import Final

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream

from tollkeeper.api.paths import PREFIX
from tollkeeper.api.usage_answer import UsageResponse, csv_pieces, next_offset, usage_response
from tollkeeper.api.usage_meta import Meta, meta_of
from tollkeeper.api.usage_params import FILTERS, UsageScope, parse_usage_query
from tollkeeper.api.usage_tag import is_named, usage_tag
from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.instants import from_us, to_text
from tollkeeper.domain.periods import WEEKDAYS
from tollkeeper.domain.usage import (
    DIMENSIONS,
    GRANULARITIES,
    MEASURES,
    MEASURES_DEFAULT,
    PAGE_SIZE_DEFAULT,
    PAGE_SIZE_MAX,
    UsageQuery,
    UsageReport,
    quantities_as_text,
)
from tollkeeper.errors import BadParameter
from tollkeeper.http.auth import Principal
from tollkeeper.http.routes.calls import (
    ANYBODY,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    QueryDoc,
    answer,
    context_of,
    in_thread,
    json_answer,
    no_such_account,
    operation,
    params_of,
    principal_of,
    query_pairs,
    service,
)
from tollkeeper.usage.report import Reports

FILTER_DOCS: Final = (
    *(
        QueryDoc(
            name, f"Only events with one of these values of {name}, separated by commas; empty for none."
        )
        for name in FILTERS
    ),
    QueryDoc(
        "tag.{name}",
        "Only events whose tag of that name has one of these values. The name is part of the parameter: "
        "tag.team=a,b.",
    ),
)
_QUERY: Final = (
    QueryDoc("account", "Whose usage; several, separated by commas, or all without it: the operator only."),
    QueryDoc(
        "from",
        "Date or RFC 3339 date-time from which on events count. A date begins at midnight in `time_zone`. "
        "Everything by default.",
    ),
    QueryDoc("to", "Date or date-time before which events count. The coming full hour by default."),
    QueryDoc(
        "group_by", f"A row per value of these, separated by commas: {', '.join(DIMENSIONS)}, tag.<name>."
    ),
    QueryDoc(
        "granularity", "A row per bucket of this size.", {"type": "string", "enum": list(GRANULARITIES)}
    ),
    QueryDoc(
        "time_zone",
        "IANA name; buckets of an hour or more begin at its local times.",
        {"type": "string", "default": "UTC"},
    ),
    QueryDoc(
        "week_start", "First day of a week.", {"type": "string", "enum": list(WEEKDAYS), "default": "monday"}
    ),
    QueryDoc(
        "measures",
        f"What to tell, separated by commas: {', '.join(MEASURES)}, or quantity.NAME (decimal text of units). "
        "provider_cost_nanos is for the operator's key.",
        {"type": "string", "default": ",".join(MEASURES_DEFAULT)},
    ),
    QueryDoc(
        "sort",
        "Columns of the answer, separated by commas, each with - in front for descending. Nulls come last, or first "
        "with :nulls_first behind the column.",
    ),
    QueryDoc(
        "limit",
        "Rows per page; 0 for the totals only.",
        {"type": "integer", "minimum": 0, "maximum": PAGE_SIZE_MAX, "default": PAGE_SIZE_DEFAULT},
    ),
    QueryDoc("offset", "Rows to skip.", {"type": "integer", "minimum": 0, "default": 0}),
    QueryDoc(
        "format", "The form of the answer.", {"type": "string", "enum": ["json", "csv"], "default": "json"}
    ),
    *FILTER_DOCS,
)
_EXAMPLE: Final = {
    "rows": [{"model": "gpt-4o", "requests": 2, "cost_nanos": "5000000"}],
    "totals": {"requests": 2, "cost_nanos": "5000000"},
    "row_count": 1,
    "next_offset": None,
    "from": "2026-01-01T00:00:00.000000Z",
    "to": "2026-02-01T00:00:00.000000Z",
    "as_of": "2026-01-31T09:30:00.125000Z",
    "complete": True,
    "behind_s": 0,
    "detail_from": None,
    "lacks_detail": False,
}


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of the usage query, and of what it can be asked."""
    return [usage, meta]


@get(
    f"{PREFIX}/meta",
    opt=operation(
        OperationDoc(
            "What usage can be asked",
            "usage",
            ANYBODY,
            {200: json_answer(Meta, "Measures, dimensions and granularities that this caller may ask.")},
            description="For pages and tools that let people choose. A customer is not told of measures that are the "
            "operator's.",
        )
    ),
)
@in_thread("management")
def meta(request: AnyRequest) -> Response[bytes]:
    """Tell what this caller may ask of usage."""
    params_of(request)
    return answer(meta_of(scope_of(principal_of(request))))


@get(
    f"{PREFIX}/usage",
    opt=operation(
        OperationDoc(
            "Usage",
            "usage",
            ANYBODY,
            {
                200: BodyDoc(
                    {"application/json": UsageResponse, "text/csv": {"type": "string"}},
                    _EXAMPLE,
                    "As CSV, `X-Row-Count`, `X-Next-Offset`, `X-As-Of`, `X-Complete`, `X-Behind`, `X-Detail-From` and "
                    "`X-Lacks-Detail` tell the rest. A complete answer has an `ETag`.",
                ),
                304: BodyDoc(
                    {},
                    None,
                    "`If-None-Match` names the answer as it still is. `X-As-Of` says as of when it was found.",
                ),
            },
            description="The answer contains the request that was answered a millisecond ago. A management "
            "key asks about its account, a consumption key about itself.",
            query=_QUERY,
            problems=(404, 429),
        )
    ),
)
@in_thread("usage")
def usage(request: AnyRequest) -> Response[bytes] | Stream:
    """Answer the usage query."""
    principal = principal_of(request)
    pairs = query_pairs(request)
    form = _format(pairs)
    query = parse_usage_query(
        pairs,
        scope=scope_of(principal),
        now=context_of(request).clock.now(),
        with_pending=("format",),
    )
    if query.account_id is not None and service(request, Directory).account(query.account_id) is None:
        raise no_such_account()
    # If nothing was booked for the account since, the kept report is found here, and no query runs.
    report = quantities_as_text(query, service(request, Reports).usage(query))
    response = usage_response(query, report)
    tag = usage_tag(query, response, form=form, caller=principal)
    if tag is not None and is_named(request.headers.get("if-none-match", ""), tag):
        return Response(
            b"",
            status_code=304,
            headers={"Cache-Control": "no-store", "ETag": tag, "X-As-Of": response.as_of},
        )
    found = _csv_answer(query, report) if form == "csv" else answer(response)
    if tag is not None:
        found.headers["ETag"] = tag
    return found


def scope_of(principal: Principal) -> UsageScope:
    """Return whose usage a caller may ask for."""
    return UsageScope(principal.account_id, principal.key_id if principal.role == "consumption" else None)


def _csv_answer(query: UsageQuery, report: UsageReport) -> Stream:
    following = next_offset(query, report)
    return Stream(
        csv_pieces(query, report.rows),
        media_type="text/csv",
        headers={
            "Cache-Control": "no-store",
            "Content-Disposition": 'attachment; filename="usage.csv"',
            "X-Row-Count": str(report.row_count),
            "X-Next-Offset": "" if following is None else str(following),
            "X-As-Of": to_text(from_us(report.as_of_us)),
            "X-Complete": "true" if report.complete else "false",
            "X-Behind": str(report.behind_s),
            "X-Detail-From": "" if report.detail_from_us is None else to_text(from_us(report.detail_from_us)),
            "X-Lacks-Detail": "true" if report.lacks_detail else "false",
        },
    )


def _format(pairs: list[tuple[str, str]]) -> str:
    forms = [value for name, value in pairs if name == "format"]
    if len(forms) > 1 or (forms and forms[0] not in ("json", "csv")):
        raise BadParameter("format must be json or csv, and be given once", field="format")
    return forms[0] if forms else "json"
