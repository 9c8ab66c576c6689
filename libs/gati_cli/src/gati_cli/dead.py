"""`gati dead`: what was given up, why, and another try."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from gati_cli._errors import CliError
from gati_cli.routes import no_fabric
from gati_cli.target import Target, with_fabric
from gati_core.errors import GatiError, MalformedMessage, RequestError, TopologyError
from gati_core.fabric import DeadLetter, Fabric, stream_state
from gati_core.wire import decode_descriptor, decode_topic, decode_work, to_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    T = TypeVar("T")

_HEX_BYTES = 1024


def list_dead(target: Target, *, limit: int, as_json: bool) -> None:
    """Print the newest dead letters."""

    async def read(fabric: Fabric) -> tuple[int, list[DeadLetter]]:
        count = (await stream_state(fabric.connection, fabric.subjects.dead_stream)).messages
        return count, await fabric.dead_letters.newest(limit)

    count, letters = _run(target, read)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(letters), indent=2).decode())
        return
    if not letters:
        print("no dead letters")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("NUMBER", "TIME", "STAGE", "POOL", "ATTEMPTS", "CODE", "CAUSE"):
        table.add_column(column, overflow="fold", no_wrap=column in ("NUMBER", "TIME", "STAGE"))
    for letter in letters:
        cells = (letter.time[:19], letter.stage, letter.pool, str(letter.attempts), letter.code, letter.cause)
        table.add_row(str(letter.sequence), *(escape(cell) for cell in cells))
    console.print(table)
    if count > len(letters):
        print(f"{len(letters)} of {count}; --limit shows more")


def show_dead(target: Target, number: int) -> None:
    """Print one dead letter with its message."""
    letter = _run(target, lambda fabric: fabric.dead_letters.get(number))
    print(f"dead letter {letter.sequence}")
    for name, value in (
        ("time", letter.time),
        ("stage", letter.stage),
        ("group" if letter.stage == "topic" else "pool", letter.pool),
        ("subject", letter.subject),
        ("request id", letter.request_id),
        ("attempts", letter.attempts),
        ("code", letter.code),
        ("cause", letter.cause),
    ):
        print(f"  {name + ':':<12} {value}")
    if letter.headers:
        print("headers")
        for name, value in sorted(letter.headers.items()):
            print(f"  {name}: {value}")
    print(f"message ({len(letter.data)} bytes)")
    print(readable(letter))


def readable(letter: DeadLetter) -> str:
    """The message decoded, or as hexadecimal when it is none of ours."""
    try:
        if letter.stage == "work":
            return to_json(decode_work(letter.data, subject=letter.subject)).decode()
        if letter.stage == "req":
            return to_json(decode_descriptor(letter.data, subject=letter.subject)).decode()
        if letter.stage == "topic":
            return _readable_event(letter)
    except MalformedMessage as exc:
        return f"  not readable: {exc}\n{hex_dump(letter.data)}"
    return hex_dump(letter.data)


def _readable_event(letter: DeadLetter) -> str:
    event = decode_topic(letter.data, subject=letter.subject)
    document = msgspec.structs.asdict(event)
    try:
        document["payload"] = msgspec.msgpack.decode(event.payload)
        return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
        document["payload"] = event.payload.hex()  # it has something that JSON has not
        return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def hex_dump(data: bytes) -> str:
    """Sixteen bytes a line, as numbers and as text; at most 1 KiB.

    >>> print(hex_dump(b"{}?"))
      00000000  7b 7d 3f                                         {}?
    """
    lines = []
    for start in range(0, min(len(data), _HEX_BYTES), 16):
        part = data[start : start + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"  {start:08x}  {part.hex(' '):<47}  {text}")
    if len(data) > _HEX_BYTES:
        lines.append(f"  … {len(data) - _HEX_BYTES} more bytes")
    return "\n".join(lines) or "  (empty)"


def requeue_dead(target: Target, numbers: list[int], *, everything: bool) -> None:
    """Run dead letters again: requests under new ids, events for the group that gave them up.

    Raises:
        CliError: at least one could not be requeued; the others were.
    """

    async def requeue(fabric: Fabric) -> tuple[list[tuple[int, str]], list[str]]:
        done, failed = [], []
        wanted = numbers
        if everything:
            count = (await stream_state(fabric.connection, fabric.subjects.dead_stream)).messages
            wanted = sorted(letter.sequence for letter in await fabric.dead_letters.newest(count))
        for number in wanted:
            try:
                done.append((number, await _requeue(fabric, number)))
            except MalformedMessage as exc:
                failed.append(f"dead letter {number} holds no request that could run again: {exc}")
            except RequestError as exc:
                failed.append(str(exc))
            except GatiError as exc:
                failed.append(f"dead letter {number}: {exc}")
        return done, failed

    done, failed = _run(target, requeue)
    for number, what in done:
        print(f"requeued dead letter {number} {what}")
    if everything and not done and not failed:
        print("no dead letters")
    if len(failed) == 1:
        raise CliError(failed[0])
    for reason in failed:
        print(f"gati: {reason}", file=sys.stderr)
    if failed:
        raise CliError(f"{len(failed)} dead letters were not requeued")


async def _requeue(fabric: Fabric, number: int) -> str:
    """Run one again; says as what."""
    if (await fabric.dead_letters.get(number)).stage == "topic":
        app, _, group = (await fabric.dead_letters.requeue_event(number)).partition("~")
        return f"for group {group} of app {app}"
    return f"as request {await fabric.dead_letters.requeue(number)}"


def _run(target: Target, work: Callable[[Fabric], Awaitable[T]]) -> T:
    async def checked(fabric: Fabric) -> T:
        await stream_state(fabric.connection, fabric.subjects.dead_stream)
        return await work(fabric)

    try:
        return with_fabric(target, checked)
    except TopologyError as exc:
        raise CliError(no_fabric(target)) from exc
    except RequestError as exc:
        raise CliError(f"{exc} (gati dead list shows those there are)") from exc
