"""A whole fabric as real processes: what `gati_fabric` is, and what tests start to break."""

from __future__ import annotations

import os
import re
import signal
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import anyio
import anyio.to_thread
import httpx

from gati_core.fabric import EmbeddedBroker, free_port
from gati_core.ids import new_instance_id
from gati_core.settings import FabricSettings
from gati_testing import _guard
from gati_testing._processes import LEAVE_WITHIN_S, ServiceProcess, command_of, processes_with
from gati_testing._waiting import eventually

AppSource: TypeAlias = str | Path
"""Where an app is: a place on disk, or the name of an installed entry point. See `is_entry_point`."""

START_WITHIN_S = 60.0
"""Longest that a fabric may take until it serves; a second or two is usual."""

_NAME = re.compile(r"\w[\w.-]*")


class FabricNotServing(RuntimeError):
    """Services were started and do not serve. The message says which one is to blame, with its log."""


def is_entry_point(app: AppSource) -> bool:
    """Whether an app is named by its entry point in group `gati.apps`, and not by its place on disk.

    A `Path` is a place, and so is text with a slash or with the ending `.py`; other text is a name.

    >>> [is_entry_point(app) for app in ("shop", "./shop", "shop.py", ".", Path("shop"))]
    [True, False, False, False, False]
    """
    return isinstance(app, str) and not app.endswith(".py") and _NAME.fullmatch(app) is not None


