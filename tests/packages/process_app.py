"""A handler package of what happens once per process: start-up, leaving, health, configuration, topics."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from gati_core import App, GlobalContext, LocalContext, Request, Response
from gati_core.contexts import Event, Priority

app = App("process")

_LEDGER = Path(os.environ.get("GATI_TEST_LEDGER", "/dev/null"))
_MOOD = Path(os.environ.get("GATI_TEST_MOOD", "/dev/null"))


def note(line: str) -> None:
    """Add a line to the file that the test reads."""
    with _LEDGER.open("a") as file:
        file.write(line + "\n")


# -- start and end --------------------------------------------------------------------------------


@app.on_startup(priority=Priority.LOW)
async def second(gctx: GlobalContext) -> None:
    """Starts after `first`."""
    if os.environ.get("GATI_TEST_STARTUP") == "fails":
        raise RuntimeError("no database today")
    note("start second")


@app.on_startup(priority=Priority.HIGH)
def first(gctx: GlobalContext) -> None:
    """Starts before everything else."""
    gctx.state["started"] = "first"
    note("start first")


@app.lifecycle.on_pre_shutdown
async def farewell(gctx: GlobalContext) -> None:
    """Requests still run."""
    note("stop farewell")


@app.on_shutdown(name="last", priority=Priority.CLEANUP)
async def last(gctx: GlobalContext) -> None:
    """Runs whatever the others do."""
    note(f"stop last {gctx.state['started']}")


@app.on_shutdown(name="failing", priority=Priority.NORMAL)
async def failing(gctx: GlobalContext) -> None:
    """Does not keep the next one from running."""
    note("stop failing")
    raise RuntimeError("cannot close")


@app.on_shutdown(name="hanging", priority=Priority.HIGH, timeout_s=0.3)
async def hanging(gctx: GlobalContext) -> None:
    """Is cut off."""
    note("stop hanging")
    await asyncio.Event().wait()


@app.on_shutdown(name="blocking", priority=Priority.HIGH, timeout_s=0.3)
def blocking(gctx: GlobalContext) -> None:
    """Is left behind in its thread."""
    note("stop blocking")
    time.sleep(1)


@app.on_shutdown(name="critical", priority=Priority.CRITICAL)
def critical(gctx: GlobalContext) -> None:
    """Comes first."""
    note("stop critical")


@app.on_health_check("mood")
async def mood(gctx: GlobalContext) -> tuple[str, str]:
    """As the file says."""
    word = _MOOD.read_text().strip()
    return (word or "pass"), f"the mood is {word}"


# -- requests -------------------------------------------------------------------------------------


@app.post("/wait/{seconds}")
async def wait(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Is still at it when its process has to leave."""
    note("request begun")
    await asyncio.sleep(float(req.params["seconds"]))
    note("request done")
    res.json({"waited": True})


@app.post("/stored")
async def stored(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Leaves something in its state."""
    lctx.set("seen", [req.raw_body.decode()])
    res.json({"stored": True})


@app.get("/config")
async def config(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """The configuration, and what comes of changing it."""
    refused = []
    settings: Any = gctx.config
    for change in (
        lambda: settings.__setitem__("color", "red"),
        lambda: settings["deep"].__setitem__("er", 1),
        lambda: settings["deep"]["list"].append(1),
        lambda: settings["deep"]["list"][0].__setitem__("x", 1),
        lambda: settings.update(color="red"),
        lambda: settings.pop("color"),
        lambda: setattr(gctx, "config", {}),
    ):
        try:
            change()
        except (TypeError, AttributeError):
            refused.append(True)
    res.json({"color": settings["color"], "deep": settings["deep"]["er"], "refused": len(refused)})


@app.lifecycle.on_config_reload
async def reloaded(gctx: GlobalContext, old: Any, new: Any) -> None:
    """The new one is in place already."""
    note(f"config {old['color']} {new['color']} {gctx.config['color']}")


# -- topics ---------------------------------------------------------------------------------------


@app.subscribe("orders", durable="billing")
async def bill(event: Event, gctx: GlobalContext) -> None:
    """One of the processes gets each durable event."""
    note(f"billed {event.payload} {gctx.instance.id} {event.attempt}")
    if event.payload == "bad" and event.attempt == 1:
        raise RuntimeError("try again")


@app.subscribe("orders")
def watch(event: Event, gctx: GlobalContext) -> None:
    """Every process gets every event."""
    note(f"watched {event.payload} {gctx.instance.id} {event.publisher}")


@app.post("/orders/{name}")
async def order(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Publishes; durably when told to."""
    if "durably" in req.query:
        await gctx.publish_durable("orders", req.params["name"])
    else:
        gctx.publish("orders", req.params["name"])
    res.json({"publisher": gctx.instance.id})


@app.post("/threads/{name}")
def order_from_a_thread(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """The same, from where there is no loop."""
    gctx.publish("orders", req.params["name"])
    res.json({"publisher": gctx.instance.id})


@app.post("/asks")
async def asks(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Asks the fabric about this request, and answers what comes back on its own topic."""
    async with lctx.subscribe("answers") as answers:
        gctx.publish("questions", lctx.request_id)
        lctx.publish("answers", "my own")
        heard = [(await answers.next(timeout_s=10)).payload for _ in range(3)]
    res.json(heard)
