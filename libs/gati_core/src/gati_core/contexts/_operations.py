"""Tracked operations: work of a request that runs beside its handler, and what is known of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from typing import TypeVar

from gati_core.contexts._snapshots import Operation
from gati_core.errors import RegistrationError, described

T = TypeVar("T")
E = TypeVar("E", bound=Exception)
MAX_OPERATIONS = 1000


class Operations:
    """The operations of one request, by id, in the order in which they began."""

    __slots__ = ("_records", "_strays", "_tasks")

    def __init__(self) -> None:
        self._records: dict[str, Operation] = {}
        self._tasks: dict[str, asyncio.Task[object]] = {}
        self._strays: set[asyncio.Task[object]] = set()

    def track(self, work: Awaitable[T], id: str | None = None) -> asyncio.Task[T]:
        """Start `work` as a task and record how it ends. See `LocalContext.track`.

        Raises:
            RegistrationError: the id is taken, there are 1000 already, or this is not the event loop's thread.
        """
        name, number = id, len(self._records)
        while name is None or (id is None and name in self._records):
            number += 1
            name = f"op-{number}"
        if name in self._records:
            raise refused(work, RegistrationError(f"operation {name!r} is taken"))
        if len(self._records) >= MAX_OPERATIONS:
            raise refused(
                work, RegistrationError(f"operation {name!r} exceeds the limit of {MAX_OPERATIONS} operations")
            )
        if asyncio._get_running_loop() is None:
            raise refused(work, RegistrationError("operations are tracked in the event loop, not in a thread"))
        task: asyncio.Task[T] = asyncio.ensure_future(work)
        self._records[name] = Operation(name, "pending")
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._ended(name, done))
        return task

    def _ended(self, name: str, task: asyncio.Task[T]) -> None:
        if self._tasks.get(name) is not task:
            return  # restored meanwhile
        if task.cancelled():
            self._records[name] = Operation(name, "rejected", error="cancelled")
        elif (error := task.exception()) is not None:
            self._records[name] = Operation(name, "rejected", error=described(error))
        else:
            self._records[name] = Operation(name, "fulfilled", result=task.result())

    def records(self) -> list[Operation]:
        """What is known now, oldest first."""
        return list(self._records.values())

    def restore(self, records: list[Operation]) -> None:
        """Take over what a snapshot knew. Tasks that still run go on under the same id."""
        self._records = {record.id: record for record in records}
        running = {name: task for name, task in self._tasks.items() if not task.done()}
        self._tasks = {name: task for name, task in running.items() if name in self._records}
        # Started after the snapshot: unknown from now on, and still to be ended with the request.
        self._strays.update(task for name, task in running.items() if name not in self._records)

    def __getitem__(self, id: str) -> Operation:
        return self._records[id]

    def __contains__(self, id: object) -> bool:
        return id in self._records

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.records())

    def __len__(self) -> int:
        return len(self._records)

    async def aclose(self) -> list[asyncio.Task[object]]:
        """Cancel what still runs, and wait for it, at most a second; returns what runs on all the same."""
        tasks = [task for task in (*self._tasks.values(), *self._strays) if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        return [task for task in tasks if not task.done()]


def refused(work: Awaitable[object], error: E) -> E:
    """The error, after closing a coroutine that will not run: Python would complain that nobody awaited it."""
    if asyncio.iscoroutine(work):
        work.close()
    return error
