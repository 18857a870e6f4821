"""
The catalog: list, read, create, replace, delete entries of each kind, and apply a file.

The operator may do everything. A management key reads what its own account has, and changes nothing but
projects and webhooks (here) and consumption keys (`routes.keys`); what is another's does not exist for it.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

from litestar import Response, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, RawBody

from tollkeeper.alerts.webhooks import Webhooks
from tollkeeper.api.entry_json import (
    ACCOUNT_SCOPED,
    READ_ONLY,
    applied_json,
    change_json,
    check_settable,
    entry_json,
    grant_json,
    key_json,
    plain_entry,
)
from tollkeeper.api.paths import PREFIX
from tollkeeper.catalog.changes import Change
from tollkeeper.catalog.declaration import apply_declaration, parse_declaration
from tollkeeper.catalog.entry_parsing import entry_from
from tollkeeper.catalog.manage import PAGE_SIZE_MAX, Manage
from tollkeeper.domain.catalog import KINDS, Entry, Grant, Key, Plan, Webhook
from tollkeeper.domain.pools import CreditBook
from tollkeeper.errors import BadParameter, Conflict, NotFound
from tollkeeper.http.auth import Principal
from tollkeeper.http.paths import segment_text
from tollkeeper.http.routes import keys
from tollkeeper.http.routes.calls import (
    APPLY_BYTES_MAX,
    BODY_BYTES_MAX,
    OPERATOR,
    AnyRequest,
    BodyDoc,
    OperationDoc,
    QueryDoc,
    account_in_scope,
    answer,
    in_thread,
    json_answer,
    json_object,
    now_us_of,
    operation,
    params_of,
    principal_of,
    service,
    truth,
    whole_number,
)
from tollkeeper.http.routes.catalog_docs import (
    NAMED_BY_US,
    PAGE_SIZE_DEFAULT,
    by_account,
    delete_doc,
    get_doc,
    list_doc,
    post_doc,
    put_doc,
)
from tollkeeper.http.routes.files import toml_of
from tollkeeper.ledger.balances import Balances
from tollkeeper.ports import cursor_of

NAMED_WITHIN_ACCOUNT: Final = ACCOUNT_SCOPED - {"keys"}
"""Kinds whose ids are unique within their account only."""


def handlers() -> list[HTTPRouteHandler]:
    """Return the handlers of all kinds, and of `apply`."""
    routes = [KeyRoutes(kind) if kind == "keys" else KindRoutes(kind) for kind in KINDS]
    return [handler for of_kind in routes for handler in of_kind.handlers()] + [apply]


class KindRoutes:
    """The five operations on the entries of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._query = tuple(query.name for query in by_account(kind))

    def handlers(self) -> list[HTTPRouteHandler]:
        """Return the handlers of this kind."""
        kind = self.kind
        path = f"{PREFIX}/{kind}"
        one = f"{path}/{{entry_id:str}}"
        in_turn = in_thread("management")
        bytes_max = BODY_BYTES_MAX
        listing = get(path, name=f"list_{kind}", opt=operation(list_doc(kind)))
        getting = get(one, name=f"get_{kind}", opt=operation(get_doc(kind)))
        putting = put(one, name=f"put_{kind}", opt=operation(put_doc(kind)), request_max_body_size=bytes_max)
        posting = post(
            path, name=f"post_{kind}", opt=operation(post_doc(kind)), request_max_body_size=bytes_max
        )
        deleting = delete(one, name=f"delete_{kind}", status_code=200, opt=operation(delete_doc(kind)))
        return [
            listing(in_turn(self.list_entries)),
            getting(in_turn(self.get_entry)),
            putting(in_turn(self.put_entry)),
            posting(in_turn(self.post_entry)),
            deleting(in_turn(self.delete_entry)),
        ]

    def list_entries(self, request: AnyRequest) -> Response[bytes]:
        params = params_of(request, "account", "after", "limit")
        principal = principal_of(request)
        account = account_in_scope(principal, params.get("account"))
        limit = whole_number(params.get("limit", str(PAGE_SIZE_DEFAULT)), "limit", 1, PAGE_SIZE_MAX)
        entries = service(request, Manage).list(
            self.kind, account=account, after=params.get("after"), limit=limit
        )
        books: dict[str, CreditBook] = {}
        shown = [entry_view(request, entry, books) for entry in entries if is_visible(principal, entry)]
        return answer({"items": shown, "next": cursor_of(entries[-1]) if len(entries) == limit else None})

    def get_entry(self, request: AnyRequest, entry_id: FromPath[str]) -> Response[bytes]:
        entry_id = segment_text(entry_id)
        account = self._account(request)
        entry = service(request, Manage).get(self.kind, entry_id, account)
        if not is_visible(principal_of(request), entry):
            raise NotFound(f"there is no such entry among the {self.kind}")
        return answer(entry_view(request, entry))

    def put_entry(self, request: AnyRequest, entry_id: FromPath[str], body: RawBody) -> Response[bytes]:
        entry_id = segment_text(entry_id)
        raw = self._raw(request, body)
        id_field = KINDS[self.kind].id_field
        if raw.setdefault(id_field, entry_id) != entry_id:
            raise BadParameter(f"{id_field} is not the one of the path: leave it out", field=id_field)
        entry = self._replacing(request, raw)
        self._check_settable(request, entry, body)
        change = service(request, Manage).put(entry, by=keys.customer_of(principal_of(request)))
        return _written(request, entry, change)

    def post_entry(self, request: AnyRequest, body: RawBody) -> Response[bytes]:
        raw = self._raw(request, body)
        if self.kind in NAMED_BY_US:
            raw.setdefault("id", str(uuid.uuid4()))
        entry, manage = entry_from(self.kind, raw), service(request, Manage)
        self._check_settable(request, entry, body)
        _check_free(manage, entry)
        change = manage.put(entry, by=keys.customer_of(principal_of(request)))
        return _written(request, entry, change)

    def delete_entry(self, request: AnyRequest, entry_id: FromPath[str]) -> Response[bytes]:
        entry_id = segment_text(entry_id)
        account, manage = self._account(request), service(request, Manage)
        change = manage.delete(self.kind, entry_id, account, by=keys.customer_of(principal_of(request)))
        return answer({"change": change_json(change)})

    def _replacing(self, request: AnyRequest, raw: dict[str, Any]) -> Entry:
        """Return the entry that a PUT asks for."""
        return entry_from(self.kind, raw)

    def _check_settable(self, request: AnyRequest, entry: Entry, body: bytes) -> None:
        """Raise `BadParameter` when a new entry states what only answers say; one that exists may come back whole."""
        if self.kind in READ_ONLY and _existing(service(request, Manage), entry) is None:
            check_settable(self.kind, json_object(request, body))

    def _account(self, request: AnyRequest) -> str | None:
        params = params_of(request, *self._query)
        return account_in_scope(principal_of(request), params.get("account"))

    def _raw(self, request: AnyRequest, body: bytes) -> dict[str, Any]:
        """Return the entry that a request states, with its account."""
        params, principal = params_of(request, *self._query), principal_of(request)
        raw = plain_entry(self.kind, json_object(request, body))
        if self.kind not in ACCOUNT_SCOPED:
            return raw
        account, stated = params.get("account"), raw.get("account")
        if account is not None and stated not in (None, account):
            raise BadParameter("account is not the one of the query: leave one of them out", field="account")
        found = account_in_scope(principal, account if stated is None else stated)
        if found is not None:
            raw["account"] = found
        return raw


