"""What several commands share: where they run, and options with the same meaning everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True)
class Surroundings:
    """Where the command runs; read once in `__main__`."""

    environ: dict[str, str]
    directory: Path


NatsUrl = Annotated[
    str,
    typer.Option(
        "--nats-url",
        metavar="URL",
        help="The broker. Otherwise GATI_NATS_URL, the `gati dev` of this directory, or nats://127.0.0.1:4222.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
