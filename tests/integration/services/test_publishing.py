"""Packages published into a running fabric: `gati publish` and workers that had never heard of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import anyio.to_thread
import pytest

from gati_core.app.building import build_wheel
from gati_core.timescape import fabric_registry, with_status
from tests.helpers.publishing import Shop, running_shop
from tests.helpers.waiting import eventually
from tests.helpers.wheels import read_zip, write_project, write_zip

_NUMBERS = count(1)


@pytest.fixture(scope="module")
async def shared_shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """The fabric of all tests that leave its processes alone."""
    async with running_shop(tmp_path_factory.mktemp("shops")) as shop:
        yield shop


@pytest.fixture
def shop(shared_shop: Shop, tmp_path: Path) -> Shop:
    """A shop of the test's own."""
    it = shared_shop
    return Shop(it.fabric, it.client, it.inside, tmp_path, app=f"shop{next(_NUMBERS)}")


async def test_a_published_package_is_served_and_the_next_version_beside_it(shop: Shop) -> None:
    assert (await shop.order()).status_code == 404

    first = await shop.run("publish", await shop.build("1.0"))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(f"{shop.app} 1.0 is served after ")
    assert await shop.ran() == "1.0"

    second = await shop.run("publish", await shop.build("2.0", fields='sku: str\n    note: str = ""'))
    assert second.returncode == 0, second.stderr
    assert await shop.ran() == "2.0"
    assert await shop.ran(**{"x-gati-version": "v1.0"}) == "1.0"
    told = json.loads((await shop.run("versions", "list", shop.handler, "--json")).stdout)
    assert [(each["version"]["package"], each["tags"]) for each in told] == [("2.0", ["v2.0"]), ("1.0", ["v1.0"])]


async def test_a_breaking_change_is_refused_and_kept_apart_when_asked_for(shop: Shop) -> None:
    assert (await shop.run("publish", await shop.build("1.0"))).returncode == 0
    breaking = await shop.build("2.0", fields="sku: str\n    currency: str")

    refused = await shop.run("publish", breaking)

    assert refused.returncode == 1
    assert "shop-package 2.0 breaks clients" in refused.stderr
    for text in ("order (", "/request/body/currency", "--keep-old", "@app.transformer"):
        assert text in refused.stderr
    assert await shop.record("2.0") is None
    assert await shop.ran() == "1.0"

    kept = await shop.run("publish", breaking, "--keep-old")
    assert kept.returncode == 0, kept.stderr
    answer = await shop.order({"sku": "a", "currency": "EUR"})
    assert answer.headers["x-ran"] == "2.0"
    assert await shop.ran(**{"x-gati-version": "v1.0"}) == "1.0"


async def test_a_package_that_does_not_start_fails_with_its_reason_and_changes_nothing(shop: Shop) -> None:
    assert (await shop.run("publish", await shop.build("1.0"))).returncode == 0
    top = """
@app.on_startup
async def fail(gctx):
    raise RuntimeError("no database here")
"""
    wheel = await shop.build("2.0", fields='sku: str\n    note: str = ""', top=top)

    done = await shop.run("publish", wheel)

    assert done.returncode == 1
    assert f"{shop.app} 2.0 does not start" in done.stderr
    assert "no database here" in done.stderr
    record = await shop.record("2.0")
    assert record is not None
    assert record.state == "failed"
    assert await shop.ran() == "1.0"
    assert len((await fabric_registry(shop.inside).timeline(shop.app, "order")).versions) == 1


async def test_a_wheel_whose_code_was_changed_after_the_build_is_refused_by_the_worker(shop: Shop) -> None:
    wheel = await shop.build("1.0")
    files = read_zip(wheel)
    changed = {
        name: data.replace(b'"/published/', b'"/elsewhere/') if name.endswith(".py") else data
        for name, data in files.items()
    }
    assert changed != files
    write_zip(wheel, changed)

    done = await shop.run("publish", wheel)

    assert done.returncode == 1
    assert "not what the manifest in its wheel says" in done.stderr
    assert (await shop.order()).status_code == 404


async def test_what_the_worker_cannot_install_is_named(shop: Shop) -> None:
    source = shop.source("1.0")
    project = write_project(shop.directory / "needy", version="1.0", source=source, requires=["gati-core>=9999"])
    wheel = (await anyio.to_thread.run_sync(build_wheel, project, shop.directory / "dist")).path

    done = await shop.run("publish", wheel)

    assert done.returncode == 1
    assert "gati-core>=9999" in done.stderr


