"""A real `gati dev` in a directory of the test's own, and the other commands beside it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from gati_core.fabric import free_port

GATI = (sys.executable, "-m", "gati_cli")


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    body: str


class GatiDev:
    """A running `gati dev`. Everything that it prints is in `output()`."""

    def __init__(self, directory: Path, *arguments: str, environ: dict[str, str] | None = None) -> None:
        self.directory = directory
        self.port = free_port()
        self._log = directory / "gati-dev.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*GATI, "dev", *arguments, "--port", str(self.port)],
                cwd=directory,
                env=clean_environ(environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        """Of its ingress."""
        return f"http://127.0.0.1:{self.port}"

    def output(self) -> str:
        """Everything printed so far."""
        return self._log.read_text(encoding="utf-8")

    def is_ready(self) -> bool:
        """Whether it has printed that it serves, or that it serves nothing yet. Fails when it ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"gati dev ended with {self.process.returncode}:\n{self.output()}")
        return "Ctrl-C stops" in self.output()

    def get(self, path: str, *, timeout_s: float = 12.0) -> Answer:
        """GET; status 0 when there is no answer at all."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
                return Answer(answer.status, answer.read().decode())
        except urllib.error.HTTPError as exc:
            return Answer(exc.code, exc.read().decode())
        except OSError as exc:
            return Answer(0, repr(exc))

    def processes(self) -> dict[int, str]:
        """Command lines of everything that runs for this directory, by process id; without zombies."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                environ = (entry / "environ").read_bytes()
            except (OSError, ValueError):
                continue
            if command and f"GATI_TEST_MARK={self.directory}".encode() in environ.split(b"\0"):
                found[int(entry.name)] = command
        return found

    def pid_of(self, what: str) -> int:
        """The process whose command line contains `what`; of several, the oldest."""
        return min(pid for pid, command in self.processes().items() if what in command)

    def stop(self, number: int = signal.SIGINT, *, within_s: float = 10.0) -> tuple[int, float]:
        """Signal it and wait; returns the exit code and the seconds it took."""
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(within_s), time.monotonic() - began

    def clean_up(self) -> None:
        """Whatever a failed test has left."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(8)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(8)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@contextmanager
def running_dev(directory: Path, *arguments: str, environ: dict[str, str] | None = None) -> Iterator[GatiDev]:
    """Start it, and leave nothing behind."""
    dev = GatiDev(directory, *arguments, environ={"GATI_TEST_MARK": str(directory), **(environ or {})})
    try:
        yield dev
    finally:
        dev.clean_up()


def gati(
    *arguments: str, directory: Path, environ: dict[str, str] | None = None, timeout_s: float = 30.0
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [*GATI, *arguments],
        cwd=directory,
        env=clean_environ(environ),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def gati_json(*arguments: str, directory: Path, environ: dict[str, str] | None = None) -> object:
    """What a command prints with `--json`."""
    return json.loads(gati(*arguments, "--json", directory=directory, environ=environ).stdout)


def clean_environ(more: dict[str, str] | None = None) -> dict[str, str]:
    """This environment without settings of gati, and `more`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GATI_")} | (more or {})


def handler_source(answer: str, *, app: str = "mine", path: str = "/mine/{name}", name: str = "hello") -> str:
    """A package of one file. `GET {path}` answers `answer`; for `/mine/slow` when `go` lies beside it,
    and for `/mine/nap` after 0.3 s.
    """
    return f'''
import asyncio
from pathlib import Path

from gati_core import App

app = App("{app}")


@app.get("{path}")
async def {name}(req, res, gctx, lctx) -> None:
    if req.params.get("name") == "slow":
        print("slow request began")
        while not Path(__file__).with_name("go").exists():
            await asyncio.sleep(0.02)
    if req.params.get("name") == "nap":
        await asyncio.sleep(0.3)
    res.text("{answer}")
'''
