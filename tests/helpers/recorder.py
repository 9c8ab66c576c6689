"""Hooks and handlers that note that they ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Recorder:
    """Functions that note that they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def note(self, name: str, *, raises: BaseException | None = None) -> Callable[..., Any]:
        def hook(gctx: Any, lctx: Any) -> None:
            self.ran.append(name)
            if raises is not None:
                raise raises

        return hook

    def catch(self, name: str) -> Callable[..., Any]:
        def hook(error: Any, gctx: Any, lctx: Any) -> None:
            self.ran.append(name)

        return hook

    async def handler(self, req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        self.ran.append("handler")
        res.text("ok")
