"""The pytest plugin: a real fabric for every module that asks for one, and an HTTP client on it.

Registered through the `pytest11` entry point; a project that installs `gati-testing` has these
fixtures without importing anything. What a handler author uses: `gati_harness` for one handler, and
`gati_apps`, `gati_fabric`, `gati_client`, `gati_sync_client`. The others are one level below.

The fixtures of the fabric are plain, not async: they fit sync and async tests, whoever runs those.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from gati_core import App
from gati_core.fabric import EmbeddedBroker, Fabric, open_fabric
from gati_core.ids import new_instance_id
from gati_core.settings import FabricSettings
from gati_testing import _backend, _guard
from gati_testing._project import app_of_project
from gati_testing._running_fabric import AppSource, FabricNotServing, RunningFabric, is_entry_point, running_fabric
from gati_testing.harness import Harness


def pytest_configure(config: pytest.Config) -> None:
    """Register the backend after all installed plugins: of two fixtures of a name, the later one holds."""
    config.pluginmanager.register(_backend, "gati-backend")


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class, name: str, obj: object) -> None:
    """Let `async def` tests that ask for one of our fixtures run without a mark and without settings.

    Where pytest-asyncio is installed, that decides who runs which test, and we stay out of it.
    """
    if collector.config.pluginmanager.has_plugin("asyncio"):
        return
    function = obj.hypothesis.inner_test if hasattr(obj, "hypothesis") else obj
    if inspect.iscoroutinefunction(function) and any(
        parameter.startswith("gati_") for parameter in inspect.signature(function).parameters
    ):
        pytest.mark.usefixtures("anyio_backend")(obj)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show with a failed test what the services had to say."""
    report = yield
    if report.failed and report.when == "call" and isinstance(item, pytest.Function):
        for value in item.funcargs.values():
            if isinstance(value, RunningFabric):
                report.sections.append(("services of the fabric", value.logs()))
    return report


# -- one handler, in the test's own process -----------------------------------------------------------


@pytest.fixture
def gati_app() -> App | None:
    """The app of `gati_harness`, for handlers that are named by their id; override it. None by default."""
    return None


@pytest.fixture
def gati_harness(gati_app: App | None) -> Harness:
    """A harness of the test's own: `result = await gati_harness.execute_handler(place_order, {"body": …})`."""
    return Harness(gati_app)


# -- a fabric that serves the project's handlers ------------------------------------------------------


@pytest.fixture(scope="session")
def gati_apps(pytestconfig: pytest.Config) -> Sequence[AppSource]:
    """What `gati_fabric` serves. Override it, with scope "session" or "module", to serve something else.

    A `Path` is a package on disk, and so is text with a slash or with the ending `.py`, both from
    pytest's rootdir on. Other text is the name of an installed entry point in group `gati.apps`.
    The default is the project whose `pyproject.toml` lies in the rootdir.
    """
    return [app_of_project(pytestconfig.rootpath)]


@pytest.fixture(scope="session")
def gati_environment() -> dict[str, str]:
    """Settings of the services of `gati_fabric`, by the names of their variables. Override it like `gati_apps`."""
    return {}


@pytest.fixture(scope="module")
def gati_fabric(
    gati_apps: Sequence[AppSource],
    gati_environment: dict[str, str],
    gati_broker: EmbeddedBroker,
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningFabric]:
    """A real fabric for the module: ingress, router and worker as processes, in a namespace of its own."""
    if isinstance(gati_apps, str | Path):
        raise pytest.UsageError(f"the fixture gati_apps returns a list, not {gati_apps!r}")
    if not gati_apps:
        raise pytest.UsageError("the fixture gati_apps names no app")
    apps = [app if is_entry_point(app) else pytestconfig.rootpath / app for app in gati_apps]
    opening = running_fabric(
        *apps, directory=tmp_path_factory.mktemp("fabric"), broker=gati_broker, environment=gati_environment
    )
    with start_blocking_portal() as portal:
        manager = portal.wrap_async_context_manager(opening)
        fabric, problem = None, ""
        try:
            fabric = manager.__enter__()
        except FabricNotServing as exc:
            problem = str(exc)
        if fabric is None:
            pytest.fail(problem, pytrace=False)  # where in this plugin it was raised is of no use to anybody
        try:
            yield fabric
        finally:
            manager.__exit__(None, None, None)


@pytest.fixture
def gati_client(gati_fabric: RunningFabric) -> httpx.AsyncClient:
    """An HTTP client on `gati_fabric` for async tests; cookies are the test's own."""
    # Closing it would need the test's event loop, whichever library runs that; so nothing stays open.
    return gati_fabric.client(keep_alive=False)


@pytest.fixture
def gati_sync_client(gati_fabric: RunningFabric) -> Iterator[httpx.Client]:
    """An HTTP client on `gati_fabric` for tests that are not async."""
    with gati_fabric.sync_client() as client:
        yield client


# -- one level below: the broker, and the fabric's streams from within -----------------------------------


@pytest.fixture(scope="session")
def gati_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    """One broker for the whole session. Leave it running: who kills or pauses takes `own_broker`."""
    with EmbeddedBroker(tmp_path_factory.mktemp("broker")) as broker, _guard.watching(broker.pid):
        yield broker


@pytest.fixture
def gati_namespace() -> str:
    """A namespace that no other test has."""
    return f"t{new_instance_id()}"


@pytest.fixture
def gati_fabric_settings(gati_broker: EmbeddedBroker, gati_namespace: str) -> FabricSettings:
    """Settings that reach the session's broker under the test's namespace."""
    return FabricSettings(nats_url=gati_broker.url, namespace=gati_namespace, connect_wait_s=10.0)


@pytest.fixture
async def gati_open_fabric(gati_fabric_settings: FabricSettings) -> AsyncIterator[Fabric]:
    """An open fabric with its streams and buckets in place, and no service running."""
    async with open_fabric(gati_fabric_settings, name="test") as fabric:
        yield fabric


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    """A broker of the test's own, to kill, pause and start again; it keeps its port and its streams."""
    with EmbeddedBroker(tmp_path / "own-broker") as broker, _guard.watching(broker.pid):
        yield broker
