"""What the handlers of `tests/packages/live_app.py` write down, and what the trace stream holds about them."""

from __future__ import annotations

import time
from pathlib import Path

from gati_core.fabric import Fabric, stream_state
from gati_core.fabric.stored import read_stored
from gati_core.wire import TraceRecord
from gati_core.wire.codec import decode_trace
from tests.helpers.waiting import eventually


def now_ms() -> int:
    """Unix milliseconds, by the clock that handlers note too."""
    return time.time_ns() // 1_000_000


class Notes:
    """Reads the file. A line begins with the id of its request."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[str]:
        """Everything noted so far, in order."""
        return self._path.read_text().splitlines() if self._path.exists() else []

    def of(self, request_id: str) -> list[str]:
        """The lines of one request, without its id."""
        return [line.partition(" ")[2] for line in self.lines() if line.startswith(f"{request_id} ")]

    def count(self, request_id: str, word: str) -> int:
        """How many lines of a request begin with this word."""
        return sum(line.split(" ")[0] == word for line in self.of(request_id))

    async def said(self, request_id: str, word: str, *, within_s: float = 15.0) -> list[str]:
        """Wait for a line of a request that begins with this word; returns the words after it."""
        await eventually(lambda: self.count(request_id, word), within_s=within_s)
        return next(line.split(" ")[1:] for line in self.of(request_id) if line.split(" ")[0] == word)

    async def began(self, word: str, *, within_s: float = 15.0) -> str:
        """Wait for the newest line `<id> <word> …` of any request that was not there before; returns the id."""
        before = len(self.lines())
        found: list[str] = []

        def is_there() -> bool:
            found[:] = [line for line in self.lines()[before:] if line.split(" ")[1:2] == [word]]
            return bool(found)

        await eventually(is_there, within_s=within_s)
        return found[-1].split(" ")[0]


async def trace_of(inside: Fabric, request_id: str, event: str, *, within_s: float = 10.0) -> TraceRecord:
    """Wait until the trace stream holds this event of a request."""
    found: list[TraceRecord] = []
    looked_at = 0

    async def is_there() -> bool:
        nonlocal looked_at
        state = await stream_state(inside.connection, inside.subjects.trace_stream)
        for sequence in range(max(looked_at + 1, state.first_seq), state.last_seq + 1):
            stored = await read_stored(inside.connection, inside.subjects.trace_stream, sequence)
            if stored is not None and stored.subject == inside.subjects.trace(request_id):
                record = decode_trace(stored.data)
                if record.event == event:
                    found.append(record)
            looked_at = sequence
        return bool(found)

    await eventually(is_there, within_s=within_s)
    return found[0]


def rss_mb(pid: int) -> float:
    """Megabytes of memory that a process has resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} has no memory: it has ended")
