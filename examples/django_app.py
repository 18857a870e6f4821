"""
A Django site behind the gate, in one file. In a project, the last two lines are in `mysite/wsgi.py`.

    tollkeeper apply examples/provider.toml
    gunicorn -w 1 --threads 8 --chdir examples django_app:application
    curl -X POST localhost:8000/v1/chat -H "Authorization: Bearer $SECRET_OF_ACME_PROD"
"""

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tollkeeper import Tollkeeper, Usage

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="of-this-example", ALLOWED_HOSTS=["*"])


def healthz(request):
    return JsonResponse({"ok": True})


def model(request, name):
    return JsonResponse({"name": name})


@csrf_exempt
def chat(request):
    used = Usage(model="gpt-4o-mini", prompt_tokens=812, completion_tokens=97)
    request.META["tollkeeper.metering"].usage = used
    return JsonResponse({"answer": "Hello."})


urlpatterns = [path("healthz", healthz), path("v1/models/<name>", model), path("v1/chat", chat)]

toll = Tollkeeper.open("./data")
application = toll.wsgi_middleware(get_wsgi_application(), exempt={"/healthz"})
