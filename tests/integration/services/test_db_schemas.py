"""Database schemas: migrations that run once for the whole fabric, on real SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import structlog.testing
from yoyo.backends.core.sqlite3 import SQLiteBackend

from gati_core.fabric import EmbeddedBroker, Fabric, KvBucket, open_fabric
from gati_core.schemas import DbSchema, SchemaRecord, SchemaResult, Schemas, _backends, _thread, fabric_schemas
from gati_core.settings import FabricSettings
from gati_testing import MemoryBucket
from tests.helpers import schema_process
from tests.helpers.postgres import PASSWORD, Postgres
from tests.helpers.waiting import eventually

MINE = "shop-v1"
OTHER = "shop-v2"
ORDERS = "CREATE TABLE orders (id INTEGER PRIMARY KEY)"
ITEMS = "CREATE TABLE items (id INTEGER PRIMARY KEY)"
FOREVER = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "postgres": "SELECT pg_sleep(600)",
}


class TestDatabase:
    """An empty database of one test."""

    __test__ = False

    def __init__(self, kind: str, url: str, postgres: Postgres | None, name: str) -> None:
        self.kind = kind
        self.url = url
        self._postgres = postgres
        self._name = name

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """What a query returns."""
        if self._postgres is not None:
            with self._postgres.connect(self._name) as server:
                return list(server.execute(sql).fetchall())
        file = sqlite3.connect(self._name, timeout=10)
        try:
            return file.execute(sql).fetchall()
        finally:
            file.close()

    def tables(self) -> set[str]:
        """The tables in it, without those that keep track of migrations."""
        listing = (
            "SELECT name FROM sqlite_master WHERE type = 'table'"
            if self._postgres is None
            else "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        )
        return {str(row[0]) for row in self.rows(listing) if not str(row[0]).startswith("_gati_")}

    def empty(self) -> None:
        """Somebody removes it and makes it anew."""
        if self._postgres is not None:
            self._postgres.drop(self._name)
            self._postgres.create(self._name)
        else:
            Path(self._name).unlink()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path, gati_namespace: str) -> Iterator[TestDatabase]:
    if request.param == "sqlite":
        file = tmp_path / "shop database.db"
        yield TestDatabase("sqlite", f"sqlite:///{str(file).replace(' ', '%20')}", None, str(file))
        return
    server: Postgres = request.getfixturevalue("postgres")
    server.create(gati_namespace)
    yield TestDatabase("postgres", server.url(gati_namespace), server, gati_namespace)
    server.drop(gati_namespace)


@pytest.fixture
def schemas(gati_open_fabric: Fabric) -> Schemas:
    return fabric_schemas(gati_open_fabric, environ={}, actor="test", lock_ttl_s=2, lock_wait_s=20)


class Package:
    """A package's directory with migrations."""

    def __init__(self, directory: Path, database: TestDatabase) -> None:
        self.directory = directory
        self.database = database

    def write(self, folder: str = "migrations", **scripts: str) -> Path:
        """Write migrations; `m1=` becomes `m1.sql`, `m1_rollback=` what rolls it back, `m1_py=` a Python file."""
        place = self.directory / folder
        place.mkdir(exist_ok=True)
        for name, text in scripts.items():
            ending = ".rollback.sql" if name.endswith("_rollback") else ".py" if name.endswith("_py") else ".sql"
            (place / (re.sub("_(rollback|py)$", "", name) + ending)).write_text(text)
        return place

    def schema(self, name: str = "schema_v1", folder: str = "migrations", **options: Any) -> DbSchema:
        """Declare them."""
        url = options.pop("url", self.database.url)
        return DbSchema(app="shop", name=name, url=url, directory=self.directory / folder, **options)


@pytest.fixture
def package(tmp_path: Path, database: TestDatabase) -> Package:
    package = Package(tmp_path, database)
    package.write(m1=ORDERS, m1_rollback="DROP TABLE orders", m2=ITEMS, m2_rollback="DROP TABLE items")
    return package


async def _record(schemas: Schemas, name: str = "schema_v1") -> SchemaRecord:
    record = await schemas.record("shop", name)
    assert record is not None
    return record


def _done(result: SchemaResult) -> list[str]:
    assert result.success, result.error
    return result.executed


# -- once ---------------------------------------------------------------------------------------


