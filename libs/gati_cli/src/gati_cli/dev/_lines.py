"""What the services log, turned into lines for the person at the terminal. Pure."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

Event = dict[str, Any]

_STYLES = {"warning": "yellow", "error": "red", "critical": "red"}
_SHOWN_LEVELS = frozenset(_STYLES)
_ENVELOPE = ("event", "level", "timestamp", "service", "exception")


class Line(NamedTuple):
    """One line and its rich style."""

    text: str
    style: str = ""


def parse_event(line: str) -> Event | None:
    """A structured log line, or None for anything else that a process prints."""
    if not line.startswith("{"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) and "level" in event else None


def failure(event: Event, *, directory: Path) -> list[Line]:
    """Why a package could not be loaded: file, line, the line's text, the error."""
    where = short_path(str(event.get("where", "")), directory)
    lines = [Line(f"{event.get('app')} could not be loaded" + (f": {where}" if where else ""), "bold red")]
    excerpt = str(event.get("exception", "")).rstrip()
    if excerpt.strip():
        lines += [Line(f"    {text.strip()}") for text in excerpt.splitlines()]
    lines += [Line(f"  {text}", "red") for text in str(event.get("error", "")).splitlines()]
    return lines


def plain(event: Event) -> list[Line]:
    """Any other event; nothing for those that only say that all is well."""
    level = str(event["level"])
    if level not in _SHOWN_LEVELS and level != "debug":
        return []
    fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in _ENVELOPE)
    at = str(event.get("timestamp", ""))[11:19]
    text = f"{at} {event.get('service', '')} {level} {event['event']}" + (f"  {fields}" if fields else "")
    trace = str(event.get("exception", "")).rstrip()
    return [Line(text.strip(), _STYLES.get(level, "dim")), *(Line(f"    {each}") for each in trace.splitlines())]


def short_path(path: str, directory: Path) -> str:
    """`path` from `directory` on, where it lies inside."""
    inside = os.path.relpath(path, directory) if os.path.isabs(path) else path
    return path if inside.startswith("..") else inside
