"""A virtual environment for each package version that a worker runs, made once and used again.

Below the cache directory:

    environments/<name>-<version>-<key>/    one environment; the key is of the wheel and of this worker
    environments/<…>.lock                   see `leases`
    building/<random>/                      what is being made, and what a crash has left
    uv/                                     what uv has downloaded and built, for all of them

An environment sees all that the worker itself has installed, behind what its package brings: Gati and its
dependencies are not installed again, and what the package needs in another version comes first.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import os
import shutil
import site
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from gati_core.app.uv_tool import UvResult, end_group, explained, find_uv, uv_environment
from gati_core.app.wheels import WheelInfo, normalised
from gati_core.errors import PackageError, TransientError
from gati_worker.leases import Lease
from gati_worker.requirements import name_of, own_ranges, unmet

log = structlog.get_logger(__name__)

MAX_CACHE_BYTES = 4 * 1024**3
_STUB = "gati-worker"
_MARK = "gati-environment.json"
_STALE_S = 3600.0
"""What lies in `building` for longer was left by a crash: nothing takes so long to make."""
_CLEAN_WITHIN_S = 60.0
_KILL_WITHIN_S = 2.0


class EnvironmentUnavailable(TransientError):
    """An environment could not be made now: no network, no time, no room. Later it may."""

    code = "worker.environment_unavailable"


class _Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Written last into an environment: one that has it is whole."""

    name: str
    version: str
    sha256: str
    installed: list[str]


class Environment:
    """A virtual environment that is ready. Nobody removes it before `close`."""

    def __init__(self, path: Path, mark: _Mark, lease: Lease, *, is_new: bool, took_s: float) -> None:
        self.path = path
        self.python = _python_in(path)
        """For `Child.spawn`."""
        self.name = mark.name
        self.version = mark.version
        self.sha256 = mark.sha256
        self.installed = list(mark.installed)
        """What is in it, as `name==version`: the package, and what it needs and the worker has not."""
        self.is_new = is_new
        """Whether it was made just now."""
        self.took_s = took_s
        self._lease = lease

    def close(self) -> None:
        """Say that nothing runs in it any more. Once is enough, and the end of the process does it too."""
        self._lease.close()


async def prepare(
    wheel: Path,
    info: WheelInfo,
    *,
    cache: Path,
    wheelhouse: Path | None = None,
    offline: bool = False,
    no_index: bool = False,
    within_s: float = 300.0,
) -> Environment:
    """The environment of a package version; it is made unless it is there.

    Args:
        wheel: the package's wheel.
        info: what `read_wheel` said of it.
        cache: a directory for environments and downloads, of this worker or of several.
        wheelhouse: a directory with wheels, searched as well as the index.
        offline: use no network: what is in the wheelhouse, or was downloaded before, has to do.
        no_index: use no package index: what is in the wheelhouse has to do.
        within_s: for everything together; below an hour.
    Raises:
        PackageError: the package, or something that it needs, cannot be installed here; names it.
        EnvironmentUnavailable: it could not be made in time, or for lack of network or room.
    """
    began = time.monotonic()
    place = cache / "environments" / f"{normalised(info.name)}-{info.version}-{_key(info)}"
    about = f"the environment of {info.name} {info.version}"
    lease: Lease | None = None
    is_ready = False
    try:
        with anyio.fail_after(within_s):
            await anyio.to_thread.run_sync(_make_directories, cache)
            lease = await Lease.shared(place)
            mark = await anyio.to_thread.run_sync(_mark_of, place)
            is_new = mark is None
            if mark is None:
                options = _source_options(wheelhouse, offline=offline, no_index=no_index)
                mark = await _make(wheel, info, place, cache, options)
            await anyio.to_thread.run_sync(os.utime, place)
        is_ready = True
    except TimeoutError as exc:
        raise EnvironmentUnavailable(f"{about} was not ready within {within_s:g} s") from exc
    except OSError as exc:
        raise EnvironmentUnavailable(f"{about}: {exc.filename or place}: {exc.strerror or exc}") from exc
    finally:
        if lease is not None and not is_ready:
            lease.close()
    took_s = time.monotonic() - began
    if is_new:
        log.info("environment_made", package=info.name, version=info.version, took_ms=round(took_s * 1000))
    return Environment(place, mark, lease, is_new=is_new, took_s=took_s)


