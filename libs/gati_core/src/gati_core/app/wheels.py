"""Wheels that carry a handler package: what is inside, and whether it is whole.

`gati build` makes them (see `building`); publishing, the fabric and workers read them here. Nothing of the
package runs: what it offers is read from the report that was written into it when it was built.
"""

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from gati_core.app.inspection import PackageReport
from gati_core.app.packages import GROUP
from gati_core.errors import GatiError, PackageError
from gati_core.gtype import check_document, fingerprint
from gati_core.manifests import HandlerManifest, manifest_hash
from gati_core.wire.subjects import token

REPORT = "gati.json"
"""The report's name in the wheel's `.dist-info`."""
MAX_WHEEL_BYTES = 64 * 1024 * 1024
MAX_UNPACKED_BYTES = 512 * 1024 * 1024
_MAX_FILES = 20_000
_MAX_TEXT_BYTES = 16 * 1024 * 1024
_UNLISTED = ("RECORD", "RECORD.jws", "RECORD.p7s")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_VERSION = re.compile(r"[0-9][A-Za-z0-9.!+_-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9_.]{1,128}")
_HASHES = ("sha256", "sha384", "sha512")
_REBUILD = "build it again with `gati build`"


class WheelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a wheel says about itself."""

    name: str
    """Of the distribution; the app's name is in `report`."""
    version: str
    requires: list[str]
    """Requirements, as in the wheel's metadata."""
    requires_python: str = ""
    apps: dict[str, str]
    """The entry point in group `gati.apps`: its name and `module:attribute`. There is exactly one."""
    filename: str
    """What the file has to be called when it is installed."""
    report: PackageReport
    sha256: str
    size_bytes: int


