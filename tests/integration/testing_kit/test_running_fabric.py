"""`running_fabric` as a library: it serves, says what is wrong, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from gati_core.fabric import EmbeddedBroker
from gati_testing import FabricNotServing, eventually, running_fabric

HELLO = Path(__file__).parents[3] / "examples" / "hello"


async def test_a_fabric_on_a_broker_of_its_own_serves_and_leaves_nothing() -> None:
    async with running_fabric(HELLO) as fabric:
        broker = fabric.broker
        async with fabric.client() as client:
            assert (await client.get("/hello/Ada")).status_code == 200
        assert len(fabric.processes()) >= 4, "ingress, router, worker and its child"

    assert fabric.processes() == []
    assert not broker.is_running
    assert not broker.store.exists(), "the temporary directory is removed"


async def test_a_given_broker_goes_on_running(gati_broker: EmbeddedBroker) -> None:
    async with running_fabric("hello", broker=gati_broker) as fabric, fabric.client() as client:
        assert (await client.get("/hello/Ada")).status_code == 200

    assert gati_broker.is_running


async def test_a_worker_started_later_is_served_once_serving_returns(gati_broker: EmbeddedBroker) -> None:
    async with running_fabric(broker=gati_broker) as fabric, fabric.client() as client:
        assert (await client.get("/hello/Ada")).status_code == 404

        fabric.start_worker(HELLO)
        await fabric.serving()

        assert (await client.get("/hello/Ada")).status_code == 200


async def test_a_service_that_the_test_killed_is_no_failure_of_the_fabric(gati_broker: EmbeddedBroker) -> None:
    async with running_fabric(HELLO, broker=gati_broker) as fabric, fabric.client() as client:
        fabric.workers[0].kill()
        fabric.start_worker(HELLO)
        await fabric.serving()

        assert (await client.get("/hello/Ada")).status_code == 200


async def test_a_service_that_ends_at_once_is_told_with_its_log(gati_broker: EmbeddedBroker) -> None:
    with pytest.raises(FabricNotServing, match=r"(?s)ingress 1 ended with exit code 2.*GATI_INGRESS_PORTT"):
        async with running_fabric(broker=gati_broker, environment={"GATI_INGRESS_PORTT": "1"}):
            pass


async def test_time_that_is_up_is_told_with_every_log(gati_broker: EmbeddedBroker) -> None:
    with pytest.raises(FabricNotServing, match=r"(?s)does not serve after 0\.01 s.*--- ingress 1 .*--- router 2 "):
        async with running_fabric(broker=gati_broker, within_s=0.01):
            pass


async def test_an_error_inside_the_block_carries_the_logs(gati_broker: EmbeddedBroker) -> None:
    async def fail_inside() -> None:
        async with running_fabric(broker=gati_broker) as fabric:
            (router,) = fabric.routers
            await eventually(lambda: router.events("router_started"), within_s=10)
            raise LookupError("of the test")

    with pytest.raises(LookupError) as caught:
        await fail_inside()

    assert "router_started" in "".join(caught.value.__notes__)


async def test_a_worker_takes_places_or_names_not_both(gati_broker: EmbeddedBroker) -> None:
    async with running_fabric(broker=gati_broker, routers=0, ingress=False) as fabric:
        for apps in ((), ("hello", HELLO)):
            with pytest.raises(ValueError, match="either places on disk or entry points"):
                fabric.start_worker(*apps)


async def test_a_service_that_does_not_leave_is_killed_and_told(
    gati_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gati_testing._running_fabric.LEAVE_WITHIN_S", 0.2)
    monkeypatch.setattr("gati_testing._processes.ServiceProcess.terminate", lambda _: None)

    with pytest.raises(AssertionError, match="router 2 did not leave"):
        async with running_fabric(broker=gati_broker) as fabric:
            pass

    await eventually(lambda: fabric.processes() == [], within_s=5)
