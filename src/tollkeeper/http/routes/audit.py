"""The audit log: who changed what, when, from which value to which."""

from __future__ import annotations

from typing import Final

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler

from tollkeeper.api.audit_answer import AuditPage, audit_page
from tollkeeper.api.paths import PREFIX
from tollkeeper.catalog.manage import PAGE_SIZE_MAX, Manage
from tollkeeper.http.routes.calls import (
    CUSTOMER,
    AnyRequest,
    OperationDoc,
    QueryDoc,
    account_in_scope,
    answer,
    in_thread,
    json_answer,
    operation,
    params_of,
    principal_of,
    service,
    whole_number,
)
from tollkeeper.http.routes.catalog_docs import PAGE_SIZE_DEFAULT

_SEQ_MAX: Final = 10**18 - 1


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of this topic."""
    return [list_audit]


@get(
    f"{PREFIX}/audit",
    opt=operation(
        OperationDoc(
            "List changes of the catalog",
            "audit",
            CUSTOMER,
            {200: json_answer(AuditPage, "Changes, the newest first.")},
            description="Who created, changed or deleted which entry, when, and the old and new value of each field. "
            "A management key sees its own account. Secrets and their hashes are not in it. Money that moves without "
            "a change of the catalog (settlements, adjustments, top-ups) is in usage.",
            query=(
                QueryDoc("account", "Changes of this account and of its entries."),
                QueryDoc("kind", "Changes of entries of this kind, such as `keys`."),
                QueryDoc("id", "Changes of entries with this id."),
                QueryDoc("after", "The cursor `next` of the page before."),
                QueryDoc(
                    "limit",
                    "The most changes to answer.",
                    {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": PAGE_SIZE_MAX,
                        "default": PAGE_SIZE_DEFAULT,
                    },
                ),
            ),
            problems=(404,),
        )
    ),
)
@in_thread("management")
def list_audit(request: AnyRequest) -> Response[bytes]:
    """List changes of the catalog, the newest first."""
    params = params_of(request, "account", "kind", "id", "after", "limit")
    limit = whole_number(params.get("limit", str(PAGE_SIZE_DEFAULT)), "limit", 1, PAGE_SIZE_MAX)
    after = params.get("after")
    lines = service(request, Manage).audit_log(
        account=account_in_scope(principal_of(request), params.get("account")),
        kind=params.get("kind"),
        entry_id=params.get("id"),
        before_seq=None if after is None else whole_number(after, "after", 1, _SEQ_MAX),
        limit=limit,
    )
    return answer(audit_page(lines, limit))
