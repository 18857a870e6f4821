"""
The Litestar application: everything under `/tk/v1` but the hot endpoints, and health and metrics.

Handlers block (they read and write stores), so they run in threads (`executors.py`). Nobody gets past the guard
without the role that a handler's `OperationDoc` names; whatever is raised leaves as a problem document.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from litestar import Litestar, Response, Router
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.routes import HTTPRoute

from tollkeeper import errors
from tollkeeper.alerts.webhooks import Webhooks
from tollkeeper.api.paths import PREFIX
from tollkeeper.catalog.directory import Directory
from tollkeeper.catalog.logins import Logins
from tollkeeper.catalog.manage import Manage
from tollkeeper.catalog.sessions import Sessions
from tollkeeper.gate.gate import Gate
from tollkeeper.http.auth import Authenticator
from tollkeeper.http.bodies import broken_off, too_large
from tollkeeper.http.denials import PROBLEM_BASE
from tollkeeper.http.executors import Executors, Probe
from tollkeeper.http.metrics import MetricsSource, metrics_source
from tollkeeper.http.observed import Latencies
from tollkeeper.http.paths import segment_text
from tollkeeper.http.problems import PROBLEM_MEDIA_TYPE, ProblemReply, to_problem
from tollkeeper.http.routes import (
    adjustments,
    audit,
    catalog,
    events,
    health,
    keys,
    limit_status,
    logins,
    maintenance,
    openapi,
    prices,
    sessions,
    top_ups,
    usage,
)
from tollkeeper.http.routes.calls import (
    NOBODY_ASKED,
    OPERATION,
    OPERATOR,
    AnyRequest,
    Context,
    Maintenance,
    OperationDoc,
    refuse,
)
from tollkeeper.installation import Installation
from tollkeeper.ledger.balances import Balances
from tollkeeper.ledger.budget_top_ups import BudgetTopUps
from tollkeeper.ledger.pairing import Pairing
from tollkeeper.maintenance.backups import Backups
from tollkeeper.maintenance.reconcile import Reconcile
from tollkeeper.meter.adjustments import Adjustments
from tollkeeper.meter.amend import Amend
from tollkeeper.meter.price_preview import PricePreview
from tollkeeper.usage.event_lookup import EventLookup
from tollkeeper.usage.report import Reports

CONTEXT: Final = "tollkeeper"
"""The name in the application's state of what its handlers work on."""
_BROKEN_OFF: Final = "client disconnected prematurely"
"""Litestar's words for a body whose end never came: the caller's doing, whatever status Litestar gives it."""


def build_api(
    installation: Installation,
    authenticator: Authenticator,
    *,
    version: str,
    executors: Executors | None = None,
    probes: tuple[Probe, ...] = (),
    latencies: Latencies | None = None,
) -> Litestar:
    """Return the application of *installation*. It neither opens nor closes it, nor the threads and probes."""
    verified = Maintenance()
    context = Context(
        _services_of(
            installation,
            metrics_source(installation, verified, version, authenticator.throttle, latencies),
        ),
        installation.clock,
        authenticator,
        version,
        verified,
        executors or Executors(),
        probes,
        installation.settings.metrics_open,
    )
    topics = (
        audit,
        prices,
        catalog,
        keys,
        top_ups,
        sessions,
        logins,
        limit_status,
        adjustments,
        usage,
        events,
        maintenance,
        health,
        openapi,
    )
    return Litestar(
        # In one router: registered one by one, handlers that share a path are wrapped in a thread twice.
        route_handlers=[
            Router("/", route_handlers=[handler for topic in topics for handler in topic.handlers()])
        ],
        guards=[_guard],
        exception_handlers={Exception: _problem_answer},
        # Our own document is made from the same structs, and has the hot endpoints too.
        openapi_config=None,
        logging_config=None,
        request_max_body_size=installation.settings.body_bytes_max,
        state=State({CONTEXT: context}, deep_copy=False),
        debug=False,
    )


