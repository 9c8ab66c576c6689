"""`gati build`: a project becomes a wheel that says what it offers.

The wheel is built with `uv`, then unpacked and inspected: what is described is what is in the wheel, not what
lies beside it. The same input gives the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import sys
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

import msgspec

from gati_core.app.inspection import PackageReport, inspect_package
from gati_core.app.packages import LoadError, PackageSpec
from gati_core.app.uv_tool import UvResult, explained, run_uv
from gati_core.app.wheels import (
    MAX_WHEEL_BYTES,
    REPORT,
    WheelArchive,
    WheelInfo,
    read_wheel,
    record_hash,
    unpack,
)
from gati_core.errors import PackageError

_TIME = (2020, 2, 2, 0, 0, 0)
"""Of every file in the wheel: when it was built is nothing that a wheel should tell apart."""
_EPOCH = "1580601600"
_SIGNATURES = ("RECORD.jws", "RECORD.p7s")


class BuiltWheel(msgspec.Struct, frozen=True, kw_only=True):
    """A wheel that has been written."""

    path: Path
    info: WheelInfo


def build_wheel(
    project: Path,
    out: Path,
    *,
    wheelhouse: Path | None = None,
    offline: bool = False,
    within_s: float = 300.0,
    max_bytes: int = MAX_WHEEL_BYTES,
) -> BuiltWheel:
    """Build a project's wheel, inspect what is in it, and write the report into it.

    The build backend is taken from the index, else from uv's cache or `wheelhouse`, else from the environment
    that this runs in.

    Args:
        project: a directory with `pyproject.toml`.
        out: the directory for the wheel; one of the same name is replaced.
        wheelhouse: a directory with wheels of build requirements.
        offline: use no network.
        within_s: for everything together.
    Raises:
        PackageError: it cannot be built, cannot be imported, offers no app, or does something while it is
            imported; says what, where, and what to do. Nothing was written.
    """
    project, out = project.resolve(), out.resolve()
    _require_project(project)
    give_up_at = time.monotonic() + within_s
    try:
        with tempfile.TemporaryDirectory(prefix="gati-build-") as name:
            work = Path(name)
            _run_build(project, work, wheelhouse=wheelhouse, offline=offline, give_up_at=give_up_at)
            (built,) = (work / "out").glob("*.whl")
            with WheelArchive(built.read_bytes(), built.name) as archive:
                report = _inspected(archive, project, work / "unpacked", give_up_at)
                (work / "final").mkdir()
                final = work / "final" / archive.filename()
                final.write_bytes(_with_report(archive, report))
            info = read_wheel(final, max_bytes=max_bytes)
            return BuiltWheel(path=_put(final, out), info=info)
    except TimeoutError as exc:
        raise PackageError(f"{project} was not built within {within_s:g} s: {exc}") from exc
    except OSError as exc:
        raise PackageError(f"{exc.filename or project}: {exc.strerror or exc}") from exc


def _require_project(project: Path) -> None:
    file = project / "pyproject.toml"
    if not project.exists():
        raise PackageError(f"{project} does not exist")
    if not file.is_file():
        raise PackageError(
            f"{project} is no project: a wheel is built from a directory with a pyproject.toml, which names the"
            " package, its version, its requirements, and its app"
        )
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise PackageError(f"{file}: {exc}") from exc


def _run_build(project: Path, work: Path, *, wheelhouse: Path | None, offline: bool, give_up_at: float) -> None:
    """Leave exactly one wheel in `work/out`."""
    config = work / "distutils.cfg"
    # setuptools would leave its files in the project, and take modules from there that are gone since.
    config.write_text(f"[build]\nbuild_base = {work / 'build'}\n[egg_info]\negg_base = {work}\n", encoding="utf-8")
    more = {"DIST_EXTRA_CONFIG": str(config), "PYTHONHASHSEED": "0"}
    more["SOURCE_DATE_EPOCH"] = os.environ.get("SOURCE_DATE_EPOCH", _EPOCH)
    command = ["build", "--wheel", "--no-progress", "--color", "never", "--out-dir", str(work / "out")]
    command += ["--python", sys.executable]
    if wheelhouse is not None:
        command += ["--find-links", str(wheelhouse.resolve())]

    def attempt(*options: str) -> UvResult:
        shutil.rmtree(work / "out", ignore_errors=True)
        arguments = [*command, *options, str(project)]
        return run_uv(arguments, directory=project, within_s=give_up_at - time.monotonic(), more=more)

    first = result = attempt(*(["--offline"] if offline else []))
    if result.lacks_network:
        result = attempt("--offline")
    if not result.is_done and (offline or first.lacks_network):
        result = attempt("--offline", "--no-build-isolation")
        if not result.is_done and "ModuleNotFoundError" in result.said:
            result = first  # why the backend could not be had says more
    if not result.is_done:
        hint = ""
        if first.lacks_network or (offline and result is first):
            hint = "\nThe build backend must be reachable, in uv's cache, or installed in the environment of `gati`."
        raise PackageError(f"{project} could not be built:\n{explained(result.said)}{hint}")
    found = list((work / "out").glob("*.whl"))
    if len(found) != 1:
        raise PackageError(f"{project}: the build backend wrote {len(found)} wheels instead of one")


def _inspected(archive: WheelArchive, project: Path, place: Path, give_up_at: float) -> PackageReport:
    name, target = archive.one_app()
    roots = unpack(archive, place)
    top = target.partition(":")[0].partition(".")[0]
    if not any((root / top).is_dir() or list(root.glob(f"{top}.*")) for root in roots):
        # A package of this name may be installed here, and would be inspected instead.
        raise PackageError(
            f"{archive.name} was built, and lacks {top}, which its entry point {target} names: tell the build backend"
            " in pyproject.toml which packages belong to the wheel"
        )
    spec = PackageSpec(name=name, target=target, import_paths=[str(each) for each in roots], version=archive.version)
    try:
        report = inspect_package(spec, within_s=max(1.0, give_up_at - time.monotonic()))
    except LoadError as exc:
        lines = [f"{archive.name} was built, and cannot be used: {exc}", exc.where, exc.excerpt]
        if "No module named" in str(exc):
            lines.append("Is it in the wheel? If it is of another package: is that installed where `gati` runs?")
        raise PackageError("\n".join(_as_source(line, roots, project) for line in lines if line)) from exc
    if report.side_effects:
        effects = [
            f"{archive.name}: importing it tries to {each.what} ({each.where}); move that into a function registered"
            " with app.on_startup"
            for each in report.side_effects
        ]
        raise PackageError("\n".join(_as_source(line, roots, project) for line in effects))
    return report


def _as_source(text: str, roots: list[Path], project: Path) -> str:
    """Text with places in the project instead of those in the unpacked wheel."""
    source = project / "src" if (project / "src").is_dir() else project
    for root in sorted(roots, key=lambda each: len(str(each)), reverse=True):
        text = text.replace(str(root.resolve()), str(source)).replace(str(root), str(source))
    return text


def _with_report(archive: WheelArchive, report: PackageReport) -> bytes:
    """The wheel again: with the report, in order, and without times."""
    described = f"{archive.dist_info}/{REPORT}"
    record = f"{archive.dist_info}/RECORD"
    left_out = {described, record, *(f"{archive.dist_info}/{name}" for name in _SIGNATURES)}
    # Installers may read a wheel from its end: the .dist-info comes last.
    names = sorted(archive.files.keys() - left_out, key=lambda each: (each.startswith(archive.dist_info), each))
    rows: list[tuple[str, str, str]] = []
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target:

        def add(name: str, content: bytes, *, is_program: bool = False) -> None:
            entry = zipfile.ZipInfo(name, _TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = (0o100755 if is_program else 0o100644) << 16
            target.writestr(entry, content)
            rows.append((name, f"sha256={record_hash(hashlib.sha256(content).digest())}", str(len(content))))

        for name in names:
            content = archive.read(name, limit=archive.files[name].file_size)
            add(name, content, is_program=bool(archive.files[name].external_attr >> 16 & 0o100))
        add(described, _written(report))
        listed = io.StringIO(newline="")
        csv.writer(listed, lineterminator="\n").writerows([*rows, (record, "", "")])
        add(record, listed.getvalue().encode())
    return output.getvalue()


def _written(report: PackageReport) -> bytes:
    """As JSON for people and programs; fields of types keep their authors' order."""
    schemas = {name: report.schemas[name] for name in sorted(report.schemas)}
    return msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(report, schemas=schemas)), indent=1) + b"\n"


def _put(wheel: Path, out: Path) -> Path:
    """Into the directory, at once or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=out, prefix=".gati-", delete=False) as file:
        part = Path(file.name)
    try:
        shutil.copyfile(wheel, part)
        part.chmod(0o644)
        part.replace(out / wheel.name)
    finally:
        part.unlink(missing_ok=True)
    return out / wheel.name
