"""`/metrics` of a process that has no HTTP server otherwise. Processes that run handlers do not import this."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import start_http_server
from prometheus_client.registry import Collector, CollectorRegistry

from gati_core.errors import SettingsError

log = structlog.get_logger(__name__)


@contextmanager
def serving_metrics(collector: Collector, *, host: str, port: int, prefix: str) -> Iterator[None]:
    """Serve what a collector tells, in a thread, for as long as the context lasts; nothing where the port is 0.

    Args:
        collector: called in that thread, at each scrape.
        prefix: of the settings that host and port are from, for the error.
    Raises:
        SettingsError: the port is taken, or the address is none of this machine.
    """
    if not port:
        yield
        return
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as exc:
        raise SettingsError(
            f"cannot serve metrics on {host}:{port}: {exc.strerror or exc}; set {prefix}METRICS_PORT to a free port"
            f" and {prefix}METRICS_HOST to an address of this machine"
        ) from exc
    log.info("metrics_served", address=f"{host}:{port}")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
