"""A fabric in which two versions of one package live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from gati_core.fabric import open_fabric
from gati_core.timescape import Registry, Timeline, fabric_registry, with_tag
from tests.helpers.processes import PACKAGES, FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually

OLD = {"x-gati-version": "v1"}
HANDLERS = ("add", "replace", "same", "left")


class Versioned:
    """A fabric with two versions of one package, each in a worker of its own."""

    def __init__(self, fabric: FabricUnderTest, client: httpx.AsyncClient, registry: Registry) -> None:
        self.fabric = fabric
        self.client = client
        self.registry = registry
        self.first = fabric.workers[0]

    async def timeline(self, handler: str) -> Timeline:
        return await self.registry.timeline("priced", handler)

    async def tag_newest(self, label: str) -> None:
        for handler in HANDLERS:
            tsv = (await self.timeline(handler)).versions[-1].tsv

            def tagged(timeline: Timeline, tsv: str = tsv) -> Timeline:
                return with_tag(timeline, tsv, label, now_ms=1, actor="test")

            await self.registry.change("priced", handler, tagged)

    async def runs(self, method: str = "POST", **headers: str) -> str:
        body = {"sku": "a", "price": "1.50"} if "x-gati-version" in headers else {"sku": "a", "cents": 150}
        answer = await self.client.request(method, "/items", json=body, headers=headers)
        return str(answer.headers.get("x-ran", answer.status_code))


@asynccontextmanager
async def two_versions(
    tmp_path: Path, *, routers: int = 2, environment: Mapping[str, str] | None = None, **second: str
) -> AsyncIterator[Versioned]:
    """Start them, one after the other.

    Args:
        environment: settings of all processes.
        second: of the second worker.
    """
    # Under one name, as two releases of a package have it.
    for folder, source in (("one", "priced_one_app.py"), ("two", "priced_two_app.py")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "priced_app.py").write_text((PACKAGES / source).read_text())
    one, two = (str(tmp_path / folder / "priced_app.py") for folder in ("one", "two"))
    settings = {"GATI_ROUTER_USAGE_EVERY_S": "0.2", "GATI_WORKER_HEALTH_EVERY_S": "0.2", **(environment or {})}
    async with (
        running_fabric(tmp_path, packages=[one], routers=routers, environment=settings) as fabric,
        fabric.client() as client,
        open_fabric(fabric.settings, name="test") as inside,
    ):
        it = Versioned(fabric, client, fabric_registry(inside))
        await it.tag_newest("v1")
        fabric.start_worker(two, **second)

        async def has_arrived() -> bool:
            return await it.runs() == "two"

        await eventually(has_arrived, within_s=20)
        await it.tag_newest("v2")
        yield it
