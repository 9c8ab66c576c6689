"""Health files: a process without a port touches a file while it is healthy; a probe reads its age."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def exit_by_health_file(prefix: str) -> None:
    """End this process with 0 if `{prefix}HEALTH_FILE` was touched within three heartbeats, else 1."""
    name = os.environ.get(f"{prefix}HEALTH_FILE", "")
    if not name:
        sys.exit(f"{prefix}HEALTH_FILE is not set: set it for the service and for this probe")
    path = Path(name)
    limit_s = 3 * float(os.environ.get(f"{prefix}HEARTBEAT_S", "2"))
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError:
        sys.exit(f"no health file at {path}: the service has not been healthy yet")
    if age_s > limit_s:
        sys.exit(f"the last sign of life is {age_s:.0f} s old, more than {limit_s:g} s")
