"""What becomes of published packages while they are served: sleep, recycling, crash loops, and their end."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from gati_core.fabric import Fabric, KvBucket, open_fabric
from gati_core.manifests import WorkerAnnouncement, parse_announcement
from gati_core.settings import FabricSettings
from gati_core.timescape import fabric_registry, with_status, with_tag, without_tag
from gati_worker.settings import WorkerSettings
from gati_worker.sleeping import Bells, Sleeper
from tests.helpers.publishing import Shop, running_shop
from tests.helpers.waiting import eventually

OTHER = "sku: str\n    currency: str"
NEW_CLIENT = {"sku": "a", "currency": "EUR"}
SELF_KILLER = """
import os

@app.post("/die", id="die")
async def die(req, res, gctx, lctx) -> None:
    os._exit(7)
"""
GROWING = """
import os
kept = []

@app.post("/grow", id="grow")
async def grow(req, res, gctx, lctx) -> None:
    kept.append(bytearray(64 * 1024 * 1024))
    res.json(os.getpid())

@app.get("/pid", id="pid")
async def pid(req, res, gctx, lctx) -> None:
    res.json(os.getpid())
"""


async def members(fabric: Fabric, version: str) -> list[WorkerAnnouncement]:
    """The announcements of the workers of one package version."""
    bucket = KvBucket(fabric.connection, fabric.subjects.pools_bucket)
    found = []
    for key in await bucket.keys():
        entry = await bucket.get(key) if key.startswith("worker.") else None
        if entry is not None:
            found.append(parse_announcement(entry.value, key=key))
    return [each for each in found if each.manifest.version == version]


async def states(fabric: Fabric, version: str) -> list[str]:
    return [each.state for each in await members(fabric, version)]


async def published(shop: Shop, version: str, *options: str, **parts: str) -> None:
    done = await shop.run("publish", await shop.build(version, **parts), *options)
    assert done.returncode == 0, done.stderr


# -- sleep --------------------------------------------------------------------------------------


async def test_an_old_version_sleeps_until_somebody_asks_for_it(tmp_path: Path) -> None:
    async with running_shop(tmp_path, GATI_WORKER_IDLE_S="0.5") as shop:
        await published(shop, "1.0")
        await published(shop, "2.0", "--keep-old", fields=OTHER)

        async def sleeps() -> bool:
            return await states(shop.inside, "1.0") == ["asleep"]

        await eventually(sleeps, within_s=15)
        for _ in range(2):  # it sleeps again, and is woken again
            assert await shop.ran(**{"x-gati-version": "v1.0"}) == "1.0"
            await eventually(sleeps, within_s=15)
        assert await states(shop.inside, "2.0") == ["ready"]
        assert (await shop.order(NEW_CLIENT)).headers["x-ran"] == "2.0"


async def test_many_requests_at_once_wake_one_version_and_none_is_lost(tmp_path: Path) -> None:
    async with running_shop(tmp_path, GATI_WORKER_IDLE_S="0.5") as shop:
        await published(shop, "1.0")
        await published(shop, "2.0", "--keep-old", fields=OTHER)

        async def sleeps() -> bool:
            return await states(shop.inside, "1.0") == ["asleep"]

        await eventually(sleeps, within_s=15)
        ran: list[str] = []

        async def ask() -> None:
            ran.append(await shop.ran(**{"x-gati-version": "v1.0"}))

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(ask)

        assert ran == ["1.0"] * 50


async def test_a_protected_tag_wakes_a_version_and_keeps_it_awake(tmp_path: Path) -> None:
    async with running_shop(tmp_path, GATI_WORKER_IDLE_S="0.5") as shop:
        await published(shop, "1.0")
        await published(shop, "2.0", "--keep-old", fields=OTHER)
        registry = fabric_registry(shop.inside)

        async def sleeps() -> bool:
            return await states(shop.inside, "1.0") == ["asleep"]

        async def is_awake() -> bool:
            return await states(shop.inside, "1.0") == ["ready"]

        await eventually(sleeps, within_s=15)
        first = (await registry.timeline("shop", "order")).versions[0].tsv
        await registry.change(
            "shop", "order", lambda before: with_tag(before, first, "stable", now_ms=1, actor="user:test")
        )
        await eventually(is_awake, within_s=15)
        await registry.change(
            "shop", "order", lambda before: without_tag(before, "stable", now_ms=1, actor="user:test")
        )
        await eventually(sleeps, within_s=15)


async def test_work_whose_bell_was_not_heard_wakes_as_well(gati_fabric_settings: FabricSettings) -> None:
    async with open_fabric(gati_fabric_settings, name="test") as fabric:
        bell = Bells(fabric).bell("shop-0")  # without `listen` it never rings
        sleeper = Sleeper(fabric, WorkerSettings(heartbeat_s=0.1), "shop-0", bell)

        await fabric.publisher.send(fabric.subjects.work("shop-0", "order"), b"work")

        with anyio.fail_after(10):
            await sleeper.until_woken()


async def test_whatever_must_be_ready_has_as_many_processes_as_asked_for(tmp_path: Path) -> None:
    async with running_shop(tmp_path, GATI_WORKER_MIN_INSTANCES="2", GATI_WORKER_IDLE_S="0.5") as shop:
        await published(shop, "1.0")

        async def are_two() -> bool:
            return await states(shop.inside, "1.0") == ["ready", "ready"]

        await eventually(are_two, within_s=15)
        await published(shop, "2.0", "--keep-old", fields=OTHER)

        async def is_one_that_sleeps() -> bool:
            return await states(shop.inside, "1.0") == ["asleep"] and len(await states(shop.inside, "2.0")) == 2

        await eventually(is_one_that_sleeps, within_s=15)


# -- recycling and crash loops ------------------------------------------------------------------


async def test_a_process_is_replaced_after_so_many_requests_and_no_request_fails(tmp_path: Path) -> None:
    async with running_shop(tmp_path, GATI_WORKER_MAX_REQUESTS="50") as shop:
        await published(shop, "1.0", bottom=GROWING)
        pids = set()

        async def are_three() -> bool:
            answer = await shop.client.get("/pid")
            assert answer.status_code == 200
            pids.add(answer.json())
            return len(pids) >= 3

        await eventually(are_three, within_s=60)


async def test_a_process_that_has_grown_too_large_is_replaced(tmp_path: Path) -> None:
    async with running_shop(tmp_path, GATI_WORKER_MAX_RSS_MB="300") as shop:
        await published(shop, "1.0", bottom=GROWING)
        first = (await shop.client.get("/pid")).json()
        for _ in range(5):
            assert (await shop.client.post("/grow")).status_code == 200

        async def is_another() -> bool:
            answer = await shop.client.get("/pid")
            assert answer.status_code == 200
            return answer.json() != first

        await eventually(is_another, within_s=30)


async def test_a_crash_loop_is_reported_and_taken_back_when_it_is_over(tmp_path: Path) -> None:
    async with running_shop(tmp_path, GATI_WORKER_CRASH_WINDOW_S="15", GATI_WORKER_RESTART_DELAY_S="0.01") as shop:
        await published(shop, "1.0", bottom=SELF_KILLER)
        for _ in range(3):
            assert (await shop.client.post("/die")).status_code == 502

        async def is_reported() -> bool:
            record = await shop.record("1.0")
            return record is not None and "died 3 times within 15 s, last with exit code 7" in record.trouble

        await eventually(is_reported, within_s=15)
        shown = await shop.run("versions", "show", "order", "v1.0")
        assert "trouble" in shown.stdout
        assert "exit code 7" in shown.stdout
        assert await shop.ran() == "1.0"

        async def is_over() -> bool:
            record = await shop.record("1.0")
            return record is not None and record.trouble == ""

        await eventually(is_over, within_s=40)


async def test_why_a_package_has_not_started_is_shown_with_its_handlers_versions(tmp_path: Path) -> None:
    async with running_shop(tmp_path) as shop:
        await published(shop, "1.0")
        top = "@app.on_startup\nasync def fail(gctx):\n    raise RuntimeError('no database here')\n"
        failing = await shop.build("2.0", fields='sku: str\n    note: str = ""', top=top)
        assert (await shop.run("publish", failing)).returncode == 1

        shown = await shop.run("versions", "show", "order", "v2.0")

        assert shown.returncode == 0, shown.stderr
        assert "shop 2.0 is no version: the package has not started" in shown.stdout
        assert "no database here" in shown.stdout


# -- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [False, True], ids=["alone", "shared with the newer one"])
async def test_the_schema_of_a_version_that_ended_is_rolled_back_unless_another_uses_it(
    tmp_path: Path, shares: bool
) -> None:
    migrations = tmp_path / "migrations"
    migrations.mkdir()
    (migrations / "0001_orders.sql").write_text("CREATE TABLE orders (id INTEGER PRIMARY KEY);")
    (migrations / "0001_orders.rollback.sql").write_text("DROP TABLE orders;")
    database = tmp_path / "shop.db"
    schema = f'app.db_schema("orders_v1", url="sqlite:///{database}", migrations="{migrations}")\n'

    def tables() -> set[str]:
        with closing(sqlite3.connect(database)) as connection:
            return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    async with running_shop(tmp_path) as shop:
        await published(shop, "1.0", top=schema)
        assert "orders" in tables()
        await published(shop, "2.0", fields='sku: str\n    note: str = ""', top=schema if shares else "")
        registry = fabric_registry(shop.inside)
        first = (await registry.timeline("shop", "order")).versions[0].tsv

        await registry.change(
            "shop", "order", lambda before: with_status(before, first, "deactivated", now_ms=1, actor="user:test")
        )

        async def is_decommissioned() -> bool:
            return "package_decommissioned" in shop.fabric.logs(lines=1000)

        await eventually(is_decommissioned, within_s=30)
        assert ("orders" in tables()) is shares
        assert await shop.ran() == "2.0"
