"""Settings of one router process."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class RouterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read once at start from `GATI_ROUTER_*`."""

    max_in_flight: Annotated[int, Meta(ge=1, le=8192)] = 512
    """Requests held at once: pulled, and not yet handed to a worker's queue."""
    no_worker_wait_s: Annotated[float, Meta(ge=0)] = 5.0
    """How long a request waits, within its deadline, for a worker of its route to appear; then 503."""
    max_parked: Annotated[int, Meta(ge=0)] = 256
    """Requests that may wait so at once; more are answered 503 at once."""
    worker_ttl_s: Annotated[float, Meta(ge=1)] = 8.0
    """Seconds without a heartbeat after which a worker counts as gone."""
    heartbeat_s: Annotated[float, Meta(gt=0)] = 2.0
    """Seconds between this router's own signs of life."""
    usage_every_s: Annotated[float, Meta(gt=0)] = 5.0
    """Seconds between two additions of what was counted for each version to what all routers have counted."""
    sweep_every_s: Annotated[float, Meta(gt=0)] = 3600.0
    """Seconds between two sweeps of versions, by all routers together; `GATI_SWEEP_*` says what ends."""
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Where `/metrics` is served; nowhere when 0."""
    metrics_host: str = "127.0.0.1"
    """Address of that port; `0.0.0.0` in a container."""
    version_gauges_every_s: Annotated[float, Meta(gt=0)] = 60.0
    """Seconds between two looks at how many versions there are of each status, for the metrics."""
    health_file: str = ""
    """Touched with every heartbeat while healthy, for container health checks; none when empty."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
