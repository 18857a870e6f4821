"""The version of the catalog: a value read as of an older one must neither be cached nor change a counter."""

from __future__ import annotations


class CatalogVersion:
    """Counts the changes of the catalog. Read without the gate's lock; advanced and compared with it."""

    NEVER_CURRENT = -1
    """A key that is compiled as of this version changes no shared counter."""

    def __init__(self) -> None:
        self.current = 0
        self._of_all = 0
        self._of_account: dict[str, int] = {}
        """The version from which on what is read of all, or of one account, is current."""

    def advance(self, account_id: str | None) -> None:
        """Note that the catalog of one account changed, or of all."""
        self.current += 1
        if account_id is None:
            self._of_all = self.current
            self._of_account.clear()
        else:
            self._of_account[account_id] = self.current

    def is_current(self, account_id: str, version: int) -> bool:
        """Return whether what was read of an account as of *version* is still in force."""
        return version >= self._of_all and version >= self._of_account.get(account_id, 0)