class WheelArchive:
    """The files of a wheel, whose names and contents have been checked. Close it, or use it as a context.

    Args:
        data: the whole wheel.
        label: what messages call it.
    Raises:
        PackageError: it is no wheel, is damaged, or has names that lead outside; says which and what to do.
    """

    def __init__(self, data: bytes, label: str) -> None:
        self._label = label
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, UnicodeDecodeError) as exc:
            if data.startswith(b"PK\x03\x04"):
                raise self._error(f"the file is cut off or damaged ({exc}): copy or {_REBUILD}") from exc
            raise self._error("this is no wheel (no zip archive): name a .whl file that `gati build` wrote") from exc
        try:
            self.files = self._checked_files()
            self.dist_info = self._find_dist_info()
            self._check_record()
            self.metadata = self._read_message("METADATA")
            self.name, self.version = self._read_identity()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> WheelArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free it."""
        self._zip.close()

    def read(self, name: str, *, limit: int = _MAX_TEXT_BYTES) -> bytes:
        """A file's content.

        Raises:
            PackageError: it is damaged, or larger than `limit`.
        """
        size = self.files[name].file_size
        if size > limit:
            raise self._error(f"{name} has {size} bytes, and at most {limit} are read")
        return b"".join(self.chunks(name))

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content in pieces.

        Raises:
            PackageError: it is damaged.
        """
        try:
            with self._zip.open(self.files[name]) as file:
                while piece := file.read(256 * 1024):
                    yield piece
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as exc:
            raise self._error(f"{name} is damaged ({exc}): copy the wheel again, or {_REBUILD}") from exc
        except RuntimeError as exc:  # zipfile says so of encrypted files
            raise self._error(f"{name} cannot be read ({exc}): {_REBUILD}") from exc

    def text(self, name: str) -> str:
        """A text file of the `.dist-info` directory.

        Raises:
            PackageError: it is not there, damaged, or not UTF-8.
        """
        path = f"{self.dist_info}/{name}"
        if path not in self.files:
            raise self._error(f"there is no {path}: this is no complete wheel; {_REBUILD}")
        try:
            return self.read(path).decode()
        except UnicodeDecodeError as exc:
            raise self._error(f"{path} is not UTF-8 ({exc.reason} at byte {exc.start}): {_REBUILD}") from exc

    def apps(self) -> dict[str, str]:
        """The entry points in group `gati.apps`.

        Raises:
            PackageError: `entry_points.txt` cannot be read.
        """
        if f"{self.dist_info}/entry_points.txt" not in self.files:
            return {}
        parser = configparser.ConfigParser(delimiters=("=",), interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
        try:
            parser.read_string(self.text("entry_points.txt"))
        except configparser.Error as exc:
            raise self._error(f"{self.dist_info}/entry_points.txt: {exc}") from exc
        return dict(parser[GROUP]) if parser.has_section(GROUP) else {}

    def one_app(self) -> tuple[str, str]:
        """The one entry point in group `gati.apps`: name and `module:attribute`.

        Raises:
            PackageError: there is none, or more than one.
        """
        apps = self.apps()
        if not apps:
            raise self._error(
                f"it has no entry point in group {GROUP!r}; add to pyproject.toml, for example:"
                f'\n  [project.entry-points."{GROUP}"]\n  shop = "shop:app"'
            )
        if len(apps) > 1:
            raise self._error(
                f"it has {len(apps)} entry points in group {GROUP!r} ({', '.join(sorted(apps))}): a package that is"
                " published is one app; give each its own project"
            )
        ((name, target),) = apps.items()
        return name, target.strip()

    def filename(self) -> str:
        """What its file has to be called, by its metadata."""
        wheel = self._read_message("WHEEL")
        tags = [str(tag).strip() for tag in wheel.get_all("Tag", [])]
        parts = [tag.split("-") for tag in tags]
        if not tags or any(len(each) != 3 or not all(map(_TAG.fullmatch, each)) for each in parts):
            raise self._error(f"{self.dist_info}/WHEEL names no tag such as py3-none-any: {_REBUILD}")
        tag = "-".join(".".join(dict.fromkeys(column)) for column in zip(*parts, strict=True))
        build = str(wheel.get("Build", "")).strip()
        pieces = [
            normalised(self.name),
            self.version.replace("-", "_"),
            *([build] if _TAG.fullmatch(build) else []),
            tag,
        ]
        return "-".join(pieces) + ".whl"

    # -- checks ---------------------------------------------------------------------------------

    def _checked_files(self) -> dict[str, zipfile.ZipInfo]:
        files: dict[str, zipfile.ZipInfo] = {}
        total = 0
        for each in self._zip.infolist():
            name = each.filename
            if not is_safe(name):
                raise self._error(f"the name {name!r} in it leads outside of it: do not trust this file")
            if each.is_dir():
                continue
            if stat.S_ISLNK(each.external_attr >> 16):
                raise self._error(f"{name} is a symbolic link, which a wheel cannot hold: put the file itself there")
            if name in files:
                raise self._error(f"it holds {name} twice: {_REBUILD}")
            files[name] = each
            total += each.file_size
        if len(files) > _MAX_FILES:
            raise self._error(f"it holds {len(files)} files, and may hold {_MAX_FILES}")
        if total > MAX_UNPACKED_BYTES:
            raise self._error(
                f"it unpacks to {total} bytes, and may to {MAX_UNPACKED_BYTES}: leave data out of packages"
            )
        return files

    def _find_dist_info(self) -> str:
        found = {name.partition("/")[0] for name in self.files if name.partition("/")[0].endswith(".dist-info")}
        if len(found) != 1:
            what = f"{len(found)} .dist-info directories" if found else "no .dist-info directory"
            raise self._error(f"it holds {what}, so it is no wheel: name a .whl file that `gati build` wrote")
        return found.pop()

    def _check_record(self) -> None:
        """Every file is as it was when the wheel was built."""
        listed: dict[str, tuple[str, str]] = {}
        try:
            for row in csv.reader(io.StringIO(self.text("RECORD"), newline="")):
                if row:
                    listed[row[0]] = (row[1], row[2])
        except (csv.Error, IndexError) as exc:
            raise self._error(f"{self.dist_info}/RECORD cannot be read: {_REBUILD}") from exc
        exempt = {f"{self.dist_info}/{name}" for name in _UNLISTED}
        for name in sorted(listed.keys() - self.files.keys() - exempt):
            raise self._error(f"{name} is missing, although RECORD lists it: copy the wheel again, or {_REBUILD}")
        for name in self.files:
            if name in exempt:
                continue
            algorithm, _, expected = listed.get(name, ("", ""))[0].partition("=")
            if not expected:
                raise self._error(f"{name} was added after the wheel was built: RECORD has no hash of it; {_REBUILD}")
            if algorithm not in _HASHES:
                raise self._error(f"RECORD has no hash of {name} that can be trusted ({algorithm}): {_REBUILD}")
            digest = hashlib.new(algorithm)
            for piece in self.chunks(name):
                digest.update(piece)
            if record_hash(digest.digest()) != expected.rstrip("="):
                raise self._error(f"{name} is not what RECORD says (its hash differs): {_REBUILD}")

    def _read_message(self, name: str) -> Message:
        return message_from_string(self.text(name))

    def _read_identity(self) -> tuple[str, str]:
        name, version = (str(self.metadata.get(field, "")).strip() for field in ("Name", "Version"))
        if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
            raise self._error(f"{self.dist_info}/METADATA has no valid name and version: {name!r} {version!r}")
        stem = self.dist_info.removesuffix(".dist-info")
        if normalised(stem.rpartition("-")[0]) != normalised(name):
            raise self._error(f"{self.dist_info}/METADATA is of another package, {name} {version}: {_REBUILD}")
        return name, version

    def _error(self, problem: str) -> PackageError:
        return PackageError(f"{self._label}: {problem}")


def is_safe(name: str) -> bool:
    """Whether a name in an archive stays below the directory it is unpacked in, on every system."""
    if not name or "\\" in name or "\0" in name or ":" in name or name.startswith("/"):
        return False
    return not any(part in ("", ".", "..") for part in name.removesuffix("/").split("/"))


def normalised(name: str) -> str:
    """A distribution's name as it stands in file names.

    >>> normalised("Gati.Example-hello")
    'gati_example_hello'
    """
    return re.sub(r"[-_.]+", "_", name).lower()


def record_hash(digest: bytes) -> str:
    """A digest as RECORD writes it."""
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def read_wheel(source: Path | bytes, *, max_bytes: int = MAX_WHEEL_BYTES) -> WheelInfo:
    """What is in a wheel that `gati build` made; every file of it is compared with its hash.

    Args:
        source: the file, or all of its bytes.
    Raises:
        PackageError: it cannot be read, is damaged or too large, is no handler package, or was made by something
            else; says what, where, and what to do.
    """
    label = str(source) if isinstance(source, Path) else "the wheel"
    data = _bytes_of(source, label, max_bytes)
    with WheelArchive(data, label) as archive:
        app, target = archive.one_app()
        report = _read_report(archive, label)
        if report.version != archive.version or report.target != target:
            raise PackageError(
                f"{label}: {REPORT} describes {report.target} {report.version}, and the wheel holds {target}"
                f" {archive.version}: {_REBUILD}"
            )
        return WheelInfo(
            name=archive.name,
            version=archive.version,
            requires=[str(each).strip() for each in archive.metadata.get_all("Requires-Dist", [])],
            requires_python=str(archive.metadata.get("Requires-Python", "")).strip(),
            apps={app: target},
            filename=archive.filename(),
            report=report,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
        )


def _bytes_of(source: Path | bytes, label: str, max_bytes: int) -> bytes:
    try:
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if size > max_bytes:
            raise PackageError(
                f"{label}: {size} bytes are more than the {max_bytes} that a package may have: leave out data that"
                " handlers can fetch, or raise the limit"
            )
        return source.read_bytes() if isinstance(source, Path) else source
    except OSError as exc:
        raise PackageError(f"{label}: {exc.strerror}") from exc


def _read_report(archive: WheelArchive, label: str) -> PackageReport:
    path = f"{archive.dist_info}/{REPORT}"
    if path not in archive.files:
        raise PackageError(
            f"{label}: there is no {path}: it was built without `gati build`, which writes there what the package"
            " offers; build it with `gati build`"
        )
    data = archive.read(path)
    try:
        report = msgspec.json.decode(data, type=PackageReport)
        _check(report)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, GatiError) as exc:
        raise PackageError(
            f"{label}: {path} cannot be used: {exc}; {_REBUILD}, of the version of Gati that your fabric runs"
        ) from exc
    return report


