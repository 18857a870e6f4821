"""
Records that the store does not have yet, as rows beside its own: text in a parameter, which the engine reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Final

import msgspec

from tollkeeper.domain.events import Record

_FIELDS: Final = {
    "occurred_at": "DateTime64(6, \\'UTC\\')",
    "account_id": "String",
    "project_id": "String",
    "key_id": "String",
    "sign": "Int8",
    "kind": "String",
    "method": "String",
    "route": "String",
    "status": "UInt16",
    "error_type": "String",
    "denied_reason": "String",
    "latency_us": "Nullable(Int64)",
    "bytes_out": "Int64",
    "model": "String",
    "prompt_tokens": "Int64",
    "cached_prompt_tokens": "Int64",
    "completion_tokens": "Int64",
    "reasoning_tokens": "Int64",
    "cache": "String",
    "credits": "Int64",
    "cost_nanos": "Int64",
    "cost_state": "String",
    "tags": "Map(String, String)",
    "quantities": "Map(String, Int64)",
    "margin_nanos": "Int64",
    "variant": "String",
    "adjustment_nanos": "Int64",
}
"""What a report reads of a pending record, by its name in `events`."""
TABLE: Final = "format(JSONCompactEachRow, '{}', {{pending_text:String}})".format(
    ", ".join(f"{name} {type_}" for name, type_ in _FIELDS.items())
)
_values: Final = attrgetter(*[name for name in list(_FIELDS)[1:] if name != "margin_nanos"])
_MARGIN_AT: Final = list(_FIELDS).index("margin_nanos") - 1
_encode: Final = msgspec.json.Encoder().encode


def as_text(records: Sequence[Record]) -> str:
    """Return the parameter `pending_text` of `TABLE`: a line for each record."""
    return "\n".join(map(_line, records))


def _line(record: Record) -> str:
    whole, micros = divmod(record.occurred_at_us, 1_000_000)
    values = list(_values(record))
    values.insert(_MARGIN_AT, record.cost_nanos - record.provider_cost_nanos)
    return _encode((f"{whole}.{micros:06}", *values)).decode()
