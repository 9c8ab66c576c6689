"""Containers for the tests, through testcontainers: the images that people run, not our embedded programs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.docker import require_docker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here runs against containers."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.containers)


@pytest.fixture(scope="session")
def docker() -> None:
    """Ask for this to be skipped, with the reason, where no engine answers; with GATI_REQUIRE_DOCKER=1 it fails."""
    require_docker()


@pytest.fixture(scope="session")
def nats_url(docker: None) -> Iterator[str]:
    """A NATS server with JetStream in a container."""
    from testcontainers.community.nats import NatsContainer

    server = NatsContainer("nats:2.15-alpine", jetstream=True, ready_timeout_secs=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own way of waiting, deprecated by itself
        server.start()
    try:
        yield server.nats_uri()
    finally:
        server.stop()
