"""A whole fabric as real processes, on a broker and in a namespace of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
import httpx

from gati_core.fabric import EmbeddedBroker, free_port
from gati_core.ids import new_instance_id
from gati_core.settings import FabricSettings
from tests.helpers.ledger import Ledger
from tests.helpers.waiting import eventually

PACKAGES = Path(__file__).parent.parent / "packages"
_LEAVE_WITHIN_S = 15.0


class ServiceProcess:
    """One service: a process and, for some services, its children; a process group of its own."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process itself has not ended."""
        return self._process.poll() is None

    def children(self) -> list[int]:
        """Process ids of its children."""
        return [pid for pid, parent in _processes() if parent == self.pid]

    def terminate(self) -> None:
        """Ask it to leave, as a container runtime would."""
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and its children as a crash of the machine would."""
        self._signal_group(signal.SIGKILL)
        self._process.wait(5)

    def pause(self) -> None:
        """Freeze it and its children."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        self._signal_group(signal.SIGCONT)

    async def wait(self, *, within_s: float = _LEAVE_WITHIN_S) -> int:
        """Wait for its end; returns the exit code, negative when a signal ended it."""
        await eventually(lambda: not self.is_alive, within_s=within_s)
        return int(self._process.returncode)

    def log(self) -> str:
        """What it wrote to standard output and standard error."""
        return self._log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, object]]:
        """Log lines with this event name, as fields."""
        found = []
        for line in self.log().splitlines():
            if line.startswith("{") and f'"{name}"' in line:
                try:
                    fields = json.loads(line)
                except ValueError:
                    continue  # the end of the file, half written
                if fields.get("event") == name:
                    found.append(fields)
        return found

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass


class FabricUnderTest:
    """The processes of one fabric. Made by `running_fabric`."""

    def __init__(self, *, directory: Path, broker: EmbeddedBroker, environment: Mapping[str, str]) -> None:
        self.broker = broker
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ledger = Ledger(directory / "ledger.txt")
        self.settings = FabricSettings(
            nats_url=broker.url, namespace=f"t{new_instance_id()}", connect_wait_s=10.0, publish_ack_timeout_s=2.0
        )
        self.ingresses: list[ServiceProcess] = []
        self.routers: list[ServiceProcess] = []
        self.workers: list[ServiceProcess] = []
        self._directory = directory
        self._started = 0
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("GATI_")},
            "GATI_NATS_URL": broker.url,
            "GATI_NAMESPACE": self.settings.namespace,
            "GATI_INGRESS_PORT": str(self.port),
            "GATI_TEST_LEDGER": str(self.ledger.path),
            **environment,
        }

    # -- starting -------------------------------------------------------------------------------

    def start_ingress(self, **environment: str) -> ServiceProcess:
        """Start an ingress on this fabric's port; does not wait."""
        return self._start(self.ingresses, "ingress", ["gati_ingress"], environment)

    def start_router(self, **environment: str) -> ServiceProcess:
        """Start a router; does not wait."""
        return self._start(self.routers, "router", ["gati_router"], environment)

    def start_worker(self, *packages: str, **environment: str) -> ServiceProcess:
        """Start a worker of packages in `tests/packages`; does not wait."""
        sources = [argument for package in packages for argument in ("--source", str(PACKAGES / package))]
        return self._start(self.workers, "worker", ["gati_worker", *sources], environment)

    def _start(
        self, group: list[ServiceProcess], name: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> ServiceProcess:
        self._started += 1
        log = self._directory / f"{self._started:02d}-{name}.log"
        service = ServiceProcess(f"{name} {self._started}", arguments, {**self._environment, **environment}, log)
        group.append(service)
        return service

    async def serving(self, *, pools: int, within_s: float = 20.0) -> None:
        """Return once the ingress is ready and every router knows that many live pools."""
        async with self.client() as client:

            async def is_ready() -> bool:
                self._must_live()
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(is_ready, within_s=within_s)
        for worker in self._living(self.workers):
            await eventually(lambda worker=worker: worker.events("package_started"), within_s=within_s)
        for router in self._living(self.routers):
            await eventually(lambda router=router: _live_pools(router) >= pools, within_s=within_s)

    def client(self, *, timeout_s: float = 20.0, connections: int = 200) -> httpx.AsyncClient:
        """An HTTP client for this fabric; use it as a context manager."""
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        return httpx.AsyncClient(base_url=self.url, timeout=timeout_s, limits=limits, trust_env=False)

    # -- ending ---------------------------------------------------------------------------------

    @property
    def services(self) -> list[ServiceProcess]:
        """Every process started so far, in the order in which they leave."""
        return [*self.ingresses, *self.routers, *self.workers]

    async def aclose(self) -> None:
        """End everything, politely first.

        Raises:
            AssertionError: something did not leave when asked, or left a process behind.
        """
        stubborn = []
        for service in self.services:
            service.resume()
            service.terminate()
        for service in self.services:
            try:
                await service.wait()
            except AssertionError:
                stubborn.append(f"{service.name} did not leave")
                service.kill()
        for pid in self.processes():
            stubborn.append(f"process {pid} was left behind: {_command(pid)}")
            os.kill(pid, signal.SIGKILL)
        assert not stubborn, "; ".join(stubborn)

    def processes(self) -> list[int]:
        """Process ids of whatever runs in this namespace."""
        mark = f"GATI_NAMESPACE={self.settings.namespace}".encode()
        return [pid for pid, _ in _processes() if pid != os.getpid() and mark in _environment_of(pid)]

    def logs(self) -> str:
        """The end of every log, for a failed test."""
        return "\n".join(f"--- {each.name} ({each.pid})\n{each.log()[-3000:]}" for each in self.services)

    def _must_live(self) -> None:
        for service in self.services:
            if not service.is_alive:
                raise RuntimeError(f"{service.name} ended while it was waited for:\n{service.log()[-2000:]}")

    @staticmethod
    def _living(services: list[ServiceProcess]) -> Iterator[ServiceProcess]:
        return (service for service in services if service.is_alive)


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
    broker = EmbeddedBroker(directory / "broker")
    await anyio.to_thread.run_sync(broker.start)
    fabric = FabricUnderTest(directory=directory, broker=broker, environment=environment or {})
    try:
        if ingress:
            fabric.start_ingress()
        for _ in range(routers):
            fabric.start_router()
        for _ in range(workers):
            fabric.start_worker(*packages)
        if ingress and routers:
            await fabric.serving(pools=len(packages) if workers else 0)
        yield fabric
    except BaseException:
        print(fabric.logs())
        raise
    finally:
        try:
            with anyio.CancelScope(shield=True):
                await fabric.aclose()
        finally:
            await anyio.to_thread.run_sync(broker.stop)


def _live_pools(router: ServiceProcess) -> int:
    events = router.events("catalogue_rebuilt")
    pools = events[-1]["live_pools"] if events else []
    return len(pools) if isinstance(pools, list) else 0


def _processes() -> Iterator[tuple[int, int]]:
    """Process id and parent of everything that runs and is no zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it has ended
            if state not in "ZX":
                yield int(entry.name), int(parent)


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return "ended meanwhile"
