"""Streams and WebSockets through the containers; the stack is left with one worker, as it was found."""

from __future__ import annotations

import asyncio

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.conftest import Stack
from tests.helpers.docker import docker
from tests.helpers.waiting import eventually


def talk(stack: Stack) -> connect:
    """A socket whose handler says its host first, and then every message back."""
    url = stack.url.replace("http", "ws", 1) + "/talk"
    return connect(url, proxy=None, compression=None, open_timeout=15, close_timeout=5)


async def test_server_sent_events_arrive_whole_and_in_order(stack: Stack, client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/numbers/500") as answer:
        lines = [line async for line in answer.aiter_lines()]

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert [line for line in lines if line.startswith("data:")] == [
        f'data: {{"number":{number}}}' for number in range(500)
    ]


async def test_a_socket_echoes_text_and_bytes(stack: Stack) -> None:
    messages: list[str | bytes] = ["ada", b"\x00\xff", "x" * 100_000]
    async with asyncio.timeout(20), talk(stack) as socket:
        await socket.recv()
        for message in messages:
            await socket.send(message)

        assert [await socket.recv() for _ in messages] == messages


async def test_a_killed_worker_ends_its_sockets_with_1011_and_another_takes_new_ones(
    stack: Stack, client: httpx.AsyncClient
) -> None:
    await asyncio.to_thread(stack.compose.up, "--no-recreate", "--scale", "worker=2")
    workers = stack.compose.containers("worker")
    async with asyncio.timeout(60), talk(stack) as socket:
        host = str(await socket.recv())
        (victim,) = [worker for worker in workers if worker.startswith(host)]

        await asyncio.to_thread(docker, "kill", victim)
        try:
            await socket.recv()
        except ConnectionClosed:
            pass

        assert socket.close_code == 1011

    async def another_answers() -> bool:
        try:
            async with asyncio.timeout(15), talk(stack) as again:
                return await again.recv() != host
        except InvalidStatus:
            return False  # it was on its way to the worker that died

    await eventually(another_answers, within_s=15)
    await asyncio.to_thread(stack.compose.up, "--no-recreate", "--scale", "worker=1")
