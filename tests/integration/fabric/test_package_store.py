"""Packages in the fabric: whole and as they were published, or an error that says what is wrong."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import anyio
import pytest

from gati_core.errors import AlreadyStored, BrokerUnavailable, PackageError, TopologyError
from gati_core.fabric import EmbeddedBroker, Fabric, PackageLost, open_fabric
from gati_core.settings import FabricSettings
from tests.helpers import brokers
from tests.helpers.waiting import eventually


async def _stored_bytes(fabric: Fabric) -> int:
    stream = f"OBJ_{fabric.subjects.packages_bucket}"
    return (await fabric.connection.jetstream().stream_info(stream)).state.bytes


async def _purge_chunks(fabric: Fabric) -> None:
    bucket = fabric.subjects.packages_bucket
    await fabric.connection.jetstream().purge_stream(f"OBJ_{bucket}", subject=f"$O.{bucket}.C.>")


@pytest.mark.parametrize("size", [0, 1, 131_071, 131_072, 131_073, 1_048_577])
async def test_a_package_of_any_size_comes_back_as_it_was(gati_open_fabric: Fabric, tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "a.whl").write_bytes(data)

    stored = await gati_open_fabric.packages.put("a", tmp_path / "a.whl", metadata={"app": "shop"})

    assert await gati_open_fabric.packages.get("a") == data
    assert (stored.size_bytes, stored.sha256) == (size, hashlib.sha256(data).hexdigest())
    assert await gati_open_fabric.packages.info("a") == stored
    assert stored.metadata == {"app": "shop"}


async def test_progress_is_told_chunk_by_chunk_to_the_end(gati_open_fabric: Fabric) -> None:
    sent: list[tuple[int, int]] = []
    read: list[tuple[int, int]] = []

    await gati_open_fabric.packages.put("a", b"x" * 300_000, progress=lambda *each: sent.append(each))
    await gati_open_fabric.packages.get("a", progress=lambda *each: read.append(each))

    assert sent == read == [(131_072, 300_000), (262_144, 300_000), (300_000, 300_000)]


async def test_other_nats_clients_can_read_it(gati_open_fabric: Fabric) -> None:
    await gati_open_fabric.packages.put("a", b"x" * 300_000, metadata={"app": "shop"})

    store = await gati_open_fabric.connection.jetstream().object_store(gati_open_fabric.subjects.packages_bucket)

    assert (await store.get("a")).data == b"x" * 300_000


async def test_the_same_package_again_costs_nothing(gati_open_fabric: Fabric) -> None:
    first = await gati_open_fabric.packages.put("a", b"x" * 300_000)
    before = await _stored_bytes(gati_open_fabric)

    assert await gati_open_fabric.packages.put("a", b"x" * 300_000) == first
    assert await _stored_bytes(gati_open_fabric) == before


async def test_another_package_under_the_same_name_is_refused_and_leaves_nothing_behind(
    gati_open_fabric: Fabric,
) -> None:
    await gati_open_fabric.packages.put("a", b"first")
    before = await _stored_bytes(gati_open_fabric)

    with pytest.raises(AlreadyStored, match="stored as a"):
        await gati_open_fabric.packages.put("a", b"second" * 100_000)

    assert await gati_open_fabric.packages.get("a") == b"first"
    assert await _stored_bytes(gati_open_fabric) == before


async def test_of_two_at_once_one_wins_and_the_other_is_told(gati_open_fabric: Fabric) -> None:
    both = {"one": b"1" * 400_000, "two": b"2" * 400_000}
    outcomes: dict[str, str] = {}

    async def put(which: str) -> None:
        try:
            await gati_open_fabric.packages.put("a", both[which])
        except AlreadyStored:
            outcomes[which] = "refused"
        else:
            outcomes[which] = "stored"

    async with anyio.create_task_group() as tasks:
        for which in both:
            tasks.start_soon(put, which)

    assert sorted(outcomes.values()) == ["refused", "stored"]
    (winner,) = (which for which, outcome in outcomes.items() if outcome == "stored")
    assert await gati_open_fabric.packages.get("a") == both[winner]
    assert await _stored_bytes(gati_open_fabric) < 450_000, "the loser's chunks are gone"


async def test_the_same_package_stored_by_two_at_once_is_no_conflict(gati_open_fabric: Fabric) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(gati_open_fabric.packages.put, "a", b"1" * 400_000)

    assert await gati_open_fabric.packages.get("a") == b"1" * 400_000
    assert await _stored_bytes(gati_open_fabric) < 450_000


async def test_a_put_that_is_cancelled_leaves_nothing_behind(gati_open_fabric: Fabric) -> None:
    with anyio.CancelScope() as scope:
        await gati_open_fabric.packages.put("a", b"x" * 400_000, progress=lambda done, _all: scope.cancel())

    assert scope.cancelled_caught
    assert not await gati_open_fabric.packages.exists("a")
    assert await _stored_bytes(gati_open_fabric) == 0


async def test_a_file_that_changes_while_it_is_stored_is_refused(gati_open_fabric: Fabric, tmp_path: Path) -> None:
    file = tmp_path / "a.whl"
    file.write_bytes(b"x" * 400_000)

    with pytest.raises(PackageError, match=r"a\.whl was changed while it was stored"):
        await gati_open_fabric.packages.put("a", file, progress=lambda *_: file.write_bytes(b"y" * 400_000) and None)

    assert not await gati_open_fabric.packages.exists("a")


async def test_a_file_that_is_not_there_is_a_package_error(gati_open_fabric: Fabric, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"gone\.whl: No such file"):
        await gati_open_fabric.packages.put("a", tmp_path / "gone.whl")


async def test_what_is_deleted_is_gone_with_its_bytes_and_the_name_is_free(gati_open_fabric: Fabric) -> None:
    packages = gati_open_fabric.packages
    await packages.put("a", b"x" * 300_000)

    assert await packages.delete("a")
    assert not await packages.delete("a")

    assert not await packages.exists("a")
    assert await packages.list() == []
    assert await _stored_bytes(gati_open_fabric) < 2_000
    with pytest.raises(PackageLost, match="no package a"):
        await packages.get("a")
    await packages.put("a", b"another")
    assert await packages.get("a") == b"another"


async def test_the_list_has_all_packages_by_name(gati_open_fabric: Fabric) -> None:
    for name in ("b-2.0", "a-1.0", "c.weird name~ü"):
        await gati_open_fabric.packages.put(name, name.encode())

    listed = await gati_open_fabric.packages.list()

    assert [(each.name, each.size_bytes) for each in listed] == [
        (name, len(name.encode())) for name in ("a-1.0", "b-2.0", "c.weird name~ü")
    ]


async def test_a_package_larger_than_allowed_is_not_read(gati_open_fabric: Fabric) -> None:
    await gati_open_fabric.packages.put("a", b"x" * 1001)

    with pytest.raises(PackageError, match="has 1001 bytes, and at most 1000 are read"):
        await gati_open_fabric.packages.get("a", max_bytes=1000)


async def test_a_package_whose_chunks_are_gone_is_lost_at_once_and_can_be_stored_again(
    gati_open_fabric: Fabric,
) -> None:
    await gati_open_fabric.packages.put("a", b"x" * 300_000)
    await _purge_chunks(gati_open_fabric)

    with anyio.fail_after(5), pytest.raises(PackageLost, match="a is damaged: 0 of 300000 bytes are there"):
        await gati_open_fabric.packages.get("a")

    await gati_open_fabric.packages.put("a", b"x" * 300_000)
    assert await gati_open_fabric.packages.get("a") == b"x" * 300_000


async def test_a_package_with_other_bytes_is_lost(gati_open_fabric: Fabric) -> None:
    await gati_open_fabric.packages.put("a", b"x" * 1000)
    js, bucket = gati_open_fabric.connection.jetstream(), gati_open_fabric.subjects.packages_bucket
    (subject,) = (await js.stream_info(f"OBJ_{bucket}", subjects_filter=f"$O.{bucket}.C.>")).state.subjects or {}
    await _purge_chunks(gati_open_fabric)
    await js.publish(subject, b"y" * 1000)

    with pytest.raises(PackageLost, match="its checksum is another"):
        await gati_open_fabric.packages.get("a")


async def test_without_the_object_store_the_error_says_how_to_make_it(gati_fabric_settings: FabricSettings) -> None:
    async with open_fabric(gati_fabric_settings, name="test", ensure=False) as fabric:
        with pytest.raises(TopologyError, match="does not exist"):
            await fabric.packages.get("a")


async def test_without_a_broker_everything_is_refused_at_once(own_fabric: Fabric, own_broker: EmbeddedBroker) -> None:
    await own_fabric.packages.put("kept", b"x" * 300_000)
    own_broker.kill()
    await eventually(lambda: not own_fabric.connection.is_up, within_s=2)

    with anyio.fail_after(1):
        with pytest.raises(BrokerUnavailable):
            await own_fabric.packages.put("a", b"ghost")
        with pytest.raises(BrokerUnavailable):
            await own_fabric.packages.get("kept")
        with pytest.raises(BrokerUnavailable):
            await own_fabric.packages.list()
        with pytest.raises(BrokerUnavailable):
            await own_fabric.packages.delete("kept")
    await brokers.start(own_broker)
    await eventually(lambda: own_fabric.connection.is_up, within_s=3)

    assert not await own_fabric.packages.exists("a")
    assert await own_fabric.packages.get("kept") == b"x" * 300_000


async def test_a_broker_that_dies_under_a_put_is_unavailable_and_the_next_put_succeeds(
    own_fabric: Fabric, own_broker: EmbeddedBroker
) -> None:
    def kill(done: int, _size: int) -> None:
        if done > 1_000_000:
            own_broker.kill()

    with pytest.raises(BrokerUnavailable):
        await own_fabric.packages.put("a", b"x" * 3_000_000, progress=kill, within_s=3)
    await brokers.start(own_broker)
    await eventually(lambda: own_fabric.connection.is_up, within_s=5)

    await own_fabric.packages.put("a", b"x" * 3_000_000)
    assert await own_fabric.packages.get("a") == b"x" * 3_000_000
