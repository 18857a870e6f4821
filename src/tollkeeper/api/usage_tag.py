"""
The validator of a usage answer (RFC 9110, section 8.8): the same tag means the same answer, but for its `as_of`.

It is made of the answer itself, so it holds for as long as the answer is right: over midnight, restarts and
corrections. An answer that may lack something has none: asked again, it must be found again.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from tollkeeper.api.usage_answer import UsageResponse
from tollkeeper.domain.usage import UsageQuery

_DIGEST_BYTES: Final = 16
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


def usage_tag(
    query: UsageQuery, response: UsageResponse, *, form: str, caller: Sequence[str | None]
) -> str | None:
    """
    Return the entity tag of an answer; None when it is not complete.

    Args:
        form: In which it is sent: `json` or `csv`.
        caller: Whom it is sent to. No two callers share a tag.
    """
    if not response.complete:
        return None
    told = msgspec.structs.replace(response, as_of="")
    digest = blake2b(_encode((tuple(caller), form, query, told)), digest_size=_DIGEST_BYTES)
    # Weak: two answers of one tag differ in `as_of`.
    return f'W/"{digest.hexdigest()}"'


def is_named(if_none_match: str, tag: str) -> bool:
    """Return whether the header `If-None-Match` names *tag*, by weak comparison (RFC 9110, section 13.1.2)."""
    named = [text.strip().removeprefix("W/") for text in if_none_match.split(",")]
    return named == ["*"] or tag.removeprefix("W/") in named