class KeyRoutes(KindRoutes):
    """The same on keys: a secret is made, and a management key may change little."""

    def post_entry(self, request: AnyRequest, body: RawBody) -> Response[bytes]:
        raw = self._raw(request, body)
        principal, manage = principal_of(request), service(request, Manage)
        if principal.role != "operator":
            raw = keys.new_by_management(manage, principal, raw)
        raw.setdefault("id", str(uuid.uuid4()))
        key = entry_from("keys", raw)
        assert isinstance(key, Key)
        check_settable("keys", json_object(request, body))
        return keys.issued(request, manage.issue_key(key, by=keys.customer_of(principal)))

    def delete_entry(self, request: AnyRequest, entry_id: FromPath[str]) -> Response[bytes]:
        self._account(request)
        keys.check_manageable(service(request, Manage), principal_of(request), entry_id)
        return super().delete_entry(request, entry_id)

    def _replacing(self, request: AnyRequest, raw: dict[str, Any]) -> Entry:
        principal = principal_of(request)
        if principal.role == "operator":
            return super()._replacing(request, raw)
        return keys.changed_by_management(service(request, Manage), principal, raw, now_us_of(request))


@post(
    f"{PREFIX}/apply",
    status_code=200,
    request_max_body_size=APPLY_BYTES_MAX,
    opt=operation(
        OperationDoc(
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
                QueryDoc(
                    "dry_run",
                    "`true` only returns the changes that it would make.",
                    {"type": "boolean", "default": False},
                ),
            ),
            body=BodyDoc(
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
    entries = parse_declaration(toml_of(request, body))
    manage = service(request, Manage)
    return answer(
        applied_json(
            apply_declaration(entries, manage, dry_run=dry_run),
            entries,
            dry_run=dry_run,
            manage=manage,
            webhooks=service(request, Webhooks),
            now_us=now_us_of(request),
        )
    )


def is_visible(principal: Principal, entry: Entry) -> bool:
    """Return whether *principal* may see an entry of its scope: of plans, a customer sees those on sale."""
    return principal.role == "operator" or not isinstance(entry, Plan) or entry.sellable


def entry_view(
    request: AnyRequest, entry: Entry, books: dict[str, CreditBook] | None = None
) -> dict[str, Any]:
    """
    Return *entry* as the caller sees it: without the operator's notes on accounts and plans.

    Args:
        books: The credit books that were read for this request, by account.
    """
    if isinstance(entry, Grant):
        books = {} if books is None else books
        if entry.account not in books:
            books[entry.account] = service(request, Balances).book(entry.account)
        return grant_json(entry, books[entry.account].grant(entry.id))
    if isinstance(entry, Key):
        stored = service(request, Manage).stored_key(entry.account, entry.id)
        return key_json(stored, now_us_of(request))
    shown = entry_json(entry)
    if principal_of(request).role != "operator" and entry.kind in ("accounts", "plans"):
        shown["metadata"] = {}
    return shown


def _existing(manage: Manage, entry: Entry) -> Entry | None:
    account = getattr(entry, "account", None) if entry.kind in NAMED_WITHIN_ACCOUNT else None
    try:
        return manage.get(entry.kind, entry.entry_id, account)
    except NotFound:
        return None


def _check_free(manage: Manage, entry: Entry) -> None:
    old = _existing(manage, entry)
    if old is not None and old != entry:
        raise Conflict(f"{entry.id_field} {entry.entry_id!r} is taken by another entry: PUT replaces it")


def _written(request: AnyRequest, entry: Entry, change: Change) -> Response[bytes]:
    account = getattr(entry, "account", None) if entry.kind in ACCOUNT_SCOPED else None
    stored = service(request, Manage).get(entry.kind, entry.entry_id, account)
    content: dict[str, Any] = {
        "entry": entry_view(request, stored),
        "change": change_json(change, stored),
    }
    if isinstance(stored, Webhook) and change.action == "created":
        content["secret"] = service(request, Webhooks).secret(stored.account, stored.id)
    return answer(content, status=201 if change.action == "created" else 200)
