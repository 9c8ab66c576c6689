"""A whole fabric in processes of its own, and an HTTP client that is never the limit."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import _versions
from _common import family, rss_mib
from gati_core.fabric import EmbeddedBroker, free_port

HERE = Path(__file__).parent
READY_WITHIN_S = 30.0
ANSWER_WITHIN_S = 30.0
_HEAD_END = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class Stack(NamedTuple):
    """The processes that serve, by part."""

    port: int
    pids: dict[str, list[int]]
    """Of the worker the supervisor and its child."""
    nats_url: str = ""

    def rss_kib(self) -> dict[str, float]:
        """Resident memory by part; of the worker that of its child alone, which runs the handlers."""
        found = {part: rss_mib(pids) * 1024 for part, pids in self.pids.items()}
        return {**found, "worker": max(rss_mib([pid]) for pid in self.pids["worker"][1:]) * 1024}


@contextmanager
def open_stack(
    folder: Path,
    settings: Mapping[str, str],
    *,
    checkout: Path | None = None,
    versions: int = 1,
    renamed: bool = False,
) -> Iterator[Stack]:
    """Broker, ingress, router and worker with the handlers of `bench_app.py`, until the end of the block.

    Args:
        settings: of the services, by the names of their variables; whatever else is set does not count.
        checkout: another working copy, with a `.venv` of its own, whose code is run instead.
        versions: of the handlers that live at once, each in a child process of its own.
        renamed: whether `/changed` is there as well, in three versions `v1`, `v2` and `v3` that translate.
    """
    python = sys.executable if checkout is None else str(checkout / ".venv" / "bin" / "python")
    app = (HERE if checkout is None else checkout / "benchmarks") / "bench_app.py"
    if not Path(python).exists():
        raise SystemExit(f"{checkout} has no .venv: run `make test PYTEST_ARGS=--version` there")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as cleanup:
        broker = cleanup.enter_context(EmbeddedBroker(folder / "broker"))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GATI_")}
        environment |= {"GATI_NATS_URL": broker.url, "GATI_INGRESS_PORT": str(port), **settings}
        commands = {
            "ingress": ["gati_ingress"],
            "router": ["gati_router"],
            "worker": ["gati_worker", "--source", str(app)],
        }
        processes = {}

        def start(name: str, command: list[str]) -> None:
            log = cleanup.enter_context((folder / f"{name}.log").open("w"))
            processes[name] = subprocess.Popen(
                [python, "-m", *command], env=environment, stdout=log, stderr=log, start_new_session=True
            )
            cleanup.callback(_end, processes[name])

        if versions > 1:
            sources = _versions.unchanged(folder / "versions", versions)
            commands["worker"] = ["gati_worker", *(word for path in sources for word in ("--source", str(path)))]
        for name, command in commands.items():
            start(name, command)
        try:
            wait_ready(f"http://127.0.0.1:{port}/hello/ada")
        except SystemExit as exc:
            logs = "".join(f"--- {name}\n{(folder / f'{name}.log').read_text()[-2000:]}\n" for name in processes)
            raise SystemExit(f"{exc}\n{logs}") from None
        if versions > 1:
            asyncio.run(_versions.wait_live(broker.url, versions))
        for number, path in enumerate(_versions.renamed_twice(folder / "renamed") if renamed else (), 1):
            start(f"worker {number}", ["gati_worker", "--source", str(path)])
            asyncio.run(_versions.wait_live(broker.url, versions + number))
            asyncio.run(_versions.tag_newest(broker.url, "changed", "changed", f"v{number}"))
        pids = {name: family(process.pid) for name, process in processes.items() if not name.startswith("worker")}
        workers = [
            pid for name, process in processes.items() if name.startswith("worker") for pid in family(process.pid)
        ]
        yield Stack(port, {**pids, "worker": workers, "broker": [broker.pid]}, broker.url)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)


def wait_ready(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """Return at the first good answer, with its headers; end the run when none comes."""
    give_up_at = time.monotonic() + READY_WITHIN_S
    request = urllib.request.Request(url, body, {"content-type": "application/json", **(headers or {})})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                answer.read()
                return cast("Mapping[str, str]", answer.headers)
        except OSError as exc:
            if time.monotonic() > give_up_at:
                text = exc.read().decode(errors="replace") if isinstance(exc, urllib.error.HTTPError) else ""
                raise SystemExit(f"{url} gave no good answer within {READY_WITHIN_S:g} s: {exc!r} {text}") from None
        time.sleep(0.05)


def need_files(wanted: int) -> None:
    """Raise the limit of open files to `wanted`, here and, by inheritance, in every process started later."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise SystemExit(f"this needs {wanted} open files, and {hard} are allowed: raise the limit (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# -- the client -------------------------------------------------------------------------------


class Http(asyncio.Protocol):
    """One connection, one request at a time. Understands what our ingress sends, and no more.

    A body is counted and not kept, except for its first 4 KiB.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._head = b""
        self._is_head_done = False
        self._left = -1
        self._tail = b""
        self.status = 0
        self.body = b""
        self.received = 0
        """Bytes of the last body, the framing of its chunks included."""
        self.first_byte_at = 0.0
        """`time.perf_counter()` at the first byte of the last body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio says so."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not derived from it

    def data_received(self, data: bytes) -> None:
        """asyncio hands over."""
        if not self._is_head_done:
            self._head += data
            head, found, data = self._head.partition(_HEAD_END)
            if not found:
                return
            self._begin_body(head)
        if data:
            self._on_body(data)
        elif self._left == 0:
            self._done()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio says so."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError(f"cut after {self.received} bytes of the body: {exc!r}"))

    def _begin_body(self, head: bytes) -> None:
        self._is_head_done = True
        lines = head.lower().split(b"\r\n")
        self.status = int(lines[0].split()[1])
        lengths = [line.partition(b":")[2] for line in lines if line.startswith(b"content-length:")]
        self._left = int(lengths[0]) if lengths else -1

    def _on_body(self, data: bytes) -> None:
        if not self.received:
            self.first_byte_at = time.perf_counter()
        self.received += len(data)
        if len(self.body) < 4096:
            self.body += data[:4096]
        if self._left >= 0:
            self._left -= len(data)
            is_over = self._left <= 0
        else:
            self._tail = (self._tail + data[-len(_LAST_CHUNK) :])[-len(_LAST_CHUNK) :]
            is_over = self._tail == _LAST_CHUNK
        if is_over:
            self._done()

    def _done(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self.status)

    def begin(self, method: str, path: str) -> asyncio.Future[int]:
        """Send a request; the future is its status, once the body is complete.

        Raises (the future): ConnectionResetError when the connection ends before that.
        """
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._head, self._is_head_done, self._tail = b"", False, b""
        self.received, self.body, self.first_byte_at = 0, b"", 0.0
        if self._transport.is_closing():
            self._answer.set_exception(ConnectionResetError("the connection was closed before the request"))
        else:
            self._transport.write(f"{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-length: 0\r\n\r\n".encode())
        return self._answer

    async def ask(self, method: str, path: str) -> int:
        """Send a request and wait for its answer; returns the status."""
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await self.begin(method, path)

    def pause(self) -> None:
        """Read nothing more."""
        assert self._transport is not None
        self._transport.pause_reading()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()


async def connected(port: int) -> Http:
    """A new connection to the ingress.

    Raises:
        OSError: there is none to be had.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(ANSWER_WITHIN_S):
        _, client = await loop.create_connection(Http, "127.0.0.1", port)
    return client
