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
from collections.abc import Callable
from typing import Any

import structlog

from gati_core.contexts import LocalContext, TaskOwner, WebSocket
from gati_core.errors import (
    ChannelClosed,
    ClientGone,
    DeadlineExceeded,
    GatiError,
    HandlerError,
    InvalidBody,
    InvalidResponse,
    TransformFailed,
)
from gati_core.fabric import Channel
from gati_core.lifecycle.bounding import leave_alone
from gati_core.lifecycle.events import Emitter
from gati_core.lifecycle.failing import (
    GENERIC,
    classified,
    log_failure,
    note_cancellation,
    release,
    run_catch_hooks,
    run_compensations,
    run_isolated,
)
from gati_core.lifecycle.hooking import run_after, run_before
from gati_core.lifecycle.middleware import run_through
from gati_core.lifecycle.plan import Plan
from gati_core.lifecycle.request import Request
from gati_core.lifecycle.response import Response
from gati_core.lifecycle.shared import Control, Lifecycle
from gati_core.lifecycle.storing import store_run
from gati_core.lifecycle.stream import BodyStream
from gati_core.lifecycle.transforming import Chain
from gati_core.lifecycle.validation import RequestReader
from gati_core.wire import HEAD_ONLY, PROTOCOL, Reply, RequestDescriptor, Timing, problem_reply

log = structlog.get_logger(__name__)

_LEAK_GRACE_S = 1.0


