"""Settings of one worker: the supervisor reads them and hands them to its children."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Read once at start from `GATI_WORKER_*`."""

    apps: str = ""
    """Comma-separated entry point names (group `gati.apps`) to run; empty means every installed one."""
    published: str = "*"
    """Comma-separated apps whose published packages (`gati publish`) are run, `*` for all; none when empty."""
    cache_dir: str = ""
    """Directory for wheels and environments of published packages; `gati` in the user's cache when empty."""
    wheelhouse: str = ""
    """Directory of wheels that published packages may need, searched as well as the index; none when empty."""
    idle_s: Annotated[float, Meta(ge=0)] = 900.0
    """Seconds without a request after which the process of an old published version ends, to be started again by the
    next request; 0 keeps all. The newest versions, and those that a rollout, a protected tag or somebody by hand
    keeps, never sleep."""
    min_instances: Annotated[int, Meta(ge=1, le=64)] = 1
    """Processes for each published package that must not sleep; the others have one."""
    offline: bool = False
    """Whether published packages must do with the wheelhouse and with what was downloaded before."""
    max_in_flight: Annotated[int, Meta(ge=1, le=8192)] = 256
    """Requests a package executes at once, for each delivery mode that it uses."""
    max_channels: Annotated[int, Meta(ge=1, le=65_536)] = 4096
    """Streams and sockets a package holds open at once; they take no place of `max_in_flight` once they have
    begun. One more is answered 503."""
    threads: Annotated[int, Meta(ge=1, le=1024)] = 32
    """Threads for `def` handlers, per package."""
    heartbeat_s: Annotated[float, Meta(gt=0)] = 2.0
    """Seconds between announcements; a worker silent for four times this is gone."""
    drain_grace_s: Annotated[float, Meta(ge=0)] = 20.0
    """Seconds left to running handlers once a child must leave."""
    shutdown_hooks_s: Annotated[float, Meta(ge=0)] = 15.0
    """Seconds that all shutdown hooks of a child may take together; each has 10 of its own."""
    max_abandoned: Annotated[int, Meta(ge=1)] = 64
    """Handlers that run on although they were cancelled; with this many the child is replaced."""
    max_requests: Annotated[int, Meta(ge=0)] = 0
    """Requests after which a child is replaced, plus up to a tenth so that not all are at once; never when 0."""
    max_rss_mb: Annotated[int, Meta(ge=0)] = 0
    """Resident memory above which a child is replaced; never when 0."""
    store_runs: Literal["off", "flagged", "all"] = "off"
    """Which requests are stored whole, with body, state and events, beside their traces: none, those with
    `x-gati-flags: snapshot`, or every one. Clients choose their flags, so this is off unless asked for."""
    region: str = ""
    zone: str = ""
    """Where this worker runs; handlers read both in `gctx.instance`."""
    ready_within_s: Annotated[float, Meta(gt=0)] = 20.0
    """Seconds a child may take from start to ready before it counts as failed."""
    restart_delay_s: Annotated[float, Meta(ge=0)] = 0.1
    """Pause before a crashed child is started again; doubles with each quick crash."""
    restart_delay_max_s: Annotated[float, Meta(gt=0)] = 10.0
    crash_window_s: Annotated[float, Meta(gt=0)] = 60.0
    """Three crashes within these seconds are reported as a crash loop, until as many pass without one."""
    block_warn_s: Annotated[float, Meta(gt=0)] = 0.5
    """Seconds the event loop may stand still before the log says which handler stopped it."""
    block_grace_s: Annotated[float, Meta(ge=1)] = 5.0
    """Seconds a blocked child is left alone once the last of its requests is past its deadline; then it is killed."""
    block_limit_s: Annotated[float, Meta(ge=1)] = 60.0
    """Seconds after which a blocked child that runs no request is killed."""
    config_file: str = ""
    """`.toml` or `.json` file that handlers read as `gctx.config`; read again when it changes. None when empty."""
    memory_limit_mb: Annotated[int, Meta(ge=0)] = 0
    """Memory a child may use before callbacks hear of pressure; 0 takes the limit of the container."""
    health_every_s: Annotated[float, Meta(gt=0)] = 10.0
    """Seconds between two rounds of health checks."""
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Where the supervisor serves `/metrics` of all its processes; nowhere when 0."""
    metrics_host: str = "127.0.0.1"
    """Address of that port; `0.0.0.0` in a container."""
    health_file: str = ""
    """Touched while healthy, for container health checks; none when empty."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @property
    def ledger_slots(self) -> int:
        """What a child can run at once, in both delivery modes and open channels."""
        return self.max_in_flight * 2 + self.max_channels
