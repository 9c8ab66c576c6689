"""Settings of one worker: the supervisor reads them and hands them to its children."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read once at start from `GATI_WORKER_*`."""

    apps: str = ""
    """Comma-separated entry point names (group `gati.apps`) to run; empty means every installed one."""
    max_in_flight: Annotated[int, Meta(ge=1, le=8192)] = 256
    """Requests a package executes at once, for each delivery mode that it uses."""
    threads: Annotated[int, Meta(ge=1, le=1024)] = 32
    """Threads for `def` handlers, per package."""
    heartbeat_s: Annotated[float, Meta(gt=0)] = 2.0
    """Seconds between announcements; a worker silent for four times this is gone."""
    drain_grace_s: Annotated[float, Meta(ge=0)] = 20.0
    """Seconds left to running handlers once a child must leave."""
    ready_within_s: Annotated[float, Meta(gt=0)] = 20.0
    """Seconds a child may take from start to ready before it counts as failed."""
    restart_delay_s: Annotated[float, Meta(ge=0)] = 0.1
    """Pause before a crashed child is started again; doubles with each quick crash."""
    restart_delay_max_s: Annotated[float, Meta(gt=0)] = 10.0
    health_file: str = ""
    """Touched while healthy, for container health checks; none when empty."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
