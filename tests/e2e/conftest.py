"""The fabric under docker compose: built once per session, torn down with its volumes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from gati_core.fabric import free_port
from gati_core.ids import new_instance_id
from tests.helpers.docker import ROOT, Compose, require_docker
from tests.helpers.ledger import Ledger
from tests.helpers.waiting import eventually


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here is end to end, and may have to build images first."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(240))


class Stack:
    """A running fabric: how to reach it, how to hurt it, and what it ran."""

    def __init__(self, compose: Compose, *, port: int, ledger: Ledger) -> None:
        self.compose = compose
        self.url = f"http://127.0.0.1:{port}"
        self.ledger = ledger


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """NATS, ingress, router and worker, with the examples and the ledger package."""
    require_docker()
    directory = tmp_path_factory.mktemp("ledger")
    directory.chmod(0o777)  # the services run as a user of their own
    port = free_port()
    compose = Compose(
        f"gati-e2e-{new_instance_id()}",
        ROOT / "docker-compose.yml",
        ROOT / "tests" / "e2e" / "compose.yml",
        environment={"GATI_INGRESS_PORT": str(port), "GATI_TEST_LEDGER_DIR": str(directory), "GATI_NAMESPACE": "e2e"},
    )
    try:
        compose.up("--build")
        yield Stack(compose, port=port, ledger=Ledger(directory / "ledger.txt"))
    finally:
        compose.down()


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client for the stack."""
    async with httpx.AsyncClient(base_url=stack.url, timeout=30, trust_env=False) as client:
        await pools_are_served(client)
        yield client


async def pools_are_served(client: httpx.AsyncClient) -> None:
    """Return once the ledger package answers; containers may be healthy before the router has heard of it."""

    async def is_served() -> bool:
        return (await client.post("/again", json={"id": "probe"})).status_code == 200

    await eventually(is_served, within_s=20)


@pytest.fixture(autouse=True)
def logs_of_a_failure(request: pytest.FixtureRequest, stack: Stack) -> Iterator[None]:
    """Show the end of every container's log when a test fails."""
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed > failed_before:
        print(stack.compose.logs())
