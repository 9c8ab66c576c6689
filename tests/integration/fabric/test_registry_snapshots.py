"""Snapshots of the version registry over a real broker: taken, damaged, restored, pruned."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gati_core import App, GlobalContext, LocalContext, Request, Response
from gati_core.app.publishing import PackageRecord, fabric_records
from gati_core.app.versioning import PackageVersions
from gati_core.errors import SnapshotError, TopologyError, VersionConflict
from gati_core.fabric import Fabric, KvBucket, open_fabric
from gati_core.fabric.inspection import read_bucket
from gati_core.manifests import publishing_store
from gati_core.settings import FabricSettings
from gati_core.timescape import (
    RegistrySnapshots,
    Rollout,
    SnapshotPolicy,
    Timeline,
    VersionRecord,
    fabric_registry,
    fabric_snapshots,
    fabric_turns,
    fabric_usage,
    rollout_key,
    timeline_key,
    usage_key,
    with_deprecation,
    with_keep,
    with_status,
    with_tag,
    with_version,
)
from gati_router.snapshotting import RouterSnapshots
from tests.helpers.processes import running_fabric
from tests.helpers.waiting import eventually

DAY_MS = 86_400_000


class Stand:
    """A fabric with its registry, and a clock that only the test moves."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.now_ms = 1_750_000_000_000
        self.registry = fabric_registry(fabric)
        self.snapshots: RegistrySnapshots = fabric_snapshots(fabric, now_ms=self._tick)
        subjects = fabric.subjects
        self.timescape, self.config, self.manifests = (
            KvBucket(fabric.connection, name)
            for name in (subjects.timescape_bucket, subjects.config_bucket, subjects.manifests_bucket)
        )

    def _tick(self) -> int:
        self.now_ms += 1
        return self.now_ms

    async def publish(self, count: int = 1, *, handler: str = "order") -> Timeline:
        """Register so many new versions of a handler at once."""

        def edit(it: Timeline) -> Timeline:
            for _ in range(count):
                record = VersionRecord(tsv="", fingerprint=f"f{it.registered}", methods=["GET"], path="/")
                it = with_version(it, record, now_ms=1_700_000_000_000 + it.registered, actor="user:ann")
            return it

        return await self.registry.change("shop", handler, edit)

    async def fill(self) -> Timeline:
        """A handler with versions in every state, its use, its rollout, a package and a schema."""
        before = await self.publish(6)
        first, second, third, fourth, fifth, sixth = (each.tsv for each in before.versions)

        def edit(it: Timeline) -> Timeline:
            it = with_tag(it, first, "stable", now_ms=1, actor="user:ann")
            it = with_tag(it, sixth, "v6", now_ms=2, actor="user:bob")
            it = with_status(it, second, "deactivated", now_ms=3, actor="sweep", reason="cold")
            it = with_status(it, third, "cold", now_ms=4, actor="sweep")
            it = with_status(it, fourth, "hot", now_ms=5, actor="sweep")
            it = with_keep(it, third, now_ms=6, actor="user:ann")
            return with_deprecation(it, fifth, since_s=7, sunset_s=8, now_ms=7, actor="user:ann")

        after = await self.registry.change("shop", "order", edit)
        await fabric_usage(self.fabric).add("shop", "order", {first: 7, sixth: 3}, at_s=1_750_000_000)
        await self.config.put(rollout_key("shop", "order"), msgspec.json.encode(Rollout(strategy="pin", version=first)))
        await self.config.put("other.thing", b"{}")
        await self.publish_package("1.0")
        await self.timescape.put("schema.shop.orders", b'{"app":"shop","name":"orders","changed_ms":1}')
        await self.timescape.put("schemas.shop", b'["orders"]')
        return after

    async def publish_package(self, version: str) -> None:
        record = PackageRecord(
            app="shop",
            version=version,
            distribution="shop",
            target="shop:app",
            entry_point="shop",
            stored=f"shop/{version}/shop.whl",
            filename="shop.whl",
            sha256="0" * 64,
            size_bytes=1,
            handlers={"order": "f0"},
            state="active",
        )
        await fabric_records(self.fabric).change("shop", version, lambda _known: record)

    async def documents(self, bucket: KvBucket) -> dict[str, bytes]:
        return await read_bucket(self.fabric.connection, bucket.bucket)

    async def everything(self) -> dict[str, dict[str, bytes]]:
        return {each.bucket: await self.documents(each) for each in (self.timescape, self.config, self.manifests)}

    async def empty(self, bucket: KvBucket) -> None:
        for key in await bucket.keys():
            await bucket.delete(key)

    async def timeline(self, handler: str = "order") -> Timeline:
        return await self.registry.timeline("shop", handler)


