"""Claim checks: bodies too large for a message wait in an object store, only their ticket travels.

The store has a time to live, so a body whose request died is not kept for ever.
"""

from __future__ import annotations

import anyio
import nats.errors
import nats.js.errors
from nats.js.api import ObjectInfo
from nats.js.object_store import ObjectStore

from gati_core.errors import BrokerUnavailable, PermanentError
from gati_core.fabric.connection import Connection

_TIMEOUT_S = 10.0


class BodyLost(PermanentError):
    """A ticket whose body is gone: expired, deleted, or damaged."""

    status = 502
    code = "fabric.body_lost"
    title = "The request body is no longer there"


class Bodies:
    """The object store `{ns}_bodies`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bucket = connection.subjects.bodies_bucket

    async def put(self, ticket: str, body: bytes) -> str:
        """Store a body under `ticket` (the request id, say) and return the ticket.

        Raises:
            BrokerUnavailable: it could not be stored in time.
        """
        self._connection.require_up(f"object store {self._bucket}")
        try:
            with anyio.fail_after(_TIMEOUT_S):
                await (await self._store()).put(ticket, body)
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"storing a body of {len(body)} bytes: {str(exc) or repr(exc)}") from exc
        return ticket

    async def take(self, ticket: str, *, keep: bool = False) -> bytes:
        """Read the body behind a ticket, and delete it unless `keep`.

        Raises:
            BodyLost: there is no such body.
            BrokerUnavailable: it could not be read in time.
        """
        self._connection.require_up(f"object store {self._bucket}")
        try:
            with anyio.fail_after(_TIMEOUT_S):
                store = await self._store()
                await self._require_chunks(ticket, await store.get_info(ticket))
                result = await store.get(ticket)
                if not keep:
                    await store.delete(ticket)
        except nats.js.errors.NotFoundError as exc:
            raise BodyLost(f"no body under ticket {ticket}") from exc
        except (nats.js.errors.DigestMismatchError, nats.js.errors.BadObjectMetaError) as exc:
            raise BodyLost(f"the body under ticket {ticket} is damaged") from exc
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"reading the body {ticket}: {str(exc) or repr(exc)}") from exc
        return bytes(result.data or b"")

    async def drop(self, ticket: str) -> None:
        """Delete a body that nobody will read; failures are left to the time to live."""
        try:
            with anyio.fail_after(_TIMEOUT_S):
                await (await self._store()).delete(ticket)
        except (nats.errors.Error, nats.js.errors.NotFoundError, OSError, TimeoutError):
            return

    async def _require_chunks(self, ticket: str, info: ObjectInfo) -> None:
        """Chunks and entry expire one by one, and nats-py waits for ever for chunks that are gone."""
        if info.size:
            subject = f"$O.{self._bucket}.C.{info.nuid}"
            stream = await self._connection.jetstream().stream_info(f"OBJ_{self._bucket}", subjects_filter=subject)
            if (stream.state.subjects or {}).get(subject, 0) != info.chunks:
                raise BodyLost(f"the body under ticket {ticket} is damaged: chunks are missing")

    async def _store(self) -> ObjectStore:
        return await self._connection.jetstream().object_store(self._bucket)
