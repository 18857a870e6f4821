"""Other names of models: what a deployment, or a name of the provider's own, stands for in the price look-up."""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from tollkeeper.domain.entry import Entry, Invalid

MODEL_CHARS_MAX: Final = 256
"""Most characters of a model's name, as in an event."""
CHAIN_MAX: Final = 8
"""An alias may stand for another; so many names are followed."""

ModelName = Annotated[str, msgspec.Meta(min_length=1, max_length=MODEL_CHARS_MAX)]
_MODEL: Final = re.compile(r"[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?\Z")
"""Names of models have slashes, colons and `@`, so they are no ids of the catalog; blanks at the ends are not seen."""


class ModelAlias(Entry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """
    A name of a model that stands for another: `id = "my-deployment"`, `is = "azure/gpt-4o"`.

    The price of the other one applies; reports keep the name as it was sent. Prices that are stated for the alias
    itself win.
    """

    kind = "models"

    id: ModelName
    # `is` is no name that Python can annotate in the usual way.
    __annotations__["is"] = "ModelName"

    @property
    def target(self) -> str:
        """The name that it stands for."""
        return str(getattr(self, "is"))

    @classmethod
    def may_be_named(cls, name: str) -> bool:
        return len(name) <= MODEL_CHARS_MAX and _MODEL.match(name) is not None

    def check(self) -> None:
        for field in ("id", "is"):
            name = getattr(self, field)
            if not _MODEL.match(name):
                raise Invalid(
                    field,
                    f"{name[:64]!r} is not the name of a model: 1 to {MODEL_CHARS_MAX} characters without control "
                    "characters, and without blanks at its ends, e.g. azure/gpt-4o",
                )
            if "*" in name:
                raise Invalid(field, "an alias stands for one model: write a name without *")
        if self.target == self.id:
            raise Invalid("is", "an alias stands for another model than itself")


def alias_target(aliases: dict[str, str], name: str) -> str:
    """Return what *name* stands for, itself if it is no alias; of aliases that name each other in a ring, any."""
    for _ in range(CHAIN_MAX):
        target = aliases.get(name)
        if target is None:
            break
        name = target
    return name
