"""The harness: one handler through the real lifecycle, with what the test hands in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import anyio
import msgspec
import pytest

from gati_core import App, GlobalContext, HandlerError, LocalContext, Request, Response
from gati_testing import (
    Harness,
    RequestBuilder,
    Result,
    assert_response,
    create_mock_module,
    create_stub_module,
    create_test_harness,
    run_handler,
)
from gati_testing._execution import Execution

Handler = Callable[..., Any]


class Order(msgspec.Struct):
    sku: str


@runtime_checkable
class Sends(Protocol):
    async def send(self, to: str) -> None: ...


async def hello(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
    """A handler of no app."""
    lctx.set("seen", req.params)
    res.status(201).json({"body": req.body, "query": req.query, "who": lctx.client_id})


# -- what can be run ----------------------------------------------------------------------------


async def test_a_plain_function_is_run_with_a_request_of_any_form() -> None:
    mapping = {"method": "POST", "body": {"a": 1}, "query": {"q": "x"}, "params": {"id": 7}, "user": "ada"}
    builder = RequestBuilder("POST").json({"a": 1}).query({"q": "x"}).params(id="7").auth("ada")

    for request in (mapping, builder, builder.build()):
        result = await run_handler(hello, request)

        assert result.response.status == 201
        assert result.response.json() == {"body": {"a": 1}, "query": {"q": "x"}, "who": "ada"}
        assert result.state == {"seen": {"id": "7"}}
        assert (result.error, result.sent, result.published) == (None, [], [])


async def test_a_route_brings_its_app_its_types_its_hooks_and_its_buckets() -> None:
    app = App("shop")
    orders = app.bucket("orders")

    @app.post("/orders/{id}")
    async def place(req: Request[Order], res: Response[Order], gctx: GlobalContext, lctx: LocalContext) -> None:
        await gctx.buckets[orders].put(req.params["id"], req.body.sku.encode())
        lctx.set("order", [*lctx.get("order"), "handler"])
        res.json(req.body)

    @app.before
    def first(gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.set("order", ["global"])

    @place.before
    async def second(gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.set("order", [*lctx.get("order"), "route"])

    harness = Harness()
    result = await harness.execute_handler(place, {"body": {"sku": "ada"}, "params": {"id": "o-1"}})

    assert_response(result.response).status(200).json({"sku": "ada"})
    assert result.state["order"] == ["global", "route", "handler"]
    entry = await harness.bucket("orders").get("o-1")
    assert entry is not None
    assert entry.value == b"ada"
    refused = await harness.execute_handler(place, {"body": {"sku": 7}})
    assert_response(refused.response).problem(400, "request.invalid_body")
    by_id = await Harness(app).execute_handler("place", {"body": {"sku": "x"}, "params": {"id": "1"}})
    by_function = await Harness(app).execute_handler(place.function, {"body": {"sku": "x"}, "params": {"id": "1"}})
    assert by_id.state["order"] == by_function.state["order"] == ["global", "route", "handler"]


async def test_a_handler_that_is_not_there_is_named_with_those_that_are() -> None:
    app = App("shop")
    app.get("/x", id="here")(hello)

    with pytest.raises(LookupError, match=r"no handler 'gone' .*here"):
        await Harness(app).execute_handler("gone")
    with pytest.raises(LookupError, match="none"):
        await Harness().execute_handler("gone")


async def test_the_request_line_and_headers_are_read_as_an_ingress_reads_them() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.json([lctx.meta.method, lctx.meta.path, list(lctx.meta.flags), req.headers, lctx.client_ip])

    headers = {"X-One": " 1 ", "x-gati-flags": "B,a", "connection": "close", "x-request-id": "theirs"}
    result = await run_handler(handler, {"method": "PUT", "path": "/a b", "headers": headers, "body": b"x"})

    seen = {"host": "gati.test", "content-length": "1", "x-one": "1"}
    seen |= {"x-gati-flags": "B,a", "x-client-request-id": "theirs"}
    assert result.response.json() == ["PUT", "/a%20b", ["b", "a"], seen, "127.0.0.1"]


# -- modules and configuration ------------------------------------------------------------------


async def test_modules_services_and_configuration_are_the_tests() -> None:
    async def handler(req: Any, res: Any, gctx: GlobalContext, lctx: Any) -> None:
        found = await gctx.get_module("orders").create("ada")
        await gctx.get_module("mail", Sends).send(gctx.services["users"].mail)
        res.json([found, gctx.config["limits"]["orders"], gctx.config["debug"]])

    class Users:
        mail = "ada@example.com"

    orders, mail = create_mock_module({"create": lambda sku: _given(f"o-{sku}")}), create_stub_module({"send": None})
    harness = Harness(
        modules={"orders": orders}, services={"users": Users()}, config={"limits": {"orders": 3}, "debug": False}
    )
    result = await harness.execute_handler(handler, modules={"mail": mail}, config={"debug": True})

    assert result.response.json() == ["o-ada", 3, True]
    assert [(call.args, call.result) for call in orders.calls["create"]] == [(("ada",), "o-ada")]
    assert mail.calls["send"][0].args == ("ada@example.com",)
    alone = await harness.execute_handler(handler)
    assert alone.response.status == 500, "modules of one execution are not those of the next"


async def _given(value: Any) -> Any:
    return value


async def test_a_module_that_fails_fails_the_request() -> None:
    async def handler(req: Any, res: Any, gctx: GlobalContext, lctx: Any) -> None:
        await gctx.modules["orders"].create()

    stub = create_stub_module({"create": HandlerError("sold out", 409, code="shop.sold_out")})
    result = await run_handler(handler, modules={"orders": stub})

    assert_response(result.response).problem(409, "shop.sold_out")
    assert isinstance(result.error, HandlerError)


async def test_what_a_process_keeps_is_kept_between_executions() -> None:
    async def handler(req: Any, res: Any, gctx: GlobalContext, lctx: LocalContext) -> None:
        gctx.state["count"] = gctx.state.get("count", 0) + 1
        res.json([gctx.state["count"], lctx.get("mine")])
        lctx.set("mine", True)

    async with create_test_harness(config={"a": 1}) as harness:
        answers = [(await harness.execute_handler(handler)).response.json() for _ in range(2)]
        assert harness.get_global_context().config["a"] == 1

    assert answers == [[1, None], [2, None]]


async def test_contexts_of_the_last_execution_can_be_had() -> None:
    harness = Harness()
    assert harness.get_global_context().config == {}
    with pytest.raises(LookupError):
        harness.get_local_context()

    result = await harness.execute_handler(hello)

    assert harness.get_local_context() is result.lctx
    assert result.lctx.get("seen") is None, "its state was cleared with the request"


def test_a_harness_can_be_made_outside_of_an_event_loop() -> None:
    harness = Harness(modules={"orders": create_stub_module({})})

    assert asyncio.run(harness.execute_handler(hello)).response.status == 201
    assert asyncio.run(harness.execute_handler(hello)).response.status == 201


# -- what may go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("error", [LookupError("secret"), KeyboardInterrupt("secret"), SystemExit(3), GeneratorExit()])
@pytest.mark.parametrize("is_async", [True, False])
async def test_whatever_a_handler_raises_is_a_500_and_the_tests_to_see(error: BaseException, is_async: bool) -> None:
    async def in_loop(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        raise error

    def in_thread(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        raise error

    result = await run_handler(in_loop if is_async else in_thread)

    assert_response(result.response).problem(500, "internal")
    assert b"secret" not in result.response.body
    assert result.error is error or isinstance(result.error, RuntimeError)


async def test_a_handler_that_hangs_ends_at_its_limit_and_is_cleaned_up() -> None:
    app = App("shop")
    done: list[str] = []

    @app.get("/x", timeout_s=0.05)
    async def handler(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.register_compensating_action(lambda: done.append("undone"))
        lctx.lifecycle.on_timeout(lambda: done.append("timeout"))
        lctx.lifecycle.on_cleanup(lambda: done.append("cleanup"))
        await asyncio.Event().wait()

    result = await Harness().execute_handler(handler)

    assert_response(result.response).problem(504, "handler.timeout")
    assert done == ["timeout", "undone", "cleanup"]


async def test_the_requests_deadline_counts_where_it_is_earlier() -> None:
    result = await run_handler(_waits_for_ever, timeout_s=0.05)
    assert_response(result.response).problem(504, "request.deadline_exceeded")

    result = await Harness().execute_handler(_waits_for_ever, timeout_s=0.0)
    assert_response(result.response).problem(504, "request.deadline_exceeded")


async def _waits_for_ever(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
    await asyncio.Event().wait()


async def test_a_thread_that_blocks_is_answered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    app = App("shop")

    @app.get("/x", timeout_s=0.05)
    def handler(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        go_on.wait(10)

    try:
        result = await Harness().execute_handler(handler)
    finally:
        go_on.set()

    assert_response(result.response).problem(504, "handler.timeout")


async def test_a_handler_that_swallows_its_cancellation_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gati_testing._execution._ABANDON_AFTER_S", 0.2)
    monkeypatch.setattr("gati_testing._execution._CANCEL_AGAIN_S", 0.05)
    go_on = asyncio.Event()
    seen: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                seen.append("no")
        seen.append("gone")

    harness = Harness(timeout_s=0.05)
    result = await harness.execute_handler(handler)

    assert_response(result.response).problem(504, "request.deadline_exceeded")
    assert len(seen) >= 2
    assert "gone" not in seen
    go_on.set()
    assert harness._last is not None
    assert harness._last.task is not None
    await harness._last.task
    assert seen[-1] == "gone"


@pytest.mark.parametrize(("reason", "status"), [("client_gone", 499), ("leaving", 503), ("deadline", 504)])
async def test_a_test_ends_a_handler_as_a_worker_would(reason: str, status: int) -> None:
    cleaned: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: LocalContext) -> None:
        lctx.lifecycle.on_cleanup(lambda: cleaned.append("cleanup"))
        await asyncio.Event().wait()

    async def later(execution: Execution) -> None:
        await asyncio.sleep(0)
        execution.cancel(reason)

    for end in (lambda execution: execution.cancel(reason), later):
        result = await Harness().execute_handler(handler, while_running=end)

        assert result.response.status == status
        assert f"request:cancelled by {reason}" in [f"{e.type} by {e.metadata.get('by')}" for e in result.events]
    assert cleaned == ["cleanup", "cleanup"]


async def test_nothing_runs_on_when_the_test_itself_fails_or_is_cancelled() -> None:
    ended: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: LocalContext) -> None:
        lctx.lifecycle.on_cleanup(lambda: ended.append("cleanup"))
        await asyncio.Event().wait()

    def fails(_execution: Execution) -> None:
        raise AssertionError("of the test")

    with pytest.raises(AssertionError, match="of the test"):
        await run_handler_while(handler, fails)
    with anyio.move_on_after(0.05):
        await run_handler(handler)

    assert ended == ["cleanup", "cleanup"]
    assert [task.get_name() for task in asyncio.all_tasks() if "request-" in task.get_name()] == []


async def run_handler_while(handler: Handler, while_running: Callable[[Execution], None]) -> Result:
    """With a callback of the test's."""
    return await Harness().execute_handler(handler, while_running=while_running)


async def test_what_a_handler_starts_and_forgets_ends_with_it() -> None:
    ended: list[str] = []

    async def forever(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    async def handler(req: Any, res: Any, gctx: GlobalContext, lctx: Any) -> None:
        asyncio.get_running_loop().create_task(forever("forgotten"))
        gctx.spawn(_quick(ended), name="spawned")
        await asyncio.sleep(0)

    await run_handler(handler)

    assert ended == ["spawned", "forgotten"] or ended == ["forgotten", "spawned"]


async def _quick(ended: list[str]) -> None:
    await asyncio.sleep(0.01)
    ended.append("spawned")
