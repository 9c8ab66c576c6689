"""The HTTP port: whether it can be had, asked before anything is started."""

from __future__ import annotations

import errno
import socket

from gati_cli._errors import CliError


def choose_port(option: int | None, configured: str) -> int:
    """The port to use: the option, else `GATI_INGRESS_PORT`, else 8080.

    Raises:
        CliError: the variable is no port.
    """
    if option is not None:
        return option
    if not configured:
        return 8080
    if not (configured.isascii() and configured.isdigit()) or int(configured) > 65535:
        raise CliError(f"GATI_INGRESS_PORT is {configured!r}: it must be a number from 0 to 65535", exit_code=2)
    return int(configured)


def claimable_port(host: str, port: int) -> int:
    """`port` if a server could listen on it now; a free one for 0.

    Raises:
        CliError: it cannot be had; says why and what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as exc:
            raise CliError(_explain(host, port, exc), exit_code=2) from exc
        return int(probe.getsockname()[1])


def _explain(host: str, port: int, exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return (
            f"port {port} on {host} is taken by another program:"
            " stop that one, or choose a free port with --port or GATI_INGRESS_PORT (--port 0 picks one)"
        )
    if exc.errno == errno.EACCES:
        return f"you may not listen on port {port}: choose one above 1023 with --port or GATI_INGRESS_PORT"
    return (
        f"cannot listen on {host}:{port} ({exc.strerror or exc}): see --port, GATI_INGRESS_PORT and GATI_INGRESS_HOST"
    )
