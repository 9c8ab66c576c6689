"""A simulation and a fabric of real processes behind one interface: what contracts over both stand on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import httpcore
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gati_core.errors import ChannelClosed
from gati_core.wire import HeaderPairs
from gati_testing import Answer, BuiltRequest, HandshakeRefused, RunningFabric, SimulatedSocket, Simulation

_OF_THE_CONNECTION = ("date", "transfer-encoding")


class Socket(Protocol):
    """The client's end of a WebSocket."""

    headers: dict[str, str]

    async def send(self, message: str | bytes) -> None:
        """Send one message."""

    async def receive(self) -> str | bytes | None:
        """The next one; None when it is closed."""

    async def close(self, code: int) -> None:
        """Close as the client."""

    async def closed(self) -> tuple[int, str]:
        """Code and reason of the handler's close, waited for."""


class Refused(Exception):
    """The handshake was refused with this answer."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer


class Side(Protocol):
    """Where requests are sent to."""

    async def send(self, request: BuiltRequest) -> Answer:
        """One request, exactly as it is, and its answer."""

    async def send_all(self, requests: Sequence[BuiltRequest]) -> list[Answer]:
        """All of them at once."""

    def socket(
        self, path: str, *, subprotocols: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[Socket]:
        """An open WebSocket.

        Raises:
            Refused: it was not accepted.
        """


# -- the simulation ---------------------------------------------------------------------------------


class SimulatedSide:
    """Requests to a simulation."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    async def send(self, request: BuiltRequest) -> Answer:
        """See `Side`."""
        return self._simulation.request(request)

    async def send_all(self, requests: Sequence[BuiltRequest]) -> list[Answer]:
        """See `Side`."""
        return self._simulation.gather(*(self._simulation.arequest(request) for request in requests))

    @asynccontextmanager
    async def socket(
        self, path: str, *, subprotocols: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Socket]:
        """See `Side`."""
        try:
            socket = self._simulation.websocket(path, subprotocols=subprotocols, headers=headers)
        except HandshakeRefused as exc:
            raise Refused(exc.answer) from exc
        with socket:
            yield _SimulatedSocket(socket)


class _SimulatedSocket:
    def __init__(self, socket: SimulatedSocket) -> None:
        self._socket = socket
        self.headers = dict(socket.headers)

    async def send(self, message: str | bytes) -> None:
        self._socket.send(message)

    async def receive(self) -> str | bytes | None:
        try:
            return self._socket.receive()
        except ChannelClosed:
            return None

    async def close(self, code: int) -> None:
        self._socket.close(code)

    async def closed(self) -> tuple[int, str]:
        while await self.receive() is not None:
            pass
        return self._socket.close_code or 0, self._socket.close_reason


# -- the fabric -------------------------------------------------------------------------------------


class RealSide:
    """Requests to a fabric, byte for byte as they are given."""

    def __init__(self, fabric: RunningFabric, pool: httpcore.AsyncConnectionPool) -> None:
        self._fabric = fabric
        self._pool = pool

    async def send(self, request: BuiltRequest) -> Answer:
        """See `Side`."""
        target = f"{request.path}?{request.query}" if request.query else request.path
        url = httpcore.URL(scheme=b"http", host=b"127.0.0.1", port=self._fabric.port, target=target.encode())
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.as_sent()]
        body = bytearray()
        is_cut = False
        async with self._pool.stream(request.method, url, headers=headers, content=request.body or None) as response:
            try:
                async for part in response.aiter_stream():
                    body += part
            except httpcore.RemoteProtocolError:
                is_cut = True
        pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers]
        return Answer(status=response.status, headers=pairs, body=bytes(body), is_cut=is_cut)

    async def send_all(self, requests: Sequence[BuiltRequest]) -> list[Answer]:
        """See `Side`."""
        return await asyncio.gather(*(self.send(request) for request in requests))

    @asynccontextmanager
    async def socket(
        self, path: str, *, subprotocols: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Socket]:
        """See `Side`."""
        url = f"ws://127.0.0.1:{self._fabric.port}{path}"
        offered: Any = list(subprotocols) or None
        dialling = connect(
            url,
            proxy=None,
            compression=None,
            open_timeout=15,
            close_timeout=5,
            subprotocols=offered,
            additional_headers=headers,
        )
        try:
            client = await dialling
        except InvalidStatus as exc:
            pairs = [(name.lower(), value) for name, value in exc.response.headers.raw_items()]
            raise Refused(
                Answer(status=exc.response.status_code, headers=pairs, body=bytes(exc.response.body or b""))
            ) from exc
        async with client:
            yield _RealSocket(client)


class _RealSocket:
    def __init__(self, client: ClientConnection) -> None:
        self._client = client
        assert client.response is not None
        self.headers = {name.lower(): value for name, value in client.response.headers.raw_items()}

    async def send(self, message: str | bytes) -> None:
        await self._client.send(message)

    async def receive(self) -> str | bytes | None:
        try:
            async with asyncio.timeout(15):
                return await self._client.recv()
        except ConnectionClosed:
            return None

    async def close(self, code: int) -> None:
        await self._client.close(code)

    async def closed(self) -> tuple[int, str]:
        while await self.receive() is not None:
            pass
        return self._client.close_code or 0, self._client.close_reason or ""


@asynccontextmanager
async def real_side(fabric: RunningFabric) -> AsyncIterator[RealSide]:
    """A client of this fabric."""
    async with httpcore.AsyncConnectionPool(max_connections=50) as pool:
        yield RealSide(fabric, pool)


# -- comparing --------------------------------------------------------------------------------------


def comparable(answer: Answer) -> tuple[int, HeaderPairs, Any, bool]:
    """An answer without what differs from one request to the next."""
    request_id = answer.request_id
    assert len(answer.header_values("x-request-id")) == 1
    assert len(request_id) == 36
    headers = sorted(
        (name, re.sub(r"^tsv:\d+-", "tsv:<registered>-", value))
        for name, value in answer.headers
        if name not in (*_OF_THE_CONNECTION, "x-request-id")
    )
    body: Any = answer.body.replace(request_id.encode(), b"<id>")
    if answer.header("content-type") in ("application/json", "application/problem+json") and body:
        body = json.loads(body)
    return answer.status, headers, body, answer.is_cut
