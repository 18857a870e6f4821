"""
The catalog: list, read, create, replace, delete entries of each of the ten kinds, and apply a file.

The operator may do everything. A management key reads what its own account has, and changes nothing but
projects and webhooks (here) and consumption keys (`routes.keys`); what is another's does not exist for it.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

from litestar import Response, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, RawBody

from tollkeeper.api.entry_json import (
    ACCOUNT_SCOPED,
    applied_json,
    change_json,
    entry_json,
    key_json,
    plain_entry,
)
from tollkeeper.api.paths import PREFIX
from tollkeeper.catalog.declaration import apply_declaration, parse_declaration
from tollkeeper.catalog.entry_parsing import entry_from
from tollkeeper.catalog.manage import PAGE_SIZE_MAX, Change
from tollkeeper.domain.catalog import KINDS, Entry, Key, Plan, Webhook
from tollkeeper.errors import BadParameter, Conflict, Malformed, NotFound, UnsupportedMediaType
from tollkeeper.http.auth import Principal
from tollkeeper.http.bodies import decompressed, header
from tollkeeper.http.routes import keys
from tollkeeper.http.routes.calls import (
    APPLY_BYTES_MAX,
    BODY_BYTES_MAX,
    CUSTOMER,
    OPERATOR,
    AnyRequest,
    Endpoint,
    Query,
    Sent,
    account_in_scope,
    answer,
    endpoint,
    in_thread,
    installation_of,
    json_answer,
    json_object,
    params_of,
    principal_of,
    truth,
    whole_number,
)
from tollkeeper.installation import Installation
from tollkeeper.ports import cursor_of

PAGE_SIZE_DEFAULT: Final = 100
NAMED_WITHIN_ACCOUNT: Final = ACCOUNT_SCOPED - {"keys"}
"""Kinds whose ids are unique within their account only."""
READ_BY_MANAGEMENT: Final = ACCOUNT_SCOPED | {"accounts", "plans"}
WRITTEN_BY_MANAGEMENT: Final = frozenset({"projects", "keys", "webhooks"})
_NAMED_BY_US: Final = frozenset({"keys", "grants", "subscriptions", "webhooks"})
"""Kinds whose entries get an id when the request has none."""

_ACCOUNT: Final = Query("account", "The account that the entry belongs to. A management key has its own.")
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


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of all ten kinds, and of `apply`."""
    return [handler for kind in KINDS for handler in _handlers_of(kind)] + [apply]


