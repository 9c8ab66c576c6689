"""What happens to requests when processes die: never twice where that was promised, never silence."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from gati_core.fabric import open_fabric, stream_state
from gati_core.wire import encode
from tests.helpers.brokers import kill_and_restart
from tests.helpers.load import loaded
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually
from tests.helpers.wire import descriptor, pool_of, work_item
from tests.integration.services.conftest import StartFabric


@pytest.fixture(scope="module")
async def one(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """A fabric that every test leaves with one living router and one living worker, if not the same ones."""
    environment = {"GATI_WORKER_RESTART_DELAY_MAX_S": "0.3", "GATI_INGRESS_REQUEST_TIMEOUT_S": "15"}
    async with running_fabric(tmp_path_factory.mktemp("one"), environment=environment) as fabric:
        yield fabric


def kill_child(fabric: FabricUnderTest) -> None:
    """Kill the process that runs the handlers."""
    (pid,) = fabric.workers[-1].children()
    os.kill(pid, signal.SIGKILL)


async def test_a_worker_killed_in_the_middle_answers_at_most_once_work_with_502_and_never_runs_it_again(
    one: FabricUnderTest,
) -> None:
    async with one.client() as client:
        request = asyncio.create_task(client.post("/once", json={"id": "a", "act": "sleep", "seconds": 60}))
        await eventually(lambda: one.ledger.of("a"), within_s=5)

        kill_child(one)
        killed_at = time.monotonic()
        answer = await request

        assert (answer.status_code, answer.json()["code"]) == (502, "worker.crashed")
        assert time.monotonic() - killed_at < 2
        after = await client.post("/once", json={"id": "b"})
        assert after.status_code == 200, "the worker did not come back"
        assert one.ledger.of("a") == ["start"]


async def test_a_worker_killed_in_the_middle_runs_at_least_once_work_again_and_answers_it(
    one: FabricUnderTest,
) -> None:
    async with one.client() as client:
        errand = {"id": "c", "act": "sleep", "seconds": 60, "attempts": 1}
        request = asyncio.create_task(client.post("/again", json=errand))
        await eventually(lambda: one.ledger.of("c"), within_s=5)

        kill_child(one)
        answer = await request

        assert (answer.status_code, answer.json()["attempt"]) == (200, 2)
        assert one.ledger.of("c") == ["start", "start", "end"]


@pytest.mark.parametrize("act", ["crash", "exit"])
async def test_work_that_always_kills_its_worker_dies_after_three_attempts_and_is_answered(
    one: FabricUnderTest, act: str
) -> None:
    async with one.client() as client, open_fabric(one.settings, name="test") as inside:
        answer = await client.post("/again", json={"id": act, "act": act})

        assert (answer.status_code, answer.json()["code"]) == (502, "worker.poison")
        assert one.ledger.of(act) == ["start"] * 3
        letter = (await inside.dead_letters.newest())[0]
        assert (letter.stage, letter.code) == ("work", "worker.poison")
        assert letter.request_id == answer.headers["x-request-id"]
        assert letter.subject == inside.subjects.work(letter.pool, "again")
        await eventually(lambda: _is_empty(inside, inside.subjects.work_stream), within_s=5)
        assert (await client.post("/again", json={"id": f"after-{act}"})).status_code == 200


async def test_at_most_once_work_that_kills_its_worker_is_answered_and_ran_once(one: FabricUnderTest) -> None:
    async with one.client() as client:
        began = time.monotonic()
        answer = await client.post("/once", json={"id": "deadly", "act": "crash"})

        assert (answer.status_code, answer.json()["code"]) == (502, "worker.crashed")
        assert time.monotonic() - began < 3
        assert (await client.post("/once", json={"id": "after"})).status_code == 200
        assert one.ledger.of("deadly") == ["start"]


async def test_many_crashes_in_a_row_leave_no_request_unanswered_and_none_run_twice(one: FabricUnderTest) -> None:
    async with one.client() as client:
        async with loaded(client, clients=8, act="sleep", seconds=0.05, prefix="crashes") as load:
            for _ in range(3):
                await load.answered(20)
                kill_child(one)

        load.must_balance(one.ledger)
        assert load.statuses().keys() <= {"200", "502 worker.crashed"}, load.statuses()


async def test_a_router_killed_with_requests_in_flight_leaves_none_unanswered(one: FabricUnderTest) -> None:
    victim, heir = one.routers[-1], one.start_router()
    await eventually(lambda: heir.events("catalogue_rebuilt"), within_s=10)
    async with one.client() as client:
        async with loaded(client, clients=24, prefix="router") as load:
            await load.answered(100)
            victim.kill()
            killed_at = time.monotonic()
            await load.answered_since(killed_at, within_s=3)
            await load.answered(200)

        load.must_balance(one.ledger)
        assert load.statuses().keys() == {"200"}, load.statuses()


async def test_work_delivered_and_never_acked_is_dead_lettered_and_answered(start: StartFabric) -> None:
    """A worker that stopped responding took it: the server's advisory is all that is left to act on."""
    async with start() as fabric, fabric.client() as client:
        fabric.workers[0].pause()
        began = time.monotonic()

        answer = await client.post("/once", json={"id": "a"})

        assert (answer.status_code, answer.json()["code"]) == (502, "worker.crashed")
        assert 3 < time.monotonic() - began < 9.5, "answered by something else than the lease's end"
        async with open_fabric(fabric.settings, name="test") as inside:
            (letter,) = await inside.dead_letters.newest()
            assert (letter.stage, letter.code, letter.attempts) == ("work", "worker.crashed", 1)
            assert letter.request_id == answer.headers["x-request-id"]
            assert await _is_empty(inside, inside.subjects.work_stream)
        fabric.workers[0].resume()
        assert (await client.post("/once", json={"id": "b"})).status_code == 200
        assert fabric.ledger.counts("start")["a"] <= 1


