"""
The catalog in SQL: `ports.CatalogStore` over the tables of `catalog_tables`, on SQLite and PostgreSQL.

Invariants: a change of a plan and its new version are one step; a tombstone keeps its id and its hash;
one transaction writes the catalog at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy import exc as sql_errors

from tollkeeper.adapters.sql import catalog_tables as tables
from tollkeeper.adapters.sql.audit_log import SqlAuditLog
from tollkeeper.domain.catalog import KINDS, REFERENCES, Entry, Key, KeyState, Plan
from tollkeeper.domain.instants import from_us, to_us
from tollkeeper.domain.keys import Actor, KeyOrigin, StoredKey
from tollkeeper.errors import Conflict, NotFound, Unavailable
from tollkeeper.ports import Catalog, ChangeAction, PlanVersion

_WRITE_LOCK: Final = 0x746F_6C6C_6B65_6570
"""The advisory lock that stands for the whole catalog on PostgreSQL: "tollkeep" in ASCII."""

_JSON_FIELDS: Final = frozenset(
    {
        "limits",
        "budgets",
        "layers",
        "metadata",
        "thresholds",
        "actions",
        "models",
        "match",
        "per",
        "tiers",
        "rates",
    }
)
_KEY_SECRETS: Final = ("secret_sha256", "shown_prefix")


class _Field(NamedTuple):
    """How one field of an entry is kept in its column."""

    name: str
    column: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


class _Mapping(NamedTuple):
    """How the entries of one kind are kept: their type, table, fields and identity."""

    type: type[Entry]
    table: sa.Table
    fields: tuple[_Field, ...]
    id: sa.Column[Any]
    account: sa.Column[Any] | None
    """Column of the account, of the kinds that have one."""

    @property
    def is_account_scoped(self) -> bool:
        """Whether ids of this kind are unique within an account only."""
        return self.account is not None and self.account.primary_key

    def encode(self, entry: Entry) -> dict[str, Any]:
        return {field.column: field.encode(getattr(entry, field.name)) for field in self.fields}

    def decode(self, row: Mapping[str, Any]) -> Entry:
        return self.type(**{field.name: field.decode(row[field.column]) for field in self.fields})


class _SqlCatalog(SqlAuditLog, Catalog):
    """The calls of `Catalog`, over connections that a subclass gives out."""

    def get(self, kind: str, entry_id: str, account: str | None = None) -> Entry | None:
        mapping = _MAPPINGS[kind]
        query = sa.select(mapping.table).where(_is(mapping, entry_id, account))
        with self._reading() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else mapping.decode(dict(row))

    def list(
        self, kind: str, *, account: str | None = None, after: str | None = None, limit: int = 100
    ) -> Sequence[Entry]:
        mapping = _MAPPINGS[kind]
        query = (
            _of_account(mapping, sa.select(mapping.table), account).order_by(*_order(mapping)).limit(limit)
        )
        if after is not None:
            # Ids of models have slashes; they belong to no account.
            after_account, _, after_id = ("", "", after) if mapping.account is None else after.rpartition("/")
            if mapping.is_account_scoped and account is None:
                query = query.where(sa.tuple_(*_order(mapping)) > sa.tuple_(after_account, after_id))
            else:
                query = query.where(mapping.id > after_id)
        return self._entries(mapping, query)

    def entries(self, kind: str, account: str | None = None) -> Sequence[Entry]:
        mapping = _MAPPINGS[kind]
        query = _of_account(mapping, sa.select(mapping.table), account).order_by(*_order(mapping))
        return self._entries(mapping, query)

    def put(self, entry: Entry, now_us: int, *, origin: KeyOrigin | None = None) -> ChangeAction:
        mapping = _MAPPINGS[entry.kind]
        here = _is(
            mapping, entry.entry_id, getattr(entry, "account", None) if mapping.is_account_scoped else None
        )
        with self._writing() as connection:
            row = connection.execute(sa.select(mapping.table).where(here)).mappings().first()
            if row is None:
                self._insert(connection, mapping, entry, now_us)
                return "created"
            old = mapping.decode(dict(row))
            if old == (entry.without_origin() if isinstance(entry, Key) else entry):
                return "unchanged"
            values = {**mapping.encode(entry), "updated_at_us": now_us}
            if isinstance(entry, Plan):
                values["version"] = _add_version(connection, entry, now_us)
            if isinstance(entry, Key):
                values |= _revoked_at(entry.state, row["revoked_at_us"], now_us)
                values |= {} if origin is None else origin._asdict()
            connection.execute(sa.update(mapping.table).where(here).values(values))
            return "changed"

    def _insert(self, connection: sa.Connection, mapping: _Mapping, entry: Entry, now_us: int) -> None:
        if isinstance(entry, Key):
            raise NotFound(f"there is no key {entry.id!r}")
        values = {**mapping.encode(entry), "created_at_us": now_us, "updated_at_us": now_us}
        if isinstance(entry, Plan):
            values["version"] = _add_version(connection, entry, now_us)
        connection.execute(sa.insert(mapping.table).values(values))

    def delete(self, kind: str, entry_id: str, account: str | None = None) -> bool:
        mapping = _MAPPINGS[kind]
        with self._writing() as connection:
            done = connection.execute(sa.delete(mapping.table).where(_is(mapping, entry_id, account)))
        return done.rowcount > 0

    def referrers(
        self, kind: str, entry_id: str, account: str | None = None, *, limit: int
    ) -> Sequence[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        with self._reading() as connection:
            for referring_kind, references in REFERENCES.items():
                columns = [_column_of(field) for field, referred in references if referred == kind]
                if not columns:
                    continue
                mapping = _MAPPINGS[referring_kind]
                query = sa.select(mapping.id).where(
                    sa.or_(*(mapping.table.c[name] == entry_id for name in columns))
                )
                if kind not in ("accounts", "plans"):
                    query = query.where(mapping.table.c.account_id == account)
                if referring_kind == "keys" and kind != "accounts":
                    query = query.where(tables.keys.c.state != "deleted")
                ids = connection.execute(query.order_by(mapping.id).limit(limit - len(found))).scalars()
                found += [(referring_kind, str(name)) for name in ids]
                if len(found) >= limit:
                    break
        return found

    def plan_versions(self, slug: str) -> Sequence[PlanVersion]:
        table = tables.plan_versions
        query = sa.select(table).where(table.c.slug == slug).order_by(table.c.version)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return [
            PlanVersion(row.version, msgspec.json.decode(row.body, type=Plan), row.created_at_us)
            for row in rows
        ]

    def add_key(
        self,
        entry: Key,
        *,
        secret_sha256: str,
        shown_prefix: str | None,
        now_us: int,
        rotation_chain_id: str | None = None,
        origin: KeyOrigin = KeyOrigin(),
        created_at_us: int | None = None,
    ) -> None:
        values = {
            **_MAPPINGS["keys"].encode(entry),
            **_revoked_at(entry.state, None, now_us),
            "secret_sha256": secret_sha256,
            "shown_prefix": shown_prefix,
            "lineage_id": rotation_chain_id or entry.id,
            **origin._asdict(),
            "created_at_us": now_us if created_at_us is None else created_at_us,
            "updated_at_us": now_us,
        }
        with self._writing() as connection:
            taken = connection.execute(
                sa.select(tables.keys.c.id).where(
                    sa.or_(tables.keys.c.id == entry.id, tables.keys.c.secret_sha256 == secret_sha256)
                )
            ).first()
            # Whose key it is stays untold: a caller must not learn what other accounts have.
            if taken is not None and taken.id == entry.id:
                raise Conflict(f"the key id {entry.id!r} is taken: choose another")
            if taken is not None:
                raise Conflict("this secret is the secret of another key: import each secret once")
            connection.execute(sa.insert(tables.keys).values(values))

    def set_key_state(
        self, account: str, key_id: str, state: KeyState, now_us: int, *, by: Actor = "operator"
    ) -> bool:
        here = _is(_MAPPINGS["keys"], key_id, account)
        with self._writing() as connection:
            row = connection.execute(sa.select(tables.keys.c.revoked_at_us).where(here)).first()
            if row is None:
                return False
            values = {
                "state": state,
                "state_by": by,
                "updated_at_us": now_us,
                **_revoked_at(state, row.revoked_at_us, now_us),
            }
            connection.execute(sa.update(tables.keys).where(here).values(values))
        return True

    def replace_key(self, account: str, key_id: str, *, by: str, expires_at_us: int, now_us: int) -> bool:
        values = {"replaced_by": by, "expires_at_us": expires_at_us, "updated_at_us": now_us}
        with self._writing() as connection:
            done = connection.execute(
                sa.update(tables.keys).where(_is(_MAPPINGS["keys"], key_id, account)).values(values)
            )
        return done.rowcount > 0

    def find_key_by_hash(self, secret_sha256: str) -> StoredKey | None:
        found = self._keys(tables.keys.c.secret_sha256 == secret_sha256)
        return found[0] if found else None

    def find_key(self, key_id: str) -> StoredKey | None:
        found = self._keys(_equals(tables.keys.c.id, key_id))
        return found[0] if found else None

    def keys_of_account(self, account: str) -> Sequence[StoredKey]:
        return self._keys(_equals(tables.keys.c.account_id, account))

    def touch_keys(self, last_used_at_us: Mapping[str, int]) -> None:
        if not last_used_at_us:
            return
        at = sa.bindparam("at_us", type_=sa.BigInteger())
        key_id = sa.bindparam("key_id", type_=sa.String())
        used = tables.keys.c.last_used_at_us
        update = (
            sa.update(tables.keys)
            .where(tables.keys.c.id == key_id, sa.or_(used.is_(None), used < at))
            .values(last_used_at_us=at)
        )
        # In one order on every node, so that two of them cannot wait for each other's rows.
        rows = [{"key_id": name, "at_us": last_used_at_us[name]} for name in sorted(last_used_at_us)]
        with self._touching() as connection:
            connection.execute(update, rows)

    def _touching(self) -> AbstractContextManager[sa.Connection]:
        return self._writing()

    def _entries(self, mapping: _Mapping, query: sa.Select[Any]) -> Sequence[Entry]:
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [mapping.decode(dict(row)) for row in rows]

    def _keys(self, where: sa.ColumnElement[bool]) -> Sequence[StoredKey]:
        query = sa.select(tables.keys).where(where).order_by(tables.keys.c.id)
        with self._reading() as connection:
            rows = connection.execute(query).mappings().all()
        return [_stored_key(dict(row)) for row in rows]


class SqlCatalogStore(_SqlCatalog):
    """
    `ports.CatalogStore` over an engine whose tables exist.

    Args:
        engine: SQLite or PostgreSQL. Parameters carry hashes of secrets: open it with `hide_parameters`.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    @contextmanager
    def transaction(self, *, dry_run: bool = False) -> Iterator[Catalog]:
        with _our_errors(), self._engine.connect() as connection, connection.begin() as transaction:
            _lock(connection)
            yield _BoundCatalog(connection)
            if dry_run:
                transaction.rollback()

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _our_errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with _our_errors(), self._engine.begin() as connection:
            _lock(connection)
            yield connection

    @contextmanager
    def _touching(self) -> Iterator[sa.Connection]:
        # Not under the lock: it changes nothing that anyone decides by, and must not wait for a declaration.
        with _our_errors(), self._engine.begin() as connection:
            yield connection


