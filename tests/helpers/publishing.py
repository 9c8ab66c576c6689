"""A fabric into which the versions of a small shop are published."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
import httpx

from gati_core.app.building import build_wheel
from gati_core.app.publishing import PackageRecord, fabric_records
from gati_core.fabric import Fabric, open_fabric
from tests.helpers.gati_dev import gati
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.wheels import write_project

SOURCE = """
import msgspec
from gati_core import App, Request, Response

app = App("{app}")
{top}

class Order(msgspec.Struct):
    {fields}


@app.post("/published/{app}")
async def order(req: Request[Order], res: Response[Order], gctx, lctx) -> None:
    res.header("x-ran", "{name}").json(req.body)
"""


class Shop:
    """A fabric whose worker hosts nothing of its own but an unrelated package, and a shop to publish."""

    def __init__(
        self,
        fabric: FabricUnderTest,
        client: httpx.AsyncClient,
        inside: Fabric,
        directory: Path,
        *,
        app: str = "shop",
    ) -> None:
        self.fabric = fabric
        self.client = client
        self.inside = inside
        self.directory = directory
        self.app = app
        self.handler = f"{app}:order"

    def source(self, version: str, *, fields: str = "sku: str", top: str = "") -> str:
        return SOURCE.format(app=self.app, fields=fields, top=top, name=version)

    async def build(
        self, version: str, *, fields: str = "sku: str", top: str = "", bottom: str = "", name: str = ""
    ) -> Path:
        source = self.source(name or version, fields=fields, top=top) + bottom
        project = write_project(self.directory / f"project-{version}", version=version, source=source)
        return (await anyio.to_thread.run_sync(build_wheel, project, self.directory / "dist")).path

    async def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        settings = self.fabric.settings
        environ = {"GATI_NATS_URL": settings.nats_url, "GATI_NAMESPACE": settings.namespace}
        words = [str(each) for each in arguments]
        return await anyio.to_thread.run_sync(lambda: gati(*words, directory=self.directory, environ=environ))

    async def order(self, body: object = None, **headers: str) -> httpx.Response:
        body = {"sku": "a"} if body is None else body
        return await self.client.post(f"/published/{self.app}", json=body, headers=headers)

    async def ran(self, **headers: str) -> str:
        answer = await self.order(**headers)
        ran: str = answer.headers.get("x-ran", str(answer.status_code))
        return ran

    async def record(self, version: str) -> PackageRecord | None:
        return await fabric_records(self.inside).get(self.app, version)


@asynccontextmanager
async def running_shop(directory: Path, **environment: str) -> AsyncIterator[Shop]:
    """A fabric whose one worker hosts what is published; `environment` adds to that of its processes."""
    environment = {"GATI_WORKER_CACHE_DIR": str(directory / "cache"), **environment}
    async with (
        running_fabric(directory, environment=environment) as fabric,
        fabric.client() as client,
        open_fabric(fabric.settings, name="test") as inside,
    ):
        yield Shop(fabric, client, inside, directory)
