"""Log lines: JSON for machines, one readable line for people."""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from gati_core.observe import set_up_logging

SetUp = Callable[..., io.StringIO]


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[SetUp]:
    """`set_up_logging` on a stream of the test's own; what it configured is undone."""
    before = structlog.get_config()

    def set_up(**options: Any) -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        set_up_logging(service="gati-test", **options)
        return stream

    yield set_up
    structlog.contextvars.clear_contextvars()
    structlog.configure(**before)


def _json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def _fail() -> None:
    raise ValueError("no luck")


def test_a_json_line_has_event_level_service_time_and_fields(set_up: SetUp) -> None:
    stream = set_up()

    structlog.get_logger("x").warning("delivery_naked", attempt=2, subject="gati.work")

    (line,) = _json_lines(stream)
    assert dt.datetime.fromisoformat(line.pop("timestamp")).tzinfo == dt.UTC
    assert line == {
        "event": "delivery_naked",
        "level": "warning",
        "service": "gati-test",
        "attempt": 2,
        "subject": "gati.work",
    }


def test_every_event_is_one_line_whatever_its_text(set_up: SetUp) -> None:
    stream = set_up()

    structlog.get_logger("x").info("two\nlines", text="a\r\nb", odd=object(), raw=b"\xff", name="世")

    assert len(stream.getvalue().splitlines()) == 1
    assert (_json_lines(stream)[0]["event"], _json_lines(stream)[0]["text"]) == ("two\nlines", "a\r\nb")


def test_an_exception_is_in_the_line_with_its_stack(set_up: SetUp) -> None:
    stream = set_up()

    try:
        _fail()
    except ValueError as exc:
        structlog.get_logger("x").error("work_failed", exc_info=exc)

    (line,) = _json_lines(stream)
    assert "ValueError: no luck" in line["exception"]
    assert "_fail" in line["exception"]


def test_bound_fields_are_in_every_line(set_up: SetUp) -> None:
    stream = set_up()

    with structlog.contextvars.bound_contextvars(request_id="r-1"):
        structlog.get_logger("x").info("one")
        structlog.get_logger("y").info("two")
    structlog.get_logger("x").info("three")

    assert [line.get("request_id") for line in _json_lines(stream)] == ["r-1", "r-1", None]


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_events_below_the_level_are_not_written(set_up: SetUp, level: str, written: list[str]) -> None:
    stream = set_up(level=level)

    for each in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger("x"), each)("something_happened")

    assert [line["level"] for line in _json_lines(stream)] == written


def test_a_console_line_is_for_reading(set_up: SetUp) -> None:
    stream = set_up(log_format="console")

    structlog.get_logger("x").info("worker_ready", pool="shop-1", handlers=3)

    time, rest = stream.getvalue().rstrip("\n").split(" ", 1)
    assert dt.time.fromisoformat(time)
    assert rest == "info    worker_ready  pool=shop-1 handlers=3"


def test_a_console_line_without_fields_ends_with_its_event(set_up: SetUp) -> None:
    stream = set_up(log_format="console")

    structlog.get_logger("x").warning("worker_lost")

    assert stream.getvalue().endswith(" warning worker_lost\n")


def test_a_console_line_is_followed_by_the_stack(set_up: SetUp) -> None:
    stream = set_up(log_format="console")

    try:
        _fail()
    except ValueError as exc:
        structlog.get_logger("x").error("work_failed", pool="p", exc_info=exc)

    first, *stack = stream.getvalue().splitlines()
    assert first.endswith(" error   work_failed  pool=p")
    assert (stack[0], stack[-1]) == ("Traceback (most recent call last):", "ValueError: no luck")


@pytest.mark.parametrize(("level", "written"), [("debug", ["careful", "broken"]), ("error", ["broken"])])
def test_loggers_of_libraries_write_warnings_and_above_to_standard_error(level: str, written: list[str]) -> None:
    code = (
        "import logging\n"
        "from gati_core.observe import set_up_logging\n"
        f"set_up_logging(service='x', level={level!r})\n"
        "log = logging.getLogger('some.library')\n"
        "log.info('chatter'); log.warning('careful'); log.error('broken')\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)

    assert [line.rpartition(": ")[2] for line in done.stderr.splitlines()] == written
    assert done.stdout == ""
    assert logging.getLogger("some.library").level == logging.NOTSET
