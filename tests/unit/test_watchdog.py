"""Who stopped the loop, as the thread beside it sees it."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from gati_core import App
from gati_worker import watchdog
from gati_worker.ledger import CrashLedger
from gati_worker.runner import _functions
from gati_worker.watchdog import Sighting, Watchdog, known_code, open_watchdog, sight
from tests.helpers.waiting import eventually


def _line_of(function: Callable[..., Any], text: str) -> str:
    lines, first = inspect.getsourcelines(function)
    (offset,) = (number for number, line in enumerate(lines) if text in line)
    return f"{__file__}:{first + offset}"


def _block(seconds: float) -> None:
    time.sleep(seconds)


async def handler(seconds: float) -> None:
    """Blocks the loop two calls further down."""
    _block(seconds)


def _logging(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


class _Callable:
    def __call__(self) -> None: ...

    def method(self) -> None: ...


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    """What is logged."""
    with capture_logs() as lines:
        yield lines


# -- code --------------------------------------------------------------------------------------


def test_functions_are_known_through_partials_decorators_methods_and_callable_objects() -> None:
    def plain() -> None: ...

    def wrapped() -> None: ...

    instance = _Callable()

    known = known_code(
        [
            ("partial", functools.partial(functools.partial(plain))),
            ("decorated", functools.partial(_logging(wrapped))),
            ("method", instance.method),
            ("object", instance),
        ]
    )

    assert known[plain.__code__] == "partial"
    assert known[wrapped.__code__] == "decorated"
    assert known[_Callable.method.__code__] == "method"
    assert known[_Callable.__call__.__code__] == "object"


def test_handlers_hooks_listeners_and_transformers_of_a_package_are_known() -> None:
    app = App("shop")

    def check(gctx: Any, lctx: Any) -> None: ...

    def audit(gctx: Any, lctx: Any) -> None: ...

    def listen(event: Any) -> None: ...

    def forward(request: Any) -> None: ...

    async def place(req: Any, res: Any, gctx: Any, lctx: Any) -> None: ...

    route = app.post("/orders", id="orders")(place)
    app.before(check)
    route.after(id="audit-trail")(audit)
    app.on_event(listen)
    app.transformer("orders", from_version="v1")(type("Renamed", (), {"forward_request": staticmethod(forward)}))

    known = known_code(_functions(app))

    assert {function.__name__: known[function.__code__] for function in (place, check, audit, listen, forward)} == {
        "place": "orders",
        "check": "hook check",
        "audit": "hook audit-trail",
        "listen": "event listener",
        "forward": "transformer Renamed.forward_request",
    }


def test_code_that_several_functions_share_has_all_their_names() -> None:
    def make() -> Callable[[], None]:
        return lambda: None

    made = [make() for _ in range(5)]

    assert set(known_code([("a", made[0]), ("a", made[1])]).values()) == {"a"}
    assert set(known_code([("a", made[0]), ("b", made[1])]).values()) == {"a or b"}
    assert set(known_code(zip("abcde", made, strict=True)).values()) == {"a or b or c or 2 more"}


def test_what_has_no_code_or_wraps_itself_is_passed_over() -> None:
    def loop() -> None: ...

    loop.__wrapped__ = loop  # type: ignore[attr-defined]

    assert set(known_code([("loop", loop), ("c", len), ("class", dict), ("no", 3)]).values()) == {"loop"}  # type: ignore[list-item]


def test_the_function_nearest_to_the_block_is_named_with_the_deepest_line_of_its_file() -> None:
    def inner() -> watchdog.Sighting:
        return sight(sys._getframe(), known)

    def outer() -> watchdog.Sighting:
        return inner()

    known = known_code(
        [("outer", outer), ("this", test_the_function_nearest_to_the_block_is_named_with_the_deepest_line_of_its_file)]
    )

    seen = outer()

    assert (seen.handler, seen.line) == ("outer", _line_of(inner, "sight("))
    assert seen.innermost == f"inner ({seen.line})"


class _Run:
    """What a request's run looks like to who reads a stack."""

    def __init__(self, handler: str) -> None:
        self.plan = SimpleNamespace(call=SimpleNamespace(id=handler))

    def execute(self, function: Callable[[], Sighting]) -> Sighting:
        return function()


def test_a_function_that_nobody_registered_is_blamed_on_the_handler_whose_request_runs_it() -> None:
    def local_hook() -> Sighting:
        return functools.reduce(lambda _, __: sight(sys._getframe(), {}), [1, 2])  # type: ignore[arg-type,return-value]

    seen = _Run("place_order").execute(local_hook)

    assert (seen.handler, seen.line) == ("place_order", _line_of(local_hook, "sight("))


