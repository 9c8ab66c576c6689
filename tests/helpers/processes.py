"""The kit's fabric of real processes, on a broker of its own and with what only our own tests need: a ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from gati_core.fabric import EmbeddedBroker
from gati_testing import RunningFabric, ServiceProcess, open_broker
from tests.helpers.ledger import Ledger

PACKAGES = Path(__file__).parent.parent / "packages"


class FabricUnderTest(RunningFabric):
    """The processes of one fabric, and the ledger that its handlers write. Made by `running_fabric`."""

    def __init__(self, *, directory: Path, broker: EmbeddedBroker, environment: Mapping[str, str]) -> None:
        self.ledger = Ledger(directory / "ledger.txt")
        environment = {"GATI_TEST_LEDGER": str(self.ledger.path), **environment}
        super().__init__(directory=directory, broker=broker, environment=environment)

    def start_worker(self, *packages: str | Path, **environment: str) -> ServiceProcess:
        """Start a worker of packages in `tests/packages`; does not wait."""
        return super().start_worker(*(PACKAGES / package for package in packages), **environment)


@asynccontextmanager
async def running_fabric(
    directory: Path,
    *,
    packages: Sequence[str] = ("ledger_app.py",),
    routers: int = 1,
    workers: int = 1,
    ingress: bool = True,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[FabricUnderTest]:
    """Start a broker, an ingress, routers and workers; at the end nothing is left running.

    Args:
        directory: for logs, streams and the ledger.
        packages: what every worker hosts, from `tests/packages`.
        environment: settings for all processes, by the names of their variables.
    """
    async with open_broker(directory / "broker") as broker:
        fabric = FabricUnderTest(directory=directory, broker=broker, environment=environment or {})
        apps = [PACKAGES / package for package in packages]
        async with fabric.started(apps, ingress=ingress, routers=routers, workers=workers):
            yield fabric
