"""`gati trace`: what happened to one traced request, in order, with durations."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from gati_cli._errors import CliError
from gati_cli.routes import no_fabric
from gati_cli.target import Target, with_fabric
from gati_core.errors import MalformedMessage, RegistrationError, TopologyError
from gati_core.fabric import Fabric, stream_state
from gati_core.fabric.inspection import read_subject
from gati_core.fabric.topology import TRACE_MAX_AGE_S
from gati_core.wire import TraceRecord, decode_trace
from gati_core.wire.subjects import token

MAX_RECORDS = 20_000
"""Printed at most; one run of a request emits no more than half of it."""
_HOW_TO = "send it with the header `x-gati-flags: trace`"


class Line(NamedTuple):
    """One event as it is shown."""

    depth: int
    record: TraceRecord


def show_trace(target: Target, request_id: str, *, as_json: bool) -> None:
    """Print the events of one request.

    Raises:
        CliError: there are none; says why that may be.
    """
    try:
        token(request_id, "request id")
    except RegistrationError as exc:
        raise CliError(str(exc), exit_code=2) from exc
    records, malformed = with_fabric(target, lambda fabric: _read(fabric, target, request_id))
    for reason in malformed:
        print(f"gati: left out: {reason}", file=sys.stderr)
    if not records:
        raise CliError(_nothing(request_id))
    if as_json:
        documents = [msgspec.structs.asdict(record) for record in records]
        print(msgspec.json.format(msgspec.json.encode(documents), indent=2).decode())
    else:
        print("\n".join(render(records)))
    if len(records) + len(malformed) == MAX_RECORDS:
        print(f"gati: only the first {MAX_RECORDS} events are shown", file=sys.stderr)


def _nothing(request_id: str) -> str:
    minutes = int(TRACE_MAX_AGE_S // 60)
    return (
        f"no events of request {request_id}: only traced requests leave any, for {minutes} minutes."
        f" To trace one, {_HOW_TO} and take its id from the answer's x-request-id"
    )


async def _read(fabric: Fabric, target: Target, request_id: str) -> tuple[list[TraceRecord], list[str]]:
    subjects = fabric.subjects
    subject = subjects.trace(request_id)
    try:
        found = await read_subject(fabric.connection, subjects.trace_stream, subject, limit=MAX_RECORDS)
    except TopologyError as exc:
        try:
            await stream_state(fabric.connection, subjects.req_stream)
        except TopologyError:
            raise CliError(no_fabric(target)) from exc
        raise CliError(f"{exc}: start any gati service once with GATI_FABRIC_TOPOLOGY=apply") from exc
    records, malformed = [], []
    for data in found:
        try:
            records.append(decode_trace(data, subject=subject))
        except MalformedMessage as exc:
            malformed.append(str(exc))
    return records, malformed


def runs(records: Sequence[TraceRecord]) -> Iterator[list[TraceRecord]]:
    """The records by run, in the order in which the runs began: a redelivered request has several.

    A run is what one instance did, counted from 1; the counts of two runs on one instance do not rise.
    """
    found: list[list[TraceRecord]] = []
    current: dict[tuple[str, str], list[TraceRecord]] = {}
    for record in records:
        key = (record.source, record.instance)
        run = current.get(key)
        if run is None or record.seq <= run[-1].seq:
            run = current[key] = []
            found.append(run)
        run.append(record)
    yield from found


def nested(run: Sequence[TraceRecord]) -> Iterator[Line]:
    """Each event of one run with its depth: inside the stages that have begun and not ended.

    A detached hook runs beside everything else, so what comes after its start is not inside it.
    """
    open_stages: list[tuple[str, str]] = []
    for record in run:
        what, _, step = record.event.partition(":")
        stage = (what, record.stage)
        is_beside = bool(record.metadata.get("detached"))
        if step in ("end", "error") and stage in open_stages and not is_beside:
            del open_stages[len(open_stages) - 1 - open_stages[::-1].index(stage) :]
        yield Line(len(open_stages), record)
        if step == "start" and not is_beside:
            open_stages.append(stage)


def render(records: Sequence[TraceRecord]) -> list[str]:
    """The lines for people."""
    lines = [f"request {records[0].request_id}"]
    began_us = min(record.at_us for record in records)
    for number, run in enumerate(runs(records), 1):
        heading = f"{run[0].source} {run[0].instance}"
        lines += [f"{heading}, run {number}" if number > 1 else heading, f"{'at ms':>11}  {'took ms':>9}  event"]
        for depth, record in nested(run):
            took = f"{record.duration_us / 1000:.3f}" if record.duration_us >= 0 else ""
            text = "  " * depth + _printable(f"{record.event} {record.stage}".rstrip())
            facts = [f"{name}={value}" for name, value in record.metadata.items() if name != "action_id"]
            if record.error:
                facts.append(f"error: {record.error}")
            at_ms = (record.at_us - began_us) / 1000
            lines.append(f"{at_ms:>11.3f}  {took:>9}  {text:<40}  {_printable(' '.join(facts))}".rstrip())
    return lines


def _printable(text: str) -> str:
    """One line, without what would move the cursor of a terminal."""
    return "".join(each if each.isprintable() else " " for each in text)
