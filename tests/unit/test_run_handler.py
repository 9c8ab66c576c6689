"""One handler and one request: what the handler did or raised becomes the reply."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from gati_core import errors
from gati_core.errors import GatiError, HandlerError
from gati_core.lifecycle import DeclaredType, HandlerCall, Plan, RequestReader
from gati_core.wire import PROTOCOL, Reply
from tests.helpers.handling import Desk, problem

SECRET = "the combination is 12-34-56"
Run = Callable[..., Awaitable[Reply]]


class Order(msgspec.Struct):
    sku: str


def _plan(function: Callable[..., Any], body_type: Any = None) -> Plan:
    return Plan(
        HandlerCall(
            id="h",
            path="/orders/{id}",
            function=function,
            is_async=asyncio.iscoroutinefunction(function),
            timeout_s=30.0,
            request_reader=RequestReader(body=DeclaredType(body_type, where="body")) if body_type else None,
        )
    )


@pytest.fixture
def desk() -> Desk:
    return Desk(version="v1")


@pytest.fixture
def run(desk: Desk) -> Run:
    async def run(function: Callable[..., Any], *, body_type: Any = None, **fields: Any) -> Reply:
        values: dict[str, Any] = {"flags": ["beta"], "client_ip": "192.0.2.1", "traceparent": "00-1"}
        return await desk.handle(_plan(function, body_type), **values | fields)

    return run


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


async def test_the_handler_is_given_request_contexts_and_the_facts_about_both(run: Run, desk: Desk) -> None:
    seen: dict[str, Any] = {}

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        seen.update(req=(req.method, req.path, req.params, req.raw_body), gctx=gctx)
        meta = lctx.meta
        seen["meta"] = (meta.request_id, meta.method, meta.path, meta.version, meta.flags, meta.received_ms)
        seen["attempt"] = meta.attempt
        seen.update(ip=lctx.client_ip, trace=lctx.traceparent, deadline=lctx.deadline_ms)

    await run(handler, body=b"raw")

    assert seen["req"] == ("POST", "/orders/7", {"id": "7"}, b"raw")
    assert seen["gctx"] is desk.gctx
    assert (seen["meta"], seen["attempt"]) == (("r-1", "POST", "/orders/7", "v1", ("beta",), 1_000), 2)
    assert (seen["ip"], seen["trace"], seen["deadline"]) == ("192.0.2.1", "00-1", 9_999)


@both_kinds
async def test_a_handler_without_a_terminal_call_answers_204_with_no_body(run: Run, is_async: bool) -> None:
    async def in_loop(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...
    def in_thread(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...

    reply = await run(in_loop if is_async else in_thread)

    assert (reply.status, reply.headers, reply.body, reply.error) == (204, [], b"", None)


async def test_what_a_handler_returns_is_ignored_and_said_once(run: Run) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> Any:
        return {"not": "sent"}

    with capture_logs() as lines:
        replies = [await run(handler), await run(handler)]

    assert [reply.status for reply in replies] == [204, 204]
    assert [(line["event"], line["handler"], line["type"]) for line in lines] == [("return_value_ignored", "h", "dict")]


async def test_a_def_handler_runs_in_a_thread_and_an_async_one_in_the_loop(run: Run) -> None:
    names = []

    def in_thread(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        names.append(threading.current_thread().name)

    async def in_loop(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        names.append(threading.current_thread().name)

    await run(in_thread)
    await run(in_loop)

    assert names[0] != names[1] == threading.main_thread().name


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

    assert (reply.status, problem(reply)["code"], started) == (status, code, [])


async def test_an_untyped_body_that_is_no_json_is_400_when_the_handler_reads_it(run: Run) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.json(req.body)

    reply = await run(handler, body=b"{", headers=[("content-type", "application/json")])

    assert (reply.status, problem(reply)["code"]) == (400, "request.invalid_body")


async def test_a_query_without_measure_is_400_when_the_handler_reads_it(run: Run) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.json(req.query)

    reply = await run(handler, query="a&" * 2000)

    assert (reply.status, problem(reply)["code"]) == (400, "request.bad")


# -- errors -------------------------------------------------------------------------------------


@both_kinds
@pytest.mark.parametrize("status", [400, 404, 409, 422, 429, 500, 503, 599])
async def test_a_handlers_own_error_keeps_status_code_and_message(run: Run, status: int, is_async: bool) -> None:
    reply = await run(_raising(HandlerError("sold out", status, code="shop.sold_out"), is_async=is_async))
    document = problem(reply)

    assert (reply.status, document["code"], document["detail"]) == (status, "shop.sold_out", "sold out")
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

    assert (reply.status, problem(reply)["code"]) == (500, "handler.error")


KEPT = {
    errors.RequestError: (400, "request.bad"),
    errors.InvalidPath: (400, "request.bad_path"),
    errors.InvalidBody: (400, "request.invalid_body"),
    errors.InvalidRequest: (400, "request.invalid"),
    errors.UnsupportedMedia: (415, "request.unsupported_media_type"),
    errors.InvalidVersion: (400, "version.invalid_format"),
    errors.InvalidTimestamp: (400, "version.invalid_timestamp"),
    errors.VersionNotFound: (404, "version.not_found"),
    errors.TagNotFound: (404, "version.tag_not_found"),
    errors.RouteNotFound: (404, "route.not_found"),
    errors.MethodNotAllowed: (405, "route.method_not_allowed"),
    errors.ContentTooLarge: (413, "request.body_too_large"),
    errors.HeadersTooLarge: (431, "request.headers_too_large"),
    errors.RequestTimeout: (408, "request.timeout"),
    errors.UpgradeRequired: (426, "route.upgrade_required"),
    errors.Unauthenticated: (401, "auth.unauthenticated"),
    errors.Forbidden: (403, "auth.forbidden"),
    errors.RateLimited: (429, "rate.limited"),
    errors.DeadlineExceeded: (504, "request.deadline_exceeded"),
    errors.HandlerTimeout: (504, "handler.timeout"),
    errors.HookTimeout: (504, "hook.timeout"),
    errors.ChannelClosed: (499, "channel.closed"),
    errors.InvalidResponse: (500, "response.invalid"),
    errors.TransformFailed: (500, "version.transform_failed"),
    errors.TooManyChannels: (503, "worker.too_many_channels"),
}
SAYS_LITTLE = (errors.HookTimeout, errors.InvalidResponse, errors.TransformFailed)
"""What exactly went wrong is for the log."""
SILENT = (errors.RequestError,)
"""The client's own mistakes: no log line."""


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
    error = kind("said so", **more)  # type: ignore[arg-type]
    error.facts["password"] = SECRET

    with capture_logs() as lines:
        reply = await run(_raising(error, is_async=is_async))

    document = problem(reply)
    assert (reply.status, document["code"]) == KEPT.get(kind, (500, "internal"))
    assert ("said so" in document["detail"]) is (kind in KEPT and kind not in SAYS_LITTLE)
    assert SECRET not in reply.body.decode()
    special = {
        errors.ChannelClosed: "client_left_stream",
        errors.HookTimeout: "hook_timed_out",
        errors.InvalidResponse: "response_invalid",
        errors.TooManyChannels: "handler_answered_error",
        errors.TransformFailed: "transform_failed",
    }
    logged = special.get(kind, "handler_failed")
    assert [line["event"] for line in lines] == ([] if issubclass(kind, SILENT) else [logged])