async def test_migrations_run_in_order_and_the_fabric_knows(schemas: Schemas, package: Package) -> None:
    result = await schemas.activate(package.schema(), MINE)

    assert (result.success, result.status, result.executed, result.error) == (True, "applied", ["m1", "m2"], "")
    assert package.database.tables() == {"orders", "items"}
    record = await _record(schemas)
    assert (record.status, record.used_by, record.applied) == ("applied", [MINE], ["m1", "m2"])
    assert PASSWORD not in str(record)


async def test_what_is_applied_is_a_success_without_doing_anything(schemas: Schemas, package: Package) -> None:
    await schemas.activate(package.schema(), MINE)
    before = await _record(schemas)

    again = await schemas.activate(package.schema(), MINE)
    other = await schemas.activate(package.schema(), OTHER)

    assert (_done(again), _done(other)) == ([], [])
    after = await _record(schemas)
    assert (before.used_by, after.used_by) == ([MINE], [MINE, OTHER])


async def test_processes_that_start_at_once_run_each_migration_once(
    gati_open_fabric: Fabric, gati_fabric_settings: FabricSettings, schemas: Schemas, package: Package
) -> None:
    # The database itself would let the last one run twice.
    package.write(
        m3="INSERT INTO orders VALUES (1)",
        m4="CREATE TABLE counted (id INTEGER)",
        m5="-- transactional: false\nINSERT INTO counted VALUES (1);",
    )
    versions = [MINE, OTHER, MINE, OTHER]
    orders = [
        schema_process.Order(
            settings=gati_fabric_settings,
            app="shop",
            schema="schema_v1",
            url=package.database.url,
            directory=str(package.directory / "migrations"),
            version=version,
        )
        for version in versions
    ]
    processes = [await schema_process.start(order) for order in orders]
    for process in processes:
        await schema_process.wait_until_connected(process)

    for process in processes:
        await schema_process.go(process)
    results = [await schema_process.result_of(process) for process in processes]

    assert [result.error for result in results] == [""] * 4
    executed = [script for result in results for script in result.executed]
    assert sorted(executed) == ["m1", "m2", "m3", "m4", "m5"]
    assert package.database.rows("SELECT count(*) FROM counted") == [(1,)]
    record = await _record(schemas)
    assert (record.status, sorted(record.used_by)) == ("applied", [MINE, OTHER])


async def test_even_without_the_lock_the_database_lets_each_migration_run_once(package: Package) -> None:
    """As when a process was held up so long that it lost the lock."""
    package.write(m3="INSERT INTO orders VALUES (1)")
    alone = [Schemas(MemoryBucket(f"b{n}"), environ={}, actor=f"a{n}") for n in range(4)]

    results = await asyncio.gather(*(each.activate(package.schema(), MINE) for each in alone))

    assert [result.error for result in results] == [""] * 4
    assert sorted(script for result in results for script in result.executed) == ["m1", "m2", "m3"]


async def test_a_database_that_was_made_anew_is_migrated_again(schemas: Schemas, package: Package) -> None:
    await schemas.activate(package.schema(), MINE)
    package.database.empty()

    assert _done(await schemas.activate(package.schema(), MINE)) == ["m1", "m2"]
    assert package.database.tables() == {"orders", "items"}


async def test_two_packages_may_name_their_migrations_alike(schemas: Schemas, package: Package, tmp_path: Path) -> None:
    await schemas.activate(package.schema(), MINE)
    package.write("theirs", m1="CREATE TABLE theirs (id INTEGER)")
    theirs = DbSchema(app="their-app", name="schema_v1", url=package.database.url, directory=tmp_path / "theirs")

    assert _done(await schemas.activate(theirs, "theirs-v1")) == ["m1"]
    assert package.database.tables() == {"orders", "items", "theirs"}


async def test_a_package_with_the_longest_name_has_tables_of_its_own(schemas: Schemas, package: Package) -> None:
    for app in ("a" * 54 + "b", "a" * 54 + "c"):
        folder = f"of_{app[-1]}"
        package.write(folder, m1=f"CREATE TABLE of_{app[-1]} (id INTEGER)")
        schema = DbSchema(app=app, name="s", url=package.database.url, directory=package.directory / folder)
        assert _done(await schemas.activate(schema, MINE)) == ["m1"]
        assert _done(await schemas.activate(schema, OTHER)) == []


async def test_what_rows_a_migration_reads_is_not_printed(
    schemas: Schemas, package: Package, capfd: pytest.CaptureFixture[str]
) -> None:
    package.write(m3="SELECT 'very' || 'private' AS told")

    _done(await schemas.activate(package.schema(), MINE))

    assert "veryprivate" not in "".join(capfd.readouterr())