def without_changes(timeline: Timeline) -> Timeline:
    """The versions and tags: the change log goes on when they come back."""
    return msgspec.structs.replace(timeline, changes=[])


@pytest.fixture
def stand(gati_open_fabric: Fabric) -> Stand:
    return Stand(gati_open_fabric)


async def store_manifests(stand: Stand, path: str = "/orders") -> None:
    """Store the manifest and the types of a real handler."""
    app = App("shop")

    class Order(msgspec.Struct):
        sku: str

    async def order(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        res.json(None)

    order.__annotations__["req"] = Request[Order]
    app.post(path, id="order")(order)
    await PackageVersions(app, stand.registry, publishing_store(stand.fabric)).store_documents()


# -- there and back ---------------------------------------------------------------------------------


async def test_an_emptied_registry_comes_back_with_tags_states_use_rollouts_and_records(stand: Stand) -> None:
    before = await stand.fill()
    kept, config = await stand.documents(stand.timescape), await stand.documents(stand.config)
    made = await stand.snapshots.create("light", by="user:ann")
    await stand.empty(stand.timescape)
    await stand.empty(stand.config)

    done = await stand.snapshots.restore(made.id, by="user:bob")

    after = await stand.timeline()
    assert without_changes(after) == without_changes(before)
    assert [each.status for each in after.versions] == ["warm", "deactivated", "cold", "hot", "warm", "warm"]
    assert {each.label: each.tsv for each in after.tags} == {each.label: each.tsv for each in before.tags}
    found = await stand.documents(stand.timescape)
    key = timeline_key("shop", "order")
    assert {name: value for name, value in found.items() if name != key} == {
        name: value for name, value in kept.items() if name != key
    }
    rollout = rollout_key("shop", "order")
    assert await stand.documents(stand.config) == {rollout: config[rollout]}  # other settings are no part of it
    assert {each.action for each in done.steps} == {"create"}
    assert done.missing_packages == ["shop/1.0/shop.whl"]


async def test_a_snapshot_says_what_is_in_it_and_can_be_found_again(stand: Stand) -> None:
    timeline = await stand.fill()

    made = await stand.snapshots.create("light", by="user:ann")
    found = await stand.snapshots.load(made.id)

    assert (made.type, made.created_by, made.created_ms) == ("light", "user:ann", stand.now_ms)
    counts = made.counts
    assert (counts.handlers, counts.versions, counts.active, counts.cold, counts.tags) == (1, 6, 5, 1, 2)
    assert (counts.registered, found.counts) == (6, counts)
    assert found.timelines() == [timeline]
    assert found.packages == ["shop/1.0/shop.whl"]
    assert made.id == f"snap:{stand.now_ms}-light-{found.sha256[:8]}"
    assert await stand.snapshots.latest() == made
    assert await stand.snapshots.latest("heavy") is None
    assert (await stand.snapshots.stats()).bytes == made.size_bytes > 0


async def test_turns_and_locks_are_in_no_snapshot(stand: Stand) -> None:
    await stand.fill()
    await fabric_turns(stand.fabric).take(by="router", every_s=60)
    await stand.timescape.put("lock.schema.shop.orders", b'{"by":"worker"}')

    found = await stand.snapshots.load((await stand.snapshots.create("light", by="test")).id)

    kinds = {key.partition(".")[0] for key in found.documents("timescape")}
    assert kinds == {"timeline", "usage", "package", "schema", "schemas"}
    assert "manifests" not in found.state


async def test_a_heavy_one_has_manifests_and_types_as_well(stand: Stand) -> None:
    await stand.fill()
    await store_manifests(stand)
    before = await stand.documents(stand.manifests)
    made = await stand.snapshots.create("heavy", by="test")
    await stand.empty(stand.manifests)

    await stand.snapshots.restore(made.id, by="test")

    assert {key.partition(".")[0] for key in before} == {"handler", "gtype"}
    assert await stand.documents(stand.manifests) == before


async def test_restored_twice_it_changes_nothing_the_second_time(stand: Stand) -> None:
    await stand.fill()
    made = await stand.snapshots.create("light", by="test")
    await stand.registry.change(
        "shop", "order", lambda it: with_tag(it, it.versions[3].tsv, "x", now_ms=9, actor="eve")
    )
    assert len((await stand.snapshots.restore(made.id, by="test")).changes) == 1
    before = await stand.everything()

    again = await stand.snapshots.restore(made.id, by="test")

    assert again.steps == []
    assert await stand.everything() == before
    assert [each.label for each in (await stand.timeline()).tags] == ["stable", "v6"]


async def test_two_who_restore_at_once_restore_it_once(stand: Stand) -> None:
    before = await stand.fill()
    made = await stand.snapshots.create("light", by="test")
    await stand.empty(stand.timescape)

    done = await asyncio.gather(*(stand.snapshots.restore(made.id, by=f"user:{each}") for each in range(3)))

    after = await stand.timeline()
    assert without_changes(after) == without_changes(before)
    assert [each.type for each in after.changes].count("restored") == 1
    assert sum(each.key == timeline_key("shop", "order") for it in done for each in it.changes) >= 1
    assert (await stand.snapshots.restore(made.id, by="test")).steps == []


async def test_a_document_that_nobody_can_read_is_left_out_and_named_and_the_others_are_safe(stand: Stand) -> None:
    await stand.fill()
    await stand.timescape.put("timeline.shop.broken", b'{"app":"shop"}')

    found = await stand.snapshots.load((await stand.snapshots.create("light", by="test")).id)

    assert [each.handler for each in found.timelines()] == ["order"]
    assert len(found.left_out) == 1
    assert "timeline.shop.broken" in found.left_out[0]


# -- what came since --------------------------------------------------------------------------------


async def test_versions_registered_since_are_not_lost_unless_forced(stand: Stand) -> None:
    await stand.publish(2)
    made = await stand.snapshots.create("light", by="test")
    newer = (await stand.publish()).versions[-1].tsv
    before = await stand.everything()

    plan = await stand.snapshots.restore(made.id, by="test", dry_run=True)
    with pytest.raises(VersionConflict, match=f"would lose them: {newer}; nothing was changed"):
        await stand.snapshots.restore(made.id, by="test")

    assert plan.lost == {"shop:order": [newer]}
    assert [each.note for each in plan.steps] == ["lost: 1 of its versions"]
    assert await stand.everything() == before

    await stand.snapshots.restore(made.id, by="test", force=True)
    assert [each.order.sequence for each in (await stand.timeline()).versions] == [1, 2]


async def test_no_number_is_given_twice_after_a_restore_and_the_change_log_goes_on(stand: Stand) -> None:
    await stand.publish(2)
    made = await stand.snapshots.create("light", by="test")
    lost = (await stand.publish(3)).versions[-1]
    await stand.snapshots.restore(made.id, by="user:eve", force=True)

    added = (await stand.publish()).versions[-1]

    assert added.order.sequence == lost.order.sequence + 1
    changes = await stand.registry.changes("shop", "order", at_most=100)
    assert [each.n for each in changes] == list(range(1, 8))
    assert (changes[5].type, changes[5].actor, changes[5].reason) == ("restored", "user:eve", f"restored {made.id}")
    assert changes[5].payload == {"versions": 2, "lost": 3}
    assert (changes[6].type, changes[6].tsv) == ("registered", added.tsv)


async def test_the_change_log_goes_on_after_the_bucket_was_emptied(stand: Stand) -> None:
    await stand.publish(3)
    made = await stand.snapshots.create("light", by="test")
    await stand.registry.change("shop", "order", lambda it: with_tag(it, it.versions[0].tsv, "a", now_ms=1, actor="x"))
    await stand.empty(stand.timescape)

    await stand.snapshots.restore(made.id, by="test")

    changes = await stand.registry.changes("shop", "order", at_most=100)
    assert [(each.n, each.type) for each in changes[-2:]] == [(4, "tagged"), (5, "restored")]


async def test_handlers_that_came_since_stay(stand: Stand) -> None:
    await stand.publish(1)
    made = await stand.snapshots.create("light", by="test")
    newer = await stand.publish(2, handler="other")

    done = await stand.snapshots.restore(made.id, by="test")

    assert done.newer == [f"timescape: {timeline_key('shop', 'other')}"]
    assert await stand.timeline("other") == newer


async def test_what_was_counted_since_is_not_taken_back(stand: Stand) -> None:
    timeline = await stand.publish(2)
    first, second = (each.tsv for each in timeline.versions)
    usage = fabric_usage(stand.fabric)
    await usage.add("shop", "order", {first: 5, second: 2}, at_s=1_750_000_000)
    made = await stand.snapshots.create("light", by="test")
    await stand.timescape.delete(usage_key("shop", "order"))
    await usage.add("shop", "order", {first: 9}, at_s=1_750_003_600)

    done = await stand.snapshots.restore(made.id, by="test")

    found = await usage.read("shop", "order")
    assert (found.of(first).total, found.of(second).total) == (9, 2)
    assert (found.of(first).last_s, found.of(second).last_s) == (1_750_003_600, 1_750_000_000)
    assert sorted(found.of(first).hours.values()) == [5, 9]
    assert [each.action for each in done.steps] == ["merge"]
    assert (await stand.snapshots.restore(made.id, by="test")).steps == []


async def test_records_of_packages_and_schemas_tell_of_today_and_stay(stand: Stand) -> None:
    await stand.fill()
    made = await stand.snapshots.create("light", by="test")
    await stand.timescape.put("schema.shop.orders", b'{"app":"shop","name":"orders","changed_ms":2}')
    await stand.timescape.put("schemas.shop", b'["invoices"]')
    before = await stand.documents(stand.timescape)

    done = await stand.snapshots.restore(made.id, by="test")

    after = await stand.documents(stand.timescape)
    assert after.pop("schemas.shop") == b'["invoices","orders"]'
    assert before.pop("schemas.shop") == b'["invoices"]'
    assert after == before
    assert {each.key: each.action for each in done.steps} == {"schema.shop.orders": "keep", "schemas.shop": "merge"}


async def test_a_manifest_with_other_content_is_never_written_over(stand: Stand) -> None:
    await store_manifests(stand)
    made = await stand.snapshots.create("heavy", by="test")
    (key,) = (each for each in await stand.manifests.keys() if each.startswith("handler."))
    await stand.manifests.put(key, b'{"id":"changed"}')

    done = await stand.snapshots.restore(made.id, by="test")

    assert [(each.key, each.action) for each in done.steps] == [(key, "keep")]
    assert (await stand.documents(stand.manifests))[key] == b'{"id":"changed"}'


async def test_an_unreadable_timeline_is_replaced_by_the_readable_one(stand: Stand) -> None:
    before = await stand.publish(2)
    made = await stand.snapshots.create("light", by="test")
    await stand.timescape.put(timeline_key("shop", "order"), b"{")

    await stand.snapshots.restore(made.id, by="test")

    assert await stand.timeline() == before


# -- files ------------------------------------------------------------------------------------------


async def test_a_file_brings_the_registry_into_another_fabric(
    stand: Stand, gati_fabric_settings: FabricSettings, tmp_path: Path
) -> None:
    before = await stand.fill()
    made = await stand.snapshots.create("light", by="user:ann")

    size = await stand.snapshots.export_file(made.id, tmp_path / "a.gz")

    assert size == (tmp_path / "a.gz").stat().st_size == made.size_bytes
    with pytest.raises(SnapshotError, match=r"a\.gz exists; it is not written over"):
        await stand.snapshots.export_file(made.id, tmp_path / "a.gz")
    other = msgspec.structs.replace(gati_fabric_settings, namespace=f"{gati_fabric_settings.namespace[:28]}-b")
    async with open_fabric(other, name="other") as fabric:
        there = Stand(fabric)
        assert await there.snapshots.import_file(tmp_path / "a.gz") == made
        assert await there.snapshots.import_file(tmp_path / "a.gz") == made
        await there.snapshots.restore(made.id, by="test")
        assert without_changes(await there.timeline()) == without_changes(before)
        restored = await there.snapshots.create("light", by="test")
        assert (await there.snapshots.load(restored.id)).counts == made.counts


Change = Callable[[dict[str, Any]], None]


def written(document: dict[str, Any]) -> bytes:
    return gzip.compress(json.dumps(document, separators=(",", ":")).encode(), mtime=0)


def rewritten(data: bytes, change: Change) -> bytes:
    """A snapshot that somebody changed, with checksum and id that fit all the same."""
    document = json.loads(gzip.decompress(data))
    change(document)
    state = json.dumps(document["state"], separators=(",", ":")).encode()
    document["sha256"] = hashlib.sha256(state).hexdigest()
    document["id"] = f"snap:{document['created_ms']}-{document['type']}-{document['sha256'][:8]}"
    return written(document)


def _in_place(name: str, value: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        return written(json.loads(gzip.decompress(data)) | {name: value})

    return change


def _state(area: str, key: str, value: Any) -> Callable[[bytes], bytes]:
    def edit(document: dict[str, Any]) -> None:
        document["state"].setdefault(area, {})[key] = value

    return lambda data: rewritten(data, edit)


KEY = timeline_key("shop", "order")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda _data: b"", "it is not gzip'ed"),
        (lambda _data: b"PK\3\4 no gzip", "it is not gzip'ed"),
        (lambda data: data[:-20], r"it is cut off after \d+ bytes"),
        (lambda data: data + b"more", "4 bytes follow its end"),
        (lambda data: data[:40] + bytes([data[40] ^ 0xFF]) + data[41:], "is damaged: Error -3"),
        (lambda data: gzip.compress(b"[]"), "is no snapshot: Expected `object`, got `array`"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-1]), "is no snapshot: Input data was truncated"),
        (_in_place("format", 2), "is of format 2, and this Gati reads format 1"),
        (_in_place("state", {}), "the checksum of its state is"),
        (_in_place("created_ms", 1), "does not fit its time, type and checksum"),
        (_in_place("counts", {"handlers": 9}), "its counts are not those of its documents"),
        (_in_place("extra", 1), "is no snapshot: Object contains unknown field `extra`"),
        (_state("timescape", KEY, {"app": "shop"}), rf"timescape: {KEY}: .*missing required field `handler`"),
        (_state("timescape", KEY, {"app": "a", "handler": "b"}), f"{KEY}: it is the timeline of a:b"),
        (_state("timescape", "sweep.last", {}), "timescape has the key sweep.last, which is in no snapshot"),
        (_state("timescape", "a b", {}), "'a b' is not a key"),
        (_state("config", "secrets", {}), "config has the key secrets, which is in no snapshot"),
        (_state("config", rollout_key("shop", "order"), {"percent": 101}), "rollout.shop.order"),
        (_state("pools", "x", {}), "it has an area 'pools'; those known are timescape, config, manifests"),
    ],
)
async def test_a_damaged_file_is_refused_with_what_is_wrong_and_nothing_is_changed(
    stand: Stand, tmp_path: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    await stand.fill()
    made = await stand.snapshots.create("light", by="test")
    await stand.snapshots.export_file(made.id, tmp_path / "a.gz")
    await stand.snapshots.delete(made.id)
    path = tmp_path / "damaged.gz"
    path.write_bytes(damage((tmp_path / "a.gz").read_bytes()))
    before = await stand.everything()

    with pytest.raises(SnapshotError, match=said) as caught:
        await stand.snapshots.import_file(path)

    assert str(path) in str(caught.value)
    assert await stand.snapshots.list() == []
    assert await stand.everything() == before


async def test_a_small_file_that_unpacks_to_a_large_one_is_not_read(stand: Stand, tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * (257 * 1024 * 1024), compresslevel=1, mtime=0))
    assert path.stat().st_size < 2 * 1024 * 1024

    with pytest.raises(SnapshotError, match="unpacks to more than 268435456: it is not read"):
        await stand.snapshots.import_file(path)

    assert await stand.snapshots.list() == []


