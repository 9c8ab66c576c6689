"""P36 and P39 over a real broker: what is stored comes back equal, is read without asking, and never out of date.

That it also comes back after a broker was killed is in tests/integration/fabric, in test_manifest_store.py and
test_version_registry.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gati_core.fabric import EmbeddedBroker, Fabric, KvView, open_fabric
from gati_core.gtype import Document, fingerprint
from gati_core.ids import new_instance_id
from gati_core.manifests import (
    GraphVersion,
    GTypeRefs,
    HandlerManifest,
    ManifestStore,
    TimescapeMetadata,
    Transformation,
    TransformerRecord,
    TransformerRef,
    fabric_store,
    publishing_store,
)
from gati_core.settings import FabricSettings
from gati_core.timescape import (
    Registry,
    Timeline,
    VersionRecord,
    fabric_registry,
    with_keep,
    with_tag,
    with_version,
)
from gati_testing import eventually, gtypes

names = st.from_regex(r"[a-z][a-z0-9_]{0,11}", fullmatch=True)
words = st.text(max_size=12)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
manifests = st.builds(
    HandlerManifest,
    id=names,
    methods=st.just(["POST"]),
    path=names.map(lambda name: f"/{name}"),
    mode=st.sampled_from(["at_most_once", "at_least_once"]),
    fingerprint=digests,
    gtypes=st.builds(GTypeRefs, request=digests | st.just(""), response=digests | st.just("")),
    summary=words,
)
versions = st.builds(
    GraphVersion,
    version=names,
    manifest_hash=digests,
    deployed_ms=st.integers(0, 2**40),
    active=st.booleans(),
    parent=words,
    breaking=st.booleans(),
    transformers=st.lists(st.builds(TransformerRef, to=names, transformer_id=names), max_size=2),
)
transformers = st.builds(
    TransformerRecord,
    id=names,
    app=st.just("shop"),
    handler_id=names,
    from_version=names,
    to_version=names,
    direction=st.sampled_from(["forward", "backward"]),
    transformations=st.lists(
        st.builds(Transformation, path=words, type=st.sampled_from(["rename", "add"]), details=st.just({"to": "x"})),
        max_size=2,
    ),
)


class Stored(NamedTuple):
    """A publisher without a view, and a reader that follows the bucket."""

    fabric: Fabric
    writer: ManifestStore
    reader: ManifestStore
    registry: Registry


class Case(NamedTuple):
    """One of each kind."""

    manifest: HandlerManifest
    document: Document
    graph: list[GraphVersion]
    transformer: TransformerRecord
    labels: list[str]


cases = st.builds(
    Case,
    manifest=manifests,
    document=gtypes.documents(),
    graph=st.lists(versions, max_size=4),
    transformer=transformers,
    labels=st.lists(names, min_size=1, max_size=4, unique=True),
)


@pytest.fixture(scope="module")
async def stored(gati_broker: EmbeddedBroker) -> AsyncIterator[Stored]:
    fabric_settings = FabricSettings(nats_url=gati_broker.url, namespace=f"t{new_instance_id()}")
    async with open_fabric(fabric_settings, name="test") as fabric:
        view = KvView(fabric.connection, fabric.subjects.manifests_bucket)
        await view.start()
        yield Stored(fabric, publishing_store(fabric), fabric_store(fabric, view), fabric_registry(fabric))
        await view.aclose()


async def write(store: ManifestStore, registry: Registry, app: str, case: Case) -> dict[str, Any]:
    """Store one of each; returns what `read` should find."""
    manifest = await store.store_manifest(app, case.manifest)
    name = await store.store_gtype(case.document)
    graph = await store.update_graph(app, "order", lambda it: msgspec.structs.replace(it, versions=case.graph))
    record = msgspec.structs.replace(case.transformer, app=app)
    transformer = await store.store_transformer(record)
    metadata = TimescapeMetadata(app=app, handler_id="order", version="v1", fingerprint=case.manifest.fingerprint)
    await store.store_timescape(metadata)

    def edit(timeline: Timeline) -> Timeline:
        version = VersionRecord(tsv="", fingerprint=case.manifest.fingerprint, methods=["POST"], path="/")
        timeline = with_version(timeline, version, now_ms=1_750_000_000_000, actor="test")
        for label in case.labels:
            timeline = with_tag(timeline, timeline.versions[0].tsv, label, now_ms=1, actor="test")
        return with_keep(timeline, timeline.versions[0].tsv, now_ms=1, actor="test")

    timeline = await registry.change(app, "order", edit)
    assert fingerprint(case.document) == name
    return {
        "manifest": manifest,
        "gtype": name,
        "graph": graph,
        "transformer": transformer,
        "timescape": metadata,
        "timeline": timeline,
    }


async def read(store: ManifestStore, registry: Registry, app: str, case: Case) -> dict[str, Any]:
    record = case.transformer
    document = store.gtype(fingerprint(case.document))
    return {
        "manifest": store.manifest(app, case.manifest.id, case.manifest.fingerprint),
        # Types are one when their fingerprints are: the order of their bounds, for example, is not part of them.
        "gtype": fingerprint(document) if document is not None else None,
        "graph": store.graph(app, "order"),
        "transformer": store.transformer(app, record.handler_id, record.from_version, record.to_version),
        "timescape": store.timescape(app, "order", "v1"),
        "timeline": await registry.timeline(app, "order"),
    }


@pytest.mark.prop(39)
@pytest.mark.timeout(180)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases)
async def test_what_is_stored_is_returned_equal(stored: Stored, case: Case) -> None:
    """P39 (R11.5): manifests, types, version graphs, transformers, metadata and timelines."""
    app = f"a{new_instance_id()}"

    expected = await write(stored.writer, stored.registry, app, case)

    async def is_seen() -> bool:
        return None not in (await read(stored.reader, stored.registry, app, case)).values()

    await eventually(is_seen, within_s=5)
    assert await read(stored.reader, stored.registry, app, case) == expected


@pytest.mark.prop(36)
@pytest.mark.timeout(180)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(manifest=manifests, graphs=st.lists(st.lists(versions, min_size=1, max_size=3), min_size=2, max_size=3))
async def test_a_second_lookup_asks_nobody_and_a_change_is_seen(
    stored: Stored, manifest: HandlerManifest, graphs: list[list[GraphVersion]]
) -> None:
    """P36 (R9.5): read from memory, decoded once, and never older than the last change that arrived."""
    app = f"a{new_instance_id()}"
    kept = await stored.writer.store_manifest(app, manifest)
    await eventually(lambda: stored.reader.manifest(app, manifest.id, manifest.fingerprint) is not None, within_s=5)

    first = stored.reader.manifest(app, manifest.id, manifest.fingerprint)
    assert first == kept
    # Not decoded again, and there is nothing to wait for: `manifest` is no coroutine, so that it cannot ask.
    assert all(stored.reader.manifest(app, manifest.id, manifest.fingerprint) is first for _ in range(10))

    for graph in graphs:
        changed = await stored.writer.update_graph(
            app, "order", lambda it, graph=graph: msgspec.structs.replace(it, versions=graph)
        )
        await eventually(lambda changed=changed: stored.reader.graph(app, "order") == changed, within_s=5)
