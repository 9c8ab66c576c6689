"""What a command is told to look at: a package on disk, an installed one, or a report that was saved before."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gati_cli._errors import CliError
from gati_core.app.inspection import PackageReport, inspect_package
from gati_core.app.packages import LoadError, PackageSpec, find_in, find_installed
from gati_core.errors import GatiError
from gati_core.gtype import check_document, fingerprint


def read_reports(named: list[str], directory: Path) -> list[PackageReport]:
    """The packages at these places; the current directory when none is named.

    Args:
        named: a `.py` file, a package directory, a project, the name of an installed entry point, or a
            `.json` file that `gati check --json` has written.
    Raises:
        CliError: one of them cannot be read; says which, where and why.
    """
    reports: list[PackageReport] = []
    for name in named or ["."]:
        path = directory / name
        if path.suffix == ".json" and path.is_file():
            reports += saved_reports(path)
        else:
            reports += [_inspected(spec) for spec in _specs(name, path)]
    return reports


def saved_reports(path: Path) -> list[PackageReport]:
    """What `gati check --json` wrote.

    Raises:
        CliError: it is something else, was changed by hand, or is of a newer version of Gati.
    """
    try:
        reports = msgspec.json.decode(path.read_bytes(), type=list[PackageReport])
        for report in reports:
            for named, document in report.schemas.items():
                check_document(document)
                if fingerprint(document) != named:
                    raise CliError(f"{path}: the type {named[:12]}… was changed by hand: its fingerprint is another")
    except OSError as exc:
        raise CliError(f"{path}: {exc.strerror}", exit_code=2) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, GatiError) as exc:
        raise CliError(f"{path} is no report of `gati check --json`: {exc}", exit_code=2) from exc
    return reports


def _specs(name: str, path: Path) -> list[PackageSpec]:
    try:
        if path.exists():
            return find_in(path)
        return find_installed(name)
    except LoadError as exc:
        raise CliError(f"{name}: {exc}", exit_code=2) from exc


def _inspected(spec: PackageSpec) -> PackageReport:
    try:
        return inspect_package(spec)
    except LoadError as exc:
        raise CliError("\n".join(part for part in (f"{spec.name}: {exc}", exc.where, exc.excerpt) if part)) from exc
