"""The documents that processes leave for each other, and for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_core.errors import MalformedManifest
from gati_core.manifests import (
    METHODS,
    HandlerManifest,
    PoolManifest,
    WorkerAnnouncement,
    parse_announcement,
    parse_pool_manifest,
    pool_name,
)
from gati_core.wire import PROTOCOL, token
from gati_testing import strategies

HANDLER = HandlerManifest(id="read", methods=["GET", "HEAD"], path="/orders/{id}", mode="at_least_once")
POOL = PoolManifest(app="shop", pool="shop-1", version="1.2.0", handlers=[HANDLER], published_ms=7)
WORKER = WorkerAnnouncement(worker="w1", manifest=POOL, host="h", pid=1, capacity=64)


def _changed(document: msgspec.Struct, *path: str, to: Any) -> bytes:
    """The document as JSON with one field replaced, or removed where `to` is `...`."""
    fields = json.loads(msgspec.json.encode(document))
    at = fields
    for name in path[:-1]:
        at = at[0] if name == "0" else at[name]
    if to is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return json.dumps(fields).encode()


def test_a_pool_manifest_survives_json() -> None:
    assert parse_pool_manifest(msgspec.json.encode(POOL), key="k") == POOL


def test_an_announcement_survives_json() -> None:
    assert parse_announcement(msgspec.json.encode(WORKER), key="k") == WORKER


def test_the_least_that_a_document_says_is_enough() -> None:
    parsed = parse_announcement(b'{"worker":"w","manifest":{"app":"a","pool":"p","handlers":[]}}', key="k")

    assert parsed == WorkerAnnouncement(worker="w", manifest=PoolManifest(app="a", pool="p", handlers=[]))
    assert (parsed.protocol, parsed.state) == (PROTOCOL, "ready")


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert parse_pool_manifest(_changed(POOL, "colour", to="blue"), key="k") == POOL


@pytest.mark.parametrize("parse", [parse_announcement, parse_pool_manifest])
@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"app": "\xff"}', b"{}"])
def test_bytes_that_are_no_document_are_malformed_and_the_key_is_named(
    parse: Callable[..., object], data: bytes
) -> None:
    with pytest.raises(MalformedManifest, match=r"^current\.shop: "):
        parse(data, key="current.shop")


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("app",), "a.b"),
        (("app",), ""),
        (("pool",), "p q"),
        (("pool",), "a" * 65),
        (("handlers",), None),
        (("handlers", "0", "id"), "*"),
        (("handlers", "0", "id"), ...),
        (("handlers", "0", "methods"), []),
        (("handlers", "0", "methods"), ["FETCH"]),
        (("handlers", "0", "path"), "orders"),
        (("handlers", "0", "path"), "/" + "a" * 1024),
        (("handlers", "0", "mode"), "exactly_once"),
        (("handlers", "0", "timeout_s"), 0),
        (("published_ms",), "yesterday"),
    ],
)
def test_a_field_that_does_not_fit_is_malformed_and_named(path: tuple[str, ...], to: Any) -> None:
    with pytest.raises(MalformedManifest, match=rf"^k: .*`?{path[-1]}`?"):
        parse_pool_manifest(_changed(POOL, *path, to=to), key="k")


@pytest.mark.parametrize("state", ["resting", "", None])
def test_a_worker_is_ready_draining_or_asleep_and_nothing_else(state: object) -> None:
    with pytest.raises(MalformedManifest, match="state"):
        parse_announcement(_changed(WORKER, "state", to=state), key="k")


@pytest.mark.parametrize("protocol", [0, PROTOCOL + 1, -1])
@pytest.mark.parametrize(("parse", "document"), [(parse_announcement, WORKER), (parse_pool_manifest, POOL)])
def test_another_protocol_is_refused_and_both_numbers_are_named(
    parse: Callable[..., object], document: msgspec.Struct, protocol: int
) -> None:
    with pytest.raises(MalformedManifest, match=f"k: protocol {protocol}, this process reads protocol {PROTOCOL}"):
        parse(_changed(document, "protocol", to=protocol), key="k")


@pytest.mark.parametrize("parse", [parse_announcement, parse_pool_manifest])
def test_nesting_without_end_is_malformed(parse: Callable[..., object]) -> None:
    with pytest.raises(MalformedManifest):
        parse(b'{"x":' * 100_000, key="k")


def test_manifests_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        POOL.pool = "other"  # type: ignore[misc]


def test_the_methods_are_those_that_decorators_exist_for() -> None:
    assert METHODS == ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")


@given(app=strategies.tokens(), fingerprint=st.text())
def test_a_pool_name_is_a_token_and_always_the_same(app: str, fingerprint: str) -> None:
    name = pool_name(app, fingerprint)

    assert token(name, "pool") == pool_name(app, fingerprint)
    assert name.startswith(app[:55])


def test_pools_differ_by_app_and_by_fingerprint() -> None:
    assert len({pool_name("a", "1"), pool_name("a", "2"), pool_name("b", "1"), pool_name("b", "2")}) == 4
