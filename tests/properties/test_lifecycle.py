"""Properties of the lifecycle: what runs around a handler, in which order, and what no failure may do."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gati_core import App, Request, Response
from gati_core.contexts import LocalContext, Operation, from_bytes, to_bytes
from gati_core.errors import Forbidden, HandlerError
from gati_core.lifecycle import LifecycleEvent
from gati_core.wire import Reply, RequestDescriptor
from gati_testing import strategies
from gati_testing.strategies import HOOK_FORMS, HOOK_LEVELS, HookShape
from tests.helpers.handling import WITHIN_S, Desk, descriptor, shop

FAILURES: dict[str, Callable[[], BaseException]] = {
    "value": lambda: ValueError("broken"),
    "handler": lambda: HandlerError("sold out", 409),
    "request": lambda: Forbidden("not you"),
    "exit": lambda: SystemExit(1),
    "cancelled": asyncio.CancelledError,
}
many = settings(max_examples=100, deadline=None)


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Hundreds of stack traces are meant here, and to print them takes longer than everything else."""
    with capture_logs():
        yield


class Order(msgspec.Struct):
    sku: str
    count: int = 1


def is_order(value: object) -> bool:
    """The rule of `Order`, said once more."""
    return isinstance(value, dict) and type(value.get("sku")) is str and type(value.get("count", 1)) is int


def orders() -> st.SearchStrategy[dict[str, object]]:
    """Documents that are orders; others share some of their keys."""
    more = st.dictionaries(strategies.text().filter(lambda key: key not in ("sku", "count")), strategies.json_values())
    return st.builds(
        lambda sku, count, more: {**more, "sku": sku, **count},
        strategies.text(),
        st.just({}) | st.fixed_dictionaries({"count": st.integers(0, 9)}),
        more,
    )


def documents() -> st.SearchStrategy[object]:
    """Orders, what resembles them, and anything else."""
    near = st.fixed_dictionaries({"sku": strategies.json_values()}, optional={"count": strategies.json_values()})
    return orders() | near | strategies.json_values()


def made(shape: HookShape, run: Callable[[Any], None]) -> Callable[..., Any]:
    """A real function of that form; `run(lctx)` is its body."""
    failed = itertools.count()

    def body(*arguments: Any) -> None:
        run(arguments[-1])
        if next(failed) < shape.failures:
            raise ConnectionError("not yet")

    if shape.kind == "catch":

        def plain(error: Any, gctx: Any, lctx: Any) -> None:
            body(lctx)

        async def waits(error: Any, gctx: Any, lctx: Any) -> None:
            body(lctx)

        def setting(_setting: int, error: Any, gctx: Any, lctx: Any) -> None:
            body(lctx)
    else:

        def plain(gctx: Any, lctx: Any) -> None:  # type: ignore[misc]
            body(lctx)

        async def waits(gctx: Any, lctx: Any) -> None:  # type: ignore[misc]
            body(lctx)

        def setting(_setting: int, gctx: Any, lctx: Any) -> None:  # type: ignore[misc]
            body(lctx)

    forms: dict[str, Callable[..., Any]] = {
        "def": plain,
        "threaded": plain,
        "async def": waits,
        "partial": functools.partial(setting, 1),
        "callable object": _callable_object(shape.kind, body),
        "async callable object": _async_callable_object(shape.kind, body),
    }
    return forms[shape.form]


def _callable_object(kind: str, body: Callable[..., None]) -> Callable[..., Any]:
    class Around:
        def __call__(self, gctx: Any, lctx: Any) -> None:
            body(lctx)

    class Catch:
        def __call__(self, error: Any, gctx: Any, lctx: Any) -> None:
            body(lctx)

    return Catch() if kind == "catch" else Around()


def _async_callable_object(kind: str, body: Callable[..., None]) -> Callable[..., Any]:
    class Around:
        async def __call__(self, gctx: Any, lctx: Any) -> None:
            body(lctx)

    class Catch:
        async def __call__(self, error: Any, gctx: Any, lctx: Any) -> None:
            body(lctx)

    return Catch() if kind == "catch" else Around()


