"""Calling `uv`, which builds packages and makes the environments that they run in."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from gati_core.errors import PackageError

_NETWORK = re.compile(
    r"Failed to fetch|error sending request|Failed to download|client error|operation timed out", re.I
)
_SHOWN_LINES = 30


class UvResult(msgspec.Struct, frozen=True):
    """How a call of uv ended."""

    code: int
    said: str
    """What it wrote, both streams."""

    @property
    def is_done(self) -> bool:
        """Whether it did what it was asked to."""
        return self.code == 0

    @property
    def lacks_network(self) -> bool:
        """Whether it failed because it could not reach a server; another time it may."""
        return not self.is_done and _NETWORK.search(self.said) is not None


def find_uv() -> str:
    """The program of this very environment, or the first on the search path.

    Raises:
        PackageError: there is none.
    """
    beside = Path(sysconfig.get_path("scripts"), "uv")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("uv")
    if found is None:
        raise PackageError("uv is not installed, and builds packages: install it with `pip install uv`")
    return found


def uv_environment(more: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for uv: which environment is active does not count, and it downloads no Python."""
    left_out = {"VIRTUAL_ENV", "UV_PYTHON", "UV_PROJECT_ENVIRONMENT", "UV_SYSTEM_PYTHON"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"} | dict(more)


def run_uv(
    arguments: Sequence[str], *, directory: Path, within_s: float, more: Mapping[str, str] | None = None
) -> UvResult:
    """Run uv to its end; all of its processes are gone when this returns or raises.

    Raises:
        PackageError: uv is not installed.
        TimeoutError: it was not done in time.
    """
    process = subprocess.Popen(
        [find_uv(), *arguments],
        cwd=directory,
        env=uv_environment(more or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that what it starts can be ended with it
    )
    try:
        output, _ = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired as exc:
        raise TimeoutError(f"uv {arguments[0]} was not done within {within_s:.0f} s") from exc
    finally:
        if process.poll() is None:
            end_group(process.pid)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return UvResult(process.returncode, output.decode(errors="replace"))


def end_group(pid: int) -> None:
    """Kill a process that leads a session, with all that it started."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def explained(said: str) -> str:
    """What went wrong, out of all that uv and a build backend wrote: causes without decoration, no progress."""
    lines = [line.rstrip() for line in said.replace("\r", "\n").splitlines()]
    told = [line for line in lines if line.strip() and not line.startswith(("Using Python", "Building ", "Resolved "))]
    told = [re.sub(r"^(error:|\s*cause:|\s*[├╰]─▶|\s*│)\s*", "", line) for line in told]
    return "\n".join(told[-_SHOWN_LINES:]) or "uv said nothing"
