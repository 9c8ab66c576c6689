"""One handler and one request: what the handler did or raised becomes the reply."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from gati_core import errors
from gati_core.contexts import GlobalContext, Instance
from gati_core.errors import GatiError, HandlerError
from gati_core.lifecycle import BodyReader, HandlerCall, error_reply, run_handler
from gati_core.wire import PROTOCOL, Reply, RequestDescriptor, Timing

SECRET = "the combination is 12-34-56"
GCTX = GlobalContext(Instance("i", "shop", "shop-1", "host", 0))
Run = Callable[..., Awaitable[Reply]]


class Order(msgspec.Struct):
    sku: str


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, thread_name_prefix="handler") as executor:
        yield executor


@pytest.fixture
def run(threads: ThreadPoolExecutor) -> Run:
    async def run(function: Callable[..., Any], *, body: bytes = b"", body_type: Any = None, **fields: Any) -> Reply:
        call = HandlerCall(
            id="h",
            path="/orders/{id}",
            function=function,
            is_async=asyncio.iscoroutinefunction(function),
            timeout_s=30.0,
            body_reader=BodyReader(body_type) if body_type else None,
        )
        values: dict[str, Any] = {"version": "v1", "flags": ["beta"], "client_ip": "192.0.2.1", "traceparent": "00-1"}
        descriptor = RequestDescriptor(PROTOCOL, "r-1", "reply", 9_999, 1_000, "POST", "/orders/7", **values | fields)
        with anyio.fail_after(5):
            return await run_handler(
                call, descriptor, {"id": "7"}, body, GCTX, attempt=2, routed_ms=1_500, threads=threads
            )

    return run


def _problem(reply: Reply) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(reply.body)
    assert dict(reply.headers)["content-type"] == "application/problem+json"
    assert document["status"] == reply.status
    assert document["request_id"] == reply.request_id == "r-1"
    assert reply.error is not None
    assert reply.error.code == document["code"]
    return document


def _raising(exc: BaseException, *, is_async: bool) -> Callable[..., Any]:
    async def in_loop(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        raise exc

    def in_thread(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        raise exc

    return in_loop if is_async else in_thread


both_kinds = pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])


# -- answers ------------------------------------------------------------------------------------


async def test_what_the_handler_sent_is_the_reply(run: Run) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.status(201).header("x-one", "1").json(req.params)

    reply = await run(handler)

    assert (reply.protocol, reply.request_id, reply.status, reply.body) == (PROTOCOL, "r-1", 201, b'{"id":"7"}')
    assert reply.headers == [("x-one", "1"), ("content-type", "application/json")]
    assert (reply.route, reply.error, reply.more, reply.body_ticket) == ("/orders/{id}", None, False, "")


async def test_the_handler_is_given_request_contexts_and_the_facts_about_both(run: Run) -> None:
    seen: dict[str, Any] = {}

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        seen.update(req=(req.method, req.path, req.params, req.raw_body), gctx=gctx, meta=lctx.meta)
        seen.update(ip=lctx.client_ip, trace=lctx.traceparent, deadline=lctx.deadline_ms)

    await run(handler, body=b"raw")

    assert seen["req"] == ("POST", "/orders/7", {"id": "7"}, b"raw")
    assert seen["gctx"] is GCTX
    assert msgspec.structs.astuple(seen["meta"]) == ("r-1", "POST", "/orders/7", "v1", ("beta",), 1_000, 2)
    assert (seen["ip"], seen["trace"], seen["deadline"]) == ("192.0.2.1", "00-1", 9_999)


@both_kinds
async def test_a_handler_without_a_terminal_call_answers_204_with_no_body(run: Run, is_async: bool) -> None:
    async def in_loop(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...
    def in_thread(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...

    reply = await run(in_loop if is_async else in_thread)

    assert (reply.status, reply.headers, reply.body, reply.error) == (204, [], b"", None)


async def test_what_a_handler_returns_is_ignored(run: Run) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> Any:
        return {"not": "sent"}

    assert (await run(handler)).status == 204


async def test_a_def_handler_runs_in_a_thread_and_an_async_one_in_the_loop(run: Run) -> None:
    names = []

    def in_thread(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        names.append(threading.current_thread().name.partition("_")[0])

    async def in_loop(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        names.append(threading.current_thread().name)

    await run(in_thread)
    await run(in_loop)

    assert names == ["handler", threading.main_thread().name]


async def test_a_def_handler_does_not_block_the_loop(run: Run) -> None:
    go_on = threading.Event()

    def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.json(go_on.wait(5))

    async with asyncio.TaskGroup() as tasks:
        reply = tasks.create_task(run(handler))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        go_on.set()

    assert reply.result().body == b"true"


async def test_a_def_handler_that_returns_an_awaitable_is_awaited(run: Run) -> None:
    async def answer(res: Any) -> None:
        await asyncio.sleep(0)
        res.text("later")

    def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> Awaitable[None]:
        return answer(res)

    assert (await run(handler)).body == b"later"


async def test_the_reply_says_when_each_stage_was_reached(run: Run) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...

    for reply in (await run(handler), await run(_raising(KeyError(), is_async=True))):
        assert reply.timing is not None
        assert (reply.timing.received_ms, reply.timing.routed_ms) == (1_000, 1_500)
        assert 1_600_000_000_000 < reply.timing.started_ms <= reply.timing.finished_ms


# -- bodies -------------------------------------------------------------------------------------


async def test_a_typed_body_is_ready_when_the_handler_starts(run: Run) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.text(req.body.sku)

    assert (await run(handler, body=b'{"sku": "ada"}', body_type=Order)).body == b"ada"


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"", "application/json", 400, "request.invalid_body"),
        (b"{", "application/json", 400, "request.invalid_body"),
        (b'{"sku": 7}', "application/json", 400, "request.invalid_body"),
        (b'{"sku": "ada"}', "text/plain", 415, "request.unsupported_media_type"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_before_the_handler_starts(
    run: Run, body: bytes, content_type: str, status: int, code: str
) -> None:
    started = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        started.append(req)

    reply = await run(handler, body=body, body_type=Order, headers=[("content-type", content_type)])

    assert (reply.status, _problem(reply)["code"], started) == (status, code, [])


async def test_an_untyped_body_that_is_no_json_is_400_when_the_handler_reads_it(run: Run) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.json(req.body)

    reply = await run(handler, body=b"{", headers=[("content-type", "application/json")])

    assert (reply.status, _problem(reply)["code"]) == (400, "request.invalid_body")


async def test_a_query_without_measure_is_400_when_the_handler_reads_it(run: Run) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.json(req.query)

    reply = await run(handler, query="a&" * 2000)

    assert (reply.status, _problem(reply)["code"]) == (400, "request.bad")


# -- errors -------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("status", [400, 404, 409, 422, 429, 500, 503, 599])
async def test_a_handlers_own_error_keeps_status_code_and_message(run: Run, status: int, is_async: bool) -> None:
    reply = await run(_raising(HandlerError("sold out", status, code="shop.sold_out"), is_async=is_async))
    problem = _problem(reply)

    assert (reply.status, problem["code"], problem["detail"]) == (status, "shop.sold_out", "sold out")
    assert reply.route == "/orders/{id}"


async def test_the_context_of_a_handlers_own_error_is_for_the_log_alone(run: Run) -> None:
    with capture_logs() as lines:
        reply = await run(_raising(HandlerError("sold out", 503, context={"key": SECRET}), is_async=True))

    assert SECRET.encode() not in reply.body
    assert [(line["event"], line["request_id"], line["context"]) for line in lines] == [
        ("handler_answered_error", "r-1", {"key": SECRET})
    ]


async def test_a_handlers_own_error_without_a_status_is_500(run: Run) -> None:
    reply = await run(_raising(HandlerError("no"), is_async=True))

    assert (reply.status, _problem(reply)["code"]) == (500, "handler.error")


KEPT = {
    errors.RequestError: (400, "request.bad"),
    errors.InvalidPath: (400, "request.bad_path"),
    errors.InvalidBody: (400, "request.invalid_body"),
    errors.UnsupportedMedia: (415, "request.unsupported_media_type"),
    errors.RouteNotFound: (404, "route.not_found"),
    errors.MethodNotAllowed: (405, "route.method_not_allowed"),
    errors.ContentTooLarge: (413, "request.body_too_large"),
    errors.HeadersTooLarge: (431, "request.headers_too_large"),
    errors.RequestTimeout: (408, "request.timeout"),
    errors.DeadlineExceeded: (504, "request.deadline_exceeded"),
}


def _taxonomy(root: type[GatiError] = GatiError) -> list[type[GatiError]]:
    found = [root] if root.__module__ == errors.__name__ else []
    return found + [each for child in root.__subclasses__() for each in _taxonomy(child)]


@both_kinds
@pytest.mark.parametrize("kind", sorted({*_taxonomy()} - {HandlerError}, key=lambda kind: kind.__name__))
async def test_every_error_of_the_taxonomy_has_its_status_and_code(
    run: Run, kind: type[GatiError], is_async: bool
) -> None:
    """Errors about the request keep theirs; those about anything else are a bug in the handler's eyes."""
    more = {"allow": ("GET",)} if kind is errors.MethodNotAllowed else {}
    error = kind("said so", password=SECRET, **more)  # type: ignore[arg-type]

    with capture_logs() as lines:
        reply = await run(_raising(error, is_async=is_async))

    problem = _problem(reply)
    assert (reply.status, problem["code"]) == KEPT.get(kind, (500, "internal"))
    assert ("said so" in problem["detail"]) is (kind in KEPT)
    assert SECRET not in reply.body.decode()
    assert [line["event"] for line in lines] == ([] if kind in KEPT else ["handler_failed"])


