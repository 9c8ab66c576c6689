"""Lifecycle events: what is emitted at each stage, nested, to listeners and to the trace stream."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from gati_core import App, Request, Response
from gati_core.errors import BrokerUnavailable
from gati_core.lifecycle import LifecycleEvent, Observers, events
from gati_core.wire import PROTOCOL, TraceRecord, encode
from tests.helpers.handling import Desk, descriptor, shop

SHORT_S = 0.02


class Order(msgspec.Struct):
    sku: str


class Odd(msgspec.Struct):
    """A body type that fails in a way of its own."""

    sku: str

    def __post_init__(self) -> None:
        raise ZeroDivisionError


async def quiet(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...
async def broken(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
    raise ValueError("broken")


def note(gctx: Any, lctx: Any) -> None: ...
def caught(error: Any, gctx: Any, lctx: Any) -> None: ...


def refuse(gctx: Any, lctx: Any) -> None:
    raise ValueError("no")


@pytest.fixture
def desk() -> Desk:
    return Desk(observed=True)


ALWAYS = ["validation:start request", "validation:end request"]


async def test_a_plain_request_is_validated_handled_and_answered(desk: Desk) -> None:
    await desk.handle(shop(quiet))

    assert desk.steps == [*ALWAYS, "handler:start h", "handler:end h", "request:end"]
    assert desk.events[-1].metadata == {"status": 204}


async def test_every_event_says_whose_it_is_and_counts_from_one(desk: Desk) -> None:
    await desk.handle(shop(quiet), request_id="r-9")

    assert {(event.request_id, event.handler) for event in desk.events} == {("r-9", "h")}
    assert [event.seq for event in desk.events] == list(range(1, len(desk.events) + 1))
    assert desk.events == sorted(desk.events, key=lambda event: event.at_us)


async def test_an_end_says_how_long_its_stage_took(desk: Desk) -> None:
    await desk.handle(shop(quiet))

    assert [event.duration_us >= 0 for event in desk.events] == [False, True, False, True, False]


async def test_hooks_are_seen_around_the_handler_with_kind_and_level(desk: Desk) -> None:
    app = App("shop")
    route = app.post("/x", id="h")(quiet)
    app.before(id="b")(note)
    route.after(id="a", retries=3)(note)

    await desk.handle(app)

    assert desk.steps == [
        *ALWAYS,
        *("hook:start b", "hook:end b", "handler:start h", "handler:end h", "hook:start a", "hook:end a"),
        "request:end",
    ]
    starts = [event.metadata for event in desk.events if event.type == "hook:start"]
    assert starts == [
        {"kind": "before", "level": "global", "max_attempts": 1},
        {"kind": "after", "level": "route", "max_attempts": 4},
    ]


async def test_each_retry_is_seen_with_its_attempt_and_error(desk: Desk) -> None:
    app = shop(quiet)
    app.before(id="b", retries=1, backoff_s=0)(refuse)

    await desk.handle(app)

    assert desk.steps[2:] == ["hook:start b", "hook:retry b", "hook:error b", "request:end"]
    assert [(event.metadata.get("attempt"), event.error) for event in desk.events[3:5]] == [
        (1, "ValueError: no"),
        (2, "ValueError: no"),
    ]


async def test_a_failed_handler_is_followed_by_what_runs_on_failure(desk: Desk) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.register_compensating_action(lambda: None, id="good")
        lctx.register_compensating_action(lambda: 1 / 0, id="bad")
        raise ValueError("broken")

    app = shop(handler)
    app.catch(id="c")(caught)
    await desk.handle(app)

    assert desk.steps[2:] == [
        *("handler:start h", "handler:error h"),
        *("compensation:start bad", "compensation:error bad", "compensation:alert bad"),
        *("compensation:start good", "compensation:end good", "hook:start c", "hook:end c", "request:end"),
    ]
    assert desk.events[3].error == "ValueError: broken"


async def test_a_body_that_does_not_fit_ends_the_validation_with_an_error(desk: Desk) -> None:
    async def handler(req: Request[Order], res: Any, gctx: Any, lctx: Any) -> None: ...

    await desk.handle(shop(handler), body=b"{")

    assert desk.steps == ["validation:start request", "validation:error request", "request:end"]
    assert desk.events[1].metadata == {"phase": "request"}


async def test_a_body_type_that_fails_in_its_own_way_ends_the_validation_as_well(desk: Desk) -> None:
    async def handler(req: Request[Odd], res: Any, gctx: Any, lctx: Any) -> None: ...

    reply = await desk.handle(shop(handler), body=b'{"sku": "ada"}')

    assert (reply.status, desk.steps) == (500, ["validation:start request", "validation:error request", "request:end"])


@pytest.mark.parametrize(("answer", "ending"), [({"sku": "ada"}, "end"), ({"sku": 7}, "error")])
async def test_the_answer_is_validated_after_the_handler(desk: Desk, answer: Any, ending: str) -> None:
    async def handler(req: Any, res: Response[Order], gctx: Any, lctx: Any) -> None:
        res.json(answer)

    await desk.handle(shop(handler))

    assert desk.steps[3:] == [
        *("handler:end h", "validation:start response", f"validation:{ending} response", "request:end")
    ]


@pytest.mark.parametrize("where", ["handler", "hook", "pause", "after"])
async def test_a_cancelled_request_closes_the_stage_it_was_in_and_says_who_cancelled(desk: Desk, where: str) -> None:
    started = asyncio.Event()

    async def wait_here(name: str) -> None:
        if name == where:
            started.set()
            await asyncio.Event().wait()

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        await wait_here("handler")

    app = shop(handler)

    @app.before(id="b", retries=1, backoff_s=100)
    async def before(gctx: Any, lctx: Any) -> None:
        await wait_here("hook")
        if where == "pause":
            asyncio.get_running_loop().call_soon(started.set)
            raise ValueError

    @app.after(id="a")
    async def after(gctx: Any, lctx: Any) -> None:
        await wait_here("after")

    underway = desk.begin(app)
    await started.wait()
    underway.cancel("client_gone")
    assert await underway.reply() is None

    cut = {"handler": "handler:error h", "after": "hook:error a"}.get(where, "hook:error b")
    assert desk.steps[-3:] == [cut, "request:cancelled", "request:end"]
    assert desk.events[-2].metadata == {"by": "client_gone"}


async def test_a_detached_hook_is_seen_and_marked(desk: Desk) -> None:
    app = shop(quiet)
    app.before(detached=True, id="d")(note)
    app.before(detached=True, id="e")(refuse)

    await desk.handle(app)
    await asyncio.gather(*desk.lifecycle.detached)

    mine = [(event.type, event.stage) for event in desk.events if event.metadata.get("detached")]
    assert mine == [("hook:start", "d"), ("hook:end", "d"), ("hook:start", "e"), ("hook:error", "e")]


# -- who observes -------------------------------------------------------------------------------


async def test_nothing_is_built_when_nobody_observes() -> None:
    desk = Desk()
    underway = desk.begin(shop(quiet), flags=["trace"])
    await underway.reply()

    assert underway.run.emit is None


@pytest.mark.parametrize(
    "error", [ValueError(), SystemExit(), asyncio.CancelledError()], ids=lambda e: type(e).__name__
)
async def test_a_listener_that_raises_disturbs_nobody(desk: Desk, error: BaseException) -> None:
    def bad(event: LifecycleEvent) -> None:
        raise error

    heard: list[str] = []
    desk.lifecycle.observers.listen(bad)
    desk.lifecycle.observers.listen(lambda event: heard.append(event.type))

    with capture_logs() as lines:
        reply = await desk.handle(shop(quiet))

    assert (reply.status, len(heard)) == (204, 5)
    assert {line["event"] for line in lines} == {"event_listener_failed"}


async def test_a_listener_that_leaves_is_not_called_again_and_nobody_is_skipped() -> None:
    desk, heard = Desk(), []
    observers = desk.lifecycle.observers

    def once(event: LifecycleEvent) -> None:
        heard.append("once")
        observers.forget(once)

    observers.listen(once)
    observers.listen(lambda event: heard.append("always"))
    await desk.handle(shop(quiet))

    assert heard == ["once", *["always"] * 5]


class Unreadable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (Unreadable(), "Unreadable: (its text cannot be shown)"),
        (ValueError("\udc80"), "ValueError: ?"),
        (ValueError("x" * 5000), "ValueError: " + "x" * 1988),
    ],
    ids=["no text", "no utf-8", "too much"],
)
async def test_the_error_of_an_event_is_text_that_can_be_sent(desk: Desk, error: Exception, text: str) -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        raise error

    reply = await desk.handle(shop(handler))

    assert (reply.status, desk.events[3].error) == (500, text)


# -- the trace stream ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "is_traced"), [(["trace"], True), (["beta", "trace"], True), (["beta"], False), ([], False)]
)
async def test_only_requests_with_the_flag_are_traced(flags: list[str], is_traced: bool) -> None:
    records: list[TraceRecord] = []
    desk = Desk(observers=Observers(instance="i-1", trace=records.append))

    await desk.handle(shop(quiet), flags=flags)

    assert bool(records) is is_traced


async def test_a_trace_record_is_the_event_as_it_travels() -> None:
    records: list[TraceRecord] = []
    desk = Desk(observed=True, observers=Observers(instance="i-1", trace=records.append))

    await desk.handle(shop(broken), flags=["trace"])

    assert [(each.event, each.stage, each.error, each.seq, each.at_us, each.duration_us) for each in records] == [
        (each.type, each.stage, each.error, each.seq, each.at_us, each.duration_us) for each in desk.events
    ]
    assert {(each.protocol, each.request_id, each.source, each.instance) for each in records} == {
        (PROTOCOL, "r-1", "worker", "i-1")
    }
    assert all(msgspec.msgpack.decode(encode(each), type=TraceRecord) == each for each in records)


async def test_a_trace_that_cannot_be_kept_is_counted_and_the_request_goes_on() -> None:
    def away(record: TraceRecord) -> None:
        raise BrokerUnavailable("no broker is connected")

    observers = Observers(trace=away)

    assert (await Desk(observers=observers).handle(shop(quiet), flags=["trace"])).status == 204
    assert observers.dropped == 5


def test_one_request_emits_no_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[LifecycleEvent] = []
    observers = Observers()
    observers.listen(heard.append)
    monkeypatch.setattr(events, "MAX_EVENTS", 3)
    emit = observers.emitter(descriptor(), "h")
    assert emit is not None

    for _ in range(10):
        emit("hook:start", "x")

    assert len(heard) == 3


def test_beyond_the_limit_what_was_told_to_begin_is_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[LifecycleEvent] = []
    observers = Observers()
    observers.listen(heard.append)
    monkeypatch.setattr(events, "MAX_EVENTS", 2)
    emit = observers.emitter(descriptor(), "h")
    assert emit is not None

    emit("handler:start", "h")
    emit("hook:start", "a")
    for name in ("b", "b", "c"):
        emit("hook:start", name)
        emit("hook:retry", name)
        emit("hook:end", name)
    emit("hook:error", "a")
    emit("handler:end", "h")
    emit("request:end", status=200)

    assert [(each.type, each.stage) for each in heard] == [
        ("handler:start", "h"),
        ("hook:start", "a"),
        ("hook:error", "a"),
        ("handler:end", "h"),
        ("request:end", ""),
    ]
