"""What routers and workers tell Prometheus, scraped from real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gati_core.fabric import free_port
from tests.helpers.samples import samples
from tests.helpers.two_versions import OLD, two_versions
from tests.helpers.waiting import eventually


class Scraped:
    """One scrape after another of some ports, as a Prometheus would see them."""

    def __init__(self, client: httpx.AsyncClient, *ports: int) -> None:
        self._client = client
        self._ports = ports

    async def __call__(self, name: str) -> dict[str, float]:
        """The series of one metric of all ports: their labels → value."""
        found: dict[str, float] = {}
        for port in self._ports:
            text = (await self._client.get(f"http://127.0.0.1:{port}/metrics")).text
            for labels, value in samples(text, name).items():
                found[labels] = found.get(labels, 0) + value
        return found


async def test_versions_and_transformers_are_counted_and_a_dead_process_takes_nothing_back(tmp_path: Path) -> None:
    router, first, second = free_port(), free_port(), free_port()
    environment = {
        "GATI_ROUTER_METRICS_PORT": str(router),
        "GATI_ROUTER_VERSION_GAUGES_EVERY_S": "0.1",
        "GATI_WORKER_METRICS_PORT": str(first),
        "GATI_WORKER_HEARTBEAT_S": "0.2",
    }
    async with (
        two_versions(tmp_path, routers=1, environment=environment, GATI_WORKER_METRICS_PORT=str(second)) as it,
        httpx.AsyncClient(trust_env=False) as outside,
    ):
        scraped, routing = Scraped(outside, first, second), Scraped(outside, router)
        old, new = (each.tsv for each in (await it.timeline("add")).versions)
        ran = f'{{handler_path="priced:add",status="201",version="{new}"}}'
        took = f'{{handler_path="priced:add",version="{new}"}}'
        before = (await scraped("gati_timescape_version_requests_total")).get(ran, 0)
        for price in ("1.50", "1.50", "666.00", "1.50"):  # the third is one that the answer's transformer refuses
            await it.client.post("/items", json={"sku": "a", "price": price}, headers=OLD)

        async def is_counted() -> bool:
            requests = await scraped("gati_timescape_version_requests_total")
            assert requests.get(ran, 0) >= before + 3, requests
            executions = await scraped("gati_timescape_transformer_executions_total")
            assert executions == {
                f'{{from_version="{old}",success="true",to_version="{new}"}}': 4,
                f'{{from_version="{old}",success="false",to_version="{new}"}}': 0,
                f'{{from_version="{new}",success="true",to_version="{old}"}}': 3,
                f'{{from_version="{new}",success="false",to_version="{old}"}}': 1,
            }
            return True

        await eventually(is_counted, within_s=10)
        seen = await scraped("gati_timescape_version_request_duration_seconds_count")
        buckets = await scraped("gati_timescape_version_request_duration_seconds_bucket")
        assert buckets[f'{{handler_path="priced:add",le="+Inf",version="{new}"}}'] == seen[took]
        assert {labels.split('le="')[1].split('"')[0] for labels in buckets} == {
            "0.001", "0.005", "0.01", "0.05", "0.1", "0.5", "1.0", "+Inf",
        }  # fmt: skip
        hops = await scraped("gati_timescape_transformer_duration_seconds_count")
        assert sorted(hops.values()) == [4, 4]

        decisions = await routing("gati_router_decisions_total")
        assert decisions[f'{{handler_path="priced:add",source="tag",version="{old}"}}'] == 4
        assert await routing("gati_router_healthy_workers") == {'{app="priced"}': 2}

        async def both_are_active() -> bool:
            active = await routing("gati_timescape_active_versions")
            status = await routing("gati_timescape_version_status")
            assert active.get('{handler_path="priced:add"}') == 2, active
            assert status['{handler_path="priced:add",status="warm"}'] == 2
            assert active['{handler_path="_global"}'] == sum(
                number for labels, number in active.items() if "_global" not in labels
            )
            return True

        await eventually(both_are_active, within_s=10)

        counted = (await scraped("gati_timescape_version_requests_total"))[ran]
        (victim,) = it.fabric.workers[1].children()
        os.kill(victim, signal.SIGKILL)
        lowest = counted

        async def another_lives() -> bool:
            nonlocal lowest
            lowest = min(lowest, (await scraped("gati_timescape_version_requests_total")).get(ran, 0))
            children = it.fabric.workers[1].children()
            crashes = await Scraped(outside, second)("gati_worker_crashes_total")
            processes = await Scraped(outside, second)("gati_worker_processes")
            return (
                children not in ([], [victim])
                and list(crashes.values()) == [1]
                and list(processes.values()) == [1]
                and await it.runs() == "two"
            )

        await eventually(another_lives, within_s=20)
        assert lowest == counted

        async def goes_on() -> bool:
            return (await scraped("gati_timescape_version_requests_total"))[ran] > counted

        await eventually(goes_on, within_s=10)


@pytest.mark.parametrize("service", ["router", "worker"])
async def test_a_port_that_is_taken_is_named_before_anything_is_served(service: str, tmp_path: Path) -> None:
    async with two_versions(tmp_path, routers=1) as it:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            name = f"GATI_{service.upper()}_METRICS_PORT"
            environment = {
                **{key: value for key, value in os.environ.items() if not key.startswith("GATI_")},
                "GATI_NATS_URL": it.fabric.settings.nats_url,
                "GATI_NAMESPACE": it.fabric.settings.namespace,
                name: port,
            }
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-m", f"gati_{service}"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
        assert done.returncode == 2, done.stderr
        assert f"cannot serve metrics on 127.0.0.1:{port}: Address already in use; set {name}" in done.stderr
