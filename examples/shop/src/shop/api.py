"""The shop's routes.

An article that has a stock level is only sold while it lasts; one without is always available. The
stock is taken with compare-and-set, so that two workers cannot sell the last piece twice.
"""

import msgspec

from gati_core import App, GlobalContext, HandlerError, KeyConflict, LocalContext, Request, Response
from shop.models import NewOrder, Order, StockLevel

app = App("shop")
ORDERS = app.bucket("orders")
STOCK = app.bucket("stock")

_TRIES = 20


@app.post("/orders")
async def place_order(req: Request[NewOrder], res: Response[Order], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Take the stock, keep the order, answer 201."""
    order = Order(id=lctx.request_id, sku=req.body.sku, quantity=req.body.quantity)
    await take_stock(gctx, order.sku, order.quantity)
    await gctx.buckets[ORDERS].create(order.id, msgspec.json.encode(order))
    res.status(201).header("location", f"/orders/{order.id}").json(order)


@app.get("/orders/{id}")
async def show_order(req: Request[None], res: Response[Order], gctx: GlobalContext, lctx: LocalContext) -> None:
    """One order, or 404."""
    entry = await gctx.buckets[ORDERS].get(order_key(req.params["id"]))
    if entry is None:
        raise HandlerError(f"there is no order {req.params['id']}", 404, code="shop.no_such_order")
    res.json(msgspec.json.decode(entry.value, type=Order))


@app.get("/stock/{sku}")
async def show_stock(req: Request[None], res: Response[StockLevel], gctx: GlobalContext, lctx: LocalContext) -> None:
    """How many pieces are left, or 404 for an article without a stock level."""
    entry = await gctx.buckets[STOCK].get(order_key(req.params["sku"]))
    if entry is None:
        raise HandlerError(f"{req.params['sku']} has no stock level", 404, code="shop.no_stock_level")
    res.json(msgspec.json.decode(entry.value, type=StockLevel))


@app.put("/stock/{sku}")
async def set_stock(
    req: Request[StockLevel], res: Response[StockLevel], gctx: GlobalContext, lctx: LocalContext
) -> None:
    """Set how many pieces there are. Doing it twice is the same as once."""
    await gctx.buckets[STOCK].put(order_key(req.params["sku"]), msgspec.json.encode(req.body))
    res.json(req.body)


async def take_stock(gctx: GlobalContext, sku: str, quantity: int) -> None:
    """Take pieces off the stock; raises 409 when there are not enough."""
    stock = gctx.buckets[STOCK]
    for _ in range(_TRIES):
        entry = await stock.get(sku)
        if entry is None:
            return
        level = msgspec.json.decode(entry.value, type=StockLevel)
        if level.quantity < quantity:
            raise HandlerError(f"only {level.quantity} pieces of {sku} are left", 409, code="shop.sold_out")
        left = StockLevel(quantity=level.quantity - quantity)
        try:
            await stock.update(sku, msgspec.json.encode(left), revision=entry.revision)
        except KeyConflict:
            continue  # somebody else bought one in between: look again
        return
    raise HandlerError(f"the stock of {sku} is too busy, please try again", 503, code="shop.busy")


def order_key(text: str) -> str:
    """`text` if it can be a key, else 404: nothing is kept under such a name."""
    if not text or not all(character.isalnum() or character in "-_" for character in text):
        raise HandlerError(f"there is nothing under {text!r}", 404, code="shop.not_found")
    return text
