"""A handler package that sends back what it was given, in every form that a request can have."""

import hashlib
import threading
import time
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gati_core import App, GlobalContext, HandlerError, LocalContext, Request, Response

app = App("echo")


class Order(msgspec.Struct):
    """A body with rules."""

    sku: Annotated[str, Meta(min_length=1)]
    quantity: Annotated[int, Meta(ge=1)] = 1


@dataclass
class Point:
    """A body that is a dataclass."""

    x: int
    y: int = 0


@app.route("/echo", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def echo(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Everything that the handler can see of the request."""
    body = req.body
    res.json(
        {
            "method": req.method,
            "path": req.path,
            "query": req.query,
            "headers": req.headers,
            "cookies": req.cookies,
            "body": body if not isinstance(body, bytes) else {"bytes": len(body)},
            "request_id": lctx.request_id,
            "client_ip": lctx.client_ip,
        }
    )


@app.get("/items/{item}/{part}")
async def item(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Path parameters, decoded."""
    res.json(req.params)


@app.get("/items/special/{part}")
async def special(req: Request[None], res: Response[str], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A static segment wins over a parameter."""
    res.text(f"special {req.params['part']}")


@app.post("/digest")
async def digest(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Length and hash of the raw body."""
    res.json({"bytes": len(req.raw_body), "sha256": hashlib.sha256(req.raw_body).hexdigest()})


@app.post("/mirror")
async def mirror(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """The raw body back."""
    res.send(req.raw_body)


@app.get("/bytes/{count}")
async def some_bytes(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """That many bytes."""
    res.send(bytes(int(req.params["count"])))


@app.get("/text")
async def text(req: Request[None], res: Response[str], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Text that needs UTF-8."""
    res.text("grüße, 世界")


@app.get("/nothing")
async def nothing(req: Request[None], res: Response[None], gctx: GlobalContext, lctx: LocalContext) -> None:
    """No terminal call at all: 204."""


@app.get("/headers")
async def headers(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Status and headers of the handler's own."""
    res.status(203).header("x-one", "1").header("set-cookie", "a=1").header("set-cookie", "b=2").json({"ok": True})


@app.get("/elsewhere")
async def elsewhere(req: Request[None], res: Response[None], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A redirect."""
    res.redirect("/text")


@app.post("/orders")
async def orders(req: Request[Order], res: Response[Order], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A typed body."""
    res.status(201).json(req.body)


@app.post("/points")
async def points(req: Request[list[Point]], res: Response[int], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A list of dataclasses."""
    res.json(sum(point.x + point.y for point in req.body))


@app.get("/thread/{seconds}")
def in_thread(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A `def` handler: blocks its own thread and nobody else."""
    time.sleep(float(req.params["seconds"]))
    res.json(
        {"thread": threading.current_thread().name, "is_main": threading.current_thread() is threading.main_thread()}
    )


@app.get("/slow/{seconds}", timeout_s=0.3)
async def slow(req: Request[None], res: Response[str], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Has 0.3 seconds."""
    import anyio

    await anyio.sleep(float(req.params["seconds"]))
    res.text("in time")


@app.get("/refuse/{status}")
async def refuse(req: Request[None], res: Response[None], gctx: GlobalContext, lctx: LocalContext) -> None:
    """An error of the handler's own."""
    raise HandlerError("the tea is for somebody else", int(req.params["status"]), code="echo.refused", context="secret")


@app.get("/broken")
async def broken(req: Request[None], res: Response[None], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A bug."""
    raise LookupError("password=hunter2")


@app.get("/broken-late")
async def broken_late(req: Request[None], res: Response[str], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A bug after the answer."""
    res.text("answered before")
    raise LookupError("password=hunter2")


@app.get("/unencodable")
async def unencodable(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """An answer that is no JSON."""
    res.json(object())
