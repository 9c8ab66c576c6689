"""The example `live`, as a newcomer meets it: a ticker, chat rooms and tickets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.helpers.processes import FabricUnderTest, running_fabric

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """Two workers with the example, so that a room has visitors in both."""
    packages = [str(EXAMPLES / "live")]
    async with running_fabric(tmp_path_factory.mktemp("live"), packages=packages, workers=2) as fabric:
        yield fabric


@pytest.fixture(scope="module")
async def client(live: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client for the example."""
    async with live.client() as client:
        yield client


def room(live: FabricUnderTest, name: str, who: str) -> connect:
    """Enter a room."""
    return connect(live.url.replace("http://", "ws://") + f"/rooms/{name}?name={who}")


async def test_the_ticker_ticks_as_often_as_it_is_asked_to(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "/ticks/2") as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        lines = [line async for line in answer.aiter_lines()]

    assert [line for line in lines if line.startswith("id:")] == ["id: 0", "id: 1"]
    assert lines.count("event: tick") == 2


@pytest.mark.parametrize("count", ["0", "61", "many", "²"])
async def test_a_ticker_has_a_bound(client: httpx.AsyncClient, count: str) -> None:
    assert (await client.get(f"/ticks/{count}")).status_code == 404


async def test_everybody_in_a_room_reads_what_one_says(live: FabricUnderTest) -> None:
    async with room(live, "blue", "ada") as ada, room(live, "blue", "ben") as ben, room(live, "red", "eve") as eve:
        await ada.send("hello")
        heard = [json.loads(await visitor.recv()) for visitor in (ada, ben)]
        await eve.send("nobody here?")

        assert heard == [{"who": "ada", "what": "hello"}] * 2
        assert json.loads(await eve.recv()) == {"who": "eve", "what": "nobody here?"}


async def test_a_room_whose_name_is_no_name_is_refused(live: FabricUnderTest) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with room(live, "a.b", "ada"):
            pass

    assert refused.value.response.status_code == 404


async def test_a_paid_ticket_can_be_looked_up_and_the_lobby_hears_of_it(
    live: FabricUnderTest, client: httpx.AsyncClient
) -> None:
    async with room(live, "lobby", "ada") as lobby:
        bought = await client.post("/tickets", json={"seat": "A1", "card": "4242"}, headers={"x-visitor": "ada"})
        heard = json.loads(await lobby.recv())

    assert (bought.status_code, bought.headers["location"]) == (201, "/tickets/A1")
    assert (await client.get("/tickets/A1")).json() == {"seat": "A1", "holder": "ada"}
    assert heard == {"who": "usher", "what": "ada sits in A1"}
    again = await client.post("/tickets", json={"seat": "A1", "card": "4242"}, headers={"x-visitor": "ben"})
    assert (again.status_code, again.json()["code"]) == (409, "live.seat_taken")


async def test_a_declined_card_gives_the_seat_back(client: httpx.AsyncClient) -> None:
    declined = await client.post("/tickets", json={"seat": "B2", "card": "0000"}, headers={"x-visitor": "ada"})

    assert (declined.status_code, declined.json()) == (402, {"declined": "this card is not covered"})
    assert (await client.get("/tickets/B2")).status_code == 404


async def test_nobody_buys_a_ticket_without_a_name(client: httpx.AsyncClient) -> None:
    refused = await client.post("/tickets", json={"seat": "C3", "card": "4242"})

    assert (refused.status_code, refused.json()["code"]) == (401, "auth.unauthenticated")
