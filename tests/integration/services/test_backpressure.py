"""Full tables, full streams, a broker that is gone, clients that leave: refused quickly, and never run stale."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from gati_core.fabric import open_fabric, stream_state
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually
from tests.integration.services.conftest import StartFabric


def refusals(answers: list[httpx.Response], code: str) -> list[httpx.Response]:
    """Those refused for this reason, each as a client can understand it."""
    refused = [answer for answer in answers if answer.status_code == 503 and answer.json()["code"] == code]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    return refused


async def settled(fabric: FabricUnderTest) -> None:
    """Return once no stream holds work."""
    async with open_fabric(fabric.settings, name="test") as inside:

        async def is_empty() -> bool:
            streams = (inside.subjects.req_stream, inside.subjects.work_stream)
            return not any([(await stream_state(inside.connection, stream)).messages for stream in streams])

        await eventually(is_empty, within_s=10)


async def test_a_full_in_flight_table_refuses_the_next_request_at_once(start: StartFabric) -> None:
    async with start(environment={"GATI_INGRESS_MAX_IN_FLIGHT": "2"}) as fabric, fabric.client() as client:
        running = [
            asyncio.create_task(client.post("/once", json={"id": f"a{n}", "act": "sleep", "seconds": 0.8}))
            for n in range(2)
        ]
        await eventually(lambda: len(fabric.ledger.counts("start")) == 2, within_s=5)

        began = time.monotonic()
        third = await client.post("/once", json={"id": "third"})
        took_s = time.monotonic() - began

        assert (len(refusals([third], "ingress.overloaded")), took_s < 0.5) == (1, True)
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        assert (await client.post("/once", json={"id": "later"})).status_code == 200
        assert fabric.ledger.of("third") == []


async def test_a_full_request_stream_refuses_and_what_it_held_is_never_run_late(start: StartFabric) -> None:
    environment = {"GATI_FABRIC_REQ_MAX_MSGS": "3", "GATI_INGRESS_REQUEST_TIMEOUT_S": "1.5"}
    async with start(environment=environment) as fabric, fabric.client() as client:
        fabric.routers[0].pause()
        began = time.monotonic()
        # What the frozen router had already asked for is delivered to it and still counts as stored.
        answers = await asyncio.gather(*(client.post("/once", json={"id": f"a{n}"}) for n in range(8)))
        took_s = time.monotonic() - began

        assert len(refusals(list(answers), "fabric.backpressure")) == 5
        assert sorted(answer.status_code for answer in answers) == [503] * 5 + [504] * 3
        assert took_s < 3
        fabric.routers[0].resume()
        await settled(fabric)
        assert fabric.ledger.lines() == [], "a request was run after its client had got its 504"
        assert (await client.post("/once", json={"id": "b"})).status_code == 200


async def test_one_handlers_full_queue_refuses_its_requests_and_no_others(start: StartFabric) -> None:
    environment = {
        "GATI_FABRIC_WORK_MAX_MSGS_PER_HANDLER": "3",
        "GATI_WORKER_MAX_IN_FLIGHT": "2",
        "GATI_INGRESS_REQUEST_TIMEOUT_S": "8",
    }
    packages = ["ledger_app.py", "echo_app.py"]
    async with start(packages=packages, environment=environment) as fabric, fabric.client() as client:

        def ask(count: int, prefix: str) -> list[asyncio.Task[httpx.Response]]:
            errands = [{"id": f"{prefix}{n}", "act": "sleep", "seconds": 1.0} for n in range(count)]
            return [asyncio.create_task(client.post("/once", json=errand)) for errand in errands]

        running = ask(2, "running")
        await eventually(lambda: len(fabric.ledger.counts("start")) == 2, within_s=5)
        began = time.monotonic()
        waiting = ask(7, "waiting")
        await eventually(lambda: sum(task.done() for task in waiting) == 4, within_s=5)
        assert time.monotonic() - began < 0.9, "they waited for a slot instead of being refused"

        assert (await client.post("/again", json={"id": "b"})).status_code == 200
        assert (await client.get("/text")).status_code == 200
        assert [answer.status_code for answer in await asyncio.gather(*running)] == [200, 200]
        answers = await asyncio.gather(*waiting)
        assert len(refusals(answers, "fabric.backpressure")) == 4
        assert [answer.status_code for answer in answers].count(200) == 3


@pytest.fixture(scope="module")
async def robbed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """A fabric whose broker is taken away and given back; it notices a frozen one after a second."""
    environment = {"GATI_FABRIC_STALLED_AFTER_S": "1", "GATI_INGRESS_REQUEST_TIMEOUT_S": "4"}
    async with running_fabric(tmp_path_factory.mktemp("robbed"), environment=environment) as fabric:
        yield fabric


async def test_without_a_broker_requests_are_refused_quickly(robbed: FabricUnderTest) -> None:
    fabric = robbed
    async with fabric.client() as client:
        assert (await client.post("/once", json={"id": "a"})).status_code == 200
        fabric.broker.kill()

        async def is_refused() -> bool:
            answer = await client.post("/once", json={"id": "b"})
            return bool(refusals([answer], "fabric.unavailable"))

        await eventually(is_refused, within_s=3)
        began = time.monotonic()
        answers = await asyncio.gather(*(client.post("/once", json={"id": f"c{n}"}) for n in range(20)))
        took_s = time.monotonic() - began

        assert len(refusals(list(answers), "fabric.unavailable")) == 20
        assert took_s < 1
        await asyncio.to_thread(fabric.broker.start)

        async def is_served() -> bool:
            return (await client.post("/again", json={"id": "d"})).status_code == 200

        await eventually(is_served, within_s=5)


async def test_a_frozen_broker_is_noticed_and_requests_are_refused_quickly(robbed: FabricUnderTest) -> None:
    fabric = robbed
    async with fabric.client() as client:
        fabric.broker.pause()
        try:

            async def is_refused_at_once() -> bool:
                began = time.monotonic()
                answer = await client.post("/once", json={"id": "x"})
                return answer.status_code == 503 and time.monotonic() - began < 0.5

            await eventually(is_refused_at_once, within_s=8)
        finally:
            fabric.broker.resume()

        async def is_served() -> bool:
            return (await client.post("/again", json={"id": "after"})).status_code == 200

        await eventually(is_served, within_s=5)
        assert fabric.ledger.counts("start")["x"] <= 1


@pytest.fixture(scope="module")
async def hurried(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """A fabric whose requests have one second, and whose worker does one thing at a time."""
    environment = {"GATI_INGRESS_REQUEST_TIMEOUT_S": "1", "GATI_WORKER_MAX_IN_FLIGHT": "1"}
    async with running_fabric(tmp_path_factory.mktemp("hurried"), environment=environment) as fabric:
        yield fabric


async def test_the_deadline_answers_504_and_cancels_the_handler(hurried: FabricUnderTest) -> None:
    fabric = hurried
    async with fabric.client() as client:
        for path, id in (("/once", "a"), ("/again", "b")):
            answer = await client.post(path, json={"id": id, "act": "sleep", "seconds": 30})

            assert (answer.status_code, answer.json()["code"]) == (504, "request.deadline_exceeded")
            assert 0.9 < answer.elapsed.total_seconds() < 2
            await eventually(lambda id=id: fabric.ledger.of(id) == ["start", "cancel"], within_s=2)
        await settled(fabric)


async def test_a_handlers_own_limit_cancels_it_before_the_deadline(hurried: FabricUnderTest) -> None:
    async with hurried.client() as client:
        answer = await client.post("/hasty", json={"id": "c", "act": "sleep", "seconds": 30})

        assert (answer.status_code, answer.elapsed.total_seconds() < 0.9) == (504, True)
        assert hurried.ledger.of("c") == ["start", "cancel"]
        await settled(hurried)


async def test_a_client_that_leaves_cancels_its_work(start: StartFabric) -> None:
    async with start() as fabric, fabric.client() as client:
        for path, id in (("/once", "a"), ("/again", "b")):
            async with fabric.client() as impatient:
                request = asyncio.create_task(impatient.post(path, json={"id": id, "act": "sleep", "seconds": 30}))
                await eventually(lambda id=id: fabric.ledger.of(id), within_s=5)
                request.cancel()
                await asyncio.wait([request])

            await eventually(lambda id=id: fabric.ledger.of(id) == ["start", "cancel"], within_s=2)
        await settled(fabric)
        assert (await client.post("/once", json={"id": "c"})).status_code == 200


async def test_work_whose_deadline_passed_in_the_workers_queue_is_never_run(hurried: FabricUnderTest) -> None:
    async with hurried.client() as client:
        before = hurried.ledger.lines()
        hurried.workers[0].pause()
        answers = await asyncio.gather(
            *(client.post(path, json={"id": f"late{n}"}) for n in range(3) for path in ("/once", "/again"))
        )
        assert {answer.status_code for answer in answers} == {504}

        hurried.workers[0].resume()
        await settled(hurried)

        assert hurried.ledger.lines() == before
        assert (await client.post("/once", json={"id": "d"})).status_code == 200


async def test_a_request_waits_for_a_worker_that_is_about_to_come_and_not_for_one_that_does_not(
    start: StartFabric,
) -> None:
    environment = {"GATI_ROUTER_NO_WORKER_WAIT_S": "6"}
    async with start(environment=environment) as fabric, fabric.client() as client:
        fabric.workers[0].terminate()
        assert await fabric.workers[0].wait() == 0
        waiting = asyncio.create_task(client.post("/once", json={"id": "a"}))
        fabric.start_worker("ledger_app.py")
        assert (await waiting).status_code == 200

        fabric.workers[1].terminate()
        assert await fabric.workers[1].wait() == 0
        refused = await client.post("/once", json={"id": "b"})
        assert len(refusals([refused], "route.no_live_worker")) == 1
        assert refused.elapsed.total_seconds() < 9