class _BoundCatalog(_SqlCatalog):
    """The calls of one open transaction."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with _our_errors():
            yield self._connection

    _writing = _reading


def _lock(connection: sa.Connection) -> None:
    """Wait until this transaction is the only one that writes the catalog, before its first read."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITE_LOCK)))
    else:
        # SQLite locks at the first write, and refuses one whose transaction has read what is old by then.
        # A write of no row takes the lock first.
        connection.execute(sa.update(tables.accounts).where(sa.false()).values(active=True))


@contextmanager
def _our_errors() -> Iterator[None]:
    try:
        yield
    except sql_errors.IntegrityError as exc:
        raise Conflict("somebody else changed the same entry: read it again, then retry") from exc
    except (sql_errors.DBAPIError, sql_errors.TimeoutError) as exc:
        raise Unavailable("the catalog cannot be read or written now: try again") from exc


def _is(mapping: _Mapping, entry_id: str, account: str | None) -> sa.ColumnElement[bool]:
    here = _equals(mapping.id, entry_id)
    if account is None:
        return here
    if mapping.is_account_scoped:
        return sa.and_(_equals(mapping.table.c.account_id, account), here)
    if mapping.account is not None:
        return sa.and_(sa.or_(mapping.account.is_(None), _equals(mapping.account, account)), here)
    if mapping.table is tables.accounts:
        return sa.and_(_equals(mapping.id, account), here)
    return here


