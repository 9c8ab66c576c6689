"""Ends what a killed test process would leave running.

Fixtures end what they started, but not when pytest itself is killed: by the end of a CI job, by the
out-of-memory killer, by a timeout that exits. A small process holds the other end of a pipe to us
and knows the process groups that we started; when the pipe closes, we are gone, and it ends them.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PROGRAM = """
import os, signal, sys, time

groups = set()
for line in sys.stdin.buffer:
    change = int(line)
    (groups.add if change > 0 else groups.discard)(abs(change))


def tell(number):
    for group in list(groups):
        try:
            os.killpg(group, number)
        except OSError:
            groups.discard(group)


give_up_at = time.monotonic() + 10
tell(signal.SIGCONT)
tell(signal.SIGTERM)
while groups and time.monotonic() < give_up_at:
    time.sleep(0.05)
    tell(0)
tell(signal.SIGKILL)
"""


class _Guard:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def tell(self, change: int) -> None:
        """A process group to watch, or, negative, to forget."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _PROGRAM],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # whatever kills our group must leave it alone
                )
                atexit.register(self._end)
            if self._process.stdin is not None:
                try:
                    self._process.stdin.write(b"%d\n" % change)
                    self._process.stdin.flush()
                except BrokenPipeError:
                    pass  # somebody killed the guard: what it would have done in the end is not worth a failure

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and process.stdin is not None:
            process.stdin.close()
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:
                process.returncode = 0  # it has something to end still; not waiting is the point of it


_guard = _Guard()


def watch(group: int) -> None:
    """End this process group, named by its first process, when we are gone."""
    _guard.tell(group)


def forget(group: int) -> None:
    """It has ended: its number may come to belong to somebody else."""
    _guard.tell(-group)


@contextmanager
def watching(group: int) -> Iterator[None]:
    """The same for a block."""
    watch(group)
    try:
        yield
    finally:
        forget(group)