def _check(report: PackageReport) -> None:
    """What the shape of a report cannot say."""
    token(report.app, "the name of the app")
    if not report.handlers:
        raise PackageError(f"{report.app} has no handler")
    for name, document in report.schemas.items():
        check_document(document)
        if fingerprint(document) != name:
            raise PackageError(f"the type {name[:12]}… was changed after the build: its fingerprint is another")
    seen = set()
    for handler in report.handlers:
        if handler.id in seen:
            raise PackageError(f"it describes the handler {handler.id} twice")
        seen.add(handler.id)
        if handler.hash != manifest_hash(handler):
            raise PackageError(f"the manifest of {handler.id} was changed after the build: its hash is another")
        for area, ref in msgspec.structs.asdict(handler.gtypes).items():
            if ref and ref not in report.schemas:
                raise PackageError(f"the {area} type {ref[:12]}… of {handler.id} is not in it")


# -- a package that was loaded, and its manifest -------------------------------------------------------

_NOT_COMPARED = frozenset({"id", "version", "hash", "created_ms"})


def check_report(expected: PackageReport, found: PackageReport) -> list[str]:
    """Whether a package that was loaded is what its wheel says it is; an empty list when it is.

    Args:
        expected: from the wheel.
        found: of the app that came out of it.
    Returns:
        Differences, one line each.
    """
    told: list[str] = []
    if expected.app != found.app:
        told.append(f"the app is {found.app!r}, and its manifest says {expected.app!r}")
    expected_handlers = {handler.id: handler for handler in expected.handlers}
    found_handlers = {handler.id: handler for handler in found.handlers}
    told += [f"handler {name} is in the manifest only" for name in sorted(expected_handlers.keys() - found_handlers)]
    told += [f"handler {name} is not in the manifest" for name in sorted(found_handlers.keys() - expected_handlers)]
    for name in sorted(expected_handlers.keys() & found_handlers.keys()):
        told += _differences(expected_handlers[name], found_handlers[name])
    told += [f"type {name[:12]}… is in the manifest only" for name in sorted(expected.schemas.keys() - found.schemas)]
    told += [f"type {name[:12]}… is not in the manifest" for name in sorted(found.schemas.keys() - expected.schemas)]
    told += [
        f"type {name[:12]}… is another one in the manifest"
        for name in sorted(expected.schemas.keys() & found.schemas.keys())
        if expected.schemas[name] != found.schemas[name]
    ]
    if sorted(expected.buckets) != sorted(found.buckets):
        told.append(f"the buckets are {sorted(found.buckets)}, and the manifest says {sorted(expected.buckets)}")
    if expected.transformers != found.transformers:
        told.append("the transformers are others than in the manifest")
    return told


def _differences(expected: HandlerManifest, found: HandlerManifest) -> list[str]:
    return [
        f"handler {found.id}: {field} is {_short(getattr(found, field))}, and its manifest says"
        f" {_short(getattr(expected, field))}"
        for field in HandlerManifest.__struct_fields__
        if field not in _NOT_COMPARED and getattr(expected, field) != getattr(found, field)
    ]


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 120 else f"{text[:120]}…"


def unpack(archive: WheelArchive, into: Path) -> list[Path]:
    """Unpack a wheel; returns the directories that its modules are imported from."""
    roots = [into]
    for name in archive.files:
        path = into.joinpath(*PurePosixPath(name).parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for piece in archive.chunks(name):
                file.write(piece)
        top, _, rest = name.partition("/")
        if top.endswith(".data") and rest.startswith(("purelib/", "platlib/")):
            root = into / top / rest.partition("/")[0]
            roots += [root] if root not in roots else []
    return roots
