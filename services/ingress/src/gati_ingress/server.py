"""One ingress process: the fabric, the application, and uvicorn on a socket that is already bound."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import structlog
import uvicorn

from gati_core.fabric import open_fabric
from gati_core.observe import settle_garbage_collector
from gati_core.settings import FabricSettings
from gati_ingress.app import Ingress
from gati_ingress.protocol import guarded_protocol
from gati_ingress.settings import IngressSettings
from gati_ingress.socket_protocol import GuardedSocket

log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """uvicorn's server, which tells the application first when a signal asks it to leave."""

    def __init__(self, config: uvicorn.Config, ingress: Ingress, *, grace_s: float) -> None:
        super().__init__(config)
        self._ingress = ingress
        self._grace_s = grace_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn's own would raise the signal again after the last request, which would end this
        # process before the broker connection is flushed and closed.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True  # a second signal: now
            return
        log.info(
            "ingress_draining",
            signal=signal.Signals(sig).name,
            in_flight=self._ingress.in_flight,
            channels=len(self._ingress.channels),
        )
        self._ingress.begin_drain()
        asyncio.get_running_loop().call_later(self._grace_s, self._ingress.answer_all_waiting)
        self.should_exit = True


def bind(settings: IngressSettings) -> socket.socket:
    """A listening socket on the configured address.

    Raises:
        OSError: the address cannot be had; `errno` says why.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((settings.host, settings.port))
        sock.listen(settings.backlog)
        sock.set_inheritable(True)
    except OSError:
        sock.close()
        raise
    return sock


async def serve(
    settings: IngressSettings, fabric_settings: FabricSettings, sock: socket.socket, *, shared_stats: str = ""
) -> None:
    """Serve until SIGINT or SIGTERM, then leave in order: readiness, accepting, requests, broker."""
    async with open_fabric(fabric_settings, name="gati-ingress") as fabric:
        ingress = Ingress(settings=settings, fabric=fabric, shared_stats=shared_stats)
        await ingress.start()
        config = uvicorn.Config(
            ingress,
            loop="uvloop",
            http=guarded_protocol(settings, ingress.recorder.error),
            ws=GuardedSocket,
            ws_max_size=settings.ws_max_message_bytes,
            ws_ping_interval=settings.ws_ping_interval_s,
            ws_ping_timeout=settings.ws_ping_timeout_s,
            # It would cost every connection its buffers, and the loop the time, for messages that are mostly small.
            ws_per_message_deflate=False,
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            timeout_keep_alive=settings.keep_alive_s,
            # Longer than our own grace: whoever still waits then gets a 503 and not a dead line.
            timeout_graceful_shutdown=int(settings.drain_grace_s) + 2,
            backlog=settings.backlog,
        )
        # A warning for every malformed request would let any client fill the log; `/metrics` counts them.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        server = _Server(config, ingress, grace_s=settings.drain_grace_s)
        ingress.operations.connections = lambda: len(server.server_state.connections)
        ingress.operations.in_flight = lambda: ingress.in_flight
        address = sock.getsockname()
        log.info("ingress_started", ingress=ingress.id, address=f"{address[0]}:{address[1]}")
        settle_garbage_collector()
        try:
            await server.serve(sockets=[sock])
        finally:
            await ingress.aclose()
    total = sum(route.count for route in ingress.recorder.stats.routes.values())
    log.info("ingress_stopped", ingress=ingress.id, answered=total)
