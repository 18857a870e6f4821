"""Which keys belong together: those that rotations made of one another, and those that made others."""

from __future__ import annotations

from tollkeeper.domain.keys import StoredKey
from tollkeeper.ports import CatalogStore


def rotations_of(catalog: CatalogStore, stored: StoredKey) -> list[StoredKey]:
    """Return the keys that rotations made of one another, the first one first."""
    if stored.rotation_chain_id == stored.entry.id and stored.replaced_by is None:
        return [stored]
    chain = [
        other
        for other in catalog.keys_of_account(stored.entry.account)
        if other.rotation_chain_id == stored.rotation_chain_id
    ]
    return sorted(chain, key=lambda key: key.entry.id != stored.rotation_chain_id)


def makers_of(catalog: CatalogStore, stored: StoredKey) -> list[StoredKey]:
    """Return the consumption keys that made a key, the first one first; most keys have none."""
    makers: list[StoredKey] = []
    made_by = stored.made_by
    while made_by is not None and (maker := catalog.find_key(made_by)) is not None:
        makers.insert(0, maker)
        made_by = maker.made_by
    return makers


def successor(catalog: CatalogStore, stored: StoredKey) -> StoredKey:
    """Return the key that rotations put in the place of a key, itself if there is none."""
    while stored.replaced_by is not None:
        found = catalog.find_key(stored.replaced_by)
        if found is None:
            break
        stored = found
    return stored
