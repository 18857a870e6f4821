"""The programs that docs/library.md shows for Flask and Django run as written, started by the commands beside them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.end_to_end.server import free_port
from tests.stacks.test_wsgi_servers import DEADLINE_S, ROOT, serving

PAGE: Final = (ROOT / "docs/library.md").read_text()
SET_UP: Final = """
import json, sys
from tollkeeper import Tollkeeper
with Tollkeeper.open("./data") as toll:
    applied = toll.apply(sys.stdin.read())
print(json.dumps({issued.entry.id: issued.secret for issued in applied.issued}))
"""
ENTRIES: Final = """
[[accounts]]
id = "acme"
name = "Acme"
[[keys]]
id = "k"
account = "acme"
[[budgets]]
id = "two"
account = "acme"
amount = 2
unit = "requests"
[[routes]]
id = "chat"
method = "POST"
path = "/v1/chat"
"""
USED: Final = """
from tollkeeper import Tollkeeper, UsageQuery
with Tollkeeper.open("./data") as toll:
    query = UsageQuery(account_id="acme", from_us=0, to_us=2**52, measures=("tokens",), filters={"status": ("200",)})
    print(toll.usage(query).totals["tokens"])
"""
URLS: Final = """
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.http import JsonResponse
from tollkeeper import Usage

@csrf_exempt
def chat(request):
    request.META["tollkeeper.metering"].usage = Usage(prompt_tokens=812, completion_tokens=97, model="gpt-4o")
    return JsonResponse({"answer": "Hello."})

urlpatterns = [path("v1/chat", chat)]
"""


def program(name: str) -> str:
    """Return the program that the page shows under *name*."""
    shown = re.findall(rf"```python\n(# {re.escape(name)}\n.*?)```", PAGE, re.DOTALL)
    (found,) = (text for text in shown if "fastapi" not in text)
    return str(found)


def command(app: str) -> list[str]:
    """Return the module and arguments that the page starts *app* with."""
    (found,) = re.findall(rf"^(gunicorn .*{re.escape(app)})$", PAGE, re.MULTILINE)
    return shlex.split(found)


def python(directory: Path, *arguments: str, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        input=given,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={"PYTHONPATH": str(ROOT / "src")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(directory: Path, app: str, *, open_status: int) -> None:
    """The budget of two lets two calls pass, the third is refused, and their tokens are booked."""
    (directory / "secrets.json").write_text(python(directory, "-c", SET_UP, given=ENTRIES))
    port = free_port()
    with serving([*command(app), "-b", f"127.0.0.1:{port}"], port, directory, cwd=directory) as stack:
        answers = [stack.ask("POST", "/v1/chat", "k") for _ in range(3)]
        assert [status for status, _ in answers] == [200, 200, 402]
        assert json.loads(answers[0][1]) == {"answer": "Hello."}
        assert stack.ask("POST", "/v1/chat", None)[0] == 401
        assert stack.ask("GET", "/healthz", None)[0] == open_status
        stack.kill()
    assert python(directory, "-c", USED).strip() == str(2 * (812 + 97))


def test_the_flask_app_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(program("app.py"))
    check(tmp_path, "app:app", open_status=200)


def test_the_django_site_of_the_page(tmp_path: Path) -> None:
    python(tmp_path, "-m", "django", "startproject", "mysite", ".")
    (tmp_path / "mysite/wsgi.py").write_text(program("mysite/wsgi.py"))
    (tmp_path / "mysite/urls.py").write_text(URLS)
    check(tmp_path, "mysite.wsgi:application", open_status=401)