class Leaky(Exception):
    """Its name, its text and its origin are nobody's business."""

    def __str__(self) -> str:
        return SECRET


@both_kinds
@pytest.mark.parametrize(
    "exc",
    [
        Leaky(),
        KeyError(SECRET),
        TimeoutError(SECRET),
        RecursionError(SECRET),
        MemoryError(SECRET),
        StopIteration(SECRET),
        StopAsyncIteration(SECRET),
        SystemExit(SECRET),
        ExceptionGroup(SECRET, [ValueError(SECRET)]),
    ],
    ids=lambda exc: type(exc).__name__,
)
async def test_anything_else_is_500_and_nothing_internal_leaks(run: Run, exc: BaseException, is_async: bool) -> None:
    with capture_logs() as lines:
        reply = await run(_raising(exc, is_async=is_async))

    problem = _problem(reply)
    assert (reply.status, problem["code"]) == (500, "internal")
    everything = reply.body.decode() + str(reply.headers) + str(reply.error)
    assert not any(word in everything for word in (SECRET, type(exc).__name__, "Traceback", __file__, "in_loop"))
    (line,) = lines
    assert (line["event"], line["log_level"], line["request_id"], line["handler"]) == (
        "handler_failed",
        "error",
        "r-1",
        "h",
    )
    assert isinstance(line["exc_info"], BaseException)


