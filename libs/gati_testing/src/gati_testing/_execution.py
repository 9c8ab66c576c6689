"""Running one handler to its end in this process, with the limits that a worker would enforce."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from gati_core.contexts import LocalContext
from gati_core.errors import DeadlineExceeded
from gati_core.fabric import Channel
from gati_core.lifecycle import Chain, HandlerRun, Lifecycle, Plan
from gati_core.wire import Reply, RequestDescriptor, problem_reply

# As in a worker; a test compares them.
_CANCEL_AGAIN_S = 0.25
_TICK_S = 0.05
_ABANDON_AFTER_S = 2.0
_SOCKET_GRACE_S = 5.0
_LEAVE_WITHIN_S = 2.0


class Version:
    """Which version of a handler runs, and how a request got to it."""

    def __init__(self, tsv: str, source: str) -> None:
        self.tsv = tsv
        self.source = source
        self.chain: Chain | None = None


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
        version: Version | None = None,
        at_end: Sequence[Callable[[], Any]] = (),
        on_head: Callable[[], None] | None = None,
    ) -> None:
        self.cancel_reason = ""
        self.is_settling = False
        self._own_deadline_ms = lifecycle.clock() * 1000 + plan.call.timeout_s * 1000
        self.is_own_limit = self._own_deadline_ms < descriptor.deadline_ms
        self._lifecycle = lifecycle
        self._is_socket = plan.call.is_websocket
        self._deadline_ms = min(self._own_deadline_ms, descriptor.deadline_ms)
        self._at_end = at_end
        self._on_head = on_head
        self.head: Reply | None = None
        """The head of a stream or the acceptance of a socket, once it has left."""
        self.has_started = asyncio.Event()
        """Set with the first step of the run."""
        self.began = asyncio.Event()
        """Set with `head`, and at the end."""
        self.reply: Reply | None = None
        self.state: dict[str, Any] = {}
        """What `lctx.set` had stored when the handler and its hooks had ended."""
        self.is_abandoned = False
        """Whether the handler did not react to being cancelled, and was left alone."""
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
            attempt=1,
            routed_ms=descriptor.received_ms,
            control=self,
            deadline_ms=int(self._deadline_ms),
            tsv=version.tsv if version is not None else "",
            source=version.source if version is not None else "",
            chain=version.chain if version is not None else None,
        )

    @property
    def lctx(self) -> LocalContext:
        """The request's local context."""
        return self.run.lctx

    @property
    def task(self) -> asyncio.Task[Reply | None] | None:
        """In which the handler runs."""
        return self._task

    def send_head(self, reply: Reply, channel: Channel) -> None:
        """See `Control`: from here on the handler's own limit counts."""
        self.head = reply
        channel.on_lost = lambda _reason: self._client_lost()
        self.is_own_limit = True
        self._deadline_ms = self._own_deadline_ms
        self._arm()
        self.began.set()
        if self._on_head is not None:
            self._on_head()

    def _client_lost(self) -> None:
        if not self._is_socket:
            self.cancel("client_gone")
        else:  # a socket's handler may see it and finish
            asyncio.get_running_loop().call_later(_SOCKET_GRACE_S, self.cancel, "client_gone")

    async def finish(self) -> Reply | None:
        """Run the handler, its hooks and its cleanup; returns the reply, or None when frames were it."""
        loop = asyncio.get_running_loop()
        # As in a worker: not through the loop's factory, which is there for the tasks of handlers.
        self._task = asyncio.Task(self._execute(), loop=loop, name=f"handler of {self.lctx.request_id}")
        self._arm()
        try:
            waiting: list[asyncio.Future[Any]] = [self._task, self._given_up]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            self.reply = self._task.result() if self._task.done() else await self.run.give_up()
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if not self._task.done() and not self.is_abandoned:  # somebody ends us: end it as well
                self._task.cancel()
                await asyncio.wait([self._task], timeout=_LEAVE_WITHIN_S)
            self.state = dict(self.lctx._state or {})
            self.began.set()
            for function in self._at_end:
                self.lctx.lifecycle.on_cleanup(function)
            await self.run.cleanup()
        return self.reply

    async def _execute(self) -> Reply | None:
        self.has_started.set()
        if not self.cancel_reason:
            return await self.run.execute()
        if self.cancel_reason == "deadline":
            error = DeadlineExceeded("the handler did not finish before the deadline")
            return problem_reply(error, self.lctx.request_id)
        return None  # it never begins, and nobody waits

    def cancel(self, reason: str) -> None:
        """End the handler, as the ingress or the worker would."""
        if self.cancel_reason:
            return
        self.cancel_reason = reason
        self._cancelled_at = asyncio.get_running_loop().time()
        if self.has_started.is_set():
            self._insist()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        left_s = max(0.0, self._deadline_ms / 1000 - self._lifecycle.clock())
        self._timer = asyncio.get_running_loop().call_later(left_s, self.cancel, "deadline")

    def _insist(self) -> None:
        """Cancel it, again and again, and at last go on without it."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is None or self._task.done() or self.is_settling:
            return
        loop = asyncio.get_running_loop()
        if loop.time() - self._cancelled_at >= _ABANDON_AFTER_S:
            self.is_abandoned = True
            self.run.abandon()
            if not self._given_up.done():
                self._given_up.set_result(None)
            return
        self._task.cancel()
        is_first = loop.time() == self._cancelled_at
        self._timer = loop.call_later(_CANCEL_AGAIN_S if is_first else _TICK_S, self._insist)
