"""Code of the author's that is waited for when nobody insists any more: while a request is settled and cleaned up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import structlog

from gati_core.contexts import Contained
from gati_core.lifecycle.shared import Lifecycle

log = structlog.get_logger(__name__)

DEAF_AFTER_S = 1.0
"""What does not react to being cancelled for so long is left alone."""


async def bounded(lifecycle: Lifecycle, work: Awaitable[Any], *, timeout_s: float, name: str) -> Any:
    """Wait for `work` within a limit, also when it swallows its cancellation.

    Raises:
        TimeoutError: it took too long. If it runs on in spite of its cancellation, it counts as abandoned: the
            process is replaced when there are too many.
    """
    task: asyncio.Task[Any] = asyncio.Task(Contained(_awaited(work)), name=name)  # owned by whoever waits here
    try:
        await asyncio.wait({task}, timeout=timeout_s)
    except asyncio.CancelledError:
        await _ended(lifecycle, task)
        raise
    if task.done():
        return task.result()
    await _ended(lifecycle, task)
    raise TimeoutError(f"{name} did not finish within {timeout_s:g} s")


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


async def _ended(lifecycle: Lifecycle, task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=DEAF_AFTER_S)
    leave_alone(lifecycle, [task])


def leave_alone(lifecycle: Lifecycle, tasks: list[asyncio.Task[Any]]) -> None:
    """Count those that still run as abandoned, until they end."""
    deaf = [task for task in tasks if not task.done()]
    for task in deaf:
        lifecycle.deaf.add(task)
        task.add_done_callback(lifecycle.deaf.discard)
    if deaf:
        log.error("cancellation_ignored", tasks=sorted(task.get_name() for task in deaf)[:10])
