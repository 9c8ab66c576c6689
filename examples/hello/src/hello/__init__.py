"""The smallest useful handler package: one route that greets."""

import msgspec

from gati_core import App, GlobalContext, LocalContext, Request, Response

app = App("hello")


class Greeting(msgspec.Struct):
    """What the caller gets."""

    message: str


@app.get("/hello/{name}")
async def greet(req: Request[None], res: Response[Greeting], gctx: GlobalContext, lctx: LocalContext) -> None:
    """Greet somebody by name."""
    res.json(Greeting(f"Hello, {req.params['name']}!"))