async def prune(cache: Path, *, keep: Collection[str], max_bytes: int = MAX_CACHE_BYTES) -> list[str]:
    """Remove environments that are not used, the longest unused first, until the cache is small enough.

    Environments that a worker holds are left alone, also those of other processes. When removing the others does
    not suffice, the downloads are removed. What crashes have left is removed in any case.

    Args:
        keep: hashes (`WheelInfo.sha256`) of packages that are about to run, although nothing holds them.
        max_bytes: of everything below the cache directory; 0 removes all that is not used.
    Returns:
        The names of the environments that were removed.
    """
    await anyio.to_thread.run_sync(_make_directories, cache)
    await anyio.to_thread.run_sync(_remove_leftovers, cache)
    removed: list[str] = []
    for place in await anyio.to_thread.run_sync(_oldest_first, cache):
        if await anyio.to_thread.run_sync(_bytes_below, cache) <= max_bytes:
            return removed
        mark = await anyio.to_thread.run_sync(_mark_of, place)
        is_wanted = mark is not None and mark.sha256 in keep
        if not is_wanted and await anyio.to_thread.run_sync(_remove, place, cache):
            log.info("environment_removed", environment=place.name)
            removed.append(place.name)
    if await anyio.to_thread.run_sync(_bytes_below, cache) > max_bytes:
        with anyio.move_on_after(_CLEAN_WITHIN_S):  # uv waits for others that download
            await _uv("cache", "clean", "--cache-dir", str(cache / "uv"), cache=cache)
    return removed


# -- making one ------------------------------------------------------------------------------------


async def _make(wheel: Path, info: WheelInfo, place: Path, cache: Path, options: Sequence[str]) -> _Mark:
    """Make an environment beside its place, and move it there in one step: nobody sees half of it."""
    needed = unmet(f"{info.name} {info.version}", info.requires)
    work = Path(await anyio.to_thread.run_sync(_make_work, cache))
    made, copy, constraints = work / "environment", work / info.filename, work / "constraints.txt"
    install = ("pip", "install", "--python", str(_python_in(made)), "--compile-bytecode", *options)
    try:
        await anyio.to_thread.run_sync(_copy, wheel, copy, info)
        # It is moved afterwards: its scripts must find its Python wherever it is.
        await _uv_or_refuse(info, "venv", "--relocatable", "--python", sys.executable, str(made), cache=cache)
        await _uv_or_refuse(info, *install, "--no-deps", str(copy), cache=cache)
        if needed:
            await anyio.to_thread.run_sync(_add_stubs, made, constraints)
            await _uv_or_refuse(info, *install, "--constraint", str(constraints), *needed, cache=cache, needed=needed)
        mark = await anyio.to_thread.run_sync(_finish, made, info)
        return await anyio.to_thread.run_sync(_put, made, place, mark)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_discard, work)


def _add_stubs(made: Path, constraints: Path) -> None:
    """Let uv believe that what the worker has were installed here: it then installs what is missing and no more,
    and needs no index for the rest. A stub is metadata alone, and uv replaces those that do not suit."""
    packages = _packages_in(made)
    present = {_canonical(each) for each in importlib.metadata.distributions(path=[str(packages)])}
    for distribution in importlib.metadata.distributions():
        name = _canonical(distribution)
        metadata = distribution.read_text("METADATA")
        if metadata is None or name in present:
            continue
        present.add(name)
        stub = packages / f"{name}-{distribution.version}.dist-info"
        stub.mkdir()
        files = {"METADATA": metadata, "INSTALLER": _STUB}
        files["RECORD"] = "".join(f"{stub.name}/{each},,\n" for each in (*files, "RECORD"))
        for each, text in files.items():
            (stub / each).write_text(text, encoding="utf-8")
    constraints.write_text("\n".join(own_ranges()) + "\n", encoding="utf-8")


def _finish(made: Path, info: WheelInfo) -> _Mark:
    """Take the stubs away, put the worker's own packages behind those of the environment, and mark it as whole."""
    packages = _packages_in(made)
    for installer in packages.glob("*.dist-info/INSTALLER"):
        if installer.read_text(encoding="utf-8").strip() == _STUB:
            shutil.rmtree(installer.parent)
    # `addsitedir`, not plain lines: the worker's own .pth files count as well.
    lines = "".join(f"import site; site.addsitedir({place!r})\n" for place in _own_places())
    (packages / "~gati_worker.pth").write_text(lines, encoding="utf-8")
    found = importlib.metadata.distributions(path=[str(packages)])
    installed = sorted(f"{each.name}=={each.version}" for each in found)
    mark = _Mark(name=info.name, version=info.version, sha256=info.sha256, installed=installed)
    (made / _MARK).write_bytes(msgspec.json.encode(mark))
    return mark


def _put(made: Path, place: Path, mark: _Mark) -> _Mark:
    if place.exists() and _mark_of(place) is None:
        place.rename(made.with_name("broken"))  # somebody has changed it
    try:
        made.rename(place)
    except OSError:
        found = _mark_of(place)
        if found is None:
            raise
        return found  # another process was faster
    return mark


def _copy(wheel: Path, to: Path, info: WheelInfo) -> None:
    try:
        shutil.copyfile(wheel, to)
    except FileNotFoundError as exc:
        raise PackageError(f"{wheel}: {exc.strerror}") from exc
    with to.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != info.sha256:
            raise PackageError(f"{wheel} is not the wheel that was looked at: its hash differs; fetch it again")


