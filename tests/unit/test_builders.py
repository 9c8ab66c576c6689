"""Requests and contexts that tests build: what they hold, by default and when told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given

from gati_core import Forbidden
from gati_core.lifecycle import Request
from gati_testing import (
    BuiltRequest,
    FakeGlobalContextBuilder,
    FakeLocalContextBuilder,
    RequestBuilder,
    create_fake_global_context,
    create_fake_local_context,
    create_stub_module,
    create_test_request,
    create_test_response,
    strategies,
)
from gati_testing.builders import as_request, next_request_id

# -- requests -----------------------------------------------------------------------------------


def test_a_request_has_sensible_defaults() -> None:
    assert RequestBuilder().build() == BuiltRequest() == as_request(None) == as_request({})
    assert (BuiltRequest().method, BuiltRequest().path, BuiltRequest().headers) == ("GET", "/", [])


def test_a_request_is_built_step_by_step() -> None:
    built = (
        RequestBuilder("post", "/a b/ü?x=1")
        .header("X-One", " 1 ")
        .header("x-one", "2")
        .json({"a": [1]})
        .auth("ada", roles=["admin"])
        .params(id=7)
        .flags("trace", "beta")
        .build()
    )

    assert (built.method, built.path, built.query, built.body) == ("POST", "/a%20b/%C3%BC", "x=1", b'{"a":[1]}')
    assert built.headers == [
        *(("x-one", "1"), ("x-one", "2"), ("content-type", "application/json"), ("x-gati-flags", "trace,beta")),
    ]
    assert (built.params, built.principal and built.principal.roles) == ({"id": "7"}, ["admin"])


def test_a_builder_may_be_used_again() -> None:
    builder = RequestBuilder()
    first = builder.header("a", "1").build()
    second = builder.header("b", "2").build()

    assert (len(first.headers), len(second.headers)) == (1, 2)


@pytest.mark.parametrize(
    ("query", "expected"),
    [({"a": [1, 2], "b": "ü x"}, "a=1&a=2&b=%C3%BC+x"), ([("a", 1), ("a", 2)], "a=1&a=2"), ("raw=%zz", "raw=%zz")],
)
def test_a_query_of_any_form(query: Any, expected: str) -> None:
    assert RequestBuilder().query(query).build().query == expected
    assert as_request({"query": query}).query == expected


@pytest.mark.parametrize("path", ["/a%2Fb", "/a:b@c;d=e,f", "//", "/~x"])
def test_a_path_that_is_encoded_already_stays(path: str) -> None:
    assert RequestBuilder("GET", path).build().path == path


@pytest.mark.parametrize(("name", "value"), [("", "x"), ("a", "x\ny"), ("a", "x\0"), ("a", "€"), ("ä€", "x")])
def test_a_header_that_no_client_can_send_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        RequestBuilder().header(name, value)


def test_a_mapping_says_everything_too() -> None:
    given_as = {
        "method": "PUT",
        "path": "/x",
        "query": {"a": 1},
        "headers": {"X-A": "1"},
        "body": {"b": 2},
        "params": {"id": 7},
        "flags": ["trace"],
        "user": "ada",
    }
    built = as_request(given_as)

    assert (built.method, built.path, built.query, built.body) == ("PUT", "/x", "a=1", b'{"b":2}')
    assert dict(built.headers) == {"x-a": "1", "content-type": "application/json", "x-gati-flags": "trace"}
    assert (built.params, built.principal and built.principal.subject) == ({"id": "7"}, "ada")
    pairs = as_request({"headers": [("a", "1"), ("a", "2")], "body": "text"})
    assert (pairs.headers, pairs.body) == ([("a", "1"), ("a", "2")], b"text")
    with pytest.raises(ValueError, match="bdy"):
        as_request({"bdy": 1})


def test_what_is_sent_is_what_an_ingress_reads() -> None:
    built = RequestBuilder("POST").header("x-api-version", "2").header("x-priority", "9").header("te", "x").build()
    descriptor = built.descriptor(request_id="r", now_ms=1000, timeout_s=2.5, reply_to="a.b")

    assert (descriptor.version, descriptor.priority, descriptor.deadline_ms) == ("2", 9, 3500)
    assert ("content-length", "0") in descriptor.headers
    assert ("te", "x") not in descriptor.headers


@given(request=strategies.requests(path="/x"))
def test_generated_requests_can_be_sent(request: BuiltRequest) -> None:
    descriptor = request.descriptor(request_id="r", now_ms=0, timeout_s=1, reply_to="a.b")

    assert (descriptor.path, descriptor.body, descriptor.priority) == ("/x", request.body, 5)


def test_request_ids_differ() -> None:
    assert len({next_request_id() for _ in range(100)}) == 100


# -- contexts -----------------------------------------------------------------------------------


async def test_a_local_context_holds_what_it_was_told() -> None:
    lctx = (
        FakeLocalContextBuilder()
        .with_request_id("r-7")
        .with_trace_id("0af7651916cd43dd8448eb211c80319c")
        .with_client_id("ada")
        .with_state({"a": 1})
        .with_metadata(method="PUT", path="/x?y=1", flags=["beta"])
        .build()
    )

    assert (lctx.request_id, lctx.trace_id, lctx.client_id) == ("r-7", "0af7651916cd43dd8448eb211c80319c", "ada")
    assert (lctx.get("a"), lctx.meta.method, lctx.meta.path, lctx.meta.flags) == (1, "PUT", "/x", ("beta",))
    assert lctx.remaining_s() == 10.0
    lctx.response.status(201)
    token = lctx.snapshot()
    lctx.set("a", 2)
    lctx.restore(token)
    assert lctx.get("a") == 1


async def test_local_contexts_have_predictable_defaults_and_differ() -> None:
    one, two = create_fake_local_context(a=1), create_fake_local_context()

    assert (one.get("a"), two.get("a")) == (1, None)
    assert one.request_id != two.request_id
    assert (one.meta.method, one.meta.path, one.meta.flags, one.timestamp) == ("GET", "/", (), 1_700_000_000_000)


async def test_a_hook_is_called_directly_with_fake_contexts() -> None:
    def guard(gctx: Any, lctx: Any) -> None:
        if lctx.client_id not in gctx.config["admins"]:
            raise Forbidden("not you")

    gctx = FakeGlobalContextBuilder().with_config({"admins": ["ada"]}).build()
    guard(gctx, FakeLocalContextBuilder().with_client_id("ada").build())
    with pytest.raises(Forbidden):
        guard(gctx, FakeLocalContextBuilder().with_client_id("bob").build())


async def test_a_global_context_holds_what_it_was_told() -> None:
    orders = create_stub_module({"create": "o-1"})
    builder = FakeGlobalContextBuilder().with_module("orders", orders).with_service("cache", {}).with_bucket("a", "b")
    gctx = builder.with_config({"x": {"y": 1}}).with_instance_id("i-7").with_region("north").build()

    assert gctx.modules["orders"] is orders
    assert (gctx.services["cache"], gctx.config["x"]["y"]) == ({}, 1)
    assert (gctx.instance.id, gctx.instance.region, sorted(gctx.buckets)) == ("i-7", "north", ["a", "b"])
    await gctx.buckets["a"].put("k", b"v")
    assert await gctx.buckets["b"].get("k") is None
    with pytest.raises(Exception, match="orders"):
        _ = gctx.modules["mail"]
    assert await create_fake_global_context(orders=orders).modules["orders"].create() == "o-1"


async def test_topics_of_fake_contexts_work() -> None:
    lctx = create_fake_local_context()
    async with lctx.subscribe("told") as events:
        lctx.publish("told", 7)
        assert (await events.next(5)).payload == 7


def test_contexts_can_be_had_without_an_event_loop_running() -> None:
    assert create_fake_local_context(a=1).get("a") == 1
    assert create_fake_global_context().config == {}


def test_a_request_and_a_response_to_call_a_function_with() -> None:
    request = create_test_request({"body": {"a": 1}}, params={"id": "7"})
    response = create_test_response()

    async def handler(req: Request[Any], res: Any, gctx: Any, lctx: Any) -> None:
        res.status(201).json([req.params["id"], req.body])

    asyncio.run(handler(request, response, None, None))
    assert response.parts()[0::2] == (201, b'["7",{"a":1}]')
