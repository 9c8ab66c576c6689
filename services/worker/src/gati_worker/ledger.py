"""The crash ledger: what a child was running, readable after it died, and whether its loop turns.

A file mapped into memory by the child: a header with a heartbeat, then fixed slots. Writing an entry
is a copy into the mapping, no system call, and the kernel keeps it when the process is killed. The
supervisor reads the slots then, to answer and to give back at once what would otherwise wait for a
lease to end. While the child lives it reads the heartbeat, and the slots of a child that has none.

The heartbeat is the monotonic clock in milliseconds (`CLOCK_MONOTONIC`): all processes of a machine
share it, nobody can set it, and it stands still while the machine is suspended.
"""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import msgspec

_HEADER_BYTES = 64
_SLOT_BYTES = 1024
_HEAD = 3  # one byte "in use", two bytes length


class LedgerEntry(msgspec.Struct, array_like=True, gc=False):
    """One request that a child had started."""

    request_id: str
    reply_to: str
    handler: str
    is_once: bool
    ack_subject: bytes
    attempt: int
    deadline_ms: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LedgerEntry).decode


class CrashLedger:
    """A ledger of `slots` entries. The supervisor creates the file, the child opens it."""

    def __init__(self, path: Path, slots: int) -> None:
        self.path = path
        size = _HEADER_BYTES + slots * _SLOT_BYTES
        with path.open("a+b") as file:
            file.truncate(size)
            file.flush()
            self._map = mmap.mmap(file.fileno(), size)
        # As one aligned 64-bit number, which is written in one piece: a reader sees the old or the new.
        self._header = memoryview(self._map)[:8].cast("Q")
        self._free = list(range(slots - 1, -1, -1))
        self.overflows = 0

    def open_entry(self, entry: LedgerEntry) -> int:
        """Note that this request has started; returns the slot to clear, or -1 if it has no room."""
        data = _encode(entry)
        if not self._free or len(data) > _SLOT_BYTES - _HEAD:
            self.overflows += 1
            return -1
        slot = self._free.pop()
        at = _HEADER_BYTES + slot * _SLOT_BYTES
        self._map[at + 1 : at + _HEAD + len(data)] = len(data).to_bytes(2, "big") + data
        self._map[at] = 1  # last: a crash in between leaves no half entry
        return slot

    def clear(self, slot: int) -> None:
        """Note that this request has been answered."""
        if slot >= 0:
            self._map[_HEADER_BYTES + slot * _SLOT_BYTES] = 0
            self._free.append(slot)

    def entries(self) -> list[LedgerEntry]:
        """What had started and was not answered. Of a living child, what it was a moment ago."""
        found = []
        for at in range(_HEADER_BYTES, len(self._map), _SLOT_BYTES):
            if self._map[at] == 1:
                size = int.from_bytes(self._map[at + 1 : at + _HEAD], "big")
                try:
                    found.append(_decode(self._map[at + _HEAD : at + _HEAD + size]))
                except msgspec.DecodeError:
                    continue  # the child died while it wrote this slot; its work had not started
        return found

    def beat(self) -> None:
        """Note that the loop turns, now."""
        self._header[0] = time.monotonic_ns() // 1_000_000

    def rest(self) -> None:
        """Note that no heartbeat is to be expected any more."""
        self._header[0] = 0

    @property
    def heartbeat_s(self) -> float:
        """When the loop last turned, by the monotonic clock; 0 before the first time and after the last."""
        return self._header[0] / 1000

    def close(self) -> None:
        """Unmap. The file stays."""
        self._header.release()
        self._map.close()
