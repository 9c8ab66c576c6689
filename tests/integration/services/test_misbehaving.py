"""Hooks, handlers and clients that do what they should not, and when each of them is ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from gati_core.fabric import Fabric, open_fabric
from tests.helpers.notes import Notes, now_ms, trace_of
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually
from tests.integration.services.test_operations import samples
from tests.integration.services.test_streaming_edge import Reading
from tests.integration.services.test_streams import CANCELLED_WITHIN_MS, id_of, id_of_socket
from tests.integration.services.test_websocket_edge import dial

THREADS = 3
AT_ONCE_S = 2.0


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """One process of each kind, with few threads; nothing that its handlers do ends one."""
    environment = {"GATI_WORKER_THREADS": str(THREADS), "GATI_INGRESS_REQUEST_TIMEOUT_S": "8"}
    directory = tmp_path_factory.mktemp("live")
    async with running_fabric(directory, packages=["live_app.py"], environment=environment) as fabric:
        yield fabric
        assert not fabric.workers[0].events("worker_crashed")
        assert not fabric.workers[0].events("execution_failed")


@pytest.fixture
async def client(live: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with live.client() as client:
        yield client


@pytest.fixture
async def inside(live: FabricUnderTest) -> AsyncIterator[Fabric]:
    async with open_fabric(live.settings, name="test") as fabric:
        yield fabric


@pytest.fixture
def notes(live: FabricUnderTest) -> Notes:
    return Notes(live.ledger.path)


def id_in(answer: httpx.Response) -> str:
    request_id: str = answer.headers["x-request-id"]
    return request_id


async def logged(fabric: FabricUnderTest, event: str, request_id: str) -> dict[str, Any]:
    """The worker's log line of this kind about a request; there is one."""

    def found() -> list[dict[str, Any]]:
        return [each for each in fabric.workers[0].events(event) if each.get("request_id") == request_id]

    await eventually(found, within_s=5)
    lines = found()
    assert len(lines) == 1
    return lines[0]


def tells_nothing(answer: httpx.Response) -> bool:
    return not any(word in answer.text for word in ("hunter2", "Traceback", "live_app", "Error("))


# -- hooks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "status", "code", "hook"),
    [
        ("raises", 500, "internal", "strange"),
        ("exits", 500, "internal", "strange"),
        ("hangs", 504, "hook.timeout", "strange"),
        ("blocks", 504, "hook.timeout", "stubborn"),
        ("registers-for-ever", 500, "internal", "endless"),
    ],
)
async def test_a_before_hook_that_fails_keeps_the_handler_from_running(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes, what: str, status: int, code: str, hook: str
) -> None:
    began = time.monotonic()
    answer = await client.post(f"/hooks/{what}")

    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert time.monotonic() - began < AT_ONCE_S
    assert tells_nothing(answer)
    line = await logged(live, "hook_timed_out" if code == "hook.timeout" else "handler_failed", id_in(answer))
    assert (line["hook"], line["handler"]) == (hook, "hooked")
    assert ("exception" in line) is (code != "hook.timeout")
    await notes.said(id_in(answer), "hooked-cleanup")
    said = [words.split(" ")[0] for words in notes.of(id_in(answer))]
    assert said == ["hooked-compensated", "hooked-catch", "hooked-cleanup"]


async def test_a_catch_hook_that_fails_is_logged_and_the_next_one_runs(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes
) -> None:
    answer = await client.post("/hooks/raises")

    assert (await notes.said(id_in(answer), "hooked-catch")) == ["RuntimeError"]
    line = await logged(live, "catch_hook_failed", id_in(answer))
    assert line["hook"] == "inner-catch"
    assert "in a catch hook" in str(line["exception"])


async def test_an_after_hook_that_fails_takes_the_answer_back(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes
) -> None:
    answer = await client.post("/hooks/raises-after")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert tells_nothing(answer)
    assert (await logged(live, "handler_failed", id_in(answer)))["hook"] == "odd-after"
    await notes.said(id_in(answer), "hooked-cleanup")
    said = [words.split(" ")[0] for words in notes.of(id_in(answer))]
    assert said == ["hooked-handler", "hooked-compensated", "hooked-catch", "hooked-cleanup"]


async def test_what_hooks_return_means_nothing(client: httpx.AsyncClient) -> None:
    answer = await client.post("/hooks/nothing")

    assert (answer.status_code, answer.json()) == (200, ["first", "strange", "handler"])


