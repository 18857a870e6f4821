"""A Django app behind the gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from tests.stacks.gated import BLOCK, FILE, PIECES, reaches, report, toll
from tollkeeper import Usage


def reached(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    def noting(request: HttpRequest) -> HttpResponse:
        reaches(request.path)
        return get_response(request)

    return noting


def ops(request: HttpRequest) -> Any:
    return JsonResponse(report())


def work(request: HttpRequest) -> Any:
    return JsonResponse({"path": request.path})


def file(request: HttpRequest) -> Any:
    return FileResponse(FILE.open("rb"), content_type="text/plain")


def boom(request: HttpRequest) -> Any:
    raise RuntimeError("boom")


def stream(request: HttpRequest) -> Any:
    metering = request.META["tollkeeper.metering"]

    def pieces() -> Iterator[bytes]:
        for number, piece in enumerate(PIECES):
            yield piece
            metering.usage = Usage(cost_nanos=10 * (number + 1))

    return StreamingHttpResponse(pieces(), content_type="text/event-stream")


def endless(request: HttpRequest) -> Any:
    metering = request.META["tollkeeper.metering"]

    def pieces() -> Iterator[bytes]:
        sent = 0
        try:
            while True:
                sent += 1
                yield BLOCK
        finally:
            metering.usage = Usage(cost_nanos=sent)

    return StreamingHttpResponse(pieces())


urlpatterns = [
    path("ops", ops),
    path("v1/work", work),
    path("v1/é b", work),
    path("v1/file", file),
    path("v1/boom", boom),
    path("v1/stream", stream),
    path("v1/endless", endless),
]
settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of a test",
    MIDDLEWARE=[f"{__name__}.reached", "django.middleware.common.CommonMiddleware"],
)
app = toll.wsgi_middleware(get_wsgi_application(), exempt={"/ops"})
