"""The lifecycle controller: everything that happens around one handler, in its order.

    validate the request → before hooks (global, route, local) → handler → validate the response
    → after hooks (reversed) → answer → cleanup

and when any of it fails: callbacks, compensations (last first), catch hooks (reversed), the error's
answer, cleanup. `Lifecycle` is what one process shares, `HandlerRun` is one request:

    run = HandlerRun(lifecycle, plan, descriptor, params, body, attempt=1, routed_ms=0, control=control)
    reply = await run.execute()      # never raises; None when nobody waits for an answer
    ...publish the reply...
    if run.needs_cleanup:
        await run.cleanup()

Whoever runs it cancels the task to end the handler, with the reason in `control.cancel_reason`.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, Protocol

import structlog

from gati_core.contexts import (
    LEVELS,
    MAX_BACKOFF_S,
    GlobalContext,
    Hook,
    LocalContext,
    LocalTopics,
    TaskOwner,
    WebSocket,
    unowned_task,
)
from gati_core.errors import (
    ChannelClosed,
    ClientGone,
    DeadlineExceeded,
    GatiError,
    HandlerError,
    HandlerTimeout,
    HookTimeout,
    InvalidResponse,
    RequestError,
    ShuttingDown,
    described,
)
from gati_core.fabric import Channel, ChannelPort
from gati_core.lifecycle.events import Emitter, Observers
from gati_core.lifecycle.failing import note_cancellation, run_catch_hooks, run_compensations, run_isolated
from gati_core.lifecycle.middleware import run_through
from gati_core.lifecycle.plan import Plan, in_reverse
from gati_core.lifecycle.request import Request
from gati_core.lifecycle.response import Response
from gati_core.lifecycle.storing import store_run
from gati_core.lifecycle.stream import BodyStream
from gati_core.lifecycle.threads import HandlerThreads
from gati_core.wire import PROTOCOL, Reply, RequestDescriptor, Timing, problem_reply

log = structlog.get_logger(__name__)

MAX_DETACHED = 1000
"""Detached hooks that one process runs at once; one more is refused, logged, and does not run."""
_LEAK_GRACE_S = 1.0
Alert = Callable[[str, str, BaseException], Any]
"""Called with request id, action id and error when a compensating action failed."""


class Control(Protocol):
    """What the run and whoever cancels it tell each other."""

    cancel_reason: str
    """Why the task was cancelled: `deadline`, `client_gone`, `leaving`, …; empty when it was not."""
    is_settling: bool
    """Set by the run once the handler has ended: cancelling it now would only cut its settling."""
    is_own_limit: bool
    """Whether the deadline is the handler's own limit, and not the client's."""

    def send_head(self, reply: Reply, channel: Channel) -> None:
        """The answer begins: publish its head. From here on it cannot be repeated elsewhere.

        Raises:
            BrokerUnavailable: the head could not be sent; nothing has begun.
        """


class QuietControl:
    """A `Control` for runs that nobody cancels from outside and that do not stream."""

    def __init__(self) -> None:
        self.cancel_reason = ""
        self.is_settling = False
        self.is_own_limit = False

    def send_head(self, reply: Reply, channel: Channel) -> None:
        """There is nobody to send it to."""
        raise GatiError("this run cannot stream")


class Lifecycle:
    """What the runs of one process share."""

    __slots__ = (
        "alerts",
        "channels",
        "clock",
        "detached",
        "gctx",
        "instance_id",
        "observers",
        "odd_returns",
        "region",
        "threads",
        "topics",
        "version",
    )

    def __init__(
        self,
        *,
        gctx: GlobalContext,
        threads: HandlerThreads,
        version: str = "",
        observers: Observers | None = None,
        channels: ChannelPort | None = None,
        topics: Callable[[str], LocalTopics] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.gctx = gctx
        self.threads = threads
        self.version = version
        self.observers = observers or Observers()
        self.channels = channels
        self.topics = topics
        self.clock = clock
        self.instance_id = gctx.instance.id
        self.region = gctx.instance.region
        self.alerts: list[Alert] = []
        self.detached: set[asyncio.Task[None]] = set()
        self.odd_returns: set[str] = set()


class HandlerRun(TaskOwner):
    """One request's way through its handler. See the module."""

    __slots__ = (
        "_channel",
        "_current",
        "_emit",
        "_handler_began",
        "_is_abandoned",
        "_is_cleaned",
        "_lifecycle",
        "_plan",
        "_routed_ms",
        "_started_ms",
        "_stream",
        "control",
        "failure",
        "lctx",
        "request",
        "response",
    )

    def __init__(
        self,
        lifecycle: Lifecycle,
        plan: Plan,
        descriptor: RequestDescriptor,
        params: dict[str, str],
        raw_body: bytes,
        *,
        attempt: int,
        routed_ms: int,
        control: Control,
        deadline_ms: int | None = None,
    ) -> None:
        self.tasks = None
        self._lifecycle = lifecycle
        self._plan = plan
        self._routed_ms = routed_ms
        self.control = control
        self._started_ms = int(lifecycle.clock() * 1000)
        self._emit: Emitter | None = lifecycle.observers.emitter(descriptor, plan.call.id)
        self._handler_began = 0.0
        self._current = ""
        self._is_cleaned = False
        self.failure: BaseException | None = None
        """What made the request fail, as it was raised."""
        self._is_abandoned = False
        self._stream: BodyStream | None = None
        self._channel: Channel | None = None
        self.request: Request[Any] = Request(descriptor, params, raw_body)
        self.response: Response[Any] = Response(None if plan.call.is_websocket else self._open_stream)
        self.lctx = lctx = LocalContext(
            descriptor,
            deadline_ms=deadline_ms,
            started_ms=self._started_ms,
            attempt=attempt,
            version=lifecycle.version,
            instance_id=lifecycle.instance_id,
            region=lifecycle.region,
            clock=lifecycle.clock,
            topics=lifecycle.topics,
            uses_threads=not plan.call.is_async,
        )
        lctx.request = self.request
        lctx.response = self.response
        if plan.call.is_websocket:
            lctx._websocket = WebSocket(lctx, self._open_socket)

    # -- the way through ------------------------------------------------------------------------

    async def execute(self) -> Reply | None:
        """Run it all. Returns the reply to publish, or None when its frames were the answer, or nobody waits."""
        plan, lctx, emit = self._plan, self.lctx, self._emit
        call = plan.call
        owner = self.own_what_follows()
        try:
            if call.body_reader is not None or emit is not None:
                self._validate_request()
            lctx.phase = "validated"  # nobody can have asked yet to be told
            if plan.has_before:
                await self._run_before()
            if not self.response.is_sent():  # a before hook that answers takes the handler's place
                lctx._stage = "handler"
                lctx.enter("processing")
                if emit is not None:
                    self._handler_began = time.perf_counter()
                    emit("handler:start", call.id)
                try:
                    if plan.middleware:
                        result = await run_through(self, self._call_handler)
                    elif call.is_async:
                        result = await call.function(self.request, self.response, self._lifecycle.gctx, lctx)
                    else:
                        result = await self._run_in_thread()
                except GeneratorExit as exc:
                    raise RuntimeError("the handler raised GeneratorExit") from exc
                if result is not None:
                    self._ignore(result)
                if self._is_abandoned:
                    return None
                if self.control.cancel_reason and not self.response.is_sent() and self._channel is None:
                    # It swallowed its cancellation and gave no answer: nothing that could pass for success.
                    raise asyncio.CancelledError
                self._handler_ended()
            if call.response_check is not None:
                self._validate_response()
            if plan.after or lctx._after is not None:
                await self._run_after()
        except BaseException as exc:
            if self._is_abandoned:
                return None
            return await self._fail(exc)
        finally:
            self.own_no_more(owner)
        self.control.is_settling = True
        lctx.enter("completed")
        return await self._answer(None)

    async def _call_handler(self) -> object:
        call = self._plan.call
        if not call.is_async:
            return await self._run_in_thread()
        result: object = await call.function(self.request, self.response, self._lifecycle.gctx, self.lctx)
        return result

    async def _run_in_thread(self) -> object:
        call, lifecycle = self._plan.call, self._lifecycle
        result = await lifecycle.threads.run(call.function, self.request, self.response, lifecycle.gctx, self.lctx)
        return await result if inspect.isawaitable(result) else result

    def _handler_ended(self) -> None:
        if self._emit is not None:
            self._emit("handler:end", self._plan.call.id, began=self._handler_began)
            self._handler_began = 0.0

    def _ignore(self, result: object) -> None:
        call = self._plan.call
        if call.id not in self._lifecycle.odd_returns:
            self._lifecycle.odd_returns.add(call.id)  # once: it would be said for every request
            log.warning("return_value_ignored", handler=call.id, type=type(result).__name__, hint="answer through res")

    # -- validation -----------------------------------------------------------------------------

    def _validate_request(self) -> None:
        emit, reader = self._emit, self._plan.call.body_reader
        if emit is None:
            if reader is not None:
                reader.fill(self.request)
        else:
            began = time.perf_counter()
            emit("validation:start", "request", phase="request")
            try:
                if reader is not None:
                    reader.fill(self.request)
            except BaseException as exc:
                emit("validation:error", "request", began=began, error=exc, phase="request")
                raise
            emit("validation:end", "request", began=began, phase="request")

    def _validate_response(self) -> None:
        check, emit = self._plan.call.response_check, self._emit
        if check is None:
            return
        if emit is None:
            check.check(self.response)
            return
        began = time.perf_counter()
        emit("validation:start", "response", phase="response")
        try:
            check.check(self.response)
        except BaseException as exc:
            emit("validation:error", "response", began=began, error=exc, phase="response")
            raise
        emit("validation:end", "response", began=began, phase="response")

    # -- hooks ----------------------------------------------------------------------------------

    async def _run_before(self) -> None:
        lctx = self.lctx
        for level, hooks in enumerate((*self._plan.before_levels, ())):
            lctx._level = level
            if self.response.is_sent():
                return
            await self._run_hooks(hooks)
            while lctx._before and not self.response.is_sent():
                # Looked at anew each time: hooks may register and remove hooks, also of the level that runs.
                hook = next((each for each in lctx._before if each.level == LEVELS[level]), None)
                if hook is None:
                    break
                lctx._before.remove(hook)
                await self._run_hooks((hook,))

    async def _run_after(self) -> None:
        lctx = self.lctx
        plan = self._plan
        lctx._stage = "after"
        self.response.allow_late_headers()
        await self._run_hooks(plan.after if lctx._after is None else in_reverse(plan.after_levels, lctx._after))

    async def _run_hooks(self, hooks: tuple[Hook, ...]) -> None:
        lctx, gctx = self.lctx, self._lifecycle.gctx
        for hook in hooks:
            self._current = hook.id
            if hook.is_async or hook.is_threaded or hook.is_detached or hook.retries or self._emit is not None:
                await self.run_hook(hook, gctx, lctx)
            else:
                began = time.perf_counter()
                result = hook.function(gctx, lctx)
                if result is not None and inspect.isawaitable(result):
                    await self._within(hook, result)
                elif time.perf_counter() - began > hook.timeout_s:
                    self._too_slow(hook)
            if self._is_abandoned:
                raise asyncio.CancelledError  # somebody else has settled this request meanwhile
            lctx._hook_index += 1
            if lctx._stage == "before" and self.response.is_sent():
                break
        self._current = ""

    async def run_hook(self, hook: Hook, *arguments: Any) -> None:
        """One hook with its retries; raises what its last attempt raised."""
        if hook.is_detached:
            self._detach(hook, arguments)
            return
        emit = self._emit
        began = time.perf_counter()
        if emit is not None:
            emit("hook:start", hook.id, kind=hook.kind, level=hook.level, max_attempts=hook.retries + 1)
        attempt = 0
        try:
            while True:
                attempt += 1
                try:
                    await self._call_hook(hook, arguments)
                    break
                except asyncio.CancelledError:
                    raise
                except BaseException as exc:
                    # An answer that the hook decided on does not get better by asking again.
                    if attempt > hook.retries or isinstance(exc, (HandlerError, RequestError)) or self._is_over(hook):
                        raise
                    if emit is not None:
                        emit("hook:retry", hook.id, error=exc, attempt=attempt)
                await asyncio.sleep(min(hook.backoff_s * 2 ** (attempt - 1), MAX_BACKOFF_S))
        except BaseException as exc:
            if emit is not None and not self._is_over(hook):
                error = "cancelled" if isinstance(exc, asyncio.CancelledError) else exc
                emit("hook:error", hook.id, began=began, error=error, attempt=attempt)
            raise
        if emit is not None and not self._is_over(hook):
            emit("hook:end", hook.id, began=began, attempt=attempt)

    def _is_over(self, hook: Hook) -> bool:
        """Whether the request was settled without this hook, which did not react to being cancelled."""
        return self._is_abandoned and hook.kind != "catch"

    async def _call_hook(self, hook: Hook, arguments: tuple[Any, ...]) -> None:
        if hook.is_async:
            await self._within(hook, hook.function(*arguments))
        elif hook.is_threaded:
            await self._within(hook, self._lifecycle.threads.run(hook.function, *arguments))
        else:
            began = time.perf_counter()
            result = hook.function(*arguments)
            if inspect.isawaitable(result):
                await self._within(hook, result)
            elif time.perf_counter() - began > hook.timeout_s:
                self._too_slow(hook)

    async def _within(self, hook: Hook, work: Awaitable[Any]) -> None:
        limit = asyncio.timeout(hook.timeout_s)
        try:
            async with limit:
                await work
        except TimeoutError:
            if not limit.expired():
                raise
        if limit.expired():  # also when it swallowed its cancellation
            self._too_slow(hook)

    @staticmethod
    def _too_slow(hook: Hook) -> NoReturn:
        raise HookTimeout(f"the {hook.kind} hook {hook.id!r} did not finish within {hook.timeout_s:g} s")

    def _detach(self, hook: Hook, arguments: tuple[Any, ...]) -> None:
        lifecycle, emit, request_id = self._lifecycle, self._emit, self.lctx.request_id
        if len(lifecycle.detached) >= MAX_DETACHED:
            log.error("detached_hook_refused", request_id=request_id, hook=hook.id, limit=MAX_DETACHED)
            return

        async def run() -> None:
            began = time.perf_counter()
            if emit is not None:
                emit("hook:start", hook.id, kind=hook.kind, level=hook.level, detached=True)
            try:
                await self._call_hook(hook, arguments)
            except BaseException as exc:
                log.error("detached_hook_failed", request_id=request_id, hook=hook.id, exc_info=exc)
                if emit is not None:
                    emit("hook:error", hook.id, began=began, error=exc, detached=True)
                if isinstance(exc, asyncio.CancelledError):
                    raise
            else:
                if emit is not None:
                    emit("hook:end", hook.id, began=began, detached=True)

        task = unowned_task(run(), f"hook {hook.id}")  # it may outlive the request
        lifecycle.detached.add(task)
        task.add_done_callback(lifecycle.detached.discard)

    # -- failure --------------------------------------------------------------------------------

    async def _fail(self, exc: BaseException) -> Reply | None:
        """From any failure to the reply that stands for it."""
        control, lctx, emit, call = self.control, self.lctx, self._emit, self._plan.call
        control.is_settling = True
        self.failure = exc
        await note_cancellation(is_delivered=isinstance(exc, asyncio.CancelledError))
        stage, lctx._stage = lctx._stage, "failed"
        error = self._classify(exc)
        lctx._is_timed_out = isinstance(error, DeadlineExceeded)
        if emit is not None:
            if self._handler_began:
                emit("handler:error", call.id, began=self._handler_began, error=exc)
                self._handler_began = 0.0
            if isinstance(exc, asyncio.CancelledError):
                emit("request:cancelled", by=control.cancel_reason or "handler")
        # An answer that was given in whole stands. It may say that something was done: nothing is undone.
        stands = stage == "handler" and self.response.is_sent() and self._stream is None
        stands = stands and not isinstance(error, InvalidResponse) and self._is_valid_answer()
        answer, self.response = self.response, Response(None)
        answer.close("the request has failed")
        # What was prepared is dropped; catch hooks start from a clean answer, if they may give one.
        lctx.response = self.response
        if stands or self._channel is not None or not error.may_be_answered:
            self.response.close("the answer to this request is decided already")
        try:
            if lctx._lifecycle is not None and lctx._is_timed_out:
                await run_isolated(self, lctx._lifecycle.timeouts, "timeout_callback_failed")
            lctx.enter("error")
            self._log_failure(exc, error, has_answered=stands)
            told = error if isinstance(exc, asyncio.CancelledError) else exc
            if lctx._lifecycle is not None and lctx._lifecycle.errors:
                await run_isolated(self, lctx._lifecycle.errors, "error_callback_failed", told)
            if lctx._compensations and not stands:
                await run_compensations(self, lctx._compensations)
            if self._plan.catch or lctx._catch is not None or self._plan.error_middleware:
                await run_catch_hooks(self, told)
        except asyncio.CancelledError:
            log.warning("settling_cut_short", request_id=lctx.request_id, handler=call.id)
        except BaseException as bug:
            log.error("settling_failed", request_id=lctx.request_id, handler=call.id, exc_info=bug)
        if stands:
            self.response = lctx.response = answer
            return await self._answer(None)
        return await self._answer(error)

    def _is_valid_answer(self) -> bool:
        """Whether an answer that was followed by a failure is of the declared type, and may leave all the same."""
        try:
            self._validate_response()
        except InvalidResponse as exc:
            fields = {"request_id": self.lctx.request_id, "handler": self._plan.call.id}
            log.error("response_invalid", **fields, error=str(exc))
            return False
        return True

    def _classify(self, exc: BaseException) -> GatiError:
        """The error that the client gets for what was raised; see the table in the handler guide."""
        reason = self.control.cancel_reason
        if isinstance(exc, asyncio.CancelledError):
            if reason == "deadline":
                if self.control.is_own_limit:
                    return HandlerTimeout(f"the handler did not finish within {self._plan.call.timeout_s:g} s")
                return DeadlineExceeded("the handler did not finish before the deadline")
            if reason == "leaving":
                return ShuttingDown("the worker had to leave before the handler finished")
            if reason:
                return ClientGone("nobody waits for the answer")
            return GatiError(_GENERIC)
        if isinstance(exc, (HandlerError, RequestError, ChannelClosed, DeadlineExceeded)):
            return exc
        if isinstance(exc, HookTimeout):
            return HookTimeout("a hook of this request did not finish in time")  # which one is for the log
        if isinstance(exc, InvalidResponse):
            return InvalidResponse(_GENERIC)
        return GatiError(_GENERIC)

    def _log_failure(self, exc: BaseException, error: GatiError, *, has_answered: bool) -> None:
        fields = {"request_id": self.lctx.request_id, "handler": self._plan.call.id}
        if self._current:
            fields["hook"] = self._current
        if has_answered:
            if not isinstance(exc, (asyncio.CancelledError, ChannelClosed)):
                log.error("handler_failed_after_response", **fields, exc_info=exc)
        elif isinstance(exc, asyncio.CancelledError):
            if not self.control.cancel_reason:
                log.error("handler_cancelled_itself", **fields, exc_info=exc)
            elif isinstance(error, DeadlineExceeded):
                limit = f"its own {self._plan.call.timeout_s:g} s" if self.control.is_own_limit else "the request's"
                log.warning("handler_timed_out", **fields, limit=limit)
        elif isinstance(exc, HandlerError):
            if exc.status_code >= 500:
                log.warning("handler_answered_error", **{**exc.facts, **fields, "error": described(exc)})
        elif isinstance(exc, InvalidResponse):
            log.error("response_invalid", **fields, error=str(exc))
        elif isinstance(exc, ChannelClosed):
            log.info("client_left_stream", **fields, error=str(exc))
        elif not isinstance(exc, RequestError):
            log.error("handler_failed", **fields, exc_info=exc)

    def abandon(self) -> None:
        """The handler does not react to being cancelled: from now on its task is not listened to.

        The caller then runs `give_up` in a task of its own.
        """
        if self._emit is not None and self._current:
            self._emit("hook:error", self._current, error="abandoned")
        self._is_abandoned = True

    async def give_up(self) -> Reply | None:
        """Settle an abandoned run as if the cancellation had been obeyed."""
        log.error("cancellation_ignored", request_id=self.lctx.request_id, handler=self._plan.call.id)
        owner = self.own_what_follows()
        try:
            return await self._fail(asyncio.CancelledError())
        finally:
            self.own_no_more(owner)

    # -- the answer -----------------------------------------------------------------------------

    async def _answer(self, error: GatiError | None) -> Reply | None:
        if self._channel is not None:
            reply = None
            await self._end_channel(error)
        else:
            if error is None:
                error = self._unanswered()
            if error is None or self.response.is_sent():
                status, headers, body = self.response.parts()
                reply = Reply(
                    PROTOCOL,
                    self.lctx.request_id,
                    status,
                    headers,
                    body,
                    "",
                    self._timing(),
                    False,
                    None,
                    self._plan.call.path,
                )
            elif isinstance(error, ClientGone):
                reply = None
            else:
                reply = self._problem(error)
        if self._emit is not None:
            status = reply.status if reply is not None else 0
            self._emit("request:end", status=status)
            if self._emit.kept is not None:
                store_run(self, status)
        # It leads back to this run, and what refers to itself only the garbage collector frees: measured at a
        # third of a worker's time and twice its memory.
        self.response._open_stream = None
        return reply

    def _unanswered(self) -> GatiError | None:
        """What is wrong with a stream or socket that never began, although nothing was raised."""
        if self._stream is not None and self._stream.has_ended:
            self.response.discard()
            return GatiError(_GENERIC)  # cut before its first part: there is nothing to cut but the answer
        if self.lctx._websocket is not None and not self.response.is_sent():
            return HandlerError("the handler did not accept the connection", 403, code="websocket.not_accepted")
        return None

    def _problem(self, error: GatiError) -> Reply:
        request_id = self.lctx.request_id
        try:
            reply = problem_reply(error, request_id, self._timing())
        except Exception as exc:  # its text or facts are nothing that can be sent
            log.error("error_not_sendable", request_id=request_id, handler=self._plan.call.id, exc_info=exc)
            reply = problem_reply(GatiError(_GENERIC), request_id, self._timing())
        reply.route = self._plan.call.path
        reply.headers += self.response.added_headers()  # of a catch hook that does not answer itself
        return reply

    async def _end_channel(self, error: GatiError | None) -> None:
        """End what frames began."""
        socket: WebSocket | None = self.lctx._websocket
        if socket is not None:
            socket.finish(error)
        elif self._stream is not None:
            if error is None:
                await self._stream.end()
            else:
                self._stream.abort(error.code)

    def _timing(self) -> Timing:
        now_ms = int(self._lifecycle.clock() * 1000)
        return Timing(self.request.received_ms, self._routed_ms, self._started_ms, now_ms)

    # -- streams and sockets --------------------------------------------------------------------

    def _open_stream(self) -> BodyStream:
        self._stream = BodyStream(self._begin_stream)
        return self._stream

    def _begin_stream(self) -> Channel:
        status, headers, _ = self.response.parts()
        return self._begin_channel(status, headers)

    def _open_socket(self, headers: list[tuple[str, str]]) -> Channel:
        return self._begin_channel(101, headers)

    def _begin_channel(self, status: int, headers: list[tuple[str, str]]) -> Channel:
        channels = self._lifecycle.channels
        if channels is None:
            raise GatiError("this handler does not run on a fabric: nothing can be streamed")
        if self.control.is_settling:
            raise ChannelClosed("the request has ended")
        request_id = self.lctx.request_id
        channel = channels.open(request_id, self.request.reply_to)
        reply = Reply(PROTOCOL, request_id, status, headers, b"", "", self._timing(), True, None, self._plan.call.path)
        reply.channel = channel.subject
        try:
            self.control.send_head(reply, channel)
        except BaseException:
            channels.close(request_id)
            raise
        self._channel = channel
        # From here on the handler's own limit counts, not the client's patience for a first byte.
        self.lctx.deadline_ms = self._started_ms + int(self._plan.call.timeout_s * 1000)
        return channel

    @property
    def channel(self) -> Channel | None:
        """The open channel of a stream or socket."""
        return self._channel

    # -- the end --------------------------------------------------------------------------------

    @property
    def needs_cleanup(self) -> bool:
        """Whether `cleanup` has anything to do; a plain request has nothing."""
        lctx = self.lctx
        return bool(
            self.tasks
            or self._channel is not None
            or lctx._lifecycle is not None
            or lctx._operations is not None
            or lctx._topics is not None
            or lctx._websocket is not None
        )

    async def cleanup(self) -> None:
        """Run the cleanup callbacks in their order and release what the request holds; once."""
        if self._is_cleaned:
            return
        self._is_cleaned = True
        lctx = self.lctx
        lctx._stage = "cleanup"
        self.response.close("the request has ended")
        await note_cancellation(is_delivered=False)
        steps: list[tuple[Callable[[], Any], bool]] = []
        if lctx._lifecycle is not None:
            steps += [(callback, True) for callback in lctx._lifecycle.cleanups]
        if lctx._websocket is not None:
            steps.append((lctx._websocket.release, False))
        if lctx._operations is not None:
            steps.append((lctx._operations.aclose, False))
        if lctx._topics is not None:
            steps.append((lctx._topics.aclose, False))
        was_cut = False
        for step, is_callback in steps:
            try:
                await run_isolated(self, [step], "cleanup_callback_failed" if is_callback else "release_failed")
            except asyncio.CancelledError:
                was_cut = True  # whatever cuts one short, the others have their turn
        if self._channel is not None and self._lifecycle.channels is not None:
            self._lifecycle.channels.close(lctx.request_id)
        if self.tasks:
            await self._end_leaked_tasks()
        lctx.clean()
        if was_cut:
            raise asyncio.CancelledError

    async def _end_leaked_tasks(self) -> None:
        current = asyncio.current_task()
        leaked = [task for task in self.tasks or () if task is not current and not task.done()]
        if not leaked:
            return
        names = sorted({getattr(task.get_coro(), "__qualname__", task.get_name()) for task in leaked})
        log.warning(
            "tasks_leaked",
            request_id=self.lctx.request_id,
            handler=self._plan.call.id,
            tasks=names[:10],
            hint="they were cancelled; await them, or give them to gctx.spawn",
        )
        for task in leaked:
            task.cancel()
        await asyncio.wait(leaked, timeout=_LEAK_GRACE_S)

    # -- for the parts beside this module -------------------------------------------------------

    @property
    def emit(self) -> Emitter | None:
        """What emits this request's events; None when nobody observes it."""
        return self._emit

    @property
    def plan(self) -> Plan:
        """What runs."""
        return self._plan

    @property
    def lifecycle(self) -> Lifecycle:
        """What it shares with other runs."""
        return self._lifecycle


_GENERIC = "The handler failed; the log has the details under this request id."
