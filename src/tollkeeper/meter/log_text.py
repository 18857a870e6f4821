"""
Access logs whose lines follow a format string of nginx or Apache, and the formats that have names.

A line is first read strictly: a quoted text holds quotes only where the server escaped them. A line that does not fit,
and every line of a format with free text outside quotes, is read in all ways that there are. If they agree on what is
kept of the line, that is what it says; if not, or if there are too many, the line is rejected.

Sources: nginx `ngx_http_log_module` and its packaged `log_format main`; Apache `mod_log_config` (`%D` is µs, `%T` s),
`vhost_combined` as Debian packages it; AWS "Access log entries" of Application Load Balancers.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final, NamedTuple

from tollkeeper.errors import BadParameter
from tollkeeper.meter.log_lines import (
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
    text_of,
)
from tollkeeper.meter.rejections import Refused

NGINX_COMBINED: Final = (
    '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
    '"$http_referer" "$http_user_agent"'
)
APACHE_COMMON: Final = '%h %l %u %t "%r" %>s %b'
TEXT_FORMATS: Final[Mapping[str, str]] = {
    "common": APACHE_COMMON,
    "combined": APACHE_COMMON + ' "%{Referer}i" "%{User-agent}i"',
    "nginx-main": NGINX_COMBINED + ' "$http_x_forwarded_for"',
    "vhost-combined": '%v:%p %h %l %u %t "%r" %>s %O "%{Referer}i" "%{User-agent}i"',
}
"""The format strings that have names."""
_TITLES: Final[Mapping[str, str]] = {
    "common": 'Common Log Format: host ident user [time] "request" status bytes',
    "combined": 'Combined Log Format: host ident user [time] "request" status bytes "referer" "user agent"',
    "nginx-main": 'the main format of nginx: Combined Log Format and "x-forwarded-for"',
    "vhost-combined": "vhost-combined: virtual host:port, and then Combined Log Format",
    "alb": 'the format of an AWS Application Load Balancer: type time elb client:port … "request" …',
}

READINGS_MAX: Final = 2_000
"""Steps to look for all readings of a line. A line of Combined Log Format with ten stray quotes takes some 200."""
FORMAT_CHARS_MAX: Final = 4_096

_QUOTED: Final = r'(?:[^"\\]|\\.)*+'
_LOOSELY_QUOTED: Final = re.compile(r"(?:[^\\]|\\.)*+", re.DOTALL)
"""With quotes of its own; a backslash at the end would escape the quote that ends it."""
_CLF_TIME: Final = r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}"
_SECONDS: Final = r"\d+(?:\.\d+)?|-"
_PATTERNS: Final[Mapping[str, str]] = {
    "clf_time": _CLF_TIME,
    "iso_time": r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[ ]?[+-]\d\d:?\d\d)",
    "epoch_s": r"\d{9,11}(?:\.\d+)?",
    "epoch_ms": r"\d{12,14}",
    "epoch_us": r"\d{15,17}",
    "status": r"\d{3}|-",
    "first_status": r"\d{3}|-",
    "bytes": r"\d+|-",
    "bytes_total": r"\d+|-",
    "latency_s": _SECONDS,
    "latency_ms": _SECONDS,
    "latency_us": r"\d+|-",
    "latency_part": r"-1|\d+(?:\.\d+)?",
    "alb_type": r"https?|h2|grpcs|wss?",
    "rest": r".*",
}
"""What a value of a role looks like, in quotes or not; the other roles are words, or texts if `_FREE`."""
_LIST: Final = r"\S+(?:(?:,| :) \S+)*"
_FREE: Final = frozenset({"request", "url_request", "route", "free"})
"""Roles whose values may hold spaces: outside quotes their end is not certain."""
_KEPT: Final = frozenset(
    {"request", "url_request", "method", "target", "route"}
    | _PATTERNS.keys() - {"first_status", "alb_type", "rest"}
)

_NGINX_ROLES: Final[Mapping[str, str]] = {
    "time_local": "clf_time",
    "time_iso8601": "iso_time",
    "msec": "epoch_s",
    "request": "request",
    "request_method": "method",
    "request_uri": "target",
    "uri": "route",
    "document_uri": "route",
    "status": "status",
    "body_bytes_sent": "bytes",
    "bytes_sent": "bytes_total",
    "request_time": "latency_s",
    "remote_user": "user",
    "proxy_add_x_forwarded_for": "list",
}
_APACHE_ROLES: Final[Mapping[str, str]] = {
    "u": "user",
    "r": "request",
    "m": "method",
    "U": "route",
    "Uq": "target",
    "s": "status",
    "b": "bytes",
    "B": "bytes",
    "O": "bytes_total",
    "D": "latency_us",
    "T": "latency_s",
    "f": "free",
}
_APACHE_NAMES: Final[Mapping[str, str]] = {"h": "host", "a": "host", "l": "ident", "u": "user", "v": "vhost"}
_NGINX_NAMES: Final[Mapping[str, str]] = {"remote_addr": "host", "remote_user": "user"}
_NGINX_VARIABLE: Final = re.compile(r"\$(?:\{(\w+)\}|(\w+))", re.ASCII)
_APACHE_DIRECTIVE: Final = re.compile(
    r"%(?:!?\d+(?:,\d+)*)?(?P<which>[<>])?(?:\{(?P<argument>[^}]*)\})?(?P<letter>U%q|\^[a-z]{2}|[A-Za-z%])"
)
_NGINX_STRING: Final = re.compile(r"'(?:[^'\\]|\\.)*'")
_NGINX_DIRECTIVE: Final = re.compile(
    r"\s*(?:log_format\s+\S+\s+(?:escape=\w+\s+)?)?(?P<strings>'(?:[^'\\]|\\.)*+'(?:\s+'(?:[^'\\]|\\.)*+')*)\s*;?\s*"
)
_APACHE_DIRECTIVE_LINE: Final = re.compile(
    r'\s*LogFormat\s+"(?P<string>(?:[^"\\]|\\.)*+)"(?:\s+\w+)?\s*', re.IGNORECASE
)
_VHOST: Final = re.compile(r"[A-Za-z0-9._-]+:\d{1,5}|\[[0-9A-Fa-f:.]+\]:\d{1,5}", re.ASCII)


class _Variable(NamedTuple):
    name: str
    role: str


class TextFormat:
    """
    A format string, compiled.

    Args:
        literals: The text before, between and after the variables: one more than these.
        kept: Names of which the value is kept (`client_field`, a field map), beside what every event has.

    Raises:
        BadParameter: The format has no time or no request, or two variables have nothing between them.
    """

    def __init__(
        self, literals: Sequence[str], variables: Sequence[_Variable], *, title: str, kept: frozenset[str]
    ) -> None:
        self.title = title
        self._literals, self._variables = tuple(literals), tuple(variables)
        self._require_fields(kept)
        quoted = [
            before.endswith('"') and after.startswith('"')
            for before, after in zip(self._literals, self._literals[1:], strict=False)
        ]
        strict = [self._pattern(index, is_quoted) for index, is_quoted in enumerate(quoted)]
        pieces = [re.escape(self._literals[0])]
        for pattern, literal in zip(strict, self._literals[1:], strict=True):
            pieces.append(f"({pattern}){re.escape(literal)}")
        self._strict = re.compile("".join(pieces), re.ASCII)
        self._loose = [
            _LOOSELY_QUOTED if is_quoted and variable.role not in _PATTERNS else re.compile(pattern, re.ASCII)
            for variable, pattern, is_quoted in zip(self._variables, strict, quoted, strict=True)
        ]
        self._always_all = any(
            variable.role in _FREE and not is_quoted
            for variable, is_quoted in zip(self._variables, quoted, strict=True)
        )
        self._kept = [
            index
            for index, variable in enumerate(self._variables)
            if variable.role in _KEPT or variable.name in kept
        ]
        self._named = [(index, v.name) for index, v in enumerate(self._variables) if v.name in kept]
        self._at = {variable.role: index for index, variable in reversed([*enumerate(self._variables)])}
        self._parts = [i for i, variable in enumerate(self._variables) if variable.role == "latency_part"]
        names = [variable.name for variable in self._variables]
        self._ident_at = names.index("ident") if "ident" in names else None

    def is_entry(self, line: bytes) -> bool:
        return True

    def declare(self, line: bytes) -> None:
        raise AssertionError("every line is a request")

    def read(self, line: bytes, now_us: int) -> LogLine:
        text = text_of(line)
        match = None if self._always_all else self._strict.fullmatch(text)
        values = self._only_reading(text) if match is None else match.groups()
        self._check_user(values)
        method, route = self._request(values)
        return LogLine(
            occurred_at_us=self._time_us(values, now_us),
            method=method,
            route=route,
            status=status_of(self._value(values, "status")),
            bytes_out=self._bytes_out(values),
            latency_us=self._latency_us(values),
            names={name: values[index] for index, name in self._named},
        )

    # -- what a line says ------------------------------------------------------------------------------

    def _value(self, values: Sequence[str], role: str) -> str:
        index = self._at.get(role)
        return "-" if index is None else values[index]

    def _request(self, values: Sequence[str]) -> tuple[str | None, str | None]:
        if "request" in self._at:
            return method_and_route(self._value(values, "request"))
        if "url_request" in self._at:
            request = self._value(values, "url_request")
            method, route = method_and_route(request)
            # A request that the balancer could not read stands there as `- http://host:80- -`.
            return (None, None) if route is None or request[0] == "-" else (method, route)
        path = route_of(self._value(values, "target" if "target" in self._at else "route"))
        return method_of(self._value(values, "method")), path

    def _time_us(self, values: Sequence[str], now_us: int) -> int:
        # The finest of those that the line has.
        for role, unit in (("epoch_us", "us"), ("epoch_ms", "ms"), ("epoch_s", "s")):
            if role in self._at:
                return epoch_us(self._value(values, role), unit, now_us)
        if "iso_time" in self._at:
            return iso_time_us(self._value(values, "iso_time"), now_us)
        return clf_time_us(self._value(values, "clf_time"), now_us)

    def _bytes_out(self, values: Sequence[str]) -> int | None:
        if "bytes" in self._at:
            return count_of(self._value(values, "bytes"))
        return count_of(self._value(values, "bytes_total")) if "bytes_total" in self._at else None

    def _latency_us(self, values: Sequence[str]) -> int | None:
        if self._parts:
            parts = [Decimal(values[index]) for index in self._parts]
            # -1 where the balancer did not get that far: the whole is not known then.
            return None if min(parts) < 0 else latency_us_of(sum(parts, Decimal()), "s")
        for unit in ("us", "ms", "s"):
            if f"latency_{unit}" in self._at:
                return latency_of(self._value(values, f"latency_{unit}"), unit)
        return None

    def _check_user(self, values: Sequence[str]) -> None:
        """Refuse a user with spaces that is more likely the fields of another format: those of a virtual host."""
        user = self._value(values, "user")
        if " " not in user:
            return
        ident = "-" if self._ident_at is None else values[self._ident_at]
        words = user.split(" ")
        if ident != "-" and (ident == "|" or is_address(ident) or "-" in words):
            raise self._misfit()
        if any(word == "-" or is_address(word) for word in words):
            raise self._misfit()

    def _misfit(self) -> Refused:
        return Misfit(f"the line is not in {self.title}")

    # -- readings --------------------------------------------------------------------------------------

    def _only_reading(self, text: str) -> Sequence[str]:
        """Return the values of *text*, if all of its readings agree on what is kept."""
        found: Sequence[str] | None = None
        try:
            for values in self._readings(text, 0, len(self._literals[0]), [READINGS_MAX]):
                if found is None:
                    found = values
                elif any(values[index] != found[index] for index in self._kept):
                    raise _TooManyReadings
        except _TooManyReadings:
            reason = f"the line can be read in more than one way in {self.title}: a text in it has quotes or spaces"
            raise Refused("", "malformed", f"{reason} that the server did not escape") from None
        if found is None:
            raise self._misfit()
        return found

    def _readings(
        self, text: str, index: int, start: int, steps_left: list[int]
    ) -> Iterator[tuple[str, ...]]:
        if index == 0 and not text.startswith(self._literals[0]):
            return
        literal, pattern = self._literals[index + 1], self._loose[index]
        is_last = index + 1 == len(self._variables)
        end = len(text) - len(literal) if is_last else text.find(literal, start)
        if is_last and (end < start or not text.endswith(literal)):
            return
        while end >= start:
            steps_left[0] -= 1
            if steps_left[0] < 0:
                raise _TooManyReadings
            value = text[start:end]
            if pattern.fullmatch(value):
                if is_last:
                    yield (value,)
                else:
                    for rest in self._readings(text, index + 1, end + len(literal), steps_left):
                        yield (value, *rest)
            if is_last:
                return
            end = text.find(literal, end + 1)

    def _pattern(self, index: int, is_quoted: bool) -> str:
        role = self._variables[index].role
        if role in _PATTERNS:
            return _PATTERNS[role]
        if is_quoted:
            return _QUOTED
        if role == "user":
            # The user may hold spaces; the strict form of the time keeps the search for its end linear.
            before_time = self._literals[index + 1] == " [" and self._variables[index + 1].role == "clf_time"
            return r".+?" if before_time else r"\S+"
        if role == "list":
            return _LIST
        return r".*?" if role in _FREE else r"\S+"

    def _require_fields(self, kept: frozenset[str]) -> None:
        roles = {variable.role for variable in self._variables}
        if not roles & {"clf_time", "iso_time", "epoch_s", "epoch_ms", "epoch_us"}:
            raise _bad("the format must have a time: $time_local, $time_iso8601, $msec, or %t")
        if not roles & {"request", "url_request", "target", "route"}:
            raise _bad("the format must have the request: $request, $request_uri, %r, or %U")
        if "" in self._literals[1:-1]:
            at = self._literals.index("", 1)
            before, after = self._variables[at - 1].name, self._variables[at].name
            raise _bad(f"{before} and {after} must have text between them")
        if missing := sorted(kept - {variable.name for variable in self._variables}):
            names = ", ".join(sorted({variable.name for variable in self._variables}))
            raise _bad(f"the format has no {missing[0]}; it has {names}")


class _TooManyReadings(Exception):
    """Readings of a line differ, or are too many to tell."""


def is_address(text: str) -> bool:
    """Whether *text* is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def text_format(form: str, kept: frozenset[str] = frozenset()) -> TextFormat:
    """
    Return the format *form*: a name of `TEXT_FORMATS`, `alb`, or a format string of nginx or Apache.

    Raises:
        BadParameter: It is none of these, or cannot be read with certainty.
    """
    if form == "alb":
        return _AlbFormat(kept)
    named = TEXT_FORMATS.get(form)
    string = _format_string(form) if named is None else named
    title = _TITLES.get(form, f"the format {echo(form)!r}")
    if len(string) > FORMAT_CHARS_MAX:
        raise _bad(f"a format must be text of length <= {FORMAT_CHARS_MAX}")
    if "$" in string:
        literals, variables = _nginx_parts(string)
    elif "%" in string:
        literals, variables = _apache_parts(string)
    else:
        names = ", ".join((*TEXT_FORMATS, "w3c", "alb", "json"))
        raise _bad(
            f"{echo(form)!r} is no format: give one of {names}, or a format string as your server has it, "
            "e.g. '$remote_addr - …' (nginx) or '%h %l …' (Apache)",
        )
    if named is None:
        return TextFormat(literals, variables, title=title, kept=kept)
    # A name that the format lacks (`ident` of nginx) is asked for by no mistake: it is absent.
    return TextFormat(literals, variables, title=title, kept=kept & {v.name for v in variables})