def test_a_line_of_python_itself_or_of_a_library_is_nobodys_own() -> None:
    seen = json.loads("[1]", parse_int=lambda _text: sight(sys._getframe().f_back, {}))[0]

    assert seen.innermost.startswith("scan_once (") or "json" in seen.innermost
    assert seen.line.startswith(f"{__file__}:")


def test_a_stack_without_a_known_function_still_tells_its_innermost_line() -> None:
    seen = sight(sys._getframe(), {})

    assert seen.handler == ""
    assert seen.line.startswith(f"{__file__}:")
    assert seen.innermost.startswith(
        f"test_a_stack_without_a_known_function_still_tells_its_innermost_line ({__file__}:"
    )
    assert sight(None, {}) == watchdog.Sighting("", "", "")


# -- the thread --------------------------------------------------------------------------------


async def test_a_block_is_logged_once_while_it_lasts_and_once_when_it_is_over(lines: list[Any]) -> None:
    dog = Watchdog(known_code([("orders", handler)]), warn_s=0.05)
    during: list[Any] = []
    threading.Timer(0.7, lambda: during.extend(lines)).start()
    began = time.monotonic()

    await handler(1.0)

    took_s = time.monotonic() - began

    def is_over() -> bool:
        dog.beat()
        return len(lines) > 1

    await eventually(is_over, within_s=10)
    dog.close()
    blocked, unblocked = lines
    assert [blocked["event"], unblocked["event"]] == ["loop_blocked", "loop_unblocked"]
    assert during == [blocked]
    assert (blocked["handler"], blocked["line"]) == ("orders", _line_of(_block, "time.sleep"))
    assert blocked["innermost"] == f"_block ({blocked['line']})"
    assert 0.05 <= blocked["blocked_s"] < took_s
    assert unblocked["handler"] == "orders"
    assert unblocked["blocked_s"] == pytest.approx(took_s, abs=0.2)


def test_a_block_that_no_thread_could_see_is_measured_all_the_same(
    lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 100.0
    dog = _at_rest(monkeypatch, lambda: clock)
    clock = 107.5

    dog.beat()
    dog.beat()
    dog._look(clock, was_late=True)
    dog._look(clock, was_late=False)

    assert [(line["event"], line["blocked_s"]) for line in lines] == [("loop_unblocked", 7.5)]


def test_a_process_that_was_stopped_as_a_whole_is_not_blamed_on_anybody(
    lines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = _at_rest(monkeypatch, lambda: 100.0)

    dog._look(160.0, was_late=True)
    assert lines == []

    dog._look(160.1, was_late=False)
    assert [line["event"] for line in lines] == ["loop_blocked"]


def test_nothing_is_looked_at_before_it_can_be_due(monkeypatch: pytest.MonkeyPatch) -> None:
    dog = _at_rest(monkeypatch, lambda: 100.0)

    assert dog._look(100.1, was_late=False) == pytest.approx(0.4)
    assert dog._look(100.45, was_late=False) == pytest.approx(0.1)


async def test_the_thread_survives_whatever_goes_wrong_in_it(lines: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no stack today")

    monkeypatch.setattr(watchdog, "sight", fail)
    dog = Watchdog({}, warn_s=0.02)
    await eventually(lambda: [line for line in lines if line["event"] == "watchdog_failed"], within_s=10)
    monkeypatch.undo()

    await eventually(lambda: [line for line in lines if line["event"] == "loop_blocked"], within_s=10)

    dog.close()
    assert not dog._thread.is_alive()


async def test_the_heartbeat_runs_from_the_start_to_the_end_of_the_watch(tmp_path: Path) -> None:
    class Ticks:
        listeners: list[Callable[[float], None]] = []  # noqa: RUF012 - one instance

        def on_tick(self, listener: Callable[[float], None]) -> None:
            self.listeners.append(listener)

        def off(self, listener: Callable[..., None]) -> None:
            self.listeners.remove(listener)

    ticks, ledger = Ticks(), CrashLedger(tmp_path / "l", 1)

    async with open_watchdog(ticks, ledger, {}, warn_s=5.0) as dog:
        began_s = ledger.heartbeat_s
        assert began_s > 0
        await asyncio.sleep(0.002)
        ticks.listeners[0](0.0)
        assert ledger.heartbeat_s > began_s

    assert (ledger.heartbeat_s, ticks.listeners) == (0, [])
    assert not dog._thread.is_alive()


def _at_rest(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], float]) -> Watchdog:
    """A watchdog whose thread has ended, and whose clock is the test's."""
    dog = Watchdog({}, warn_s=0.5)
    dog.close()
    monkeypatch.setattr(watchdog, "time", type("Clock", (), {"monotonic": staticmethod(lambda: clock())}))
    dog.beat()
    dog._blocks = dog._blocks_told
    return dog
