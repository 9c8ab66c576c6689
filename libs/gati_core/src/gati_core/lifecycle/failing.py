"""What a failure means to the client and the log, and what runs then: compensations, catch hooks,
callbacks; each isolated from the rest."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import structlog

from gati_core.errors import (
    ChannelClosed,
    ClientGone,
    DeadlineExceeded,
    GatiError,
    HandlerError,
    HandlerTimeout,
    HookTimeout,
    InvalidResponse,
    RequestError,
    ShuttingDown,
    TransformFailed,
    described,
)
from gati_core.lifecycle.bounding import bounded
from gati_core.lifecycle.hooking import run_hook
from gati_core.lifecycle.plan import in_reverse

if TYPE_CHECKING:
    from gati_core.lifecycle.controller import HandlerRun

log = structlog.get_logger(__name__)

CALLBACK_TIMEOUT_S = 5.0
GENERIC = "The handler failed; the log has the details under this request id."
"""What a client is told of a bug."""


def is_being_cancelled(error: BaseException) -> bool:
    """Whether somebody cancels the current task, as opposed to a cancellation of its own that some code let escape."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


async def note_cancellation(*, is_delivered: bool) -> None:
    """Take note of a cancellation: what follows may use timeouts, and only a further one cuts it short.

    Args:
        is_delivered: whether it has been raised already.
    """
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return
    while task.cancelling():
        task.uncancel()
    if not is_delivered:
        try:
            await asyncio.sleep(0)  # Python before 3.13 raises it all the same, at the next pause
        except asyncio.CancelledError:
            pass


def classified(run: HandlerRun, exc: BaseException) -> GatiError:
    """The error that the client gets for what was raised; see the table in the handler guide."""
    reason = run.control.cancel_reason
    if isinstance(exc, asyncio.CancelledError):
        if reason == "deadline":
            if run.control.is_own_limit:
                return HandlerTimeout(f"the handler did not finish within {run.plan.call.timeout_s:g} s")
            return DeadlineExceeded("the handler did not finish before the deadline")
        if reason == "leaving":
            return ShuttingDown("the worker had to leave before the handler finished")
        if reason:
            return ClientGone("nobody waits for the answer")
        return GatiError(GENERIC)
    if isinstance(exc, (HandlerError, RequestError, ChannelClosed, DeadlineExceeded)):
        return exc
    if isinstance(exc, HookTimeout):
        return HookTimeout("a hook of this request did not finish in time")  # which one is for the log
    if isinstance(exc, InvalidResponse):
        return InvalidResponse(GENERIC)
    if isinstance(exc, TransformFailed):
        return exc.for_clients()
    return GatiError(GENERIC)


def log_failure(run: HandlerRun, exc: BaseException, error: GatiError, *, has_answered: bool) -> None:
    """Say in the log what failed, once, as loudly as it deserves."""
    fields = {"request_id": run.lctx.request_id, "handler": run.plan.call.id}
    if run.current_hook:
        fields["hook"] = run.current_hook
    if not has_answered and run.response.is_sent() and run.response.parts()[0] < 500:
        # Somebody expected it: a stack would only alarm. Behind a hook's own 5xx a bug keeps its stack.
        log.info("failure_answered_by_hook", **fields, status=run.response.parts()[0], error=described(exc))
    elif has_answered:
        if not isinstance(exc, (asyncio.CancelledError, ChannelClosed)):
            log.error("handler_failed_after_response", **fields, exc_info=exc)
    elif isinstance(exc, asyncio.CancelledError):
        if not run.control.cancel_reason:
            log.error("handler_cancelled_itself", **fields, exc_info=exc)
        elif isinstance(error, DeadlineExceeded):
            limit = f"its own {run.plan.call.timeout_s:g} s" if run.control.is_own_limit else "the request's"
            log.warning("handler_timed_out", **fields, limit=limit)
    elif isinstance(exc, HandlerError):
        if exc.status_code >= 500:
            log.warning("handler_answered_error", **{**exc.facts, **fields, "error": described(exc)})
    elif isinstance(exc, HookTimeout):
        log.error("hook_timed_out", **fields, error=str(exc))
    elif isinstance(exc, TransformFailed):
        log.error("transform_failed", **fields, error=str(exc))
    elif isinstance(exc, InvalidResponse):
        log.error("response_invalid", **fields, error=str(exc))
    elif isinstance(exc, ChannelClosed):
        log.info("client_left_stream", **fields, error=str(exc))
    elif not isinstance(exc, RequestError):
        log.error("handler_failed", **fields, exc_info=exc)


