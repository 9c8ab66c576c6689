"""What the benchmarks share: the header, tables and JSON rows, and reading /proc."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import median

from gati_core.fabric import find_server

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def header(*, warm_up: str, rounds: int, others: str = "") -> str:
    """One line that says where and how the figures were measured."""
    server = _first_line([find_server(), "--version"]).rpartition(" ")[2]
    parts = [
        _processor(),
        f"{os.cpu_count()} cores",
        f"Python {platform.python_version()}",
        f"nats-server {server}",
        f"commit {_commit()}",
        datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z"),
        f"warm-up {warm_up}",
        f"{rounds} rounds, medians",
    ]
    return "; ".join([*parts, others] if others else parts)


def _first_line(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def _commit() -> str:
    here = str(Path(__file__).parent)
    commit = _first_line(["git", "-C", here, "rev-parse", "--short", "HEAD"])
    return commit + (" with changes" if _first_line(["git", "-C", here, "status", "--porcelain"]) else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else f"{platform.system()} {platform.machine()}"


class Output:
    """Rows as they come: a Markdown table, or one JSON object per line with the header on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json

    def header(self, line: str) -> None:
        """The first line."""
        print(line if not self._as_json else f"# {line}", file=sys.stderr if self._as_json else sys.stdout, flush=True)

    def columns(self, names: Sequence[str]) -> None:
        """The head of the table; nothing in JSON."""
        if not self._as_json:
            print("\n| " + " | ".join(names) + " |\n|---" + "|---:" * (len(names) - 1) + "|", flush=True)

    def row(self, cells: Sequence[str], record: object) -> None:
        """One row: `cells` for people, `record` for machines."""
        print(json.dumps(record) if self._as_json else "| " + " | ".join(cells) + " |", flush=True)


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Key by key, the median over rows that have the same keys."""
    return {key: round(median(row[key] for row in rows), 3) for key in rows[0]}


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*"):
            found += map(int, (task / "children").read_text().split())
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Processor time used so far, user and system, in seconds."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def rss_mib(pids: Iterable[int]) -> float:
    """Resident memory in MiB; pages that processes share count for each of them."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1])
    return total / 1024
