"""
Ingest: batches of meter events, from columns to the ledger, without an object per event.

A batch is resolved (whose is each event?), priced, checked against the ids that exist, summed per counter,
and handed to the committer as one piece. A bad event never sinks the others: the answer names it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollkeeper.catalog.directory import Directory
from tollkeeper.clock import Clock
from tollkeeper.domain.bookings import CounterAt
from tollkeeper.domain.catalog import Route
from tollkeeper.domain.entitlements import CREDIT_COUNTER
from tollkeeper.domain.events import NOT_OF_BODY, PRICE_OF_BODY, RECORD_FIELDS, same_body
from tollkeeper.domain.labels import LABELS, OTHER
from tollkeeper.errors import Unavailable
from tollkeeper.ledger.commit_future import CommitFuture
from tollkeeper.ledger.commit_tasks import Batch, Stale
from tollkeeper.ledger.committer import Committer
from tollkeeper.ledger.labels import Labels
from tollkeeper.ledger.pending import SEPARATOR, TOO_MANY, Pending
from tollkeeper.meter.columns import price_columns
from tollkeeper.meter.decode import REJECTIONS_SHOWN, Decoded, Rejection
from tollkeeper.ports import UsageStore
from tollkeeper.record_columns import SCHEMA, records_of, to_ipc

STALE_TRIES: Final = 20

Int64s = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class IngestResult(NamedTuple):
    """
    What became of a batch. `accepted + duplicates + rejected` is the number of its events.

    `rejections` are the first `decode.REJECTIONS_SHOWN` of those that were not taken, in order.

    A duplicate is an event whose id is known with the same body: it counted the first time, and only then.
    """

    accepted: int
    duplicates: int
    rejections: list[Rejection]
    rejected: int


class Resolved(NamedTuple):
    """
    The events of a batch that have an owner: record columns, and their places in the caller's batch.

    `rejections` are the first of those that have none.
    """

    table: pa.Table
    indexes: Int64s
    rejections: list[Rejection]


class Ingest:
    """Takes decoded batches. Blocking: callers on an event loop use a thread. Any thread may call."""

    def __init__(
        self,
        directory: Directory,
        store: UsageStore,
        pending: Pending,
        committer: Committer,
        clock: Clock,
        labels: Labels,
    ) -> None:
        self._directory = directory
        self._store = store
        self._pending = pending
        self._committer = committer
        self._clock = clock
        self._labels = labels
        self._counting = threading.Lock()
        self.accepted_count = self.duplicate_count = self.rejected_count = 0

    def take(self, decoded: Decoded, *, account_id: str | None = None) -> IngestResult:
        """
        Book a batch; when this returns, what was accepted is durable.

        Args:
            account_id: Only events of this account are taken (a management key's); None takes all.

        Raises:
            Unavailable: A store failed, or too much waits already. Nothing of the batch was booked, or its
                outcome is unknown: the same batch again is safe, what was booked counts as duplicate.
        """
        result = self._take(decoded, account_id)
        with self._counting:
            self.accepted_count += result.accepted
            self.duplicate_count += result.duplicates
            self.rejected_count += result.rejected
        return result

    def _take(self, decoded: Decoded, account_id: str | None) -> IngestResult:
        if self._pending.is_full:
            raise Unavailable(TOO_MANY)
        for _ in range(STALE_TRIES):
            version = self._committer.scopes_version
            resolved = self._resolve(decoded, account_id)
            rejections = decoded.rejections + resolved.rejections
            rejected = decoded.count - resolved.table.num_rows
            with self._pending.looking_up():
                fresh, duplicates, conflicts = self._dedupe(resolved)
                # Each list has its first, so the first of all of them are among these.
                rejections = sorted(rejections + conflicts)[:REJECTIONS_SHOWN]
                rejected += resolved.table.num_rows - fresh.num_rows - duplicates
                if fresh.num_rows == 0:
                    return IngestResult(0, duplicates, rejections, rejected)
                # Last, so that repeats are compared and prices found by what was sent.
                fresh = self._labels.of_table(fresh)
                future = CommitFuture()
                self._committer.submit(
                    Batch(
                        fresh,
                        to_ipc(fresh),
                        _keys(fresh),
                        set(fresh.column("account_id").unique().to_pylist()),
                        self.charges(fresh),
                        version,
                        future,
                    )
                )
                try:
                    future.wait()
                except Stale:
                    continue  # An id of the batch was booked meanwhile, or a budget changed: look again.
            return IngestResult(fresh.num_rows, duplicates, rejections, rejected)
        raise Unavailable("The same ids keep coming in from elsewhere. Try again.")

    # -- whose, what, how much ------------------------------------------------------------------------

    def _resolve(self, decoded: Decoded, only_account: str | None) -> Resolved:
        events = decoded.columns
        n = events.num_rows
        if n == 0:
            return Resolved(SCHEMA.empty_table(), decoded.indexes, [])
        owners = _combinations(events, ("account", "key_id", "project"))
        verdicts = [self._owner(values, only_account) for values in owners.values]
        bad = np.array([isinstance(v, Rejection) for v in verdicts], dtype=np.bool_)
        rejections = []
        if bad.any():
            for row in np.flatnonzero(bad[owners.codes])[:REJECTIONS_SHOWN]:
                verdict = verdicts[owners.codes[row]]
                assert isinstance(verdict, Rejection)
                rejections.append(verdict._replace(index=int(decoded.indexes[row])))
            keep = np.flatnonzero(~bad[owners.codes])
            events = events.take(pa.array(keep))
            codes = owners.codes[keep]
            indexes = decoded.indexes[keep]
        else:
            codes, indexes = owners.codes, decoded.indexes
        names = [v if not isinstance(v, Rejection) else ("", "", "", "") for v in verdicts]
        return Resolved(self._records(events, codes, names), indexes, rejections)

    def _owner(
        self, named: tuple[str | None, ...], only_account: str | None
    ) -> tuple[str, str, str, str] | Rejection:
        """Return account, project, key and profile of events that name account, key and project, or why not."""
        account, key_id, project = named
        profile = "native"
        if key_id:
            stored = self._directory.key(key_id)
            # Whether another account has such a key is none of the caller's business: the same answer.
            if stored is None or (only_account is not None and stored.entry.account != only_account):
                return Rejection(
                    0, "key_id", "unknown_key", f"there is no key {key_id[:64]!r}: issue it first"
                )
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
        if (only_account is not None and account != only_account) or self._directory.account(account) is None:
            return Rejection(
                0, "account", "unknown_account", f"there is no account {account[:64]!r}: create it"
            )
        if project and not self._directory.project_exists(account, project):
            return Rejection(
                0,
                "project",
                "unknown_project",
                f"account {account!r} has no project {project[:64]!r}: create it",
            )
        return account, project or "", key_id or "", profile

    def _records(self, events: pa.Table, owner_codes: Int64s, owners: Sequence[tuple[str, ...]]) -> pa.Table:
        n = events.num_rows
        received_at_us = self._clock.now_us()
        account_id, project_id, key_id, profile = (
            _dictionary(owner_codes, [owner[part] for owner in owners]) for part in range(4)
        )
        occurred = _ints(events, "occurred_at_us")
        status = _ints(events, "status")
        tokens = [
            _ints(events, name)
            for name in ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "reasoning_tokens")
        ]
        model = _text(events, "model")
        cache = _text(events, "cache")
        routes = self._routes(events, profile)
        prices = price_columns(model, account_id, occurred, tokens, self._directory.price_book)

        free = routes.free | (_mask_equal(cache, "hit"))
        failed = (status >= 400) | (_mask_present(events, "denied_reason"))
        route_nanos = np.where(failed, 0, routes.price_nanos)
        token_count = tokens[0] + tokens[1] + tokens[2] + tokens[3]
        # As `Gate._cost` does for one request, and `domain.pricing.uses_model`.
        metered = ((token_count > 0) | ~failed) & ~_mask_equal(model, "")
        given = _present(events, "cost_nanos")
        estimated = _present(events, "estimated_cost_nanos") & ~given
        estimate = _ints(events, "estimated_cost_nanos")
        known = prices.known | ~metered
        cost = np.select(
            [given, estimated, free],
            [_ints(events, "cost_nanos"), estimate, np.zeros(n, np.int64)],
            route_nanos + np.where(metered & prices.known, prices.cost_nanos, 0),
        )
        basis = metered | routes.known
        state = np.select([given, estimated, free | ~basis, ~known], [0, 1, 2, 3], 4)
        version_of_model = pc.fill_null(pc.cast(prices.price_version, pa.string()), "")
        by_model = pa.array((state == 4) & metered)
        by_route = pa.array((state == 4) & ~metered)
        version = pc.if_else(by_model, version_of_model, pc.if_else(by_route, routes.version, ""))
        credits = np.where(
            _present(events, "credits"),
            _ints(events, "credits"),
            np.where(failed | routes.free, 0, routes.credits),
        )
        kind = pc.if_else(
            pa.array(_mask_present(events, "kind")), pc.cast(_text(events, "kind"), pa.string()), routes.kind
        )
        columns: dict[str, Any] = {
            "account_id": account_id,
            "project_id": project_id,
            "key_id": key_id,
            "occurred_at_us": pa.array(occurred),
            "received_at_us": pa.array(np.full(n, received_at_us, np.int64)),
            "id": _single(events.column("id")),
            "revision": pa.array(np.zeros(n, np.uint16)),
            "sign": pa.array(np.ones(n, np.int8)),
            "amendment_id": _dictionary(np.zeros(n, np.int64), [""]).dictionary_decode(),
            "kind": kind.dictionary_encode(),
            "method": _text(events, "method"),
            "route": routes.template,
            "status": pa.array(status.astype(np.uint16)),
            "error_type": _text(events, "error_type"),
            "denied_reason": _text(events, "denied_reason"),
            "latency_us": _single(events.column("latency_us")),
            "bytes_out": pa.array(_ints(events, "bytes_out")),
            "model": model,
            "prompt_tokens": pa.array(tokens[0]),
            "cached_prompt_tokens": pa.array(tokens[1]),
            "completion_tokens": pa.array(tokens[2]),
            "reasoning_tokens": pa.array(tokens[3]),
            "cache": cache,
            "credits": pa.array(credits),
            "cost_nanos": pa.array(cost),
            "estimated_cost_nanos": pa.array(estimate),
            "cost_state": _dictionary(
                state.astype(np.int64), ["given", "estimated", "free", "unpriced", "priced"]
            ),
            "price_version": version.dictionary_encode(),
            "tags": _tags(events),
        }
        return pa.Table.from_arrays([columns[field.name] for field in SCHEMA], schema=SCHEMA)

    def _routes(self, events: pa.Table, profile: pa.DictionaryArray) -> _RouteColumns:
        table = self._directory.route_table()
        combos = _combinations(events.append_column("profile", profile), ("method", "route", "profile"))
        found: list[Route | None] = [
            None if not path else table.match(method or "", path, profile_name or "native")
            for method, path, profile_name in combos.values
        ]
        paths = [path or "" for _, path, _ in combos.values]
        at = combos.codes

        def ints(values: list[int]) -> Int64s:
            return np.array(values, dtype=np.int64)[at]

        return _RouteColumns(
            known=np.array([route is not None for route in found], dtype=np.bool_)[at],
            free=np.array([route is not None and route.free for route in found], dtype=np.bool_)[at],
            price_nanos=ints([route.price_nanos if route else 0 for route in found]),
            credits=ints([route.credits if route else 0 for route in found]),
            kind=_dictionary(
                at, [route.event_kind if route else "request" for route in found]
            ).dictionary_decode(),
            # Known routes are counted under their template, so that ids in paths do not multiply rollups.
            template=_dictionary(
                at,
                [
                    route.path if route and not route.path.endswith("*") else path
                    for route, path in zip(found, paths, strict=True)
                ],
            ),
            version=_dictionary(
                at, [f"route:{route.id}" if route else "" for route in found]
            ).dictionary_decode(),
        )

    # -- dedupe ---------------------------------------------------------------------------------------

    def _dedupe(self, resolved: Resolved) -> tuple[pa.Table, int, list[Rejection]]:
        """Return the rows that are new, how many are repeats, and the rows that contradict a known event."""
        table = resolved.table
        if table.num_rows == 0:
            return table, 0, []
        keys = _keys(table)
        in_store = self._store.known_ids(table.select(["account_id", "id"]))
        in_pending = not self._pending.disjoint(keys)
        if not in_store.num_rows and not in_pending and len(set(keys)) == len(keys):
            return table, 0, []
        column = pa.array(keys)
        known = _true(pc.is_in(column, value_set=_key_column(in_store)))
        if in_pending:
            in_pending_keys = self._pending.known(keys)
            known |= np.fromiter((key in in_pending_keys for key in keys), np.bool_, len(keys))
        # Of an id that is new, the first row of the batch is the event, and the others are doubtful.
        codes = column.dictionary_encode().indices.to_numpy()
        first_row = np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))[codes]
        fresh = ~known & (first_row == np.arange(len(keys)))
        doubtful = np.flatnonzero(~fresh)
        pending = SCHEMA.empty_table()
        if in_pending:
            pending = self._pending.record_columns(in_pending_keys)
            # Asked for after the pending ones, since what is no longer pending is in the store.
            in_store = table.filter(pa.array(known)).select(["account_id", "id"])
        others = [
            pending,
            self._store.record_columns(in_store),
            table.take(pa.array(np.unique(first_row[~fresh & ~known]))),
        ]
        repeats = _repeats(table.take(pa.array(doubtful)), pa.concat_tables(others))
        if in_pending:
            # What cannot be compared any more counted: a retry of it must not be sent under another id.
            repeats |= np.array([self._pending.is_set_aside(keys[row]) for row in doubtful], np.bool_)
        conflicts = [
            Rejection(
                int(resolved.indexes[row]),
                "id",
                "event_conflict",
                "this id names another event or an open hold: use a new id, or send a correction",
            )
            for row in doubtful[~repeats][:REJECTIONS_SHOWN]
        ]
        return table.filter(pa.array(fresh)), int(repeats.sum()), conflicts

    # -- charges --------------------------------------------------------------------------------------

    def charges(self, table: pa.Table) -> dict[CounterAt, int]:
        """Return what the records of *table* (`columns.SCHEMA`) charge, summed per counter."""
        directory = self._directory
        combos = _combinations(table, ("account_id", "project_id", "key_id"))
        scopes = [directory.scopes(*(value or "" for value in values)) for values in combos.values]
        charges: dict[CounterAt, int] = {}
        if not any(scope.budgets or scope.draws_on_credit for scope in scopes):
            return charges
        units = _units(table)
        occurred = _ints(table, "occurred_at_us")
        order = np.argsort(combos.codes, kind="stable")
        ends = np.cumsum(np.bincount(combos.codes, minlength=len(scopes)))
        for code, scope in enumerate(scopes):
            rows = order[(ends[code - 1] if code else 0) : ends[code]]
            account_id = combos.values[code][0] or ""
            if scope.draws_on_credit:
                at = (account_id, CREDIT_COUNTER, 0)
                charges[at] = charges.get(at, 0) + int(units["nanos"][rows].sum())
            for budget in scope.budgets:
                amounts = units[budget.unit]
                active_from_us = directory.active_from_us(account_id, budget.counter_id)
                left = rows
                while len(left):
                    times = occurred[left]
                    start_us, end_us = budget.span_us(int(times.min()))
                    inside = times < end_us
                    if start_us >= active_from_us:
                        at = (account_id, budget.counter_id, start_us)
                        charges[at] = charges.get(at, 0) + int(amounts[left[inside]].sum())
                    left = left[~inside]
        return charges


class _Combinations(NamedTuple):
    """The distinct values of some columns together: *codes* is, per row, the place in *values*."""

    values: list[tuple[str | None, ...]]
    codes: Int64s


class _RouteColumns(NamedTuple):
    known: Mask
    free: Mask
    price_nanos: Int64s
    credits: Int64s
    kind: pa.Array
    template: pa.DictionaryArray
    version: pa.Array


def _combinations(table: pa.Table, names: Sequence[str]) -> _Combinations:
    combined: Int64s = np.zeros(table.num_rows, np.int64)
    dictionaries: list[list[str | None]] = []
    for name in names:
        column = _single(table.column(name))
        values: list[str | None] = [*column.dictionary.to_pylist(), None]
        indices = pc.fill_null(column.indices, len(values) - 1).to_numpy(zero_copy_only=False)
        combined = combined * len(values) + indices
        dictionaries.append(values)
    distinct, codes = np.unique(combined, return_inverse=True)
    combos = []
    for code in distinct.tolist():
        parts: list[str | None] = []
        for values in reversed(dictionaries):
            code, index = divmod(code, len(values))
            parts.append(values[index])
        combos.append(tuple(reversed(parts)))
    return _Combinations(combos, codes.astype(np.int64))


def _units(table: pa.Table) -> dict[str, Int64s]:
    # As `directory.units_of` does for one record.
    sign = _ints(table, "sign")
    tokens = sum(
        _ints(table, name)
        for name in ("prompt_tokens", "cached_prompt_tokens", "completion_tokens", "reasoning_tokens")
    )
    return {
        "requests": np.where(_mask_present(table, "denied_reason"), 0, sign),
        "tokens": sign * tokens,
        "nanos": sign * _ints(table, "cost_nanos"),
        "credits": sign * _ints(table, "credits"),
    }


def _key_column(table: pa.Table) -> pa.ChunkedArray:
    accounts = pc.cast(table.column("account_id"), pa.string())
    joined: pa.ChunkedArray = pc.binary_join_element_wise(accounts, table.column("id"), SEPARATOR)
    return joined


def _keys(table: pa.Table) -> list[str]:
    keys: list[str] = _key_column(table).to_pylist()
    return keys


def _repeats(given: pa.Table, stored: pa.Table) -> Mask:
    """
    Return which records of *given* repeat the one of the same key in *stored*: the first, if it has several.

    Compared column by column, which says who is surely the same; the few others are compared one by one.
    """
    place = pc.index_in(_key_column(given), value_set=_key_column(stored))
    found = _true(place.is_valid())
    if not found.any():
        return found
    given = given.filter(pa.array(found))
    stored = stored.take(pc.drop_null(place)).combine_chunks()
    # An event that was corrected since is not what it was: its retry can only be taken as a repeat.
    same = (_ints(stored, "revision") > 0) | (_ints(stored, "sign") < 0) | _surely_same(given, stored)
    unsure = np.flatnonzero(~same)
    pairs = zip(
        records_of(stored.take(pa.array(unsure))), records_of(given.take(pa.array(unsure))), strict=True
    )
    same[unsure] = [same_body(*pair) for pair in pairs]
    found[found] = same
    return found


def _surely_same(given: pa.Table, stored: pa.Table) -> Mask:
    """Return where `same_body` is true of two rows whose values are simply equal, or need not be."""
    same = np.ones(given.num_rows, np.bool_)
    priced = np.ones(given.num_rows, np.bool_)
    for name in RECORD_FIELDS:
        if name in NOT_OF_BODY:
            continue
        if name == "tags":
            same &= _same_tags(_single(given.column(name)), _single(stored.column(name)))
            continue
        one, other = (_plain(table.column(name)) for table in (given, stored))
        equal = _true(pc.equal(one, other)) | _true(pc.and_(pc.is_null(one), pc.is_null(other)))
        if name in LABELS and not equal.all():
            # As `domain.labels.same_label`.
            equal |= _true(pc.and_(pc.equal(other, OTHER), pc.not_equal(one, "")))
        if name in PRICE_OF_BODY:
            priced &= equal
        else:
            same &= equal
        if name == "cost_state":
            ours = _true(pc.and_(pc.not_equal(one, "given"), pc.not_equal(other, "given")))
    return same & (priced | ours)


def _same_tags(given: pa.MapArray, stored: pa.MapArray) -> Mask:
    """Return where two columns have the same tags in the same order."""
    counts, stored_counts = (np.diff(tags.offsets.to_numpy(zero_copy_only=False)) for tags in (given, stored))
    same: Mask = counts == stored_counts
    if not same.all():
        same &= counts == 0
        return same
    equal = [
        _true(pc.equal(_plain(one), _plain(other)))
        for one, other in ((given.keys, stored.keys), (given.items, stored.items))
    ]
    rows = np.repeat(np.arange(len(counts)), counts)
    same[rows[~(equal[0] & equal[1])]] = False
    return same


def _plain(column: Any) -> Any:
    """Return text as text, whatever codes it has here."""
    return pc.cast(column, column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _true(truths: Any) -> Mask:
    """Return where *truths* are true; null is not."""
    mask: Mask = pc.fill_null(truths, False).to_numpy(zero_copy_only=False).astype(bool, copy=False)
    return mask


def _single(column: pa.ChunkedArray) -> Any:
    """Return a column as one array, with one dictionary if it has several."""
    if isinstance(column, pa.ChunkedArray):
        return column.chunk(0) if column.num_chunks == 1 else column.unify_dictionaries().combine_chunks()
    return column


def _dictionary(codes: Int64s, values: list[str]) -> pa.DictionaryArray:
    distinct = {value: index for index, value in enumerate(dict.fromkeys(values))}
    index_of = np.array([distinct[value] for value in values], dtype=np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(index_of[codes]), pa.array(list(distinct), pa.string()))


def _text(table: pa.Table, name: str) -> pa.DictionaryArray:
    """Return a text column as a dictionary without nulls: absent is `""`."""
    column = _single(table.column(name))
    if column.null_count == 0:
        return column
    values = column.dictionary.to_pylist()
    empty = values.index("") if "" in values else len(values)
    indices = pc.fill_null(column.indices, empty)
    return pa.DictionaryArray.from_arrays(indices, pa.array(values if empty < len(values) else [*values, ""]))


def _ints(table: pa.Table, name: str) -> Int64s:
    column = _single(table.column(name))
    if column.null_count:
        column = pc.fill_null(column, 0)
    return column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)  # type: ignore[no-any-return]


def _present(table: pa.Table, name: str) -> Mask:
    return _single(table.column(name)).is_valid().to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _mask_equal(column: pa.DictionaryArray, value: str) -> Mask:
    hits = np.array([text == value for text in column.dictionary.to_pylist()], dtype=np.bool_)
    return (
        hits[column.indices.to_numpy(zero_copy_only=False)] if len(hits) else np.zeros(len(column), np.bool_)
    )


def _mask_present(table: pa.Table, name: str) -> Mask:
    return ~_mask_equal(_text(table, name), "")


def _tags(events: pa.Table) -> pa.MapArray:
    tags = _single(events.column("tags"))
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
