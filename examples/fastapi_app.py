"""
A FastAPI application behind the gate.

    tollkeeper apply examples/provider.toml
    uvicorn --app-dir examples fastapi_app:app
    curl -X POST localhost:8000/v1/chat -H "Authorization: Bearer $SECRET_OF_ACME_PROD"
"""

from contextlib import asynccontextmanager

from fastapi import FastAPI, Request

from tollkeeper import Tollkeeper, Usage

MODEL = "gpt-4o-mini"
toll = Tollkeeper.open("./data")


@asynccontextmanager
async def lifespan(app):
    yield
    toll.close()


def most_of(scope):
    """Return the most that a request may use: this much is held until it is known."""
    if scope["path"] == "/v1/chat":
        return Usage(model=MODEL, prompt_tokens=2_000, completion_tokens=500)
    return Usage()


app = FastAPI(lifespan=lifespan)
app.add_middleware(toll.middleware, expect=most_of, exempt={"/healthz", "/docs", "/openapi.json"})


@app.get("/healthz")
def healthz():
    return {"ok": True}


@app.get("/v1/models/{name}")
def model(name: str):
    return {"name": name}


@app.post("/v1/chat")
def chat(request: Request):
    # What the model answered; with its response, `tollkeeper.usage_from("openai", response)` reads the tokens.
    request.state.tollkeeper.usage = Usage(model=MODEL, prompt_tokens=812, completion_tokens=97)
    return {"answer": "Hello."}
