"""Which broker a command talks to, and how it connects: quickly, or with one clear line.

In this order: `--nats-url`, `GATI_NATS_URL`, the `gati dev` that runs in this directory, the default.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gati_cli._errors import CliError
from gati_cli.state import read_dev_state

if TYPE_CHECKING:
    from gati_core.fabric import Fabric
    from gati_core.settings import FabricSettings

T = TypeVar("T")

DEFAULT_URL = "nats://127.0.0.1:4222"
_CONNECT_WAIT_S = 0.5


class Target(NamedTuple):
    """A fabric, as a command finds it."""

    nats_url: str
    namespace: str
    origin: str
    """Where the address comes from, for messages."""
    ingress_url: str
    environ: Mapping[str, str]

    @property
    def shown_url(self) -> str:
        """The address without a password."""
        return without_password(self.nats_url)


def without_password(url: str) -> str:
    """`url` as it may be printed.

    >>> without_password("nats://gati:hunter2@broker:4222")
    'nats://gati:***@broker:4222'
    """
    return re.sub(r"(//[^:/@,]*):[^@,]*@", r"\1:***@", url)


def find_target(option: str, environ: Mapping[str, str], directory: Path) -> Target:
    """The fabric that is meant in `directory`.

    Args:
        option: the value of `--nats-url`; empty when it was not given.
        directory: where `.gati/dev.json` is looked for.
    """
    running = read_dev_state(directory)
    namespace = environ.get("GATI_NAMESPACE", "")
    host, port = environ.get("GATI_INGRESS_HOST", ""), environ.get("GATI_INGRESS_PORT", "")
    ingress_url = f"http://{reachable_host(host)}:{port or 8080}"
    if option:
        url, origin = option, "--nats-url"
    elif environ.get("GATI_NATS_URL"):
        url, origin = environ["GATI_NATS_URL"], "GATI_NATS_URL"
    elif running is not None:
        url, origin = running.nats_url, f"gati dev in this directory, process {running.pid}"
        namespace = namespace or running.namespace
    else:
        url, origin = DEFAULT_URL, "the default"
    if running is not None and running.nats_url == url:
        namespace = namespace or running.namespace
        ingress_url = running.ingress_url
    return Target(url, namespace or "gati", origin, ingress_url, environ)


def reachable_host(host: str) -> str:
    """Where a program on this machine reaches a server that listens on `host`."""
    if host in ("", "0.0.0.0", "::", "localhost"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def settings_for(target: Target) -> FabricSettings:
    """Fabric settings that reach the target and do not wait for it.

    Raises:
        SettingsError: a `GATI_FABRIC_*` variable or the namespace does not fit.
    """
    from gati_core.settings import fabric_from_env

    fabric = {name: value for name, value in target.environ.items() if name.startswith("GATI_FABRIC_")}
    fabric.update(
        GATI_NATS_URL=target.nats_url,
        GATI_NAMESPACE=target.namespace,
        GATI_FABRIC_CONNECT_WAIT_S=str(_CONNECT_WAIT_S),
        GATI_FABRIC_TOPOLOGY="bind",
    )
    return fabric_from_env(fabric)


@asynccontextmanager
async def open_target(target: Target) -> AsyncIterator[Fabric]:
    """Connect; nothing is created on the broker.

    Raises:
        CliError: no broker answers; says where it looked and what to do.
    """
    from gati_core.errors import BrokerUnavailable
    from gati_core.fabric import open_fabric
    from gati_core.observe import set_up_logging

    set_up_logging(service="gati", level="error", log_format="console")
    opening = open_fabric(settings_for(target), name="gati-cli", ensure=False)
    try:
        fabric = await opening.__aenter__()
    except BrokerUnavailable as exc:
        raise CliError(
            f"no broker answers at {target.shown_url} ({target.origin}):"
            " start one with `gati dev`, or name yours with --nats-url or GATI_NATS_URL"
        ) from exc
    except (OSError, ValueError) as exc:
        raise CliError(f"{target.shown_url} ({target.origin}) is no address of a broker: {exc}", exit_code=2) from exc
    try:
        yield fabric
    finally:
        await opening.__aexit__(None, None, None)


def with_fabric(target: Target, work: Callable[[Fabric], Awaitable[T]]) -> T:
    """Run `work` on the target's fabric and return what it returns."""

    async def run() -> T:
        async with open_target(target) as fabric:
            return await work(fabric)

    return asyncio.run(run())