async def test_a_deactivated_version_drains_and_its_worker_leaves(shop: Shop) -> None:
    assert (await shop.run("publish", await shop.build("1.0"))).returncode == 0
    assert (await shop.run("publish", await shop.build("2.0", fields="sku: str\n    note: str = ''"))).returncode == 0
    registry = fabric_registry(shop.inside)
    first = (await registry.timeline(shop.app, "order")).versions[0]

    await registry.change(
        shop.app, "order", lambda it: with_status(it, first.tsv, "deactivated", now_ms=1, actor="test", by_hand=True)
    )

    async def has_left() -> bool:
        listed = await shop.run("routes", "--json")
        routes = [each for each in json.loads(listed.stdout)["routes"] if each["app"] == shop.app]
        return bool(routes) and not any(each["version"] == "1.0" and each["is_live"] for each in routes)

    await eventually(has_left, within_s=30)
    assert await shop.ran() == "2.0"


async def test_published_packages_are_served_again_after_the_worker_restarts(tmp_path: Path) -> None:
    async with running_shop(tmp_path) as shop:
        assert (await shop.run("publish", await shop.build("1.0"))).returncode == 0
        shop.fabric.workers[0].terminate()
        assert await shop.fabric.workers[0].wait() == 0
        assert (await shop.order()).status_code == 503
        shop.fabric.start_worker("ledger_app.py")

        async def is_back() -> bool:
            return await shop.ran() == "1.0"

        await eventually(is_back, within_s=30)


async def test_the_same_wheel_again_is_no_error_and_another_of_its_version_is(shop: Shop) -> None:
    wheel = await shop.build("1.0")
    assert (await shop.run("publish", wheel)).returncode == 0
    assert (await shop.run("publish", wheel)).returncode == 0
    source = shop.source("1.0", top="changed = True")
    project = write_project(shop.directory / "again", version="1.0", source=source)
    other = (await anyio.to_thread.run_sync(build_wheel, project, shop.directory / "other")).path

    done = await shop.run("publish", other)

    assert done.returncode == 1
    assert "1.0" in done.stderr


async def test_a_file_that_is_no_wheel_is_said_to_be_none(shop: Shop) -> None:
    (shop.directory / "junk.whl").write_bytes(b"PK\x03\x04 not really")

    junk, missing = await shop.run("publish", "junk.whl"), await shop.run("publish", "nothing.whl")

    assert junk.returncode == 1
    assert "junk.whl" in junk.stderr
    assert missing.returncode == 2
    assert "gati build" in missing.stderr


TRANSFORMER = """
@app.transformer("order", from_version="v1.0")
class FromFirst:
    @staticmethod
    def forward_request(request):
        {forward}

    @staticmethod
    def backward_response(response):
        del response.body["currency"]
"""
CURRENCY = "sku: str\n    currency: str"


async def test_a_transformer_lets_a_breaking_change_in_and_old_clients_get_the_new_code(shop: Shop) -> None:
    assert (await shop.run("publish", await shop.build("1.0"))).returncode == 0
    bottom = TRANSFORMER.format(forward='request.body["currency"] = "EUR"')

    done = await shop.run("publish", await shop.build("2.0", fields=CURRENCY, bottom=bottom))

    assert done.returncode == 0, done.stderr
    answer = await shop.order({"sku": "a"}, **{"x-gati-version": "v1.0"})
    assert answer.headers["x-ran"] == "2.0"
    assert answer.json() == {"sku": "a"}


async def test_a_transformer_that_nobody_has_written_yet_is_none(shop: Shop) -> None:
    assert (await shop.run("publish", await shop.build("1.0"))).returncode == 0
    wheel = await shop.build(
        "2.0", fields=CURRENCY, bottom=TRANSFORMER.format(forward='raise NotImplementedError("later")')
    )

    done, kept = await shop.run("publish", wheel), await shop.run("publish", wheel, "--keep-old")

    for each in (done, kept):
        assert each.returncode == 1
        assert "FromFirst.forward_request raises NotImplementedError" in each.stderr
    assert await shop.record("2.0") is None


async def test_a_published_transformer_is_never_changed(shop: Shop) -> None:
    assert (await shop.run("publish", await shop.build("1.0"))).returncode == 0
    for version, currency in (("2.0", "EUR"), ("2.1", "USD")):
        bottom = TRANSFORMER.format(forward=f'request.body["currency"] = "{currency}"')
        # The handler itself is the same in both.
        wheel = await shop.build(version, fields=CURRENCY, bottom=bottom, name="2")
        done = await shop.run("publish", wheel)
        if version == "2.0":
            assert done.returncode == 0, done.stderr

    assert done.returncode == 1
    assert "FromFirst of order" in done.stderr
    assert "those never change" in done.stderr
    answer = await shop.order({"sku": "a"}, **{"x-gati-version": "v1.0"})
    assert answer.headers["x-ran"] == "2"