class _AlbFormat(TextFormat):
    """Lines of an AWS Application Load Balancer. Fields that AWS adds at the end are none of ours."""

    def __init__(self, kept: frozenset[str]) -> None:
        string = (
            "$type $time $elb $client $target $part1 $part2 $part3 $status $target_status $received "
            '$sent "$url_request" "$user_agent" $rest'
        )
        roles = {
            "type": "alb_type",
            "time": "iso_time",
            "part1": "latency_part",
            "part2": "latency_part",
            "part3": "latency_part",
            "status": "status",
            "sent": "bytes",
            "url_request": "url_request",
            "rest": "rest",
        }
        literals, variables = _nginx_parts(string)
        named = [
            _Variable("host" if v.name == "client" else v.name, roles.get(v.name, "word")) for v in variables
        ]
        known = {variable.name for variable in named}
        super().__init__(literals, named, title=_TITLES["alb"], kept=kept & known | {"host"})

    def read(self, line: bytes, now_us: int) -> LogLine:
        said = super().read(line, now_us)
        host = said.names["host"].rpartition(":")[0]
        return said._replace(names={**said.names, "host": host.strip("[]")})


def looks_like_vhost(line: bytes) -> bool:
    """Whether the first word of *line* is a virtual host with its port, and no address."""
    return _VHOST.fullmatch(text_of(line.split(b" ", 1)[0])) is not None


