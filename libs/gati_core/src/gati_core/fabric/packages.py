"""Published packages, and whatever else is stored whole: it comes back as it was, or an error says so.

The layout is that of NATS object stores, so `nats object ls` shows them. nats-py's own reading and writing is
not used: it waits for ever for chunks that are gone, lets the last of two writers win, and leaves chunks behind
when it is cancelled.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread
import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.js import JetStreamContext

from gati_core.errors import AlreadyStored, BrokerUnavailable, PackageError, PermanentError, TopologyError
from gati_core.fabric.connection import Connection
from gati_core.ids import new_instance_id

log = structlog.get_logger(__name__)

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

MAX_PACKAGE_BYTES = 64 * 1024 * 1024
_CHUNK_BYTES = 128 * 1024
_TIMEOUT_S = 10.0
_WRONG_LAST_SEQUENCE = 10071
_STREAM_NOT_FOUND = 10059
_DIGEST = "SHA-256="


class PackageLost(PermanentError):
    """There is nothing of this name in the fabric, or what is stored is damaged; the message says which."""

    status = 502
    code = "fabric.package_lost"
    title = "The package is not there"


class StoredPackage(msgspec.Struct, frozen=True, kw_only=True):
    """One package in the fabric, or another object of such a store."""

    name: str
    size_bytes: int
    sha256: str
    """In hex."""
    stored_at: str
    """As ISO 8601, UTC."""
    metadata: dict[str, str] = {}


class _Meta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The entry of an object, as NATS clients write it."""

    name: str
    bucket: str
    nuid: str
    size: int | None = 0
    mtime: str | None = ""
    chunks: int | None = 0
    digest: str | None = ""
    deleted: bool | None = False
    metadata: dict[str, str] | None = None

    def described(self) -> StoredPackage:
        try:
            digest = base64.urlsafe_b64decode((self.digest or "").partition("=")[2])
        except ValueError:
            digest = b""
        return StoredPackage(
            name=self.name,
            size_bytes=self.size or 0,
            sha256=digest.hex(),
            stored_at=self.mtime or "",
            metadata=self.metadata or {},
        )


