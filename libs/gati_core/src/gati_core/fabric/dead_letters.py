"""Dead letters: messages set aside with their cause, countable, listable, and able to run again.

The order is always: store the copy, answer the client, and only then term (or delete). A crash in
between repeats a step; it never loses the message.
"""

from __future__ import annotations

import time
from datetime import datetime

import msgspec
import nats.errors
import nats.js.errors

from gati_core.errors import (
    BrokerUnavailable,
    GatiError,
    MalformedMessage,
    RegistrationError,
    RequestError,
    TopologyError,
)
from gati_core.fabric.connection import Connection
from gati_core.fabric.publisher import WindowedPublisher
from gati_core.fabric.stored import text_headers
from gati_core.ids import new_request_id
from gati_core.wire import PRIORITIES, RequestDescriptor, decode_descriptor, decode_work, encode

_ORIGINAL = "Gati-Original-"
_RERUN_DEADLINE_S = 30


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter as `gati dead` shows it."""

    sequence: int
    stage: str
    """`req` or `work` for requests, `topic` for events of a durable group."""
    pool: str
    """Whose it was; `-` when nobody's yet, `app~group` for events."""
    subject: str
    """Where the message was before it died."""
    code: str
    """The error's stable code."""
    cause: str
    attempts: int
    request_id: str
    time: str
    headers: dict[str, str]
    data: bytes


