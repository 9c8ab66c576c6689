"""Bundles: the same content is the same bytes, and whatever is missing, repeated or changed is named."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gati_core.errors import BundleError
from gati_core.gtype import Document, ObjectOf, Primitive, fingerprint
from gati_core.manifests import (
    Bundle,
    Dependencies,
    GTypeRefs,
    HandlerManifest,
    ModuleManifest,
    bundle_checksum,
    bundle_index,
    make_bundle,
    open_bundle,
    version_of,
    write_bundle,
)

ORDER = Document(root=ObjectOf(properties={"sku": Primitive(primitive_type="string")}, required=["sku"]))
NEXT_ORDER = Document(root=ObjectOf(properties={"sku": Primitive(primitive_type="integer")}, required=["sku"]))
SCHEMAS = {fingerprint(each): each for each in (ORDER, NEXT_ORDER)}
STOCK = ModuleManifest(module_id="stock", version="1.0.0")


def handler(id: str, version: str, created_ms: int, body: Document = ORDER, **more: Any) -> HandlerManifest:
    return HandlerManifest(
        id=id,
        version=version,
        created_ms=created_ms,
        methods=["POST"],
        path=f"/{id}",
        mode="at_most_once",
        fingerprint="a" * 64,
        gtypes=GTypeRefs(request=fingerprint(body)),
        **more,
    )


FIRST = handler("place", "tsv:1-place-001", 1)
SECOND = handler("place", "tsv:2-place-002", 2)
THIRD = handler("place", "tsv:3-place-003", 3, NEXT_ORDER)
OTHER = handler("list", "tsv:1-list-001", 1, dependencies=Dependencies(modules=["stock"]))
ALL = [FIRST, SECOND, THIRD, OTHER]


def is_breaking(old: HandlerManifest, new: HandlerManifest) -> bool:
    return old.gtypes.request != new.gtypes.request


def bundle(handlers: list[HandlerManifest] = ALL, modules: list[ModuleManifest] | None = None, **more: Any) -> Bundle:
    return make_bundle(
        handlers, [STOCK] if modules is None else modules, more.pop("schemas", SCHEMAS), is_breaking=is_breaking, **more
    )


def test_the_order_in_which_things_are_given_does_not_matter() -> None:
    shuffled = random.Random(7).sample(ALL, k=len(ALL))
    schemas = dict(reversed(SCHEMAS.items()))

    assert write_bundle(bundle(shuffled, schemas=schemas)) == write_bundle(bundle())


def test_a_bundle_is_opened_as_it_was_made() -> None:
    made = bundle(generated="2026-01-02T03:04:05Z", metadata={"team": "shop"})

    assert open_bundle(write_bundle(made)) == made
    assert made.checksum == bundle_checksum(made)
    assert made.checksum.startswith("sha256:")


def test_the_graph_leads_from_each_version_to_the_next_and_says_which_step_breaks() -> None:
    graph = bundle().version_graph

    assert [(node.handler_id, node.version, node.timestamp) for node in graph.nodes] == [
        ("list", OTHER.version, 1),
        ("place", FIRST.version, 1),
        ("place", SECOND.version, 2),
        ("place", THIRD.version, 3),
    ]
    assert [(edge.from_, edge.to, edge.breaking) for edge in graph.edges] == [
        (FIRST.version, SECOND.version, False),
        (SECOND.version, THIRD.version, True),
    ]


def test_a_breaking_step_asks_for_a_transformer() -> None:
    (wanted,) = bundle().transformers

    assert (wanted.from_version, wanted.to_version) == (SECOND.version, THIRD.version)
    assert wanted.path == f"transformers/{SECOND.version}-to-{THIRD.version}"


def test_the_index_says_where_everything_is() -> None:
    index = bundle_index(bundle())

    assert index.handlers == {"list": [0], "place": [1, 2, 3]}
    assert index.paths == {"/list": [0], "/place": [1, 2, 3]}
    assert index.modules == {"stock": [0]}


def test_a_handler_that_was_never_registered_goes_by_its_fingerprint() -> None:
    new = handler("place", "", 0)

    assert version_of(new) == "a" * 16
    assert bundle([new]).version_graph.nodes[0].version == "a" * 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bundle([FIRST, FIRST]), "handler place of version tsv:1-place-001 is there 2 times"),
        (lambda: bundle(modules=[STOCK, STOCK]), "module stock of version 1.0.0 is there 2 times"),
        (lambda: bundle(modules=[]), "handler list needs the module stock, which is not in the bundle"),
        (
            lambda: bundle([FIRST], schemas={}),
            f"handler place: its request type {fingerprint(ORDER)[:12]}… is not among the schemas",
        ),
        (
            lambda: bundle([FIRST], schemas={fingerprint(ORDER): NEXT_ORDER}),
            f"the schema {fingerprint(ORDER)[:12]}… has another fingerprint: it was changed",
        ),
    ],
)
def test_what_does_not_hold_together_is_refused(make: Callable[[], Bundle], message: str) -> None:
    with pytest.raises(BundleError) as refused:
        make()

    assert str(refused.value) == message


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(BundleError) as refused:
        bundle([FIRST, FIRST, OTHER], modules=[], schemas={})

    assert str(refused.value).count(";") == 4  # twice the handler, no module, three types without a schema


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a bundle"),
        (b"[]", "not a bundle"),
        (b"\xff{}", "not a bundle"),
        (b"[" * 100_000, "not a bundle"),
        (write_bundle(bundle()).replace(b'"/place"', b'"/other"'), "was changed since it was made"),
        (write_bundle(bundle()).replace(b'"version": "1.0.0"', b'"version": "2.0.0"'), r"of version 2\.0\.0, this"),
        (write_bundle(msgspec.structs.replace(bundle(), checksum="")), "was changed since it was made"),
    ],
)
def test_what_is_no_sound_bundle_is_refused_when_it_is_opened(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        open_bundle(data)


def test_a_newer_bundle_of_the_same_major_version_is_read() -> None:
    newer = msgspec.structs.replace(bundle(), version="1.9.0", checksum="")

    opened = open_bundle(write_bundle(msgspec.structs.replace(newer, checksum=bundle_checksum(newer))))

    assert opened.handlers == bundle().handlers