async def test_a_file_that_is_not_there_or_far_too_large_is_told(stand: Stand, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"none\.gz: No such file or directory"):
        await stand.snapshots.import_file(tmp_path / "none.gz")

    with (tmp_path / "large.gz").open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(SnapshotError, match=r"large\.gz has more than 67108864 bytes"):
        await stand.snapshots.import_file(tmp_path / "large.gz")


async def test_what_is_damaged_in_the_fabric_is_told_and_changes_nothing(stand: Stand) -> None:
    await stand.fill()
    made = await stand.snapshots.create("light", by="test")
    bucket = stand.fabric.subjects.snapshots_bucket
    await stand.fabric.connection.jetstream().purge_stream(f"OBJ_{bucket}", subject=f"$O.{bucket}.C.>")
    before = await stand.everything()

    with pytest.raises(SnapshotError, match=f"the snapshot {made.id} is damaged: 0 of {made.size_bytes} bytes"):
        await stand.snapshots.restore(made.id, by="test")

    assert await stand.everything() == before


async def test_an_unknown_id_is_told_with_those_that_there_are(stand: Stand) -> None:
    with pytest.raises(SnapshotError, match="there is no snapshot 'x'; there is none yet"):
        await stand.snapshots.load("x")
    made = await stand.snapshots.create("light", by="test")
    with pytest.raises(SnapshotError, match=f"there are {made.id}"):
        await stand.snapshots.delete("snap:1-light-00000000")