async def test_hooks_registered_while_hooks_run_take_their_turn_or_are_refused(
    client: httpx.AsyncClient, notes: Notes
) -> None:
    answer = await client.post("/hooks/registers")

    assert answer.json() == ["first", "strange", "added", "added by added", "handler"]
    assert answer.headers["x-too-late"] == "TooLate"
    await notes.said(id_in(answer), "hooked-after")


# -- handlers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["answers-twice", "answers-and-fails"])
async def test_an_answer_that_was_given_stands_whatever_follows_it(
    live: FabricUnderTest, client: httpx.AsyncClient, what: str
) -> None:
    answer = await client.post(f"/odd/{what}")

    assert (answer.status_code, answer.json()) == (200, {"answer": 1})
    assert (await logged(live, "handler_failed_after_response", id_in(answer)))["handler"] == "odd"


@pytest.mark.parametrize(
    ("what", "event"),
    [
        ("generator-exit", "handler_failed"),
        ("system-exit", "handler_failed"),
        ("stop-iteration", "handler_failed"),
        ("cancelled", "handler_cancelled_itself"),
        ("cancels-its-task", "handler_cancelled_itself"),
    ],
)
async def test_whatever_a_handler_raises_is_a_500_and_ends_only_its_own_request(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes, what: str, event: str
) -> None:
    neighbour = asyncio.create_task(client.post("/slow/0.3"))
    answer = await client.post(f"/odd/{what}")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal"), answer.text
    assert tells_nothing(answer)
    assert (await logged(live, event, id_in(answer)))["handler"] == "odd"
    await notes.said(id_in(answer), "odd-cleanup")
    assert notes.of(id_in(answer)) == ["odd-cleanup"]
    assert (await neighbour).json() == {"slept": True}


async def test_what_would_end_a_program_ends_only_the_request(live: FabricUnderTest, client: httpx.AsyncClient) -> None:
    answer = await client.post("/exit-exception")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert tells_nothing(answer)
    assert "KeyboardInterrupt" in str((await logged(live, "handler_failed", id_in(answer)))["exception"])


async def test_a_handler_that_never_answers_is_a_204(client: httpx.AsyncClient) -> None:
    answer = await client.post("/odd/nothing")

    assert (answer.status_code, answer.content) == (204, b"")


async def test_what_a_handler_returns_is_not_sent_and_the_log_says_so_once(
    live: FabricUnderTest, client: httpx.AsyncClient
) -> None:
    answers = [await client.post("/returns") for _ in range(3)]

    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 3
    lines = [each for each in live.workers[0].events("return_value_ignored") if each["handler"] == "returns"]
    assert [line["type"] for line in lines] == ["dict"]
    assert "hunter2" not in live.workers[0].log().replace("password=hunter2", "")


async def test_an_answer_written_after_the_request_ended_goes_nowhere(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes
) -> None:
    answer = await client.post("/keeps-the-answer")

    assert answer.json() == {"runs on": True}
    assert await notes.said(id_in(answer), "late-answer") == ["ResponseAlreadySent"]


async def test_tasks_that_a_handler_forgets_end_with_its_request(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes
) -> None:
    answer = await client.post("/leaks")

    assert answer.json() == {"left": 1}
    await notes.said(id_in(answer), "leaked-cancelled")
    assert (await logged(live, "tasks_leaked", id_in(answer)))["tasks"] == ["leaks.<locals>.forgotten"]


async def test_a_handler_that_swallows_its_cancellation_is_answered_for_and_left_alone(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes
) -> None:
    began = time.monotonic()
    answer = await client.post("/swallows")

    assert (answer.status_code, answer.json()["code"]) == (504, "handler.timeout")
    assert time.monotonic() - began < 5
    assert (await logged(live, "cancellation_ignored", id_in(answer)))["handler"] == "swallows"
    await notes.said(id_in(answer), "swallows-cleanup")
    await notes.said(id_in(answer), "swallows-returned", within_s=15)
    assert [words.split(" ")[0] for words in notes.of(id_in(answer))] == ["swallows-cleanup", "swallows-returned"]


