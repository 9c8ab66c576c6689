"""The one helper that may poll: everything else waits on events or on the broker's own counters."""

from __future__ import annotations

from gati_testing import eventually

__all__ = ["eventually"]
