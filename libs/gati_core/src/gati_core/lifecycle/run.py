"""Running one handler and turning what it did or raised into a reply."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import structlog

from gati_core.contexts import GlobalContext, LocalContext, RequestMeta
from gati_core.errors import DeadlineExceeded, GatiError, HandlerError, RequestError
from gati_core.lifecycle.request import BodyReader, Request
from gati_core.lifecycle.response import Response
from gati_core.wire import PROTOCOL, Reply, RequestDescriptor, Timing, problem_reply

log = structlog.get_logger(__name__)


class HandlerCall:
    """A handler ready to be called: the function, how it is called, and its body's reader."""

    __slots__ = ("body_reader", "function", "id", "is_async", "path", "timeout_s")

    def __init__(
        self,
        *,
        id: str,
        path: str,
        function: Callable[..., Any],
        is_async: bool,
        timeout_s: float,
        body_reader: BodyReader | None,
    ) -> None:
        self.id = id
        self.path = path
        self.function = function
        self.is_async = is_async
        self.timeout_s = timeout_s
        self.body_reader = body_reader


async def run_handler(
    call: HandlerCall,
    descriptor: RequestDescriptor,
    params: dict[str, str],
    raw_body: bytes,
    gctx: GlobalContext,
    *,
    attempt: int,
    routed_ms: int,
    threads: Executor,
) -> Reply:
    """Validate, call the handler, and return the reply. Only cancellation is raised.

    Args:
        threads: where a `def` handler runs, so that it cannot block the loop.
    """
    started_ms = time.time_ns() // 1_000_000
    lctx = LocalContext(
        RequestMeta(
            descriptor.request_id,
            descriptor.method,
            descriptor.path,
            descriptor.version,
            tuple(descriptor.flags),
            descriptor.received_ms,
            attempt,
        ),
        deadline_ms=descriptor.deadline_ms,
        client_ip=descriptor.client_ip,
        traceparent=descriptor.traceparent,
    )
    request: Request[Any] = Request(descriptor, params, raw_body)
    response: Response[Any] = Response()
    try:
        if call.body_reader is not None:
            call.body_reader.fill(request)
        if call.is_async:
            await call.function(request, response, gctx, lctx)
        else:
            loop = asyncio.get_running_loop()
            later = await loop.run_in_executor(threads, _call_in_thread, call.function, request, response, gctx, lctx)
            if inspect.isawaitable(later):
                await later
    except asyncio.CancelledError:
        raise
    except (Exception, SystemExit) as exc:  # an exit would take along every other request of this process
        timing = Timing(descriptor.received_ms, routed_ms, started_ms, time.time_ns() // 1_000_000)
        if response.is_sent():
            log.error("handler_failed_after_response", request_id=descriptor.request_id, handler=call.id, exc_info=exc)
        else:
            reply = error_reply(exc, descriptor.request_id, handler=call.id, timing=timing)
            reply.route = call.path
            return reply
    status, headers, body = response.parts()
    return Reply(
        PROTOCOL,
        descriptor.request_id,
        status,
        headers,
        body,
        "",
        Timing(descriptor.received_ms, routed_ms, started_ms, time.time_ns() // 1_000_000),
        False,
        None,
        call.path,
    )


def _call_in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except StopIteration as exc:
        # No future can carry it: its waiter would never wake.
        raise RuntimeError("the handler raised StopIteration") from exc


def error_reply(exc: BaseException, request_id: str, *, handler: str, timing: Timing | None = None) -> Reply:
    """The answer to a request whose handler raised.

    `HandlerError` and request errors keep their status and message. Anything else is a bug: the
    client sees 500 and nothing internal, the log has the stack.
    """
    if isinstance(exc, HandlerError):
        if exc.status_code >= 500:
            log.warning("handler_answered_error", request_id=request_id, handler=handler, error=str(exc), **exc.facts)
        return problem_reply(exc, request_id, timing)
    if isinstance(exc, (RequestError, DeadlineExceeded)):
        return problem_reply(exc, request_id, timing)
    log.error("handler_failed", request_id=request_id, handler=handler, exc_info=exc)
    public = GatiError("The handler failed; the log has the details under this request id.")
    return problem_reply(public, request_id, timing)