def hooked(handler: Callable[..., Any], shapes: list[HookShape], note: Callable[[str, Any], None]) -> App:
    """An app with these hooks, named `<place>`; local ones are registered by a first before hook, `first`."""
    app = App("shop")
    route = app.post("/orders/{id}", id="h")(handler)

    def options(place: int, shape: HookShape) -> dict[str, Any]:
        return {"id": str(place), "retries": shape.retries, "backoff_s": 0, "threaded": shape.form == "threaded"}

    def function(place: int, shape: HookShape) -> Callable[..., Any]:
        return made(shape, lambda lctx: note(str(place), lctx))

    @app.before
    def first(gctx: Any, lctx: Any) -> None:
        for place, shape in enumerate(shapes):
            if shape.level == "local":
                getattr(lctx, shape.kind)(function(place, shape), **options(place, shape))

    for place, shape in enumerate(shapes):
        if shape.level != "local":
            owner = app if shape.level == "global" else route
            getattr(owner, shape.kind)(**options(place, shape))(function(place, shape))
    return app


def in_order(shapes: list[HookShape], kind: str) -> list[tuple[str, HookShape]]:
    """The reference: global, route, local, each as registered; turned round for after and catch."""
    found = [
        (str(place), shape)
        for level in HOOK_LEVELS
        for place, shape in enumerate(shapes)
        if (shape.kind, shape.level) == (kind, level)
    ]
    return found if kind == "before" else found[::-1]


def seen_by_client(reply: Reply | None) -> Any:
    """A reply without its instants."""
    if reply is None:
        return None
    body = reply.body.replace(reply.request_id.encode(), b"<id>")
    return reply.status, reply.headers, body, reply.error


# -- hooks --------------------------------------------------------------------------------------


@pytest.mark.prop(25)
@many
@given(shapes=strategies.hook_sets(most_failures=0), fails=st.booleans())
async def test_hooks_run_in_order_and_unwind_in_exact_reverse(shapes: list[HookShape], fails: bool) -> None:
    """P25 (R7.3, R10.1, R10.3): before is global, route, local, handler; after and catch are the exact reverse."""
    ran: list[str] = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        ran.append("handler")
        if fails:
            raise ValueError

    await Desk().handle(hooked(handler, shapes, lambda name, lctx: ran.append(name)))

    unwinding = in_order(shapes, "catch" if fails else "after")
    assert ran == [name for name, _ in in_order(shapes, "before")] + ["handler"] + [name for name, _ in unwinding]