async def test_more_threads_than_there_are_may_hang_and_others_still_run(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes
) -> None:
    """A thread cannot be stopped; it is abandoned at the handler's limit of 0.3 s, and its place is free."""
    hanging = await asyncio.gather(*(client.post("/thread/4") for _ in range(2 * THREADS)))
    began = time.monotonic()
    quick = await client.post("/thread/0")

    assert {(answer.status_code, answer.json()["code"]) for answer in hanging} == {(504, "handler.timeout")}
    assert (quick.status_code, quick.json()) == (200, {"late": True})
    assert time.monotonic() - began < AT_ONCE_S
    # Those that had a thread find out when they come back; the others never ran.
    started = [id_in(answer) for answer in hanging if notes.of(id_in(answer))]
    assert len(started) >= THREADS
    for request_id in started:
        assert await notes.said(request_id, "thread-late", within_s=15) == ["ResponseAlreadySent"]
        said = [words.split(" ")[0] for words in notes.of(request_id)]
        assert said == ["thread-begun", "thread-cleanup", "thread-late"]


async def test_a_process_with_too_many_abandoned_handlers_is_replaced(tmp_path: Path) -> None:
    environment = {
        "GATI_WORKER_MAX_ABANDONED": "4",
        "GATI_WORKER_DRAIN_GRACE_S": "1",
        "GATI_WORKER_RESTART_DELAY_S": "0",
    }
    app = running_fabric(tmp_path, packages=["live_app.py"], environment=environment)
    async with app as fabric, fabric.client() as client:
        worker = fabric.workers[0]
        answers = await asyncio.gather(*(client.post("/thread/60") for _ in range(4)))
        assert {answer.status_code for answer in answers} == {504}
        await eventually(lambda: worker.events("worker_worn_out"), within_s=5)
        # It serves on until the new process is ready.
        while len(worker.events("package_started")) < 2:
            assert (await client.post("/thread/0")).status_code == 200
        assert worker.events("worker_replaced") or not worker.events("worker_crashed")
        assert len({each["pid"] for each in worker.events("package_started")}) == 2

        async def serves() -> bool:
            return (await client.post("/thread/0")).status_code == 200

        await eventually(serves, within_s=15)
        assert int(worker.events("worker_worn_out")[0]["abandoned"]) >= 4


async def test_open_channels_leave_the_places_of_requests_alone_and_have_a_limit_of_their_own(tmp_path: Path) -> None:
    environment = {"GATI_WORKER_MAX_IN_FLIGHT": "2", "GATI_WORKER_MAX_CHANNELS": "5"}
    app = running_fabric(tmp_path, packages=["live_app.py"], environment=environment)
    async with app as fabric, fabric.client() as client, AsyncExitStack() as stack:
        notes = Notes(fabric.ledger.path)
        sockets = [await stack.enter_async_context(dial(fabric, "/echo")) for _ in range(3)]
        for _ in range(2):
            reading = stack.enter_context(Reading(fabric, b"GET /forever HTTP/1.1\r\nhost: x\r\n\r\n"))
            await reading.until(b"begun")

        answers = [await client.post("/slow/0") for _ in range(5)]
        assert {answer.status_code for answer in answers} == {200}
        refused = await client.get("/count/1")
        assert (refused.status_code, refused.json()["code"]) == (503, "worker.too_many_channels")
        assert int(refused.headers["retry-after"]) >= 1
        with pytest.raises(InvalidStatus) as caught:
            await dial(fabric, "/echo")
        assert caught.value.response.status_code == 503

        await sockets[0].close()
        await notes.said(id_of_socket(sockets[0]), "echo-cleanup")
        assert (await client.get("/count/1")).text == "0\n"
        for _ in range(8):  # each gives its place back, once
            assert (await client.get("/count/1")).status_code == 200
        await sockets[1].send("still here")
        assert await sockets[1].recv() == "still here"


# -- when handlers end --------------------------------------------------------------------------


async def test_the_handlers_own_limit_ends_it_at_once(
    live: FabricUnderTest, client: httpx.AsyncClient, inside: Fabric, notes: Notes
) -> None:
    answers = await asyncio.gather(*(client.post("/limited", headers={"x-gati-flags": "trace"}) for _ in range(10)))

    late_ms = []
    for answer in answers:
        request_id = id_in(answer)
        assert (answer.status_code, answer.json()["code"]) == (504, "handler.timeout")
        await notes.said(request_id, "limited-cleanup")
        deadline_ms = int((await notes.said(request_id, "limited-begun"))[0])
        late_ms.append(int((await notes.said(request_id, "limited-cancelled"))[0]) - deadline_ms)
        said = [words.split(" ")[0] for words in notes.of(request_id)]
        steps = ["begun", "cancelled", "timeout", "compensated", "cleanup"]
        assert said == [f"limited-{step}" for step in steps]
    print(f"\ncancelled {sorted(late_ms)} ms after the handler's limit")
    assert max(late_ms) < CANCELLED_WITHIN_MS
    assert (await trace_of(inside, id_in(answers[0]), "request:cancelled")).metadata == {"by": "deadline"}


