"""An OpenAI-compatible proxy with keys and budgets of your own: `UPSTREAM_KEY=sk-… uvicorn openai_proxy:app`."""

import json
import os

import httpx
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tollkeeper import Denied, Tollkeeper, Usage, asgi, usage_from

STEP, MOST = Usage(completion_tokens=50), 4096  # A stream pays in steps; an answer has a maximum.
upstream = httpx.AsyncClient(base_url="https://api.openai.com/v1/", timeout=600)
upstream.headers["Authorization"] = "Bearer " + os.environ["UPSTREAM_KEY"]
app = FastAPI()
app.add_middleware(asgi.Middleware, toll=Tollkeeper.open("./data"))


@app.exception_handler(Denied)
@app.exception_handler(httpx.HTTPError)
async def failed(_, exc):
    error = {"code": getattr(exc, "reason", "upstream_failed"), "message": str(exc)}
    return JSONResponse({"error": error}, getattr(exc, "status", 502))


@app.post("/v1/chat/completions")
async def chat(request: Request):
    metering, body = request.state.tollkeeper, await request.json()
    usage = Usage(len(json.dumps(body)), model=body["model"])  # Most a token a byte; or use a tokenizer.
    wanted = (body.get("stream_options") or {}).get("include_usage")
    most = 0 if body.get("stream") else body.get("max_completion_tokens") or body.pop("max_tokens", 0) or MOST
    body |= {"max_completion_tokens": most} if most else {"stream_options": {"include_usage": True}}
    await metering.expect(usage._replace(completion_tokens=most * (body.get("n") or 1)))
    answer = await upstream.send(upstream.build_request("POST", "chat/completions", json=body), stream=True)
    if not most and answer.is_success:
        return StreamingResponse(relay(answer, metering, usage, wanted), media_type="text/event-stream")
    if await answer.aread() and answer.is_success:
        metering.usage = usage_from("openai", answer.json(), model=usage.model)
    return Response(answer.content, answer.status_code, media_type="application/json")


async def relay(answer, metering, usage, wanted):
    left, metering.usage = 0, usage
    try:
        async for line in answer.aiter_lines():
            chunk = json.loads(line[6:]) if line.startswith("data: {") else {"choices": [{"delta": {}}]}
            if any(text for c in chunk["choices"] for name, text in c["delta"].items() if name != "role"):
                if not left and not (left := (more := await metering.extend(STEP)).granted.completion_tokens):
                    raise Denied(more.denial)
                left -= 1
                metering.usage = usage = usage._replace(completion_tokens=usage.completion_tokens + 1)
            if chunk.get("usage"):  # The exact counts, at the end.
                metering.usage = usage_from("openai", chunk, model=usage.model)
            if chunk["choices"] or wanted:
                yield line + "\n"
    except (Denied, httpx.HTTPError) as exc:
        metering.error_type = getattr(exc, "reason", "upstream_failed")
        yield b"data: %b\n\ndata: [DONE]\n\n" % (await failed(None, exc)).body
    finally:
        await answer.aclose()
