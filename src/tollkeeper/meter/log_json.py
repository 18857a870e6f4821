"""
Access logs of one JSON object a line: Caddy, Traefik, nginx with its variables' names, others by a field map.

A field map says where a field is: `latency_s` → `duration`, `route` → `request.uri`. What it does not name is looked
for where the known servers have it. A time without a unit in its name (`time`) is text with an offset, or seconds since
1970; `time_ms` is milliseconds. A latency has its unit in its name, and only text such as `31.6ms` has its own.

Sources: Caddy `http.log.access`; Traefik `accessLog`, format `json`; nginx `ngx_http_log_module`, `escape=json`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from tollkeeper.domain.events import ID_CHARS_MAX
from tollkeeper.meter.log_lines import (
    US_PER_UNIT,
    LogLine,
    Misfit,
    clf_time_us,
    count_of,
    echo,
    epoch_us,
    iso_time_us,
    latency_of,
    latency_us_of,
    method_and_route,
    method_of,
    route_of,
    status_of,
    without_origin,
)
from tollkeeper.meter.rejections import Refused

TIME_FIELDS: Final[Mapping[str, str]] = {"time": "s", "time_ms": "ms", "time_us": "us", "time_ns": "ns"}
LATENCY_FIELDS: Final[Mapping[str, str]] = {f"latency_{unit}": unit for unit in US_PER_UNIT}
LINE_FIELDS: Final = (
    *TIME_FIELDS,
    "request",
    "method",
    "route",
    "status",
    "bytes_out",
    *LATENCY_FIELDS,
    "id",
)
"""What a field map may say of a line of JSON, beside the names of `access_log.NAME_FIELDS`."""

_KNOWN: Final[Sequence[tuple[str, Mapping[str, Sequence[str]]]]] = (
    (
        "request.uri",  # Caddy
        {
            "time": ("ts",),
            "method": ("request.method",),
            "route": ("request.uri",),
            "status": ("status",),
            "bytes_out": ("size",),
            "latency_s": ("duration",),
            "host": ("request.client_ip", "request.remote_ip", "request.remote_addr"),
            "user": ("user_id",),
        },
    ),
    (
        "RequestPath",  # Traefik
        {
            "time": ("StartUTC", "time"),
            "method": ("RequestMethod",),
            "route": ("RequestPath",),
            "status": ("DownstreamStatus",),
            "bytes_out": ("DownstreamContentSize",),
            "latency_ns": ("Duration",),
            "host": ("ClientHost",),
            "user": ("ClientUsername",),
        },
    ),
    (
        "",  # nginx, with the names of its variables
        {
            "time": ("time_iso8601", "msec", "time_local"),
            "request": ("request",),
            "method": ("request_method",),
            "route": ("request_uri", "uri", "document_uri"),
            "status": ("status",),
            "bytes_out": ("body_bytes_sent", "bytes_sent"),
            "latency_s": ("request_time",),
            "host": ("remote_addr",),
            "user": ("remote_user",),
        },
    ),
)
"""A path that only this server's lines have, and where its lines have each field: the first that is there."""
_CLF_TIME: Final = re.compile(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}", re.ASCII)
_EPOCH: Final = re.compile(r"\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_GO_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ns|us|µs|μs|ms|s|m|h))+", re.ASCII)
_GO_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|μs|ms|s|m|h)")
_GO_SECONDS: Final = {"h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")} | {
    **{micro: Decimal("0.000001") for micro in ("us", "µs", "μs")},
    "ns": Decimal("0.000000001"),
}
_DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)
_PORT: Final = re.compile(r":\d{1,5}\Z", re.ASCII)


