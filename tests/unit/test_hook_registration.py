"""Registering hooks: what is accepted, what is refused, and when it is too late."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest

from gati_core import App
from gati_core.contexts import DEFAULT_HOOK_TIMEOUT_S, MAX_REGISTRATIONS, LocalContext, make_hook
from gati_core.errors import RegistrationError, TooLate
from tests.helpers.handling import Desk, descriptor, problem, shop
from tests.helpers.names import steady

KINDS = ("before", "after", "catch")


def plain(gctx: Any, lctx: Any) -> None: ...
async def waits(gctx: Any, lctx: Any) -> None: ...
def catches(error: Any, gctx: Any, lctx: Any) -> None: ...
async def answer(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...
def swapped(lctx: Any, gctx: Any) -> None: ...
def three(a: Any, b: Any, c: Any) -> None: ...
def with_default(gctx: Any, lctx: Any, setting: int = 1) -> None: ...
def any_number(*args: Any) -> None: ...
def keyword_needed(gctx: Any, lctx: Any, *, setting: int) -> None: ...


class AsyncCallable:
    async def __call__(self, gctx: Any, lctx: Any) -> None: ...


class PlainCallable:
    def __call__(self, gctx: Any, lctx: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "name", "is_async"),
    [
        (plain, "plain", False),
        (waits, "waits", True),
        (lambda gctx, lctx: None, "<lambda>", False),
        (functools.partial(plain), "plain", False),
        (functools.partial(waits), "waits", True),
        (functools.partial(functools.partial(waits)), "waits", True),
        (AsyncCallable(), "AsyncCallable", True),
        (PlainCallable(), "PlainCallable", False),
        (with_default, "with_default", False),
        (any_number, "any_number", False),
    ],
    ids=steady,
)
def test_a_hook_is_named_after_its_function_and_known_as_async_or_not(function: Any, name: str, is_async: bool) -> None:
    hook = make_hook(function, kind="before", level="local")

    assert (hook.id, hook.is_async) == (name, is_async)


def test_the_options_have_defaults() -> None:
    hook = make_hook(plain, kind="before", level="global")

    assert (hook.timeout_s, hook.retries, hook.is_threaded, hook.is_detached) == (
        DEFAULT_HOOK_TIMEOUT_S,
        0,
        False,
        False,
    )


def test_a_hook_says_what_it_is() -> None:
    assert repr(make_hook(plain, kind="after", level="route", id="x")) == "<route after hook 'x'>"


@pytest.mark.parametrize("function", [None, 7, "plain", App, object()], ids=steady)
def test_what_is_no_function_is_refused(function: Any) -> None:
    with pytest.raises(RegistrationError, match="a before hook must be a function"):
        make_hook(function, kind="before", level="local")


@pytest.mark.parametrize("function", [catches, three, swapped, answer, keyword_needed, lambda: None], ids=steady)
def test_a_function_of_other_parameters_is_refused_with_what_was_found(function: Any) -> None:
    with pytest.raises(RegistrationError, match=r"before hook .* takes \(gctx, lctx\), not \("):
        make_hook(function, kind="before", level="local")


@pytest.mark.parametrize("function", [plain, lambda gctx, lctx, error: None], ids=["two", "error last"])
def test_a_catch_hook_takes_the_error_first(function: Any) -> None:
    make_hook(catches, kind="catch", level="local")
    with pytest.raises(RegistrationError, match=r"takes \(error, gctx, lctx\)"):
        make_hook(function, kind="catch", level="local")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("timeout_s", value) for value in (0, -1, math.nan, math.inf)),
        *(("retries", value) for value in (-1, 11, 1.5, True, "1")),
        *(("backoff_s", value) for value in (-0.1, math.nan, math.inf)),
        *(("id", value) for value in ("", 7)),
        ("level", "request"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_by_name(option: str, value: Any) -> None:
    options: dict[str, Any] = {"kind": "before", "level": "local"}
    with pytest.raises(RegistrationError, match=rf"before hook plain: .*{'level|id' if option == 'id' else option}"):
        make_hook(plain, **options | {option: value})


def test_an_async_hook_has_no_use_for_a_thread() -> None:
    with pytest.raises(RegistrationError, match="threaded=True is for plain functions"):
        make_hook(waits, kind="before", level="local", threaded=True)


@pytest.mark.parametrize("where", ["app", "route", "request"])
def test_an_option_that_does_not_exist_is_refused_wherever_it_is_given(where: str) -> None:
    app = App("shop")
    owners = {"app": app, "route": app.get("/x", id="h")(answer), "request": LocalContext(descriptor())}
    register: Any = owners[where]

    with pytest.raises(RegistrationError, match=r"before.*priority"):
        register.before(plain, priority=1)


# -- on apps and routes -------------------------------------------------------------------------


def test_hooks_of_an_app_are_global_and_those_of_a_route_its_own() -> None:
    app = App("shop")
    route, other = app.get("/x", id="x")(answer), app.get("/y", id="y")(answer)

    app.before(plain)
    route.before(waits)

    assert [hook.id for hook in app.handlers["x"].plan().hooks()] == ["plain", "waits"]
    assert [hook.id for hook in app.handlers["y"].plan().hooks()] == ["plain"]
    assert [hook.level for hook in app.handlers["x"].plan().hooks()] == ["global", "route"]
    assert other.function is answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_decorator_gives_the_function_back_with_and_without_options(kind: str) -> None:
    app = App("shop")
    register: Any = getattr(app, kind)
    function = catches if kind == "catch" else plain

    assert register(function) is function
    assert register(id="second", retries=2)(function) is function


def test_the_manifest_lists_the_hooks_with_their_options() -> None:
    app = App("shop")
    route = app.get("/x", id="h")(answer)
    app.before(id="first", timeout_s=1.5)(plain)
    route.after(retries=2, backoff_s=0.5)(waits)
    route.catch(threaded=True, detached=True)(catches)

    first, second, third = app.handlers["h"].manifest.hooks

    assert (first.id, first.type, first.level, first.timeout_s) == ("first", "before", "global", 1.5)
    assert (second.id, second.retries, second.backoff_s, second.is_async) == ("waits", 2, 0.5, True)
    assert (third.type, third.threaded, third.detached) == ("catch", True, True)


def test_a_hook_can_be_taken_back_by_its_id() -> None:
    app = App("shop")
    app.get("/x", id="h")(answer)
    app.before(plain)

    assert (app.remove_hook("plain"), app.remove_hook("plain")) == (True, False)
    assert app.handlers["h"].plan().hooks() == []


# -- during the request -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "accepted"),
    [
        ("before", {"before", "after", "catch"}),
        ("handler", {"after", "catch"}),
        ("after", {"catch"}),
        ("catch", set()),
        ("cleanup", set()),
    ],
)
async def test_a_hook_that_could_not_run_any_more_is_refused(stage: str, accepted: set[str]) -> None:
    taken: set[str] = set()
    desk = Desk()

    def register(lctx: Any) -> None:
        for kind in KINDS:
            try:
                getattr(lctx, kind)(catches if kind == "catch" else plain)
            except TooLate:
                continue
            taken.add(kind)

    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        if stage == "handler":
            register(lctx)
        lctx.lifecycle.on_cleanup(lambda: register(lctx) if stage == "cleanup" else None)
        if stage == "catch":
            raise ValueError

    app = shop(handler)
    if stage in ("before", "after"):
        getattr(app, stage)(lambda gctx, lctx: register(lctx))
    if stage == "catch":
        app.catch(lambda error, gctx, lctx: register(lctx))
    await desk.handle(app)

    assert taken == accepted


async def test_a_before_hook_of_a_level_that_has_run_is_too_late() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...

    app = shop(handler)
    app.handlers["h"].call.hooks.append(
        make_hook(lambda gctx, lctx: lctx.before(plain, level="global"), kind="before", level="route")
    )

    reply = await Desk().handle(app)

    assert (reply.status, problem(reply)["code"]) == (500, "internal")


def test_a_hook_of_the_request_can_be_taken_back_by_the_id_that_was_returned() -> None:
    lctx = LocalContext(descriptor())

    hook_id = lctx.after(plain, id="mine")

    assert (hook_id, lctx.remove_hook("mine"), lctx.remove_hook("mine")) == ("mine", True, False)


def test_one_request_registers_a_thousand_things_and_not_more() -> None:
    lctx = LocalContext(descriptor())
    for _ in range(MAX_REGISTRATIONS - 1):
        lctx.after(plain)
    lctx.register_compensating_action(lambda: None)

    with pytest.raises(RegistrationError, match="1000"):
        lctx.lifecycle.on_cleanup(lambda: None)


@pytest.mark.parametrize("function", [waits, functools.partial(waits), AsyncCallable()], ids=["def", "partial", "call"])
async def test_the_hooks_of_a_def_handlers_request_may_be_async_in_every_form(function: Any) -> None:
    def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.after(function)
        res.text("ok")

    assert (await Desk().handle(shop(handler))).body == b"ok"


async def test_a_plain_hook_that_a_def_handler_registers_may_wait() -> None:
    import threading

    threads = []

    def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        lctx.after(lambda gctx, lctx: threads.append(threading.current_thread()))

    await Desk().handle(shop(handler))

    assert threads != [threading.main_thread()]