def _of_account(mapping: _Mapping, query: sa.Select[Any], account: str | None) -> sa.Select[Any]:
    if account is None:
        return query
    if mapping.is_account_scoped:
        return query.where(_equals(mapping.table.c.account_id, account))
    if mapping.account is not None:
        return query.where(sa.or_(mapping.account.is_(None), _equals(mapping.account, account)))
    if mapping.table is tables.accounts:
        return query.where(_equals(mapping.id, account))
    return query


def _equals(column: sa.Column[Any], text: str) -> sa.ColumnElement[bool]:
    """Whether *column* is *text*. PostgreSQL refuses a query with a NUL in its text; no stored text has one."""
    return sa.false() if "\x00" in text else column == text


def _order(mapping: _Mapping) -> tuple[sa.Column[Any], ...]:
    return (mapping.table.c.account_id, mapping.id) if mapping.is_account_scoped else (mapping.id,)


def _add_version(connection: sa.Connection, plan: Plan, now_us: int) -> int:
    table = tables.plan_versions
    # Counted over all versions kept, so that a plan made again after its deletion goes on where it was.
    last = connection.execute(
        sa.select(sa.func.max(table.c.version)).where(table.c.slug == plan.slug)
    ).scalar()
    version = int(last or 0) + 1
    body = msgspec.json.encode(plan).decode()
    connection.execute(
        sa.insert(table).values(slug=plan.slug, version=version, body=body, created_at_us=now_us)
    )
    return version


