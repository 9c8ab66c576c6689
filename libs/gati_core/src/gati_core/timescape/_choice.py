"""Which version a request means, and which code runs for it. Pure: no I/O, no clock.

`Versions` is made from one handler's timeline and from what lives, and is never changed after that; whoever
routes makes another when either changes. Whatever it has worked out is kept, so that a request costs a lookup.

| situation | what runs | transformed |
|---|---|---|
| no version asked for | the newest active version that lives, or the rollout's choice | no |
| an old one, and a chain leads from it to the newest | the newest | the request forward, the answer back |
| an old one, no chain, and it lives | itself | no |
| an old one, no chain, it does not live, and no change up to a living one is breaking | that one | no |
| an active one that does not live, and an older one takes its clients | the older one | no |
| an active one that does not live, and none of that holds | nothing, for now: it may come | |
| a deactivated one, and none of that holds | nothing | |

A chain is complete when each change on the way is either not breaking or has a transformer that the package of the
version at its end brings along, and at least one has.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from functools import partial
from itertools import pairwise
from typing import Generic, Literal, TypeVar

from gati_core.errors import TagNotFound, VersionNotFound
from gati_core.timescape._preference import LABEL, Semver, read_preference, read_semver
from gati_core.timescape._rollout import Rollout, is_chosen, share_of
from gati_core.timescape._timeline import Timeline, VersionRecord

T = TypeVar("T")

Source = Literal["query", "header", "tag", "timestamp", "latest"]
FROM_QUERY = "?"
"""Begins a preference in a descriptor that came in the query; the rest is verbatim."""
MAX_HOPS = 10
"""Transformers that one request may need."""
_CACHED = 1000
_TOLD = 20


class Choice(Generic[T]):
    """What runs for a request."""

    __slots__ = ("fallback", "hops", "manifest_hash", "resolved", "source", "target", "tsv", "version_headers")

    def __init__(
        self,
        *,
        source: Source,
        resolved: VersionRecord,
        runs: VersionRecord,
        target: T | None,
        hops: tuple[str, ...] = (),
        fallback: T | None = None,
    ) -> None:
        self.source = source
        """What decided."""
        self.resolved = resolved
        """The version that the client gets."""
        self.tsv = runs.tsv
        """The version that runs."""
        self.manifest_hash = runs.hash
        self.target = target
        """Where it runs; None while nothing lives that could."""
        self.hops = hops
        """The versions on the way from the resolved to the running one, both included, where there are transformers."""
        self.fallback = fallback
        """Where the resolved version itself runs, for a transformer that fails."""
        self.version_headers = _version_headers(resolved, source, runs.tsv)
        """What the answer tells the client of it."""


def _version_headers(resolved: VersionRecord, source: Source, runs: str) -> list[tuple[str, str]]:
    if not resolved.tsv:
        return []
    headers = [("x-gati-version", resolved.tsv), ("x-gati-version-source", source)]
    if runs != resolved.tsv:
        headers.append(("x-gati-handler-version", runs))
    if resolved.deprecated_s:
        headers.append(("deprecation", f"@{resolved.deprecated_s}"))  # RFC 9745
    if resolved.sunset_s:
        headers.append(("sunset", formatdate(resolved.sunset_s, usegmt=True)))  # RFC 8594
    return headers


class Versions(Generic[T]):
    """See the module.

    Args:
        targets: by fingerprint, what lives and is healthy.
        transforms: whether the handler's requests can be transformed (not those of WebSockets).
        max_hops: transformers that one request may need.
    """

    def __init__(
        self,
        timeline: Timeline,
        targets: Mapping[str, T],
        rollout: Rollout | None = None,
        *,
        transforms: bool = True,
        max_hops: int = MAX_HOPS,
    ) -> None:
        self.timeline = timeline
        self._versions = timeline.versions
        self._targets = targets
        self._transforms = transforms
        self._max_hops = max_hops
        self._seconds = [each.order.seconds for each in self._versions]
        self._index = {each.tsv: index for index, each in enumerate(self._versions)}
        self._tags = {tag.label: self._index[tag.tsv] for tag in timeline.tags if tag.tsv in self._index}
        self._known: dict[str, Choice[T]] = {}
        self._rollout = rollout if rollout is not None and rollout.strategy != "all" else None
        self._settled = self._settle()
        self.latest: Choice[T] | None = None if self._rollout else self._settled
        """For requests that ask for no version; None where the caller decides (`latest_for`), or nothing is active."""

    def __len__(self) -> int:
        return len(self._versions)

    @property
    def tells_callers_apart(self) -> bool:
        """Whether who asks for no version gets one that depends on who asks."""
        return self._rollout is not None

    # -- no version asked for -----------------------------------------------------------------------

    def latest_for(self, key: str) -> Choice[T]:
        """For a request that asks for no version.

        Args:
            key: who calls; the same key gets the same version as long as the rollout does not change.
        Raises:
            VersionNotFound: no version is active.
        """
        rollout = self._rollout
        if rollout is not None:
            for name in self._rolled(rollout, key):
                index = self._named(name)
                if index is not None and self._runs(index) is not None:
                    return self._known_or(f"\0{index}", partial(self._itself, index, "latest"))
        if self._settled is None:
            raise VersionNotFound(f"{self._what} has no active version", available=self.available())
        return self._settled

    def newest_that(self, listens: Callable[[VersionRecord], bool]) -> Choice[T] | None:
        """The newest active version of some, and rather one that runs; None where none of them is active."""
        found = [
            index
            for index in range(len(self._versions) - 1, -1, -1)
            if self._versions[index].is_active and listens(self._versions[index])
        ]
        for index in found:
            if self._runs(index) is not None:
                return self._itself(index, "latest")
        return self._itself(found[0], "latest") if found else None

    @staticmethod
    def _rolled(rollout: Rollout, key: str) -> Iterable[str]:
        """Versions in the order in which they are tried."""
        if rollout.strategy == "pin":
            return (rollout.version,)
        if rollout.strategy == "canary":
            if is_chosen(key, rollout.version, rollout.percent):
                return (rollout.version, rollout.baseline)
            return (rollout.baseline,)
        place = share_of(key, "weights")
        for name in sorted(rollout.weights):
            place -= round(rollout.weights[name] * 100)
            if place < 0:
                return (name,)
        return ()

    def _settle(self) -> Choice[T] | None:
        """What those get whom no rollout decides for: the newest that lives, or the newest there is."""
        active = [index for index in range(len(self._versions) - 1, -1, -1) if self._versions[index].is_active]
        rollout = self._rollout
        if rollout is not None and rollout.strategy in ("pin", "canary"):
            # A canary's callers are chosen one by one; whoever comes by another way is none of them.
            named = self._named(rollout.version if rollout.strategy == "pin" else rollout.baseline)
            active = active if named is None else [named, *active]
        for index in active:
            if self._runs(index) is not None:
                return self._itself(index, "latest")
        return self._itself(active[0], "latest") if active else None

    # -- a version asked for ------------------------------------------------------------------------

    def choose(self, preference: str) -> Choice[T]:
        """For a request that asks for a version.

        Args:
            preference: verbatim, after `FROM_QUERY` where it came in the query.
        Raises:
            InvalidVersion, InvalidTimestamp: it is of no known form.
            VersionNotFound, TagNotFound: the handler has no such version, or none that could run.
        """
        return self._known.get(preference) or self._known_or(preference, partial(self._choose, preference))

    def resolve(self, preference: str) -> tuple[VersionRecord, Source]:
        """The version that a preference means, whether it can run or not; errors as `choose`."""
        text = preference.removeprefix(FROM_QUERY)
        source: Source = "query" if preference.startswith(FROM_QUERY) else "header"
        index = self._tags.get(text)
        if index is not None:
            return self._versions[index], "tag"
        asked = read_preference(text)
        if asked.kind == "timestamp":
            index = bisect_right(self._seconds, asked.seconds) - 1
            if index < 0:
                raise VersionNotFound(f"{self._what} had no version yet at {text}", available=self.available())
            return self._versions[index], "timestamp"
        if asked.kind == "tsv":
            index = self._index.get(text)
            if index is None:
                raise VersionNotFound(f"{self._what} has no version {text}", available=self.available())
            return self._versions[index], source
        index = self._semantic(text)
        if index is None:
            raise TagNotFound(f"{self._what} has no version with the tag {text!r}", available=self.available())
        return self._versions[index], "tag"

    def available(self) -> list[str]:
        """What a client may ask for: tags, then active versions, newest first; at most 20 of each."""
        tags = sorted(label for label, index in self._tags.items() if self._versions[index].is_active)
        active = [each.tsv for each in reversed(self._versions) if each.is_active]
        return [*tags[:_TOLD], *active[:_TOLD]]

    def _semantic(self, text: str) -> int | None:
        """`1.2.0` for the tag `v1.2.0`; `v1` and `1.2` for the highest release that begins so."""
        asked = read_semver(text)
        if asked is None:
            return None
        found: list[tuple[Semver, int]] = []
        for label, index in self._tags.items():
            known = read_semver(label)
            if known is None or not known.is_whole or not self._versions[index].is_active:
                continue
            if known == asked or (
                not asked.is_whole and not known.pre and known.numbers[: len(asked.numbers)] == asked.numbers
            ):
                found.append((known, index))
        return max(found, key=lambda each: (each[0].order, each[1]))[1] if found else None

    def _named(self, name: str) -> int | None:
        index = self._tags.get(name)
        return self._index.get(name) if index is None else index

    # -- which code runs ----------------------------------------------------------------------------

    def _choose(self, preference: str) -> Choice[T]:
        resolved, source = self.resolve(preference)
        at = self._index[resolved.tsv]
        preferred = self._settled.tsv if self._settled is not None else ""
        newest = max(self._index.get(preferred, at), at)
        for end in range(newest, at, -1):  # the newest first that a chain leads to
            target = self._runs(end)
            hops = self._chain(at, end) if target is not None else ()
            if hops:
                return Choice(
                    source=source,
                    resolved=resolved,
                    runs=self._versions[end],
                    target=target,
                    hops=hops,
                    fallback=self._runs(at),
                )
        if self._runs(at) is not None:
            return self._itself(at, source)
        for end in (*range(newest, at, -1), *range(at - 1, -1, -1)):
            if self._runs(end) is not None and self._is_compatible(at, end):
                return Choice(source=source, resolved=resolved, runs=self._versions[end], target=self._runs(end))
        if resolved.is_active:
            return Choice(source=source, resolved=resolved, runs=resolved, target=None)
        raise VersionNotFound(
            f"{self._what} of version {resolved.tsv} does not run any more, and no other takes its clients",
            available=self.available(),
        )

    def _runs(self, index: int) -> T | None:
        version = self._versions[index]
        return self._targets.get(version.fingerprint) if version.is_active else None

    def _itself(self, index: int, source: Source) -> Choice[T]:
        version = self._versions[index]
        return Choice(source=source, resolved=version, runs=version, target=self._runs(index))

    def _chain(self, start: int, end: int) -> tuple[str, ...]:
        """The versions on the way, if the package of the last one can transform from the first; else none."""
        way = self._way(start, end) if self._transforms else []
        brought = self._versions[end].transforms
        steps = 0
        for older, newer in pairwise(way):
            if self._versions[older].tsv in brought:
                steps += 1
            elif self._versions[newer].breaking:
                return ()
        if not 0 < steps <= self._max_hops:
            return ()
        return tuple(self._versions[index].tsv for index in way)

    def _is_compatible(self, start: int, end: int) -> bool:
        """Whether clients of one version can use the other without a transformer."""
        way = self._way(min(start, end), max(start, end))
        if start < end:
            return bool(way) and not any(self._versions[index].breaking for index in way[1:])
        return bool(way) and not any(self._versions[index].breaking_back for index in way[1:])

    def _way(self, start: int, end: int) -> list[int]:
        """From a version to one that came after it, each compared with the one before; none where it was passed
        over, as one that was deactivated when the next one came."""
        way = [end]
        while way[-1] > start:
            parent = self._index.get(self._versions[way[-1]].parent)
            if parent is None or parent >= way[-1]:
                return []
            way.append(parent)
        return way[::-1] if way[-1] == start else []

    def _known_or(self, key: str, make: Callable[[], Choice[T]]) -> Choice[T]:
        choice = self._known.get(key)
        if choice is None:
            choice = make()
            if len(self._known) >= _CACHED:
                del self._known[next(iter(self._known))]
            self._known[key] = choice
        return choice

    @property
    def _what(self) -> str:
        return f"handler {self.timeline.handler}"


__all__ = ["FROM_QUERY", "LABEL", "MAX_HOPS", "Choice", "Source", "Versions"]
