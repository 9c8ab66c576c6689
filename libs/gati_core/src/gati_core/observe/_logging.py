"""structlog, set up once per process: JSON lines for machines, one readable line for people."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog

LogFormat = Literal["json", "console"]


def set_up_logging(*, service: str, level: str = "info", log_format: LogFormat = "json") -> None:
    """Send structlog and the standard library's loggers to standard error.

    Args:
        service: added to every JSON line as `service`.
        level: `debug`, `info`, `warning` or `error`.
        log_format: `json` for one JSON object a line, `console` for people.
    """
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)

    def add_service(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
        event["service"] = service
        return event

    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        processors += [add_service, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors += [structlog.processors.format_exc_info, _render_console]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        level=max(number, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )


def _render_console(_: Any, __: str, event: dict[str, Any]) -> str:
    time = str(event.pop("timestamp", ""))[11:19]
    level = str(event.pop("level", ""))
    name = str(event.pop("event", ""))
    trace = event.pop("exception", "")
    fields = " ".join(f"{key}={value}" for key, value in event.items())
    line = f"{time} {level:<7} {name}" + (f"  {fields}" if fields else "")
    return f"{line}\n{trace}" if trace else line
