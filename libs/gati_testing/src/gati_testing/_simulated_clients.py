"""The client's side of what lasts: sockets and streams of a simulation."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from gati_core.errors import ChannelClosed
from gati_core.wire import HeaderPairs
from gati_testing._execution import Execution
from gati_testing._memory_channels import ClientEnd
from gati_testing.assertions import Answer

T = TypeVar("T")


class HandshakeRefused(Exception):
    """A WebSocket handler did not accept; `answer` is what the client gets instead."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"the handshake was refused with {answer.status}: {answer.body!r:.200}")
        self.answer = answer


class Simulated(Protocol):
    """What the clients need of their simulation."""

    def run(self, work: Coroutine[Any, Any, T], *, within_s: float | None = None) -> T:
        """Run a coroutine in virtual time."""

    def settled(self, execution: Execution) -> Awaitable[None]:
        """Wait until an execution has ended."""


class _Client:
    def __init__(self, simulation: Simulated, end: ClientEnd, execution: Execution, answer: Answer) -> None:
        self._simulation = simulation
        self._end = end
        self._execution = execution
        self.headers: HeaderPairs = answer.headers
        """Of the answer that began this."""
        self.request_id = execution.lctx.request_id

    def header(self, name: str) -> str | None:
        """A header's (first) value, or None."""
        return next((value for each, value in self.headers if each == name.lower()), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class SimulatedSocket(_Client):
    """The client's end of a WebSocket connection; made by `Simulation.websocket`."""

    @property
    def subprotocol(self) -> str:
        """What the handler chose."""
        return self.header("sec-websocket-protocol") or ""

    def send(self, message: str | bytes) -> None:
        """Send one message; waits (in virtual time) while the handler is 64 messages behind.

        Raises:
            ChannelClosed: the connection is closed.
        """
        kind, data = ("text", message.encode()) if isinstance(message, str) else ("binary", message)
        self._simulation.run(self._end.send(kind, data))  # type: ignore[arg-type]

    def receive(self, *, within_s: float = 30.0) -> str | bytes:
        """The next message of the handler's.

        Raises:
            ChannelClosed: it is closed; see `close_code`.
            TimeoutError: none came within these virtual seconds.
        """
        frame = self._simulation.run(self._end.next(), within_s=within_s)
        if frame.kind not in ("text", "binary"):
            raise ChannelClosed(f"the handler has closed with {frame.code}")
        data: bytes = frame.data
        return data.decode() if frame.kind == "text" else data

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close as the client, and wait for the handler's end; 1006 is a client that is gone without a word."""

        async def close() -> None:
            self._end.close(code, reason)
            await self._simulation.settled(self._execution)

        self._simulation.run(close())

    def vanish(self) -> None:
        """Be gone without a word, and wait for the handler's end."""
        self.close(1006)

    @property
    def close_code(self) -> int | None:
        """With which the handler closed; None while it has not."""
        return self._end.ended.code if self._end.ended is not None else None

    @property
    def close_reason(self) -> str:
        """What it said about it."""
        return self._end.ended.text if self._end.ended is not None else ""


class SimulatedStream(_Client):
    """The client's end of a streamed answer that it reads bit by bit; made by `Simulation.stream`."""

    def __init__(self, simulation: Simulated, end: ClientEnd, execution: Execution, answer: Answer) -> None:
        super().__init__(simulation, end, execution, answer)
        self.status = answer.status

    def read(self, *, within_s: float = 30.0) -> bytes:
        """The next part of the body, as the handler wrote it; empty at the end. Not reading slows the handler down.

        Raises:
            ChannelClosed: the body ended before it was whole.
            TimeoutError: nothing came within these virtual seconds.
        """
        if self._end.ended is not None and not self._end.frames and self._end.ended.kind == "end":
            return b""
        frame = self._simulation.run(self._end.next(), within_s=within_s)
        if frame.kind == "part":
            data: bytes = frame.data
            return data
        if frame.kind == "end":
            return b""
        raise ChannelClosed(f"the body was cut: {frame.text or 'the handler failed'}")

    def close(self) -> None:
        """Stop reading and be gone, and wait for the handler's end."""

        async def leave() -> None:
            self._end.cut()
            await self._simulation.settled(self._execution)

        self._simulation.run(leave())