async def test_hooks_after_all_migrations_run_whenever_there_were_any(schemas: Schemas, package: Package) -> None:
    (package.directory / "migrations" / "post-apply.sql").write_text("INSERT INTO log VALUES (1)")
    package.write(m3="CREATE TABLE log (id INTEGER)")

    await schemas.activate(package.schema(), MINE)
    await schemas.activate(package.schema(), MINE)
    await schemas.activate(package.schema(), OTHER)
    assert package.database.rows("SELECT count(*) FROM log") == [(1,)]

    package.write(m4="CREATE TABLE more (id INTEGER)")
    assert _done(await schemas.activate(package.schema(), OTHER)) == ["m4"]
    assert package.database.rows("SELECT count(*) FROM log") == [(2,)]


async def test_migrations_may_be_python_and_name_what_they_need(schemas: Schemas, package: Package) -> None:
    step = "from yoyo import step\n__depends__ = {'m2'}\n"
    text = (
        f"{step}def fill(connection):\n    connection.cursor().execute('INSERT INTO items VALUES (7)')\n"
        "def clear(connection):\n    connection.cursor().execute('DELETE FROM items')\n"
        "steps = [step(fill, clear)]\n"
    )
    package.write(a0_py=text)

    assert _done(await schemas.activate(package.schema(), MINE)) == ["m1", "m2", "a0"]
    assert package.database.rows("SELECT id FROM items") == [(7,)]
    assert _done(await schemas.deactivate(package.schema(), MINE)) == ["a0", "m2", "m1"]


# -- failures -----------------------------------------------------------------------------------


async def test_a_migration_that_fails_half_way_leaves_nothing_and_the_next_attempt_goes_on(
    schemas: Schemas, package: Package
) -> None:
    place = package.write(m2="CREATE TABLE half (id INTEGER);\nINSERT INTO nowhere VALUES (1);")

    failed = await schemas.activate(package.schema(where="/shop/app.py:7"), MINE)

    assert (failed.success, failed.status, failed.executed, failed.failed_script) == (False, "failed", ["m1"], "m2")
    assert package.database.tables() == {"orders"}
    for told in ("schema_v1 of shop", "/shop/app.py:7", "migration m2", "nowhere", "1 of 2", str(place / "m2.sql")):
        assert told in failed.error, told
    assert "127.0.0.1" in failed.error or package.database.kind == "sqlite"
    record = await _record(schemas)
    assert (record.status, record.failed_script, record.error) == ("failed", "m2", failed.error)
    assert (record.used_by, record.applied) == ([], ["m1"])

    package.write(m2=ITEMS)
    assert _done(await schemas.activate(package.schema(), MINE)) == ["m2"]
    record = await _record(schemas)
    assert (record.status, record.error, record.used_by) == ("applied", "", [MINE])


async def test_a_version_that_ran_keeps_its_place_when_a_later_migration_fails(
    schemas: Schemas, package: Package
) -> None:
    await schemas.activate(package.schema(), MINE)
    package.write(m3="NOT SQL")

    assert not (await schemas.activate(package.schema(), OTHER)).success

    assert (await _record(schemas)).used_by == [MINE]


async def test_a_failure_names_neither_statement_nor_password(schemas: Schemas, package: Package) -> None:
    package.write(m3="INSERT INTO orders VALUES (1);\nINSERT INTO orders SELECT 1 WHERE 'hush' = 'hush';")

    failed = await schemas.activate(package.schema(), MINE)

    assert failed.failed_script == "m3"
    assert "hush" not in failed.error
    assert PASSWORD not in failed.error


async def test_a_migration_that_takes_too_long_is_stopped(schemas: Schemas, package: Package) -> None:
    package.write(m2=f"{ITEMS};\n{FOREVER[package.database.kind]};")

    failed = await schemas.activate(package.schema(timeout_s=2), MINE)

    assert failed.failed_script == "m2"
    assert "more than 2 s" in failed.error
    assert "longer timeout_s" in failed.error
    assert package.database.tables() == {"orders"}
    assert failed.duration_ms < 5_000


