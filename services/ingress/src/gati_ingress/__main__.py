"""`python -m gati_ingress`: serve HTTP in one process, or in several that share one port.

With several, this process only binds the socket, starts the others on it, starts a crashed one
again, and passes signals on. The port is bound once and kept, so no connection is refused while a
process restarts.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import uvloop

from gati_core.errors import GatiError, SettingsError
from gati_core.observe import set_up_logging
from gati_core.settings import fabric_from_env, from_env
from gati_ingress.server import bind, serve
from gati_ingress.settings import IngressSettings

_SOCKET = "GATI_SHARED_SOCKET_FD"
_STATS = "GATI_SHARED_STATS_DIR"
_QUICK_CRASH_S = 2.0


def _socket_for(settings: IngressSettings) -> socket.socket:
    inherited = os.environ.get(_SOCKET)
    if inherited:
        return socket.socket(fileno=int(inherited))
    try:
        return bind(settings)
    except OSError as exc:
        where = f"{settings.host}:{settings.port}"
        if exc.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"{where} is taken by another program: stop it, or set GATI_INGRESS_PORT to a free port"
            ) from exc
        raise SettingsError(f"cannot listen on {where}: {exc.strerror}") from exc


def _supervise(settings: IngressSettings, sock: socket.socket) -> int:
    """Keep `settings.processes` children on the socket until a signal; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="gati-ingress-") as stats:
        environment = {**os.environ, _SOCKET: str(sock.fileno()), _STATS: stats}
        leaving: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _frame: leaving.append(received))

        def start() -> subprocess.Popen[bytes]:
            command = [sys.executable, "-m", "gati_ingress"]
            return subprocess.Popen(
                command, env=environment, pass_fds=(sock.fileno(),), stdin=subprocess.PIPE, start_new_session=True
            )

        children = [start() for _ in range(settings.processes)]
        born = dict.fromkeys(range(settings.processes), time.monotonic())
        while not leaving:
            time.sleep(0.1)
            for place, child in enumerate(children):
                if child.poll() is not None and time.monotonic() - born[place] > _QUICK_CRASH_S:
                    children[place], born[place] = start(), time.monotonic()
            if all(child.poll() is not None for child in children):
                return 1  # none lived: the cause is on standard error already
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
        give_up_at = time.monotonic() + settings.drain_grace_s + 5
        for child in children:
            try:
                child.wait(max(0.1, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
    return 0


def _leave_with_parent() -> None:
    """Standard input ends when the process that started us does, even by SIGKILL: then leave as well."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def main() -> None:
    """Entry point. Exit code 2 for settings that cannot be used, 1 for a broker that cannot."""
    try:
        settings = from_env(IngressSettings, "GATI_INGRESS_", os.environ)
        set_up_logging(service="ingress", level=settings.log_level, log_format=settings.log_format)
        fabric_settings = fabric_from_env(os.environ)
        sock = _socket_for(settings)
        if settings.processes > 1 and _SOCKET not in os.environ:
            sys.exit(_supervise(settings, sock))
        if _SOCKET in os.environ:
            _leave_with_parent()
        uvloop.run(serve(settings, fabric_settings, sock, shared_stats=os.environ.get(_STATS, "")))
    except GatiError as exc:
        print(f"gati-ingress: {exc}", file=sys.stderr)
        sys.exit(2 if exc.code.startswith("settings") else 1)


if __name__ == "__main__":
    main()