class HandlerRun(TaskOwner):
    """One request's way through its handler. See the module."""

    __slots__ = (
        "_chain",
        "_channel",
        "_handler_began",
        "_is_cleaned",
        "_routed_ms",
        "_started_ms",
        "_stream",
        "control",
        "current_hook",
        "emit",
        "failure",
        "is_abandoned",
        "lctx",
        "lifecycle",
        "plan",
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
        tsv: str = "",
        source: str = "",
        chain: Chain | None = None,
    ) -> None:
        self.tasks = None
        self._chain = chain
        self.lifecycle = lifecycle
        self.plan = plan
        self._routed_ms = routed_ms
        self.control = control
        self._started_ms = int(lifecycle.clock() * 1000)
        self.emit: Emitter | None = lifecycle.observers.emitter(descriptor, plan.call.id)
        self._handler_began = 0.0
        self.current_hook = ""
        self._is_cleaned = False
        self.failure: BaseException | None = None
        """What made the request fail, as it was raised."""
        self.is_abandoned = False
        self._stream: BodyStream | None = None
        self._channel: Channel | None = None
        self.request: Request[Any] = Request(descriptor, params, raw_body)
        self.response: Response[Any] = Response(None if plan.call.is_websocket else self._open_stream)
        self.lctx = lctx = LocalContext(
            descriptor,
            deadline_ms=deadline_ms,
            started_ms=self._started_ms,
            attempt=attempt,
            version=tsv or lifecycle.version,
            source=source,
            instance_id=lifecycle.instance_id,
            region=lifecycle.region,
            clock=lifecycle.clock,
            topics=lifecycle.topics,
            uses_threads=not plan.call.is_async,
        )
        if chain is not None:
            lctx._chain = chain
        lctx.request = self.request
        lctx.response = self.response
        if plan.call.is_websocket:
            lctx._websocket = WebSocket(lctx, self._open_socket)

    # -- the way through ------------------------------------------------------------------------

    async def execute(self) -> Reply | None:
        """Run it all. Returns the reply to publish, or None when its frames were the answer, or nobody waits."""
        plan, lctx, emit = self.plan, self.lctx, self.emit
        call = plan.call
        owner = self.own_what_follows()
        try:
            if call.request_reader is not None or emit is not None:
                self._validate_request()
            lctx.phase = "validated"  # nobody can have asked yet to be told
            if plan.has_before:
                await run_before(self)
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
                        result = await call.function(self.request, self.response, self.lifecycle.gctx, lctx)
                    else:
                        result = await self._run_in_thread()
                except GeneratorExit as exc:
                    raise RuntimeError("the handler raised GeneratorExit") from exc
                if result is not None:
                    self._ignore(result)
                if self.is_abandoned:
                    return None
                if self.control.cancel_reason and not self.response.is_sent() and self._channel is None:
                    # It swallowed its cancellation and gave no answer: nothing that could pass for success.
                    raise asyncio.CancelledError
                self._handler_ended()
            if call.response_check is not None:
                self._validate_response()
            if plan.after or lctx._after is not None:
                await run_after(self)
            if self._chain is not None:
                await self._translate(self._chain)
        except BaseException as exc:
            if self.is_abandoned:
                return None
            if isinstance(exc, asyncio.CancelledError) and self.control.cancel_reason == HEAD_ONLY:
                return await self._end_early(exc)
            return await self._fail(exc)
        finally:
            self.own_no_more(owner)
        self.control.is_settling = True
        lctx.enter("completed")
        return await self._answer(None)

    async def _call_handler(self) -> object:
        call = self.plan.call
        if not call.is_async:
            return await self._run_in_thread()
        result: object = await call.function(self.request, self.response, self.lifecycle.gctx, self.lctx)
        return result

    async def _run_in_thread(self) -> object:
        call, lifecycle = self.plan.call, self.lifecycle
        result = await lifecycle.threads.run(call.function, self.request, self.response, lifecycle.gctx, self.lctx)
        return await result if inspect.isawaitable(result) else result

    async def _end_early(self, exc: BaseException) -> Reply | None:
        """The client asked for the head of a stream and has it: the rest is not wanted, and nothing has failed."""
        self.control.is_settling = True
        await note_cancellation(is_delivered=True)
        if self._handler_began:
            self._handler_ended()
        self.lctx.enter("completed")
        return await self._answer(None)

    def _handler_ended(self) -> None:
        if self.emit is not None:
            self.emit("handler:end", self.plan.call.id, began=self._handler_began)
            self._handler_began = 0.0

    def _ignore(self, result: object) -> None:
        call = self.plan.call
        if call.id not in self.lifecycle.odd_returns:
            self.lifecycle.odd_returns.add(call.id)  # once: it would be said for every request
            log.warning("return_value_ignored", handler=call.id, type=type(result).__name__, hint="answer through res")

    # -- validation -----------------------------------------------------------------------------

    def _validate_request(self) -> None:
        emit, reader = self.emit, self.plan.call.request_reader
        if emit is None:
            if reader is not None:
                if self._chain is None:
                    reader.fill(self.request)
                else:
                    self._fill_translated(reader, self._chain)
        else:
            began = time.perf_counter()
            emit("validation:start", "request", phase="request")
            try:
                if reader is not None:
                    if self._chain is None:
                        reader.fill(self.request)
                    else:
                        self._fill_translated(reader, self._chain)
            except BaseException as exc:
                emit("validation:error", "request", began=began, error=exc, phase="request")
                raise
            emit("validation:end", "request", began=began, phase="request")

    def _fill_translated(self, reader: RequestReader, chain: Chain) -> None:
        try:
            reader.fill(self.request)
        except InvalidBody as exc:
            raise chain.blamed_for(exc) from exc

    def _validate_response(self) -> None:
        check, emit = self.plan.call.response_check, self.emit
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

    async def _translate(self, chain: Chain) -> None:
        """A successful answer as the client's version knows it; streams stay as they are."""
        status, kind, body = self.response.checkable()
        if kind == "json" and 200 <= status < 300 and self._channel is None:
            self.response.replace_json(await chain.outbound(self.lifecycle, status, body))

    # -- failure --------------------------------------------------------------------------------

    async def _fail(self, exc: BaseException) -> Reply | None:
        """From any failure to the reply that stands for it."""
        control, lctx, emit, call = self.control, self.lctx, self.emit, self.plan.call
        control.is_settling = True
        self.failure = exc
        await note_cancellation(is_delivered=isinstance(exc, asyncio.CancelledError))
        stage, lctx._stage = lctx._stage, "failed"
        error = classified(self, exc)
        lctx._is_timed_out = isinstance(error, DeadlineExceeded)
        if emit is not None:
            if self._handler_began:
                emit("handler:error", call.id, began=self._handler_began, error=exc)
                self._handler_began = 0.0
            if isinstance(exc, asyncio.CancelledError):
                emit("request:cancelled", by=control.cancel_reason or "handler")
        # An answer that was given in whole stands. It may say that something was done: nothing is undone.
        stands = stage == "handler" and self.response.is_sent() and self._stream is None
        stands = stands and not isinstance(error, (InvalidResponse, TransformFailed)) and self._is_valid_answer()
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
            told = error if isinstance(exc, asyncio.CancelledError) else exc
            if lctx._lifecycle is not None and lctx._lifecycle.errors:
                await run_isolated(self, lctx._lifecycle.errors, "error_callback_failed", told)
            if lctx._compensations and not stands:
                await run_compensations(self, lctx._compensations)
            if self.plan.catch or lctx._catch is not None or self.plan.error_middleware:
                await run_catch_hooks(self, told)
        except asyncio.CancelledError:
            log.warning("settling_cut_short", request_id=lctx.request_id, handler=call.id)
        except BaseException as bug:
            log.error("settling_failed", request_id=lctx.request_id, handler=call.id, exc_info=bug)
        log_failure(self, exc, error, has_answered=stands)
        if stands:
            self.response = lctx.response = answer
            return await self._answer(None)
        return await self._answer(error)

    def _is_valid_answer(self) -> bool:
        """Whether an answer that was followed by a failure is of the declared type, and may leave all the same."""
        try:
            self._validate_response()
        except InvalidResponse as exc:
            fields = {"request_id": self.lctx.request_id, "handler": self.plan.call.id}
            log.error("response_invalid", **fields, error=str(exc))
            return False
        return True

    def abandon(self) -> None:
        """The handler does not react to being cancelled: from now on its task is not listened to.

        The caller then runs `give_up` in a task of its own.
        """
        if self.emit is not None and self.current_hook:
            self.emit("hook:error", self.current_hook, error="abandoned")
        self.is_abandoned = True

    async def give_up(self) -> Reply | None:
        """Settle an abandoned run as if the cancellation had been obeyed."""
        log.error("cancellation_ignored", request_id=self.lctx.request_id, handler=self.plan.call.id)
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
                    self.plan.call.path,
                )
            elif isinstance(error, ClientGone):
                reply = None
            else:
                reply = self._problem(error)
        if self.emit is not None:
            status = reply.status if reply is not None else 0
            self.emit("request:end", status=status)
            if self.emit.kept is not None:
                store_run(self, status)
        # It leads back to this run, and what refers to itself only the garbage collector frees: measured at a
        # third of a worker's time and twice its memory.
        self.response._open_stream = None
        return reply

    def _unanswered(self) -> GatiError | None:
        """What is wrong with a stream or socket that never began, although nothing was raised."""
        if self._stream is not None and self._stream.has_ended:
            self.response.discard()
            return GatiError(GENERIC)  # cut before its first part: there is nothing to cut but the answer
        if self.lctx._websocket is not None and not self.response.is_sent():
            return HandlerError("the handler did not accept the connection", 403, code="websocket.not_accepted")
        return None

    def _problem(self, error: GatiError) -> Reply:
        request_id = self.lctx.request_id
        try:
            reply = problem_reply(error, request_id, self._timing())
        except Exception as exc:  # its text or facts are nothing that can be sent
            log.error("error_not_sendable", request_id=request_id, handler=self.plan.call.id, exc_info=exc)
            reply = problem_reply(GatiError(GENERIC), request_id, self._timing())
        reply.route = self.plan.call.path
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
        now_ms = int(self.lifecycle.clock() * 1000)
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
        channels = self.lifecycle.channels
        if channels is None:
            raise GatiError("this handler does not run on a fabric: nothing can be streamed")
        if self.control.is_settling:
            raise ChannelClosed("the request has ended")
        request_id = self.lctx.request_id
        channel = channels.open(request_id, self.request.reply_to)
        reply = Reply(PROTOCOL, request_id, status, headers, b"", "", self._timing(), True, None, self.plan.call.path)
        reply.channel = channel.subject
        try:
            self.control.send_head(reply, channel)
        except BaseException:
            channels.close(request_id)
            raise
        self._channel = channel
        # From here on the handler's own limit counts, not the client's patience for a first byte.
        self.lctx.deadline_ms = self._started_ms + int(self.plan.call.timeout_s * 1000)
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
        callbacks = lctx._lifecycle.cleanups if lctx._lifecycle is not None else []
        steps: list[Callable[[], Any]] = []
        if lctx._websocket is not None:
            steps.append(lctx._websocket.release)
        if lctx._operations is not None:
            steps.append(self._end_operations)
        if lctx._topics is not None:
            steps.append(lctx._topics.aclose)
        was_cut = False
        owner = self.own_what_follows()  # what callbacks start and forget ends with the request as well
        try:
            for callback in callbacks:
                try:
                    await run_isolated(self, [callback], "cleanup_callback_failed")
                except asyncio.CancelledError:
                    was_cut = True  # whatever cuts one short, the others have their turn
        finally:
            self.own_no_more(owner)
        for step in steps:
            try:
                await release(self, step)
            except asyncio.CancelledError:
                was_cut = True
        if self._channel is not None and self.lifecycle.channels is not None:
            self.lifecycle.channels.close(lctx.request_id)
        if self.tasks:
            await self._end_leaked_tasks()
        lctx.clean()
        if was_cut:
            raise asyncio.CancelledError

    async def _end_operations(self) -> None:
        if self.lctx._operations is not None:
            leave_alone(self.lifecycle, await self.lctx._operations.aclose())

    async def _end_leaked_tasks(self) -> None:
        current = asyncio.current_task()
        leaked = [task for task in self.tasks or () if task is not current and not task.done()]
        if not leaked:
            return
        names = sorted({getattr(task.get_coro(), "__qualname__", task.get_name()) for task in leaked})
        log.warning(
            "tasks_leaked",
            request_id=self.lctx.request_id,
            handler=self.plan.call.id,
            tasks=names[:10],
            hint="they were cancelled; await them, or give them to gctx.spawn",
        )
        for task in leaked:
            task.cancel()
        await asyncio.wait(leaked, timeout=_LEAK_GRACE_S)
        leave_alone(self.lifecycle, leaked)
