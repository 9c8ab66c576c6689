"""Routers end versions that nobody uses, one sweep at a time."""

from __future__ import annotations

from pathlib import Path

from gati_core import App, GlobalContext, LocalContext, Request, Response
from gati_core.app.versioning import PackageVersions
from gati_core.fabric import Fabric, open_fabric
from gati_core.manifests import publishing_store
from gati_core.timescape import fabric_registry, fabric_usage, with_tag
from tests.helpers.processes import running_fabric
from tests.helpers.waiting import eventually

EAGER = {"GATI_ROUTER_SWEEP_EVERY_S": "0.4", "GATI_SWEEP_GRACE_S": "0", "GATI_SWEEP_MIN_REQUESTS": "5"}


async def publish(fabric: Fabric, path: str) -> str:
    """Register a version that differs from the others by its path; returns its TSV."""
    app = App("aged")

    @app.get(path, id="one")
    async def one(req: Request, res: Response, gctx: GlobalContext, lctx: LocalContext) -> None:
        res.text(path)

    versions = PackageVersions(app, fabric_registry(fabric), publishing_store(fabric))
    await versions.store_documents()
    (done,) = await versions.register(package="1", actor="test")
    return done.tsv


async def test_two_routers_end_what_is_hardly_used_once_and_spare_the_rest(tmp_path: Path) -> None:
    async with (
        running_fabric(tmp_path, packages=["ledger_app.py"], routers=2, environment=EAGER) as running,
        open_fabric(running.settings, name="test") as fabric,
    ):
        registry = fabric_registry(fabric)
        # Used and named before any of them can be swept: only the newest is safe by itself.
        unused = await publish(fabric, "/a")
        used = await publish(fabric, "/b")
        await fabric_usage(fabric).add("aged", "one", {used: 5}, at_s=registry.now_ms() / 1000)
        named = await publish(fabric, "/c")
        await registry.change("aged", "one", lambda it: with_tag(it, named, "stable", now_ms=1, actor="test"))
        newest = await publish(fabric, "/d")

        async def has_ended() -> bool:
            return not (await registry.timeline("aged", "one")).require(unused).is_active

        await eventually(has_ended, within_s=15)
        first = await registry.timeline("aged", "one")
        assert [each.tsv for each in first.versions if each.is_active] == [used, named, newest]
        changes = await registry.changes("aged", "one", at_most=100)
        ended = [(each.tsv, each.actor, each.reason) for each in changes if each.type == "deactivated"]
        assert ended == [(unused, "sweep", "low_usage")]
