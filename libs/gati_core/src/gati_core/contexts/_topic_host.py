"""The subscriptions that a package declares: started with its process, stopped with it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from gati_core.contexts._subscriptions import (
    QUEUE_LIMIT,
    Closable,
    DurableCallback,
    EventReader,
    Subscription,
    TopicPort,
)
from gati_core.contexts._tasks import ENDS_PROGRAMS, contained_error
from gati_core.contexts._topics import Topics, topic_name
from gati_core.errors import DeadlineExceeded, RegistrationError, TopicError

log = structlog.get_logger(__name__)

MAX_CONCURRENCY = 256
_STOP_WITHIN_S = 5.0
_CANCEL_WITHIN_S = 1.0


class TopicHandler(msgspec.Struct, frozen=True, kw_only=True):
    """One declared subscription, as `@app.subscribe` makes it.

    Raises:
        RegistrationError: a field that cannot work; the message says which.
    """

    topic: str
    function: Callable[..., Any]
    """`(event, gctx)`. A plain function runs in a thread."""
    durable: str = ""
    """The group's name: its members share the durable events of the topic, each at least once. Without
    it, every process gets every event that is published while it listens."""
    type: Any = None
    """What payloads are read as."""
    concurrency: int = 1
    """Events handled at once by one process. Only with 1 are they handled in order."""
    timeout_s: float = 30.0
    """How long one event may take; then the function is cancelled, and the attempt has failed."""

    def __post_init__(self) -> None:
        name = getattr(self.function, "__qualname__", repr(self.function))
        try:
            topic_name(self.topic)
            if self.durable:
                topic_name(self.durable, "durable group")
            EventReader(self.type)
        except TopicError as exc:
            raise RegistrationError(f"subscriber {name}: {exc}") from exc
        if not 1 <= self.concurrency <= MAX_CONCURRENCY:
            raise RegistrationError(
                f"subscriber {name}: concurrency must be 1 to {MAX_CONCURRENCY}, not {self.concurrency}"
            )
        if not 0 < self.timeout_s <= 86_400:
            raise RegistrationError(f"subscriber {name}: timeout_s must be above 0 and at most a day")
        try:
            inspect.signature(self.function).bind(None, None)
        except (TypeError, ValueError) as exc:
            raise RegistrationError(f"subscriber {name} must take (event, gctx): {exc}") from exc


class TopicHost:
    """Runs the declared subscriptions of one app in one process. `start`, then `aclose`.

    Args:
        port: the one that `topics` stands on.
        gctx: what the functions get beside the event.
    """

    def __init__(
        self, *, topics: Topics, port: TopicPort, app: str, handlers: Sequence[TopicHandler], gctx: Any
    ) -> None:
        self._topics = topics
        self._port = port
        self._app = app
        self._handlers = list(handlers)
        self._gctx = gctx
        self._groups: list[Closable] = []
        self._subscriptions: list[Subscription] = []
        self._listening: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to listen.

        Raises:
            GatiError: the broker or the topology does not allow it; nothing is left listening.
        """
        try:
            for handler in self._handlers:
                if handler.durable:
                    group = await self._port.subscribe_durable(
                        self._app,
                        handler.durable,
                        handler.topic,
                        self._durably(handler),
                        concurrency=handler.concurrency,
                    )
                    self._groups.append(group)
                else:
                    await self._listen(handler)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Take nothing new, and let what runs finish: live events within 5 s, durable ones as the port does."""
        groups, self._groups = self._groups, []
        subscriptions, self._subscriptions = self._subscriptions, []
        listening, self._listening = self._listening, []
        closing = [each.aclose() for each in (*groups, *subscriptions)]
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, Exception):
                log.warning("topic_close_failed", error=repr(outcome))
        if listening:
            _, late = await asyncio.wait(listening, timeout=_STOP_WITHIN_S)
            for task in late:
                task.cancel()
            if late:
                _, deaf = await asyncio.wait(late, timeout=_CANCEL_WITHIN_S)
                for task in deaf:
                    log.error("topic_handler_abandoned", task=task.get_name(), hint="it swallows its cancellation")

    async def _listen(self, handler: TopicHandler) -> None:
        subscription = self._topics.subscribe(handler.topic, type=handler.type, limit=QUEUE_LIMIT)
        self._subscriptions.append(await subscription)
        for number in range(handler.concurrency):
            task = asyncio.create_task(
                self._keep_running(handler, subscription), name=f"topic {handler.topic} {number}"
            )
            self._listening.append(task)

    async def _keep_running(self, handler: TopicHandler, subscription: Subscription) -> None:
        run = self._runner(handler)
        async for event in subscription:
            try:
                await run(event)
            except Exception:
                log.exception("topic_handler_failed", topic=handler.topic)

    def _durably(self, handler: TopicHandler) -> DurableCallback:
        run, read = self._runner(handler), EventReader(handler.type).read

        async def callback(data: bytes, attempt: int) -> None:
            await run(read(data, attempt=attempt))

        return callback

    def _runner(self, handler: TopicHandler) -> Callable[[Any], Any]:
        function, gctx = handler.function, self._gctx
        is_async = inspect.iscoroutinefunction(function)
        threads = None if is_async else anyio.CapacityLimiter(handler.concurrency)

        async def run(event: Any) -> None:
            limit = asyncio.timeout(handler.timeout_s)
            try:
                async with limit:
                    if is_async:
                        await function(event, gctx)
                    else:
                        await anyio.to_thread.run_sync(function, event, gctx, abandon_on_cancel=True, limiter=threads)
            except TimeoutError as exc:
                if not limit.expired():
                    raise
                raise DeadlineExceeded(
                    f"the subscriber of {handler.topic!r} did not finish within {handler.timeout_s:g} s"
                ) from exc
            except ENDS_PROGRAMS as exc:
                raise contained_error(exc) from exc
            except asyncio.CancelledError as exc:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                raise RuntimeError("the subscriber raised CancelledError") from exc  # nobody cancelled it

        return run
