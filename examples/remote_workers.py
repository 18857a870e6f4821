"""
Four worker processes, one gate: each asks a running `tollkeeper serve` over its Unix socket.

    tollkeeper apply examples/provider.toml
    export TOLLKEEPER_OPERATOR_KEY=ok_a-long-secret-of-yours-1234567890
    tollkeeper serve --uds toll.socket &
    uvicorn --app-dir examples --workers 4 remote_workers:app

While the server is away, requests are refused with 503: none passes without a decision.
"""

import os

from fastapi import FastAPI, Request

from tollkeeper import Usage, remote

SOCKET = f"unix:{os.path.abspath('toll.socket')}"
toll = remote.Tollkeeper(os.environ.get("TOLLKEEPER_URL", SOCKET), key=os.environ["TOLLKEEPER_OPERATOR_KEY"])
app = FastAPI()
app.add_middleware(toll.middleware, exempt={"/healthz"})


@app.get("/healthz")
def healthz():
    return {"ok": True, "worker": os.getpid()}


@app.post("/v1/chat")
def chat(request: Request):
    used = Usage(model="gpt-4o-mini", prompt_tokens=812, completion_tokens=97)
    request.state.tollkeeper.usage = used
    return {"answer": "Hello.", "worker": os.getpid()}
