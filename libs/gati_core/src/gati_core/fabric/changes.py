"""The change log: a stream that is only ever appended to, one subject for each handler.

What is appended carries its number, and the number of messages on the subject is compared with it, so that two
processes that append the same lines append them once and in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nats.errors
import nats.js.errors

from gati_core.errors import BrokerUnavailable, TopologyError, TransientError
from gati_core.fabric.connection import Connection

_WRONG_LAST = frozenset({10071, 10164})
_NUMBER = "Gati-Change"


class ChangeLog:
    """Appends to `{ns}_CHANGES` and reads it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stream = connection.subjects.changes_stream

    async def append(self, subject: str, lines: Sequence[tuple[int, bytes]]) -> int:
        """Append those lines whose numbers are higher than the last one's; returns how many.

        Args:
            lines: number and text, in the order of their numbers.
        Raises:
            BrokerUnavailable: nothing, or not all, was appended; the same call completes it.
        """
        self._connection.require_up("writing the change log")
        js = self._connection.jetstream()
        appended = 0
        try:
            last, sequence = await self._last(subject)
            for number, text in lines:
                if number <= last:
                    continue
                headers = {"Nats-Expected-Last-Subject-Sequence": str(sequence), _NUMBER: str(number)}
                ack = await js.publish(subject, text, headers=headers)
                last, sequence = number, ack.seq
                appended += 1
        except nats.js.errors.APIError as exc:
            if exc.err_code in _WRONG_LAST:
                return appended  # somebody else appends the same lines
            raise BrokerUnavailable(f"writing the change log: {exc}") from exc
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"writing the change log: {str(exc) or repr(exc)}") from exc
        return appended

    async def _last(self, subject: str) -> tuple[int, int]:
        try:
            message = await self._connection.jetstream().get_last_msg(self._stream, subject)
        except nats.js.errors.NotFoundError:
            return 0, 0
        return int((message.headers or {}).get(_NUMBER, "0")), message.seq or 0

    async def read(
        self, subject: str, *, at_most: int, wanted: Callable[[bytes], bool] = lambda _line: True
    ) -> list[bytes]:
        """The last lines of the subjects that `subject` matches, oldest first. For tools: it goes backwards
        through the stream in growing steps, and each line is a round trip.

        Args:
            wanted: which lines count.
        Raises:
            TopologyError: there is no change log.
            BrokerUnavailable: no answer.
        """
        js = self._connection.jetstream()
        try:
            state = (await js.stream_info(self._stream)).state
            span = max(4 * at_most, 64)
            while True:
                start = max(state.first_seq, state.last_seq - span + 1, 1)
                found = [line for line in await self._from(subject, start) if wanted(line)]
                if len(found) >= at_most or start <= max(state.first_seq, 1):
                    return found[-at_most:]
                span *= 8
        except nats.js.errors.NotFoundError as exc:
            raise TopologyError(f"stream {self._stream} does not exist") from exc
        except TransientError:
            raise
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"reading the change log: {str(exc) or repr(exc)}") from exc

    async def _from(self, subject: str, start: int) -> list[bytes]:
        js = self._connection.jetstream()
        found: list[bytes] = []
        sequence = start
        while True:
            try:
                message = await js.get_msg(self._stream, seq=sequence, subject=subject, next=True)
            except nats.js.errors.NotFoundError as exc:
                if exc.err_code == 10059:
                    raise
                return found
            found.append(message.data or b"")
            sequence = (message.seq or sequence) + 1
