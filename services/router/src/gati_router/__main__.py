"""`python -m gati_router`: read the settings, build, run until told to stop, close in order."""

from __future__ import annotations

import os
import signal
import sys

import anyio
import structlog
import uvloop

from gati_core.errors import GatiError
from gati_core.fabric import open_fabric
from gati_core.ids import new_instance_id
from gati_core.observe import set_up_logging, settle_garbage_collector
from gati_core.observe.metrics import serving_metrics
from gati_core.settings import FabricSettings, fabric_from_env, from_env
from gati_core.timescape import SnapshotPolicy, SweepPolicy
from gati_router.app import Router
from gati_router.metrics import RouterMetrics
from gati_router.settings import RouterSettings

log = structlog.get_logger(__name__)
_DRAIN_GRACE_S = 5.0


async def run(
    settings: RouterSettings, fabric_settings: FabricSettings, sweep: SweepPolicy, snapshots: SnapshotPolicy
) -> None:
    """Route until SIGINT or SIGTERM."""
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_fabric(fabric_settings, name="gati-router") as fabric:
            router = Router(
                settings=settings, fabric=fabric, router_id=new_instance_id(), sweep=sweep, snapshots=snapshots
            )
            await router.start()
            settle_garbage_collector()
            log.info("router_started", router=router.id, namespace=fabric_settings.namespace)
            collector = RouterMetrics(
                stats=router.stats,
                decisions=router.decisions,
                workers=router.catalogue.healthy_workers,
                routes=lambda: router.catalogue.table.size,
                versions=lambda: router.versions,
            )
            with serving_metrics(
                collector, host=settings.metrics_host, port=settings.metrics_port, prefix="GATI_ROUTER_"
            ):
                async for _ in signals:
                    break
            log.info("router_draining")
            await router.drain(grace_s=_DRAIN_GRACE_S)
    log.info("router_stopped", routed=router.stats.routed)


def main() -> None:
    """Entry point. Exit code 2 for settings that cannot be used, 1 for a broker that cannot."""
    try:
        settings = from_env(RouterSettings, "GATI_ROUTER_", os.environ)
        set_up_logging(service="router", level=settings.log_level, log_format=settings.log_format)
        sweep = from_env(SweepPolicy, "GATI_SWEEP_", os.environ)
        snapshots = from_env(SnapshotPolicy, "GATI_SNAPSHOT_", os.environ)
        uvloop.run(run(settings, fabric_from_env(os.environ), sweep, snapshots))
    except GatiError as exc:
        print(f"gati-router: {exc}", file=sys.stderr)
        sys.exit(2 if exc.code.startswith("settings") else 1)


if __name__ == "__main__":
    main()