class PackageStore:
    """An object store. What is stored under a name is never changed, only deleted.

    Args:
        bucket: its name; `{ns}_packages` by default.
        noun: what messages call the things in it.
        remedy: what messages advise where one of them is damaged.
    """

    def __init__(
        self, connection: Connection, *, bucket: str = "", noun: str = "package", remedy: str = "publish it again"
    ) -> None:
        self._connection = connection
        self._bucket = bucket or connection.subjects.packages_bucket
        self._stream = f"OBJ_{self._bucket}"
        self._noun = noun
        self._remedy = remedy

    async def put(
        self,
        name: str,
        source: Path | bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        progress: Progress | None = None,
        within_s: float = 120.0,
    ) -> StoredPackage:
        """Store a package; the same one again costs nothing, and whoever reads never sees half of it.

        Args:
            source: a file, which is read in chunks, or all bytes.
            progress: hears of every chunk that the broker has confirmed.
        Raises:
            AlreadyStored: another package is stored under this name.
            PackageError: the file cannot be read, or changes meanwhile.
            BrokerUnavailable: it could not be stored in time; nothing can be read under the name.
        """
        with self._calling(f"storing the {self._noun} {name}"), anyio.fail_after(within_s):
            digest, size = await anyio.to_thread.run_sync(_digest_of, source)
            found = await self._same(name, digest)
            if found is None:
                return await self._store(name, source, digest, size, metadata or {}, progress)
        if progress is not None:
            progress(size, size)
        return found

    async def get(
        self,
        name: str,
        *,
        max_bytes: int = MAX_PACKAGE_BYTES,
        progress: Progress | None = None,
        within_s: float = 120.0,
    ) -> bytes:
        """Read a package, and compare it with its checksum.

        Raises:
            PackageLost: there is none of this name, or it is damaged.
            PackageError: it has more than `max_bytes`.
            BrokerUnavailable: it could not be read in time.
        """
        with self._calling(f"reading the {self._noun} {name}"), anyio.fail_after(within_s):
            meta, _ = await self._meta(name)
            if meta is None:
                raise PackageLost(f"there is no {self._noun} {name} in the fabric")
            size = meta.size or 0
            if size > max_bytes:
                raise PackageError(f"the {self._noun} {name} has {size} bytes, and at most {max_bytes} are read")
            data = await self._chunks(meta, size, progress)
        if hashlib.sha256(data).hexdigest() != meta.described().sha256:
            raise PackageLost(f"the {self._noun} {name} is damaged: its checksum is another; {self._remedy}")
        return data

    async def info(self, name: str) -> StoredPackage | None:
        """What is stored under a name, without its bytes; None when nothing is.

        Raises:
            BrokerUnavailable: no answer.
        """
        with self._calling(f"looking for the {self._noun} {name}"), anyio.fail_after(_TIMEOUT_S):
            meta, _ = await self._meta(name)
        return meta.described() if meta is not None else None

    async def exists(self, name: str) -> bool:
        """Whether something is stored under a name.

        Raises:
            BrokerUnavailable: no answer.
        """
        return await self.info(name) is not None

    async def list(self, *, within_s: float = 30.0) -> list[StoredPackage]:
        """All packages, by name.

        Raises:
            BrokerUnavailable: no answer.
        """
        found = []
        with self._calling(f"listing the {self._noun}s"), anyio.fail_after(within_s):
            js = self._connection.jetstream()
            state = (await js.stream_info(self._stream, subjects_filter=f"$O.{self._bucket}.M.>")).state
            for subject in state.subjects or {}:
                meta, _ = await self._read_meta(js, subject)
                if meta is not None:
                    found.append(meta.described())
        return sorted(found, key=lambda each: each.name)

    async def delete(self, name: str) -> bool:
        """Delete a package; whether there was one.

        Raises:
            BrokerUnavailable: no answer; it may be deleted.
        """
        with self._calling(f"deleting the {self._noun} {name}"), anyio.fail_after(_TIMEOUT_S):
            meta, sequence = await self._meta(name)
            if meta is None:
                return False
            gone = _Meta(name=name, bucket=self._bucket, nuid=meta.nuid, mtime=_now(), deleted=True)
            if not await self._write_meta(gone, sequence):
                return False  # somebody else has deleted it
            await self._drop_chunks(meta.nuid)
        return True

    # -- writing --------------------------------------------------------------------------------

    async def _same(self, name: str, digest: str) -> StoredPackage | None:
        """What is stored under the name, if it is the same and whole; None when there is room for it."""
        meta, _ = await self._meta(name)
        if meta is None:
            return None
        stored = meta.described()
        if stored.sha256 != digest:
            raise AlreadyStored(
                f"another {self._noun} is stored as {name} (sha256 {stored.sha256[:12]}…, not {digest[:12]}…):"
                " what is stored is never changed"
            )
        return stored if await self._is_whole(meta) else None

    async def _store(
        self,
        name: str,
        source: Path | bytes,
        digest: str,
        size: int,
        metadata: Mapping[str, str],
        progress: Progress | None,
    ) -> StoredPackage:
        old, sequence = await self._meta(name)
        nuid = new_instance_id()
        is_stored = False
        try:
            chunks = await self._send(nuid, source, digest, size, progress)
            meta = _Meta(
                name=name,
                bucket=self._bucket,
                nuid=nuid,
                size=size,
                mtime=_now(),
                chunks=chunks,
                digest=_DIGEST + base64.urlsafe_b64encode(bytes.fromhex(digest)).decode(),
                metadata=dict(metadata) or None,
            )
            is_stored = await self._write_meta(meta, sequence)
        finally:
            if not is_stored:
                await self._clean_up(name, nuid)
        if is_stored:
            if old is not None:
                await self._drop_chunks(old.nuid)
            return meta.described()
        found = await self._same(name, digest)  # somebody else was faster, with the same package or another
        if found is None:
            raise BrokerUnavailable(f"the {self._noun} {name} was deleted while it was stored: store it again")
        return found

    async def _send(self, nuid: str, source: Path | bytes, expected: str, size: int, progress: Progress | None) -> int:
        js = self._connection.jetstream()
        subject = f"$O.{self._bucket}.C.{nuid}"
        digest = hashlib.sha256()
        chunks = done = 0
        with await anyio.to_thread.run_sync(_opened, source) as file:
            while piece := await anyio.to_thread.run_sync(_read, file, source):
                digest.update(piece)
                await js.publish(subject, piece, timeout=_TIMEOUT_S)
                chunks += 1
                done += len(piece)
                if progress is not None:
                    progress(done, size)
        if digest.hexdigest() != expected:
            raise PackageError(f"{_label(source)} was changed while it was stored: store it again")
        return chunks

    async def _write_meta(self, meta: _Meta, sequence: int) -> bool:
        """Replace the entry, unless it has changed since `sequence`; whether it was replaced."""
        headers = {"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": str(sequence)}
        try:
            await self._connection.jetstream().publish(
                self._meta_subject(meta.name), msgspec.json.encode(meta), timeout=_TIMEOUT_S, headers=headers
            )
        except nats.js.errors.APIError as exc:
            if exc.err_code == _WRONG_LAST_SEQUENCE:
                return False
            raise
        return True

    async def _clean_up(self, name: str, nuid: str) -> None:
        with anyio.move_on_after(2, shield=True):
            try:
                meta, _ = await self._meta(name)
                if meta is None or meta.nuid != nuid:  # else the entry was stored, and its ack got lost
                    await self._drop_chunks(nuid)
            except (nats.errors.Error, OSError, TimeoutError, PackageLost) as exc:
                log.warning("package_chunks_left", object=nuid, error=repr(exc))

    async def _drop_chunks(self, nuid: str) -> None:
        await self._connection.jetstream().purge_stream(self._stream, subject=f"$O.{self._bucket}.C.{nuid}")

    # -- reading --------------------------------------------------------------------------------

    def _meta_subject(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def _meta(self, name: str) -> tuple[_Meta | None, int]:
        """The entry of a name, None when there is none, and the sequence that its subject is at."""
        return await self._read_meta(self._connection.jetstream(), self._meta_subject(name))

    async def _read_meta(self, js: JetStreamContext, subject: str) -> tuple[_Meta | None, int]:
        try:
            message = await js.get_msg(self._stream, subject=subject)
        except nats.js.errors.NotFoundError as exc:
            if exc.err_code == _STREAM_NOT_FOUND:
                raise
            return None, 0
        try:
            meta = msgspec.json.decode(message.data or b"", type=_Meta)
        except msgspec.DecodeError as exc:
            raise PackageLost(f"an entry of {self._bucket} cannot be read ({subject}): {exc}") from exc
        return (None if meta.deleted else meta), message.seq or 0

    async def _is_whole(self, meta: _Meta) -> bool:
        subject = f"$O.{self._bucket}.C.{meta.nuid}"
        stream = await self._connection.jetstream().stream_info(self._stream, subjects_filter=subject)
        return (stream.state.subjects or {}).get(subject, 0) == (meta.chunks or 0)

    async def _chunks(self, meta: _Meta, size: int, progress: Progress | None) -> bytes:
        js = self._connection.jetstream()
        subject = f"$O.{self._bucket}.C.{meta.nuid}"
        data = bytearray()
        sequence = 0
        # One by one, by number: a subscription would wait for ever for a chunk that is gone.
        for _ in range(meta.chunks or 0):
            try:
                message = await js.get_msg(self._stream, seq=sequence + 1, subject=subject, next=True)
            except nats.js.errors.NotFoundError as exc:
                if exc.err_code == _STREAM_NOT_FOUND:
                    raise
                raise PackageLost(
                    f"the {self._noun} {meta.name} is damaged: {len(data)} of {size} bytes are there; {self._remedy}"
                ) from exc
            data += message.data or b""
            sequence = message.seq or 0
            if len(data) > size:
                break  # the checksum says so
            if progress is not None:
                progress(len(data), size)
        return bytes(data)

    @contextmanager
    def _calling(self, doing: str) -> Iterator[None]:
        """What the client library raises becomes an error of ours."""
        self._connection.require_up(doing)
        try:
            yield
        except nats.js.errors.NotFoundError as exc:
            raise TopologyError(
                f"{doing}: the object store {self._bucket} does not exist; run any gati process once with"
                " GATI_FABRIC_TOPOLOGY=apply"
            ) from exc
        except (nats.errors.Error, OSError, TimeoutError) as exc:
            raise BrokerUnavailable(f"{doing}: {str(exc) or repr(exc)}") from exc


def _label(source: Path | bytes) -> str:
    return str(source) if isinstance(source, Path) else "the package"


def _opened(source: Path | bytes) -> BinaryIO:
    try:
        return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)
    except OSError as exc:
        raise PackageError(f"{_label(source)}: {exc.strerror}") from exc


def _read(file: BinaryIO, source: Path | bytes) -> bytes:
    try:
        return file.read(_CHUNK_BYTES)
    except OSError as exc:
        raise PackageError(f"{_label(source)}: {exc.strerror}") from exc


def _digest_of(source: Path | bytes) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with _opened(source) as file:
        while piece := _read(file, source):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
