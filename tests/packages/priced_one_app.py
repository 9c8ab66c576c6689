"""The first version of a package: prices are text."""

from __future__ import annotations

import msgspec

from gati_core import App, GlobalContext, LocalContext, Request, Response

app = App("priced")


class Item(msgspec.Struct):
    sku: str
    price: str


@app.post("/items", id="add")
async def add(req: Request[Item], res: Response[Item], gctx: GlobalContext, lctx: LocalContext) -> None:
    res.header("x-ran", "one").status(201).json(req.body)


@app.put("/items", id="replace")
async def replace(req: Request[Item], res: Response[Item], gctx: GlobalContext, lctx: LocalContext) -> None:
    res.header("x-ran", "one").json(req.body)


@app.get("/same", id="same")
async def same(req: Request, res: Response, gctx: GlobalContext, lctx: LocalContext) -> None:
    res.text(lctx.meta.version)


@app.get("/left", id="left")
async def left(req: Request, res: Response, gctx: GlobalContext, lctx: LocalContext) -> None:
    res.text("one")
