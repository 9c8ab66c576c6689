"""A handler package for a fabric with hardly any room: handlers that note how they began and how they ended."""

import asyncio
import os
from pathlib import Path
from typing import Any

from gati_core import App, GlobalContext, LocalContext, Request, Response

app = App("capacity")

_LEDGER = Path(os.environ.get("GATI_TEST_LEDGER", "/dev/null"))


def note(line: str) -> None:
    """Add a line to the file that the test reads."""
    with _LEDGER.open("a") as file:
        file.write(line + "\n")


async def work(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Takes as long as it is told to."""
    run = f"{lctx.request_id} {lctx.meta.attempt}"
    note(f"{run} begun")
    lctx.lifecycle.on_cleanup(lambda: note(f"{run} cleanup"))
    try:
        await asyncio.sleep(int(req.params["ms"]) / 1000)
    except asyncio.CancelledError:
        note(f"{run} cancelled")
        raise
    note(f"{run} done")
    res.json({"done": True})


app.post("/once/{ms}", id="once")(work)
app.put("/again/{ms}", id="again")(work)
app.post("/limited/{ms}", id="limited", timeout_s=0.15)(work)