def _format_string(form: str) -> str:
    """Return the format string of *form*: as it is, or of a whole directive as it stands in the server's file."""
    if match := _NGINX_DIRECTIVE.fullmatch(form):
        # nginx joins the strings of a directive.
        return "".join(part[1:-1].replace(r"\'", "'") for part in _NGINX_STRING.findall(match["strings"]))
    match = _APACHE_DIRECTIVE_LINE.fullmatch(form)
    return form if match is None else match["string"]


def _nginx_parts(string: str) -> tuple[list[str], list[_Variable]]:
    literals, variables, end = [], [], 0
    for match in _NGINX_VARIABLE.finditer(string):
        name = match[1] or match[2]
        literals.append(string[end : match.start()])
        variables.append(_Variable(_NGINX_NAMES.get(name, name), _nginx_role(name)))
        end = match.end()
    return [*literals, string[end:]], variables


def _nginx_role(name: str) -> str:
    if name in _NGINX_ROLES:
        return _NGINX_ROLES[name]
    if name.startswith("upstream_") or name == "http_x_forwarded_for":
        return "list"
    # Of a header the client decides, of an argument too.
    return "free" if name.startswith(("http_", "sent_http_", "arg_", "cookie_", "args", "query")) else "word"


def _apache_parts(string: str) -> tuple[list[str], list[_Variable]]:
    # As it stands in httpd.conf, quotes escaped.
    string = string.replace(r"\"", '"').replace(r"\t", "\t")
    literals, variables, end, literal = [], [], 0, ""
    for match in _APACHE_DIRECTIVE.finditer(string):
        literal += _without_percent(string[end : match.start()])
        end = match.end()
        if match["letter"] == "%":
            literal += "%"
            continue
        variable = _apache_variable(match)
        in_brackets = match["letter"] == "t" and match["argument"] is None
        literals.append(literal + "[" * in_brackets)
        variables.append(variable)
        literal = "]" * in_brackets
    if not any(variable.role == "status" for variable in variables):
        variables = [v._replace(role="status") if v.role == "first_status" else v for v in variables]
    return [*literals, literal + _without_percent(string[end:])], variables


