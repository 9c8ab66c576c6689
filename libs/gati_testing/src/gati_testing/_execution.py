"""Running one handler to its end in this process, with the limits that a worker would enforce."""

from __future__ import annotations

import asyncio
from typing import Any

from gati_core.contexts import LocalContext
from gati_core.fabric import Channel
from gati_core.lifecycle import HandlerRun, Lifecycle, Plan
from gati_core.wire import Reply, RequestDescriptor

_CANCEL_AGAIN_S = 0.25
_ABANDON_AFTER_S = 2.0


class Execution:
    """One run and its limits; the `Control` of the run."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        plan: Plan,
        descriptor: RequestDescriptor,
        params: dict[str, str],
        body: bytes,
        *,
        attempt: int = 1,
        routed_ms: int = 0,
    ) -> None:
        self.cancel_reason = ""
        self.is_settling = False
        now_ms = lifecycle.clock() * 1000
        self._own_deadline_ms = now_ms + plan.call.timeout_s * 1000
        self.is_own_limit = self._own_deadline_ms < descriptor.deadline_ms
        self._lifecycle = lifecycle
        self._deadline_ms = min(self._own_deadline_ms, descriptor.deadline_ms)
        self.head: Reply | None = None
        """The head of a stream or the acceptance of a socket, once it has left."""
        self.began = asyncio.Event()
        """Set with `head`, and at the end."""
        self.channel: Channel | None = None
        self.reply: Reply | None = None
        self._task: asyncio.Task[Reply | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._cancelled_at = 0.0
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.run = HandlerRun(
            lifecycle,
            plan,
            descriptor,
            params,
            body,
            attempt=attempt,
            routed_ms=routed_ms,
            control=self,
            deadline_ms=int(self._deadline_ms),
        )

    @property
    def lctx(self) -> LocalContext:
        """The request's local context."""
        return self.run.lctx

    def send_head(self, reply: Reply, channel: Channel) -> None:
        """See `Control`: from here on the handler's own limit counts."""
        self.head, self.channel = reply, channel
        channel.on_lost = lambda _reason: self.cancel("client_gone")
        self.is_own_limit = True
        self._deadline_ms = self._own_deadline_ms
        self._arm()
        self.began.set()

    async def finish(self) -> Reply | None:
        """Run the handler, its hooks and its cleanup; returns the reply, or None when frames were it."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.Task(self.run.execute(), loop=loop)  # as in a worker: not a task of the handler's
        self._arm()
        try:
            waiting: list[asyncio.Future[Any]] = [self._task, self._given_up]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            self.reply = self._task.result() if self._task.done() else await self.run.give_up()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if not self._task.done() and not self._given_up.done():
                self._task.cancel()
            self.began.set()
            await self.run.cleanup()
        return self.reply

    def cancel(self, reason: str) -> None:
        """End the handler, as the ingress or the worker would."""
        if self.cancel_reason or self._task is None:
            return
        self.cancel_reason = reason
        self._cancelled_at = asyncio.get_running_loop().time()
        self._insist()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        left_s = max(0.0, self._deadline_ms / 1000 - self._lifecycle.clock())
        self._timer = asyncio.get_running_loop().call_later(left_s, self.cancel, "deadline")

    def _insist(self) -> None:
        if self._task is None or self._task.done() or self.is_settling:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._cancelled_at >= _ABANDON_AFTER_S:
            self.run.abandon()
            if not self._given_up.done():
                self._given_up.set_result(None)
            return
        self._task.cancel()
        self._timer = loop.call_later(_CANCEL_AGAIN_S, self._insist)
