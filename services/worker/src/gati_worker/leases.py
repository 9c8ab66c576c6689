"""Who uses a directory, told by a lock on a file beside it: it ends with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import anyio

_RETRY_S = 0.05


class Lease:
    """A lock on `<place>.lock`. Made by `shared` or `exclusive`."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    @classmethod
    async def shared(cls, place: Path) -> Lease:
        """For those who use the directory, or make it: any number at once. Waits for who is removing it."""
        while True:
            lease = cls._take(place, fcntl.LOCK_SH)
            if lease is not None:
                return lease
            await anyio.sleep(_RETRY_S)

    @classmethod
    def exclusive(cls, place: Path) -> Lease | None:
        """For who removes the directory; None while anybody uses it."""
        return cls._take(place, fcntl.LOCK_EX)

    @classmethod
    def _take(cls, place: Path, kind: int) -> Lease | None:
        path = place.with_name(f"{place.name}.lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            # Who removes a directory removes the lock as well: ours must be the file that is there now.
            if os.fstat(fd).st_ino == path.stat().st_ino:
                return cls(path, fd)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def close(self) -> None:
        """Let go. Once is enough."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def end(self) -> None:
        """Let go, and remove the lock; only for who has it exclusively."""
        self._path.unlink(missing_ok=True)
        self.close()
