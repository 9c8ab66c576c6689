"""One service as a child process: started apart from our terminal, listened to, stopped for certain."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence

_TAIL_LINES = 20
_LONGEST_LINE = 1 << 20


class Service:
    """A child in a session of its own, so that Ctrl-C reaches only `gati dev`.

    Args:
        name: for people.
        arguments: for this Python.
        on_line: called with every line the process or its children print.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], environ: Mapping[str, str], *, on_line: Callable[[str, str], None]
    ) -> None:
        self.name = name
        self._arguments = arguments
        self._environ = dict(environ)
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)

    @property
    def pid(self) -> int:
        """Process id, and id of its process group; 0 before the start."""
        return self._process.pid if self._process is not None else 0

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.returncode if self._process is not None else None

    async def start(self) -> None:
        """Start it, or start it again."""
        self.tail.clear()
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._arguments,
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        if self._process.stdout is not None:
            self._reading = asyncio.create_task(self._read(self._process.stdout))

    async def wait(self) -> int:
        """Wait for its end; returns the exit code. Its last lines have been read by then."""
        code = await self._started().wait()
        self._end_group()  # its own children may hold the pipe
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=1)
        return code

    async def stop(self, *, within_s: float, insist_after_s: float) -> bool:
        """End it: ask, ask again, kill.

        Args:
            within_s: when to kill it and everything it started.
            insist_after_s: when to signal it a second time, which means "finish nothing more".
        Returns:
            Whether it left by itself.
        """
        process = self._process
        if process is None:
            return True
        left = True
        if process.returncode is None:
            self._send(signal.SIGTERM)
            if not await self._ended(insist_after_s):
                self._send(signal.SIGTERM)
                left = await self._ended(max(0.0, within_s - insist_after_s))
        self._end_group()
        await self.wait()
        return left

    def kill(self) -> None:
        """End it and everything it started, now."""
        self._end_group()

    def _started(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError(f"the {self.name} was not started")
        return self._process

    async def _ended(self, within_s: float) -> bool:
        try:
            await asyncio.wait_for(self._started().wait(), within_s)
        except TimeoutError:
            return False
        return True

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            try:
                self._process.send_signal(number)
            except ProcessLookupError:
                pass

    def _end_group(self) -> None:
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass

    async def _read(self, output: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await output.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._say(line)
        if rest:
            self._say(rest)

    def _say(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self.tail.append(text)
        self._on_line(self.name, text)


class Guard:
    """The process of `_guard.py`: stops what is left should this one be killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, *, holding: int) -> Guard:
        """Start it. It keeps the file descriptor `holding` open until it ends, and with it the lock."""
        script = os.path.join(os.path.dirname(__file__), "_guard.py")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-S",
            script,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=(holding,),
            start_new_session=True,
        )
        return cls(process)

    def watch(self, pid: int, kind: str = "service") -> None:
        """Stop this process group if we cannot. `kind` is `service` or `broker`, which is stopped last."""
        self._tell(f"add {kind} {pid}\n")

    def forget(self, pid: int) -> None:
        """It has ended."""
        self._tell(f"forget - {pid}\n")

    async def leave(self) -> None:
        """Let it end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(line.encode())
