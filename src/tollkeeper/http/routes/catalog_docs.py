"""The OpenAPI texts of the operations on catalog entries, kind by kind."""

from __future__ import annotations

from typing import Any, Final

from tollkeeper.api.entry_json import ACCOUNT_SCOPED
from tollkeeper.catalog.manage import PAGE_SIZE_MAX
from tollkeeper.domain.catalog import KINDS, Webhook
from tollkeeper.http.routes.calls import (
    CUSTOMER,
    OPERATOR,
    BodyDoc,
    CallerRole,
    OperationDoc,
    QueryDoc,
    json_answer,
)

PAGE_SIZE_DEFAULT: Final = 100
READ_BY_MANAGEMENT: Final = ACCOUNT_SCOPED | {"accounts", "plans"}
WRITTEN_BY_MANAGEMENT: Final = frozenset({"projects", "keys", "webhooks"})
NAMED_BY_US: Final = frozenset({"keys", "grants", "subscriptions", "webhooks"})
"""Kinds whose entries get an id when the request has none."""
ISSUED_KEY: Final = {"$ref": "#/components/schemas/IssuedKey"}

_ACCOUNT: Final = QueryDoc("account", "The account that the entry belongs to. A management key has its own.")
_PAGE: Final = (
    QueryDoc("account", "Only what this account has."),
    QueryDoc("after", "The `next` of the page before."),
    QueryDoc(
        "limit",
        "Entries per page.",
        {"type": "integer", "minimum": 1, "maximum": PAGE_SIZE_MAX, "default": PAGE_SIZE_DEFAULT},
    ),
)
_EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "accounts": {"id": "acme", "name": "Acme", "plan": "pro"},
    "projects": {"id": "search", "account": "acme", "name": "Search"},
    "plans": {
        "slug": "pro",
        "limits": [{"name": "per-minute", "amount": 600, "window": "1m"}],
        "budgets": [{"name": "monthly", "amount": "50000000000", "period": "month"}],
        "price_nanos": "49000000000",
    },
    "subscriptions": {"id": "s1", "account": "acme", "plan": "pro", "started_at": "2026-01-31T00:00:00Z"},
    "keys": {"account": "acme", "project": "search", "name": "production"},
    "budgets": {"id": "monthly", "account": "acme", "amount": "20000000000", "period": "month"},
    "grants": {"id": "welcome", "account": "acme", "amount_nanos": "5000000000"},
    "routes": {"id": "chat", "method": "POST", "path": "/v1/chat/completions", "price_nanos": "0"},
    "prices": {
        "id": "our-model",
        "model": "our-model",
        "prompt_nanos_per_million": "150000000",
        "completion_nanos_per_million": "600000000",
    },
    "webhooks": {
        "id": "alerts",
        "account": "acme",
        "url": "https://example.com/budget-alerts",
        "thresholds": [50, 75, 90, 100],
        "actions": {"notify_admins": 90, "disable_keys": 100},
    },
}
_PUT_KEY: Final = (
    " A new key needs its `sha256` here; POST makes a secret. A management key changes name, "
    "project, subscription, expires_at and metadata of consumption keys."
)
_POST_KEY: Final = (
    "With `sha256` an existing secret is imported, and `secret` is null. A management key "
    "makes consumption keys and sets name, type, project, subscription, expires_at and "
    "metadata."
)
_DELETIONS: Final = {
    "keys": "A key leaves a tombstone: its id and secret stay taken, its usage stays.",
    "grants": "A grant cannot be deleted: balances keep their grants.",
}


def list_doc(kind: str) -> OperationDoc:
    """Return the document of `GET /<kind>`."""
    return OperationDoc(
        f"List {kind}",
        kind,
        _readers(kind),
        {200: json_answer(_page_schema(kind), f"A page of {kind}, by id.")},
        description="Pages are of at most `limit` entries; `next` is the `after` of the next page.",
        query=_PAGE,
        problems=(404,),
    )


def get_doc(kind: str) -> OperationDoc:
    """Return the document of `GET /<kind>/{id}`."""
    return OperationDoc(
        f"Get one of the {kind}",
        kind,
        _readers(kind),
        {200: json_answer(KINDS[kind], "The entry.")},
        query=by_account(kind),
        problems=(404,),
    )


def put_doc(kind: str) -> OperationDoc:
    """Return the document of `PUT /<kind>/{id}`."""
    return OperationDoc(
        f"Create or replace one of the {kind}",
        kind,
        _writers(kind),
        {
            200: json_answer(_written_schema(kind), "The entry was changed, or was equal before."),
            201: json_answer(_written_schema(kind), "The entry was created."),
        },
        description="A field that is left out gets its default. A repeat changes nothing."
        + (_PUT_KEY if kind == "keys" else ""),
        query=by_account(kind),
        body=_entry_body(kind),
        problems=(404, 409, 413, 415),
    )


def post_doc(kind: str) -> OperationDoc:
    """Return the document of `POST /<kind>`."""
    if kind == "keys":
        summary, more = "Issue a key", _POST_KEY
        answers = {
            201: json_answer(ISSUED_KEY, "The key and its secret, which is shown now and never again.")
        }
    else:
        summary = f"Create one of the {kind}"
        more = "The same entry again changes nothing; another one of the same id is a conflict."
        answers = {
            201: json_answer(_written_schema(kind), "The entry was created."),
            200: json_answer(_written_schema(kind), "It is as it was."),
        }
    made = "The id is made when it is left out; a repeat then makes another one. "
    return OperationDoc(
        summary,
        kind,
        _writers(kind),
        answers,
        description=(made if kind in NAMED_BY_US else "") + more,
        query=by_account(kind),
        body=_entry_body(kind),
        problems=(404, 409, 413, 415),
    )


def delete_doc(kind: str) -> OperationDoc:
    """Return the document of `DELETE /<kind>/{id}`."""
    return OperationDoc(
        f"Delete one of the {kind}",
        kind,
        _writers(kind),
        {200: json_answer(_DELETED, "It is gone.")},
        description=_DELETIONS.get(kind, "What another entry names cannot be deleted."),
        query=by_account(kind),
        problems=(404, 409),
    )


def by_account(kind: str) -> tuple[QueryDoc, ...]:
    """Return the parameters of an operation on one entry of a kind."""
    return (_ACCOUNT,) if kind in ACCOUNT_SCOPED else ()


def _readers(kind: str) -> frozenset[CallerRole]:
    return CUSTOMER if kind in READ_BY_MANAGEMENT else OPERATOR


def _writers(kind: str) -> frozenset[CallerRole]:
    return CUSTOMER if kind in WRITTEN_BY_MANAGEMENT else OPERATOR


def _entry_body(kind: str) -> BodyDoc:
    return BodyDoc({"application/json": KINDS[kind]}, _EXAMPLES[kind])


def _page_schema(kind: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["items", "next"],
        "properties": {
            "items": {"type": "array", "items": _entry_schema(kind)},
            "next": {"type": ["string", "null"], "description": "`after` of the next page; null at the end."},
        },
    }


def _written_schema(kind: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "entry": _entry_schema(kind),
        "change": {"$ref": "#/components/schemas/Change"},
    }
    if KINDS[kind] is Webhook:
        words = "Of a webhook that was created; shown now and never again."
        properties["secret"] = {"type": "string", "description": words}
    return {"type": "object", "required": ["entry", "change"], "properties": properties}


def _entry_schema(kind: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{KINDS[kind].__name__}"}


_DELETED: Final = {
    "type": "object",
    "required": ["change"],
    "properties": {"change": {"$ref": "#/components/schemas/Change"}},
}
