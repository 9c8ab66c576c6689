"""A process that subscribes and publishes on command, for tests of topics between processes.

Commands and answers are msgpack over standard input and output, each after its length in four bytes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
import structlog

from gati_core.contexts import Subscription, Topics
from gati_core.fabric import FabricTopics, open_fabric
from gati_core.settings import FabricSettings

_MARKS = "marks-of-the-processes"
_ANSWER_WITHIN_S = 15.0


class Place(msgspec.Struct, frozen=True):
    """A topic: of one request, or of all when there is no request id."""

    topic: str
    request_id: str = ""


class Publication(msgspec.Struct, frozen=True):
    """One event to publish."""

    place: Place
    payload: Any
    is_durable: bool = False


class Command(msgspec.Struct):
    """What a process is told to do."""

    do: Literal["listen", "publish", "report"]
    places: list[Place] = []
    """For `listen`: one subscription each."""
    publications: list[Publication] = []
    round: int = 0
    """For `publish`: marks its end. For `report`: wait until every process has reached it."""
    processes: list[str] = []


class Heard(msgspec.Struct, frozen=True):
    """One event as a subscription got it."""

    publisher: str
    payload: Any
    request_id: str


_decode_command = msgspec.msgpack.Decoder(Command).decode
_decode_report = msgspec.msgpack.Decoder(list[list[Heard]]).decode


class TopicProcess:
    """Such a process, seen from the test."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    async def listen(self, places: Sequence[Place]) -> None:
        """Subscribe to each of these, until the next report."""
        await self._ask(Command("listen", places=list(places)))

    async def publish(self, publications: Sequence[Publication], *, round: int) -> None:
        """Publish in this order, and then the mark of this round."""
        await self._ask(Command("publish", publications=list(publications), round=round))

    async def report(self, *, round: int, processes: Sequence[str]) -> list[list[Heard]]:
        """What each subscription has got when all marks of the round have come; then they are closed.

        The broker keeps the order of each publisher, so nothing of this round can come after its mark.
        """
        return _decode_report(await self._ask(Command("report", round=round, processes=list(processes))))

    async def aclose(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with anyio.move_on_after(5, shield=True):
            await self._process.wait()
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _ask(self, command: Command) -> bytes:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        data = msgspec.msgpack.encode(command)
        self._process.stdin.write(len(data).to_bytes(4, "big") + data)
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            await self._process.stdin.drain()
            return await _read(self._process.stdout)


@asynccontextmanager
async def topic_processes(settings: FabricSettings, *names: str) -> AsyncIterator[list[TopicProcess]]:
    """Start one process per name on a fabric, and wait until they are connected."""
    root = Path(__file__).parent.parent.parent
    processes: list[TopicProcess] = []
    try:
        for name in names:
            arguments = (sys.executable, "-m", __name__, msgspec.json.encode(settings).decode(), name)
            process = await asyncio.create_subprocess_exec(
                *arguments, cwd=root, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            processes.append(TopicProcess(name, process))
        for each in processes:
            await each.listen([])
        yield processes
    finally:
        for each in processes:
            await each.aclose()


# -- inside the process -------------------------------------------------------------------------


class _Inside:
    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._open = AsyncExitStack()
        self._subscriptions: list[Subscription] = []

    async def run(self, reader: asyncio.StreamReader) -> None:
        async with self._topics.subscribe(_MARKS) as marks:
            while True:
                try:
                    command = _decode_command(await _read(reader))
                except asyncio.IncompleteReadError:
                    return
                answer: list[list[Heard]] = []
                if command.do == "listen":
                    for place in command.places:
                        await self._listen(place)
                elif command.do == "publish":
                    for publication in command.publications:
                        await self._publish(publication)
                    self._topics.publish(_MARKS, command.round)
                else:
                    missing = set(command.processes)
                    while missing:
                        mark = await marks.next(timeout_s=_ANSWER_WITHIN_S / 2)
                        if mark.payload == command.round:
                            missing.discard(mark.publisher)
                    answer = [await self._taken(each) for each in self._subscriptions]
                    await self._open.aclose()
                    self._subscriptions.clear()
                data = msgspec.msgpack.encode(answer)
                sys.stdout.buffer.write(len(data).to_bytes(4, "big") + data)
                sys.stdout.buffer.flush()

    async def _listen(self, place: Place) -> None:
        if place.request_id:
            local = self._topics.local(place.request_id)
            self._open.push_async_callback(local.aclose)
            self._subscriptions.append(await local.subscribe(place.topic, limit=1000))
        else:
            subscription = self._topics.subscribe(place.topic, limit=1000)
            self._subscriptions.append(await self._open.enter_async_context(subscription))

    async def _publish(self, publication: Publication) -> None:
        place = publication.place
        if publication.is_durable:
            await self._topics.publish_durable(place.topic, publication.payload)
        elif place.request_id:
            self._topics.local(place.request_id).publish(place.topic, publication.payload)
        else:
            self._topics.publish(place.topic, publication.payload)

    @staticmethod
    async def _taken(subscription: Subscription) -> list[Heard]:
        taken = []
        while subscription._queue:
            event = await subscription.next(1)
            taken.append(Heard(event.publisher, event.payload, event.request_id))
        assert (subscription.dropped, subscription.malformed) == (0, 0)
        return taken


async def _read(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


async def _main(settings: FabricSettings, name: str) -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with open_fabric(settings, name=name, ensure=False) as fabric:
        await _Inside(Topics(FabricTopics(fabric), publisher=name)).run(reader)


if __name__ == "__main__":
    asyncio.run(_main(msgspec.json.decode(sys.argv[1], type=FabricSettings), sys.argv[2]))
