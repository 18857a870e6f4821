"""Liveness, readiness and metrics, outside of `/tk/v1`: for orchestrators and scrapers."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

import msgspec
from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from tollkeeper.errors import Forbidden, TollkeeperError
from tollkeeper.http.bodies import header
from tollkeeper.http.metrics import METRICS_MEDIA_TYPE, render_metrics
from tollkeeper.http.routes.calls import (
    NOBODY_ASKED,
    AnyRequest,
    Endpoint,
    Sent,
    answer,
    context_of,
    endpoint,
    installation_of,
    json_answer,
)
from tollkeeper.installation import Installation

_FORWARDED: Final = (b"forwarded", b"x-forwarded-for", b"x-real-ip")


class Liveness(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str = "ok"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests can be decided, recorded and reported; if not, why. Warnings need an operator, not a restart."""

    ready: bool
    reasons: list[str]
    warnings: list[str]


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of health and metrics."""
    return [healthz, readyz, metrics]


@get(
    "/healthz",
    sync_to_thread=False,
    opt=endpoint(
        Endpoint("Liveness", "health", NOBODY_ASKED, {200: json_answer(Liveness, "The process answers.")})
    ),
)
def healthz(request: AnyRequest) -> Response[bytes]:
    """Say that the process answers."""
    return answer(Liveness())


@get(
    "/readyz",
    sync_to_thread=True,
    opt=endpoint(
        Endpoint(
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
def readyz(request: AnyRequest) -> Response[bytes]:
    """Say whether requests can be served."""
    installation = installation_of(request)
    reasons = reasons_not_ready(installation)
    found = Readiness(ready=not reasons, reasons=reasons, warnings=installation.pairing.warnings())
    return answer(found, status=503 if reasons else 200)


@get(
    "/metrics",
    sync_to_thread=True,
    opt=endpoint(
        Endpoint(
            "Metrics",
            "health",
            NOBODY_ASKED,
            {200: Sent({"text/plain": {"type": "string"}}, None, "Prometheus text format 0.0.4.")},
            description="Open to peers on this machine; from elsewhere, or through a proxy, it takes an "
            "operator key.",
            problems=(401, 403),
        )
    ),
)
def metrics(request: AnyRequest) -> Response[bytes]:
    """Tell the metrics."""
    context = context_of(request)
    scope: Any = request.scope
    if not _is_local(scope) and context.authenticator.principal(scope["headers"]).role != "operator":
        raise Forbidden("Metrics take an operator key.")
    return Response(
        render_metrics(context.installation, context.upkeep, context.version).encode(),
        media_type=METRICS_MEDIA_TYPE,
        headers={"Cache-Control": "no-store"},
    )


def reasons_not_ready(installation: Installation) -> list[str]:
    """Return why requests cannot be served now; nothing when they can."""
    reasons = []
    try:
        installation.ledger.ping()
    except TollkeeperError as exc:
        reasons.append(f"the ledger does not answer: {exc}")
    if not installation.store.ready():
        reasons.append("the usage store does not answer, or is still opening")
    reasons += installation.pairing.reasons()
    if installation.gate.refusing is not None:
        reasons.append(installation.gate.refusing)
    return reasons


def _is_local(scope: Any) -> bool:
    # Behind a proxy on this machine everybody comes from a loopback address: then the header tells.
    if any(header(scope["headers"], name) for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(scope["client"][0]).is_loopback
    except (KeyError, TypeError, ValueError):
        return False
