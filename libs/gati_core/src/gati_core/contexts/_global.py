"""The global context: what all requests of one worker process share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from gati_core.errors import RegistrationError
from gati_core.fabric import Entry


class Bucket(Protocol):
    """A durable key-value bucket, as `gctx.buckets[name]` gives it."""

    async def get(self, key: str) -> Entry | None:
        """The key's value and revision, or None."""

    async def put(self, key: str, value: bytes, *, ttl_s: int = 0) -> int:
        """Write whatever is there; returns the revision."""

    async def create(self, key: str, value: bytes, *, ttl_s: int = 0) -> int:
        """Write only if the key does not exist; `KeyConflict` otherwise."""

    async def update(self, key: str, value: bytes, *, revision: int, ttl_s: int = 0) -> int:
        """Write only if the revision is still this one; `KeyConflict` otherwise."""

    async def delete(self, key: str) -> None:
        """Remove the key."""

    async def keys(self) -> list[str]:
        """All keys; reads the whole bucket."""


class Instance(msgspec.Struct, frozen=True):
    """Which process this is."""

    id: str
    app: str
    pool: str
    host: str
    started_ms: int


class _Buckets(Mapping[str, Bucket]):
    def __init__(self, buckets: Mapping[str, Bucket]) -> None:
        self._buckets = dict(buckets)

    def __getitem__(self, name: str) -> Bucket:
        try:
            return self._buckets[name]
        except KeyError:
            known = ", ".join(sorted(self._buckets)) or "none"
            raise RegistrationError(
                f"bucket {name!r} is not declared (declared: {known}); add app.bucket({name!r})"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._buckets

    def __iter__(self) -> Any:
        return iter(self._buckets)

    def __len__(self) -> int:
        return len(self._buckets)


class GlobalContext:
    """Given to a handler as `gctx`."""

    __slots__ = ("buckets", "config", "instance")

    def __init__(
        self,
        instance: Instance,
        *,
        buckets: Mapping[str, Bucket] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.instance = instance
        self.buckets: Mapping[str, Bucket] = _Buckets(buckets or {})
        self.config: Mapping[str, Any] = MappingProxyType(dict(config or {}))
