"""
What is set up, as JSON, wherever it is: a data directory or a running server answer alike.

Entries are mappings in the form of the API: money as text, instants in UTC, a key without its hash but with
its prefix and last use.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

import msgspec

from tollkeeper.api.entry_json import (
    ACCOUNT_SCOPED,
    READ_ONLY,
    change_json,
    check_settable,
    entry_json,
    grant_json,
    issued_key_json,
    key_json,
    plain_entry,
)
from tollkeeper.console.target import open_data, server_of
from tollkeeper.domain.catalog import KINDS, Entry, Grant, Key, Webhook

if TYPE_CHECKING:
    from tollkeeper.catalog.changes import IssuedKey
    from tollkeeper.console.server_client import Server
    from tollkeeper.embedded import Tollkeeper

PAGE_SIZE: Final = 1_000

Json = dict[str, Any]


class CatalogTarget(Protocol):
    """
    The use cases of the catalog. Entries and answers are those of the API.

    Raises:
        TollkeeperError, Failure: A call was refused: why and what to do.
    """

    def list(self, kind: str, account: str | None) -> Iterator[Json]:
        """Yield all entries of *kind*, by id."""

    def get(self, kind: str, entry_id: str, account: str | None) -> Json:
        """Return one entry."""

    def put(self, kind: str, entry_id: str, fields: Mapping[str, Any]) -> Json:
        """Create or replace an entry; return `{"entry": …, "change": …}`, with a new webhook's `secret`."""

    def delete(self, kind: str, entry_id: str, account: str | None) -> Json:
        """Delete an entry; return the change."""

    def issue(self, fields: Mapping[str, Any]) -> Json:
        """Make a key; return `{"entry": …, "secret": …}`."""

    def rotate(self, key_id: str, account: str | None, overlap_s: int, new_id: str | None) -> Json:
        """Make a key in the place of another; return as `issue`."""

    def set_state(self, key_id: str, account: str | None, state: str) -> Json:
        """Set a key's state; return the change."""

    def key_status(self, key_id: str, account: str | None, params: Mapping[str, str]) -> Json:
        """Return what a key has left; *params* name the model and tags (`tag.user`) of values that count apart."""

    def revoke_grant(self, grant_id: str, account: str | None) -> Json:
        """Take a grant back; return the change."""

    def adjust(self, fields: Mapping[str, Any]) -> Json:
        """Move an account's money; return `{"adjustment": …, "repeated": …, "warnings": […]}`."""

    def top_up(self, budget: str, account: str, fields: Mapping[str, Any]) -> Json:
        """Add to a budget once; return the top-up as it is in force."""


@contextmanager
def catalog_of(
    data: str | None, url: str | None, key: str | None, *, create: bool = False
) -> Iterator[CatalogTarget]:
    """Yield the catalog of the directory or server that a command line names; see `console.target`."""
    server = server_of(data, url, key)
    if server is not None:
        yield ServerCatalog(server)
        return
    with open_data(data, create=create) as toll:
        yield DataCatalog(toll)


