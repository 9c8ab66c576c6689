"""The ledger that `tests/packages/ledger_app.py` writes: what was run, how often, how far."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple


class LedgerLine(NamedTuple):
    """One event of one errand."""

    event: str
    """`start`, `end` or `cancel`."""
    id: str
    attempt: int
    pid: int


class Ledger:
    """Reads the file; whoever runs errands writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[LedgerLine]:
        """Everything noted so far, in order."""
        if not self.path.exists():
            return []
        lines = []
        for line in self.path.read_text().splitlines():
            event, errand, attempt, pid = line.split(" ")
            lines.append(LedgerLine(event, errand, int(attempt), int(pid)))
        return lines

    def of(self, errand: str) -> list[str]:
        """The events of one errand, in order."""
        return [line.event for line in self.lines() if line.id == errand]

    def counts(self, event: str) -> Counter[str]:
        """How often each errand saw this event."""
        return Counter(line.id for line in self.lines() if line.event == event)
