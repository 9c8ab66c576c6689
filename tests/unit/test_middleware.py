"""Middleware: around the handler, in the order of priority, and after a failure until one has answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gati_core import App, HandlerError
from gati_core.errors import RegistrationError
from gati_testing.harness import Harness, Result

Track = list[str]


def _app(track: Track) -> App:
    app = App("shop")

    @app.get("/orders/{id}")
    async def handler(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        track.append("handler")
        if req.query.get("fails"):
            raise HandlerError("no", 409)
        res.text("answered")

    @app.post("/orders/{id}", id="threaded")
    def threaded(req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        track.append("handler")
        res.text("from a thread")

    return app


def _around(track: Track, name: str) -> Callable[..., Any]:
    async def middleware(req: Any, res: Any, gctx: Any, lctx: Any, next: Any) -> None:
        track.append(f"{name} in")
        await next()
        track.append(f"{name} out")

    return middleware


async def _run(app: App, handler: str = "handler", path: str = "/orders/7", query: str = "") -> Result:
    method = "POST" if handler == "threaded" else "GET"
    async with Harness(app) as harness:
        return await harness.execute_handler(handler, {"method": method, "path": path, "query": query})


async def test_each_runs_around_the_next_by_priority_and_then_by_registration() -> None:
    track: Track = []
    app = _app(track)
    app.use()(_around(track, "first"))
    app.use()(_around(track, "second"))
    app.use(priority=10)(_around(track, "urgent"))

    result = await _run(app)

    assert track == ["urgent in", "first in", "second in", "handler", "second out", "first out", "urgent out"]
    assert result.response.text == "answered"


async def test_it_runs_around_a_handler_in_a_thread_as_well() -> None:
    track: Track = []
    app = _app(track)
    app.use()(_around(track, "m"))

    result = await _run(app, "threaded")

    assert (track, result.response.text) == (["m in", "handler", "m out"], "from a thread")


async def test_one_that_does_not_call_next_keeps_the_handler_from_running() -> None:
    track: Track = []
    app = _app(track)

    @app.use()
    async def refuse(req: Any, res: Any, gctx: Any, lctx: Any, next: Any) -> None:
        res.status(403).text("not you")

    result = await _run(app)

    assert (result.response.status, result.response.text, track) == (403, "not you", [])


async def test_a_plain_one_may_return_what_next_gives() -> None:
    track: Track = []
    app = _app(track)

    @app.use()
    def plain(req: Any, res: Any, gctx: Any, lctx: Any, next: Any) -> Any:
        track.append("plain")
        return next()

    assert (await _run(app)).response.text == "answered"
    assert track == ["plain", "handler"]


async def test_calling_next_twice_is_a_bug_of_the_middleware() -> None:
    track: Track = []
    app = _app(track)

    @app.use()
    async def twice(req: Any, res: Any, gctx: Any, lctx: Any, next: Any) -> None:
        await next()
        await next()

    result = await _run(app)

    assert "second time" in str(result.error)
    assert track == ["handler"]


@pytest.mark.parametrize(
    ("pattern", "path", "is_for_it"),
    [
        ("*", "/orders/7", True),
        ("/orders/7", "/orders/7", True),
        ("/orders/7", "/orders/7/", True),
        ("/orders/7", "/orders/77", False),
        ("/orders/:id", "/orders/7", True),
        ("/orders/{id}", "/orders/7", True),
        ("/orders/:id", "/orders/7/lines", False),
        ("/orders/*", "/orders/7", True),
        ("/orders/*", "/orders", True),
        ("/orders/*", "/ordersome/7", False),
        ("/*", "/orders/7", True),
        ("/a.b", "/axb", False),
    ],
)
async def test_the_path_says_which_requests_it_is_for(pattern: str, path: str, is_for_it: bool) -> None:
    track: Track = []
    app = _app(track)
    app.use(path=pattern)(_around(track, "m"))

    await _run(app, path=path)

    assert ("m in" in track) is is_for_it


async def test_the_methods_say_which_requests_it_is_for() -> None:
    track: Track = []
    app = _app(track)
    app.use(methods=["post"])(_around(track, "m"))

    await _run(app)
    assert track == ["handler"]

    await _run(app, "threaded")
    assert track == ["handler", "m in", "handler", "m out"]


async def test_error_middleware_runs_after_the_catch_hooks_until_one_has_answered() -> None:
    track: Track = []
    app = _app(track)
    app.catch(lambda error, gctx, lctx: track.append("catch hook"))

    @app.use_for_errors()
    async def looks(error: Any, req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        track.append(f"looks at {error.status_code}")

    @app.use_for_errors()
    async def answers(error: Any, req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        res.status(200).text("instead")

    @app.use_for_errors()
    async def is_late(error: Any, req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        track.append("late")

    result = await _run(app, query="fails=1")

    assert track == ["handler", "catch hook", "looks at 409"]
    assert (result.response.status, result.response.text) == (200, "instead")


async def test_error_middleware_that_fails_is_logged_and_the_error_stands() -> None:
    app = _app([])

    @app.use_for_errors()
    async def breaks(error: Any, req: Any, res: Any, gctx: Any, lctx: Any) -> None:
        raise LookupError("no")

    assert (await _run(app, query="fails=1")).response.status == 409


@pytest.mark.parametrize("is_for_errors", [False, True])
def test_a_function_with_other_parameters_is_refused(is_for_errors: bool) -> None:
    app = _app([])
    register = app.use_for_errors() if is_for_errors else app.use()

    with pytest.raises(RegistrationError, match="middleware"):
        register(lambda req, res: None)


def test_a_path_that_can_match_nothing_is_refused() -> None:
    with pytest.raises(RegistrationError, match="begins with '/'"):
        _app([]).use(path="orders")(_around([], "m"))
