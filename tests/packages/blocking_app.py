"""A handler package that stops its own event loop, in several ways.

Notes what it runs in the file that `GATI_TEST_LEDGER` names, in the form of `ledger_app`.
"""

import os
import re
import time
from typing import Any

from gati_core import App, GlobalContext, LocalContext, Request, Response

app = App("blocking")
_ledger = os.open(os.environ["GATI_TEST_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
_FOR_EVER_S = 3600.0


def note(event: str, req: Request[Any], lctx: LocalContext) -> None:
    """Append one line."""
    os.write(_ledger, f"{event} {req.params['id']} {lctx.meta.attempt} {os.getpid()}\n".encode())


def stop_the_loop(seconds: float) -> None:
    """What an author calls without knowing that it blocks."""
    time.sleep(seconds)  # the line that blocks


def backtrack() -> None:
    """Hold the interpreter lock as well, for longer than anybody waits: no other thread runs."""
    re.match(r"(a+)+$", "a" * 64 + "b")


@app.put("/block/{seconds}/{id}", timeout_s=15)
async def block(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Runs at least once."""
    note("start", req, lctx)
    stop_the_loop(float(req.params["seconds"]))
    note("end", req, lctx)
    res.json({"attempt": lctx.meta.attempt, "pid": os.getpid()})


@app.post("/hang/again/{id}", delivery="at_least_once")
async def hang_again(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Never comes back; runs at least once."""
    note("start", req, lctx)
    stop_the_loop(_FOR_EVER_S)


@app.post("/hang/once/{id}")
async def hang_once(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Never comes back; runs at most once."""
    note("start", req, lctx)
    stop_the_loop(_FOR_EVER_S)


@app.post("/hang/locked/{id}", delivery="at_least_once")
async def hang_locked(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Never comes back, and no thread of the process runs meanwhile."""
    note("start", req, lctx)
    backtrack()


@app.get("/pid")
async def pid(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Which process answers."""
    res.json({"pid": os.getpid()})