async def test_each_migration_has_the_time_for_itself(schemas: Schemas, package: Package) -> None:
    for name in ("m3", "m4", "m5"):
        package.write(**{f"{name}_py": "import time\nfrom yoyo import step\nstep(lambda c: time.sleep(0.5))\n"})

    result = await schemas.activate(package.schema(timeout_s=1.0), MINE)

    assert _done(result) == ["m1", "m2", "m3", "m4", "m5"]
    assert result.duration_ms > 1_500


async def test_python_that_cannot_be_stopped_is_left_alone_and_commits_nothing(
    schemas: Schemas, package: Package, monkeypatch: pytest.MonkeyPatch, gati_open_fabric: Fabric
) -> None:
    monkeypatch.setattr(_thread, "GRACE_S", 0.3)
    go_on = threading.Event()
    monkeypatch.setattr(threading, "go_on_now", go_on, raising=False)
    package.write(
        m3_py="import threading\nfrom yoyo import step\n"
        "step('CREATE TABLE late (id INTEGER)')\nstep(lambda c: threading.go_on_now.wait(30))\n"
    )

    failed = await schemas.activate(package.schema(timeout_s=2), MINE)

    assert "does not react" in failed.error
    assert failed.failed_script == "m3"
    bucket = KvBucket(gati_open_fabric.connection, gati_open_fabric.subjects.timescape_bucket)
    lock = await bucket.get("lock.schema.shop.schema_v1")
    assert lock is None or lock.value  # it was not given back: it expires
    go_on.set()
    await eventually(lambda: not any(each.name == "schema schema_v1" for each in threading.enumerate()), within_s=5)
    assert package.database.tables() == {"orders", "items"}


async def test_who_loses_the_lock_commits_nothing(
    schemas: Schemas, package: Package, monkeypatch: pytest.MonkeyPatch, gati_open_fabric: Fabric
) -> None:
    running, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "running_now", running, raising=False)
    monkeypatch.setattr(threading, "go_on_now", go_on, raising=False)
    package.write(
        m3_py="import threading\nfrom yoyo import step\nstep('CREATE TABLE late (id INTEGER)')\n"
        "def wait(connection):\n    threading.running_now.set()\n    threading.go_on_now.wait(30)\nstep(wait)\n"
    )
    bucket = KvBucket(gati_open_fabric.connection, gati_open_fabric.subjects.timescape_bucket)

    async with asyncio.TaskGroup() as tasks:
        attempt = tasks.create_task(schemas.activate(package.schema(), MINE))
        await anyio.to_thread.run_sync(running.wait, 10)
        await bucket.put("lock.schema.shop.schema_v1", b"somebody else's", ttl_s=30)
        with structlog.testing.capture_logs() as logs:
            await eventually(lambda: any(line["event"] == "schema_lock_lost" for line in logs), within_s=5)
        go_on.set()

    assert "the lock was lost" in attempt.result().error
    assert package.database.tables() == {"orders", "items"}


async def test_a_process_that_is_killed_frees_the_lock_and_leaves_nothing_half_done(
    gati_fabric_settings: FabricSettings, schemas: Schemas, package: Package
) -> None:
    marker = package.directory / "running"
    package.write(
        m3_py=f"import pathlib, time\nfrom yoyo import step\nstep('CREATE TABLE half (id INTEGER)')\n"
        f"def hang(connection):\n    pathlib.Path({str(marker)!r}).touch()\n    time.sleep(60)\nstep(hang)\n"
    )
    process = await schema_process.start(
        schema_process.Order(
            settings=gati_fabric_settings,
            app="shop",
            schema="schema_v1",
            url=package.database.url,
            directory=str(package.directory / "migrations"),
            version=OTHER,
            lock_ttl_s=2,
        )
    )
    await schema_process.wait_until_connected(process)
    await schema_process.go(process)
    await eventually(marker.exists, within_s=15)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    package.write(m3_py="from yoyo import step\nstep('CREATE TABLE whole (id INTEGER)')\n")

    result = await schemas.activate(package.schema(), MINE)

    assert _done(result) == ["m3"]
    assert result.duration_ms < 10_000
    assert package.database.tables() == {"orders", "items", "whole"}