def _key(info: WheelInfo) -> str:
    """Of the wheel, and of the worker whose packages an environment leans on: after an update both must fit."""
    own = sorted({f"{_canonical(each)}=={each.version}" for each in importlib.metadata.distributions()})
    worker = [sys.version, os.path.realpath(sys.executable), *_own_places(), *own]
    return hashlib.sha256("\n".join([info.sha256, *worker]).encode()).hexdigest()[:32]


def _canonical(distribution: importlib.metadata.Distribution) -> str:
    return normalised(distribution.metadata["Name"])


def _own_places() -> list[str]:
    places = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return [place for place in dict.fromkeys(places) if os.path.isdir(place)]


def _python_in(environment: Path) -> Path:
    return environment / "bin" / "python"


def _packages_in(environment: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / version / "site-packages"


def _mark_of(place: Path) -> _Mark | None:
    """What an environment is, if it is there and whole."""
    try:
        mark = msgspec.json.decode((place / _MARK).read_bytes(), type=_Mark)
    except (OSError, msgspec.DecodeError):
        return None
    return mark if os.access(_python_in(place), os.X_OK) else None


def _make_directories(cache: Path) -> None:
    for name in ("environments", "building"):
        (cache / name).mkdir(parents=True, exist_ok=True)


def _make_work(cache: Path) -> str:
    return tempfile.mkdtemp(dir=cache / "building")


def _discard(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)


# -- removing --------------------------------------------------------------------------------------


def _oldest_first(cache: Path) -> list[Path]:
    def used_at(place: Path) -> float:
        try:
            return place.stat().st_mtime
        except OSError:  # another process has removed it
            return 0.0

    return sorted((each for each in (cache / "environments").iterdir() if each.is_dir()), key=used_at)


def _remove(place: Path, cache: Path) -> bool:
    """Whether it was removed: not while anybody uses it."""
    lease = Lease.exclusive(place)
    if lease is None:
        return False
    rubbish = Path(_make_work(cache))
    try:
        place.rename(rubbish / "removed")  # at once: whoever prepares it again finds nothing, or all of it
    except FileNotFoundError:
        pass
    finally:
        lease.end()
        _discard(rubbish)
    return True


def _remove_leftovers(cache: Path) -> None:
    for each in (cache / "building").iterdir():
        try:
            is_stale = time.time() - each.stat().st_mtime > _STALE_S
        except OSError:
            continue
        if is_stale:
            _discard(each)
    for lock in (cache / "environments").glob("*.lock"):
        place = lock.with_name(lock.name.removesuffix(".lock"))
        if not place.exists():
            lease = Lease.exclusive(place)
            if lease is not None:
                lease.end()


def _bytes_below(place: Path) -> int:
    """On the disk; what is linked from several places counts once."""
    seen: dict[tuple[int, int], int] = {}
    for directory, _, names in os.walk(place):
        for name in names:
            try:
                status = os.lstat(os.path.join(directory, name))
            except OSError:
                continue
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


# -- uv --------------------------------------------------------------------------------------------


def _source_options(wheelhouse: Path | None, *, offline: bool, no_index: bool) -> list[str]:
    options = ["--offline"] if offline else []
    options += ["--no-index"] if no_index else []
    options += ["--find-links", str(wheelhouse.resolve())] if wheelhouse is not None else []
    return options


async def _uv_or_refuse(info: WheelInfo, *arguments: str, cache: Path, needed: Sequence[str] = ()) -> None:
    """Run uv; where there is no network, once more with what is there.

    Raises:
        PackageError: it says that this cannot be done; names what is missing.
        EnvironmentUnavailable: it might have been done with a network, or with more room.
    """
    result = await _uv(*arguments, cache=cache)
    if result.lacks_network and (await _uv(*arguments, "--offline", cache=cache)).is_done:
        return
    if result.is_done:
        return
    about = f"{info.name} {info.version}"
    said = explained(result.said)
    if result.lacks_network or "No space left" in said:
        raise EnvironmentUnavailable(f"the environment of {about} cannot be made now:\n{said}")
    if needed:
        missing = [each for each in needed if name_of(each) in said.lower()] or needed
        raise PackageError(f"{about} needs {', '.join(missing)}, which cannot be installed:\n{said}")
    raise PackageError(f"{about} cannot be installed on this worker:\n{said}")


async def _uv(*arguments: str, cache: Path) -> UvResult:
    """Run uv to its end; cancelled, it is killed with all that it started."""
    process = await asyncio.create_subprocess_exec(
        find_uv(),
        *arguments,
        cwd=cache / "building",
        env=uv_environment({"UV_CACHE_DIR": str(cache / "uv"), "UV_NO_PROGRESS": "1"}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # so that what it starts can be ended with it
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            end_group(process.pid)
            with anyio.move_on_after(_KILL_WITHIN_S, shield=True):
                await process.wait()
    return UvResult(process.returncode or 0, output.decode(errors="replace"))
