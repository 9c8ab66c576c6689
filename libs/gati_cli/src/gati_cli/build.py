"""`gati build`: a project becomes a wheel that can be published."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from gati_cli._errors import CliError
from gati_core.app.building import build_wheel
from gati_core.app.wheels import WheelInfo
from gati_core.errors import PackageError


def build(
    project: Path, directory: Path, output: Path, *, offline: bool, find_links: Path | None, as_json: bool
) -> None:
    """Build it and say what came out.

    Raises:
        CliError: it cannot be built; nothing was written.
    """
    source = directory / project
    if not (source / "pyproject.toml").is_file():
        what = "is no project: there is no pyproject.toml in it" if source.exists() else "does not exist"
        raise CliError(f"{source.resolve()} {what}", exit_code=2)
    wheelhouse = directory / find_links if find_links is not None else None
    if wheelhouse is not None and not wheelhouse.is_dir():
        raise CliError(f"--find-links: {wheelhouse} is no directory", exit_code=2)
    try:
        built = build_wheel(source, directory / output, wheelhouse=wheelhouse, offline=offline)
    except PackageError as exc:
        raise CliError(str(exc)) from exc
    if as_json:
        sys.stdout.write(_json(built.path, built.info))
    else:
        _print(built.path, built.info)


def _json(path: Path, info: WheelInfo) -> str:
    told = {
        "wheel": str(path),
        "name": info.name,
        "version": info.version,
        "app": info.report.app,
        "handlers": [handler.id for handler in info.report.handlers],
        "requires": info.requires,
        "size_bytes": info.size_bytes,
        "sha256": info.sha256,
    }
    return msgspec.json.format(msgspec.json.encode(told), indent=2).decode() + "\n"


def _print(path: Path, info: WheelInfo) -> None:
    handlers = info.report.handlers
    count = "1 handler" if len(handlers) == 1 else f"{len(handlers)} handlers"
    print(f"{info.name} {info.version}: app {info.report.app}, {count}")
    for handler in handlers:
        print(f"  {','.join(handler.methods)} {handler.path}  {handler.id}  {handler.fingerprint[:12]}")
    print(f"  {_size(info.size_bytes)}, sha256 {info.sha256}")
    print(f"  {path}")


def _size(count: int) -> str:
    """Bytes for people.

    >>> _size(999), _size(2048), _size(5_500_000)
    ('999 bytes', '2.0 KiB', '5.2 MiB')
    """
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"