def _revoked_at(state: KeyState, revoked_at_us: int | None, now_us: int) -> dict[str, int]:
    ends = state in ("revoked", "deleted") and revoked_at_us is None
    return {"revoked_at_us": now_us} if ends else {}


def _stored_key(row: Mapping[str, Any]) -> StoredKey:
    entry = _MAPPINGS["keys"].decode(row)
    assert isinstance(entry, Key)
    own = ("created_at_us", "updated_at_us", "last_used_at_us", "revoked_at_us", "replaced_by")
    return StoredKey(
        entry=entry,
        rotation_chain_id=row["lineage_id"],
        **{name: row[name] for name in (*_KEY_SECRETS, *own, *KeyOrigin._fields)},
    )


def _column_of(field: str) -> str:
    if field == "plan":
        return "plan_slug"
    return f"{field}_id" if field in ("account", "project", "key", "subscription") else field


def _field_of(field: msgspec.structs.FieldInfo) -> _Field:
    name = field.name
    if name in _JSON_FIELDS:
        decoder = msgspec.json.Decoder(field.type)
        return _Field(
            name,
            name,
            lambda value: None if value is None else msgspec.json.encode(value).decode(),
            lambda text: None if text is None else decoder.decode(text),
        )
    if name.endswith("_at"):
        return _Field(
            name,
            f"{name}_us",
            lambda at: None if at is None else to_us(at),
            lambda at_us: None if at_us is None else from_us(at_us),
        )
    return _Field(name, _column_of(name), _same, _same)


def _same(value: Any) -> Any:
    return value


def _mapping_of(kind: str, entry_type: type[Entry]) -> _Mapping:
    table: sa.Table = getattr(tables, kind)
    fields = tuple(
        _field_of(field)
        for field in msgspec.structs.fields(entry_type)
        if not (entry_type is Key and field.name in ("sha256", "created_at"))
    )
    return _Mapping(entry_type, table, fields, table.c[entry_type.id_field], table.c.get("account_id"))


_MAPPINGS: Final = {kind: _mapping_of(kind, entry_type) for kind, entry_type in KINDS.items()}
