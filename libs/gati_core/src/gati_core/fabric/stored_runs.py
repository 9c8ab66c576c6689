"""Reading stored runs back from the trace stream."""

from __future__ import annotations

import nats.errors
import nats.js.errors

from gati_core.errors import BrokerUnavailable
from gati_core.fabric.connection import Connection
from gati_core.wire import StoredRun, decode_stored_run


async def read_stored_run(connection: Connection, request_id: str) -> StoredRun | None:
    """What a worker stored of a request with the flag `snapshot`, or None when there is nothing (any more).

    Raises:
        BrokerUnavailable: no answer.
        MalformedMessage: what is stored is no run.
    """
    subjects = connection.subjects
    try:
        message = await connection.jetstream().get_last_msg(subjects.trace_stream, subjects.stored_run(request_id))
    except nats.js.errors.NotFoundError:
        return None
    except (nats.errors.Error, OSError, TimeoutError) as exc:
        raise BrokerUnavailable(f"reading the stored run of {request_id}: {exc!r}") from exc
    return decode_stored_run(message.data or b"")
