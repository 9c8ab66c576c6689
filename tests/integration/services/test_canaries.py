"""Canaries on a whole fabric: routers let them grow, or take them back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest

from gati_core.fabric import Fabric, KvBucket, open_fabric
from gati_core.timescape import Rollout, fabric_registry, read_rollout, rollout_key
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually

SOURCE = """
from gati_core import App

app = App("tried")


@app.get("/tried", id="one")
async def one(req, res, gctx, lctx):
    {body}
"""
KEY = rollout_key("tried", "one")


class Tried:
    """Two versions of a handler, and the rollout between them."""

    def __init__(self, fabric: FabricUnderTest, client: httpx.AsyncClient, inside: Fabric, directory: Path) -> None:
        self.fabric = fabric
        self.client = client
        self.inside = inside
        self.directory = directory
        self.config = KvBucket(inside.connection, inside.subjects.config_bucket)

    async def begin(self, body: str, *, steps: list[float]) -> None:
        """Start the second version, and give it to a half of the callers."""
        registry = fabric_registry(self.inside)
        first = (await registry.timeline("tried", "one")).versions[0]
        # Pinned first: nobody gets the second version before it is watched.
        revision = await self.config.create(KEY, msgspec.json.encode(Rollout(strategy="pin", version=first.tsv)))
        self.fabric.start_worker(source(self.directory / "two", body))

        async def has_arrived() -> bool:
            known = (await registry.timeline("tried", "one")).versions
            answer = await self.client.get("/tried", headers={"x-gati-version": known[-1].tsv})
            return len(known) == 2 and answer.headers.get("x-gati-version") == known[1].tsv

        await eventually(has_arrived, within_s=20)
        second = (await registry.timeline("tried", "one")).versions[1]
        canary = Rollout(
            strategy="canary",
            version=second.tsv,
            baseline=first.tsv,
            percent=50,
            steps=steps,
            step_s=0.1,
            min_requests=5,
            max_latency_ratio=1000,
            stepped_ms=time.time_ns() // 1_000_000,
        )
        await self.config.update(KEY, msgspec.json.encode(canary), revision=revision)

    async def until(self, strategy: str) -> Rollout:
        """Send requests until the rollout is of this kind."""

        async def is_so() -> bool:
            for _ in range(5):
                await self.client.get("/tried")
            return (await self.rollout()).strategy == strategy

        await eventually(is_so, within_s=30)
        return await self.rollout()

    async def rollout(self) -> Rollout:
        entry = await self.config.get(KEY)
        assert entry is not None
        return read_rollout(KEY, entry.value)


def source(directory: Path, body: str) -> str:
    directory.mkdir()
    (directory / "tried_app.py").write_text(SOURCE.format(body=body))
    return str(directory / "tried_app.py")


@pytest.fixture
async def tried(tmp_path: Path) -> AsyncIterator[Tried]:
    environment = {"GATI_WORKER_HEARTBEAT_S": "0.3"}
    first = source(tmp_path / "one", 'res.text("first")')
    async with (
        running_fabric(tmp_path, packages=[first], routers=2, environment=environment) as fabric,
        fabric.client() as client,
        open_fabric(fabric.settings, name="test") as inside,
    ):
        yield Tried(fabric, client, inside, tmp_path)


async def test_a_canary_that_is_well_grows_until_all_have_it(tried: Tried) -> None:
    await tried.begin('res.text("second")', steps=[75, 100])

    after = await tried.until("all")

    assert after.actor == "canary"
    assert "passed all its steps" in after.note
    assert (await tried.client.get("/tried")).text == "second"


async def test_a_canary_that_fails_is_taken_back_and_nobody_gets_it_any_more(tried: Tried) -> None:
    await tried.begin('raise RuntimeError("broken")', steps=[75, 100])

    after = await tried.until("pin")

    assert "answers failed" in after.note

    async def is_back() -> bool:
        return [(await tried.client.get("/tried")).text for _ in range(20)] == ["first"] * 20

    await eventually(is_back, within_s=10)
