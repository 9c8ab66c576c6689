"""Properties of requests on their way through real processes."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gati_core.fabric import Fabric, open_fabric
from gati_core.wire import Reply, WorkItem, decode_reply, decode_routing, decode_work
from gati_testing import strategies
from gati_testing.strategies import HttpRequest
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_PLAIN = {"accept-encoding": "identity"}


class Witness:
    """Sees every message of the fabric as it passes the broker.

    In no order that could be relied on: the broker keeps the order of one publisher, not of several.
    """

    def __init__(self) -> None:
        self.requests: dict[str, list[bytes]] = defaultdict(list)
        self.work: dict[str, list[WorkItem]] = defaultdict(list)
        self.replies: dict[str, list[Reply]] = defaultdict(list)
        self.answered: set[str] = set()
        """Every id that a client was told."""

    async def attend(self, fabric: Fabric) -> None:
        """Listen on the subjects that a request passes."""
        subjects, subscribe = fabric.subjects, fabric.connection.subscribe
        await subscribe(subjects.req_all, self._on_request)
        await subscribe(subjects.work_all, self._on_work)
        await subscribe(f"{subjects.namespace}.reply.>", self._on_reply)
        await fabric.connection.flush()

    def has_seen(self, request_id: str) -> bool:
        """Whether every stage of this request came by."""
        return all(request_id in stage for stage in (self.requests, self.work, self.replies))

    def _on_request(self, subject: bytes, _reply: bytes, data: bytes, _headers: bytes | None) -> None:
        self.requests[decode_routing(data, subject=subject.decode()).request_id].append(data)

    def _on_work(self, subject: bytes, _reply: bytes, data: bytes, _headers: bytes | None) -> None:
        item = decode_work(data, subject=subject.decode())
        self.work[item.request_id].append(item)

    def _on_reply(self, _subject: bytes, _reply: bytes, data: bytes, _headers: bytes | None) -> None:
        reply = decode_reply(data)
        self.replies[reply.request_id].append(reply)


@pytest.fixture(scope="module")
async def fabric(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """Two routers and two workers, so that there is somebody to mix requests up with."""
    directory = tmp_path_factory.mktemp("requests")
    async with running_fabric(directory, packages=["echo_app.py"], routers=2, workers=2) as fabric:
        yield fabric


@pytest.fixture(scope="module")
async def client(fabric: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client."""
    async with fabric.client() as client:
        yield client


@pytest.fixture(scope="module")
async def witness(fabric: FabricUnderTest) -> AsyncIterator[Witness]:
    """A witness that has been there from the first request on."""
    witness = Witness()
    async with open_fabric(fabric.settings, name="witness") as inside:
        await witness.attend(inside)
        yield witness


def echoes() -> st.SearchStrategy[HttpRequest]:
    """Requests that the echo package answers with what it saw."""
    segments = strategies.path_segments().filter(lambda text: text not in (".", ".."))
    items = st.tuples(segments, segments).map(lambda two: "/items/" + "/".join(quote(each, safe="") for each in two))
    return strategies.http_requests(paths=st.just("/echo"), methods=_METHODS) | strategies.http_requests(
        paths=items, methods=("GET",)
    )


@pytest.mark.prop(3)
@pytest.mark.timeout(120)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=st.lists(echoes(), min_size=1, max_size=6))
async def test_requests_are_told_apart_and_pass_every_stage_in_order(
    client: httpx.AsyncClient, witness: Witness, requests: list[HttpRequest]
) -> None:
    """P3 (R1.3): ids are pairwise distinct, and each request passes ingress, router, handler, answer, in that order."""
    before_ms = int(time.time() * 1000)

    answers = await asyncio.gather(
        *(
            client.request(each.method, each.path, headers=[*each.headers, *_PLAIN.items()], content=each.body)
            for each in requests
        )
    )

    assert [answer.status_code for answer in answers] == [200] * len(requests), [answer.text for answer in answers]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert witness.answered.isdisjoint(ids)
    witness.answered.update(ids)
    await eventually(lambda: all(witness.has_seen(each) for each in ids), within_s=5)
    after_ms = int(time.time() * 1000) + 1
    for request_id in ids:
        # One message per stage, each made from the one before: that is the order.
        (published,) = witness.requests[request_id]
        (item,) = witness.work[request_id]
        (reply,) = witness.replies[request_id]
        timing = reply.timing
        assert bytes(item.descriptor) == published
        assert timing is not None
        assert timing.routed_ms == item.routed_ms
        instants = [timing.received_ms, timing.routed_ms, timing.started_ms, timing.finished_ms]
        assert [before_ms, *instants, after_ms] == sorted([before_ms, *instants, after_ms])
    for request, request_id, answer in zip(requests, ids, answers, strict=True):
        if request.path.startswith("/echo"):
            seen = answer.json()
            assert (seen["request_id"], seen["method"]) == (request_id, request.method)
            for name, value in dict(request.headers).items():
                assert value in seen["headers"][name]
