"""A service as a process of its own: start it, read its log, end it with everything it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gati_testing._waiting import eventually

LEAVE_WITHIN_S = 30.0
"""Longest that a service may take to leave; its own drain ends before."""


class ServiceProcess:
    """One service: a process and, for some services, its children; a process group of its own.

    Args:
        arguments: what follows `python -m`.
        environment: all of its environment.
        log: file that takes its standard output and standard error.
    """

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.was_ended = False
        """Whether `terminate` or `kill` was called, so that its end is no failure."""
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process itself has not ended."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it lives; negative when a signal ended it."""
        return self._process.poll()

    def children(self) -> list[int]:
        """Process ids of its children; empty where there is no `/proc` to look into."""
        return [pid for pid, parent in running_processes() if parent == self.pid]

    def terminate(self) -> None:
        """Ask it to leave, as a container runtime would."""
        self.was_ended = True
        if self.is_alive:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and its children as a crash of the machine would."""
        self.was_ended = True
        self._signal_group(signal.SIGKILL)
        self._process.wait(5)

    def pause(self, *, within_s: float = 5.0) -> None:
        """Freeze it and its children, and return once they stand still.

        Raises:
            AssertionError: they did not stop in time.
        """
        self._signal_group(signal.SIGSTOP)
        # The signal is only on its way: threads on other cores may still answer what is sent right now.
        give_up_at = time.monotonic() + within_s
        while not all(stands_still(pid) for pid in (self.pid, *self.children())):
            if time.monotonic() > give_up_at:
                raise AssertionError(f"{self.name} did not stop within {within_s:g} s")
            time.sleep(0.001)

    def resume(self) -> None:
        """Undo `pause`."""
        self._signal_group(signal.SIGCONT)

    async def wait(self, *, within_s: float = LEAVE_WITHIN_S) -> int:
        """Wait for its end; returns the exit code, negative when a signal ended it.

        Raises:
            AssertionError: it is still there after `within_s` seconds.
        """
        await eventually(lambda: not self.is_alive, within_s=within_s)
        return int(self._process.returncode)

    def log(self) -> str:
        """What it wrote to standard output and standard error."""
        return self._log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Log lines with this event name, as fields."""
        return [fields for line in self.log().splitlines() if (fields := _fields(line)).get("event") == name]

    def log_for_people(self, *, lines: int = 40) -> str:
        """The end of its log, without the JSON."""
        return "\n".join(_readable(line) for line in self.log().splitlines()[-lines:])

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass


def _fields(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        fields = json.loads(line)
    except ValueError:
        return {}  # the end of the file, half written
    return fields if isinstance(fields, dict) else {}


def _readable(line: str) -> str:
    fields = _fields(line)
    if not fields:
        return line
    time = str(fields.pop("timestamp", ""))[11:23]
    level, event, trace = (str(fields.pop(key, "")) for key in ("level", "event", "exception"))
    fields.pop("service", None)
    text = f"{time} {level:<7} {event}  " + " ".join(f"{key}={value}" for key, value in fields.items())
    return f"{text.rstrip()}\n{trace}" if trace else text.rstrip()


# -- the process table, where there is one to read: on Linux -----------------------------------------

_PROC = Path("/proc")


def running_processes() -> Iterator[tuple[int, int]]:
    """Process id and parent of everything that runs and is no zombie."""
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue  # it has ended
            if state not in "ZX":
                yield int(entry.name), int(parent)


def stands_still(pid: int) -> bool:
    """Whether none of its threads runs, because it was stopped or has ended; True where nobody can tell."""
    try:
        threads = [(task / "stat").read_text().rpartition(")")[2].split() for task in (_PROC / str(pid)).glob("task/*")]
    except OSError:
        return False  # one of them is just ending: look again
    return all(thread[0] in "TtZX" for thread in threads)


def processes_with(variable: str, value: str) -> list[int]:
    """Process ids of whatever was started with this environment variable, this process excepted."""
    mark = f"{variable}={value}".encode()
    return [pid for pid, _ in running_processes() if pid != os.getpid() and mark in _environment_of(pid)]


def command_of(pid: int) -> str:
    """Command line of a process."""
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "ended meanwhile"


def _environment_of(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []
