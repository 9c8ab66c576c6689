"""Running hooks: their order, limits, retries and events."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, NoReturn

import structlog

from gati_core.contexts import LEVELS, MAX_BACKOFF_S, Hook, unowned_task
from gati_core.errors import HandlerError, HookTimeout, RequestError
from gati_core.lifecycle.bounding import bounded
from gati_core.lifecycle.plan import in_reverse

if TYPE_CHECKING:
    from gati_core.lifecycle.controller import HandlerRun

log = structlog.get_logger(__name__)

MAX_DETACHED = 1000
"""Detached hooks that one process runs at once; one more is refused, logged, and does not run."""


async def run_before(run: HandlerRun) -> None:
    """Global, route and local hooks, each in the order of registration, until one answers."""
    lctx = run.lctx
    for level, hooks in enumerate((*run.plan.before_levels, ())):
        lctx._level = level
        if run.response.is_sent():
            return
        await run_hooks(run, hooks)
        while lctx._before and not run.response.is_sent():
            # Looked at anew each time: hooks may register and remove hooks, also of the level that runs.
            hook = next((each for each in lctx._before if each.level == LEVELS[level]), None)
            if hook is None:
                break
            lctx._before.remove(hook)
            await run_hooks(run, (hook,))


async def run_after(run: HandlerRun) -> None:
    """All hooks in the exact reverse of the before order."""
    lctx = run.lctx
    plan = run.plan
    lctx._stage = "after"
    run.response.allow_late_headers()
    await run_hooks(run, plan.after if lctx._after is None else in_reverse(plan.after_levels, lctx._after))


async def run_hooks(run: HandlerRun, hooks: tuple[Hook, ...]) -> None:
    """One after another; what one raises ends the row."""
    lctx, gctx = run.lctx, run.lifecycle.gctx
    for hook in hooks:
        run.current_hook = hook.id
        if hook.is_async or hook.is_threaded or hook.is_detached or hook.retries or run.emit is not None:
            await run_hook(run, hook, gctx, lctx)
        else:
            began = time.perf_counter()
            result = hook.function(gctx, lctx)
            if result is not None and inspect.isawaitable(result):
                await _within(run, hook, result)
            elif time.perf_counter() - began > hook.timeout_s:
                _too_slow(hook)
        if run.is_abandoned:
            raise asyncio.CancelledError  # somebody else has settled this request meanwhile
        lctx._hook_index += 1
        if lctx._stage == "before" and run.response.is_sent():
            break
    run.current_hook = ""


async def run_hook(run: HandlerRun, hook: Hook, *arguments: Any) -> None:
    """One hook with its retries; raises what its last attempt raised."""
    if hook.is_detached:
        _detach(run, hook, arguments)
        return
    emit = run.emit
    began = time.perf_counter()
    if emit is not None:
        emit("hook:start", hook.id, kind=hook.kind, level=hook.level, max_attempts=hook.retries + 1)
    attempt = 0
    try:
        while True:
            attempt += 1
            try:
                await _call_hook(run, hook, arguments)
                break
            except asyncio.CancelledError:
                raise
            except BaseException as exc:
                # An answer that the hook decided on does not get better by asking again.
                if attempt > hook.retries or isinstance(exc, (HandlerError, RequestError)) or _is_over(run, hook):
                    raise
                if emit is not None:
                    emit("hook:retry", hook.id, error=exc, attempt=attempt)
            await asyncio.sleep(min(hook.backoff_s * 2 ** (attempt - 1), MAX_BACKOFF_S))
    except BaseException as exc:
        if emit is not None and not _is_over(run, hook):
            error = "cancelled" if isinstance(exc, asyncio.CancelledError) else exc
            emit("hook:error", hook.id, began=began, error=error, attempt=attempt)
        raise
    if emit is not None and not _is_over(run, hook):
        emit("hook:end", hook.id, began=began, attempt=attempt)


def _is_over(run: HandlerRun, hook: Hook) -> bool:
    """Whether the request was settled without this hook, which did not react to being cancelled."""
    return run.is_abandoned and hook.kind != "catch"


async def _call_hook(run: HandlerRun, hook: Hook, arguments: tuple[Any, ...]) -> None:
    if hook.is_async:
        await _within(run, hook, hook.function(*arguments))
    elif hook.is_threaded:
        await _within(run, hook, run.lifecycle.threads.run(hook.function, *arguments))
    else:
        began = time.perf_counter()
        result = hook.function(*arguments)
        if inspect.isawaitable(result):
            await _within(run, hook, result)
        elif time.perf_counter() - began > hook.timeout_s:
            _too_slow(hook)


async def _within(run: HandlerRun, hook: Hook, work: Awaitable[Any]) -> None:
    if hook.kind == "catch" or hook.is_detached:
        # The request is being settled, or does not wait: nobody insists when it swallows its cancellation.
        try:
            await bounded(run.lifecycle, work, timeout_s=hook.timeout_s, name=f"hook {hook.id}")
        except TimeoutError as exc:
            if str(exc).startswith(f"hook {hook.id} did not finish"):
                _too_slow(hook)
            raise
        return
    limit = asyncio.timeout(hook.timeout_s)
    try:
        async with limit:
            await work
    except TimeoutError:
        if not limit.expired():
            raise
    if limit.expired():  # also when it swallowed its cancellation
        _too_slow(hook)


def _too_slow(hook: Hook) -> NoReturn:
    raise HookTimeout(f"the {hook.kind} hook {hook.id!r} did not finish within {hook.timeout_s:g} s")


def _detach(run: HandlerRun, hook: Hook, arguments: tuple[Any, ...]) -> None:
    lifecycle, emit, request_id = run.lifecycle, run.emit, run.lctx.request_id
    if len(lifecycle.detached) >= MAX_DETACHED:
        log.error("detached_hook_refused", request_id=request_id, hook=hook.id, limit=MAX_DETACHED)
        return

    async def work() -> None:
        began = time.perf_counter()
        if emit is not None:
            emit("hook:start", hook.id, kind=hook.kind, level=hook.level, detached=True)
        try:
            await _call_hook(run, hook, arguments)
        except BaseException as exc:
            log.error("detached_hook_failed", request_id=request_id, hook=hook.id, exc_info=exc)
            if emit is not None:
                emit("hook:error", hook.id, began=began, error=exc, detached=True)
            if isinstance(exc, asyncio.CancelledError):
                raise
        else:
            if emit is not None:
                emit("hook:end", hook.id, began=began, detached=True)

    task = unowned_task(work(), f"hook {hook.id}")  # it may outlive the request
    lifecycle.detached.add(task)
    task.add_done_callback(lifecycle.detached.discard)
