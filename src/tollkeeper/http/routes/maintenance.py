"""Check and repair: verify that counter = ledger = sum of events, and rebuild what is derived."""

from __future__ import annotations

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler

from tollkeeper.api.paths import PREFIX
from tollkeeper.api.verify_answer import VerifyAnswer, verify_answer
from tollkeeper.http.routes.calls import (
    OPERATOR,
    AnyRequest,
    OperationDoc,
    answer,
    context_of,
    in_thread,
    json_answer,
    now_us_of,
    operation,
    params_of,
    service,
)
from tollkeeper.maintenance.reconcile import Reconcile


class RebuildAnswer(msgspec.Struct, frozen=True):
    """Rows written, by table."""

    rows: dict[str, int]


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of check and repair."""
    return [verify, rebuild]


@post(
    f"{PREFIX}/verify",
    status_code=200,
    opt=operation(
        OperationDoc(
            "Verify counter = ledger = sum of events",
            "maintenance",
            OPERATOR,
            {200: json_answer(VerifyAnswer, "What was found: look at `ok`.")},
            description="Recomputes everything from the records. While requests are being settled, figures "
            "are compared as of their commits and may differ for a moment.",
        )
    ),
)
@in_thread("maintenance")
def verify(request: AnyRequest) -> Response[bytes]:
    """Verify everything."""
    params_of(request)
    context = context_of(request)
    verdict = service(request, Reconcile).verify()
    context.maintenance.verdict = verdict
    context.maintenance.verified_at_us = now_us_of(request)
    return answer(verify_answer(verdict))


@post(
    f"{PREFIX}/rebuild",
    status_code=200,
    opt=operation(
        OperationDoc(
            "Rebuild rollups and the id index",
            "maintenance",
            OPERATOR,
            {200: json_answer(RebuildAnswer, "Rows written.", {"rows": {"usage_rollups": 1280}})},
            description="Rebuilds them from the records. Usage queries are answered meanwhile. Safe to repeat.",
        )
    ),
)
@in_thread("maintenance")
def rebuild(request: AnyRequest) -> Response[bytes]:
    """Rebuild what is derived."""
    params_of(request)
    return answer(RebuildAnswer(dict(service(request, Reconcile).rebuild())))
