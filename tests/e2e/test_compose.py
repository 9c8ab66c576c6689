"""Black box, over HTTP, while containers are killed, frozen and filled: every request has one answer.

The tests share one stack and leave it whole. Each sends errands under a prefix of its own, and at the
end the ledger of what was run must balance with the answers.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import anyio.to_thread
import httpx

from tests.e2e.conftest import Stack, pools_are_served
from tests.helpers.docker import docker
from tests.helpers.load import loaded
from tests.helpers.samples import samples
from tests.helpers.waiting import eventually


async def in_thread(function: object, *arguments: object, **options: object) -> object:
    """Run a docker command without stopping the clients."""
    return await asyncio.to_thread(function, *arguments, **options)  # type: ignore[arg-type]


async def test_the_examples_answer_as_the_readme_says(stack: Stack, client: httpx.AsyncClient) -> None:
    hello = await client.get("/hello/World")
    ordered = await client.post("/orders", json={"sku": "ada-42", "quantity": 3})
    order = ordered.json()
    shown = await client.get(f"/orders/{order['id']}")
    missing = await client.get("/orders/no-such-order")

    assert (hello.status_code, hello.json()) == (200, {"message": "Hello, World!"})
    assert (ordered.status_code, order["sku"], order["quantity"]) == (201, "ada-42", 3)
    assert (shown.status_code, shown.json()) == (200, order)
    assert missing.status_code == 404
    assert (await client.get("/readyz")).status_code == 200


async def test_routers_and_workers_tell_prometheus_what_they_count(stack: Stack, client: httpx.AsyncClient) -> None:
    await client.get("/hello/World")
    (worker,) = stack.compose.containers("worker")
    read = "import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1], timeout=5).read())"

    async def all_tell() -> bool:
        texts = [
            str(await in_thread(docker, "exec", worker, "python", "-c", read, f"http://{service}:9090/metrics"))
            for service in ("router", "worker")
        ]
        assert sum(samples(texts[0], "gati_router_routed_total").values()) > 0, texts[0]
        counted = samples(texts[1], "gati_timescape_version_requests_total")
        return any('handler_path="hello:' in labels and 'status="200"' in labels for labels in counted)

    await eventually(all_tell, within_s=15, every_s=0.5)


async def test_a_large_body_goes_there_and_back(stack: Stack, client: httpx.AsyncClient) -> None:
    answer = await client.post("/again", json={"id": "large", "padding": "x" * 2_000_000})

    assert (answer.status_code, answer.json()["id"]) == (200, "large")


async def test_the_process_inside_a_worker_is_killed(stack: Stack, client: httpx.AsyncClient) -> None:
    await pools_are_served(client)
    (worker,) = stack.compose.containers("worker")
    async with loaded(client, clients=16, act="sleep", seconds=0.05, prefix="child") as load:
        for _ in range(3):
            await load.answered(50, within_s=20)
            pid = (await client.post("/again", json={"id": "who"})).json()["pid"]
            await in_thread(docker, "exec", worker, "python", "-c", f"import os; os.kill({pid}, 9)")
        await load.answered(50, within_s=20)

    load.must_balance(stack.ledger)
    assert load.statuses().keys() <= {"200", "502 worker.crashed"}, load.statuses()
    assert stack.compose.containers("worker") == [worker], "the container itself should have lived on"


async def test_three_workers_share_the_load(stack: Stack, client: httpx.AsyncClient) -> None:
    await in_thread(stack.compose.up, "--no-recreate", "--scale", "worker=3")

    async with loaded(client, clients=24, act="sleep", seconds=0.02, prefix="scaled") as load:
        await eventually(lambda: len({outcome.worker for outcome in load.outcomes}) == 3, within_s=20)
        await load.answered(300, within_s=20)

    load.must_balance(stack.ledger)
    assert load.statuses().keys() == {"200"}, load.statuses()
    shares = Counter(outcome.worker for outcome in load.outcomes[-200:])
    assert min(shares.values()) > 10, shares


async def test_a_worker_container_is_killed(stack: Stack, client: httpx.AsyncClient) -> None:
    """Nobody is left to answer for it: what ran at most once ends at its deadline, the rest runs elsewhere."""
    victim, *others = stack.compose.containers("worker")
    async with loaded(client, clients=24, act="sleep", seconds=0.05, prefix="worker") as load:
        await load.answered(100, within_s=20)
        await in_thread(docker, "kill", victim)
        await load.answered_since(time.monotonic(), within_s=5)
        await load.answered(200, within_s=20)

    load.must_balance(stack.ledger)
    again = {outcome.status for outcome in load.outcomes if outcome.path == "/again"}
    once = load.statuses()
    assert again == {200}, once
    assert set(once) <= {"200", "504 request.deadline_exceeded", "502 worker.crashed"}, once
    assert stack.compose.containers("worker") == others


async def test_a_router_container_is_killed(stack: Stack, client: httpx.AsyncClient) -> None:
    await in_thread(stack.compose.up, "--no-recreate", "--scale", "router=2", "--scale", "worker=1")
    victim = stack.compose.containers("router")[0]
    async with loaded(client, clients=24, prefix="router") as load:
        await load.answered(100, within_s=20)
        await in_thread(docker, "kill", victim)
        await load.answered_since(time.monotonic(), within_s=5)
        await load.answered(200, within_s=20)

    load.must_balance(stack.ledger)
    assert load.statuses().keys() == {"200"}, load.statuses()


async def test_the_broker_is_frozen_for_three_seconds(stack: Stack, client: httpx.AsyncClient) -> None:
    (broker,) = stack.compose.containers("nats")
    async with loaded(client, clients=16, prefix="frozen") as load:
        await load.answered(100, within_s=20)
        await in_thread(docker, "pause", broker)
        try:
            await anyio.sleep(3)  # how long it is frozen is the point
        finally:
            await in_thread(docker, "unpause", broker)
        took_s = await load.answered_since(time.monotonic(), within_s=10)
        await load.answered(200, within_s=20)

    load.must_balance(stack.ledger)
    assert took_s < 2, f"{took_s:.1f} s after the broker went on"
    await eventually(lambda: stack.compose.is_healthy("nats"), within_s=20)


async def test_a_full_stream_refuses_and_recovers(stack: Stack, client: httpx.AsyncClient) -> None:
    limits = {"GATI_TEST_REQ_MAX_MSGS": "8"}
    await in_thread(stack.compose.up, "--scale", "router=1", **limits)
    await pools_are_served(client)
    (router,) = stack.compose.containers("router")
    async with loaded(client, clients=32, prefix="full") as load:
        await load.answered(50, within_s=20)
        await in_thread(docker, "pause", router)
        try:
            await eventually(lambda: load.statuses()["503 fabric.backpressure"] >= 50, within_s=10)
        finally:
            await in_thread(docker, "unpause", router)
        await load.answered_since(time.monotonic(), within_s=10)
        await load.answered(100, within_s=20)

    load.must_balance(stack.ledger)
    refused = {outcome.id for outcome in load.outcomes if outcome.code == "fabric.backpressure"}
    assert not refused & stack.ledger.counts("start").keys(), "a refused request was run"
    await eventually(lambda: stack.compose.is_healthy("router"), within_s=20)


async def test_the_broker_is_killed_and_comes_back(stack: Stack, client: httpx.AsyncClient) -> None:
    (broker,) = stack.compose.containers("nats")
    async with loaded(client, clients=16, prefix="broker") as load:
        await load.answered(100, within_s=20)
        await in_thread(docker, "kill", broker)
        await eventually(lambda: load.statuses()["503 fabric.unavailable"] >= 10, within_s=10)
        await in_thread(stack.compose.run, "start", "nats")
        await load.answered_since(time.monotonic(), within_s=15)
        await load.answered(200, within_s=20)

    load.must_balance(stack.ledger)
