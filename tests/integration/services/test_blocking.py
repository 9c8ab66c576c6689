"""Handlers that stop the event loop of their process: who it was, and what it does to others."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from gati_core.fabric import open_fabric, stream_state
from tests.helpers.processes import PACKAGES, FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually

PACKAGE = PACKAGES / "blocking_app.py"
LINE = next(number for number, line in enumerate(PACKAGE.read_text().splitlines(), 1) if "the line that blocks" in line)
BLOCKING_LINE = f"{PACKAGE}:{LINE}"
QUICK_S = 2.0
"""An answer that no block was in the way of, on a busy machine."""


@pytest.fixture(scope="module")
async def patient(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """Requests may take 15 s: longer than any block in a test that ends by itself."""
    environment = {"GATI_INGRESS_REQUEST_TIMEOUT_S": "15"}
    packages = ["blocking_app.py", "echo_app.py"]
    async with running_fabric(tmp_path_factory.mktemp("patient"), packages=packages, environment=environment) as fabric:
        yield fabric


@pytest.fixture(scope="module")
async def strict(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """Requests may take 3 s, and a child that stays blocked a little longer is killed."""
    environment = {
        "GATI_INGRESS_REQUEST_TIMEOUT_S": "3",
        "GATI_WORKER_BLOCK_GRACE_S": "1.5",
        "GATI_WORKER_BLOCK_LIMIT_S": "4",
        "GATI_WORKER_RESTART_DELAY_MAX_S": "0.3",
    }
    packages = ["blocking_app.py", "echo_app.py"]
    async with running_fabric(tmp_path_factory.mktemp("strict"), packages=packages, environment=environment) as fabric:
        yield fabric


async def test_a_block_longer_than_the_lease_runs_once_is_answered_and_hurts_no_other_package(
    patient: FabricUnderTest,
) -> None:
    async with patient.client() as client, neighbour(patient) as latencies_s:
        answer = await client.put("/block/6/long")

    assert (answer.status_code, answer.json()["attempt"]) == (200, 1), answer.text
    assert len(latencies_s) > 10
    assert max(latencies_s) < QUICK_S
    await eventually(lambda: by_block(patient, "loop_unblocked"), within_s=5)
    await nothing_is_left(patient)
    assert patient.ledger.of("long") == ["start", "end"]


async def test_the_log_names_the_handler_and_the_line_that_blocks(patient: FabricUnderTest) -> None:
    (worker,) = patient.workers
    seen, over = (len(by_block(patient, event)) for event in ("loop_blocked", "loop_unblocked"))
    async with patient.client() as client:
        request = asyncio.create_task(client.put("/block/1.5/named"))
        await eventually(lambda: patient.ledger.of("named"), within_s=5)
        began = time.monotonic()
        await eventually(lambda: len(by_block(patient, "loop_blocked")) > seen, within_s=5)
        assert not request.done(), "it is said while it lasts"
        assert time.monotonic() - began < 1.5
        answer = await request
        pid = answer.json()["pid"]

    blocked = by_block(patient, "loop_blocked")[-1]
    assert blocked["line"] == BLOCKING_LINE
    assert blocked["innermost"] == f"stop_the_loop ({BLOCKING_LINE})"
    assert blocked["service"] == "worker/blocking_app"
    await eventually(lambda: len(by_block(patient, "loop_unblocked")) > over, within_s=5)
    assert 1.4 < float(str(by_block(patient, "loop_unblocked")[-1]["blocked_s"])) < 1.5 + QUICK_S
    assert pid in worker.children(), "a short block is no reason to kill"


@pytest.mark.parametrize("kind", ["again", "once", "locked"])
async def test_a_handler_that_blocks_for_ever_costs_its_process_and_only_its_own_request(
    strict: FabricUnderTest, kind: str
) -> None:
    (worker,) = strict.workers
    errand, handler = f"hang-{kind}", f"hang_{kind}"
    async with strict.client() as client, neighbour(strict) as latencies_s:
        old = await answering_pid(client)
        began = time.monotonic()
        answer = await client.post(f"/hang/{kind}/{errand}")
        took_s = time.monotonic() - began
        assert (answer.status_code, answer.json()["code"]) == (504, "request.deadline_exceeded"), answer.text
        assert 2.5 < took_s < 3 + QUICK_S

        await eventually(lambda: not is_alive(old), within_s=15)
        assert time.monotonic() - began > 4.5, "no sooner than deadline and grace"
        assert await answering_pid(client) != old

    (killed,) = [event for event in worker.events("worker_blocked_killed") if event["pid"] == old]
    assert (killed["level"], killed["app"], killed["handlers"]) == ("error", "blocking_app", [handler])
    (blocked,) = [event for event in worker.events("worker_blocked") if event["pid"] == old]
    assert blocked["handlers"] == [handler]
    assert max(latencies_s) < QUICK_S
    await nothing_is_left(strict)
    assert strict.ledger.of(errand) == ["start"]


async def test_a_child_that_was_stopped_from_outside_is_replaced(strict: FabricUnderTest) -> None:
    async with strict.client() as client:
        old = await answering_pid(client)

        os.kill(old, signal.SIGSTOP)

        await eventually(lambda: not is_alive(old), within_s=15)
        assert await answering_pid(client) != old


async def test_a_worker_that_was_stopped_as_a_whole_keeps_its_children(strict: FabricUnderTest) -> None:
    """Also when the supervisor is the first to run again."""
    (worker,) = strict.workers
    async with strict.client() as client:
        old = await answering_pid(client)
        killed, blocked = (len(worker.events(name)) for name in ("worker_blocked_killed", "worker_blocked"))
        worker.pause()
        paused_at = time.monotonic()
        await eventually(lambda: time.monotonic() - paused_at > 5, within_s=10)  # longer than `block_limit_s`

        os.kill(worker.pid, signal.SIGCONT)
        await eventually(lambda: len(worker.events("worker_blocked")) > blocked, within_s=5)
        worker.resume()

        assert await answering_pid(client) == old
        assert len(worker.events("worker_blocked_killed")) == killed


@asynccontextmanager
async def neighbour(fabric: FabricUnderTest) -> AsyncIterator[list[float]]:
    """Ask another package of the same worker all the time; yields how long each answer took."""
    latencies_s: list[float] = []

    async def ask() -> None:
        async with fabric.client() as client:
            while True:
                began = time.monotonic()
                assert (await client.get("/text")).status_code == 200
                latencies_s.append(time.monotonic() - began)

    asking = asyncio.create_task(ask())
    try:
        yield latencies_s
        assert not asking.done(), asking
    finally:
        asking.cancel()
        await asyncio.wait([asking])


async def answering_pid(client: httpx.AsyncClient) -> int:
    """The process that answers for the package, as soon as one does."""
    found: list[int] = []

    async def answers() -> bool:
        answer = await client.get("/pid")
        if answer.status_code == 200:
            found.append(answer.json()["pid"])
        return bool(found)

    await eventually(answers, within_s=20)
    return found[0]


async def nothing_is_left(fabric: FabricUnderTest) -> None:
    """Return once the work stream is empty: nothing is delivered again any more."""
    async with open_fabric(fabric.settings, name="test") as inside:

        async def is_empty() -> bool:
            return (await stream_state(inside.connection, inside.subjects.work_stream)).messages == 0

        await eventually(is_empty, within_s=20)


def by_block(fabric: FabricUnderTest, event: str) -> list[dict[str, object]]:
    """Lines of the worker's log that name the handler `block`."""
    return [fields for fields in fabric.workers[0].events(event) if fields["handler"] == "block"]


def is_alive(pid: int) -> bool:
    """Whether this process exists and has not ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
