"""A handler package whose every answer a simulation has to give as a fabric does: hooks, compensation, types, time."""

import asyncio
import time
from typing import Any

import msgspec

from gati_core import (
    App,
    Event,
    Forbidden,
    GlobalContext,
    HandlerError,
    KeyConflict,
    LocalContext,
    RateLimited,
    Request,
    Response,
    Unauthenticated,
)

app = App("contract")
NOTES = app.bucket("notes")


class Receipt(msgspec.Struct):
    """What is declared here and there."""

    id: str
    pieces: int = 1


async def note(gctx: GlobalContext, key: str, line: str) -> None:
    """Add a line to a note, whoever else does so too."""
    notes = gctx.buckets[NOTES]
    while True:
        entry = await notes.get(key)
        try:
            if entry is None:
                await notes.create(key, line.encode())
            else:
                await notes.update(key, entry.value + b" " + line.encode(), revision=entry.revision)
        except KeyConflict:
            continue
        return


# -- hooks of the whole package ---------------------------------------------------------------------


@app.before
def global_before(gctx: GlobalContext, lctx: LocalContext) -> None:
    """First of all."""
    lctx.set("order", ["global"])


@app.after
def global_after(gctx: GlobalContext, lctx: LocalContext) -> None:
    """Last of all."""
    lctx.response.header("x-order", ",".join([*lctx.get("order"), "global"]))


@app.catch
async def global_catch(error: BaseException, gctx: GlobalContext, lctx: LocalContext) -> None:
    """Answers for one kind of error, and only for that."""
    if isinstance(error, HandlerError) and error.error_code == "contract.translated":
        lctx.response.status(409).header("x-translated", "yes").json({"instead": str(error)})