class RunningFabric:
    """The processes of one fabric: ingress, routers and workers on an embedded broker.

    Made by `running_fabric`. Nothing in it belongs to an event loop, so tests of any kind may share one.

    Attributes:
        url: of the ingress.
        settings: what `gati_core.fabric.open_fabric` needs to look inside.
        broker: the embedded broker, to pause or to kill when it is the fabric's own.
    """

    def __init__(
        self, *, directory: Path, broker: EmbeddedBroker, environment: Mapping[str, str] | None = None
    ) -> None:
        self.broker = broker
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = FabricSettings(
            nats_url=broker.url, namespace=f"t{new_instance_id()}", connect_wait_s=10.0, publish_ack_timeout_s=2.0
        )
        self.ingresses: list[ServiceProcess] = []
        self.routers: list[ServiceProcess] = []
        self.workers: list[ServiceProcess] = []
        self._directory = directory
        self._started = 0
        self._environment = {
            # Settings of the fabric that the developer works with are not settings of the test's.
            **{name: value for name, value in os.environ.items() if not name.startswith("GATI_")},
            "GATI_NATS_URL": broker.url,
            "GATI_NAMESPACE": self.settings.namespace,
            "GATI_INGRESS_HOST": "127.0.0.1",
            "GATI_INGRESS_PORT": str(self.port),
            **(environment or {}),
        }

    # -- starting -------------------------------------------------------------------------------

    def start_ingress(self, **environment: str) -> ServiceProcess:
        """Start an ingress on this fabric's port; does not wait."""
        return self._start(self.ingresses, "ingress", ["gati_ingress"], environment)

    def start_router(self, **environment: str) -> ServiceProcess:
        """Start a router; does not wait."""
        return self._start(self.routers, "router", ["gati_router"], environment)

    def start_worker(self, *apps: AppSource, **environment: str) -> ServiceProcess:
        """Start a worker process of some apps; does not wait, `serving` does.

        Args:
            apps: places on disk, or names of installed entry points: one worker hosts one kind only.
            environment: settings of this process, by the names of their variables.
        Raises:
            ValueError: no app, or apps of both kinds.
        """
        names, places = _sorted_out(apps)
        if bool(names) == bool(places):
            raise ValueError(f"a worker hosts either places on disk or entry points, at least one: got {list(apps)}")
        arguments = [argument for place in places for argument in ("--source", str(place))]
        if names:
            environment = {"GATI_WORKER_APPS": ",".join(map(str, names)), **environment}
        return self._start(self.workers, "worker", ["gati_worker", *arguments], environment)

    def _start(
        self, group: list[ServiceProcess], name: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> ServiceProcess:
        self._started += 1
        log = self._directory / f"{self._started:02d}-{name}.log"
        service = ServiceProcess(f"{name} {self._started}", arguments, {**self._environment, **environment}, log)
        group.append(service)
        _guard.watch(service.pid)
        return service

    @asynccontextmanager
    async def started(
        self,
        apps: Sequence[AppSource],
        *,
        ingress: bool = True,
        routers: int = 1,
        workers: int = 1,
        within_s: float = START_WITHIN_S,
    ) -> AsyncIterator[None]:
        """Start services, wait until they serve, and end all of them; see `running_fabric`."""
        try:
            if ingress:
                self.start_ingress()
            for _ in range(routers):
                self.start_router()
            for kind in _sorted_out(apps):
                for _ in range(workers if kind else 0):
                    self.start_worker(*kind)
            await self.serving(within_s=within_s)
            yield
        except FabricNotServing:
            raise
        except Exception as exc:
            exc.add_note(self.logs())  # of a test that failed inside the block
            raise
        finally:
            with anyio.CancelScope(shield=True):  # bounded: whoever does not leave is killed
                await self.aclose()

    async def serving(self, *, within_s: float = START_WITHIN_S) -> None:
        """Return once the ingress is ready and every router knows what every living worker hosts.

        Raises:
            FabricNotServing: a service ended, a package did not load, or time is up.
        """
        try:
            with anyio.fail_after(within_s):
                await self._until_ready(within_s)
                pools = await self._until_hosted(within_s)
                for router in _living(self.routers):
                    await eventually(
                        lambda router=router: self._no_failure() and pools <= _live_pools(router), within_s=within_s
                    )
        except (TimeoutError, AssertionError) as exc:
            raise FabricNotServing(f"the fabric does not serve after {within_s:g} s\n{self.logs()}") from exc

    async def _until_ready(self, within_s: float) -> None:
        if not self.ingresses:
            return
        async with self.client(timeout_s=5.0) as client:

            async def is_ready() -> bool:
                self._no_failure()
                try:
                    return (await client.get("/readyz")).status_code == 200
                except httpx.TransportError:
                    return False

            await eventually(is_ready, within_s=within_s)

    async def _until_hosted(self, within_s: float) -> set[str]:
        """Wait until every living worker has started everything it hosts; returns their pools."""
        pools: set[str] = set()
        for worker in _living(self.workers):

            def has_started(worker: ServiceProcess = worker) -> bool:
                self._no_failure()
                wanted = {app for event in worker.events("worker_started") for app in event.get("packages", [])}
                started = worker.events("package_started")
                pools.update(str(event.get("pool")) for event in started)
                return bool(wanted) and wanted <= {event.get("app") for event in started}

            await eventually(has_started, within_s=within_s)
        return pools

    def _no_failure(self) -> bool:
        for service in self.services:
            if not service.is_alive and not service.was_ended:
                raise FabricNotServing(f"{service.name} ended with exit code {service.exit_code}\n{self.logs()}")
        for worker in _living(self.workers):
            for event in worker.events("package_failed"):
                facts = [str(event[key]) for key in ("error", "where", "exception") if key in event]
                raise FabricNotServing("\n".join([f"the app {event.get('app')} does not load:", *facts, self.logs()]))
        return True

    # -- using it -------------------------------------------------------------------------------

    def client(self, *, timeout_s: float = 20.0, connections: int = 200, keep_alive: bool = True) -> httpx.AsyncClient:
        """An HTTP client for this fabric; use it as a context manager.

        Args:
            keep_alive: with False every request has a connection of its own, so that nothing stays
                open and the client need not be closed.
        """
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections if keep_alive else 0)
        # There is no TLS to verify; loading the certificates would take longer than many a test.
        return httpx.AsyncClient(base_url=self.url, timeout=timeout_s, limits=limits, trust_env=False, verify=False)  # noqa: S501

    def sync_client(self, *, timeout_s: float = 20.0) -> httpx.Client:
        """The same for tests that are not async; use it as a context manager."""
        return httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=False, verify=False)  # noqa: S501 - as above

    @property
    def services(self) -> list[ServiceProcess]:
        """Every process started so far, in the order in which they leave."""
        return [*self.ingresses, *self.routers, *self.workers]

    def logs(self, *, lines: int = 40) -> str:
        """The end of every service's log."""
        return "\n".join(
            f"--- {each.name} (pid {each.pid})\n{each.log_for_people(lines=lines)}" for each in self.services
        )

    def processes(self) -> list[int]:
        """Process ids of whatever runs in this namespace; empty where there is no `/proc` to look into."""
        return processes_with("GATI_NAMESPACE", self.settings.namespace)

    # -- ending ---------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """End everything, politely first.

        Raises:
            AssertionError: something did not leave when asked, or left a process behind.
        """
        for service in _living(self.services):
            service.resume()
            service.terminate()
        stubborn = []
        try:
            await eventually(lambda: not any(_living(self.services)), within_s=LEAVE_WITHIN_S)
        except AssertionError:
            for service in _living(self.services):
                stubborn.append(f"{service.name} did not leave:\n{service.log_for_people()}")
                service.kill()
        for service in self.services:
            _guard.forget(service.pid)
        for pid in self.processes():
            stubborn.append(f"process {pid} was left behind: {command_of(pid)}")
            os.kill(pid, signal.SIGKILL)
        if stubborn:
            raise AssertionError("\n".join(stubborn))


@asynccontextmanager
async def open_broker(directory: Path) -> AsyncIterator[EmbeddedBroker]:
    """A broker with its streams in `directory`."""
    broker = EmbeddedBroker(directory)
    try:
        await anyio.to_thread.run_sync(broker.start)
        with _guard.watching(broker.pid):
            yield broker
    finally:
        with anyio.CancelScope(shield=True):  # bounded: it is killed after five seconds
            await anyio.to_thread.run_sync(broker.stop)


@asynccontextmanager
async def running_fabric(
    *apps: AppSource,
    directory: Path | None = None,
    broker: EmbeddedBroker | None = None,
    ingress: bool = True,
    routers: int = 1,
    workers: int = 1,
    environment: Mapping[str, str] | None = None,
    within_s: float = START_WITHIN_S,
) -> AsyncIterator[RunningFabric]:
    """Start an ingress, routers and workers on a broker, and wait until they serve; leave nothing running.

    Args:
        apps: what every worker hosts: places on disk, or names of installed entry points.
        directory: for logs and streams; a temporary one that is removed when none is given.
        broker: a running broker to use; without it, the fabric has one of its own. Either way the
            fabric has a namespace of its own.
        ingress: False for tests that speak to the streams directly.
        workers: processes for each kind of app (places, names), so none at all when 0.
        environment: settings for all processes, by the names of their variables.
        within_s: seconds they may take to serve.
    Raises:
        FabricNotServing: with the log of whatever did not start.
        AssertionError: at the end, when a service did not leave or left a process behind.
    """
    async with AsyncExitStack() as stack:
        if directory is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gati-fabric-")))
        if broker is None:
            broker = await stack.enter_async_context(open_broker(directory / "broker"))
        fabric = RunningFabric(directory=directory, broker=broker, environment=environment)
        starting = fabric.started(apps, ingress=ingress, routers=routers, workers=workers, within_s=within_s)
        await stack.enter_async_context(starting)
        yield fabric


def _sorted_out(apps: Iterable[AppSource]) -> tuple[list[AppSource], list[AppSource]]:
    """Names of entry points, and places on disk."""
    names = [app for app in apps if is_entry_point(app)]
    return names, [Path(app).resolve() for app in apps if not is_entry_point(app)]


def _live_pools(router: ServiceProcess) -> set[str]:
    events = router.events("catalogue_rebuilt")
    return set(events[-1].get("live_pools", [])) if events else set()


def _living(services: list[ServiceProcess]) -> Iterator[ServiceProcess]:
    return (service for service in services if service.is_alive)
