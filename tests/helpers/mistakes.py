"""Handlers that fail, and every way in which what runs after a failure may fail itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from gati_core import App
from tests.helpers.handling import shop

Body = Callable[..., Any]


class Escaped(BaseException):
    """An exception that is not even an `Exception`."""


async def escaping() -> None:
    """Let a cancellation escape that nobody asked for: the task that was awaited had been cancelled."""
    task = asyncio.ensure_future(asyncio.Event().wait())
    task.cancel()
    await task


def failing_with(*prepare: Body, error: BaseException | None = None) -> App:
    """An app whose handler prepares (each is given lctx) and then fails."""

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        for each in prepare:
            each(lctx)
        raise error or ValueError("broken")

    return shop(handler)


# every way in which something that runs after a failure may fail itself
MISTAKES: dict[str, Callable[[], Any]] = {
    "raises": lambda: (_ for _ in ()).throw(ValueError()),
    "escapes": lambda: (_ for _ in ()).throw(Escaped()),
    "exits": lambda: (_ for _ in ()).throw(SystemExit()),
    "cancels": lambda: (_ for _ in ()).throw(asyncio.CancelledError()),
    "awaits what was cancelled": escaping,
    "hangs": lambda: asyncio.Event().wait(),
}
