"""
A Flask application behind the gate. One worker process with many threads: one process owns the data directory.

    tollkeeper apply examples/provider.toml
    gunicorn -w 1 --threads 8 --chdir examples flask_app:app
    curl -X POST localhost:8000/v1/chat -H "Authorization: Bearer $SECRET_OF_ACME_PROD"
"""

from flask import Flask, request

from tollkeeper import Tollkeeper, Usage

MODEL = "gpt-4o-mini"
toll = Tollkeeper.open("./data")
app = Flask(__name__)


def most_of(environ):
    """Return the most that a request may use: this much is held until it is known."""
    if environ["PATH_INFO"] == "/v1/chat":
        return Usage(model=MODEL, prompt_tokens=2_000, completion_tokens=500)
    return Usage()


app.wsgi_app = toll.wsgi_middleware(app.wsgi_app, expect=most_of, exempt={"/healthz"})


@app.get("/healthz")
def healthz():
    return {"ok": True}


@app.get("/v1/models/<name>")
def model(name):
    return {"name": name}


@app.post("/v1/chat")
def chat():
    request.environ["tollkeeper.metering"].usage = Usage(model=MODEL, prompt_tokens=812, completion_tokens=97)
    return {"answer": "Hello."}
