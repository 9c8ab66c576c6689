"""What `gati dev` leaves in `.gati` of its directory: a lock while it runs, and where its broker is.

Light on purpose: every other command reads `dev.json` before it loads anything else.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from gati_cli._errors import CliError

FOLDER = ".gati"
_LEFTOVERS_WAIT_S = 10.0


@dataclass(frozen=True)
class DevState:
    """The contents of `.gati/dev.json`."""

    nats_url: str
    namespace: str
    ingress_url: str
    pid: int


def read_dev_state(directory: Path) -> DevState | None:
    """What the `gati dev` of this directory says, or None when none runs (a stale file counts as none)."""
    try:
        state = DevState(**json.loads((directory / FOLDER / "dev.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return state if is_running(state.pid) else None


def write_dev_state(directory: Path, state: DevState) -> None:
    """Make it visible in one step, so that nobody reads half a file."""
    path = directory / FOLDER / "dev.json"
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def remove_dev_state(directory: Path) -> None:
    """Take it down again."""
    (directory / FOLDER / "dev.json").unlink(missing_ok=True)


def is_running(pid: object) -> bool:
    """Whether a process of this id exists and has not ended."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] not in ("Z", "X")  # ended, and nobody has asked how
    except (OSError, IndexError):
        pass  # gone, or a system without /proc
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it exists and belongs to somebody else
    return True


class DirectoryLock:
    """At most one `gati dev` per directory.

    The kernel gives the lock back when the last process that holds `fd` ends, however it ends. The
    guard holds it as well: after a kill -9 the directory stays locked until nothing runs there.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def acquire(cls, directory: Path, *, say: Callable[[str], None]) -> DirectoryLock:
        """Take the lock.

        Args:
            say: told when the leftovers of a killed run are waited for.
        Raises:
            CliError: another `gati dev` runs here, or the directory cannot be written.
        """
        folder = directory / FOLDER
        try:
            folder.mkdir(exist_ok=True)
            fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise CliError(
                f"cannot write {folder} ({exc.strerror}): gati dev keeps its state there; run it in another directory",
                exit_code=2,
            ) from exc
        give_up_at = time.monotonic() + _LEFTOVERS_WAIT_S
        was_said = False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                owner = _owner(fd)
            if is_running(owner) or time.monotonic() > give_up_at:
                os.close(fd)
                running = read_dev_state(directory)
                where = f" on {running.ingress_url}" if running is not None else ""
                raise CliError(
                    f"gati dev already runs in {directory}{where} (process {owner or 'unknown'}):"
                    " stop it first, or start this one in another directory",
                    exit_code=2,
                )
            if not was_said:
                say("waiting for what a killed gati dev left running here")
                was_said = True
            time.sleep(0.05)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        return cls(fd)

    def release(self) -> None:
        """Give it back. The file stays: removing it would let two holders in."""
        os.ftruncate(self.fd, 0)
        os.close(self.fd)


def _owner(fd: int) -> int:
    text = os.pread(fd, 20, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else 0