async def test_the_requests_deadline_ends_the_handler_at_once(tmp_path: Path) -> None:
    environment = {"GATI_INGRESS_REQUEST_TIMEOUT_S": "1"}
    async with running_fabric(tmp_path, packages=["live_app.py"], environment=environment) as fabric:
        notes = Notes(fabric.ledger.path)
        async with fabric.client() as client, open_fabric(fabric.settings, name="test") as inside:
            began_ms = now_ms()
            answer = await client.post("/slow/15", headers={"x-gati-flags": "trace"})
            request_id = id_in(answer)
            assert (answer.status_code, answer.json()["code"]) == (504, "request.deadline_exceeded")
            late_ms = int((await notes.said(request_id, "slow-cancelled"))[0]) - began_ms - 1000
            print(f"\ncancelled {late_ms} ms after the request's deadline")
            assert late_ms < CANCELLED_WITHIN_MS
            assert (await trace_of(inside, request_id, "request:cancelled")).metadata == {"by": "deadline"}
            await notes.said(request_id, "slow-cleanup")
            assert [words.split(" ")[0] for words in notes.of(request_id)] == [
                "slow-begun",
                "slow-cancelled",
                "slow-cleanup",
            ]


# -- clients ------------------------------------------------------------------------------------


async def test_a_client_that_leaves_ends_its_handler_at_once(
    live: FabricUnderTest, inside: Fabric, notes: Notes
) -> None:
    took_ms = []
    for _ in range(10):
        beginning = asyncio.create_task(notes.began("slow-begun"))
        await asyncio.sleep(0)
        request = b"POST /slow/15 HTTP/1.1\r\nhost: x\r\nx-gati-flags: trace\r\ncontent-length: 0\r\n\r\n"
        with Reading(live, request):
            request_id = await beginning
            left_ms = now_ms()
        took_ms.append(int((await notes.said(request_id, "slow-cancelled"))[0]) - left_ms)
        assert (await trace_of(inside, request_id, "request:cancelled")).metadata == {"by": "client_gone"}
        await notes.said(request_id, "slow-cleanup")
        said = [words.split(" ")[0] for words in notes.of(request_id)]
        assert said == ["slow-begun", "slow-cancelled", "slow-cleanup"]
    print(f"\ncancelled {sorted(took_ms)} ms after the client had left")
    assert max(took_ms) < CANCELLED_WITHIN_MS


async def test_half_a_body_never_reaches_a_handler(live: FabricUnderTest, notes: Notes) -> None:
    before = len(notes.lines())
    for head in (b"content-length: 100\r\n\r\nhalf", b"transfer-encoding: chunked\r\n\r\n5\r\nhalf"):
        with Reading(live, b"POST /slow/0 HTTP/1.1\r\nhost: x\r\n" + head):
            pass

    with Reading(live, b"POST /slow/0 HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n") as whole:
        request_id = id_of(await whole.until(b"slept"))
    await notes.said(request_id, "slow-cleanup")
    assert {line.split(" ")[0] for line in notes.lines()[before:]} == {request_id}


async def test_a_client_that_reads_late_keeps_nobody_waiting(
    live: FabricUnderTest, client: httpx.AsyncClient, notes: Notes
) -> None:
    before = len(notes.lines())
    with Reading(
        live, b"POST /slow/0 HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n", receive_buffer=4096
    ) as reading:
        await eventually(lambda: any("slow-cleanup" in line for line in notes.lines()[before:]), within_s=10)
        assert (await client.post("/slow/0")).status_code == 200
        data = await reading.until(b"slept")

    assert data.startswith(b"HTTP/1.1 200 ")
    assert notes.of(id_of(data)) == ["slow-begun", "slow-done", "slow-cleanup"]


async def test_nothing_is_left_of_all_that(live: FabricUnderTest, client: httpx.AsyncClient) -> None:
    async def nothing_in_flight() -> bool:
        metrics = (await client.get("/metrics")).text
        names = ("gati_ingress_in_flight", "gati_ingress_streams", "gati_ingress_websockets")
        return all(sum(samples(metrics, name).values()) == 0 for name in names)

    await eventually(nothing_in_flight, within_s=10)
    assert (await client.get("/traced", headers={"x-gati-flags": "trace"})).json() == {"flags": ["trace"]}