async def test_who_is_cut_off_from_the_broker_commits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_broker: EmbeddedBroker, gati_namespace: str
) -> None:
    running, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(threading, "running_now", running, raising=False)
    monkeypatch.setattr(threading, "go_on_now", go_on, raising=False)
    file = tmp_path / "x.db"
    package = Package(tmp_path, TestDatabase("sqlite", f"sqlite:///{file}", None, str(file)))
    package.write(
        m1=ORDERS,
        m2_py="import threading\nfrom yoyo import step\nstep('CREATE TABLE late (id INTEGER)')\n"
        "def wait(connection):\n    threading.running_now.set()\n    threading.go_on_now.wait(30)\nstep(wait)\n",
    )
    settings = FabricSettings(
        nats_url=own_broker.url, namespace=gati_namespace, connect_wait_s=10.0, publish_ack_timeout_s=1.0
    )

    async with open_fabric(settings, name="test") as fabric, asyncio.TaskGroup() as tasks:
        schemas = fabric_schemas(fabric, environ={}, actor="test", lock_ttl_s=2)
        attempt = tasks.create_task(schemas.activate(package.schema(), MINE))
        await anyio.to_thread.run_sync(running.wait, 10)
        await anyio.to_thread.run_sync(own_broker.kill)
        with structlog.testing.capture_logs() as logs:
            await eventually(lambda: any(line["event"] == "schema_lock_lost" for line in logs), within_s=10)
        go_on.set()

    assert "the lock was lost" in attempt.result().error
    assert package.database.tables() == {"orders"}


async def test_waiting_for_somebody_else_ends_and_says_who_it_was(
    gati_open_fabric: Fabric, schemas: Schemas, package: Package
) -> None:
    package.write(m2=f"{FOREVER[package.database.kind]};")
    impatient = fabric_schemas(gati_open_fabric, environ={}, actor="impatient", lock_wait_s=0.5)

    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(schemas.activate(package.schema(timeout_s=4), MINE))
        await eventually(lambda: package.database.tables() == {"orders"}, within_s=5)
        second = await impatient.activate(package.schema(), OTHER)
        first.cancel()

    assert not second.success
    assert "the schema schema_v1 of shop is being changed by test (process" in second.error


async def test_an_attempt_that_is_cancelled_stops_the_database_and_gives_the_lock_back(
    schemas: Schemas, package: Package
) -> None:
    package.write(m2=f"{FOREVER[package.database.kind]};")
    attempt = asyncio.create_task(schemas.activate(package.schema(), MINE))
    await eventually(lambda: package.database.tables() == {"orders"}, within_s=5)

    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt

    package.write(m2=ITEMS)
    result = await schemas.activate(package.schema(), MINE)
    assert _done(result) == ["m2"]
    assert result.duration_ms < 1_500  # less than the lock would have needed to expire


async def test_an_applied_migration_that_was_changed_is_refused(schemas: Schemas, package: Package) -> None:
    await schemas.activate(package.schema(), MINE)
    place = package.write(m1=f"{ORDERS.replace(')', ', name TEXT)')}")

    refused = await schemas.activate(package.schema(), OTHER)

    assert str(place / "m1.sql") in refused.error
    assert "a migration that is applied is never changed" in refused.error
    package.write(m1=ORDERS)
    assert _done(await schemas.activate(package.schema(), OTHER)) == []


async def test_another_schema_may_not_give_another_migration_the_same_name(schemas: Schemas, package: Package) -> None:
    await schemas.activate(package.schema(), MINE)
    package.write("orders", m1="CREATE TABLE something (id INTEGER)")

    refused = await schemas.activate(package.schema("orders_v1", "orders"), MINE)

    assert "by schema_v1" in refused.error
    assert "something" not in package.database.tables()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("this is no Python", "SyntaxError"),
        ("__depends__ = {'m9'}", "Could not resolve dependencies"),
    ],
)
async def test_a_migration_that_cannot_be_read_is_named(
    schemas: Schemas, package: Package, text: str, told: str
) -> None:
    place = package.write(m3_py=text)

    failed = await schemas.activate(package.schema(), MINE)

    assert told in failed.error
    assert str(place / "m3.py") in failed.error
    assert package.database.tables() == set()


# -- where the database is ----------------------------------------------------------------------


async def test_the_url_may_come_from_the_environment(gati_open_fabric: Fabric, package: Package) -> None:
    schema = package.schema(url="env:SHOP_DB")

    without = await fabric_schemas(gati_open_fabric, environ={}, actor="test").activate(schema, MINE)
    assert "the environment variable SHOP_DB is not set" in without.error

    environ = {"SHOP_DB": package.database.url}
    assert _done(await fabric_schemas(gati_open_fabric, environ=environ, actor="test").activate(schema, MINE))