async def test_without_its_object_store_it_says_how_to_make_it(stand: Stand) -> None:
    await stand.fabric.connection.jetstream().delete_stream(f"OBJ_{stand.fabric.subjects.snapshots_bucket}")

    with pytest.raises(TopologyError, match="GATI_FABRIC_TOPOLOGY=apply"):
        await stand.snapshots.create("light", by="test")


# -- when, and for how long -------------------------------------------------------------------------


async def test_a_light_one_is_due_after_100_versions_and_a_heavy_one_after_1000(stand: Stand) -> None:
    async def made() -> str | None:
        found = await stand.snapshots.create_if_needed(SnapshotPolicy(), by="test")
        return None if found is None else found.type

    await stand.publish(60, handler="a")
    await stand.publish(39, handler="b")
    assert await made() is None
    await stand.publish(1, handler="b")
    assert await made() == "light"
    assert await made() is None
    await stand.publish(99, handler="b")
    assert await made() is None
    await stand.publish(1, handler="a")
    assert await made() == "light"
    await stand.publish(799, handler="c")
    assert await made() == "light"
    await stand.publish(100, handler="d")
    assert await made() == "heavy"  # both are due
    assert await made() is None
    await stand.publish(99, handler="d")
    assert await made() is None
    await stand.publish(1, handler="d")
    assert await made() == "light"


