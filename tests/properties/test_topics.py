"""Properties of events between real processes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gati_core.fabric import EmbeddedBroker, open_fabric
from gati_core.ids import new_instance_id
from gati_core.settings import FabricSettings
from gati_testing import strategies
from tests.helpers.topic_process import Heard, Place, Publication, TopicProcess, topic_processes

T = TypeVar("T")
_NAMES = ("north", "south", "east")
_TOPICS = ("step", "done")


@pytest.fixture(scope="module")
async def processes(gati_broker: EmbeddedBroker) -> AsyncIterator[list[TopicProcess]]:
    """Three processes on one fabric."""
    fabric_settings = FabricSettings(nats_url=gati_broker.url, namespace=f"t{new_instance_id()}")
    async with open_fabric(fabric_settings, name="test"), topic_processes(fabric_settings, *_NAMES) as processes:
        yield processes


@pytest.fixture(scope="module")
def rounds() -> Iterator[int]:
    """Numbers of the rounds of this module."""
    return itertools.count(1)


async def _exchange(
    processes: list[TopicProcess],
    round: int,
    listening: list[list[Place]],
    publishing: list[list[Publication]],
) -> list[list[list[Heard]]]:
    """What each subscription of each process has heard when everything was published."""
    await asyncio.gather(*(each.listen(places) for each, places in zip(processes, listening, strict=True)))
    await asyncio.gather(*(each.publish(them, round=round) for each, them in zip(processes, publishing, strict=True)))
    return list(await asyncio.gather(*(each.report(round=round, processes=_NAMES) for each in processes)))


def _by_publisher(heard: list[Heard]) -> dict[str, list[tuple[str, object]]]:
    """The broker keeps the order of one publisher, not of several."""
    return {name: [(each.request_id, each.payload) for each in heard if each.publisher == name] for name in _NAMES}


def _published(publishing: list[list[Publication]], place: Place) -> dict[str, list[tuple[str, object]]]:
    return {
        name: [(place.request_id, each.payload) for each in publications if each.place == place]
        for name, publications in zip(_NAMES, publishing, strict=True)
    }


def _per_process(what: st.SearchStrategy[T]) -> st.SearchStrategy[list[list[T]]]:
    return st.lists(st.lists(what, max_size=4), min_size=len(_NAMES), max_size=len(_NAMES))


@st.composite
def _local_exchanges(draw: st.DrawFn) -> tuple[list[list[Place]], list[list[Publication]]]:
    """Subscriptions and publications of a few requests, among them namesakes on global topics."""
    requests = [*draw(st.lists(strategies.request_ids(), min_size=1, max_size=3, unique=True)), ""]
    places = st.builds(Place, st.sampled_from(_TOPICS), st.sampled_from(requests))
    publications = st.builds(Publication, places, strategies.payloads())
    return draw(_per_process(places)), draw(_per_process(publications))


@pytest.mark.prop(26)
@pytest.mark.timeout(120)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(exchange=_local_exchanges())
async def test_events_of_a_request_reach_its_subscribers_and_nobody_else(
    processes: list[TopicProcess],
    rounds: Iterator[int],
    exchange: tuple[list[list[Place]], list[list[Publication]]],
) -> None:
    """P26 (R7.4): each subscriber hears what was published on its request's topic, wherever, and nothing else."""
    listening, publishing = exchange

    heard = await _exchange(processes, next(rounds), listening, publishing)

    for places, reports in zip(listening, heard, strict=True):
        for place, report in zip(places, reports, strict=True):
            assert _by_publisher(report) == _published(publishing, place)


@st.composite
def _global_exchanges(draw: st.DrawFn) -> tuple[list[list[Place]], list[list[Publication]]]:
    """Subscriptions and publications on global topics, kept and not, and of requests that do not hear them."""
    topics = st.builds(Place, st.sampled_from(_TOPICS))
    local = st.builds(Place, st.sampled_from(_TOPICS), strategies.request_ids())
    publications = st.builds(Publication, topics, strategies.payloads(), st.booleans())
    return draw(_per_process(topics | topics | local)), draw(_per_process(publications))


@pytest.mark.prop(31)
@pytest.mark.timeout(120)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(exchange=_global_exchanges())
async def test_global_events_reach_all_subscribers_in_all_processes(
    processes: list[TopicProcess],
    rounds: Iterator[int],
    exchange: tuple[list[list[Place]], list[list[Publication]]],
) -> None:
    """P31 (R8.4): every subscriber of the topic hears every event once, in its publisher's order."""
    listening, publishing = exchange

    heard = await _exchange(processes, next(rounds), listening, publishing)

    for places, reports in zip(listening, heard, strict=True):
        for place, report in zip(places, reports, strict=True):
            assert _by_publisher(report) == _published(publishing, place)