async def test_a_database_that_cannot_be_reached_is_told_without_the_password(
    schemas: Schemas, tmp_path: Path, postgres: Postgres
) -> None:
    package = Package(tmp_path, TestDatabase("postgres", "", None, ""))
    package.write(m1=ORDERS)
    refused = package.schema(url=postgres.url("postgres", password="wrong/pass"))
    missing = package.schema(url=postgres.url("no_such_database"))
    away = package.schema(url=postgres.url("postgres").replace(f":{postgres.port}/", ":1/"))
    unwritable = package.schema(url="sqlite:////no/such/directory/x.db")
    unknown = package.schema(url="dbase://host/x")

    errors = [(await schemas.activate(each, MINE)).error for each in (refused, missing, away, unwritable, unknown)]

    assert "password authentication failed" in errors[0]
    assert '"no_such_database" does not exist' in errors[1]
    assert "Connection refused" in errors[2]
    assert "unable to open database file" in errors[3]
    assert "databases of the kind dbase:// are not known" in errors[4]
    for error in errors:
        assert "wrong" not in error
        assert PASSWORD not in error


async def test_a_version_that_ran_before_starts_also_while_the_database_is_away(
    schemas: Schemas, tmp_path: Path, postgres: Postgres, gati_namespace: str
) -> None:
    postgres.create(gati_namespace)
    package = Package(tmp_path, TestDatabase("postgres", postgres.url(gati_namespace), postgres, gati_namespace))
    package.write(m1=ORDERS)
    await schemas.activate(package.schema(), MINE)
    postgres.drop(gati_namespace)

    with structlog.testing.capture_logs() as logs:
        versions = (MINE, OTHER, MINE)
        results = [await schemas.activate(package.schema(), version) for version in versions]

    assert [result.success for result in results] == [True, False, True]
    assert [line["event"] for line in logs] == ["schema_not_verified"] * 2
    assert PASSWORD not in str(logs)
    record = await _record(schemas)
    assert (record.status, record.used_by, record.applied) == ("applied", [MINE], ["m1"])


async def test_a_schema_whose_database_is_away_is_rolled_back_later(
    schemas: Schemas, tmp_path: Path, postgres: Postgres, gati_namespace: str
) -> None:
    postgres.create(gati_namespace)
    package = Package(tmp_path, TestDatabase("postgres", postgres.url(gati_namespace), postgres, gati_namespace))
    package.write(m1=ORDERS, m1_rollback="DROP TABLE orders")
    await schemas.activate(package.schema(), MINE)
    with postgres.connect() as server:
        server.execute(f'ALTER DATABASE "{gati_namespace}" RENAME TO "{gati_namespace}_away"')

    failed = await schemas.deactivate(package.schema(), MINE)

    assert "no connection to" in failed.error
    assert (await _record(schemas)).applied == ["m1"]
    with postgres.connect() as server:
        server.execute(f'ALTER DATABASE "{gati_namespace}_away" RENAME TO "{gati_namespace}"')
    assert _done(await schemas.deactivate(package.schema(), MINE)) == ["m1"]
    postgres.drop(gati_namespace)


async def test_migrations_outside_of_transactions_run_as_well(
    schemas: Schemas, tmp_path: Path, postgres: Postgres, gati_namespace: str
) -> None:
    postgres.create(gati_namespace)
    package = Package(tmp_path, TestDatabase("postgres", postgres.url(gati_namespace), postgres, gati_namespace))
    package.write(
        m1=ORDERS,
        m2="-- transactional: false\nCREATE INDEX CONCURRENTLY i1 ON orders (id);",
        m2_rollback="-- transactional: false\nDROP INDEX CONCURRENTLY i1;",
    )
    assert _done(await schemas.activate(package.schema(), MINE)) == ["m1", "m2"]

    package.write(
        m3="-- transactional: false\nCREATE TABLE stays (id INTEGER);\nNOT SQL;", m3_rollback="SELECT 1;\nSELECT 1;"
    )
    failed = await schemas.activate(package.schema(), OTHER)
    assert "parts of it may remain" in failed.error
    postgres.drop(gati_namespace)