async def test_in_a_registry_that_was_emptied_all_versions_are_new(stand: Stand) -> None:
    policy = SnapshotPolicy(light_every=3, heavy_every=1000)
    await stand.publish(10)
    assert await stand.snapshots.create_if_needed(policy, by="test") is not None
    await stand.empty(stand.timescape)

    await stand.publish(2)
    assert await stand.snapshots.create_if_needed(policy, by="test") is None
    await stand.publish(1)
    assert await stand.snapshots.create_if_needed(policy, by="test") is not None


async def test_old_ones_are_pruned_but_never_the_newest_of_a_type(stand: Stand) -> None:
    await stand.publish(1)
    first_heavy = await stand.snapshots.create("heavy", by="test")
    first_light = await stand.snapshots.create("light", by="test")
    second_light = await stand.snapshots.create("light", by="test")
    stand.now_ms += 89 * DAY_MS
    assert await stand.snapshots.prune(SnapshotPolicy().retention_s) == []
    stand.now_ms += 2 * DAY_MS

    planned = await stand.snapshots.prune(SnapshotPolicy().retention_s, dry_run=True)
    gone = await stand.snapshots.prune(SnapshotPolicy().retention_s)

    assert planned == gone == [first_light]
    assert await stand.snapshots.list() == [second_light, first_heavy]
    third_light = await stand.snapshots.create("light", by="test")
    assert await stand.snapshots.prune(SnapshotPolicy().retention_s) == [second_light]
    assert await stand.snapshots.list() == [third_light, first_heavy]
    stats = await stand.snapshots.stats()
    assert (stats.light, stats.heavy) == (1, 1)
    assert (stats.oldest_ms, stats.newest_ms) == (first_heavy.created_ms, third_light.created_ms)


