"""The manifest store, in memory and over the broker: what is stored is returned equal, and read without asking."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest

from gati_core.errors import AlreadyStored, KeyConflict, MalformedManifest, MessageTooLarge
from gati_core.fabric import EmbeddedBroker, Fabric, KvBucket, KvView, open_fabric
from gati_core.gtype import ArrayOf, Document, ObjectOf, Primitive, fingerprint
from gati_core.manifests import (
    GraphVersion,
    HandlerManifest,
    HookRecord,
    ManifestStore,
    ModuleManifest,
    ModuleMethod,
    TimescapeMetadata,
    TransformerRecord,
    VersionGraph,
    fabric_store,
    manifest_hash,
    memory_store,
    publishing_store,
)
from gati_core.settings import FabricSettings
from gati_testing import eventually
from tests.helpers import brokers

TEXT = Primitive(primitive_type="string")
ORDER = Document(root=ObjectOf(properties={"sku": TEXT}, required=["sku"]), metadata={"name": "Order"})


def handler(id: str = "place_order", version: str = "", **more: Any) -> HandlerManifest:
    fields: dict[str, Any] = {"methods": ["POST"], "path": "/orders", "mode": "at_most_once", "fingerprint": "a" * 64}
    return HandlerManifest(id=id, version=version, **{**fields, **more})


@pytest.fixture
async def fabric(gati_fabric_settings: FabricSettings) -> AsyncIterator[Fabric]:
    async with open_fabric(gati_fabric_settings, name="test") as fabric:
        yield fabric


@pytest.fixture(params=["memory", "fabric"])
async def store(request: pytest.FixtureRequest, gati_fabric_settings: FabricSettings) -> AsyncIterator[ManifestStore]:
    if request.param == "memory":
        yield memory_store()
        return
    async with open_fabric(gati_fabric_settings, name="test") as fabric:
        view = KvView(fabric.connection, fabric.subjects.manifests_bucket)
        await view.start()
        yield fabric_store(fabric, view)
        await view.aclose()


async def test_a_handler_is_found_by_version_and_the_newest_without_one(store: ManifestStore) -> None:
    first = await store.store_manifest("shop", handler(version="tsv:100-place_order-001", created_ms=10))
    second = await store.store_manifest("shop", handler(version="tsv:200-place_order-002", path="/v2", created_ms=20))

    assert store.manifest("shop", "place_order") == second
    assert store.manifest("shop", "place_order", "tsv:100-place_order-001") == first
    assert store.manifest_versions("shop", "place_order") == [first, second]
    assert store.manifest("shop", "other") is store.manifest("bakery", "place_order") is None
    assert first.hash == manifest_hash(first)


async def test_storing_the_same_again_keeps_the_first_date_and_other_content_is_refused(store: ManifestStore) -> None:
    first = await store.store_manifest("shop", handler(created_ms=10))

    assert await store.store_manifest("shop", handler(created_ms=99)) == first
    with pytest.raises(AlreadyStored, match=r"shop:place_order of version a{16} is stored with other content"):
        await store.store_manifest("shop", handler(path="/elsewhere"))
    assert store.manifest("shop", "place_order") == first


async def test_hooks_come_with_the_manifest(store: ManifestStore) -> None:
    hook = HookRecord(id="audit", type="after", level="global", timeout_s=5.0)
    await store.store_manifest("shop", handler(hooks=[hook]))

    assert store.hooks("shop", "place_order") == [hook]
    assert store.hooks("shop", "other") == []


async def test_types_are_stored_by_their_content(store: ManifestStore) -> None:
    name = await store.store_gtype(ORDER)

    assert (name, await store.store_gtype(ORDER)) == (fingerprint(ORDER), name)
    assert store.gtype(name) == ORDER
    assert store.gtype("0" * 64) is None


async def test_modules_are_found_by_version_and_the_newest_without_one(store: ManifestStore) -> None:
    old = await store.store_module(ModuleManifest(module_id="mail", version="1.0.0", created_ms=1))
    new = await store.store_module(
        ModuleManifest(module_id="mail", version="1.1.0", methods=[ModuleMethod(name="send")], created_ms=2)
    )

    assert (store.module("mail"), store.module("mail", "1.0.0"), store.modules()) == (new, old, [old, new])
    with pytest.raises(AlreadyStored, match=r"module mail of version 1\.0\.0"):
        await store.store_module(ModuleManifest(module_id="mail", version="1.0.0", description="another"))


async def test_a_transformer_is_written_once(store: ManifestStore) -> None:
    record = TransformerRecord(
        id="t1", app="shop", handler_id="h", from_version="v1", to_version="v2", direction="forward"
    )
    stored = await store.store_transformer(record)

    assert await store.store_transformer(record) == stored
    assert store.transformer("shop", "h", "v1", "v2") == stored
    assert store.transformers("shop", "h") == [stored]
    with pytest.raises(AlreadyStored, match="from v1 to v2 is stored already"):
        await store.store_transformer(msgspec.structs.replace(record, direction="backward"))


async def test_two_who_change_a_graph_at_once_lose_nothing(store: ManifestStore) -> None:
    async def add(version: str) -> None:
        def change(graph: VersionGraph) -> VersionGraph:
            return msgspec.structs.replace(graph, versions=[*graph.versions, GraphVersion(version=version)])

        await store.update_graph("shop", "h", change)

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(add, f"v{number}")

    graph = store.graph("shop", "h")
    assert graph is not None
    assert sorted(each.version for each in graph.versions) == [f"v{number}" for number in range(10)]


async def test_who_is_always_slower_is_told_in_the_end(store: ManifestStore) -> None:
    store._backend.create = store._backend.update = _always_late  # type: ignore[method-assign]

    with pytest.raises(KeyConflict, match="changed by others 20 times in a row"):
        await store.update_graph("shop", "h", lambda graph: graph)


async def _always_late(*_: Any, **__: Any) -> int:
    raise KeyConflict("too late")


async def test_what_timescape_knows_is_replaced_and_its_history_kept(store: ManifestStore) -> None:
    def record(mark: str) -> TimescapeMetadata:
        return TimescapeMetadata(app="shop", handler_id="h", version="tsv:1-h-001", fingerprint=mark)

    for mark in ("a", "b", "c"):
        await store.store_timescape(record(mark))

    assert store.timescape("shop", "h", "tsv:1-h-001") == record("c")
    past = await store.history("timescape", "shop", "h", "tsv:1-h-001")
    assert [msgspec.json.decode(each.value or b"", type=TimescapeMetadata).fingerprint for each in past] == [
        "a",
        "b",
        "c",
    ]
    assert [each.revision for each in past] == sorted(each.revision for each in past)
    assert all(each.written_ms > 1_700_000_000_000 for each in past)


async def test_everything_is_counted_and_can_be_cleared(store: ManifestStore) -> None:
    await store.store_gtype(ORDER)
    await store.store_manifest("shop", handler())
    await store.update_graph("shop", "h", lambda graph: graph)

    stats = store.stats()
    assert (stats.gtypes, stats.manifests, stats.graphs, stats.unreadable) == (1, 1, 1, [])
    await store.clear()
    await eventually(lambda: store.stats() == type(stats)(), within_s=5)


async def test_a_document_too_large_is_refused_before_it_is_sent(store: ManifestStore) -> None:
    large = Document(root=ObjectOf(properties={f"field_{number:05}": TEXT for number in range(10_000)}))

    with pytest.raises(MessageTooLarge, match=r"gtype\..* exceeds the limit of 512000"):
        await store.store_gtype(large)


# -- over the broker -----------------------------------------------------------------------------


async def _open(fabric: Fabric) -> tuple[ManifestStore, KvView]:
    view = KvView(fabric.connection, fabric.subjects.manifests_bucket)
    await view.start()
    return fabric_store(fabric, view), view


async def test_reads_do_not_ask_the_broker_and_a_change_is_seen(fabric: Fabric) -> None:
    """P36: a second lookup does not touch the store; a change invalidates the entry."""
    (store, view), (other, other_view) = await _open(fabric), await _open(fabric)
    await store.update_graph("shop", "h", lambda graph: graph)
    first = store.graph("shop", "h")
    store._backend.newest = _not_allowed  # type: ignore[method-assign]

    assert store.graph("shop", "h") is first

    await other.update_graph("shop", "h", lambda graph: msgspec.structs.replace(graph, current_version="v2"))
    await eventually(lambda: getattr(store.graph("shop", "h"), "current_version", "") == "v2", within_s=5)
    await view.aclose()
    await other_view.aclose()


async def _not_allowed(_key: str) -> None:
    raise AssertionError("the broker was asked")


async def test_what_cannot_be_read_is_reported_and_hurts_nothing_else(fabric: Fabric) -> None:
    store, view = await _open(fabric)
    name = await store.store_gtype(ORDER)
    bucket = KvBucket(fabric.connection, fabric.subjects.manifests_bucket)
    other = fingerprint(Document(root=ArrayOf(items=TEXT)))
    await bucket.put(f"gtype.{'b' * 64}", b'{"version": "9.0", "root": {"kind": "circle"}}')
    await bucket.put(f"gtype.{other}", b'{"root": {"kind": "any"}}')
    revision = await bucket.put("handler.shop.h.v1", b"{")
    await eventually(lambda: (entry := view.get("handler.shop.h.v1")) and entry.revision >= revision, within_s=5)

    stats = store.stats()

    assert (stats.gtypes, store.gtype(name), store.gtype(other)) == (1, ORDER, None)
    assert [line.partition(":")[0] for line in stats.unreadable] == sorted(
        [f"gtype.{'b' * 64}", f"gtype.{other}", "handler.shop.h.v1"]
    )
    assert any("upgrade it" in line for line in stats.unreadable)
    assert any("another fingerprint" in line for line in stats.unreadable)
    await bucket.put("graph.shop.h", b"[]")
    with pytest.raises(MalformedManifest):
        await store.update_graph("shop", "h", lambda graph: graph)
    await view.aclose()


async def test_a_publisher_without_a_view_finds_what_is_stored_already(fabric: Fabric) -> None:
    (store, view), publisher = await _open(fabric), publishing_store(fabric)
    first = await store.store_manifest("shop", handler(created_ms=5))

    assert await publisher.store_manifest("shop", handler(created_ms=7)) == first
    assert await publisher.store_gtype(ORDER) == await publisher.store_gtype(ORDER)
    await view.aclose()


async def test_everything_is_there_after_a_crash_of_the_broker(own_fabric: Fabric, own_broker: EmbeddedBroker) -> None:
    store, view = await _open(own_fabric)
    name = await store.store_gtype(ORDER)
    manifest = await store.store_manifest("shop", handler())
    await view.aclose()

    await brokers.kill_and_restart(own_broker)

    async with open_fabric(own_fabric.settings, name="another process") as fabric:
        again, new_view = await _open(fabric)
        assert (again.gtype(name), again.manifest("shop", "place_order")) == (ORDER, manifest)
        await new_view.aclose()
