"""Declaring database schemas, what their URLs show, and the lock that guards them."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from gati_core import App
from gati_core.errors import BrokerUnavailable, RegistrationError, SchemaError
from gati_core.schemas import DbSchema, are_compatible
from gati_core.schemas._lock import ClusterLock
from gati_core.schemas._scripts import find_scripts
from gati_core.schemas._urls import Database
from gati_testing import MemoryBucket

HERE = rf"\({re.escape(__file__)}:\d+\)"
URL = "env:SHOP_DB"


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_orders.sql").write_text("CREATE TABLE orders (id INTEGER)")
    return tmp_path / "migrations"


# -- declarations -------------------------------------------------------------------------------


def test_a_declared_schema_is_listed_with_all_that_was_said(migrations: Path) -> None:
    app = App("shop")

    made = app.db_schema("schema_v42", url=URL, migrations=migrations, compatible_with=["schema_v41"], timeout_s=5)
    other = app.db_schema("schema_v41", url=URL, migrations=str(migrations))

    assert app.db_schemas == (made, other)
    assert (made.app, made.name, made.url, made.directory) == ("shop", "schema_v42", URL, migrations)
    assert (made.compatible_with, made.timeout_s, other.timeout_s) == (("schema_v41",), 5.0, 30.0)
    assert re.fullmatch(HERE, f"({made.where})")


def test_the_directory_is_relative_to_the_module_that_declares_it(
    migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = migrations.parent / "declaring_module.py"
    module.write_text("from gati_core import App\napp = App('shop')\nmade = app.db_schema('v1', url='env:X')\n")
    monkeypatch.syspath_prepend(str(migrations.parent))
    monkeypatch.chdir("/")

    import declaring_module  # type: ignore[import-not-found]  # written above

    assert declaring_module.made.directory == migrations
    assert declaring_module.made.where == f"{module}:3"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": ""}, "url must be text"),
        ({"url": None}, "url must be text"),
        ({"url": "shop.db"}, "url is no database URL"),
        ({"url": "env:"}, "names no environment variable"),
        ({"url": "env:SHOP DB"}, "names no environment variable"),
        ({"migrations": "nowhere/"}, "there is no directory"),
        ({"migrations": ""}, "must be the path of a directory"),
        ({"migrations": None}, "must be the path of a directory"),
        ({"compatible_with": "schema_v41"}, "must be a list of names"),
        ({"compatible_with": [41]}, "must be a list of names"),
        ({"compatible_with": None}, "must be a list of names"),
        ({"compatible_with": ["a b"]}, "compatible_with: 'a b'"),
        ({"compatible_with": ["schema_v42"]}, "compatible with itself"),
        ({"timeout_s": 0}, "timeout_s must be above 0"),
        ({"timeout_s": math.inf}, "timeout_s must be above 0"),
        ({"timeout_s": math.nan}, "timeout_s must be above 0"),
        ({"timeout_s": True}, "timeout_s must be above 0"),
        ({"timeout_s": "30"}, "timeout_s must be above 0"),
    ],
    ids=str,
)
def test_a_wrong_declaration_is_refused_with_file_and_line(
    migrations: Path, options: dict[str, Any], told: str
) -> None:
    app = App("shop")

    with pytest.raises(RegistrationError, match=rf"db_schema 'schema_v42' {HERE}: .*{re.escape(told)}"):
        app.db_schema("schema_v42", **{"url": URL, "migrations": migrations, **options})

    assert app.db_schemas == ()


@pytest.mark.parametrize("name", ["", "a.b", "v 1", "_v1", "ä", "a" * 65, 42, None])
def test_a_name_must_be_one(migrations: Path, name: Any) -> None:
    with pytest.raises(RegistrationError, match=HERE):
        App("shop").db_schema(name, url=URL, migrations=migrations)


def test_a_directory_without_migrations_is_refused(tmp_path: Path) -> None:
    for name in ("0001.rollback.sql", "post-apply.sql", "__init__.py", "README.md"):
        (tmp_path / name).write_text("")

    with pytest.raises(RegistrationError, match="holds no migration"):
        App("shop").db_schema("v1", url=URL, migrations=tmp_path)


def test_a_name_is_taken_once(migrations: Path) -> None:
    app = App("shop")
    first = app.db_schema("v1", url=URL, migrations=migrations)

    with pytest.raises(RegistrationError, match=f"{HERE}: a schema of this name is declared at {first.where}"):
        app.db_schema("v1", url=URL, migrations=migrations)


def test_a_refused_or_shown_declaration_keeps_the_password_to_itself(migrations: Path) -> None:
    app = App("shop")
    made = app.db_schema("v1", url="postgresql://shop:hush@db/shop", migrations=migrations)

    with pytest.raises(RegistrationError) as refused:
        app.db_schema("v2", url="shop:hush@db", migrations=migrations)

    assert "hush" not in f"{made!r} {made} {app.db_schemas} {made.shown_url} {refused.value}"


def test_compatibility_holds_both_ways(migrations: Path) -> None:
    def schema(name: str, *others: str) -> DbSchema:
        return DbSchema(app="shop", name=name, url=URL, directory=migrations, compatible_with=others)

    old, new, far = schema("v1"), schema("v2", "v1"), schema("v3", "v2")

    assert are_compatible(old, new)
    assert are_compatible(new, old)
    assert are_compatible(old, schema("v1"))
    assert not are_compatible(old, far)


def test_a_migration_is_the_same_whatever_its_line_endings(tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_bytes(b"SELECT 1;\nSELECT 2;\n")
    (tmp_path / "b.sql").write_bytes(b"SELECT 1;\r\nSELECT 2;\r\n")

    first, second = find_scripts(tmp_path)

    assert (first.id, second.id) == ("a", "b")
    assert first.sha256 == second.sha256


# -- urls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://shop:p%40ss@db.example:5433/shop?sslmode=require", "postgresql://shop@db.example:5433/shop"),
        ("postgres://db/shop?user=u&password=hush", "postgresql://db/shop"),
        ("mysql://root:hush@db/shop", "mysql://root@db/shop"),
        ("sqlite:///data/shop.db", "sqlite:///data/shop.db"),
        ("sqlite:////data/a@b.db", "sqlite:////data/a@b.db"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert Database(url, {}).shown == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:hu/sh@db/shop",
        "postgresql://shop:12/hush@db/shop",
        "postgresql://shop:12#hush@db/shop",
        "postgresql://shop:12?hush@db/shop",
        "postgresql://shop:hush@db:port/shop",
        "postgresql://[shop:hush@db/shop",
    ],
)
def test_a_url_that_cannot_be_read_is_not_shown_at_all(url: str) -> None:
    with pytest.raises(SchemaError, match="percent-encoded") as refused:
        Database("env:SHOP_DB", {"SHOP_DB": url})

    assert "the environment variable SHOP_DB" in str(refused.value)
    assert "sh@" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("value", "told"), [("", "is not set"), ("shop.db", "holds no database URL"), ("env:X", "holds no database URL")]
)
def test_an_environment_variable_must_hold_a_url(value: str, told: str) -> None:
    with pytest.raises(SchemaError, match=f"SHOP_DB {told}"):
        Database("env:SHOP_DB", {"SHOP_DB": value})


def test_messages_of_others_lose_the_password() -> None:
    database = Database("postgresql://shop:p%40ss%2Fw@db/shop?sslpassword=other-secret", {})

    scrubbed = database.scrub(
        "p@ss/w and p%40ss%2Fw in postgresql://shop:p%40ss%2Fw@db/shop, other-secret, mysql://root:third@x/y"
    )

    assert not any(each in scrubbed for each in ("p@ss/w", "p%40ss%2Fw", "other-secret", "third"))


def test_one_database_has_one_identity() -> None:
    def same(*urls: str) -> bool:
        return len({Database(url, {}).id for url in urls}) == 1

    assert same("postgresql://a:b@DB/shop", "postgres://c@db:5432/shop", "postgresql+psycopg://db/shop?sslmode=disable")
    assert not same("postgresql://db/shop", "postgresql://db/shop2")
    assert not same("postgresql://db/shop", "postgresql://db:5433/shop")
    assert not same("postgresql://db/shop", "postgresql://db/shop?schema=other")
    assert same("sqlite:////tmp/x/../shop.db", "sqlite:////tmp/shop.db")


# -- the lock -----------------------------------------------------------------------------------


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _lock(bucket: MemoryBucket, actor: str, clock: Clock, *, ttl_s: int = 10) -> ClusterLock:
    return ClusterLock(bucket, "lock.x", what="the schema", actor=actor, ttl_s=ttl_s, clock=clock)


async def test_a_lock_is_held_by_one_and_then_by_the_next() -> None:
    bucket, clock = MemoryBucket("b"), Clock()

    async with _lock(bucket, "first", clock).hold(within_s=0) as lease:
        assert lease.is_valid
        with pytest.raises(SchemaError, match=r"the schema is being changed by first \(process \d+ on "):
            async with _lock(bucket, "second", clock).hold(within_s=0):
                pass

    async with _lock(bucket, "second", clock).hold(within_s=0) as lease:
        assert lease.is_valid


async def test_a_lock_whose_holder_does_not_renew_it_is_taken_over() -> None:
    """The key itself may live longer: it is the watching that counts."""
    bucket, clock = MemoryBucket("b"), Clock()
    gone = await _lock(bucket, "gone", clock)._acquire(0)
    waiting = _lock(bucket, "waiting", clock)

    assert (await waiting._take()).actor == "gone"  # type: ignore[union-attr]  # a holder
    clock.now += 10
    assert (await waiting._take()).actor == "gone"  # type: ignore[union-attr]  # a holder
    assert not gone.is_valid
    clock.now += 0.1
    taken = await waiting._acquire(0)

    assert taken.is_valid


async def test_a_lock_that_is_renewed_is_not_taken_over() -> None:
    bucket, clock = MemoryBucket("b"), Clock()
    holder, waiting = _lock(bucket, "holder", clock), _lock(bucket, "waiting", clock)
    lease = await holder._acquire(0)

    for _ in range(5):
        assert (await waiting._take()).actor == "holder"  # type: ignore[union-attr]  # a holder
        clock.now += 6
        lease.revision = await bucket.update("lock.x", holder._value, revision=lease.revision, ttl_s=10)

    assert (await waiting._take()).actor == "holder"  # type: ignore[union-attr]  # a holder


async def test_a_lock_of_somebody_else_is_never_given_back() -> None:
    bucket, clock = MemoryBucket("b"), Clock()

    async with _lock(bucket, "first", clock).hold(within_s=0):
        await bucket.put("lock.x", b"somebody else's")

    entry = await bucket.get("lock.x")
    assert entry is not None
    assert entry.value == b"somebody else's"


async def test_a_lock_is_renewed_and_survives_answers_that_got_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Losing(MemoryBucket):
        """Stores, and then says that it does not know."""

        updates = 0

        async def update(self, key: str, value: bytes, *, revision: int, ttl_s: int = 0) -> int:
            stored = await super().update(key, value, revision=revision, ttl_s=ttl_s)
            self.updates += 1
            if self.updates % 2:
                raise BrokerUnavailable("no answer")
            return stored

    bucket = Losing("b")
    lock = ClusterLock(bucket, "lock.x", what="the schema", actor="me", ttl_s=1)

    async with lock.hold(within_s=1) as lease:
        with anyio.fail_after(10):
            while bucket.updates < 6:
                await anyio.sleep(0.05)
                assert lease.is_valid

    entry = await bucket.get("lock.x")
    assert entry is None or entry.value == b""


async def test_a_lock_waits_for_the_broker_and_says_when_it_stays_away() -> None:
    class Away(MemoryBucket):
        async def create(self, key: str, value: bytes, *, ttl_s: int = 0) -> int:
            raise BrokerUnavailable("no broker is connected")

    with pytest.raises(BrokerUnavailable):
        async with ClusterLock(Away("b"), "lock.x", what="it", actor="me", ttl_s=1).hold(within_s=0.2):
            pass
