"""The crash ledger: what a child was running, readable after it died.

A file of fixed slots mapped into memory by the child: writing an entry is a copy into the mapping,
no system call, and the kernel keeps it when the process is killed. The supervisor reads it then,
to answer and to give back at once what would otherwise wait for a lease to end.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import msgspec

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
        size = slots * _SLOT_BYTES
        with path.open("a+b") as file:
            file.truncate(size)
            file.flush()
            self._map = mmap.mmap(file.fileno(), size)
        self._free = list(range(slots - 1, -1, -1))
        self.overflows = 0

    def open_entry(self, entry: LedgerEntry) -> int:
        """Note that this request has started; returns the slot to clear, or -1 if it has no room."""
        data = _encode(entry)
        if not self._free or len(data) > _SLOT_BYTES - _HEAD:
            self.overflows += 1
            return -1
        slot = self._free.pop()
        at = slot * _SLOT_BYTES
        self._map[at + 1 : at + _HEAD + len(data)] = len(data).to_bytes(2, "big") + data
        self._map[at] = 1  # last: a crash in between leaves no half entry
        return slot

    def clear(self, slot: int) -> None:
        """Note that this request has been answered."""
        if slot >= 0:
            self._map[slot * _SLOT_BYTES] = 0
            self._free.append(slot)

    def entries(self) -> list[LedgerEntry]:
        """What had started and was not answered."""
        found = []
        for at in range(0, len(self._map), _SLOT_BYTES):
            if self._map[at] == 1:
                size = int.from_bytes(self._map[at + 1 : at + _HEAD], "big")
                try:
                    found.append(_decode(self._map[at + _HEAD : at + _HEAD + size]))
                except msgspec.DecodeError:
                    continue  # the child died while it wrote this slot; its work had not started
        return found

    def close(self) -> None:
        """Unmap. The file stays."""
        self._map.close()