def _services_of(installation: Installation, metrics: MetricsSource) -> dict[type, Any]:
    """Return what handlers may ask for, by its type."""
    return {
        Adjustments: installation.adjustments,
        Amend: installation.amend,
        BudgetTopUps: installation.top_ups,
        Backups: installation.backups,
        Balances: installation.balances,
        Directory: installation.directory,
        EventLookup: installation.event_lookup,
        Gate: installation.gate,
        Logins: installation.logins,
        Manage: installation.manage,
        MetricsSource: metrics,
        Pairing: installation.pairing,
        PricePreview: installation.price_preview,
        Reconcile: installation.reconcile,
        Reports: installation.reports,
        Sessions: installation.sessions,
        Webhooks: installation.webhooks,
    }


async def _guard(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
    """Find out who calls, before anything of the body is read, and refuse who may not."""
    of = handler.opt.get(OPERATION)
    if not isinstance(of, OperationDoc):
        # Litestar's own answer to OPTIONS, which tells the methods of a path.
        return
    if of.roles == NOBODY_ASKED:
        return
    context: Context = connection.app.state[CONTEXT]
    scope: Any = connection.scope
    principal = await context.executors.hot.attempt(
        context.authenticator.caller, scope["headers"], scope["method"]
    )
    if principal.role not in of.roles:
        what = of.summary[0].lower() + of.summary[1:]
        if of.roles == OPERATOR:
            raise errors.Forbidden(f"This takes an operator key: {what}.")
        raise refuse(principal, what)
    connection.scope["state"]["principal"] = principal


def _problem_answer(request: AnyRequest, exc: Exception) -> Response[bytes]:
    state = request.scope.get("state") or {}
    instance, request_id = segment_text(request.scope["path"]), str(state.get("request_id", ""))
    if isinstance(exc, HTTPException):
        problem = _problem_of_litestar(request, exc, instance, request_id)
    else:
        problem = to_problem(exc, instance=instance, request_id=request_id)
    return Response(
        msgspec.json.encode(problem.body),
        status_code=problem.status,
        media_type=PROBLEM_MEDIA_TYPE,
        headers=problem.headers,
    )


def _problem_of_litestar(
    request: AnyRequest, exc: HTTPException, instance: str, request_id: str
) -> ProblemReply:
    """Return the problem of what Litestar itself found wrong."""
    # What is POSTed to a hot endpoint never gets here.
    if exc.status_code == 405 or instance in openapi.HOT:
        methods = ", ".join(_methods_of(request))
        body = {
            "type": f"{PROBLEM_BASE}method_not_allowed",
            "title": "Method not allowed",
            "status": 405,
            "detail": f"{instance} takes {methods}, not {request.method}.",
            "instance": instance,
            "code": "method_not_allowed",
            "request_id": request_id,
            "retryable": False,
        }
        return ProblemReply(405, body, {"Allow": methods})
    found: Exception = exc
    if exc.status_code == 404:
        found = errors.NotFound(f"There is no such path. {PREFIX}/openapi.json lists all.")
    elif exc.status_code == 413:
        found = too_large(_body_bytes_max(request))
    elif exc.detail == _BROKEN_OFF:
        found = broken_off()
    elif exc.status_code == 415:
        found = errors.UnsupportedMediaType(exc.detail)
    elif exc.status_code < 500:
        found = errors.BadInput(exc.detail)
    return to_problem(found, instance=instance, request_id=request_id)


def _methods_of(request: AnyRequest) -> list[str]:
    path = request.scope["path"].rstrip("/")
    if path in openapi.HOT:
        return ["POST"]
    for route in request.app.routes:
        if isinstance(route, HTTPRoute) and _matches(route.path, path):
            return sorted(route.methods)
    return []


def _matches(template: str, path: str) -> bool:
    parts, given = template.split("/"), path.split("/")
    return len(parts) == len(given) and all(
        part.startswith("{") or part == name for part, name in zip(parts, given, strict=True)
    )


def _body_bytes_max(request: AnyRequest) -> int:
    handler = request.scope.get("route_handler")
    return (handler.resolve_request_max_body_size() or 0) if isinstance(handler, HTTPRouteHandler) else 0
