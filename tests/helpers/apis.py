"""An API with something of everything, for generators."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gati_core import App, Request, Response
from gati_core.app.inspection import report_on
from gati_core.codegen import Api, make_api
from gati_core.gtype import Brand, UniqueItems


class Card(msgspec.Struct, tag="card"):
    number: Annotated[str, Brand("secret")]


class Cash(msgspec.Struct, tag="cash"):
    cents: Annotated[int, Meta(ge=0)]


class Line(msgspec.Struct):
    """One line of an order; */ ends no comment."""

    sku: Annotated[str, Meta(pattern="^[a-z0-9-]+$")]
    quantity: Annotated[int, Meta(ge=1)] = 1
    class_: str | None = None


class NewOrder(msgspec.Struct):
    lines: Annotated[list[Line], Meta(min_length=1)]
    payment: Card | Cash
    until: datetime.date | None = None
    tags: Annotated[list[str], UniqueItems] = []


class Order(NewOrder, kw_only=True):
    id: str
    parent: Order | None = None


class Search(msgspec.Struct):
    text: str = ""
    limit: Annotated[int, Meta(ge=1, le=100)] = 10
    tags: list[str] = []
    exact: bool = False


class Item(msgspec.Struct):
    shop: int
    sku: str


class Headers(msgspec.Struct):
    x_request_source: str


class Echo(msgspec.Struct):
    """What the handlers were given."""

    method: str
    params: dict[str, Any]
    query: dict[str, Any]
    headers: dict[str, Any]


app = App("rich")


@app.post("/orders")
async def place_order(req: Request[NewOrder], res: Response[Order], gctx: Any, lctx: Any) -> None:
    """Place an order."""
    body = req.body
    res.status(201).json(Order(body.lines, body.payment, body.until, body.tags, id="o 1/ä"))


@app.get("/orders")
async def list_orders(req: Request[None, Search], res: Response[list[Order]], gctx: Any, lctx: Any) -> None:
    res.json([])


@app.get("/orders/{id}", roles=["reader"])
async def show_order(req: Request[None], res: Response[Order], gctx: Any, lctx: Any) -> None:
    res.status(404).json({})  # type: ignore[arg-type]


@app.route("/shops/{shop}/items/{sku}", methods=["GET", "PUT"], id="item", unknown_fields="reject")
async def item(req: Request[None, Search, Item, Headers], res: Response[Echo], gctx: Any, lctx: Any) -> None:
    seen = {"x_request_source": req.headers.x_request_source}
    res.json(Echo(req.method, msgspec.to_builtins(req.params), msgspec.to_builtins(req.query), seen))


@app.delete("/orders/{id}")
async def cancel_order(req: Request[None], res: Response[None], gctx: Any, lctx: Any) -> None:
    res.end()


@app.get("/untyped/{class}/{body}")
async def untyped(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
    res.json([req.params["class"], req.params["body"]])


@app.websocket("/live")
async def live(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...


def rich_api() -> Api:
    """The API of the app above."""
    report = report_on(app, version="1.2.3")
    return make_api(report.app, report.version, report.handlers, report.schemas.get)
