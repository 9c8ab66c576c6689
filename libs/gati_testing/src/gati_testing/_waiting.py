"""Waiting for conditions, never for time."""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable

import anyio


async def eventually(
    condition: Callable[[], object] | Callable[[], Awaitable[object]], *, within_s: float, every_s: float = 0.02
) -> None:
    """Return as soon as `condition` holds.

    Args:
        condition: a plain or an async callable; what it returns counts as a truth value. Raising
            AssertionError means "not yet" too, so a condition may assert.
        within_s: seconds it may take.
        every_s: seconds between two looks.
    Raises:
        AssertionError: it did not hold in time; names the condition and what it returned or raised last.
    """
    give_up_at = time.monotonic() + within_s
    while True:
        try:
            last: object = condition()
            if inspect.isawaitable(last):
                last = await last
            if last:
                return
        except AssertionError as exc:
            last = exc
        if time.monotonic() >= give_up_at:
            raise AssertionError(f"{_described(condition)} did not hold within {within_s:g} s; last: {last!r}")
        await anyio.sleep(every_s)


def _described(condition: Callable[..., object]) -> str:
    try:
        return " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        return getattr(condition, "__qualname__", repr(condition))
