"""The handlers that the benchmarks are measured on: each only builds its answer.

Run it with `python -m gati_worker --source benchmarks/bench_app.py`.
"""

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta

from gati_core import App, GlobalContext, LocalContext, Request, Response

app = App("bench")


class NewOrder(msgspec.Struct, forbid_unknown_fields=True):
    """An order as a customer places it."""

    sku: Annotated[str, Meta(min_length=1, max_length=64)]
    quantity: Annotated[int, Meta(ge=1, le=1000)] = 1


class Order(msgspec.Struct):
    """An order as it is answered; its id is the id of the request."""

    id: str
    sku: str
    quantity: int


class Greeting(msgspec.Struct):
    """What the caller of `/hello/{name}` gets."""

    message: str


@app.post("/orders")
async def order_once(req: Request[NewOrder], res: Response[Order], gctx: GlobalContext, lctx: LocalContext) -> None:
    """The default workload: a POST, so at most once."""
    res.status(201).json(Order(lctx.request_id, req.body.sku, req.body.quantity))


@app.post("/orders-again", delivery="at_least_once")
async def order_again(req: Request[NewOrder], res: Response[Order], gctx: GlobalContext, lctx: LocalContext) -> None:
    """The same answer under the delivery mode that may run a request twice."""
    res.status(201).json(Order(lctx.request_id, req.body.sku, req.body.quantity))


@app.get("/hello/{name}")
async def greet(req: Request[None], res: Response[Greeting], gctx: GlobalContext, lctx: LocalContext) -> None:
    """No body in, one route parameter."""
    res.json(Greeting(f"Hello, {req.params['name']}!"))


_gate = asyncio.Event()
_progress = {"waiting": 0, "sent": 0}


@app.get("/wait", timeout_s=300)
async def wait(req: Request[None], res: Response[str], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Waits until somebody posts to `/release`, as for another service."""
    _progress["waiting"] += 1
    try:
        await _gate.wait()
    finally:
        _progress["waiting"] -= 1
    res.text("released")


@app.post("/release")
async def release(req: Request[None], res: Response[str], gctx: GlobalContext, lctx: LocalContext) -> None:
    """All that wait go on, and what comes later waits again."""
    _gate.set()
    _gate.clear()
    res.text("done")


@app.get("/progress")
async def progress(req: Request[None], res: Response[dict[str, int]], gctx: GlobalContext, lctx: LocalContext) -> None:
    """How many requests wait, and how many bytes all streams together have sent."""
    res.json(_progress)


@app.get("/stream/{parts}/{bytes}", timeout_s=300)
async def stream(req: Request[None], res: Response[bytes], gctx: GlobalContext, lctx: LocalContext) -> None:
    """So many parts of so many bytes, as fast as the client takes them."""
    part = bytes(int(req.params["bytes"]))
    async with res.stream() as body:
        for _ in range(int(req.params["parts"])):
            await body.write(part)
            _progress["sent"] += len(part)


@app.websocket("/echo")
async def echo(req: Request[None], res: Response[None], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Every message back as it came."""
    async for message in lctx.websocket:
        await lctx.websocket.send(message)
