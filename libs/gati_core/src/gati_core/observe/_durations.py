"""How long something took, counted in buckets: nothing but integers, so that requests may pay for it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec


class Durations(msgspec.Struct):
    """A histogram. `bounds` are the upper ends of its buckets in seconds, lowest first; one more is above them all."""

    bounds: tuple[float, ...]
    counts: list[int] = []
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.counts:
            self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    def merge(self, other: Durations) -> None:
        """Count all that another of the same bounds has counted."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds

    @property
    def cumulative(self) -> list[tuple[str, float]]:
        """Each bound, and how many were at most that, as Prometheus wants them."""
        return cumulative(self.bounds, self.counts)


def cumulative(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """See `Durations.cumulative`."""
    pairs = []
    sum_ = 0
    for bound, number in zip([*map(str, bounds), "+Inf"], counts, strict=True):
        sum_ += number
        pairs.append((bound, float(sum_)))
    return pairs
