"""A simulation from its start to its end: lasting connections, process hooks, two apps, and nothing left over."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import anyio.to_thread
import pytest

from gati_core import App, ChannelClosed, Event, GlobalContext, LocalContext, Request, Response
from gati_core.errors import StartupFailed
from gati_testing import HandshakeRefused, Simulation, assert_response, simulate
from tests.unit.test_simulation import shop

# -- streams and sockets ------------------------------------------------------------------------


def test_a_stream_without_an_end_is_read_bit_by_bit_and_left() -> None:
    with simulate(shop()) as fabric:
        with fabric.stream("GET", "/ticks") as stream:
            assert (stream.status, stream.header("content-type")) == (200, "text/event-stream")
            start = fabric.now()
            assert [stream.read() for _ in range(3)] == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
            assert fabric.now() - start == pytest.approx(0.2)
            fabric.advance(3600)
            assert stream.read() == b"data: 3\n\n"
        sent = fabric.global_context("shop").state["streamed"]
        assert sent < 100 * len(b"data: 99\n\n"), "a client that does not read slows the handler down"
        with pytest.raises(ChannelClosed):
            b"".join(iter(stream.read, b""))
        with pytest.raises(AssertionError, match="no stream"):
            fabric.stream("GET", "/ping")


def test_a_stream_that_ends_is_read_to_its_end() -> None:
    app = App("shop")

    @app.get("/{how}")
    async def handler(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        async with res.stream() as stream:
            await stream.write(b"a" * 100_000)
            if req.params["how"] == "fails":
                raise RuntimeError

    with simulate(app) as fabric:
        whole = fabric.stream("GET", "/x")
        assert b"".join(iter(whole.read, b"")) == b"a" * 100_000
        assert whole.read() == b""
        cut = fabric.stream("GET", "/fails")
        with pytest.raises(ChannelClosed, match="cut"):
            b"".join(iter(cut.read, b""))
        assert fabric.get("/fails").is_cut
        assert not fabric.get("/x").is_cut


def test_an_answer_that_has_begun_leaves_its_place_to_the_next_request() -> None:
    with simulate(shop(), worker_slots=1) as fabric:
        with fabric.stream("GET", "/ticks"), fabric.websocket("/echo") as socket:
            assert fabric.get("/ping").text == "pong"
            socket.send("a")
            assert socket.receive() == "a"
        answers = fabric.gather(*(fabric.arequest("GET", "/sleeps/1") for _ in range(2)))
        assert [answer.status for answer in answers] == [200, 200]


def test_a_socket_talks_and_closes() -> None:
    with simulate(shop()) as fabric:
        with fabric.websocket("/echo") as socket:
            socket.send("a")
            socket.send(b"b")
            assert (socket.receive(), socket.receive()) == ("a", b"b")
            start = fabric.now()
            with pytest.raises(TimeoutError):
                socket.receive(within_s=5)
            assert fabric.now() - start == pytest.approx(5)
            assert socket.close_code is None
        assert fabric.global_context("shop").state["code"] == 1000
        with pytest.raises(ChannelClosed):
            socket.send("late")
        with pytest.raises(ChannelClosed):
            socket.receive()


def test_a_socket_that_vanishes_is_a_1006_to_its_handler() -> None:
    with simulate(shop()) as fabric:
        fabric.websocket("/echo").vanish()

        assert fabric.global_context("shop").state["code"] == 1006


def test_a_deaf_socket_handler_has_five_seconds_when_its_client_has_left() -> None:
    with simulate(shop()) as fabric:
        start = fabric.now()
        fabric.websocket("/deaf").close()

        assert fabric.now() - start == pytest.approx(5)


def test_a_refused_handshake_carries_its_answer() -> None:
    with simulate(shop()) as fabric, pytest.raises(HandshakeRefused, match="404") as caught:
        fabric.websocket("/nowhere")

    assert_response(caught.value.answer).problem(404, "route.not_found")


def test_many_sockets_at_once() -> None:
    with simulate(shop()) as fabric:
        sockets = [fabric.websocket("/echo") for _ in range(100)]
        for number, socket in enumerate(sockets):
            socket.send(str(number))
        assert [socket.receive() for socket in sockets] == [str(number) for number in range(100)]


# -- start and end ------------------------------------------------------------------------------


def left_since(before: list[threading.Thread]) -> list[threading.Thread]:
    """Threads that are new and do not end; one that was told to may need a moment."""
    new = [thread for thread in threading.enumerate() if thread not in before]
    for thread in new:
        thread.join(5)
    return [thread for thread in new if thread.is_alive()]


def counted(log: list[str]) -> App:
    """An app that says what happens to its process."""
    app = App("counted")

    @app.on_startup
    async def up(gctx: GlobalContext) -> None:
        gctx.state["pool"] = "open"
        log.append("up")

    @app.lifecycle.on_pre_shutdown
    def leaving(gctx: GlobalContext) -> None:
        log.append("leaving")

    @app.on_shutdown
    async def down(gctx: GlobalContext) -> None:
        log.append(f"down {gctx.state['pool']}")

    @app.get("/pool")
    async def pool(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        res.json(gctx.state["pool"])
        gctx.state["pool"] = "used"

    return app


def test_each_simulation_of_an_app_has_a_start_a_state_and_an_end_of_its_own() -> None:
    log: list[str] = []
    app = counted(log)

    for _ in range(2):
        with simulate(app) as fabric:
            assert fabric.get("/pool").json() == "open"
            assert fabric.get("/pool").json() == "used"

    assert log == ["up", "leaving", "down used"] * 2
    fabric.shutdown()
    assert len(log) == 6


def test_a_failed_start_ends_what_had_started() -> None:
    log: list[str] = []
    broken = App("broken")

    @broken.on_startup
    async def fails(gctx: GlobalContext) -> None:
        raise LookupError("no database")

    before = threading.enumerate()
    with pytest.raises(StartupFailed, match="no database"), simulate(counted(log), broken):
        pass

    assert log == ["up", "leaving", "down open"]
    assert left_since(before) == []


def test_shutting_down_lets_requests_finish_and_ends_the_rest() -> None:
    log: list[str] = []
    app = App("shop")

    @app.get("/{seconds}", timeout_s=1000)
    async def handler(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        lctx.lifecycle.on_cleanup(lambda: log.append(f"{req.params['seconds']} cleaned"))
        async with res.stream() as stream:
            await stream.write("x")
            await asyncio.sleep(float(req.params["seconds"]))
            log.append(f"{req.params['seconds']} done")

    @app.websocket("/socket")
    async def socket(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        async for _ in lctx.websocket:
            pass
        log.append(f"socket {lctx.websocket.close_code}")

    with simulate(app) as fabric:
        fabric.websocket("/socket")
        fabric.stream("GET", "/5")
        fabric.stream("GET", "/500")

    assert log == ["socket 1001", "5 done", "5 cleaned", "500 cleaned"]


def test_what_is_spawned_and_detached_is_waited_for_and_then_cut_off() -> None:
    log: list[str] = []
    app = App("shop")

    async def work(seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
            log.append(f"{seconds} done")
        except asyncio.CancelledError:
            log.append(f"{seconds} cut")
            raise

    @app.get("/x")
    async def handler(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        gctx.spawn(work(7))
        gctx.spawn(work(700))

    @handler.after(detached=True)
    async def detached(gctx: GlobalContext, lctx: LocalContext) -> None:
        await work(2)

    with simulate(app) as fabric:
        assert fabric.get("/x").status == 204
        assert log == []

    assert log == ["2 done", "7 done", "700 cut"]


def test_a_handler_that_does_not_listen_is_counted_and_does_not_hold_up_the_end() -> None:
    app = App("shop")

    @app.get("/x", timeout_s=1)
    async def deaf(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                continue

    with simulate(app) as fabric:
        start = fabric.now()
        assert_response(fabric.get("/x")).problem(504, "handler.timeout")
        assert fabric.now() - start == pytest.approx(3, abs=0.1)
        assert fabric.metrics.abandoned == 1


def test_a_thread_that_blocks_is_answered_for_in_real_time() -> None:
    go_on = threading.Event()
    app = App("shop")

    @app.get("/{how}", timeout_s=0.2)
    def blocks(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        if req.params["how"] == "blocks":
            go_on.wait(10)
        res.json(threading.current_thread() is not threading.main_thread())

    try:
        with simulate(app) as fabric:
            assert fabric.get("/quick").json() is True
            assert_response(fabric.get("/blocks")).problem(504, "handler.timeout")
            go_on.set()
    finally:
        go_on.set()


def test_nothing_is_left_behind_not_even_by_a_test_that_fails() -> None:
    def run(*, fails: bool) -> None:
        with simulate(shop()) as fabric:
            fabric.get("/ping")
            fabric.websocket("/echo").send("x")
            fabric.websocket("/deaf")
            fabric.stream("GET", "/ticks")
            assert not fails, "of the test"

    run(fails=False)
    before = threading.enumerate()
    for _ in range(5):
        run(fails=False)
        with pytest.raises(AssertionError, match="of the test"):
            run(fails=True)

    assert left_since(before) == []
    gc.collect()
    assert [each for each in gc.get_objects() if isinstance(each, asyncio.Task) and not each.done()] == []


def test_what_the_test_leaves_running_is_named_at_the_end() -> None:
    fabric = simulate(shop())
    fabric.start()

    async def leave() -> None:
        fabric.kept = asyncio.create_task(asyncio.sleep(3600), name="left by the test")  # type: ignore[attr-defined]

    fabric.run(leave())
    with pytest.raises(AssertionError, match="left by the test"):
        fabric.shutdown()


# -- several apps -------------------------------------------------------------------------------


def teller(name: str, path: str) -> App:
    """An app that shares a bucket and a topic."""
    app = App(name)
    app.bucket("shared")

    @app.post(path)
    async def tell(req: Request[Any], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        await gctx.buckets["shared"].put("by", name.encode())
        await gctx.publish_durable("told", req.body)
        gctx.state["told"] = True
        res.json([gctx.instance.app, sorted(gctx.state)])

    @app.subscribe("told", durable="all")
    async def hear(event: Event, gctx: GlobalContext) -> None:
        gctx.state.setdefault("heard", []).append(event.payload)

    return app


def test_apps_share_buckets_and_topics_and_nothing_else() -> None:
    with simulate(teller("one", "/one"), teller("two", "/two")) as fabric:
        assert fabric.post("/one", json=1).json() == ["one", ["told"]]
        entry = fabric.run(fabric.bucket("shared").get("by"))
        assert entry is not None
        assert entry.value == b"one"
        assert fabric.post("/two", json=2).json() == ["two", ["heard", "told"]]
        fabric.advance(0.1)
        assert [fabric.global_context(app).state["heard"] for app in ("one", "two")] == [[1, 2], [1, 2]]
        assert fabric.metrics.by_route == {"/one": 1, "/two": 1}


def test_a_test_listens_and_publishes() -> None:
    with simulate(teller("one", "/one")) as fabric:

        async def hear() -> list[Any]:
            topics = fabric.topics()
            async with topics.subscribe("told") as events:
                await fabric.arequest("POST", "/one", json=7)
                heard = [(await events.next()).payload]
                await topics.publish_durable("told", 8)
                heard.append((await events.next()).payload)
            await topics.aclose()
            return heard

        assert fabric.run(hear()) == [7, 8]
        fabric.advance(0.1)
        assert fabric.global_context("one").state["heard"] == [7, 8]


def test_what_cannot_be_simulated_is_refused() -> None:
    for options in ({"max_in_flight": 0}, {"worker_slots": 0}, {"request_timeout_s": 0}, {"hooks": {"around": []}}):
        with pytest.raises(ValueError):
            simulate(shop(), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        simulate()
    app = shop()
    with pytest.raises(ValueError, match="only once"):
        simulate(app, app)


def test_threads_call_back_into_the_simulation() -> None:
    app = App("shop")

    @app.get("/x")
    async def handler(req: Request[None], res: Response[Any], gctx: GlobalContext, lctx: LocalContext) -> None:
        def work() -> str:
            return str(anyio.from_thread.run(asyncio.sleep, 20, "an hour"))

        res.json(await anyio.to_thread.run_sync(work))

    with simulate(app, request_timeout_s=100) as fabric:
        assert fabric.get("/x").json() == "an hour"
        assert isinstance(fabric, Simulation)
