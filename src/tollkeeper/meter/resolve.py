"""
From decoded events to records: whose each event is, which route it called, and what it costs.

Owners and routes are looked up once per distinct combination of what the events of a batch name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollkeeper.catalog.directory import Directory
from tollkeeper.domain.catalog import Route
from tollkeeper.domain.meter import UNKNOWN_ROUTE
from tollkeeper.meter.arrays import (
    Combinations,
    Int64s,
    combinations,
    dictionary,
    equals,
    ints,
    single,
    text,
)
from tollkeeper.meter.columns import TOKEN_COLUMNS, cost_columns
from tollkeeper.meter.decode import Decoded
from tollkeeper.meter.rejections import REJECTIONS_SHOWN, Rejection
from tollkeeper.record_columns import SCHEMA


class Resolved(NamedTuple):
    """
    The events of a batch that have an owner: record columns, and their places in the caller's batch.

    `rejections` are the first of those that have none.
    """

    table: pa.Table
    indexes: Int64s
    rejections: list[Rejection]


class Owner(NamedTuple):
    """Whose an event is; the profile is that of its key, which decides which routes it can have called."""

    account_id: str
    project_id: str
    key_id: str
    profile: str


_NOBODY: Final = Owner("", "", "", "")


def resolve(
    decoded: Decoded, directory: Directory, received_at_us: int, only_account: str | None = None
) -> Resolved:
    """
    Return the events of *decoded* as records.

    Args:
        only_account: Events of other accounts are rejected as if these did not exist; None takes all.
    """
    events = decoded.columns
    if events.num_rows == 0:
        return Resolved(SCHEMA.empty_table(), decoded.indexes, [])
    named = combinations(events, ("account", "key_id", "project"))
    verdicts = [_owner(directory, values, only_account) for values in named.values]
    owners = [_NOBODY if isinstance(verdict, Rejection) else verdict for verdict in verdicts]
    bad = np.array([isinstance(verdict, Rejection) for verdict in verdicts], dtype=np.bool_)
    rejections = []
    codes, indexes = named.codes, decoded.indexes
    if bad.any():
        for row in np.flatnonzero(bad[codes])[:REJECTIONS_SHOWN]:
            verdict = verdicts[codes[row]]
            assert isinstance(verdict, Rejection)
            rejections.append(verdict._replace(index=int(indexes[row])))
        kept = np.flatnonzero(~bad[codes])
        events = events.take(pa.array(kept))
        codes, indexes = codes[kept], indexes[kept]
    return Resolved(_records(events, codes, owners, directory, received_at_us), indexes, rejections)


def _owner(
    directory: Directory, named: tuple[str | None, ...], only_account: str | None
) -> Owner | Rejection:
    """Return the owner of events that name this account, key and project, or why they have none."""
    account, key_id, project = named
    profile = "native"
    if key_id:
        stored = directory.key(key_id)
        # Requests for another account's key get the same answer as for one that does not exist.
        if stored is None or (only_account is not None and stored.entry.account != only_account):
            return Rejection(0, "key_id", "unknown_key", f"there is no key {key_id[:64]!r}: issue it first")
        if not stored.entry.is_metered:
            return Rejection(
                0,
                "key_id",
                "unknown_key",
                f"key {key_id[:64]!r} is a management key, which makes no requests: name an api key",
            )
        owner = stored.entry.account
        if account and account != owner:
            return Rejection(
                0, "key_id", "unknown_key", f"account {account[:64]!r} has no key {key_id[:64]!r}"
            )
        if project and stored.entry.project and project != stored.entry.project:
            return Rejection(
                0,
                "project",
                "wrong_project",
                f"key {key_id[:64]!r} belongs to another project: leave it out",
            )
        account = owner
        project = stored.entry.project or project
        profile = stored.entry.profile
    assert account
    if (only_account is not None and account != only_account) or directory.account(account) is None:
        return Rejection(0, "account", "unknown_account", f"there is no account {account[:64]!r}: create it")
    if project and not directory.project_exists(account, project):
        return Rejection(
            0,
            "project",
            "unknown_project",
            f"account {account!r} has no project {project[:64]!r}: create it",
        )
    return Owner(account, project or "", key_id or "", profile)


def _records(
    events: pa.Table,
    owner_codes: Int64s,
    owners: Sequence[Owner],
    directory: Directory,
    received_at_us: int,
) -> pa.Table:
    """Return *events* as record columns. Row *i* belongs to `owners[owner_codes[i]]`."""
    n = events.num_rows
    account_id, project_id, key_id, profile = (
        dictionary(owner_codes, [owner[part] for owner in owners]) for part in range(4)
    )
    called = combinations(events.append_column("profile", profile), ("method", "route", "profile"))
    routes = _routes(called, directory)
    cost = cost_columns(events, account_id, routes, called.codes, directory.price_book)
    kind = text(events, "kind")
    kind_of_route = dictionary(called.codes, [route.event_kind for route in routes])
    columns: dict[str, Any] = {
        "account_id": account_id,
        "project_id": project_id,
        "key_id": key_id,
        "received_at_us": pa.array(np.full(n, received_at_us, np.int64)),
        "id": single(events.column("id")),
        "revision": pa.array(np.zeros(n, np.uint16)),
        "sign": pa.array(np.ones(n, np.int8)),
        "amendment_id": dictionary(np.zeros(n, np.int64), [""]).dictionary_decode(),
        "kind": pc.if_else(
            pa.array(equals(kind, "")), kind_of_route.dictionary_decode(), pc.cast(kind, pa.string())
        ).dictionary_encode(),
        "route": dictionary(
            called.codes,
            [_counted(route, path or "") for route, (_, path, _) in zip(routes, called.values, strict=True)],
        ),
        "status": pa.array(ints(events, "status").astype(np.uint16)),
        "latency_us": single(events.column("latency_us")),
        "credits": pa.array(cost.credits),
        "cost_nanos": pa.array(cost.cost_nanos),
        "cost_state": cost.cost_state,
        "price_version": cost.price_version,
        "tags": _tags(events),
    }
    for name in ("method", "error_type", "denied_reason", "model", "cache"):
        columns[name] = text(events, name)
    for name in ("occurred_at_us", "bytes_out", "estimated_cost_nanos", *TOKEN_COLUMNS):
        columns[name] = pa.array(ints(events, name))
    return pa.Table.from_arrays([columns[field.name] for field in SCHEMA], schema=SCHEMA)


def _routes(called: Combinations, directory: Directory) -> list[Route]:
    """Return the policy of each distinct call: method, path and profile."""
    table = directory.route_table()
    return [
        (table.match(method or "", path, profile or "native") if path else None) or UNKNOWN_ROUTE
        for method, path, profile in called.values
    ]


def _counted(route: Route, path: str) -> str:
    """Return the path under which an event is counted: its route's template, so that ids do not multiply rollups."""
    # One that ends with `*` stands for any path, and an unknown route for all. The gate counts under the first all the
    # same (`domain.meter.counted_path`): its callers choose the path, while the sender of an event states a route.
    return path if route.path.endswith("*") else route.path


def _tags(events: pa.Table) -> pa.MapArray:
    tags = single(events.column("tags"))
    if tags.null_count == 0:
        return tags
    # Absent tags are an empty map. Rebuilt from offsets, since maps have no fill_null.
    offsets = tags.offsets.to_numpy(zero_copy_only=False)
    lengths = np.where(tags.is_valid().to_numpy(zero_copy_only=False), np.diff(offsets), 0)
    starts = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    if int(lengths.sum()) == int(offsets[-1] - offsets[0]):
        first, length = int(offsets[0]), int(offsets[-1] - offsets[0])
        return pa.MapArray.from_arrays(
            pa.array(starts), tags.keys.slice(first, length), tags.items.slice(first, length)
        )
    return pa.array([value or [] for value in tags.to_pylist()], tags.type)
