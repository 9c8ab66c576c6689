"""One suite over a simulation and over a real fabric, so that the two cannot drift apart."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from gati_testing import Answer, BuiltRequest, RequestBuilder, simulate, strategies
from gati_testing._execution import _ABANDON_AFTER_S, _CANCEL_AGAIN_S, _SOCKET_GRACE_S
from gati_worker import execution
from tests.helpers.processes import running_fabric
from tests.helpers.sides import RealSide, Refused, Side, SimulatedSide, comparable, real_side
from tests.helpers.waiting import eventually
from tests.packages import contract_app, echo_app, live_app

REQUEST_TIMEOUT_S = 2.0
MAX_BODY_BYTES = 100_000
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedSide]:
    """A simulation of the three packages."""
    apps = (contract_app.app, echo_app.app, live_app.app)
    with simulate(*apps, request_timeout_s=REQUEST_TIMEOUT_S, max_body_bytes=MAX_BODY_BYTES) as simulation:
        yield SimulatedSide(simulation)


@pytest.fixture(scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealSide]:
    """A fabric of the same packages, with the same limits."""
    packages = ["contract_app.py", "echo_app.py", "live_app.py"]
    environment = {
        "GATI_INGRESS_REQUEST_TIMEOUT_S": str(REQUEST_TIMEOUT_S),
        "GATI_INGRESS_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    }
    directory = tmp_path_factory.mktemp("contracts")
    async with (
        running_fabric(directory, packages=packages, environment=environment) as fabric,
        real_side(fabric) as side,
    ):
        yield side


@pytest.fixture(params=["simulation", "fabric"])
def side(request: pytest.FixtureRequest, simulated: SimulatedSide, real: RealSide) -> Side:
    """Each of them."""
    return simulated if request.param == "simulation" else real


def test_the_limits_of_the_kit_are_those_of_a_worker() -> None:
    assert (_CANCEL_AGAIN_S, _ABANDON_AFTER_S, _SOCKET_GRACE_S) == (
        execution._CANCEL_AGAIN_S,
        execution._ABANDON_AFTER_S,
        execution._SOCKET_GRACE_S,
    )


# -- one request, one answer --------------------------------------------------------------------


def ask(method: str, path: str, body: bytes = b"", **headers: str) -> BuiltRequest:
    """A request exactly as it is written; underscores in names of headers are dashes."""
    target, _, query = path.partition("?")
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return BuiltRequest(method=method, path=target, query=query, body=body, headers=pairs)


def get(path: str, **headers: str) -> BuiltRequest:
    """A GET."""
    return ask("GET", path, **headers)


def post(path: str, body: bytes = b"", content_type: str = "application/json", **headers: str) -> BuiltRequest:
    """A POST."""
    return ask("POST", path, body, **({"content_type": content_type} if body else {}), **headers)


TWICE = BuiltRequest(path="/echo", headers=[("x-twice", "one"), ("x-twice", "two"), ("cookie", "a=1; b=2")])

CASES: dict[str, tuple[BuiltRequest, int, str]] = {
    # routing
    "unknown": (get("/nowhere"), 404, "route.not_found"),
    "root": (get("/"), 404, "route.not_found"),
    "wrong-method": (ask("DELETE", "/text"), 405, "route.method_not_allowed"),
    "wrong-method-post": (get("/saga/k/fine"), 405, "route.method_not_allowed"),
    "odd-method": (ask("PROPFIND", "/text"), 405, "route.method_not_allowed"),
    "socket-only": (get("/greeter"), 426, "route.upgrade_required"),
    "parameters": (get("/items/a%2Fb/%C3%BC%20x"), 200, ""),
    "static-first": (get("/items/special/7"), 200, ""),
    "bad-escape": (get("/items/%zz/1"), 400, "request.bad_path"),
    "not-utf-8": (get("/items/%ff/1"), 400, "request.bad_path"),
    "null": (get("/items/a%00/1"), 400, "request.bad_path"),
    "slashes": (get("//text//"), 200, ""),
    "trailing-slash": (get("/text/"), 200, ""),
    "case": (get("/Text"), 404, "route.not_found"),
    # what arrives
    "query": (get("/echo?a=1&a=2&b=%C3%BC&empty=&plus=x+y&bare"), 200, ""),
    "bad-query": (get("/echo?" + "a&" * 2000), 400, "request.bad"),
    "repeated-headers": (TWICE, 200, ""),
    "hop-by-hop": (get("/echo", te="trailers", proxy_connection="x"), 200, ""),
    "request-id": (get("/echo", x_request_id="mine"), 200, ""),
    "aliases": (get("/echo", x_flags="one", x_version="4102444800", x_priority="9"), 200, ""),
    "flags": (get("/facts", x_gati_flags="Beta, trace ,,x", x_gati_priority="0"), 200, ""),
    "trace-id": (get("/facts", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), 200, ""),
    "bad-trace-id": (get("/facts", traceparent="nonsense"), 200, ""),
    "idempotency": (post("/echo", idempotency_key="k-1"), 200, ""),
    "json": (post("/echo", b'{"a": [1, null]}'), 200, ""),
    "form": (post("/echo", b"a=1&b=2&a=3", "application/x-www-form-urlencoded"), 200, ""),
    "text-body": (post("/echo", "grüße".encode(), "text/plain; charset=utf-8"), 200, ""),
    "octets": (post("/mirror", b"\x00\xff\r\n", "application/octet-stream"), 200, ""),
    "no-body": (post("/echo"), 200, ""),
    "get-with-body": (ask("GET", "/echo", b"{}", content_type="application/json"), 200, ""),
    "bad-json": (post("/echo", b"{"), 400, "request.invalid_body"),
    "bad-text": (post("/echo", b"\xff", "text/plain"), 400, "request.invalid_body"),
    "too-large": (post("/digest", bytes(MAX_BODY_BYTES + 1)), 413, "request.body_too_large"),
    "just-small-enough": (post("/digest", bytes(MAX_BODY_BYTES)), 200, ""),
    "options": (ask("OPTIONS", "/echo"), 200, ""),
    # types
    "typed": (post("/receipts", b'{"id": "r", "pieces": 2}'), 201, ""),
    "typed-wrong": (post("/receipts", b'{"id": 7}'), 400, "request.invalid_body"),
    "typed-missing": (post("/receipts"), 400, "request.invalid_body"),
    "typed-rules": (post("/orders", b'{"sku": "", "quantity": 0}'), 400, "request.invalid_body"),
    "typed-media": (post("/receipts", b'{"id": "r"}', "text/csv"), 415, "request.unsupported_media_type"),
    "answer-good": (get("/typed/good"), 200, ""),
    "answer-bad": (get("/typed/bad"), 500, "response.invalid"),
    "answer-text": (get("/typed/text"), 500, "response.invalid"),
    "answer-of-a-404": (get("/typed/bad-but-404"), 404, ""),
    "answer-end": (get("/typed/nothing"), 204, ""),
    "answer-none": (get("/typed/silent"), 204, ""),
    "unencodable": (get("/unencodable"), 500, "internal"),
    # answers
    "text": (get("/text"), 200, ""),
    "head": (ask("HEAD", "/text"), 200, ""),
    "head-of-an-error": (ask("HEAD", "/broken"), 500, ""),
    "head-unknown": (ask("HEAD", "/nowhere"), 404, ""),
    "head-of-a-stream": (ask("HEAD", "/streams/large"), 206, ""),
    "nothing": (get("/nothing"), 204, ""),
    "own-headers": (get("/headers"), 203, ""),
    "204-with-body": (get("/statuses/204"), 204, ""),
    "205": (get("/statuses/205"), 205, ""),
    "304": (get("/statuses/304"), 304, ""),
    "599": (get("/statuses/599"), 599, ""),
    "bad-status": (get("/statuses/99"), 500, "internal"),
    "redirect": (get("/redirects/302"), 302, ""),
    "redirect-308": (get("/redirects/308"), 308, ""),
    "bad-redirect": (get("/redirects/200"), 500, "internal"),
    "bytes": (get("/bytes/70000"), 200, ""),
    "thread": (ask("POST", "/points", b'[{"x": 1}, {"x": 2, "y": 3}]', content_type="application/json"), 200, ""),
    # errors
    "handler-error": (get("/refuse/418"), 418, "echo.refused"),
    "handler-error-503": (get("/refuse/503"), 503, "echo.refused"),
    "bug": (get("/broken"), 500, "internal"),
    "bug-after-the-answer": (get("/broken-late"), 200, ""),
    "base-exception": (post("/exit-exception"), 500, "internal"),
    "system-exit": (post("/odd/system-exit"), 500, "internal"),
    "generator-exit": (post("/odd/generator-exit"), 500, "internal"),
    "stop-iteration": (post("/odd/stop-iteration"), 500, "internal"),
    "raises-cancelled": (post("/odd/cancelled"), 500, "internal"),
    "cancels-itself": (post("/odd/cancels-its-task"), 500, "internal"),
    "answers-twice": (post("/odd/answers-twice"), 200, ""),
    "answers-and-fails": (post("/odd/answers-and-fails"), 200, ""),
    "returns": (post("/returns"), 204, ""),
    "leaks-a-task": (post("/leaks"), 200, ""),
    # hooks
    "order": (get("/order/fine"), 200, ""),
    "order-of-a-failure": (get("/order/fails"), 418, "contract.refused"),
    "guard-lets-through": (get("/guarded/fine"), 200, ""),
    "guard-401": (get("/guarded/unknown"), 401, "auth.unauthenticated"),
    "guard-403": (get("/guarded/forbidden"), 403, "auth.forbidden"),
    "guard-429": (get("/guarded/limited"), 429, "rate.limited"),
    "guard-own": (get("/guarded/own"), 422, "contract.own"),
    "guard-bug": (get("/guarded/raises"), 500, "internal"),
    "guard-hangs": (get("/guarded/hangs"), 504, "hook.timeout"),
    "guard-answers": (get("/guarded/answers"), 203, ""),
    "guard-retries": (get("/guarded/second-time"), 200, ""),
    "catch-global": (get("/caught/translated"), 409, ""),
    "catch-route": (get("/caught/answered"), 200, ""),
    "catch-local": (get("/caught/local"), 410, ""),
    "catch-raises": (get("/caught/raises"), 500, "internal"),
    "catch-undeclared": (get("/caught/undeclared"), 500, "internal"),
    "catch-silent": (get("/caught/nothing"), 500, "internal"),
    "odd-hooks": (post("/hooks/raises-after"), 500, "internal"),
    "middleware": (get("/middle/fine"), 200, ""),
    "middleware-answers": (get("/middle/stops"), 402, ""),
    "middleware-rescues": (get("/middle/rescued"), 410, ""),
    "middleware-fails": (get("/middle/fails"), 500, "internal"),
    # time
    "in-time": (get("/waits/0.01"), 200, ""),
    "own-limit": (get("/limited"), 504, "handler.timeout"),
    "own-limit-in-a-thread": (get("/blocked"), 504, "handler.timeout"),
    "own-limit-deaf": (get("/deaf"), 504, "handler.timeout"),
    "state": (get("/isolated/x"), 200, ""),
    "snapshot": (get("/restored"), 200, ""),
    "facts": (get("/facts"), 200, ""),
    # streams
    "stream": (get("/streams/whole"), 206, ""),
    "stream-of-a-large-part": (get("/streams/large"), 206, ""),
    "stream-cut": (get("/streams/fails"), 206, ""),
    "stream-cut-at-once": (get("/streams/begins-and-fails"), 200, ""),
    "stream-never-begun": (get("/streams/fails-first"), 503, "contract.not_today"),
    "stream-too-slow": (get("/streams/late"), 206, ""),
    "many-parts": (get("/count/500"), 200, ""),
    "events": (get("/events/3"), 200, ""),
    "breaks": (get("/breaks/3"), 200, ""),
    "no-parts": (get("/count/0"), 200, ""),
}


@pytest.mark.parametrize("case", CASES)
async def test_both_give_the_same_answer(case: str, simulated: SimulatedSide, real: RealSide) -> None:
    request, status, code = CASES[case]

    ours, theirs = await simulated.send(request), await real.send(request)

    assert (theirs.status, theirs.code) == (status, code)
    assert comparable(ours) == comparable(theirs)
    assert b"hunter2" not in ours.body + theirs.body


async def test_both_say_that_the_ingress_has_stopped_waiting(side: Side) -> None:
    """Who of ingress and worker notices first is open; what the client is told is not."""
    answer = await side.send(get("/waits/20"))

    assert (answer.status, answer.code) == (504, "request.deadline_exceeded")


@pytest.mark.parametrize("name", ["date", "allow", "www-authenticate", "retry-after", "location", "upgrade"])
async def test_what_errors_and_redirects_say_in_headers(name: str, side: Side) -> None:
    """The comparison above is of no use where both are wrong."""
    wanted = {
        "date": (get("/text"), None),
        "allow": (ask("DELETE", "/text"), "GET, HEAD"),
        "www-authenticate": (get("/guarded/unknown"), "Bearer"),
        "retry-after": (get("/guarded/limited"), "7"),
        "location": (get("/redirects/302"), "/elsewhere?a=1"),
        "upgrade": (get("/greeter"), "websocket"),
    }
    request, value = wanted[name]

    answer = await side.send(request)

    assert value is None or answer.header(name) == value


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=strategies.requests(path="/echo"))
async def test_a_request_of_any_kind_is_echoed_alike(
    request: BuiltRequest, simulated: SimulatedSide, real: RealSide
) -> None:
    ours, theirs = await simulated.send(request), await real.send(request)

    assert comparable(ours) == comparable(theirs)


# -- several requests ---------------------------------------------------------------------------


def key() -> str:
    """A key that no other test has."""
    return uuid.uuid4().hex


async def noted(side: Side, name: str) -> Any:
    """What handlers noted under a key."""
    return (await side.send(get(f"/notes/{name}"))).json()


@pytest.mark.parametrize(
    ("end", "status", "note"),
    [
        ("fine", 200, "one two cleanup"),
        ("fails", 409, "one two error undone-two undone-one cleanup"),
        ("bug", 500, "one two error undone-two undone-one cleanup"),
        ("late", 504, "one two timeout error undone-two undone-one cleanup"),
        ("after-answer", 200, "one two error cleanup"),
    ],
)
async def test_what_was_done_is_undone_and_cleaned_up(side: Side, end: str, status: int, note: str) -> None:
    name = key()

    answer = await side.send(post(f"/saga/{name}/{end}"))

    assert answer.status == status

    async def is_noted() -> bool:
        return await noted(side, name) == note

    await eventually(is_noted, within_s=5)


async def test_requests_at_once_have_their_own_state(side: Side) -> None:
    answers = await side.send_all([get(f"/isolated/{number}") for number in range(40)])

    assert [answer.json() for answer in answers] == [[None, str(number)] for number in range(40)]
    assert len({answer.request_id for answer in answers}) == 40


async def test_compare_and_set_loses_no_update(side: Side) -> None:
    name = key()

    answers = await side.send_all([post(f"/counters/{name}") for _ in range(20)])

    assert [answer.status for answer in answers] == [200] * 20
    assert await noted(side, name) == "20"


@pytest.mark.parametrize(("topic", "note"), [("told", "told-7"), ("kept", "kept-7-2")])
async def test_events_reach_the_request_and_the_package(side: Side, topic: str, note: str) -> None:
    name = key()

    answer = await side.send(post(f"/events/{topic}/{name}", b"7"))

    assert answer.json() == 7

    async def is_noted() -> bool:
        if isinstance(side, SimulatedSide):
            side._simulation.advance(1)
        return await noted(side, name) == note

    await eventually(is_noted, within_s=10)


async def test_the_first_of_two_waits_does_not_hold_up_the_second(side: Side) -> None:
    began = time.monotonic()

    answers = await side.send_all([get("/waits/0.3") for _ in range(20)])

    assert [answer.status for answer in answers] == [200] * 20
    assert time.monotonic() - began < 5


# -- sockets ------------------------------------------------------------------------------------


async def test_a_socket_echoes_text_and_binary(side: Side) -> None:
    messages = ["", "grüße", b"", b"\x00\xff", "x" * 70_000, *map(str, range(200))]
    async with side.socket("/echo") as socket:
        for message in messages:
            await socket.send(message)

        assert [await socket.receive() for _ in messages] == messages


async def test_a_socket_has_the_handlers_subprotocol_and_headers(side: Side) -> None:
    async with side.socket("/protocols", subprotocols=["one", "two"]) as socket:
        assert await socket.receive() == "one,two"
        assert (socket.headers["sec-websocket-protocol"], socket.headers["x-chosen"]) == ("two", "last")
        assert len(socket.headers["x-request-id"]) == 36
        assert await socket.closed() == (1000, "")


REFUSALS = {
    "refused": ("/sockets/refused", 404, "contract.no_such_socket"),
    "ignored": ("/sockets/ignored", 403, "websocket.not_accepted"),
    "answered": ("/sockets/answered", 402, ""),
    "bug": ("/sockets/bug", 500, "internal"),
    "401": ("/refuses/401", 401, "live.refused"),
    "unknown": ("/no-such-socket", 404, "route.not_found"),
    "http-only": ("/text", 405, "route.method_not_allowed"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_both_refuse_a_handshake_alike(case: str, simulated: SimulatedSide, real: RealSide) -> None:
    path, status, code = REFUSALS[case]
    answers: list[Answer] = []
    for side in (simulated, real):
        with pytest.raises(Refused) as caught:
            async with side.socket(path):
                pass
        answers.append(caught.value.answer)

    ours, theirs = (comparable(_without(answer, "content-length", "connection")) for answer in answers)
    assert (answers[1].status, answers[1].code) == (status, code)
    assert ours == theirs


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("/sockets/fails", 1011, None),
        ("/sockets/own", 1011, "the handler's own"),
        ("/sockets/late", 1001, None),
        ("/sockets/1000", 1000, "as asked"),
        ("/sockets/4321", 4321, "as asked"),
        ("/sockets/1006", 1011, None),
        ("/sockets/echo", 1000, ""),
        ("/brief", 1001, None),
    ],
)
async def test_a_handlers_end_is_the_sockets(side: Side, path: str, code: int, reason: str | None) -> None:
    async with side.socket(path) as socket:
        if not path.endswith("late"):
            await socket.send("x")
        closed = await socket.closed()

    assert closed == (code, closed[1] if reason is None else reason)
    assert "hunter2" not in closed[1]


@pytest.mark.parametrize("code", [1000, 1001, 4321])
async def test_a_clients_close_is_the_handlers_to_see(side: Side, code: int) -> None:
    name = key()
    async with side.socket("/sockets/notes") as socket:
        await socket.send(name)
        await socket.close(code)

    async def is_noted() -> bool:
        return await noted(side, name) == f"closed-{code}"

    await eventually(is_noted, within_s=5)


async def test_a_handler_waits_for_its_clients_event(side: Side) -> None:
    async with side.socket("/greeter") as socket:
        request_id = await socket.receive()
        await socket.send("no event")
        await socket.send('{"type": "hello", "data": {"name": "ada"}}')
        greeting = str(await socket.receive())

        assert f'"request_id":"{request_id}"' in greeting
        assert '"data":{"to":{"name":"ada"}}' in greeting
        assert (await socket.closed())[0] == 1000


def _without(answer: Answer, *names: str) -> Answer:
    answer.headers = [pair for pair in answer.headers if pair[0] not in names]
    return answer


async def test_nobody_waits_for_a_client_that_leaves(side: Side) -> None:
    """Cancelled is the handler then, and its cleanup still runs."""
    name = key()
    request = RequestBuilder("POST", f"/saga/{name}/late").build()
    if isinstance(side, SimulatedSide):
        with pytest.raises(TimeoutError):
            side._simulation.run(side._simulation.arequest(request), within_s=0.3)
        side._simulation.advance(0.1)
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await side.send(request)

    async def is_noted() -> bool:
        return await noted(side, name) == "one two error undone-two undone-one cleanup"

    await eventually(is_noted, within_s=5)
