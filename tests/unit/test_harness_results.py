"""What a harness tells of an execution: events, topics, streams and sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import anyio.from_thread
import pytest

from gati_core import App, ChannelClosed, Event, GlobalContext, HandlerError, LocalContext, Request, Response
from gati_testing import Harness, Result, assert_response, run_handler


def steps(result: Result) -> list[str]:
    """The events, as `type stage`."""
    return [f"{event.type} {event.stage}".rstrip() for event in result.events]


# -- hooks, events, state -----------------------------------------------------------------------


async def test_events_tell_the_whole_story_in_order() -> None:
    app = App("shop")
    heard: list[str] = []
    app.on_event(lambda event: heard.append(event.type))
    alerts: list[str] = []
    app.on_alert(lambda request_id, action, error: alerts.append(f"{action} {error}"))

    @app.get("/x")
    async def handler(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.register_compensating_action(lambda: None, id="undo")
        lctx.register_compensating_action(_broken, id="broken")
        raise HandlerError("no", 409)

    @handler.before(id="b", retries=1, backoff_s=0.0)
    async def before(gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.set("tries", lctx.get("tries", 0) + 1)
        if lctx.get("tries") == 1:
            raise RuntimeError("again")

    @handler.catch(id="c", threaded=True)
    def catch(error: BaseException, gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.response.status(410).text("caught")

    result = await Harness().execute_handler(handler)

    assert steps(result) == [
        *("validation:start request", "validation:end request"),
        *("hook:start b", "hook:retry b", "hook:end b"),
        *("handler:start handler", "handler:error handler"),
        *("compensation:start broken", "compensation:error broken", "compensation:alert broken"),
        *("compensation:start undo", "compensation:end undo"),
        *("hook:start c", "hook:end c", "request:end"),
    ]
    assert heard == [event.type for event in result.events]
    assert alerts == ["broken cannot be undone"]
    assert_response(result.response).status(410).text("caught")


def _broken() -> None:
    raise RuntimeError("cannot be undone")


async def test_snapshots_are_real() -> None:
    async def handler(req: Any, res: Any, gctx: Any, lctx: LocalContext) -> None:
        lctx.set("a", [1])
        token = lctx.snapshot()
        lctx.set("a", 2)
        lctx.restore(token)
        res.json(lctx.get("a"))

    assert (await run_handler(handler)).response.json() == [1]


async def test_published_events_of_every_kind_are_collected_in_order() -> None:
    async def handler(req: Any, res: Any, gctx: GlobalContext, lctx: LocalContext) -> None:
        gctx.publish("first", {"a": 1})
        lctx.publish("second", [2])
        await gctx.publish_durable("third", "3")

    result = await run_handler(handler)

    published = [(event.topic, event.payload, bool(event.request_id)) for event in result.published]
    assert published == [("first", {"a": 1}, False), ("second", [2], True), ("third", "3", False)]


async def test_published_events_are_those_of_this_execution() -> None:
    async def handler(req: Request[Any], res: Any, gctx: GlobalContext, lctx: Any) -> None:
        await asyncio.sleep(0)
        gctx.publish("told", req.body)

    harness = Harness()
    results = await asyncio.gather(*(harness.execute_handler(handler, {"body": number}) for number in range(10)))

    assert [[event.payload for event in result.published] for result in results] == [[n] for n in range(10)]


async def test_a_test_talks_to_a_handler_through_topics() -> None:
    async def handler(req: Any, res: Any, gctx: GlobalContext, lctx: LocalContext) -> None:
        async with gctx.subscribe("go-on") as events:
            gctx.publish("ready")
            res.json((await events.next(5)).payload)

    async with Harness() as harness:

        async def answer(event: Event) -> None:
            harness.topics.publish("go-on", "now")

        await harness.topics.subscribe("ready", answer)
        result = await harness.execute_handler(handler)

    assert result.response.json() == "now"


# -- streams and sockets ------------------------------------------------------------------------


async def test_a_stream_is_whole_or_cut() -> None:
    async def handler(req: Request[Any], res: Response[Any], gctx: Any, lctx: Any) -> None:
        async with res.status(206).stream(content_type="text/plain") as stream:
            for number in range(200):
                await stream.write(f"{number},")
            if req.params.get("fails"):
                raise RuntimeError("in the middle")

    whole = await run_handler(handler)
    cut = await run_handler(handler, {"params": {"fails": "yes"}})

    assert (whole.response.status, whole.response.is_cut) == (206, False)
    assert whole.response.text == "".join(f"{number}," for number in range(200)) == cut.response.text
    assert (cut.response.is_cut, type(cut.error)) == (True, RuntimeError)


async def test_a_def_handler_streams_from_its_thread() -> None:
    def handler(req: Any, res: Response[Any], gctx: Any, lctx: Any) -> None:
        stream = res.stream()
        anyio.from_thread.run(stream.write, b"from a thread")
        anyio.from_thread.run(stream.end)

    assert (await run_handler(handler)).response.text == "from a thread"


@pytest.fixture
def live() -> App:
    """An app of sockets."""
    app = App("live")

    @app.websocket("/echo")
    async def echo(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        async for message in lctx.websocket:
            await lctx.websocket.send(message)
        lctx.set("code", lctx.websocket.close_code)

    @app.websocket("/once")
    async def once(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        await lctx.websocket.send(await lctx.websocket.receive())
        await lctx.websocket.close(4000, "enough")

    @app.websocket("/refuses")
    async def refuses(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        raise HandlerError("not you", 403, code="live.refused")

    @app.websocket("/breaks")
    async def breaks(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        await lctx.websocket.receive()
        raise RuntimeError("secret")

    @app.websocket("/slow")
    async def slow(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        await lctx.websocket.accept()
        await asyncio.sleep(0.05)
        count = 0
        try:
            while True:
                await lctx.websocket.receive()
                count += 1
        except ChannelClosed:
            lctx.set("count", count)

    return app


async def test_a_socket_hears_what_the_test_says_and_closes(live: App) -> None:
    messages: list[str | bytes] = ["a", b"\x00", "ü" * 1000, *map(str, range(300))]

    result = await Harness(live).execute_handler("echo", messages=messages)

    assert (result.response.status, result.sent) == (101, messages)
    assert (result.close_code, result.state) == (None, {"code": 1000})


async def test_a_sockets_handler_ends_it_in_its_own_way(live: App) -> None:
    harness = Harness(live)

    once = await harness.execute_handler("once", messages=["a", "b", "c"])
    assert (once.sent, once.close_code) == (["a"], 4000)
    refused = await harness.execute_handler("refuses")
    assert_response(refused.response).problem(403, "live.refused")
    broken = await harness.execute_handler("breaks", messages=["x"])
    assert (broken.close_code, type(broken.error)) == (1011, RuntimeError)


async def test_a_slow_socket_loses_nothing(live: App) -> None:
    result = await Harness(live).execute_handler("slow", messages=["x"] * 500)

    assert result.state == {"count": 500}


# -- the fixture --------------------------------------------------------------------------------


@pytest.fixture
def gati_app(live: App) -> App:
    """What handlers are named in."""
    return live


async def test_the_fixture_takes_the_app_of_the_module(gati_harness: Harness) -> None:
    result = await gati_harness.execute_handler("echo", messages=["a"])

    assert result.sent == ["a"]
