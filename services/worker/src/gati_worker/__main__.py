"""`python -m gati_worker`: host handler packages until told to stop.

With no arguments it runs the installed packages; `--source PATH` runs a package that lies on disk,
and `--watch` replaces it whenever its files change.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

import anyio
import structlog
import uvloop

from gati_core.app.packages import PackageSpec, find_in, find_installed
from gati_core.errors import GatiError
from gati_core.fabric import open_fabric
from gati_core.observe import set_up_logging
from gati_core.observe.metrics import serving_metrics
from gati_core.settings import FabricSettings, fabric_from_env, from_env
from gati_worker.child import Child
from gati_worker.counting import WorkerCounts
from gati_worker.metrics import WorkerMetrics
from gati_worker.published import PublishedPackages
from gati_worker.settings import WorkerSettings
from gati_worker.supervisor import Supervisor

log = structlog.get_logger(__name__)


async def run(
    settings: WorkerSettings, fabric_settings: FabricSettings, specs: list[PackageSpec], *, watch: bool, cache: Path
) -> None:
    """Supervise until SIGINT or SIGTERM; a second signal kills what has not left."""
    first_child = asyncio.create_task(Child.spawn()) if watch else None
    counts = WorkerCounts()
    endpoint = serving_metrics(
        WorkerMetrics(counts), host=settings.metrics_host, port=settings.metrics_port, prefix="GATI_WORKER_"
    )
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, endpoint:
        async with open_fabric(fabric_settings, name="gati-worker") as fabric, anyio.create_task_group() as tasks:
            supervisor = Supervisor(
                settings=settings, fabric=fabric, specs=specs, watch=watch, first_child=first_child, counts=counts
            )

            async def listen() -> None:
                seen = 0
                async for number in signals:
                    seen += 1
                    log.info("worker_draining", signal=signal.Signals(number).name)
                    if seen == 1:
                        supervisor.stop()
                    else:
                        await supervisor.kill()

            tasks.start_soon(listen)
            if settings.published:
                published = PublishedPackages(supervisor, settings=settings, fabric=fabric, cache=cache)
                tasks.start_soon(published.run)
            log.info("worker_started", packages=[spec.name for spec in specs])
            await supervisor.run()
            tasks.cancel_scope.cancel()
    log.info("worker_stopped")


def main() -> None:
    """Entry point. Exit code 2 for settings or packages that cannot be used, 1 for the broker."""
    parser = argparse.ArgumentParser(prog="gati-worker", description="Host handler packages.")
    parser.add_argument("--source", action="append", default=[], metavar="PATH", help="a package on disk (repeatable)")
    parser.add_argument("--watch", action="store_true", help="replace a package when its files change")
    options = parser.parse_args()
    try:
        settings = from_env(WorkerSettings, "GATI_WORKER_", os.environ)
        set_up_logging(service="worker", level=settings.log_level, log_format=settings.log_format)
        if options.source:
            specs = [spec for source in options.source for spec in find_in(Path(source))]
        else:
            specs = find_installed(settings.apps)
        if not specs and not settings.published:
            raise GatiError(
                "no handler package is installed (entry point group gati.apps); install one, or use --source"
            )
        user_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        cache = Path(settings.cache_dir or os.path.join(user_cache, "gati"))
        uvloop.run(run(settings, fabric_from_env(os.environ), specs, watch=options.watch, cache=cache))
    except GatiError as exc:
        print(f"gati-worker: {exc}", file=sys.stderr)
        sys.exit(1 if exc.code.startswith("fabric") else 2)


if __name__ == "__main__":
    main()
