"""Plain counters of one router: requests add to integers, and whoever wants to know reads them."""

from __future__ import annotations

import msgspec

_MAX_SERIES = 2000


class RouterStats(msgspec.Struct):
    """What became of requests; read by the heartbeat, metrics and tests."""

    received: int = 0
    routed: int = 0
    expired: int = 0
    cancelled: int = 0
    refused: int = 0
    dead: int = 0
    naked: int = 0
    parked: int = 0


class Decisions:
    """Requests by what was asked for."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str, str, str], int] = {}
        """By app, handler, TSV and source; all that is too much under `other`."""

    def add(self, app: str, handler: str, tsv: str, source: str) -> None:
        """Count a request."""
        key = (app, handler, tsv, source)
        known = self.counts.get(key)
        if known is None and len(self.counts) >= _MAX_SERIES:
            key = ("", "other", "other", source)
            known = self.counts.get(key)
        self.counts[key] = (known or 0) + 1
