"""The second version: prices are cents. Old clients of `add` and `replace` are translated, those of `left` are not."""

from __future__ import annotations

import asyncio
import threading

import msgspec

from gati_core import App, GlobalContext, LocalContext, Request, Response, VersionedRequest, VersionedResponse

app = App("priced")
health = {"is_well": True}


class Item(msgspec.Struct):
    sku: str
    cents: int


@app.on_health_check("well")
def well(gctx: GlobalContext) -> bool:
    return health["is_well"]


@app.post("/items", id="add")
async def add(req: Request[Item], res: Response[Item], gctx: GlobalContext, lctx: LocalContext) -> None:
    info = lctx.timescape
    res.header("x-chain", f"{info.requested} {info.chain_length} {info.source} {info.transform_ms > 0}")
    res.header("x-ran", "two").status(201).json(req.body)


@app.put("/items", id="replace")
async def replace(req: Request[Item], res: Response[Item], gctx: GlobalContext, lctx: LocalContext) -> None:
    res.header("x-ran", "two").json(req.body)


@app.get("/same", id="same")
async def same(req: Request, res: Response, gctx: GlobalContext, lctx: LocalContext) -> None:
    res.text(lctx.meta.version)


@app.get("/left", id="left")
async def left(req: Request, res: Response[dict[str, str]], gctx: GlobalContext, lctx: LocalContext) -> None:
    res.json({"ran": "two"})


@app.post("/fall-ill", id="fall_ill")
async def fall_ill(req: Request, res: Response, gctx: GlobalContext, lctx: LocalContext) -> None:
    health["is_well"] = False
    res.text("cough")


def to_cents(request: VersionedRequest) -> None:
    text = request.body.pop("price")
    request.body["cents"] = text if text == "refused" else round(float(text) * 100)


async def forward(request: VersionedRequest) -> None:
    if request.body["price"] == "hang":
        await asyncio.Event().wait()
    to_cents(request)


def forward_in_a_thread(request: VersionedRequest) -> None:
    if request.body["price"] == "hang":
        threading.Event().wait(10)  # nobody sets it; the thread ends some time after its limit
    to_cents(request)


def backward(response: VersionedResponse) -> None:
    cents = response.body.pop("cents")
    if cents == 66600:
        raise ValueError("no such price")
    if cents == 77700:
        threading.Event().wait(1.5)  # nobody sets it
    response.body["price"] = f"{cents / 100:.2f}"


@app.transformer(add, from_version="v1", timeout_s=0.3)
class CentsForText:
    forward_request = staticmethod(forward)
    backward_response = staticmethod(backward)


@app.transformer(replace, from_version="v1", timeout_s=0.3, threaded=True)
class CentsForTextInThreads:
    forward_request = staticmethod(forward_in_a_thread)
    backward_response = staticmethod(backward)