class JsonFormat:
    """
    Lines of JSON objects.

    Args:
        field_map: Field → path, `request.headers.Host.0`; of `LINE_FIELDS`.
        kept: Paths and names (`host`, `user`) of which the value is kept.
    """

    title = "JSON: an object that has a time and a request"

    def __init__(
        self, field_map: Mapping[str, str] | None = None, kept: frozenset[str] = frozenset()
    ) -> None:
        self._map = dict(field_map or {})
        self._kept = kept
        if self._map.keys() & TIME_FIELDS.keys():
            self._times = {name: unit for name, unit in TIME_FIELDS.items() if name in self._map}
        else:
            self._times = {"time": "s"}

    def is_entry(self, line: bytes) -> bool:
        return True

    def declare(self, line: bytes) -> None:
        raise AssertionError("every line is a request")

    def read(self, line: bytes, now_us: int) -> LogLine:
        try:
            entry = _DECODER.decode(line)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise Misfit(f"the line is not JSON: {str(exc)[:80]}") from None
        if not isinstance(entry, dict):
            raise Refused("", "malformed", "the line must be one JSON object")
        known = next(shape for only, shape in _KNOWN if not only or _find(entry, only) is not None)
        at_us = self._time_us(entry, known, now_us)
        method, route = self._request(entry, known)
        return LogLine(
            occurred_at_us=at_us,
            method=method,
            route=route,
            status=status_of(self._text(entry, known, "status")),
            bytes_out=self._bytes_out(entry, known),
            latency_us=self._latency_us(entry, known),
            names=self._names(entry, known),
            id=self._id(entry),
        )

    def _value(self, entry: Any, known: Mapping[str, Sequence[str]], field: str) -> Any:
        """Return the value of *field*, None if the line has none; one that the map names must be there."""
        path = self._map.get(field)
        if path is not None:
            found = _find(entry, path)
            if found is None and not _has(entry, path):
                reason = f"the line has no {echo(path)!r}, where the field map says that {field} is"
                raise Refused(field, "missing_field", reason)
            return found
        return next((v for path in known.get(field, ()) if (v := _find(entry, path)) is not None), None)

    def _text(self, entry: Any, known: Mapping[str, Sequence[str]], field: str) -> str:
        value = self._value(entry, known, field)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
            raise Refused(field, "wrong_type", f"{field} must be text or a number")
        return str(value)

    def _time_us(self, entry: Any, known: Mapping[str, Sequence[str]], now_us: int) -> int:
        for field, unit in self._times.items():
            if text := self._text(entry, known, field):
                if unit != "s" or _EPOCH.fullmatch(text):
                    return epoch_us(text, unit, now_us)
                return (clf_time_us if _CLF_TIME.fullmatch(text) else iso_time_us)(text, now_us)
        keys = ", ".join(echo(key) for key in list(entry)[:8])
        reason = f"the line has no time that is known by its name; say with a field map where it is (it has {keys})"
        raise Refused("time", "missing_field", reason)

    def _request(self, entry: Any, known: Mapping[str, Sequence[str]]) -> tuple[str | None, str | None]:
        mapped = self._map.keys() & {"method", "route"}
        request = "" if mapped and "request" not in self._map else self._text(entry, known, "request")
        method, route = method_and_route(request) if request else (None, None)
        if target := self._text(entry, known, "route"):
            route = route_of(without_origin(target))
        if text := self._text(entry, known, "method"):
            method = method_of(text)
        if route is None and not request:
            raise Refused(
                "route", "missing_field", "the line has no request; say with a field map where it is"
            )
        return method, route

    def _bytes_out(self, entry: Any, known: Mapping[str, Sequence[str]]) -> int | None:
        text = self._text(entry, known, "bytes_out")
        return count_of(text) if text else None

    def _latency_us(self, entry: Any, known: Mapping[str, Sequence[str]]) -> int | None:
        mapped = [field for field in LATENCY_FIELDS if field in self._map]
        for field in mapped or LATENCY_FIELDS:
            text = self._text(entry, known, field)
            if not text:
                continue
            if _GO_DURATION.match(text) and _GO_PART.sub("", text) == "":
                seconds = sum(
                    (Decimal(number) * _GO_SECONDS[unit] for number, unit in _GO_PART.findall(text)),
                    Decimal(),
                )
                return latency_us_of(seconds, "s")
            return latency_of(text, LATENCY_FIELDS[field])
        return None

    def _names(self, entry: Any, known: Mapping[str, Sequence[str]]) -> dict[str, str]:
        names: dict[str, str] = {}
        for name in self._kept:
            if name in ("host", "user"):
                value = self._text(entry, known, name)
                # Older versions of Caddy have the address with its port.
                is_with_port = name == "host" and (value.count(":") == 1 or value.startswith("["))
                names[name] = _PORT.sub("", value).strip("[]") if is_with_port else value
                continue
            found = _find(entry, name)
            if found is None and not _has(entry, name):
                raise Refused(
                    "", "missing_field", f"the line has no {echo(name)!r}, which the field map names"
                )
            if isinstance(found, (dict, list, bool)):
                raise Refused("", "wrong_type", f"{echo(name)} must be text or a number")
            names[name] = "" if found is None else str(found)
        return names

    def _id(self, entry: Any) -> str | None:
        if "id" not in self._map:
            return None
        text = self._text(entry, {}, "id")
        if not 0 < len(text) <= ID_CHARS_MAX:
            raise Refused("id", "out_of_range", f"id must be text of length 1 to {ID_CHARS_MAX}")
        return text


def looks_known(entry: Mapping[str, Any]) -> bool:
    """Whether *entry* has a time and a request where the known servers have them."""
    shape = next(shape for only, shape in _KNOWN if not only or _find(entry, only) is not None)
    has_time = any(_find(entry, path) is not None for path in shape["time"])
    paths = (*shape["route"], *shape.get("request", ()))
    return has_time and any(_find(entry, path) is not None for path in paths)


def _find(entry: Any, path: str) -> Any:
    """Return the value at *path*: a key, or keys and places in lists with dots between them; None if there is none."""
    if isinstance(entry, dict):
        if path in entry:
            return entry[path]
        # A key may have dots of its own.
        for at in [match.start() for match in re.finditer(r"\.", path)]:
            if path[:at] in entry:
                return _find(entry[path[:at]], path[at + 1 :])
        return None
    if isinstance(entry, list):
        head, _, rest = path.partition(".")
        if head.isdecimal() and int(head) < len(entry):
            return _find(entry[int(head)], rest) if rest else entry[int(head)]
    return None


def _has(entry: Any, path: str) -> bool:
    """Whether there is a value at *path*, null included."""
    if isinstance(entry, dict) and path in entry:
        return True
    head, _, last = path.rpartition(".")
    parent = _find(entry, head) if head else None
    return isinstance(parent, dict) and last in parent
