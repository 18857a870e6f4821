"""The most entries that an account's own calls may create. The operator's calls have no quota."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tollkeeper.domain.catalog import Key
from tollkeeper.errors import QuotaExceeded
from tollkeeper.ports import Catalog

TOMBSTONES_PER_KEY: Final = 10
"""A revoked or deleted key leaves a row for good: an account may end so many for each key of its quota."""
NO_QUOTAS: Final[Mapping[str, int]] = {}


def check_quota(catalog: Catalog, quotas: Mapping[str, int], kind: str, account: str) -> None:
    """Raise `QuotaExceeded` when *account* may not have one more entry of *kind*."""
    quota = quotas.get(kind)
    if quota is None:
        return
    entries = catalog.entries(kind, account)
    kept = sum(not (isinstance(entry, Key) and entry.state in ("revoked", "deleted")) for entry in entries)
    if kept >= quota:
        raise QuotaExceeded(
            f"the account has {kept} {kind}, and {quota} are the most: delete one, or ask the operator"
        )
    if len(entries) >= quota * (1 + TOMBSTONES_PER_KEY):
        raise QuotaExceeded(
            f"the account has made and ended {len(entries)} {kind}: ask the operator for more"
        )