async def test_an_answer_that_is_no_json_is_a_bug_of_the_handler(run: Run) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.status(201).header("x-half", "done").json(object())

    reply = await run(handler)

    assert (reply.status, "x-half" in dict(reply.headers)) == (500, False)


@pytest.mark.parametrize("change", ["json", "text", "send"])
async def test_a_second_terminal_call_fails_and_the_first_answer_stands(run: Run, change: str) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.text("first")
        getattr(res, change)("second")

    with capture_logs() as lines:
        reply = await run(handler)

    assert (reply.status, reply.body, reply.error) == (200, b"first", None)
    assert [line["event"] for line in lines] == ["handler_failed_after_response"]


@both_kinds
async def test_an_error_after_the_response_is_logged_and_the_response_stands(run: Run, is_async: bool) -> None:
    def in_thread(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.status(202).text("answered")
        raise HandlerError(SECRET, 418)

    async def in_loop(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        in_thread(req, res, gctx, lctx)

    with capture_logs() as lines:
        reply = await run(in_loop if is_async else in_thread)

    assert (reply.status, reply.body, reply.error) == (202, b"answered", None)
    assert [(line["event"], line["log_level"]) for line in lines] == [("handler_failed_after_response", "error")]


# -- cancellation -------------------------------------------------------------------------------


@both_kinds
async def test_cancellation_is_passed_on(run: Run, is_async: bool) -> None:
    started, release = threading.Event(), threading.Event()

    async def in_loop(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        started.set()
        await anyio.sleep_forever()

    def in_thread(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        started.set()
        release.wait(5)

    task = asyncio.ensure_future(run(in_loop if is_async else in_thread))
    await asyncio.sleep(0)
    await asyncio.to_thread(started.wait, 5)
    task.cancel()

    try:
        with pytest.raises(asyncio.CancelledError):
            await task
    finally:
        release.set()


# -- error_reply alone --------------------------------------------------------------------------


def test_an_error_reply_carries_the_timing_it_is_given() -> None:
    timing = Timing(1, 2, 3, 4)

    assert error_reply(KeyError("x"), "r-1", handler="h", timing=timing).timing == timing


def test_only_failures_of_the_handler_are_logged_and_client_errors_are_not() -> None:
    with capture_logs() as lines:
        error_reply(HandlerError("no", 404), "r-1", handler="h")
        error_reply(errors.InvalidBody("no"), "r-1", handler="h")

    assert lines == []


def test_the_taxonomy_was_found() -> None:
    assert len(_taxonomy()) > 25
    assert sys.modules[errors.__name__] is errors
