"""Check, repair and backup: verify that counter = ledger = sum of events, rebuild what is derived, back up."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import RawBody

from tollkeeper.api.backup_answer import BackupAnswer, backup_answer
from tollkeeper.api.paths import PREFIX
from tollkeeper.api.verify_answer import VerifyAnswer, verify_answer
from tollkeeper.http.routes.calls import (
    OPERATOR,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    answer,
    context_of,
    in_thread,
    json_answer,
    json_object,
    now_us_of,
    operation,
    params_of,
    service,
)
from tollkeeper.http.routes.fields import fields_of
from tollkeeper.maintenance.backups import Backups
from tollkeeper.maintenance.reconcile import Reconcile


class RebuildAnswer(msgspec.Struct, frozen=True):
    """Rows written, by table."""

    rows: dict[str, int]


class BackupRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a backup goes: a name, or a path directly below the server's `backup_dir`."""

    target: Annotated[str, msgspec.Meta(min_length=1, max_length=1_000)]


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of check, repair and backup."""
    return [verify, rebuild, backup]


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


@post(
    f"{PREFIX}/backup",
    status_code=200,
    opt=operation(
        OperationDoc(
            "Back up ledger and usage store",
            "maintenance",
            OPERATOR,
            {200: json_answer(BackupAnswer, "The backup is complete, and on the disk.")},
            description="Writes a backup as of one instant into a directory below `backup_dir` on the server's "
            "machine; requests go on meanwhile. A directory that has an earlier backup of this installation is "
            "brought up to date, and only what is new is written. Restore it with `tollkeeper restore`.",
            body=BodyDoc({"application/json": BackupRequest}, {"target": "monday"}),
            problems=(409, 413, 415),
        )
    ),
)
@in_thread("maintenance")
def backup(request: AnyRequest, body: RawBody) -> Response[bytes]:
    """Take a backup."""
    params_of(request)
    asked = fields_of(json_object(request, body), BackupRequest)
    return answer(backup_answer(service(request, Backups).take_below(asked.target)))