class DeadLetters:
    """Writing, listing and requeueing dead letters."""

    def __init__(self, connection: Connection, publisher: WindowedPublisher) -> None:
        self._connection = connection
        self._publisher = publisher
        self.buried = 0

    async def bury(
        self,
        *,
        stage: str,
        pool: str,
        subject: str,
        data: bytes,
        error: GatiError,
        attempts: int,
        request_id: str = "",
        headers: dict[str, str] | None = None,
    ) -> int:
        """Store a copy with its cause; returns its sequence. Only then may the original be termed.

        Raises:
            TransientError: it could not be stored; leave the original where it is.
        """
        fields = {
            "Gati-Subject": subject,
            "Gati-Code": error.code,
            "Gati-Cause": str(error)[:1000],
            "Gati-Attempts": str(attempts),
            "Gati-Request-Id": request_id,
            "Gati-Time": datetime.now().astimezone().isoformat(timespec="milliseconds"),
        }
        for name, value in (headers or {}).items():
            if not name.startswith("Nats-"):
                fields[_ORIGINAL + name] = value
        sequence = await self._publisher.send(self._connection.subjects.dead(stage, pool or "-"), data, headers=fields)
        self.buried += 1
        return sequence

    async def get(self, sequence: int) -> DeadLetter:
        """One dead letter.

        Raises:
            RequestError: there is none under this number.
        """
        try:
            message = await self._connection.jetstream().get_msg(self._connection.subjects.dead_stream, seq=sequence)
        except nats.js.errors.NotFoundError as exc:
            raise RequestError(f"there is no dead letter {sequence}") from exc
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"reading dead letter {sequence}: {exc!r}") from exc
        headers = text_headers(message.headers)
        tokens = (message.subject or "").split(".")
        return DeadLetter(
            sequence=sequence,
            stage=tokens[2] if len(tokens) > 2 else "",
            pool=tokens[3] if len(tokens) > 3 else "",
            subject=headers.get("Gati-Subject", ""),
            code=headers.get("Gati-Code", ""),
            cause=headers.get("Gati-Cause", ""),
            attempts=int(headers.get("Gati-Attempts", "0") or 0),
            request_id=headers.get("Gati-Request-Id", ""),
            time=headers.get("Gati-Time", ""),
            headers={k.removeprefix(_ORIGINAL): v for k, v in headers.items() if k.startswith(_ORIGINAL)},
            data=message.data or b"",
        )

    async def newest(self, limit: int = 50) -> list[DeadLetter]:
        """The newest dead letters, newest first."""
        found: list[DeadLetter] = []
        state = (await self._connection.jetstream().stream_info(self._connection.subjects.dead_stream)).state
        sequence = state.last_seq
        while sequence >= max(1, state.first_seq) and len(found) < limit:
            try:
                found.append(await self.get(sequence))
            except RequestError:
                pass  # requeued or deleted meanwhile
            sequence -= 1
        return found

    async def requeue(self, sequence: int) -> str:
        """Run a dead letter's request again from the router on; returns the new request id.

        The request gets a new id `<id>#<n>`-like of its own (F5: the old id would be dropped as a
        duplicate) and a fresh deadline; its client is long gone, so the answer goes nowhere.

        Raises:
            MalformedMessage: what died is no request; there is nothing to run.
        """
        letter = await self.get(sequence)
        descriptor = _descriptor_of(letter)
        if descriptor.priority not in PRIORITIES:
            raise MalformedMessage(f"dead letter {sequence} has priority {descriptor.priority}, which no router reads")
        now_ms = time.time_ns() // 1_000_000
        descriptor.request_id = new_request_id(now_ms)
        descriptor.reply_to = f"{self._connection.subjects.namespace}.reply.requeued.{descriptor.request_id}"
        descriptor.received_ms = now_ms
        descriptor.deadline_ms = now_ms + _RERUN_DEADLINE_S * 1000
        subject = self._connection.subjects.req(descriptor.priority)
        await self._publisher.send(subject, encode(descriptor), message_id=f"requeue-{sequence}-{now_ms}")
        await self.delete(sequence)
        return descriptor.request_id

    async def requeue_event(self, sequence: int) -> str:
        """Give an event of a topic to the group that gave it up, and to no other; returns `app~group`.

        Raises:
            MalformedMessage: what died is no event of a durable group.
            TopologyError: the group has no consumer any more, so nobody would get it.
        """
        letter = await self.get(sequence)
        subjects = self._connection.subjects
        app, _, group = letter.pool.partition("~")
        tokens = letter.subject.split(".")
        try:
            topic = tokens[2] if letter.stage == "topic" and tokens[:2] == [subjects.namespace, "topic"] else ""
            durable = subjects.topic_consumer(app, group, topic)
            subject = subjects.topic_group(app, group, topic)
        except (RegistrationError, IndexError) as exc:
            raise MalformedMessage(f"dead letter {sequence} is no event of a durable group") from exc
        if subject not in await self._filters(subjects.topic_stream, durable):
            raise TopologyError(
                f"group {group!r} of app {app!r} no longer takes part in topic {topic!r}, so nobody would get the"
                " event: start a worker of that app and requeue it then"
            )
        now_ms = time.time_ns() // 1_000_000
        await self._publisher.send(subject, letter.data, message_id=f"requeue-{sequence}-{now_ms}")
        await self.delete(sequence)
        return letter.pool

    async def _filters(self, stream: str, durable: str) -> list[str]:
        """The subjects that a consumer reads; none when it does not exist."""
        try:
            config = (await self._connection.jetstream().consumer_info(stream, durable)).config
        except nats.js.errors.NotFoundError:
            return []
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"looking at consumer {durable} of {stream}: {exc!r}") from exc
        return config.filter_subjects or []

    async def delete(self, sequence: int) -> None:
        """Remove a dead letter for good.

        Raises:
            RequestError: there is none under this number.
        """
        try:
            await self._connection.jetstream().delete_msg(self._connection.subjects.dead_stream, sequence)
        except nats.js.errors.APIError as exc:  # the server calls a missing message "stream store EOF"
            raise RequestError(f"there is no dead letter {sequence}") from exc
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"deleting dead letter {sequence}: {exc!r}") from exc


def _descriptor_of(letter: DeadLetter) -> RequestDescriptor:
    if letter.stage == "work":
        return decode_descriptor(decode_work(letter.data, subject=letter.subject).descriptor, subject=letter.subject)
    if letter.stage == "req":
        return decode_descriptor(letter.data, subject=letter.subject)
    raise MalformedMessage(f"dead letter {letter.sequence} is of stage {letter.stage!r}, which holds no request")
