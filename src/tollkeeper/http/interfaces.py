"""
Tells ASGI and WSGI applications apart, so that a middleware refuses the other kind when it is made.

An application is told by the arguments that it takes, `(scope, receive, send)` or `(environ, start_response)`, and by
being a coroutine function. One that takes anything (`*args`) may be of either kind, and is accepted.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Final, Literal

from tollkeeper.errors import BadParameter

Interface = Literal["asgi", "wsgi", "unknown", "neither"]

_ASGI_ARGS: Final = 3
_WSGI_ARGS: Final = 2
_WORDS: Final = {"asgi": "an ASGI application", "wsgi": "a WSGI application", "neither": "not one"}


def must_be_asgi(app: Any) -> None:
    """Raise `BadParameter` if *app* is surely no ASGI application."""
    kind = interface_of(app)
    if kind in ("wsgi", "neither"):
        advice = ". Use toll.wsgi_middleware(app)" if kind == "wsgi" else ""
        if advice and hasattr(app, "wsgi_app"):
            # As Flask has it: the app stays the object that its users decorate and start.
            advice = ". Use app.wsgi_app = toll.wsgi_middleware(app.wsgi_app)"
        raise BadParameter(
            "app must be an ASGI application, which is called with (scope, receive, send), such as FastAPI, Starlette "
            f"or Django's get_asgi_application(): {_name(app)} is {_WORDS[kind]}{advice}.",
            field="app",
        )


def must_be_wsgi(app: Any) -> None:
    """Raise `BadParameter` if *app* is surely no WSGI application."""
    kind = interface_of(app)
    if kind in ("asgi", "neither"):
        advice = ". Use toll.middleware(app)" if kind == "asgi" else ""
        raise BadParameter(
            "app must be a WSGI application, which is called with (environ, start_response), such as Flask or Django's "
            f"get_wsgi_application(): {_name(app)} is {_WORDS[kind]}{advice}.",
            field="app",
        )


def interface_of(app: Any) -> Interface:
    """Return which interface *app* has; `neither` for what cannot be called as one, `unknown` where it may be both."""
    if not callable(app):
        return "neither"
    try:
        parameters = list(inspect.signature(app).parameters.values())
    except (TypeError, ValueError):
        return "asgi" if _is_async(app) else "unknown"  # Made in another language, without a signature.
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = sum(p.default is p.empty for p in positional)
    most = math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(positional)
    needs_names = any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters)
    takes_asgi = required <= _ASGI_ARGS <= most and not needs_names
    takes_wsgi = required <= _WSGI_ARGS <= most and not needs_names
    if _is_async(app):
        return "asgi" if takes_asgi else "neither"
    if takes_asgi and takes_wsgi:
        # With a third argument of its own, such as `exc_info=None`, it is still the application of two.
        return "wsgi" if required == _WSGI_ARGS else "unknown"
    if takes_asgi:
        return "asgi"
    return "wsgi" if takes_wsgi else "neither"


def _is_async(app: Any) -> bool:
    # Of a class, it is the class that is called; of anything else, its `__call__`.
    return inspect.iscoroutinefunction(app) or (
        not inspect.isclass(app) and inspect.iscoroutinefunction(getattr(app, "__call__", None))  # noqa: B004
    )


def _name(app: Any) -> str:
    kind = app if inspect.isclass(app) or inspect.isroutine(app) else type(app)
    return f"{kind.__module__}.{kind.__qualname__}"