class DataCatalog:
    """The catalog of a data directory that this process has open."""

    def __init__(self, toll: Tollkeeper) -> None:
        self._toll = toll
        self._manage = toll.manage
        self._now_us = toll.installation.clock.now_us

    def list(self, kind: str, account: str | None) -> Iterator[Json]:
        from tollkeeper.ports import cursor_of

        after: str | None = None
        while True:
            page = self._manage.list(kind, account=account, after=after, limit=PAGE_SIZE)
            yield from (self._shown(entry) for entry in page)
            if len(page) < PAGE_SIZE:
                return
            after = cursor_of(page[-1])

    def get(self, kind: str, entry_id: str, account: str | None) -> Json:
        return self._shown(self._manage.get(kind, entry_id, account))

    def put(self, kind: str, entry_id: str, fields: Mapping[str, Any]) -> Json:
        from tollkeeper.catalog.entry_parsing import entry_from
        from tollkeeper.errors import NotFound

        entry = entry_from(kind, plain_entry(kind, {KINDS[kind].id_field: entry_id, **fields}))
        if kind in READ_ONLY:
            try:
                self._manage.get(kind, entry_id, getattr(entry, "account", None))
            except NotFound:
                check_settable(kind, fields)
        change = self._manage.put(entry)
        answer: Json = {"entry": self._shown(entry), "change": change_json(change, entry)}
        if isinstance(entry, Webhook) and change.action == "created":
            answer["secret"] = self._toll.installation.webhooks.secret(entry.account, entry.id)
        return answer

    def delete(self, kind: str, entry_id: str, account: str | None) -> Json:
        return change_json(self._manage.delete(kind, entry_id, account))

    def issue(self, fields: Mapping[str, Any]) -> Json:
        from tollkeeper.catalog.entry_parsing import entry_from

        key = entry_from("keys", plain_entry("keys", {"id": str(uuid.uuid4()), **fields}))
        assert isinstance(key, Key)
        check_settable("keys", fields)
        return self._issued(self._manage.issue_key(key))

    def rotate(self, key_id: str, account: str | None, overlap_s: int, new_id: str | None) -> Json:
        return self._issued(self._manage.rotate_key(account, key_id, overlap_s, new_id=new_id))

    def set_state(self, key_id: str, account: str | None, state: Any) -> Json:
        return change_json(self._manage.set_key_state(account, key_id, state))

    def key_status(self, key_id: str, account: str | None, params: Mapping[str, str]) -> Json:
        status: Json = msgspec.to_builtins(self._toll.key_status(key_id, account=account, params=params))
        return status

    def revoke_grant(self, grant_id: str, account: str | None) -> Json:
        return change_json(self._manage.revoke_grant(account, grant_id))

    def adjust(self, fields: Mapping[str, Any]) -> Json:
        from tollkeeper.api.adjustments import adjustment_answer, adjustment_of

        adjusted = self._toll.installation.adjustments.post(adjustment_of(fields))
        answer: Json = msgspec.to_builtins(adjustment_answer(adjusted))
        return answer

    def top_up(self, budget: str, account: str, fields: Mapping[str, Any]) -> Json:
        posted: Json = msgspec.to_builtins(self._toll.top_up(account, budget, **fields))
        return posted

    def _shown(self, entry: Entry) -> Json:
        if isinstance(entry, Grant):
            return grant_json(entry, self._toll.installation.ledger.book(entry.account)[0].grant(entry.id))
        if not isinstance(entry, Key):
            return entry_json(entry)
        return key_json(self._manage.stored_key(entry.account, entry.id), self._now_us())

    def _issued(self, issued: IssuedKey) -> Json:
        return issued_key_json(self._manage, issued, self._now_us())


class ServerCatalog:
    """The catalog of a running server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def list(self, kind: str, account: str | None) -> Iterator[Json]:
        query = [("limit", str(PAGE_SIZE))] + ([("account", account)] if account else [])
        following: list[tuple[str, str]] = []
        while True:
            page = self._server.call("GET", f"/{kind}", query=[*query, *following])
            yield from page["items"]
            if page["next"] is None:
                return
            following = [("after", page["next"])]

    def get(self, kind: str, entry_id: str, account: str | None) -> Json:
        return self._call("GET", kind, entry_id, account)

    def put(self, kind: str, entry_id: str, fields: Mapping[str, Any]) -> Json:
        return self._call("PUT", kind, entry_id, None, body=fields)

    def delete(self, kind: str, entry_id: str, account: str | None) -> Json:
        change: Json = self._call("DELETE", kind, entry_id, account)["change"]
        return change

    def issue(self, fields: Mapping[str, Any]) -> Json:
        issued: Json = self._server.call("POST", "/keys", body=msgspec.json.encode(fields))
        return issued

    def rotate(self, key_id: str, account: str | None, overlap_s: int, new_id: str | None) -> Json:
        named = {} if new_id is None else {"id": new_id}
        return self._call("POST", "keys", key_id, account, "/rotate", {"overlap_s": overlap_s, **named})

    def set_state(self, key_id: str, account: str | None, state: str) -> Json:
        change: Json = self._call("POST", "keys", key_id, account, "/state", {"state": state})["change"]
        return change

    def key_status(self, key_id: str, account: str | None, params: Mapping[str, str]) -> Json:
        query = [*params.items(), *([("account", account)] if account else [])]
        status: Json = self._server.call("GET", f"/keys/{quote(key_id, safe='')}/state", query=query)
        return status

    def revoke_grant(self, grant_id: str, account: str | None) -> Json:
        change: Json = self._call("POST", "grants", grant_id, account, "/revoke")["change"]
        return change

    def adjust(self, fields: Mapping[str, Any]) -> Json:
        answer: Json = self._server.call("POST", "/adjustments", body=msgspec.json.encode(fields))
        return answer

    def top_up(self, budget: str, account: str, fields: Mapping[str, Any]) -> Json:
        return self._call("POST", "budgets", budget, account, "/top-up", fields)

    def _call(
        self,
        method: str,
        kind: str,
        entry_id: str,
        account: str | None,
        action: str = "",
        body: Mapping[str, Any] | None = None,
    ) -> Json:
        answer: Json = self._server.call(
            method,
            f"/{kind}/{quote(entry_id, safe='')}{action}",
            query=[("account", account)] if account and kind in ACCOUNT_SCOPED else [],
            body=None if body is None else msgspec.json.encode(body),
        )
        return answer