async def test_other_databases_are_left_to_yoyo(
    schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of which nothing is known: whether its transactions hold schema changes is tried out."""
    file = tmp_path / "x.db"
    package = Package(tmp_path, TestDatabase("sqlite", f"sqlite:///{file}", None, str(file)))
    package.write(m1=ORDERS, m1_rollback="DROP TABLE orders", m2=f"{ITEMS};\nNOT SQL;")
    # Without yoyo's change of how all of this process stores dates.
    plain = {"__enter__": lambda self: self, "__exit__": lambda self, *_: self.connection.close()}
    unknown = type("Unknown", (_backends.Rules, SQLiteBackend), plain)
    monkeypatch.setattr(_backends, "_backend_class", lambda uri: (unknown, uri))

    failed = await schemas.activate(package.schema(), MINE)
    assert (failed.executed, failed.failed_script) == (["m1"], "m2")
    assert "parts of it may remain" in failed.error
    assert package.database.tables() == {"orders"}
    package.write(m2=ITEMS, m2_rollback="DROP TABLE items")

    assert _done(await schemas.activate(package.schema(), MINE)) == ["m2"]
    assert _done(await schemas.activate(package.schema(), MINE)) == []
    assert _done(await schemas.deactivate(package.schema(), MINE)) == ["m2", "m1"]
    assert package.database.tables() == set()


async def test_the_process_stores_dates_in_sqlite_as_before(schemas: Schemas, tmp_path: Path) -> None:
    package = Package(tmp_path, TestDatabase("sqlite", f"sqlite:///{tmp_path / 'x.db'}", None, str(tmp_path / "x.db")))
    package.write(m1=ORDERS)
    adapters, converters = dict(sqlite3.adapters), dict(sqlite3.converters)

    await schemas.activate(package.schema(), MINE)

    assert (dict(sqlite3.adapters), dict(sqlite3.converters)) == (adapters, converters)


# -- the end ------------------------------------------------------------------------------------


async def test_a_schema_stays_as_long_as_any_version_uses_it(schemas: Schemas, package: Package) -> None:
    await schemas.activate(package.schema(), MINE)
    await schemas.activate(package.schema(), OTHER)

    first = await schemas.deactivate(package.schema(), MINE)
    assert (_done(first), first.status) == ([], "applied")
    assert package.database.tables() == {"orders", "items"}

    last = await schemas.deactivate(package.schema(), OTHER)
    assert (_done(last), last.status) == (["m2", "m1"], "rolled_back")
    assert package.database.tables() == set()
    record = await _record(schemas)
    assert (record.status, record.used_by, record.applied) == ("rolled_back", [], [])

    again = await schemas.deactivate(package.schema(), OTHER)
    assert (_done(again), again.status) == ([], "rolled_back")
    assert _done(await schemas.activate(package.schema(), MINE)) == ["m1", "m2"]


async def test_a_schema_that_nobody_ever_used_has_nothing_to_roll_back(schemas: Schemas, package: Package) -> None:
    result = await schemas.deactivate(package.schema(), MINE)

    assert (result.success, result.executed) == (True, [])
    assert await schemas.record("shop", "schema_v1") is None


async def test_versions_of_a_schema_that_share_migrations_keep_what_the_other_needs(
    schemas: Schemas, package: Package
) -> None:
    package.write("old", m1=ORDERS, m1_rollback="DROP TABLE orders")
    old, new = package.schema("schema_v1", "old"), package.schema("schema_v2")
    await schemas.activate(old, MINE)
    assert _done(await schemas.activate(new, OTHER)) == ["m2"]

    result = await schemas.deactivate(old, MINE)
    assert (_done(result), result.kept, result.status) == ([], ["m1"], "applied")
    assert package.database.tables() == {"orders", "items"}

    assert _done(await schemas.deactivate(new, OTHER)) == ["m2", "m1"]
    assert (await _record(schemas, "schema_v1")).status == "rolled_back"
    assert package.database.tables() == set()


async def test_the_newer_version_goes_down_to_what_the_older_one_needs(schemas: Schemas, package: Package) -> None:
    package.write("old", m1=ORDERS, m1_rollback="DROP TABLE orders")
    await schemas.activate(package.schema("schema_v1", "old"), MINE)
    await schemas.activate(package.schema("schema_v2"), OTHER)

    result = await schemas.deactivate(package.schema("schema_v2"), OTHER)

    assert (_done(result), result.kept, result.status) == (["m2"], ["m1"], "rolled_back")
    assert package.database.tables() == {"orders"}


async def test_what_a_schema_in_use_was_built_upon_stays(schemas: Schemas, package: Package) -> None:
    package.write("more", m3="CREATE TABLE more (id INTEGER)", m3_rollback="DROP TABLE more")
    await schemas.activate(package.schema("schema_v1"), MINE)
    await schemas.activate(package.schema("schema_v2", "more", compatible_with=["schema_v1"]), OTHER)

    result = await schemas.deactivate(package.schema("schema_v1"), MINE)

    assert (_done(result), result.kept) == ([], ["m1", "m2"])
    assert package.database.tables() == {"orders", "items", "more"}
    assert await schemas.are_compatible("shop", "schema_v1", "schema_v2")
    assert await schemas.are_compatible("shop", "schema_v2", "schema_v1")
    assert not await schemas.are_compatible("shop", "schema_v2", "schema_v3")


async def test_schemas_that_do_not_go_together_are_told_of(schemas: Schemas, package: Package) -> None:
    package.write("more", m3="CREATE TABLE more (id INTEGER)")
    await schemas.activate(package.schema("schema_v1"), MINE)

    with structlog.testing.capture_logs() as logs:
        await schemas.activate(package.schema("schema_v2", "more"), OTHER)

    told = next(line for line in logs if line["event"] == "schema_incompatible")
    assert (told["schema"], told["other"], told["used_by"]) == ("schema_v2", "schema_v1", [MINE])


async def test_a_migration_without_a_rollback_stays_with_all_before_it(schemas: Schemas, package: Package) -> None:
    package.write(
        m3="CREATE TABLE forever (id INTEGER)",
        m4="CREATE TABLE fleeting (id INTEGER)",
        m4_rollback="DROP TABLE fleeting",
    )
    await schemas.activate(package.schema(), MINE)

    result = await schemas.deactivate(package.schema(), MINE)

    assert (_done(result), result.kept) == (["m4"], ["m1", "m2", "m3"])
    assert package.database.tables() == {"orders", "items", "forever"}
    assert _done(await schemas.activate(package.schema(), OTHER)) == ["m4"]


async def test_a_rollback_that_fails_is_told_and_can_be_tried_again(schemas: Schemas, package: Package) -> None:
    package.write(m1_rollback="DROP TABLE no_such_table")
    await schemas.activate(package.schema(), MINE)

    failed = await schemas.deactivate(package.schema(), MINE)

    assert (failed.success, failed.executed, failed.failed_script) == (False, ["m2"], "m1")
    assert "the rollback of migration m1 failed" in failed.error
    record = await _record(schemas)
    assert (record.status, record.used_by, record.applied) == ("failed", [], ["m1"])
    package.write(m1_rollback="DROP TABLE orders")
    assert _done(await schemas.deactivate(package.schema(), MINE)) == ["m1"]


async def test_only_a_package_that_holds_the_rollbacks_can_run_them(schemas: Schemas, package: Package) -> None:
    package.write("old", m1=ORDERS, m1_rollback="DROP TABLE orders")
    await schemas.activate(package.schema(), MINE)

    refused = await schemas.deactivate(package.schema("schema_v1", "old"), MINE)

    assert "m2 was applied by another version of the package" in refused.error
    assert package.database.tables() == {"orders", "items"}
    assert _done(await schemas.deactivate(package.schema(), MINE)) == ["m2", "m1"]


async def test_a_schema_is_not_rolled_back_in_another_database(
    schemas: Schemas, package: Package, tmp_path: Path
) -> None:
    await schemas.activate(package.schema(), MINE)

    refused = await schemas.deactivate(package.schema(url=f"sqlite:///{tmp_path / 'other.db'}"), MINE)

    assert "leads to sqlite:///" in refused.error
    assert package.database.tables() == {"orders", "items"}


async def test_callbacks_hear_of_what_was_done(gati_open_fabric: Fabric, package: Package) -> None:
    heard: list[tuple[str, list[str]]] = []
    schemas = fabric_schemas(
        gati_open_fabric,
        environ={},
        actor="test",
        on_applied=lambda result: heard.append(("applied", result.executed)),
        on_rolled_back=lambda result: heard.append(("rolled back", result.executed)),
    )

    for act in (schemas.activate, schemas.activate, schemas.deactivate, schemas.deactivate):
        await act(package.schema(), MINE)

    assert heard == [("applied", ["m1", "m2"]), ("rolled back", ["m2", "m1"])]


@pytest.fixture(autouse=True)
async def no_thread_is_left() -> AsyncIterator[None]:
    yield

    def none_is_left() -> bool:
        return not any(each.name.startswith("schema ") for each in threading.enumerate())

    await eventually(none_is_left, within_s=2)  # one that has told its result may still be on its way out
