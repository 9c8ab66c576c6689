"""Database schemas of packages that real workers run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gati_core import App
from gati_core.fabric import open_fabric
from gati_core.schemas import fabric_schemas
from gati_worker.schemas import decommission_schemas
from tests.helpers.postgres import PASSWORD, Postgres
from tests.helpers.processes import running_fabric
from tests.helpers.waiting import eventually
from tests.helpers.wheels import write_wheel

APP = """
import os
import psycopg
from gati_core import App

app = App("stocked")
app.db_schema("schema_v1", url="env:STOCK_DB", migrations="migrations/")
seen = []


def rows():
    with psycopg.connect(os.environ["STOCK_DB"]) as connection:
        return connection.execute("SELECT count(*) FROM stock").fetchone()[0]


@app.on_startup
def look(gctx):
    seen.append(rows())


@app.get("/stock")
def stock(req, res, gctx, lctx) -> None:
    res.json({"at_start": seen[0], "now": rows()})
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    package = tmp_path / "stocked_app"
    (package / "migrations").mkdir(parents=True)
    (package / "__init__.py").write_text(APP)
    (package / "migrations" / "m1.sql").write_text("CREATE TABLE stock (sku TEXT)")
    (package / "migrations" / "m1.rollback.sql").write_text("DROP TABLE stock")
    return package


@pytest.fixture
def url(postgres: Postgres, gati_namespace: str) -> Iterator[str]:
    postgres.create(gati_namespace)
    yield postgres.url(gati_namespace)
    postgres.drop(gati_namespace)


async def test_a_package_starts_when_its_schema_is_there_and_leaves_it_when_it_drains(
    tmp_path: Path, package: Path, url: str, postgres: Postgres, gati_namespace: str
) -> None:
    # Slower than a worker may be that is not at work on its schemas.
    (package / "migrations" / "m2.sql").write_text("INSERT INTO stock VALUES ('a');\nSELECT pg_sleep(4);")
    (package / "migrations" / "m2.rollback.sql").write_text("DELETE FROM stock")
    environment = {"STOCK_DB": url, "GATI_WORKER_READY_WITHIN_S": "3"}

    async with (
        running_fabric(tmp_path, packages=[str(package)], workers=2, environment=environment) as fabric,
        fabric.client() as client,
        open_fabric(fabric.settings, name="test") as inside,
    ):
        answer = await client.get("/stock")
        assert (answer.status_code, answer.json()) == (200, {"at_start": 1, "now": 1})
        for worker in fabric.workers:
            worker.terminate()
            await worker.wait()

        with postgres.connect(gati_namespace) as database:
            assert database.execute("SELECT count(*) FROM stock").fetchall() == [(1,)]
            applied = database.execute("SELECT migration_id FROM _gati_stocked_log ORDER BY 1").fetchall()
        assert applied == [("m1",), ("m2",)]
        record = await fabric_schemas(inside, environ={}, actor="test").record("stocked", "schema_v1")
        assert record is not None
        assert (record.status, record.used_by) == ("applied", ["stocked@edited"])

        app = App("stocked")
        app.db_schema("schema_v1", url="env:STOCK_DB", migrations=package / "migrations")
        ended = await decommission_schemas(inside, app, user="stocked@edited", actor="test", environ={"STOCK_DB": url})

        assert [(each.success, each.executed) for each in ended] == [(True, ["m2", "m1"])]
    assert PASSWORD not in fabric.logs(lines=10_000)


async def test_a_package_whose_migration_fails_does_not_start_and_says_why(
    tmp_path: Path, package: Path, url: str
) -> None:
    broken = package / "migrations" / "m2.sql"
    broken.write_text("INSERT INTO nowhere VALUES (1)")
    (tmp_path / "logs").mkdir()

    async with running_fabric(tmp_path / "logs", environment={"STOCK_DB": url}) as fabric:
        worker = fabric.start_worker(package)
        await eventually(lambda: bool(worker.events("package_failed")), within_s=20)

        told = worker.events("package_failed")[0]
        for part in ("migration m2 failed", str(broken), f"{package / '__init__.py'}:7", '"nowhere" does not exist'):
            assert part in told["error"], part
        broken.write_text("INSERT INTO stock VALUES ('a')")
        await eventually(lambda: bool(worker.events("package_started")), within_s=20)

        async with fabric.client() as client:

            async def is_served() -> bool:
                answer = await client.get("/stock")
                return answer.status_code == 200 and answer.json() == {"at_start": 1, "now": 1}

            await eventually(is_served, within_s=10)
    assert PASSWORD not in worker.log()


def test_an_installed_wheel_brings_its_migrations(tmp_path: Path, package: Path) -> None:
    files = {
        str(path.relative_to(package.parent)): path.read_text()
        for path in package.rglob("*")
        if path.suffix != ".pyc" and path.is_file()
    }
    wheel = write_wheel(tmp_path, "stocked", files=files)
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--offline", "--target", site, wheel],
        check=True,
        capture_output=True,
    )

    script = "from stocked_app import app; [s] = app.db_schemas; print(s.directory); print(s.where)"
    said = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(site)},
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
    )

    assert said.stdout.splitlines() == [
        str(site / "stocked_app" / "migrations"),
        f"{site / 'stocked_app' / '__init__.py'}:7",
    ]
