"""A handler package of streams, sockets, hooks, topics and handlers that misbehave."""

import asyncio
import os
import random
import time
from pathlib import Path
from typing import Any

from anyio import from_thread

from gati_core import App, ChannelClosed, GlobalContext, HandlerError, LocalContext, Request, Response
from gati_core.fabric import channels

app = App("live")

# A test that kills an ingress need not wait as long as a worker does.
channels.CHANNEL_SILENCE_S = float(os.environ.get("GATI_TEST_SILENCE_S", channels.CHANNEL_SILENCE_S))

_LEDGER = Path(os.environ.get("GATI_TEST_LEDGER", "/dev/null"))
_progress: dict[str, int] = {}
_gates: dict[str, asyncio.Event] = {}


def note(line: str) -> None:
    """Add a line to the file that the test reads."""
    with _LEDGER.open("a") as file:
        file.write(line + "\n")


def now_ms() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


@app.get("/progress/{request}")
async def progress(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """How far another request has come, by its own count."""
    res.json(_progress.get(req.params["request"], 0))


@app.post("/gates/{request}")
async def open_gate(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Let a handler go on that waits for this."""
    _gates.setdefault(req.params["request"], asyncio.Event()).set()


# -- streams --------------------------------------------------------------------------------------


@app.get("/count/{parts}", timeout_s=60)
async def count(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """That many numbered lines, one part each."""
    async with res.header("x-kind", "count").stream(content_type="text/plain") as stream:
        for number in range(int(req.params["parts"])):
            await stream.write(f"{number}\n")


@app.get("/flood/{megabytes}", timeout_s=60)
async def flood(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Megabytes as fast as the client takes them; notes how far it came."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} flood-cleanup {stream.bytes_sent}"))
    async with res.stream() as stream:
        for _ in range(int(req.params["megabytes"]) * 16):
            await stream.write(bytes(64 * 1024))
            _progress[lctx.request_id] = stream.bytes_sent


@app.get("/digest/{seed}/{size}/{part}", timeout_s=60)
async def digest(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """That many bytes, which the seed decides, in parts of that size."""
    body = random.Random(req.params["seed"]).randbytes(int(req.params["size"]))
    part = int(req.params["part"])
    async with res.status(202).stream(content_type="application/x-digest") as stream:
        for at in range(0, len(body), part):
            await stream.write(body[at : at + part])


@app.get("/paced/{parts}", timeout_s=60)
async def paced(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A numbered line every 50 ms."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} paced-cleanup"))
    async with res.stream(content_type="text/plain") as stream:
        note(f"{lctx.request_id} paced-begun")
        for number in range(int(req.params["parts"])):
            await stream.write(f"{number}\n")
            await asyncio.sleep(0.05)


@app.get("/threaded/{parts}", timeout_s=60)
def threaded(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Numbered lines from a thread."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} threaded-cleanup"))
    stream = res.stream(content_type="text/plain")
    try:
        for number in range(int(req.params["parts"])):
            from_thread.run(stream.write, f"{number}\n")
    except BaseException as exc:
        note(f"{lctx.request_id} threaded-ended {type(exc).__name__}")
        raise


@app.get("/events/{count}", timeout_s=60)
async def events(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Server-sent events."""
    async with res.stream(content_type="text/event-stream") as stream:
        for number in range(int(req.params["count"])):
            await stream.event({"number": number}, event="tick", id=str(number))


@app.get("/breaks/{after}", timeout_s=60)
async def breaks(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Fails in the middle of its body."""
    lctx.compensate(lambda: note(f"{lctx.request_id} compensated"))
    async with res.stream(content_type="text/plain") as stream:
        for number in range(int(req.params["after"])):
            await stream.write(f"{number}\n")
        raise RuntimeError("in the middle")


@app.get("/forever", timeout_s=600)
async def forever(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A stream with no end: the client's leaving is what ends it."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} forever-cleanup"))
    async with res.stream(content_type="text/plain") as stream:
        await stream.write("begun\n")
        note(f"{lctx.request_id} begun {os.getpid()}")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            note(f"{lctx.request_id} forever-cancelled {now_ms()}")
            raise


@app.get("/undoable", timeout_s=60)
async def undoable(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A stream with no end, and something to undo if it fails."""
    lctx.compensate(lambda: note(f"{lctx.request_id} compensated"))
    lctx.catch(lambda error, gctx, lctx: note(f"{lctx.request_id} caught {type(error).__name__}"))
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} undoable-cleanup {lctx.phase}"))
    async with res.header("x-kind", "undoable").stream(content_type="text/plain") as stream:
        while True:
            await stream.write("more\n")
            await asyncio.sleep(0.01)


@app.get("/exits", timeout_s=60)
async def exits(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Takes its process along in the middle of its body."""
    async with res.stream(content_type="text/plain") as stream:
        await stream.write("begun\n")
        await asyncio.sleep(0.05)  # the part leaves with the next turn of the loop
        os._exit(9)


# -- sockets --------------------------------------------------------------------------------------


@app.websocket("/echo")
async def echo(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Every message back."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} echo-cleanup {lctx.websocket.close_code}"))
    async for message in lctx.websocket:
        await lctx.websocket.send(message)


@app.websocket("/protocols")
async def protocols(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Chooses the last subprotocol offered."""
    await lctx.websocket.accept(lctx.websocket.subprotocols[-1], {"x-chosen": "last"})
    await lctx.websocket.send(",".join(lctx.websocket.subprotocols))


@app.websocket("/close/{code}")
async def close(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Closes with that code once it has heard something."""
    await lctx.websocket.receive()
    await lctx.websocket.close(int(req.params["code"]), "as asked")


@app.websocket("/refuses/{status}")
async def refuses(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Does not accept."""
    raise HandlerError("not you", int(req.params["status"]), code="live.refused")


@app.websocket("/breaks-late")
async def breaks_late(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Fails after the handshake."""
    await lctx.websocket.receive()
    raise RuntimeError("password=hunter2")


@app.websocket("/greeter")
async def greeter(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Waits for an event and answers with one."""
    await lctx.websocket.accept()
    await lctx.websocket.send(lctx.request_id)
    event = await lctx.websocket.wait_for_event("hello", timeout_s=20)
    await lctx.websocket.emit_event("greeting", {"to": event.data})


@app.websocket("/deaf")
async def deaf(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Accepts and never reads."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} deaf-cleanup"))
    await lctx.websocket.accept()
    await asyncio.Event().wait()


@app.websocket("/gated")
async def gated(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Reads nothing until its gate is opened, and then everything; answers how much that was."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} gated-cleanup {lctx.websocket.close_code}"))
    await lctx.websocket.accept()
    await _gates.setdefault(lctx.request_id, asyncio.Event()).wait()
    received = 0
    async for message in lctx.websocket:
        number = int(message.partition(":")[0]) if isinstance(message, str) else -1
        if number < 0:
            await lctx.websocket.send(f"all {received}")
        elif number == received:
            received += 1
        else:
            await lctx.websocket.close(4000, f"{number} came where {received} was due")


@app.websocket("/mirror")
async def mirror(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Answers each message with as many bytes as it names."""
    async for message in lctx.websocket:
        await lctx.websocket.send(bytes(int(message)))


@app.websocket("/brief", timeout_s=1)
async def brief(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """May stay open for a second, and would stay for ever."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} brief-cleanup"))
    async for message in lctx.websocket:
        await lctx.websocket.send(message)


@app.websocket("/linger/{seconds}")
async def linger(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Says its process id and goes by itself a little later."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} linger-cleanup"))
    await lctx.websocket.send(str(os.getpid()))
    note(f"{lctx.request_id} linger-begun")
    await asyncio.sleep(float(req.params["seconds"]))
    await lctx.websocket.send("done")


@app.websocket("/ticker/{count}/{bytes}")
async def ticker(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Sends that many messages of that size, as fast as the client takes them."""
    padding = "x" * int(req.params["bytes"])
    sent = 0
    try:
        for number in range(int(req.params["count"])):
            await lctx.websocket.send(f"{number}:{padding}")
            sent += 1
            _progress[lctx.request_id] = sent
    except ChannelClosed:
        pass
    note(f"{lctx.request_id} ticker {sent}")


# -- handlers that misbehave ------------------------------------------------------------------------


@app.post("/slow/{seconds}", timeout_s=20)
async def slow(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Waits, and notes what ended it."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} slow-cleanup"))
    note(f"{lctx.request_id} slow-begun")
    try:
        await asyncio.sleep(float(req.params["seconds"]))
    except asyncio.CancelledError:
        note(f"{lctx.request_id} slow-cancelled {now_ms()}")
        raise
    note(f"{lctx.request_id} slow-done")
    res.json({"slept": True})


@app.post("/limited", timeout_s=0.5)
async def limited(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Waits for longer than it may."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} limited-cleanup"))
    lctx.lifecycle.on_timeout(lambda: note(f"{lctx.request_id} limited-timeout"))
    lctx.compensate(lambda: note(f"{lctx.request_id} limited-compensated"))
    note(f"{lctx.request_id} limited-begun {lctx.deadline_ms}")
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        note(f"{lctx.request_id} limited-cancelled {now_ms()}")
        raise


@app.post("/swallows", timeout_s=0.5)
async def swallows(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Does not obey a cancellation for a while."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} swallows-cleanup"))
    give_up_at = time.monotonic() + 6
    while time.monotonic() < give_up_at:
        try:
            await asyncio.sleep(0.2)
        except asyncio.CancelledError:
            continue
    note(f"{lctx.request_id} swallows-returned")


@app.post("/thread/{seconds}", timeout_s=0.3)
def thread(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Stays in its thread longer than it may."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} thread-cleanup"))
    note(f"{lctx.request_id} thread-begun")
    time.sleep(float(req.params["seconds"]))
    try:
        res.json({"late": True})
    except Exception as exc:
        note(f"{lctx.request_id} thread-late {type(exc).__name__}")


@app.post("/odd/{what}")
async def odd(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Ends in ways that a handler should not."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} odd-cleanup"))
    what = req.params["what"]
    if what == "answers-twice":
        res.json({"answer": 1})
        res.json({"answer": 2})
    elif what == "answers-and-fails":
        res.json({"answer": 1})
        raise ValueError("password=hunter2")
    elif what == "generator-exit":
        raise GeneratorExit
    elif what == "system-exit":
        raise SystemExit(3)
    elif what == "stop-iteration":
        raise StopIteration("password=hunter2")
    elif what == "cancelled":
        raise asyncio.CancelledError("password=hunter2")
    elif what == "cancels-its-task":
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(60)


@app.post("/returns")
async def returns(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> Any:
    """Returns what it should answer."""
    return {"password": "hunter2"}


@app.post("/keeps-the-answer")
async def keeps_the_answer(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Writes to its answer when that has long left."""

    async def later() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            try:
                res.json({"too": "late"})
            except Exception as exc:
                note(f"{lctx.request_id} late-answer {type(exc).__name__}")

    task = asyncio.get_running_loop().create_task(later())
    await asyncio.sleep(0)
    res.json({"runs on": not task.done()})


@app.post("/leaks")
async def leaks(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Starts a task and forgets it."""

    async def forgotten() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note(f"{lctx.request_id} leaked-cancelled")
            raise

    asyncio.get_running_loop().create_task(forgotten())
    await asyncio.sleep(0)
    res.json({"left": 1})


@app.post("/exit-exception")
async def exit_exception(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Raises what ends a program."""
    raise KeyboardInterrupt("password=hunter2")


@app.get("/traced")
async def traced(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """For requests with the trace flag."""
    res.json({"flags": list(lctx.meta.flags)})


@traced.before
async def look(gctx: GlobalContext, lctx: LocalContext) -> None:
    """A hook for the trace to show."""
    lctx.set("seen", True)


# -- hooks that misbehave ---------------------------------------------------------------------------


@app.post("/hooks/{what}")
async def hooked(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Answers which of its hooks have run."""
    note(f"{lctx.request_id} hooked-handler")
    ran(lctx, "handler")
    res.json(lctx.get("ran"))


def ran(lctx: LocalContext, what: str) -> None:
    """Remember that this hook has run."""
    lctx.set("ran", [*(lctx.get("ran") or []), what])


@hooked.before(id="first")
def first(gctx: GlobalContext, lctx: LocalContext) -> object:
    """Comes before the one that misbehaves, and returns nonsense."""
    lctx.lifecycle.on_cleanup(lambda: note(f"{lctx.request_id} hooked-cleanup"))
    lctx.compensate(lambda: note(f"{lctx.request_id} hooked-compensated"))
    ran(lctx, "first")
    return ["nonsense", {"password": "hunter2"}]


@hooked.before(id="strange", timeout_s=0.3)
async def strange(gctx: GlobalContext, lctx: LocalContext) -> object:
    """Misbehaves as the path says."""
    what = lctx.request.params["what"]
    if what == "raises":
        raise RuntimeError("password=hunter2")
    if what == "exits":
        raise SystemExit(3)
    if what == "hangs":
        await asyncio.Event().wait()
    if what == "registers":
        lctx.before(added, id="added")
        lctx.after(lambda gctx, lctx: note(f"{lctx.request_id} hooked-after"), id="added-after")
        lctx.after(too_late, id="too-late")
    if what == "registers-for-ever":
        lctx.before(endless, id="endless")
    ran(lctx, "strange")
    return what


@hooked.before(id="stubborn", timeout_s=0.1)
def stubborn(gctx: GlobalContext, lctx: LocalContext) -> None:
    """Holds the loop for longer than it may."""
    if lctx.request.params["what"] == "blocks":
        time.sleep(0.2)


def added(gctx: GlobalContext, lctx: LocalContext) -> None:
    """Was registered by a hook, and registers another."""
    ran(lctx, "added")
    lctx.before(lambda gctx, lctx: ran(lctx, "added by added"), id="added-again")


def too_late(gctx: GlobalContext, lctx: LocalContext) -> None:
    """A before hook cannot run any more when after hooks do."""
    try:
        lctx.before(added)
    except Exception as exc:
        lctx.response.header("x-too-late", type(exc).__name__)


def endless(gctx: GlobalContext, lctx: LocalContext) -> None:
    """Registers itself again, each time that it runs."""
    lctx.before(endless, id="endless")


@hooked.after(id="odd-after")
async def odd_after(gctx: GlobalContext, lctx: LocalContext) -> object:
    """Fails after the handler has answered, when told to."""
    if lctx.request.params["what"] == "raises-after":
        raise RuntimeError("password=hunter2")
    return 42


@hooked.catch(id="outer-catch")
def outer_catch(error: BaseException, gctx: GlobalContext, lctx: LocalContext) -> None:
    """Runs although the one before it has failed."""
    note(f"{lctx.request_id} hooked-catch {type(error).__name__}")


@hooked.catch(id="inner-catch")
def inner_catch(error: BaseException, gctx: GlobalContext, lctx: LocalContext) -> None:
    """Fails itself."""
    raise ValueError("in a catch hook")
