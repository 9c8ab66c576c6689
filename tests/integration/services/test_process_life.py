"""What happens once per worker process, over a real fabric: start, end, health, configuration, topics."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gati_core.contexts import Topics, from_bytes
from gati_core.fabric import Fabric, FabricTopics, KvBucket, open_fabric
from gati_core.fabric.stored_runs import read_stored_run
from gati_core.wire import StoredRun
from tests.helpers.notes import Notes
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually

PACKAGE = "process_app.py"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    write(directory, color="green")
    (directory / "mood").write_text("pass")
    return directory


@pytest.fixture(scope="module")
async def pair(directory: Path) -> AsyncIterator[FabricUnderTest]:
    """Two workers of one package, quick to say how they are."""
    environment = {
        "GATI_WORKER_HEARTBEAT_S": "0.3",
        "GATI_WORKER_HEALTH_EVERY_S": "0.3",
        "GATI_WORKER_CONFIG_FILE": str(directory / "config.toml"),
        "GATI_TEST_MOOD": str(directory / "mood"),
        "GATI_WORKER_STORE_RUNS": "flagged",
    }
    async with running_fabric(directory, packages=[PACKAGE], workers=2, environment=environment) as fabric:
        yield fabric


@pytest.fixture
async def client(pair: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with pair.client() as client:
        yield client


@pytest.fixture
async def inside(pair: FabricUnderTest) -> AsyncIterator[Fabric]:
    async with open_fabric(pair.settings, name="test") as fabric:
        yield fabric


@pytest.fixture
def notes(pair: FabricUnderTest) -> Notes:
    return Notes(pair.ledger.path)


def write(directory: Path, *, color: str) -> None:
    """Another configuration, put in place in one step as a deployment would."""
    new = directory / "config.new"
    new.write_text(f'color = "{color}"\n[deep]\ner = 7\nlist = [{{ x = 1 }}]\n')
    new.rename(directory / "config.toml")


async def announcements(inside: Fabric) -> list[dict[str, Any]]:
    bucket = KvBucket(inside.connection, inside.subjects.pools_bucket)
    entries = [await bucket.get(key) for key in await bucket.keys() if key.startswith("worker.")]
    return [json.loads(entry.value) for entry in entries if entry is not None]


# -- configuration and health -------------------------------------------------------------------


async def test_the_configuration_is_read_cannot_be_changed_and_is_read_again(
    pair: FabricUnderTest, client: httpx.AsyncClient, notes: Notes, directory: Path
) -> None:
    assert (await client.get("/config")).json() == {"color": "green", "deep": 7, "refused": 7}

    write(directory, color="blue")
    await eventually(lambda: notes.of("config") == ["green blue blue"] * 2, within_s=10)
    assert (await client.get("/config")).json()["color"] == "blue"

    (directory / "config.toml").write_text("color = ")
    await eventually(lambda: all(worker.events("config_refused") for worker in pair.workers), within_s=10)
    assert (await client.get("/config")).json()["color"] == "blue"
    assert len(notes.of("config")) == 2


async def test_a_check_that_fails_shows_in_the_announcement(
    pair: FabricUnderTest, inside: Fabric, directory: Path
) -> None:
    async def are(health: str) -> bool:
        found = await announcements(inside)
        return [each["health"] for each in found] == [health] * 2

    await eventually(lambda: are("healthy"), within_s=10)

    (directory / "mood").write_text("fail")
    await eventually(lambda: are("unhealthy"), within_s=10)
    assert any(
        "mood" in note and "the mood is fail" in note for note in (await announcements(inside))[0]["health_notes"]
    )

    (directory / "mood").write_text("warn")
    await eventually(lambda: are("degraded"), within_s=10)

    (directory / "mood").write_text("pass")
    await eventually(lambda: are("healthy"), within_s=10)


# -- topics -------------------------------------------------------------------------------------


async def test_a_run_is_stored_when_it_is_asked_for(client: httpx.AsyncClient, inside: Fabric) -> None:
    headers = {"x-gati-flags": "snapshot", "authorization": "Bearer do-not-keep-this"}
    asked = await client.post("/stored?n=7", content=b"the body", headers=headers)
    other = await client.post("/stored", content=b"the body")

    stored = await stored_run(inside, asked.headers["x-request-id"])
    assert (stored.handler, stored.status, stored.descriptor.query, stored.descriptor.body) == (
        "stored",
        200,
        "n=7",
        b"the body",
    )
    assert dict(stored.descriptor.headers)["authorization"] == "(left out)"
    assert from_bytes(stored.snapshot).state == {"seen": ["the body"]}
    assert [each.event for each in stored.events][-1] == "request:end"
    assert await read_stored_run(inside.connection, other.headers["x-request-id"]) is None


async def stored_run(inside: Fabric, request_id: str) -> StoredRun:
    """Wait for it: the answer does not wait until it is stored."""
    found: list[StoredRun | None] = []

    async def is_there() -> bool:
        found[:] = [await read_stored_run(inside.connection, request_id)]
        return found[0] is not None

    await eventually(is_there, within_s=10)
    assert found[0] is not None
    return found[0]


async def test_every_process_hears_what_a_handler_publishes_and_one_of_a_group_what_is_kept(
    pair: FabricUnderTest, client: httpx.AsyncClient, inside: Fabric, notes: Notes
) -> None:
    topics = Topics(FabricTopics(inside), publisher="test")
    async with topics.subscribe("orders") as outside:
        publishers = {}
        for number in range(10):
            for name, path in ((f"live{number}", "/orders/{}"), (f"kept{number}", "/orders/{}?durably=1")):
                publishers[name] = (await client.post(path.format(name))).json()["publisher"]
        publishers["threaded"] = (await client.post("/threads/threaded")).json()["publisher"]
        publishers["bad"] = (await client.post("/orders/bad?durably=1")).json()["publisher"]

        heard = {}
        while len(heard) < len(publishers):
            event = await outside.next(timeout_s=10)
            heard[event.payload] = event.publisher
        assert heard == publishers

    workers = {each["worker"] for each in await announcements(inside)}
    assert len(workers) == 2

    def watched() -> Counter[tuple[str, ...]]:
        return Counter(tuple(line.split(" ")) for line in notes.of("watched"))

    everywhere = {(name, worker, publisher): 1 for name, publisher in publishers.items() for worker in workers}
    await eventually(lambda: watched() == everywhere, within_s=10)
    kept = [name for name in publishers if name.startswith("kept")]

    def billed() -> list[str]:
        return sorted(line.split(" ")[0] for line in notes.of("billed") if not line.startswith("bad"))

    await eventually(lambda: billed() == sorted(kept), within_s=10)
    attempts = lambda: [line.split(" ")[2] for line in notes.of("billed") if line.startswith("bad")]  # noqa: E731
    await eventually(lambda: attempts() == ["1", "2"], within_s=15)
    await topics.aclose()


async def test_a_request_hears_what_any_process_tells_it_and_nothing_that_others_are_told(
    client: httpx.AsyncClient, inside: Fabric
) -> None:
    topics = Topics(FabricTopics(inside), publisher="test")
    async with topics.subscribe("questions") as questions:
        answers = [asyncio.create_task(client.post("/asks")) for _ in range(10)]
        for _ in answers:
            request_id = (await questions.next(timeout_s=10)).payload
            for number in range(2):
                topics.publish("answers", f"{request_id} {number}", request_id=request_id)
        for answer in await asyncio.gather(*answers):
            request_id = answer.headers["x-request-id"]
            heard = answer.json()
            assert sorted(heard) == [f"{request_id} 0", f"{request_id} 1", "my own"]
            assert heard.index(f"{request_id} 0") < heard.index(f"{request_id} 1")
    await topics.aclose()


# -- start and end ------------------------------------------------------------------------------


async def test_a_process_that_leaves_runs_its_hooks_by_priority_after_its_last_request(
    pair: FabricUnderTest, client: httpx.AsyncClient, notes: Notes, inside: Fabric
) -> None:
    assert notes.of("start") == ["first", "second"] * 2 or sorted(notes.of("start")) == ["first"] * 2 + ["second"] * 2
    leaving = pair.workers.pop(0)
    pair.workers[0].terminate()
    assert await pair.workers.pop(0).wait(within_s=15) == 0
    before = len(notes.lines())
    pair.workers.append(leaving)

    request = asyncio.create_task(client.post("/wait/1"))
    await eventually(lambda: "begun" in notes.of("request"), within_s=10)
    leaving.terminate()
    answer = await request

    assert answer.json() == {"waited": True}
    assert await leaving.wait(within_s=15) == 0
    said = [line for line in notes.lines()[before:] if line.split(" ")[0] in ("stop", "request")]
    assert said == [
        "request begun",
        "stop farewell",
        "request done",
        "stop critical",
        "stop hanging",
        "stop blocking",
        "stop failing",
        "stop last first",
    ]
    failed = [str(event["hook"]) for event in leaving.events("shutdown_hook_failed")]
    assert failed == ["hanging", "blocking", "failing"]
    assert await announcements(inside) == []


async def test_a_start_up_hook_that_fails_is_reported_with_its_reason_and_what_had_started_is_closed(
    tmp_path: Path,
) -> None:
    write(tmp_path, color="green")
    environment = {
        "GATI_TEST_STARTUP": "fails",
        "GATI_WORKER_CONFIG_FILE": str(tmp_path / "config.toml"),
        "GATI_WORKER_RESTART_DELAY_S": "5",
    }
    async with running_fabric(tmp_path, packages=[], ingress=False, workers=0) as fabric:
        notes = Notes(fabric.ledger.path)
        worker = fabric.start_worker(PACKAGE, **environment)
        await eventually(lambda: worker.events("package_failed"), within_s=20)

        failure = worker.events("package_failed")[0]
        assert failure["app"] == "process_app"
        assert all(word in str(failure["error"]) for word in ("second", "no database today"))
        assert notes.of("start") == ["first"]
        assert notes.of("stop") == ["critical", "hanging", "blocking", "failing", "last first"]
        async with open_fabric(fabric.settings, name="test") as inside:
            assert await announcements(inside) == []
        assert worker.is_alive
