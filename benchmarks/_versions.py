"""More versions of `bench_app.py`, and of a handler that changes twice, each in a worker process of its own."""

from __future__ import annotations

from pathlib import Path

import anyio

from gati_core.fabric import Fabric, KvBucket, open_fabric
from gati_core.manifests import parse_announcement
from gati_core.settings import FabricSettings
from gati_core.timescape import fabric_registry, with_tag

HERE = Path(__file__).parent
LIVE_WITHIN_S = 120.0

_CHANGED = '''"""A handler whose types change, and how its clients are translated."""

import msgspec

from gati_core import App, GlobalContext, LocalContext, Request, Response, VersionedRequest, VersionedResponse

app = App("changed")


class Order(msgspec.Struct):
    {sku}: str
    {quantity}: int


@app.post("/changed", id="changed")
async def changed(req: Request[Order], res: Response[Order], gctx: GlobalContext, lctx: LocalContext) -> None:
    res.status(201).json(req.body)


def _renamed(old: str, new: str) -> type:
    class Renamed:
        @staticmethod
        def forward_request(request: VersionedRequest) -> None:
            request.body[new] = request.body.pop(old)

        @staticmethod
        def backward_response(response: VersionedResponse) -> None:
            response.body[old] = response.body.pop(new)

    return Renamed
'''
_FROM_FIRST = '\napp.transformer("changed", from_version="v1"{to})(_renamed("quantity", "count"))\n'
_FROM_SECOND = '\napp.transformer("changed", from_version="v2")(_renamed("sku", "article"))\n'


def unchanged(folder: Path, count: int) -> list[Path]:
    """That many versions of `bench_app.py`, which differ in nothing but a word that a handler answers with."""
    text = (HERE / "bench_app.py").read_text()
    assert "Hello, " in text
    assert "res.status(201)" in text
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(count):
        path = folder / f"bench_{number:03}.py"
        # A statement that does nothing makes the handlers' code another, and so a version of each.
        path.write_text(text.replace("    res.", f"    _ = {number}\n    res."))
        made.append(path)
    return made


def renamed_twice(folder: Path) -> list[Path]:
    """Three versions of `/changed`: the later ones call first one field, then the other, something else."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [
        _CHANGED.format(sku="sku", quantity="quantity"),
        _CHANGED.format(sku="sku", quantity="count") + _FROM_FIRST.format(to=""),
        _CHANGED.format(sku="article", quantity="count") + _FROM_FIRST.format(to=', to_version="v2"') + _FROM_SECOND,
    ]
    made = []
    for number, text in enumerate(texts, 1):
        path = folder / f"changed_{number}.py"
        path.write_text(text)
        made.append(path)
    return made


async def wait_live(nats_url: str, count: int) -> None:
    """Return when that many pools have a worker that is ready."""
    async with open_fabric(FabricSettings(nats_url=nats_url), name="bench", ensure=False) as fabric:
        with anyio.fail_after(LIVE_WITHIN_S):
            while True:
                if len(await _live(fabric)) >= count:
                    return
                await anyio.sleep(0.2)


async def tag_newest(nats_url: str, app: str, handler: str, label: str) -> None:
    """Give the newest version of a handler a name."""
    async with open_fabric(FabricSettings(nats_url=nats_url), name="bench", ensure=False) as fabric:
        registry = fabric_registry(fabric)
        newest = (await registry.timeline(app, handler)).newest
        assert newest is not None
        await registry.change(
            app, handler, lambda before: with_tag(before, newest.tsv, label, now_ms=registry.now_ms(), actor="bench")
        )


async def _live(fabric: Fabric) -> set[str]:
    bucket = KvBucket(fabric.connection, fabric.subjects.pools_bucket)
    pools = set()
    for key in await bucket.keys():
        entry = await bucket.get(key) if key.startswith("worker.") else None
        if entry is not None:
            pools.add(parse_announcement(entry.value, key=key).manifest.pool)
    return pools
