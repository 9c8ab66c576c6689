"""The name of one version of one handler: `tsv:<unix seconds>-<handler>-<sequence>`."""

from __future__ import annotations

import re
from typing import NamedTuple

from gati_core.errors import InvalidVersion

_TSV = re.compile(r"tsv:(?P<seconds>\d{1,12})-(?P<handler>[A-Za-z0-9_-]+)-(?P<sequence>\d{1,9})", re.ASCII)


class Tsv(NamedTuple):
    """A version's name, taken apart. Sorts by time, then by sequence."""

    seconds: int
    """Unix time at which it was registered."""
    sequence: int
    """Counts the versions of its handler from 1."""
    handler: str

    def __str__(self) -> str:
        return f"tsv:{self.seconds}-{self.handler}-{self.sequence:03d}"


def parse_tsv(text: str) -> Tsv:
    """The parts of a TSV. The handler's name may contain dashes.

    Raises:
        InvalidVersion: it is none.

    >>> parse_tsv("tsv:1732186200-place-order-042")
    Tsv(seconds=1732186200, sequence=42, handler='place-order')
    """
    found = _TSV.fullmatch(text)
    if found is None:
        raise InvalidVersion(f"{text[:100]!r} is no version: expected tsv:<unix seconds>-<handler>-<sequence>")
    return Tsv(int(found["seconds"]), int(found["sequence"]), found["handler"])


def is_tsv(text: str) -> bool:
    """Whether `parse_tsv` can read it."""
    return _TSV.fullmatch(text) is not None