def _handlers_of(kind: str) -> list[HTTPRouteHandler]:
    name = KINDS[kind].__name__
    readers = CUSTOMER if kind in READ_BY_MANAGEMENT else OPERATOR
    writers = CUSTOMER if kind in WRITTEN_BY_MANAGEMENT else OPERATOR
    by_account = (_ACCOUNT,) if kind in ACCOUNT_SCOPED else ()
    path = f"{PREFIX}/{kind}"
    example = _EXAMPLES[kind]
    entry_body = Sent({"application/json": KINDS[kind]}, example)

    @get(
        path,
        name=f"list_{kind}",
        opt=endpoint(
            Endpoint(
                f"List {kind}",
                kind,
                readers,
                {200: json_answer(_page_schema(name), f"A page of {kind}, by id.")},
                description="Pages are of at most `limit` entries; `next` is the `after` of the next page.",
                query=(
                    Query("account", "Only what this account has."),
                    Query("after", "The `next` of the page before."),
                    Query(
                        "limit",
                        "Entries per page.",
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
    def list_entries(request: AnyRequest) -> Response[bytes]:
        params = params_of(request, "account", "after", "limit")
        principal = principal_of(request)
        account = account_in_scope(principal, params.get("account"))
        limit = whole_number(params.get("limit", str(PAGE_SIZE_DEFAULT)), "limit", 1, PAGE_SIZE_MAX)
        installation = installation_of(request)
        entries = installation.manage.list(kind, account=account, after=params.get("after"), limit=limit)
        shown = [
            entry_view(installation, principal, entry) for entry in entries if is_visible(principal, entry)
        ]
        return answer({"items": shown, "next": cursor_of(entries[-1]) if len(entries) == limit else None})

    @get(
        f"{path}/{{entry_id:str}}",
        name=f"get_{kind}",
        opt=endpoint(
            Endpoint(
                f"Get one of the {kind}",
                kind,
                readers,
                {200: json_answer(KINDS[kind], "The entry.")},
                query=by_account,
                problems=(404,),
            )
        ),
    )
    @in_thread("management")
    def get_entry(request: AnyRequest, entry_id: FromPath[str]) -> Response[bytes]:
        params = params_of(request, *(query.name for query in by_account))
        principal = principal_of(request)
        account = account_in_scope(principal, params.get("account"))
        installation = installation_of(request)
        entry = installation.manage.get(kind, entry_id, account)
        if not is_visible(principal, entry):
            raise NotFound(f"there is no such entry among the {kind}")
        return answer(entry_view(installation, principal, entry))

    @put(
        f"{path}/{{entry_id:str}}",
        name=f"put_{kind}",
        request_max_body_size=BODY_BYTES_MAX,
        opt=endpoint(
            Endpoint(
                f"Create or replace one of the {kind}",
                kind,
                writers,
                {
                    200: json_answer(_written_schema(name), "It was changed, or is as it was."),
                    201: json_answer(_written_schema(name), "It was created."),
                },
                description="A field that is left out gets its default. A repeat changes nothing."
                + (
                    " A new key needs its `sha256` here; POST makes a secret. A management key changes name, "
                    "project, subscription, expires_at and metadata of consumption keys."
                    if kind == "keys"
                    else ""
                ),
                query=by_account,
                body=entry_body,
                problems=(404, 409, 413, 415),
            )
        ),
    )
    @in_thread("management")
    def put_entry(request: AnyRequest, entry_id: FromPath[str], body: RawBody) -> Response[bytes]:
        params = params_of(request, *(query.name for query in by_account))
        installation, principal = installation_of(request), principal_of(request)
        raw = _raw_entry(kind, principal, json_object(request, body), params.get("account"))
        id_field = KINDS[kind].id_field
        if raw.setdefault(id_field, entry_id) != entry_id:
            raise BadParameter(f"{id_field} is not the one of the path: leave it out", field=id_field)
        if kind == "keys" and principal.role != "operator":
            entry: Entry = keys.changed_by_management(installation, principal, raw)
        else:
            entry = entry_from(kind, raw)
        change = installation.manage.put(entry, by=keys.customer_of(principal))
        return _written(installation, principal, entry, change)

    @post(
        path,
        name=f"post_{kind}",
        request_max_body_size=BODY_BYTES_MAX,
        opt=endpoint(
            Endpoint(
                "Issue a key" if kind == "keys" else f"Create one of the {kind}",
                kind,
                writers,
                {
                    201: json_answer(
                        issued_schema() if kind == "keys" else _written_schema(name),
                        "The key and its secret, which is shown now and never again."
                        if kind == "keys"
                        else "It was created.",
                    ),
                }
                | ({} if kind == "keys" else {200: json_answer(_written_schema(name), "It is as it was.")}),
                description=(
                    "The id is made when it is left out; a repeat then makes another one. "
                    if kind in _NAMED_BY_US
                    else ""
                )
                + (
                    "With `sha256` an existing secret is imported, and `secret` is null. A management key "
                    "makes consumption keys and sets name, type, project, subscription, expires_at and "
                    "metadata."
                    if kind == "keys"
                    else "The same entry again changes nothing; another one of the same id is a conflict."
                ),
                query=by_account,
                body=entry_body,
                problems=(404, 409, 413, 415),
            )
        ),
    )
    @in_thread("management")
    def post_entry(request: AnyRequest, body: RawBody) -> Response[bytes]:
        params = params_of(request, *(query.name for query in by_account))
        installation, principal = installation_of(request), principal_of(request)
        raw = _raw_entry(kind, principal, json_object(request, body), params.get("account"))
        if kind == "keys":
            if principal.role != "operator":
                raw = keys.new_by_management(installation, principal, raw)
            raw.setdefault("id", str(uuid.uuid4()))
            key = entry_from(kind, raw)
            assert isinstance(key, Key)
            issued = installation.manage.issue_key(key, by=keys.customer_of(principal))
            return keys.issued(installation, issued)
        if kind in _NAMED_BY_US:
            raw.setdefault("id", str(uuid.uuid4()))
        entry = entry_from(kind, raw)
        _check_free(installation, entry)
        change = installation.manage.put(entry, by=keys.customer_of(principal))
        return _written(installation, principal, entry, change)

    @delete(
        f"{path}/{{entry_id:str}}",
        name=f"delete_{kind}",
        status_code=200,
        opt=endpoint(
            Endpoint(
                f"Delete one of the {kind}",
                kind,
                writers,
                {200: json_answer(_deleted_schema(), "It is gone.")},
                description=(
                    "A key leaves a tombstone: its id and secret stay taken, its usage stays."
                    if kind == "keys"
                    else "Balances never forget: a grant cannot be deleted."
                    if kind == "grants"
                    else "What another entry names cannot be deleted."
                ),
                query=by_account,
                problems=(404, 409),
            )
        ),
    )
    @in_thread("management")
    def delete_entry(request: AnyRequest, entry_id: FromPath[str]) -> Response[bytes]:
        params = params_of(request, *(query.name for query in by_account))
        installation, principal = installation_of(request), principal_of(request)
        account = account_in_scope(principal, params.get("account"))
        if kind == "keys":
            keys.check_manageable(installation, principal, entry_id)
        change = installation.manage.delete(kind, entry_id, account, by=keys.customer_of(principal))
        return answer({"change": change_json(change)})

    return [list_entries, get_entry, put_entry, post_entry, delete_entry]


@post(
    f"{PREFIX}/apply",
    status_code=200,
    request_max_body_size=APPLY_BYTES_MAX,
    opt=endpoint(
        Endpoint(
            "Apply a declarative file",
            "apply",
            OPERATOR,
            {
                200: json_answer(
                    {
                        "type": "object",
                        "required": ["dry_run", "changes", "issued"],
                        "properties": {
                            "dry_run": {"type": "boolean"},
                            "changes": {"type": "array", "items": {"$ref": "#/components/schemas/Change"}},
                            "issued": {
                                "type": "array",
                                "items": {
                                    "anyOf": [
                                        {"$ref": "#/components/schemas/IssuedKey"},
                                        {"$ref": "#/components/schemas/IssuedWebhook"},
                                    ]
                                },
                                "description": "New keys and webhooks with their secrets, shown now and "
                                "never again.",
                            },
                        },
                    },
                    "What changed.",
                )
            },
            description="All of the file or nothing. A repeat changes nothing; what is left out stays.",
            query=(
                Query(
                    "dry_run",
                    "`true` only tells what would change.",
                    {"type": "boolean", "default": False},
                ),
            ),
            body=Sent(
                {"application/toml": {"type": "string"}, "text/plain": {"type": "string"}},
                '[[accounts]]\nid = "acme"\nname = "Acme"\n',
            ),
            problems=(409, 413, 415),
        )
    ),
)
@in_thread("management")
def apply(request: AnyRequest, body: RawBody) -> Response[bytes]:
    """Apply a declarative file."""
    params = params_of(request, "dry_run")
    dry_run = truth(params.get("dry_run", "false"), "dry_run")
    headers = request.scope["headers"]
    media_type = header(headers, b"content-type").partition(b";")[0].strip().lower()
    if media_type not in (b"application/toml", b"text/plain", b"text/toml", b""):
        raise UnsupportedMediaType("content-type is application/toml or text/plain")
    try:
        text = decompressed(body, headers, APPLY_BYTES_MAX).decode()
    except UnicodeDecodeError:
        raise Malformed("the file is not UTF-8") from None
    installation = installation_of(request)
    entries = parse_declaration(text)
    applied = apply_declaration(entries, installation.manage, dry_run=dry_run)
    return answer(
        applied_json(
            applied,
            entries,
            dry_run=dry_run,
            manage=installation.manage,
            webhooks=installation.webhooks,
            now_us=installation.clock.now_us(),
        )
    )


def is_visible(principal: Principal, entry: Entry) -> bool:
    """Return whether *principal* may see an entry of its scope: of plans, a customer sees those on sale."""
    return principal.role == "operator" or not isinstance(entry, Plan) or entry.sellable


def entry_view(installation: Installation, principal: Principal, entry: Entry) -> dict[str, Any]:
    """Return *entry* as *principal* sees it: without the operator's notes on accounts and plans."""
    if isinstance(entry, Key):
        stored = installation.manage.stored_key(entry.account, entry.id)
        return key_json(stored, installation.clock.now_us())
    shown = entry_json(entry)
    if principal.role != "operator" and entry.kind in ("accounts", "plans"):
        shown["metadata"] = {}
    return shown


def _raw_entry(kind: str, principal: Principal, body: dict[str, Any], account: str | None) -> dict[str, Any]:
    """Return the entry that a request states, with its account."""
    raw = plain_entry(kind, body)
    if kind not in ACCOUNT_SCOPED:
        return raw
    stated = raw.get("account")
    if account is not None and stated not in (None, account):
        raise BadParameter("account is not the one of the query: leave one of them out", field="account")
    found = account_in_scope(principal, account if stated is None else stated)
    if found is not None:
        raw["account"] = found
    return raw


def _check_free(installation: Installation, entry: Entry) -> None:
    account = getattr(entry, "account", None) if entry.kind in NAMED_WITHIN_ACCOUNT else None
    try:
        old = installation.manage.get(entry.kind, entry.entry_id, account)
    except NotFound:
        return
    if old != entry:
        raise Conflict(f"{entry.id_field} {entry.entry_id!r} is taken by another entry: PUT replaces it")


def _written(
    installation: Installation, principal: Principal, entry: Entry, change: Change
) -> Response[bytes]:
    account = getattr(entry, "account", None) if entry.kind in ACCOUNT_SCOPED else None
    stored = installation.manage.get(entry.kind, entry.entry_id, account)
    content: dict[str, Any] = {
        "entry": entry_view(installation, principal, stored),
        "change": change_json(change, stored),
    }
    if isinstance(stored, Webhook) and change.action == "created":
        content["secret"] = installation.webhooks.secret(stored.account, stored.id)
    return answer(content, status=201 if change.action == "created" else 200)


def issued_schema() -> dict[str, Any]:
    """Return the schema of a key that was just made."""
    return {"$ref": "#/components/schemas/IssuedKey"}


def _page_schema(name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["items", "next"],
        "properties": {
            "items": {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}},
            "next": {"type": ["string", "null"], "description": "`after` of the next page; null at the end."},
        },
    }


def _written_schema(name: str) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "entry": {"$ref": f"#/components/schemas/{name}"},
        "change": {"$ref": "#/components/schemas/Change"},
    }
    if name == Webhook.__name__:
        words = "Of a webhook that was created; shown now and never again."
        properties["secret"] = {"type": "string", "description": words}
    return {"type": "object", "required": ["entry", "change"], "properties": properties}


def _deleted_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["change"],
        "properties": {"change": {"$ref": "#/components/schemas/Change"}},
    }