async def test_a_repeat_of_work_that_is_still_running_is_not_run_beside_it(one: FabricUnderTest) -> None:
    """A router that died between handing over and acking leaves a second copy of at-least-once work."""
    async with open_fabric(one.settings, name="test") as inside:
        replies: list[bytes] = []
        reply_to = inside.subjects.reply("test", "r")
        await inside.connection.subscribe(reply_to, lambda *message: replies.append(message[2]))
        body = b'{"id":"repeat","act":"sleep","seconds":0.5}'
        request = descriptor(method="POST", path="/again", body=body, reply_to=reply_to)
        subject = inside.subjects.work(await pool_of(inside, "ledger"), "again")

        for _ in range(2):
            await inside.publisher.send(subject, encode(work_item(request, "again")))

        await eventually(lambda: bool(replies), within_s=5)
        await eventually(lambda: _is_empty(inside, inside.subjects.work_stream), within_s=5)
        assert one.ledger.of("repeat") == ["start", "end"]
        assert len(replies) == 1


async def test_a_worker_restarted_under_load_loses_nothing(one: FabricUnderTest) -> None:
    async with one.client() as client:
        async with loaded(client, clients=16, act="sleep", seconds=0.02, prefix="restart") as load:
            await load.answered(50)
            old = one.workers[-1]
            old.terminate()
            assert await old.wait() == 0
            one.start_worker("ledger_app.py")
            await load.answered(100, within_s=20)

        load.must_balance(one.ledger)
        assert load.statuses().keys() == {"200"}, load.statuses()


async def test_workers_of_one_package_share_the_load_and_one_may_leave_unnoticed(one: FabricUnderTest) -> None:
    async with one.client() as client:
        async with loaded(client, clients=16, prefix="share") as load:
            old, new = one.workers[-1], one.start_worker("ledger_app.py")
            await eventually(lambda: new.events("package_started"), within_s=10)
            alone = len(load.outcomes)
            await load.answered(300)
            shares = Counter(outcome.worker for outcome in load.outcomes[alone + 16 :])
            old.terminate()
            assert await old.wait() == 0
            await load.answered(100)

        load.must_balance(one.ledger)
        assert load.statuses().keys() == {"200"}, load.statuses()
        assert len(shares) == 2, shares
        assert min(shares.values()) > 0.1 * shares.total(), shares


async def test_traffic_flows_within_two_seconds_after_the_broker_was_killed_and_restarted(start: StartFabric) -> None:
    environment = {"GATI_INGRESS_REQUEST_TIMEOUT_S": "5"}
    async with start(routers=2, workers=2, environment=environment) as fabric, fabric.client() as client:
        async with loaded(client, clients=16) as load:
            await load.answered(100)
            await kill_and_restart(fabric.broker)
            ready_at = time.monotonic()
            took_s = await load.answered_since(ready_at, within_s=10)
            await load.answered(200, within_s=15)

        assert took_s < 2, f"{took_s:.2f} s after the broker was ready"
        load.must_balance(fabric.ledger)


async def test_a_broker_that_was_away_for_longer_is_found_again_within_two_seconds(one: FabricUnderTest) -> None:
    fabric = one
    async with fabric.client() as client:
        async with loaded(client, clients=8, act="answer", prefix="away") as load:
            await load.answered(50)
            fabric.broker.kill()
            refused_at = time.monotonic()
            await eventually(lambda: any(o.status == 503 and o.sent_at > refused_at for o in load.outcomes), within_s=5)
            await asyncio.to_thread(fabric.broker.start)
            took_s = await load.answered_since(time.monotonic(), within_s=10)
            await load.answered(100)

        assert took_s < 2, f"{took_s:.2f} s after the broker was ready"
        load.must_balance(fabric.ledger)


async def _is_empty(inside: object, stream: str) -> bool:
    return (await stream_state(inside.connection, stream)).messages == 0  # type: ignore[attr-defined]