@pytest.mark.prop(24)
@many
@given(
    shapes=st.lists(strategies.hook_shapes(forms=HOOK_FORMS, most_failures=0), max_size=6),
    is_async=st.booleans(),
    fails=st.booleans(),
)
async def test_local_hooks_register_in_every_form_and_run_once(
    shapes: list[HookShape], is_async: bool, fails: bool
) -> None:
    """P24 (R7.2, R10.5): before, after and catch hooks can be registered on the local context, sync or async."""
    shapes = [msgspec.structs.replace(shape, level="local") for shape in shapes]
    ran: list[str] = []

    def in_thread(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        if fails:
            raise ValueError

    async def in_loop(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        in_thread(req, res, gctx, lctx)

    app = hooked(in_loop if is_async else in_thread, shapes, lambda name, lctx: ran.append(name))
    await Desk().handle(app)

    expected = [name for kind in ("before", "catch" if fails else "after") for name, _ in in_order(shapes, kind)]
    assert ran == expected


@pytest.mark.prop(20)
@many
@given(
    shapes=strategies.hook_sets(),
    outcome=st.sampled_from(["answers", *FAILURES]),
    actions=st.lists(st.booleans(), max_size=3),
    request_id=strategies.request_ids(),
)
async def test_events_nest_and_carry_the_request_id(
    shapes: list[HookShape], outcome: str, actions: list[bool], request_id: str
) -> None:
    """P20 (R6.1): hook, handler and other stages are emitted, properly nested, each with the request id."""
    ran: list[str] = []

    def fail() -> None:
        raise ValueError

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        ran.append("h")
        for works in actions:
            lctx.register_compensating_action((lambda: None) if works else fail)
        if outcome != "answers":
            raise FAILURES[outcome]()

    desk = Desk(observed=True)
    await desk.handle(hooked(handler, shapes, lambda name, lctx: ran.append(name)), request_id=request_id)

    event(outcome)
    assert {each.request_id for each in desk.events} == {request_id}
    assert [each.seq for each in desk.events] == list(range(1, len(desk.events) + 1))
    started = stages_of(desk.events)
    hooks = [stage for kind, stage in started if kind == "hook" and stage != "first"]
    attempts = [each.metadata["attempt"] for each in desk.events if each.type in ("hook:end", "hook:error")]
    assert hooks == [name for name, _ in itertools.groupby(each for each in ran if each != "h")]
    assert sum(int(attempt) for attempt in attempts) == len([each for each in ran if each != "h"]) + 1
    assert [stage for kind, stage in started if kind == "handler"] == [each for each in ran if each == "h"]
    if outcome != "answers" and "h" in ran:
        assert len([kind for kind, _ in started if kind == "compensation"]) == len(actions)


def stages_of(events: list[LifecycleEvent]) -> list[tuple[str, str]]:
    """The stages in the order of their starts; fails where they are not nested and balanced."""
    open_stages: list[tuple[str, str]] = []
    started: list[tuple[str, str]] = []
    for each in events:
        kind, _, what = each.type.partition(":")
        if what == "start":
            open_stages.append((kind, each.stage))
            started.append((kind, each.stage))
        elif kind == "request" or what == "alert":
            assert open_stages == []
        elif what == "retry":
            assert open_stages[-1] == (kind, each.stage)
        else:
            assert open_stages.pop() == (kind, each.stage)
            assert each.duration_us >= 0
    assert open_stages == []
    assert [each.type for each in events].index("request:end") == len(events) - 1
    return started


# -- failures -----------------------------------------------------------------------------------


class Plan(msgspec.Struct, frozen=True):
    """How one of several concurrent requests behaves."""

    outcome: str
    where: str


def plans() -> st.SearchStrategy[Plan]:
    """Requests whose handler or hook raises, and ones that succeed."""
    return st.builds(
        Plan,
        outcome=st.sampled_from(["answers", *FAILURES]),
        where=st.sampled_from(["before", "handler", "after", "catch", "cleanup"]),
    )


class Crowd:
    """An app that behaves as its requests' ids say, and notes what ran for whom."""

    def __init__(self, requests: list[Plan], *, together: bool) -> None:
        self.requests = requests
        self.ran: list[list[str]] = [[] for _ in requests]
        self.all_here = asyncio.Barrier(len(requests) if together else 1)
        self.app = shop(self.handler)
        self.app.before(self.before)
        self.app.after(self.after)
        self.app.catch(self.catch)

    def at(self, where: str, lctx: Any) -> None:
        number = int(lctx.request_id)
        plan = self.requests[number]
        self.ran[number].append(where)
        if plan.where == where and plan.outcome != "answers":
            raise FAILURES[plan.outcome]()

    async def before(self, gctx: Any, lctx: Any) -> None:
        await self.all_here.wait()
        lctx.lifecycle.on_cleanup(lambda: self.at("cleanup", lctx))
        self.at("before", lctx)

    async def handler(self, req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        await asyncio.sleep(0)
        self.at("handler", lctx)
        res.text("ok")

    def after(self, gctx: Any, lctx: Any) -> None:
        self.at("after", lctx)

    def catch(self, error: Any, gctx: Any, lctx: Any) -> None:
        self.at("catch", lctx)


@pytest.mark.prop(6)
@many
@given(requests=st.lists(plans(), min_size=1, max_size=6))
async def test_a_failing_request_runs_its_catch_hooks_and_changes_no_other(requests: list[Plan]) -> None:
    """P6 (R2.1): catch hooks of what raises run, and no other request's outcome changes."""
    crowd, desk = Crowd(requests, together=True), Desk()
    together = await asyncio.gather(
        *(desk.handle(crowd.app, request_id=str(number)) for number in range(len(requests)))
    )

    for number, plan in enumerate(requests):
        alone = Crowd(requests, together=False)
        reply = await Desk().handle(alone.app, request_id=str(number))
        assert seen_by_client(together[number]) == seen_by_client(reply)
        assert crowd.ran[number] == alone.ran[number]
        has_failed = plan.outcome != "answers" and plan.where in ("before", "handler", "after")
        assert ("catch" in crowd.ran[number]) is has_failed
        assert crowd.ran[number].count("cleanup") == 1


@pytest.mark.prop(8)
@many
@given(
    kind=st.sampled_from(["obeys", "swallows", "deaf", "raises", "thread"]),
    callbacks=st.lists(st.sampled_from(["plain", "async", *FAILURES]), min_size=1, max_size=5),
)
async def test_a_handler_past_its_limit_is_cancelled_and_cleaned_up_once(kind: str, callbacks: list[str]) -> None:
    """P8 (R2.5): the request is cancelled, and every registered cleanup callback runs exactly once."""
    ran: list[int] = []
    started, release = threading.Event(), threading.Event()
    in_loop, go_on = asyncio.Event(), asyncio.Event()

    def register(lctx: Any) -> None:
        for place, form in enumerate(callbacks):
            lctx.lifecycle.on_cleanup(functools.partial(clean, place, form))

    def clean(place: int, form: str) -> Coroutine[Any, Any, None] | None:
        ran.append(place)
        if form in FAILURES:
            raise FAILURES[form]()
        return asyncio.sleep(0) if form == "async" else None

    async def waits(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        register(lctx)
        in_loop.set()
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            if kind == "obeys":
                raise
            if kind == "raises":
                raise ValueError from None
            if kind == "deaf":
                await go_on.wait()

    def blocks(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        register(lctx)
        started.set()
        release.wait(WITHIN_S)

    desk = Desk()
    underway = desk.begin(shop(blocks if kind == "thread" else waits))
    await (asyncio.to_thread(started.wait, WITHIN_S) if kind == "thread" else in_loop.wait())
    underway.cancel("deadline", is_own_limit=True)
    if kind == "deaf":
        await asyncio.sleep(0)
        underway.run.abandon()
        reply = await underway.run.give_up()
        await underway.run.cleanup()
        go_on.set()
        assert await underway.reply() is None
    else:
        reply = await underway.reply()
    release.set()

    event(kind)
    assert reply is not None
    assert (reply.status, reply.error and reply.error.code) == (
        (500, "internal") if kind == "raises" else (504, "handler.timeout")
    )
    assert ran == list(range(len(callbacks)))


# -- validation ---------------------------------------------------------------------------------


@pytest.mark.prop(10)
@settings(max_examples=200, deadline=None)
@given(
    body=documents().map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20),
    shapes=strategies.hook_sets(kinds=("before", "after"), most_failures=0),
    observed=st.booleans(),
)
async def test_an_invalid_body_reaches_neither_handler_nor_hooks(
    body: bytes, shapes: list[HookShape], observed: bool
) -> None:
    """P10 (R3.2): the body is validated before the handler starts; invalid ones never reach it, nor its hooks."""
    ran: list[str] = []
    errors: list[str] = []

    async def handler(req: Request[Order], res: Any, gctx: Any, lctx: Any) -> None:
        ran.append(f"{type(req.body).__name__} {lctx.phase}")

    app = hooked(handler, shapes, lambda name, lctx: ran.append(name))
    app.catch(lambda error, gctx, lctx: errors.append(error.code))
    reply = await Desk(observed=observed).handle(app, body=body)

    try:
        is_valid = is_order(json.loads(body))
    except ValueError:
        is_valid = False
    event("valid" if is_valid else "invalid")
    assert (reply.status, errors) == ((204, []) if is_valid else (400, ["request.invalid_body"]))
    assert ("Order processing" in ran) is is_valid
    assert bool(ran) is is_valid


@pytest.mark.prop(11)
@settings(max_examples=200, deadline=None)
@given(
    answers=st.lists(st.tuples(st.sampled_from((200, 201, 299, 302, 404, 500)), documents()), min_size=2, max_size=2),
    by=st.sampled_from(["before", "handler", "handler, then fails", "catch"]),
    observed=st.booleans(),
)
async def test_an_invalid_answer_never_leaves_as_success(
    answers: list[tuple[int, object]], by: str, observed: bool
) -> None:
    """P11 (R3.3): what is not of the declared type never reaches the client as success, whoever answered."""
    (status, value), (spare_status, spare) = answers

    async def handler(req: Any, res: Response[Order], gctx: Any, lctx: Any) -> None:
        if by == "catch":
            raise ValueError
        res.status(status).json(value)  # type: ignore[arg-type]
        if by == "handler, then fails":
            res.text("again")

    app = shop(handler)
    if by == "before":
        app.before(lambda gctx, lctx: lctx.response.status(status).json(value))
    if by == "catch":
        app.catch(lambda error, gctx, lctx: lctx.response.status(status).json(value))
    else:
        app.catch(lambda error, gctx, lctx: lctx.response.status(spare_status).json(spare))
    reply = await Desk(observed=observed).handle(app)

    is_success = 200 <= reply.status < 300
    event(f"{by}: {'success' if is_success else 'none'}")
    if is_success:
        assert is_order(json.loads(reply.body))
    if is_order(value) or not 200 <= status < 300:
        assert (reply.status, json.loads(reply.body)) == (status, value)


# -- what is known of a request -----------------------------------------------------------------


@pytest.mark.prop(27)
@many
@given(request=strategies.request_descriptors(), version=strategies.text())
def test_the_metadata_of_a_request_is_there(request: RequestDescriptor, version: str) -> None:
    """P27 (R7.5): metadata has request id, path, version and flags."""
    meta = LocalContext(request, version=version).meta

    assert (meta.request_id, meta.path, meta.version) == (request.request_id, request.path, version)
    assert meta.flags == tuple(request.flags)
    assert (meta.method, meta.timestamp) == (request.method, request.received_ms)


STATUSES = ("pending", "fulfilled", "rejected")


async def operate(lctx: LocalContext, outcomes: list[tuple[str, Any]]) -> None:
    """Track one operation for each outcome, and wait for those that end."""

    async def work(status: str, result: Any) -> Any:
        if status == "pending":
            await asyncio.Event().wait()
        if status == "rejected":
            raise ValueError("no")
        return result

    tasks = [(status, lctx.track(work(status, result))) for status, result in outcomes]
    await asyncio.gather(*(task for status, task in tasks if status != "pending"), return_exceptions=True)


def outcomes() -> st.SearchStrategy[list[tuple[str, Any]]]:
    """Operations, and how they end."""
    return st.lists(st.tuples(st.sampled_from(STATUSES), strategies.payloads()), max_size=4)


def records(outcomes: list[tuple[str, Any]]) -> list[Operation]:
    """What is to be known of them."""
    return [
        Operation(
            f"op-{place + 1}",
            status,  # type: ignore[arg-type]
            result if status == "fulfilled" else None,
            "ValueError: no" if status == "rejected" else None,
        )
        for place, (status, result) in enumerate(outcomes)
    ]


@pytest.mark.prop(21)
@many
@given(
    state=strategies.plain_states(),
    later=strategies.plain_states(),
    operations=outcomes(),
    shapes=strategies.hook_sets(kinds=("before",), most_failures=0),
    version=strategies.text(),
)
async def test_a_snapshot_holds_everything_there_is_to_know(
    state: dict[str, Any],
    later: dict[str, Any],
    operations: list[tuple[str, Any]],
    shapes: list[HookShape],
    version: str,
) -> None:
    """P21 (R6.3): a snapshot has state, outstanding operations with status, last hook index and handler version."""
    snapshots = []

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        for key, value in state.items():
            lctx.set(key, value)
        await operate(lctx, operations)
        snapshots.append(lctx.snapshot())
        lctx.clean()
        for key, value in later.items():
            lctx.set(key, value)

    await Desk(version=version).handle(hooked(handler, shapes, lambda name, lctx: None))

    (snapshot,) = snapshots
    assert (snapshot.state, snapshot.outstanding) == (state, records(operations))
    assert snapshot.last_hook_index == len(shapes)  # `first` is hook 0
    assert (snapshot.handler_version, snapshot.phase, snapshot.request_id) == (version, "processing", "r-1")


@pytest.mark.prop(47)
@many
@given(
    state=strategies.plain_states(),
    later=strategies.plain_states(),
    operations=outcomes(),
    later_operations=outcomes(),
    phase=st.sampled_from(["received", "authorized", "processing"]),
    position=st.integers(-1, 20),
    elsewhere=st.booleans(),
)
async def test_a_restored_snapshot_gives_back_what_it_held(
    state: dict[str, Any],
    later: dict[str, Any],
    operations: list[tuple[str, Any]],
    later_operations: list[tuple[str, Any]],
    phase: Any,
    position: int,
    elsewhere: bool,
) -> None:
    """P47 (R15.4): restoring gives back keys, outstanding operations, hook position and phase, elsewhere too."""
    lctx = LocalContext(descriptor(), version="v1", clock=lambda: 7.0)
    for key, value in state.items():
        lctx.set(key, value)
    await operate(lctx, operations)
    lctx._hook_index = position
    lctx.lifecycle.set_phase(phase)
    snapshot = lctx.snapshot()

    after = LocalContext(descriptor(), version="v1", clock=lambda: 7.0) if elsewhere else lctx
    for key, value in later.items():
        after.set(key, value)
    await operate(after, later_operations)
    after.lifecycle.set_phase("completed")
    after.restore(from_bytes(to_bytes(snapshot)) if elsewhere else snapshot)

    assert after.snapshot() == snapshot
    assert {key: after.get(key) for key in {*state, *later}} == {key: state.get(key) for key in {*state, *later}}
    assert (after.last_hook_index, after.phase) == (position, phase)
    assert list(after.operations) == records(operations)
    for each in {id(lctx): lctx, id(after): after}.values():
        await each.operations.aclose()
