"""Liveness, readiness and metrics, outside of `/tk/v1`: for orchestrators and scrapers."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from tollkeeper.api.paths import PREFIX
from tollkeeper.errors import Forbidden, TollkeeperError
from tollkeeper.gate.gate import Gate
from tollkeeper.http.executors import PROBE_S_MAX, Probe
from tollkeeper.http.metrics import METRICS_MEDIA_TYPE, MetricsSource, render_metrics
from tollkeeper.http.routes.calls import (
    NOBODY_ASKED,
    OPERATOR,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    answer,
    context_of,
    in_thread,
    json_answer,
    operation,
    service,
)
from tollkeeper.ledger.pairing import Pairing
from tollkeeper.ports import Ledger, UsageStore

_NO_STORE: Final = "the usage store does not answer, or is still opening"


class Liveness(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str = "ok"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests can be decided, recorded and reported; if not, why. Warnings need an operator, not a restart."""

    ready: bool
    reasons: list[str]
    warnings: list[str]
    """Faults that an operator must look at while requests are served."""


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of health and metrics."""
    return [healthz, readyz, metrics, metrics_of_login]


@get(
    "/healthz",
    sync_to_thread=False,
    opt=operation(
        OperationDoc("Liveness", "health", NOBODY_ASKED, {200: json_answer(Liveness, "The process answers.")})
    ),
)
def healthz(request: AnyRequest) -> Response[bytes]:
    """Say that the process answers."""
    return answer(Liveness())


@get(
    "/readyz",
    opt=operation(
        OperationDoc(
            "Readiness",
            "health",
            NOBODY_ASKED,
            {
                200: json_answer(Readiness, "Ready.", {"ready": True, "reasons": [], "warnings": []}),
                503: json_answer(
                    Readiness,
                    "Not ready.",
                    {
                        "ready": False,
                        "reasons": ["the usage store does not answer, or is still opening"],
                        "warnings": [],
                    },
                ),
            },
        )
    ),
)
async def readyz(request: AnyRequest) -> Response[bytes]:
    """Say whether requests can be served, in `PROBE_S_MAX` at the latest: no other call is queued before it."""
    context = context_of(request)
    gate, pairing = service(request, Gate), service(request, Pairing)
    found = await asyncio.gather(*(probe.answer() for probe in context.probes))
    reasons = [reason for reason in (*found, *pairing.reasons(), gate.refusing) if reason is not None]
    warnings = [*pairing.warnings(), *context.authenticator.throttle.notices]
    return answer(
        Readiness(ready=not reasons, reasons=reasons, warnings=warnings), status=503 if reasons else 200
    )


@get(
    "/metrics",
    opt=operation(
        OperationDoc(
            "Metrics",
            "health",
            NOBODY_ASKED,
            {200: BodyDoc({"text/plain": {"type": "string"}}, None, "Prometheus text format 0.0.4.")},
            description="Takes an operator key, unless the setting `metrics_open` opens it to everybody.",
            problems=(401, 403),
        )
    ),
)
@in_thread("management")
def metrics(request: AnyRequest) -> Response[bytes]:
    """Tell the metrics."""
    context = context_of(request)
    scope: Any = request.scope
    if not context.metrics_open and context.authenticator.principal(scope["headers"]).role != "operator":
        raise Forbidden("Metrics take an operator key.")
    return _metrics(request)


@get(
    f"{PREFIX}/metrics",
    opt=operation(
        OperationDoc(
            "Metrics, for a login",
            "health",
            OPERATOR,
            {200: BodyDoc({"text/plain": {"type": "string"}}, None, "Prometheus text format 0.0.4.")},
            description="The same as `/metrics`, where the cookie of the page counts.",
        )
    ),
)
@in_thread("management")
def metrics_of_login(request: AnyRequest) -> Response[bytes]:
    """Show the metrics to the operator's page."""
    return _metrics(request)


def _metrics(request: AnyRequest) -> Response[bytes]:
    return Response(
        render_metrics(service(request, MetricsSource)).encode(),
        media_type=METRICS_MEDIA_TYPE,
        headers={"Cache-Control": "no-store"},
    )


def probes_of(ledger: Ledger, store: UsageStore) -> tuple[Probe, ...]:
    """Return a probe of each store. Close them."""

    return (
        Probe(
            "probe-ledger",
            partial(fault_of_ledger, ledger),
            f"the ledger does not answer in {PROBE_S_MAX:.0f} s",
        ),
        Probe("probe-usage", partial(fault_of_store, store), _NO_STORE),
    )


def fault_of_ledger(ledger: Ledger) -> str | None:
    """Return why the ledger cannot be used now, or None. Blocking."""
    try:
        ledger.ping()
    except TollkeeperError as exc:
        return f"the ledger does not answer: {exc}"
    return None


def fault_of_store(store: UsageStore) -> str | None:
    """Return why the usage store cannot be used now, or None. Blocking."""
    return None if store.ready() else _NO_STORE