@app.get("/notes/{key}")
async def read_note(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """What was noted under a key."""
    entry = await gctx.buckets[NOTES].get(req.params["key"])
    res.json(entry.value.decode() if entry is not None else None)


@app.get("/order/{how}")
async def order(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Who ran when."""
    lctx.get("order").append("handler")
    lctx.after(local_after)
    if req.params["how"] == "fails":
        raise HandlerError("no", 418, code="contract.refused")
    res.json(lctx.get("order"))


@order.before
async def route_before(gctx: GlobalContext, lctx: LocalContext) -> None:
    """Adds a hook of the request's own."""
    lctx.get("order").append("route")
    lctx.before(local_before)


def local_before(gctx: GlobalContext, lctx: LocalContext) -> None:
    """After those of the route."""
    lctx.get("order").append("local")


def local_after(gctx: GlobalContext, lctx: LocalContext) -> None:
    """Before those of the route."""
    lctx.get("order").append("local")


@order.after(threaded=True)
def route_after(gctx: GlobalContext, lctx: LocalContext) -> None:
    """In a thread."""
    lctx.get("order").append("route")


@app.get("/guarded/{how}")
async def guarded(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """What its guard lets through."""
    res.json({"attempts": lctx.get("attempts", 0)})


@guarded.before(timeout_s=0.3, retries=2, backoff_s=0.01)
async def guard(gctx: GlobalContext, lctx: LocalContext) -> None:
    """Every way for a hook to behave."""
    attempts = lctx.get("attempts", 0) + 1
    lctx.set("attempts", attempts)
    match lctx.request.params["how"]:
        case "unknown":
            raise Unauthenticated("who are you?")
        case "forbidden":
            raise Forbidden("not you")
        case "limited":
            raise RateLimited("too often", retry_after_s=7)
        case "own":
            raise HandlerError("the hook's own", 422, code="contract.own")
        case "raises":
            raise RuntimeError("password=hunter2")
        case "hangs":
            await asyncio.sleep(60)
        case "answers":
            lctx.response.status(203).header("x-by", "hook").json({"by": "hook"})
        case "second-time" if attempts < 2:
            raise RuntimeError("password=hunter2")
        case _:
            pass


@app.get("/caught/{how}")
async def caught(req: Request[None], res: Response[Receipt], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Fails, and something catches it."""
    how = req.params["how"]
    if how == "translated":
        raise HandlerError("no", 400, code="contract.translated")
    if how == "local":
        lctx.catch(local_catch)
    raise LookupError("password=hunter2")


@caught.catch
async def route_catch(error: BaseException, gctx: GlobalContext, lctx: LocalContext) -> None:
    """Fails itself, or answers with what is not declared."""
    how = lctx.request.params["how"]
    if how == "raises":
        raise ValueError("password=hunter2")
    if how == "undeclared":
        lctx.response.json({"pieces": "many"})
    if how == "answered":
        lctx.response.json({"id": "r-1", "pieces": 3})


def local_catch(error: BaseException, gctx: GlobalContext, lctx: LocalContext) -> None:
    """The first to be asked."""
    lctx.response.status(410).text(type(error).__name__)


# -- middleware -------------------------------------------------------------------------------------


@app.use(path="/middle/*")
async def around(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext, next: Any) -> None:
    """Around the handler, or in its place."""
    lctx.get("order").append("in")
    if req.params["how"] == "stops":
        res.status(402).json(lctx.get("order"))
        return
    await next()
    lctx.get("order").append("out")


@app.use_for_errors(path="/middle/*")
async def rescue(
    error: BaseException, req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext
) -> None:
    """Answers for what nobody has caught."""
    if req.params["how"] == "rescued":
        res.status(410).json(type(error).__name__)


@app.get("/middle/{how}")
async def middle(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """In the middle of it."""
    if req.params["how"] != "fine":
        raise LookupError("password=hunter2")
    res.json(lctx.get("order"))


# -- compensation -----------------------------------------------------------------------------------


@app.post("/saga/{key}/{end}", timeout_s=0.6)
async def saga(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Two steps that can be undone, one of them badly, and a third that decides."""
    key, end = req.params["key"], req.params["end"]

    async def undo(step: str) -> None:
        await note(gctx, key, f"undone-{step}")

    def break_down() -> None:
        raise RuntimeError("password=hunter2")

    await note(gctx, key, "one")
    lctx.register_compensating_action(lambda: undo("one"))
    lctx.register_compensating_action(break_down)
    await note(gctx, key, "two")
    lctx.register_compensating_action(lambda: undo("two"))
    lctx.lifecycle.on_timeout(lambda: note(gctx, key, "timeout"))
    lctx.lifecycle.on_error(lambda error: note(gctx, key, "error"))
    lctx.lifecycle.on_cleanup(lambda: note(gctx, key, "cleanup"))
    if end == "fails":
        raise HandlerError("step three", 409, code="contract.step_three")
    if end == "bug":
        raise LookupError("password=hunter2")
    if end == "late":
        await asyncio.sleep(60)
    if end == "after-answer":
        res.json("done")
        raise LookupError("password=hunter2")
    res.json("done")


# -- types, statuses, time --------------------------------------------------------------------------


@app.get("/typed/{what}")
async def typed(req: Request[None], res: Response[Receipt], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Answers that fit the declaration, or do not."""
    match req.params["what"]:
        case "good":
            res.json(Receipt("r-1"))
        case "bad":
            res.json({"id": 7})  # type: ignore[arg-type]
        case "text":
            res.text("r-1")
        case "bad-but-404":
            res.status(404).json({"id": 7})  # type: ignore[arg-type]
        case "nothing":
            res.end()
        case _:
            pass


@app.post("/receipts")
async def receipts(req: Request[Receipt], res: Response[Receipt], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A typed body there and back."""
    res.status(201).header("location", f"/receipts/{req.body.id}").json(req.body)


@app.route("/statuses/{status}", methods=["GET", "DELETE"])
async def statuses(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Any status, with a body where the handler gives one."""
    res.status(int(req.params["status"])).text("body")


@app.get("/redirects/{status}")
async def redirects(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Any redirect."""
    res.redirect("/elsewhere?a=1", int(req.params["status"]))


@app.get("/waits/{seconds}", timeout_s=30)
async def waits(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Takes its time."""
    await asyncio.sleep(float(req.params["seconds"]))
    res.json("in time")


@app.get("/limited", timeout_s=0.3)
async def limited(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Has less time than it takes."""
    await asyncio.sleep(60)


@app.get("/blocked", timeout_s=0.3)
def blocked(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """The same in a thread."""
    time.sleep(0.8)
    res.json("late")


@app.get("/deaf", timeout_s=0.3)
async def deaf(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """The same, and it does not listen."""
    loop = asyncio.get_running_loop()
    hears_at = loop.time() + 0.9
    while loop.time() < hears_at:
        try:
            await asyncio.sleep(0.7)
        except asyncio.CancelledError:
            continue
    await asyncio.sleep(60)


@app.get("/facts")
async def facts(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """What the contexts say about the request."""
    meta = lctx.meta
    res.json(
        {
            "meta": [meta.method, meta.path, list(meta.flags), meta.attempt, meta.phase],
            "ip": lctx.client_ip,
            "trace": lctx.trace_id if lctx.parent_span_id else len(lctx.trace_id),
            "client": lctx.client_id,
            "app": gctx.instance.app,
            "host": req.headers.get("host"),
            "remaining": round(lctx.remaining_s()),
        }
    )


# -- state ------------------------------------------------------------------------------------------


@app.get("/isolated/{value}")
async def isolated(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Its own state, whoever else runs."""
    before = lctx.get("value")
    lctx.set("value", req.params["value"])
    await asyncio.sleep(0.05)
    res.json([before, lctx.get("value")])


@app.get("/restored")
async def restored(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """State as it was."""
    lctx.set("a", 1)
    token = lctx.snapshot()
    lctx.set("a", 2)
    lctx.set("b", 3)
    lctx.restore(token)
    res.json([lctx.get("a"), lctx.get("b")])


@app.post("/counters/{key}")
async def count(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """One more, by compare-and-set; says how often it had to look again."""
    bucket = gctx.buckets[NOTES]
    for again in range(100):
        entry = await bucket.get(req.params["key"])
        try:
            if entry is None:
                await bucket.create(req.params["key"], b"1")
            else:
                await bucket.update(req.params["key"], b"%d" % (int(entry.value) + 1), revision=entry.revision)
        except KeyConflict:
            continue
        res.json({"looked_again": again > 0})
        return
    raise HandlerError("too busy", 503)


@app.post("/events/{topic}/{key}")
async def publish(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Publish, and hear the request's own event."""
    async with lctx.subscribe("echo") as events:
        lctx.publish("echo", req.body)
        if req.params["topic"] == "kept":
            await gctx.publish_durable("contract-kept", {"key": req.params["key"], "value": req.body})
        else:
            gctx.publish("contract-told", {"key": req.params["key"], "value": req.body})
        res.json((await events.next(5)).payload)


@app.subscribe("contract-told")
async def told(event: Event, gctx: GlobalContext) -> None:
    """Notes what was published."""
    await note(gctx, event.payload["key"], f"told-{event.payload['value']}")


@app.subscribe("contract-kept", durable="keepers")
async def kept(event: Event, gctx: GlobalContext) -> None:
    """Notes what was published durably, when it is asked the second time."""
    if event.attempt == 1:
        raise RuntimeError("not yet")
    await note(gctx, event.payload["key"], f"kept-{event.payload['value']}-{event.attempt}")


# -- streams and sockets ----------------------------------------------------------------------------


@app.get("/streams/{how}", timeout_s=0.8)
async def streams(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Streams that end in every way."""
    how = req.params["how"]
    if how == "fails-first":
        res.stream()
        raise HandlerError("not today", 503, code="contract.not_today")
    if how == "begins-and-fails":
        async with res.stream():
            raise RuntimeError("password=hunter2")
    async with res.status(206).header("x-kind", how).stream(content_type="text/plain") as stream:
        await stream.write("one\n")
        if how == "fails":
            raise RuntimeError("password=hunter2")
        if how == "large":
            await stream.write(b"x" * 300_000)
        if how == "late":
            await asyncio.sleep(60)
        await stream.write("two\n")


@app.websocket("/sockets/{how}", timeout_s=0.8)
async def sockets(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Sockets that end in every way."""
    how = req.params["how"]
    if how == "refused":
        raise HandlerError("not here", 404, code="contract.no_such_socket")
    if how == "ignored":
        return
    if how == "answered":
        res.status(402).header("x-price", "7").json({"price": 7})
        return
    if how == "bug":
        raise RuntimeError("password=hunter2")
    await lctx.websocket.accept(headers={"x-how": how})
    if how == "late":
        await asyncio.sleep(60)
    if how == "notes":
        async for message in lctx.websocket:
            await note(gctx, str(message), f"closed-{await _close_code(lctx)}")
        return
    message = await lctx.websocket.receive()
    if how == "fails":
        raise RuntimeError("password=hunter2")
    if how == "own":
        raise HandlerError("the handler's own", 409)
    await lctx.websocket.send(message)
    if how.isdigit():
        await lctx.websocket.close(int(how), "as asked")


async def _close_code(lctx: LocalContext) -> int:
    """Wait for the client's close."""
    try:
        await lctx.websocket.receive()
    except Exception:
        return lctx.websocket.close_code or 0
    return 0
