"""A WebSocket handler in this process, with a client at the other end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gati_core import App
from gati_core.contexts import Topics, WebSocket
from gati_testing._memory_topics import MemoryTopics
from tests.helpers.handling import Desk, Underway

Talk = Callable[[WebSocket, Any], Awaitable[None]]


class Line:
    """A WebSocket handler, and the client at the other end."""

    def __init__(self) -> None:
        self.topics = Topics(MemoryTopics(), publisher="i")
        self.desk = Desk(topics=self.topics.local)
        self.wire = self.desk.wire
        self.app = App("shop")

    def begin(self, talk: Talk, **fields: Any) -> Underway:
        async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
            await talk(lctx.websocket, lctx)

        self.app.websocket("/chat", id="h")(handler)
        return self.desk.begin(self.app, method="WEBSOCKET", **fields)

    async def accepted(self, talk: Talk, **fields: Any) -> Underway:
        """Begun, and as far as the handler gets by itself."""
        underway = self.begin(talk, **fields)
        await settle()
        assert self.wire.heads
        return underway

    @property
    def messages(self) -> list[bytes]:
        """What the client received."""
        return [data for kind, data in self.wire.sent if kind in ("text", "binary")]

    @property
    def closing(self) -> tuple[int, str]:
        """Code and reason of the close frame that was sent."""
        (close,) = [frame for frame in self.wire.frames if frame.kind == "close"]
        return close.code, close.text


async def settle() -> None:
    """Let everything go on that can."""
    for _ in range(30):
        await asyncio.sleep(0)
