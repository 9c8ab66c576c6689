"""Who owns a task. Those that a handler starts and does not wait for are found when its request ends;
those of the process are nobody's but the process's.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_owner: contextvars.ContextVar[TaskOwner | None] = contextvars.ContextVar("gati_task_owner", default=None)


class Contained(Coroutine[Any, Any, T]):
    """A coroutine whose `SystemExit` or `KeyboardInterrupt` becomes a `RuntimeError`.

    In a task of asyncio's those two end the loop, and with it every request of the process: what would end
    a program ends only the task.
    """

    __slots__ = ("_work",)

    def __init__(self, work: Coroutine[Any, Any, T]) -> None:
        self._work = work

    def send(self, value: Any) -> Any:
        """One step."""
        try:
            return self._work.send(value)
        except ENDS_PROGRAMS as exc:
            raise contained_error(exc) from exc

    def throw(self, *error: Any) -> Any:
        """One step, with an error."""
        try:
            return self._work.throw(*error)
        except ENDS_PROGRAMS as exc:
            raise contained_error(exc) from exc

    def close(self) -> None:
        """End it."""
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._work.__await__()

    def __getattr__(self, name: str) -> Any:  # for those who look into a coroutine to describe its task
        return getattr(self._work, name)


ENDS_PROGRAMS = (SystemExit, KeyboardInterrupt)


def contained_error(exc: BaseException) -> RuntimeError:
    """What stands for an exception that would end a program."""
    return RuntimeError(f"{type(exc).__name__} was raised where it may not end the process: {exc}")


class TaskOwner:
    """Collects the tasks that are created in its context and have not ended."""

    __slots__ = ("tasks",)

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] | None = None

    def own_what_follows(self) -> contextvars.Token[TaskOwner | None]:
        """From here on, tasks created in this context, and in theirs, are this owner's."""
        return _owner.set(self)

    @staticmethod
    def own_no_more(token: contextvars.Token[TaskOwner | None]) -> None:
        """Undo `own_what_follows`."""
        try:
            _owner.reset(token)
        except ValueError:
            pass  # an abandoned handler that is collected as garbage: its context is gone as well

    def add(self, task: asyncio.Task[Any]) -> None:
        """Called by the task factory."""
        if self.tasks is None:
            self.tasks = set()
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


@contextmanager
def outliving_request() -> Iterator[None]:
    """Tasks created inside belong to no request: their owner is whoever starts them."""
    token = _owner.set(None)
    try:
        yield
    finally:
        _owner.reset(token)


def unowned_task(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Run `work` as a task that belongs to no request, and neither do the tasks that it starts."""
    context = contextvars.copy_context()
    context.run(_owner.set, None)
    return asyncio.Task(Contained(work), loop=asyncio.get_running_loop(), name=name, context=context)


def watch_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Have `loop` tell owners of their tasks, and contain what would end the process. Tasks made without the
    loop's factory are not seen."""

    def factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(Contained(coro), loop=loop, **options)
        owner = _owner.get()
        if owner is not None:
            owner.add(task)
        return task

    loop.set_task_factory(factory)  # type: ignore[arg-type]