async def test_a_router_that_cannot_take_one_goes_on(stand: Stand) -> None:
    await stand.publish(1)
    policy = SnapshotPolicy(light_every=1)
    router = RouterSnapshots(stand.fabric, policy, router_id="one")
    bucket = stand.fabric.subjects.snapshots_bucket
    await stand.fabric.connection.jetstream().delete_stream(f"OBJ_{bucket}")

    await router.run()
    await stand.fabric.topology.ensure()
    await router.run()

    (made,) = await stand.snapshots.list()
    assert made.created_by == "router:one"


async def test_routers_take_the_snapshot_that_is_due_once(tmp_path: Path) -> None:
    environment = {"GATI_ROUTER_SWEEP_EVERY_S": "0.4", "GATI_SNAPSHOT_LIGHT_EVERY": "20"}
    async with (
        running_fabric(tmp_path, packages=["ledger_app.py"], routers=2, environment=environment) as running,
        open_fabric(running.settings, name="test") as fabric,
    ):
        stand = Stand(fabric)
        assert await stand.snapshots.list() == []
        await stand.publish(20)

        async def is_taken() -> bool:
            return bool(await stand.snapshots.list())

        await eventually(is_taken, within_s=15)
        taken_at = await stand.timescape.get("sweep.last")

        async def has_been_looked_again() -> bool:
            return await stand.timescape.get("sweep.last") != taken_at

        await eventually(has_been_looked_again, within_s=15)
        (made,) = await stand.snapshots.list()
        assert made.created_by.startswith("router:")
        assert made.type == "light"
        assert made.counts.registered >= 20