def _without_percent(literal: str) -> str:
    if "%" in literal:
        raise _bad("a % in the format must begin a directive such as %h, or be %%")
    return literal


def _apache_variable(match: re.Match[str]) -> _Variable:
    letter, argument = match["letter"], match["argument"]
    if letter == "t":
        return _Variable("time", "clf_time" if argument is None else _apache_time_role(argument))
    if letter == "T" and argument is not None:
        if argument not in ("s", "ms", "us"):
            raise _bad(f"%{{{echo(argument)}}}T must be %{{s}}T, %{{ms}}T or %{{us}}T")
        return _Variable("T", f"latency_{argument}")
    if letter == "s":
        # Of a redirected request, %s is the first status, and %>s the one that was sent.
        return _Variable("status", "status" if match["which"] == ">" else "first_status")
    if letter == "U%q":
        return _Variable("target", "target")
    if argument is not None and letter not in ("a", "p", "P"):
        return _Variable(argument.lower(), "list" if argument.lower() == "x-forwarded-for" else "free")
    # %{c}a is the peer, which may be a proxy, and no client.
    name = "peer" if letter == "a" and argument is not None else _APACHE_NAMES.get(letter, letter)
    return _Variable(name, _APACHE_ROLES.get(letter, "word"))


def _apache_time_role(argument: str) -> str:
    form = argument.removeprefix("begin:").removeprefix("end:").replace("%F", "%Y-%m-%d")
    form = form.replace("%T", "%H:%M:%S")
    role = {"sec": "epoch_s", "msec": "epoch_ms", "usec": "epoch_us"}.get(form)
    if role is None and form == "%d/%b/%Y:%H:%M:%S %z":
        role = "clf_time"
    if role is None and re.fullmatch(r"%Y-%m-%d[T ]%H:%M:%S ?%z", form):
        role = "iso_time"
    if role is None:
        raise _bad(
            f"%{{{echo(argument)}}}t must be a time with an offset: %t, %{{sec}}t, %{{msec}}t, %{{usec}}t or "
            "%{%Y-%m-%dT%H:%M:%S%z}t",
        )
    return role


def _bad(reason: str) -> BadParameter:
    return BadParameter(f"log_format: {reason}", field="log_format")
