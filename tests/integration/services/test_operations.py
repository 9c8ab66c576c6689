"""What operators rely on: probes, metrics, signals, exit codes, and messages that say what to do."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gati_core.fabric import EmbeddedBroker, free_port
from tests.helpers.processes import PACKAGES, FabricUnderTest, running_fabric
from tests.helpers.samples import samples
from tests.helpers.waiting import eventually
from tests.integration.services.conftest import StartFabric


def run_service(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a service that must end by itself."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GATI_")}
    return subprocess.run(
        [sys.executable, "-m", *arguments], env={**clean, **environment}, capture_output=True, text=True, timeout=20
    )


# -- probes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
async def test_a_working_fabric_is_alive_and_ready(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)

    assert answer.status_code == 200
    assert answer.json()["status"] in ("alive", "ready")
    assert answer.headers["cache-control"] == "no-store"


@pytest.fixture(scope="module")
async def probed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """A fabric that is quick to notice what is missing: heartbeats every half second, keys for four of them."""
    environment = {"GATI_FABRIC_STALLED_AFTER_S": "1", "GATI_ROUTER_HEARTBEAT_S": "0.5"}
    async with running_fabric(tmp_path_factory.mktemp("probed"), environment=environment) as fabric:
        yield fabric


async def test_a_frozen_broker_makes_the_ingress_unready_and_leaves_it_alive(probed: FabricUnderTest) -> None:
    fabric = probed
    async with fabric.client() as client:
        fabric.broker.pause()
        try:
            await eventually(lambda: is_unready(client, "broker"), within_s=5)
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/healthz")).status_code == 503
        finally:
            fabric.broker.resume()

        await eventually(lambda: is_ready(client), within_s=5)


async def test_without_a_router_the_ingress_says_so(probed: FabricUnderTest) -> None:
    fabric = probed
    async with fabric.client() as client:
        fabric.routers[0].terminate()
        assert await fabric.routers[0].wait() == 0
        await eventually(lambda: is_unready(client, "no router is alive"), within_s=3)

        fabric.start_router()
        await eventually(lambda: is_ready(client), within_s=10)

        fabric.routers[1].kill()  # no goodbye: its key has to expire
        await eventually(lambda: is_unready(client, "no router is alive"), within_s=15)


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def is_unready(client: httpx.AsyncClient, reason: str) -> bool:
    answer = await client.get("/readyz")
    return answer.status_code == 503 and any(reason in each for each in answer.json()["reasons"])


# -- metrics ------------------------------------------------------------------------------------


async def test_metrics_count_requests_by_route_not_by_path(client: httpx.AsyncClient) -> None:
    def counted(text: str) -> float:
        return sum(
            value
            for labels, value in samples(text, "gati_ingress_requests_total").items()
            if 'path="/items/{item}/{part}"' in labels and 'status="200"' in labels
        )

    before = counted((await client.get("/metrics")).text)
    for number in range(5):
        await client.get(f"/items/{number}/x")
    await client.get("/no/such/path/at/all")
    text = (await client.get("/metrics")).text

    assert counted(text) - before == 5
    assert "/items/3/x" not in text
    assert "/no/such" not in text
    assert any('code="route.not_found"' in labels for labels in samples(text, "gati_ingress_errors_total"))
    assert sum(samples(text, "gati_ingress_broker_up").values()) == 1
    assert 'le="+Inf"' in text


async def test_several_processes_share_one_port_and_one_scrape_sees_them_all(start: StartFabric) -> None:
    async with start(environment={"GATI_INGRESS_PROCESSES": "2"}) as fabric:
        assert len(fabric.ingresses[0].children()) == 2
        sent = 0

        async def both_answer_and_are_seen() -> bool:
            nonlocal sent
            async with fabric.client() as client:  # a connection each, so that the kernel spreads them
                assert (await client.post("/again", json={"id": f"a{sent}"})).status_code == 200
                sent += 1
                totals = samples((await client.get("/metrics")).text, "gati_ingress_requests_total")
            return len(totals) == 2

        await eventually(both_answer_and_are_seen, within_s=8)
        async with fabric.client() as client:

            async def all_counted() -> bool:
                totals = samples((await client.get("/metrics")).text, "gati_ingress_requests_total")
                assert sum(totals.values()) == sent, totals
                return True

            await eventually(all_counted, within_s=5)

        victim = fabric.ingresses[0].children()[0]
        os.kill(victim, signal.SIGKILL)
        await eventually(
            lambda: len(fabric.ingresses[0].children()) == 2 and victim not in fabric.ingresses[0].children(),
            within_s=8,
        )
        async with fabric.client() as client:
            assert (await client.post("/again", json={"id": "b"})).status_code == 200


async def test_children_leave_when_the_process_that_started_them_was_killed(start: StartFabric) -> None:
    async with start(environment={"GATI_INGRESS_PROCESSES": "2"}) as fabric:
        for parent, count in ((fabric.ingresses[0], 2), (fabric.workers[0], 1)):
            children = parent.children()
            assert len(children) == count
            os.kill(parent.pid, signal.SIGKILL)

            await eventually(lambda children=children: not set(children) & set(fabric.processes()), within_s=5)


# -- leaving ------------------------------------------------------------------------------------


async def test_an_ingress_asked_to_leave_finishes_what_it_has(start: StartFabric) -> None:
    async with start() as fabric, fabric.client() as client:
        request = asyncio.create_task(client.post("/once", json={"id": "a", "act": "sleep", "seconds": 1.0}))
        await eventually(lambda: fabric.ledger.of("a"), within_s=5)

        fabric.ingresses[0].terminate()
        began = time.monotonic()
        answer = await request

        assert (answer.status_code, answer.json()["id"]) == (200, "a")
        assert await fabric.ingresses[0].wait(within_s=3) == 0
        assert time.monotonic() - began < 3
        with pytest.raises(httpx.ConnectError):
            async with fabric.client() as late:
                await late.get("/livez")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_every_service_ends_with_0_when_asked_to(start: StartFabric, number: signal.Signals) -> None:
    async with start() as fabric:
        for service in fabric.services:
            os.kill(service.pid, number)

        assert [await service.wait(within_s=8) for service in fabric.services] == [0, 0, 0]
        assert fabric.processes() == []
        assert not any("Traceback" in service.log() for service in fabric.services)


async def test_a_worker_asked_to_leave_finishes_what_it_runs(start: StartFabric) -> None:
    async with start() as fabric, fabric.client() as client:
        requests = [
            asyncio.create_task(client.post(path, json={"id": id, "act": "sleep", "seconds": 1.0}))
            for path, id in (("/once", "a"), ("/again", "b"))
        ]
        await eventually(lambda: len(fabric.ledger.counts("start")) == 2, within_s=5)

        fabric.workers[0].terminate()

        assert [answer.status_code for answer in await asyncio.gather(*requests)] == [200, 200]
        assert await fabric.workers[0].wait(within_s=5) == 0
        assert (fabric.ledger.of("a"), fabric.ledger.of("b")) == (["start", "end"], ["start", "end"])


async def test_a_worker_that_cannot_finish_in_time_answers_503_and_gives_back_what_may_run_again(
    start: StartFabric,
) -> None:
    environment = {"GATI_WORKER_DRAIN_GRACE_S": "0.3"}
    async with start(environment=environment) as fabric, fabric.client() as client:
        once = asyncio.create_task(client.post("/once", json={"id": "a", "act": "sleep", "seconds": 60}))
        again = asyncio.create_task(
            client.post("/again", json={"id": "b", "act": "sleep", "seconds": 60, "attempts": 1})
        )
        await eventually(lambda: len(fabric.ledger.counts("start")) == 2, within_s=5)

        fabric.start_worker("ledger_app.py")
        fabric.workers[0].terminate()

        assert (await once).status_code == 503
        assert (await again).json()["attempt"] == 2
        assert await fabric.workers[0].wait(within_s=5) == 0
        assert fabric.ledger.of("a") == ["start", "cancel"]
        assert fabric.ledger.of("b") == ["start", "cancel", "start", "end"]


# -- starting wrongly ----------------------------------------------------------------------------

SERVICES = [("gati_ingress",), ("gati_router",), ("gati_worker", "--source", str(PACKAGES / "echo_app.py"))]


async def test_an_unreachable_broker_ends_the_start_with_1_and_says_what_to_check() -> None:
    port = free_port()
    environment = {
        "GATI_NATS_URL": f"nats://user:secret@127.0.0.1:{port}",
        "GATI_FABRIC_CONNECT_WAIT_S": "0.3",
        "GATI_INGRESS_PORT": "0",
    }

    starts = [asyncio.to_thread(run_service, *service, **environment) for service in SERVICES]
    for ended in await asyncio.gather(*starts):
        assert ended.returncode == 1
        assert f"127.0.0.1:{port}" in ended.stderr
        assert "GATI_NATS_URL" in ended.stderr
        assert "secret" not in ended.stderr + ended.stdout
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service[0])
@pytest.mark.parametrize(
    ("variable", "value"), [("MAX_IN_FLIHGT", "3"), ("MAX_IN_FLIGHT", "many"), ("MAX_IN_FLIGHT", "0")]
)
def test_an_unknown_or_unfit_setting_ends_the_start_with_2_and_is_named(
    service: tuple[str, ...], variable: str, value: str
) -> None:
    prefix = service[0].upper() + "_"

    ended = run_service(*service, **{prefix + variable: value})

    assert ended.returncode == 2
    assert prefix in ended.stderr
    assert (prefix + "MAX_IN_FLIGHT" in ended.stderr) or ("max_in_flight" in ended.stderr)
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_taken_port_ends_the_start_with_2_and_names_the_setting(processes: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])

        ended = run_service("gati_ingress", GATI_INGRESS_PORT=port, GATI_INGRESS_PROCESSES=processes)

    assert ended.returncode == 2
    assert port in ended.stderr
    assert "GATI_INGRESS_PORT" in ended.stderr


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no Python file"),
        ({"pyproject.toml": "[project]\nname = 'x'"}, "gati.apps"),
        ({"pyproject.toml": "[project"}, "pyproject.toml"),
    ],
)
def test_a_worker_without_a_package_says_what_it_looked_for(tmp_path: Path, files: dict[str, str], says: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    ended = run_service("gati_worker", "--source", str(tmp_path))

    assert (ended.returncode, says in ended.stderr) == (2, True)


async def test_a_package_that_does_not_load_is_reported_and_others_are_served(
    start: StartFabric, tmp_path: Path
) -> None:
    broken = tmp_path / "broken_app.py"
    broken.write_text("from gati_core import App\napp = App('broken')\nthis is no python\n")
    async with start(workers=0) as fabric, fabric.client() as client:
        worker = fabric.start_worker("echo_app.py", str(broken))

        await eventually(lambda: worker.events("package_failed"), within_s=10)
        failure = worker.events("package_failed")[0]
        assert f"{broken}:3" in str(failure["where"])
        assert "this is no python" in str(failure["exception"])
        await eventually(lambda: is_served(client, "/text"), within_s=10)


async def is_served(client: httpx.AsyncClient, path: str) -> bool:
    return (await client.get(path)).status_code == 200


def test_a_broker_that_is_too_small_for_our_topology_says_why(tmp_path: Path) -> None:
    """JetStream is off: connected, but nothing can be stored."""
    with EmbeddedBroker(tmp_path / "broker") as broker:
        plain = free_port()
        server = subprocess.Popen(
            [Path(f"/proc/{broker.pid}/exe").resolve(), "-a", "127.0.0.1", "-p", str(plain)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            ended = run_service("gati_router", GATI_NATS_URL=f"nats://127.0.0.1:{plain}")
        finally:
            server.terminate()
            server.wait(5)

    assert ended.returncode == 1
    assert "JetStream" in ended.stderr
