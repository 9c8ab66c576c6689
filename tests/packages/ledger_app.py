"""A handler package that misbehaves on demand and keeps a ledger of what it ran.

Every event is one line in the file that `GATI_TEST_LEDGER` names: the event, the errand's id, the
attempt and the process. A line is one write to a file opened for appending, so it is whole and in
order however many workers share the file, and it outlives a process that is killed.
"""

import asyncio
import os
import signal
import socket
import time
from typing import Literal

import msgspec

from gati_core import App, GlobalContext, HandlerError, LocalContext, Request, Response

app = App("ledger")
_ledger = os.open(os.environ["GATI_TEST_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)


class Errand(msgspec.Struct):
    """What to note, and how to go wrong."""

    id: str
    act: Literal["answer", "sleep", "block", "crash", "exit", "raise", "refuse"] = "answer"
    seconds: float = 0.0
    attempts: int = 1000
    """Go wrong up to this attempt, and answer after it."""


class Receipt(msgspec.Struct):
    """Who ran the errand, and in which attempt."""

    id: str
    attempt: int
    pid: int
    worker: str


def note(event: str, errand: Errand, attempt: int) -> None:
    """Append one line."""
    os.write(_ledger, f"{event} {errand.id} {attempt} {os.getpid()}\n".encode())


async def run(errand: Errand, res: Response[Receipt], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Note the start, go wrong if asked to, note the end, answer."""
    attempt = lctx.meta.attempt
    note("start", errand, attempt)
    try:
        if attempt <= errand.attempts:
            await act(errand)
    except asyncio.CancelledError:
        note("cancel", errand, attempt)
        raise
    note("end", errand, attempt)
    res.json(Receipt(errand.id, attempt, os.getpid(), gctx.instance.id))


async def act(errand: Errand) -> None:
    """Do what the errand asks for."""
    match errand.act:
        case "sleep":
            await asyncio.sleep(errand.seconds)
        case "block":
            time.sleep(errand.seconds)  # noqa: ASYNC251 - a handler that stops the loop is the point
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(7)
        case "raise":
            raise RuntimeError("the combination of the safe is 12-34-56")
        case "refuse":
            raise HandlerError("not today", 422, code="ledger.refused")
        case _:
            pass


@app.post("/once")
async def once(req: Request[Errand], res: Response[Receipt], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Runs at most once, as POST does by default."""
    await run(req.body, res, gctx, lctx)


@app.post("/again", delivery="at_least_once")
async def again(req: Request[Errand], res: Response[Receipt], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Runs at least once."""
    await run(req.body, res, gctx, lctx)


@app.get("/numbers/{count}")
async def numbers(req: Request[None], res: Response[str], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Server-sent events, numbered."""
    async with res.stream(content_type="text/event-stream") as stream:
        for number in range(int(req.params["count"])):
            await stream.event({"number": number}, event="tick", id=str(number))


@app.websocket("/talk")
async def talk(req: Request[None], res: Response[None], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Says on which host it runs, and then every message back."""
    await lctx.websocket.send(socket.gethostname())
    async for message in lctx.websocket:
        await lctx.websocket.send(message)


@app.post("/hasty", delivery="at_least_once", timeout_s=0.5)
async def hasty(req: Request[Errand], res: Response[Receipt], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Has half a second."""
    await run(req.body, res, gctx, lctx)
