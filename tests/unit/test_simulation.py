"""The simulation: what a test gets, in virtual time, and what it leaves behind. Its answers: see the contracts."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol, runtime_checkable

import pytest

from gati_core import App, GlobalContext, HandlerError, LocalContext, Request, Response
from gati_testing import (
    Answer,
    RequestBuilder,
    VirtualDeadlock,
    assert_response,
    create_mock_module,
    create_stub_module,
    simulate,
)


def shop() -> App:
    """An app with a bit of everything."""
    app = App("shop")
    app.bucket("orders")

    @app.get("/ping")
    async def ping(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        res.text("pong")

    @app.route("/any", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    async def any_method(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        res.json([req.method, req.query, req.body])

    @app.get("/sleeps/{seconds}", timeout_s=100_000)
    async def sleeps(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        await asyncio.sleep(float(req.params["seconds"]))
        res.json(req.params["seconds"])

    @app.get("/fails")
    async def fails(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        raise HandlerError("no", 409)

    @app.get("/limited", timeout_s=3)
    async def limited(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.lifecycle.on_cleanup(lambda: gctx.state.update(cleaned=True))
        await asyncio.Event().wait()

    @app.get("/module/{method}")
    async def module(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        result = getattr(gctx.modules["orders"], req.params["method"])("ada")
        res.json(await result if asyncio.iscoroutine(result) else result)

    @app.get("/ticks")
    async def ticks(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.lifecycle.on_cleanup(lambda: gctx.state.update(streamed=stream.bytes_sent))
        async with res.stream(content_type="text/event-stream") as stream:
            for number in range(100_000):
                await stream.event(number)
                await asyncio.sleep(0.1)

    @app.websocket("/echo")
    async def echo(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        async for message in lctx.websocket:
            await lctx.websocket.send(message)
        gctx.state["code"] = lctx.websocket.close_code

    @app.websocket("/deaf")
    async def deaf(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        await lctx.websocket.accept()
        await asyncio.Event().wait()

    return app


# -- requests -----------------------------------------------------------------------------------


def test_requests_of_every_method_and_form() -> None:
    with simulate(shop()) as fabric:
        assert fabric.get("/ping").text == "pong"
        assert fabric.head("/ping").status == 200
        assert fabric.post("/any?a=1", json={"b": 2}).json() == ["POST", {"a": "1"}, {"b": 2}]
        assert fabric.put("/any", json=None).json() == ["PUT", {}, None]
        text = {"content-type": "text/plain"}
        assert fabric.patch("/any", body="ü", headers=text).json() == ["PATCH", {}, "ü"]
        assert fabric.delete("/any", query={"a": [1, 2]}).json() == ["DELETE", {"a": ["1", "2"]}, None]
        assert fabric.options("/any").status == 200
        assert fabric.request("GET", "/any").status == 200
        builder = RequestBuilder("POST", "/any").json(7)
        assert fabric.request(builder).json() == fabric.request(builder.build()).json() == ["POST", {}, 7]
        assert len(fabric.get("/ping").request_id) == 36


async def test_it_is_used_from_async_tests_as_well() -> None:
    with simulate(shop()) as fabric:
        assert fabric.get("/sleeps/3600", timeout_s=4000).status == 200


def test_an_hour_takes_no_time() -> None:
    began = time.monotonic()
    with simulate(shop()) as fabric:
        start = fabric.now()
        assert fabric.get("/sleeps/3600", timeout_s=4000).json() == "3600"
        assert fabric.now() - start == pytest.approx(3600)
        fabric.advance(86_000)
        assert fabric.now() - start == pytest.approx(89_600)
    assert time.monotonic() - began < 5


def test_limits_strike_at_their_instant_and_time_stands_still_between_calls() -> None:
    with simulate(shop(), request_timeout_s=10) as fabric:
        start = fabric.now()
        assert_response(fabric.get("/limited")).problem(504, "handler.timeout")
        assert fabric.now() - start == pytest.approx(3)
        assert fabric.global_context("shop").state["cleaned"]
        start = fabric.now()
        assert_response(fabric.get("/sleeps/11")).problem(504, "request.deadline_exceeded")
        assert fabric.now() - start == pytest.approx(10, abs=0.1)
        assert_response(fabric.get("/sleeps/2", timeout_s=1)).problem(504, "request.deadline_exceeded")
        start = fabric.now()
        assert fabric.now() == start


def test_requests_at_once_run_at_once_and_do_not_mix() -> None:
    with simulate(shop()) as fabric:
        start = fabric.now()
        answers = fabric.gather(*(fabric.arequest("GET", f"/sleeps/{number / 100}") for number in range(200)))

        assert [float(answer.json()) for answer in answers] == [number / 100 for number in range(200)]
        assert fabric.now() - start == pytest.approx(1.99, abs=0.01)
        assert fabric.gather() == []


def test_what_run_takes_and_what_it_does_not() -> None:
    with simulate(shop()) as fabric:
        with pytest.raises(TypeError, match="gather"):
            fabric.run(7)  # type: ignore[arg-type]
        with pytest.raises(TimeoutError):
            fabric.run(asyncio.sleep(10), within_s=1)
        with pytest.raises(VirtualDeadlock):
            fabric.run(asyncio.Event().wait())
        assert fabric.get("/ping").status == 200


# -- backpressure -------------------------------------------------------------------------------


def statuses(answers: list[Answer]) -> dict[int, int]:
    """How many of each."""
    found: dict[int, int] = {}
    for answer in answers:
        found[answer.status] = found.get(answer.status, 0) + 1
    return found


def test_an_ingress_admits_so_many_and_refuses_the_rest_with_a_pause() -> None:
    with simulate(shop(), max_in_flight=5) as fabric:
        answers = fabric.gather(*(fabric.arequest("GET", "/sleeps/1") for _ in range(8)))

        assert statuses(answers) == {200: 5, 503: 3}
        refused = answers[-1]
        assert refused.header("retry-after") is not None
        assert fabric.get("/ping").status == 200


def test_a_worker_runs_so_many_and_the_others_wait_their_turn() -> None:
    with simulate(shop(), worker_slots=2) as fabric:
        start = fabric.now()
        answers = fabric.gather(*(fabric.arequest("GET", "/sleeps/1") for _ in range(6)))

        assert statuses(answers) == {200: 6}
        assert fabric.now() - start == pytest.approx(3)


def test_a_handlers_queue_takes_so_many_and_its_neighbours_have_their_own() -> None:
    with simulate(shop(), worker_slots=1, queue_limit=3) as fabric:
        answers = fabric.gather(
            *(fabric.arequest("GET", "/sleeps/1") for _ in range(6)), fabric.arequest("GET", "/ping")
        )

        assert statuses(answers) == {200: 5, 503: 2}
        assert answers[-1].text == "pong"
        assert {answer.code for answer in answers if answer.status == 503} == {"fabric.backpressure"}


def test_who_waits_too_long_for_a_slot_is_answered_and_never_runs() -> None:
    with simulate(shop(), worker_slots=1) as fabric:
        first, second = fabric.gather(
            fabric.arequest("GET", "/sleeps/5"), fabric.arequest("GET", "/sleeps/1", timeout_s=2)
        )

        assert (first.status, second.status) == (200, 504)
        assert len([event for event in fabric.events if event.type == "handler:start"]) == 1


# -- modules ------------------------------------------------------------------------------------


class Orders:
    """A module as a handler knows it."""

    limit = 3

    async def create(self, sku: str) -> str:
        return f"o-{sku}"

    def count(self, sku: str) -> int:
        return 7

    async def fails(self, sku: str) -> None:
        raise HandlerError("sold out", 409, code="shop.sold_out")


@runtime_checkable
class Creates(Protocol):
    async def create(self, sku: str) -> str: ...


def test_module_calls_are_counted_and_take_their_virtual_time() -> None:
    with simulate(shop(), modules={"orders": Orders()}, module_latency_s=0.25) as fabric:
        start = fabric.now()
        assert fabric.get("/module/create").json() == "o-ada"
        assert fabric.now() - start == pytest.approx(0.25)
        assert fabric.get("/module/count").json() == 7
        assert_response(fabric.get("/module/fails")).problem(409, "shop.sold_out")

        metrics = fabric.get_metrics()
        assert (metrics.module_calls, metrics.module_errors) == (3, 1)
        assert metrics.module_latency_s == pytest.approx(0.5)


def test_a_module_call_that_is_cut_off_is_an_error_and_never_made() -> None:
    stub = create_stub_module({"create": "late"})
    with simulate(shop(), modules={"orders": stub}, module_latency_s=60) as fabric:
        assert fabric.get("/module/create").status == 504
        assert (fabric.metrics.module_errors, stub.all_calls) == (1, [])


def test_modules_are_what_they_say_they_are() -> None:
    app = App("shop")

    @app.get("/x")
    async def handler(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        orders = gctx.get_module("orders", Orders)
        fake = gctx.get_module("fake", Creates)
        claimed = gctx.get_module("claimed", Orders)
        table = gctx.modules["table"]
        table["b"] = len(table)
        orders.limit += 1
        res.json(
            [await orders.create("a"), await fake.create("b"), await claimed.create("c"), table["b"], "a" in table]
        )

    async def create(sku: str) -> str:
        return f"fake-{sku}"

    orders, table = Orders(), {"a": 1}
    modules = {
        "orders": orders,
        "fake": create_mock_module({"create": create}),
        "claimed": create_mock_module({"create": create}, kind=Orders),
        "table": table,
    }
    with simulate(app, modules=modules, services={"s": 1}, config={"c": 1}) as fabric:
        assert fabric.get("/x").json() == ["o-a", "fake-b", "fake-c", 1, True]
    assert (table, orders.limit) == ({"a": 1, "b": 1}, 4)


# -- hooks and metrics --------------------------------------------------------------------------


def test_hooks_of_the_test_run_around_everything() -> None:
    order: list[str] = []

    async def hangs(gctx: GlobalContext, lctx: LocalContext) -> None:
        if lctx.request.query.get("hang"):
            await asyncio.sleep(60)

    hooks: dict[str, list[Any]] = {
        "before": [lambda gctx, lctx: order.append("before"), hangs],
        "after": [lambda gctx, lctx: order.append("after")],
        "catch": [lambda error, gctx, lctx: order.append(f"catch {error}")],
        "finally": [lambda gctx, lctx: order.append("finally")],
    }
    with simulate(shop(), hooks=hooks, hook_timeout_s=0.5) as fabric:
        fabric.get("/ping")
        assert order == ["before", "after", "finally"]
        order.clear()
        fabric.get("/fails")
        assert order == ["before", "catch no", "finally"]
        order.clear()
        assert_response(fabric.get("/ping?hang=1")).problem(504, "hook.timeout")
        assert order[-1] == "finally"
        fabric.get("/nowhere")

        metrics = fabric.get_metrics()
        assert (metrics.requests, metrics.by_route) == (4, {"/ping": 2, "/fails": 1, "": 1})
        assert metrics.by_status == {200: 1, 409: 1, 504: 1, 404: 1}
        assert (metrics.hook_executions, metrics.hook_errors, metrics.hook_timeouts) == (9, 1, 1)


def test_finally_comes_after_the_handlers_own_cleanup_even_when_nobody_waits() -> None:
    order: list[str] = []
    app = App("shop")

    @app.get("/x", timeout_s=1)
    async def handler(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.lifecycle.on_cleanup(lambda: order.append("cleanup"))
        await asyncio.Event().wait()

    async def at_the_end(gctx: GlobalContext, lctx: LocalContext) -> None:
        order.append(lctx.meta.path)

    with simulate(app, hooks={"finally": [at_the_end]}) as fabric:
        assert fabric.get("/x").status == 504

    assert order == ["cleanup", "/x"]
