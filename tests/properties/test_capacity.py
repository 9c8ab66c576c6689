"""Properties of a fabric of real processes that is asked for more than it can hold."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gati_core.fabric import Fabric, open_fabric, stream_state
from tests.helpers.notes import Notes
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually
from tests.integration.services.test_operations import samples

REQUEST_TIMEOUT_S = 0.3
ROOM = {
    "GATI_INGRESS_MAX_IN_FLIGHT": "14",
    "GATI_INGRESS_REQUEST_TIMEOUT_S": str(REQUEST_TIMEOUT_S),
    "GATI_FABRIC_REQ_MAX_MSGS": "8",
    "GATI_FABRIC_WORK_MAX_MSGS_PER_HANDLER": "4",
    "GATI_FABRIC_PUBLISH_WINDOW": "6",
    "GATI_ROUTER_MAX_IN_FLIGHT": "3",
    "GATI_WORKER_MAX_IN_FLIGHT": "2",
}


class Ask(NamedTuple):
    """One request of a burst."""

    path: str
    ms: int


@pytest.fixture(scope="module")
async def tight(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """An ingress, two routers and two workers, with room for a handful of requests each."""
    directory = tmp_path_factory.mktemp("tight")
    async with running_fabric(
        directory, packages=["capacity_app.py"], routers=2, workers=2, environment=ROOM
    ) as fabric:
        yield fabric


@pytest.fixture(scope="module")
async def client(tight: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with tight.client() as client:
        yield client


@pytest.fixture(scope="module")
async def inside(tight: FabricUnderTest) -> AsyncIterator[Fabric]:
    async with open_fabric(tight.settings, name="test", ensure=False) as fabric:
        yield fabric


@pytest.fixture(scope="module")
def outcomes() -> Counter[str]:
    """What all bursts came to."""
    return Counter()


def bursts() -> st.SearchStrategy[list[Ask]]:
    """Up to more requests than any part has room for, from those that take no time to those that take too much."""
    asks = st.builds(Ask, st.sampled_from(["once", "again", "limited"]), st.sampled_from([0, 10, 100, 250, 5000]))
    groups = st.lists(st.tuples(asks, st.integers(1, 12)), min_size=1, max_size=6)
    return groups.map(lambda groups: [ask for ask, count in groups for _ in range(count)])


async def send(client: httpx.AsyncClient, ask: Ask) -> httpx.Response:
    method = "PUT" if ask.path == "again" else "POST"
    return await client.request(method, f"/{ask.path}/{ask.ms}")


def ends_properly(ask: Ask, answer: httpx.Response) -> bool:
    """Done, refused with when to come back, or out of time; and each of them only when it can be."""
    if answer.status_code == 200:
        return bool(answer.json() == {"done": True} and ask.ms < 5000)
    code = answer.json()["code"]
    if answer.status_code == 503:
        return int(answer.headers["retry-after"]) >= 1 and code in ("ingress.overloaded", "fabric.backpressure")
    expected = (
        ("request.deadline_exceeded", "handler.timeout") if ask.path == "limited" else ("request.deadline_exceeded",)
    )
    return answer.status_code == 504 and code in expected


@pytest.mark.prop(43)
@pytest.mark.timeout(240)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(burst=bursts())
async def test_a_fabric_at_capacity_refuses_or_delays_and_deadlines_end_what_runs(
    tight: FabricUnderTest, client: httpx.AsyncClient, inside: Fabric, outcomes: Counter[str], burst: list[Ask]
) -> None:
    """P43 (R13.3): publishing is refused or delayed, and the deadline reaches the handler, which is cancelled
    gracefully."""
    notes = Notes(tight.ledger.path)
    noted = len(notes.lines())

    answers = await asyncio.gather(*(send(client, ask) for ask in burst))

    for ask, answer in zip(burst, answers, strict=True):
        outcomes[answer.json().get("code", "done")] += 1
        assert ends_properly(ask, answer), f"{ask}: {answer.status_code} {answer.headers} {answer.text}"

    # What had started came to one end and was cleaned up once; nothing else ran.
    def all_ended() -> bool:
        runs = [tuple(line.split(" ")) for line in notes.lines()[noted:]]
        began = Counter(run[:2] for run in runs if run[2] == "begun")
        ended = Counter(run[:2] for run in runs if run[2] in ("done", "cancelled"))
        cleaned = Counter(run[:2] for run in runs if run[2] == "cleanup")
        return began == ended == cleaned and set(began.values()) <= {1}

    await eventually(all_ended, within_s=5)
    done = {line.split(" ")[0] for line in notes.lines()[noted:] if line.endswith(" done")}
    for answer in answers:
        assert answer.status_code != 200 or answer.headers["x-request-id"] in done

    # Nothing is in the way of the next one.
    async def nothing_in_flight() -> bool:
        metrics = (await client.get("/metrics")).text
        waiting = sum(samples(metrics, "gati_ingress_in_flight").values())
        stored = [
            await stream_state(inside.connection, each)
            for each in (inside.subjects.work_stream, inside.subjects.req_stream)
        ]
        return waiting == 0 and all(state.messages == 0 for state in stored)

    await eventually(nothing_in_flight, within_s=5)
    assert (await client.post("/once/0")).status_code == 200


async def test_the_bursts_met_every_limit(outcomes: Counter[str]) -> None:
    """What the property above says of refusals and deadlines was seen to happen."""
    if not outcomes:
        pytest.skip("only together with the property above, whose outcomes it looks at")
    expected = {"done", "ingress.overloaded", "fabric.backpressure", "request.deadline_exceeded", "handler.timeout"}
    assert set(outcomes) == expected