async def run_compensations(run: HandlerRun, actions: list[tuple[str, Callable[[], Any]]]) -> None:
    """Last registered first; one that fails does not stop the others, and raises an alert."""
    emit, request_id = run.emit, run.lctx.request_id
    while actions:
        action_id, function = actions.pop()
        began = time.perf_counter()
        if emit is not None:
            emit("compensation:start", action_id, action_id=action_id)
        try:
            await _call(run, function)
        except BaseException as exc:
            if is_being_cancelled(exc):
                if emit is not None:
                    emit("compensation:error", action_id, began=began, error="cancelled", action_id=action_id)
                raise
            if emit is not None:
                emit("compensation:error", action_id, began=began, error=exc, action_id=action_id)
                emit("compensation:alert", action_id, error=exc, action_id=action_id)
            log.error(
                "compensation_failed", request_id=request_id, handler=run.plan.call.id, action=action_id, exc_info=exc
            )
            for alert in run.lifecycle.alerts:
                await run_isolated(run, [alert], "alert_callback_failed", request_id, action_id, exc)
        else:
            if emit is not None:
                emit("compensation:end", action_id, began=began, action_id=action_id)
            log.info("compensation_done", request_id=request_id, handler=run.plan.call.id, action=action_id)


async def run_catch_hooks(run: HandlerRun, error: BaseException) -> None:
    """Local, route, global, each the last registered first; one that fails is logged, the next one runs."""
    lctx, plan = run.lctx, run.plan
    hooks = plan.catch if lctx._catch is None else in_reverse(plan.catch_levels, lctx._catch)
    for hook in hooks:
        try:
            await run_hook(run, hook, error, run.lifecycle.gctx, lctx)
        except BaseException as exc:
            if is_being_cancelled(exc):
                raise
            log.error("catch_hook_failed", request_id=lctx.request_id, hook=hook.id, exc_info=exc)
        lctx._hook_index += 1
    for each in plan.error_middleware:
        if run.response.is_sent():
            break
        if each.matches(run.request.method, run.request.path):
            arguments = (error, run.request, run.response, run.lifecycle.gctx, lctx)
            await run_isolated(run, [each.function], "error_middleware_failed", *arguments)
    if plan.call.response_check is not None and run.response.is_sent():
        try:
            plan.call.response_check.check(run.response)
        except InvalidResponse as exc:
            log.error("response_invalid", request_id=lctx.request_id, handler=plan.call.id, error=str(exc))
            run.response.close("a catch hook answered with what the handler does not declare")
            run.response.discard()


async def run_isolated(run: HandlerRun, functions: Sequence[Callable[..., Any]], event: str, *arguments: Any) -> None:
    """Call each with 5 seconds; what it raises is logged as `event`."""
    for function in list(functions):
        try:
            await _call(run, function, *arguments)
        except BaseException as exc:
            if is_being_cancelled(exc):
                raise
            name = getattr(function, "__qualname__", repr(function))
            log.error(event, request_id=run.lctx.request_id, callback=name, exc_info=exc)


async def release(run: HandlerRun, step: Callable[[], Any]) -> None:
    """Let go of something that the request held; what goes wrong is logged."""
    try:
        async with asyncio.timeout(CALLBACK_TIMEOUT_S):
            result = step()
            if inspect.isawaitable(result):
                await result
    except BaseException as exc:
        if is_being_cancelled(exc):
            raise
        name = getattr(step, "__qualname__", repr(step))
        log.error("release_failed", request_id=run.lctx.request_id, callback=name, exc_info=exc)


async def _call(run: HandlerRun, function: Callable[..., Any], *arguments: Any) -> None:
    # Registered by a `def` handler, it may wait as that handler may: in a thread.
    if not run.plan.call.is_async and not inspect.iscoroutinefunction(function):
        async with asyncio.timeout(CALLBACK_TIMEOUT_S):
            result = await run.lifecycle.threads.run(function, *arguments)
    else:
        result = function(*arguments)
    if inspect.isawaitable(result):
        name = getattr(function, "__qualname__", repr(function))
        await bounded(run.lifecycle, result, timeout_s=CALLBACK_TIMEOUT_S, name=name)