@pytest.mark.parametrize(
    ("error", "header"),
    [
        (errors.Unauthenticated("no"), ("www-authenticate", "Bearer")),
        (errors.RateLimited("no", retry_after_s=7), ("retry-after", "7")),
        (errors.MethodNotAllowed("no", allow=("GET", "PUT")), ("allow", "GET, PUT")),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_error_brings_the_header_that_its_status_asks_for(
    run: Run, error: GatiError, header: tuple[str, str]
) -> None:
    assert header in (await run(_raising(error, is_async=True))).headers


class Unreadable(HandlerError):
    """Its text fails as well."""

    def __str__(self) -> str:
        raise ValueError(SECRET)


@pytest.mark.parametrize(
    "error",
    [HandlerError("file \udc80 is gone", 404), Unreadable("x", 404), errors.InvalidBody("x", errors=[object()])],
    ids=["no utf-8", "no text", "no json"],
)
async def test_an_error_that_cannot_be_sent_is_a_plain_500(run: Run, error: GatiError) -> None:
    with capture_logs() as lines:
        reply = await run(_raising(error, is_async=True))

    assert (reply.status, problem(reply)["code"], reply.route) == (500, "internal", "/orders/{id}")
    assert [line["event"] for line in lines] == ["error_not_sendable"]


@pytest.mark.parametrize("status", [399, 600, 404.5, "404"])
def test_a_handlers_error_refuses_a_status_that_is_none(status: Any) -> None:
    with pytest.raises(ValueError, match="between 400 and 599"):
        HandlerError("no", status)


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

    document = problem(reply)
    assert (reply.status, document["code"]) == (500, "internal")
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


def test_the_taxonomy_was_found() -> None:
    assert len(_taxonomy()) > 25
    assert sys.modules[errors.__name__] is errors
