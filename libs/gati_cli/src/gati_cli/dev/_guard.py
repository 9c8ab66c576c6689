"""A process that outlives a killed `gati dev` just long enough to stop what it started.

`gati dev` tells it on standard input which process groups it has; the end of that pipe means that
`gati dev` is gone. After an orderly stop the list is empty and the guard simply ends. A pipe works
on every Unix; a parent-death signal would be Linux only, and would not escalate.

Run as a file by a bare interpreter: standard library only, and it imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
import sys
import time

_SERVICES_S = 3.0
_BROKER_S = 1.5


def main() -> None:
    """Follow the list until the pipe ends, then stop what is on it: services first, the broker last."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, str] = {}
    for line in sys.stdin:
        verb, kind, pid = line.split()
        if verb == "add":
            groups[int(pid)] = kind
        else:
            groups.pop(int(pid), None)
    _end([pid for pid, kind in groups.items() if kind == "service"], _SERVICES_S)
    _end([pid for pid, kind in groups.items() if kind == "broker"], _BROKER_S)


def _end(groups: list[int], within_s: float) -> None:
    for group in groups:
        _signal(group, signal.SIGTERM)
    give_up_at = time.monotonic() + within_s
    while time.monotonic() < give_up_at and any(_signal(group, 0) for group in groups):
        time.sleep(0.02)
    for group in groups:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
