"""`gati check`: what packages offer and what is wrong with them, without running their handlers."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gati_cli._errors import CliError
from gati_cli.packages import read_reports
from gati_core.app.inspection import PackageReport
from gati_core.manifests import HandlerManifest

if TYPE_CHECKING:
    from rich.table import Table


def problems_of(reports: list[PackageReport]) -> list[str]:
    """What would go wrong in a fabric that runs these packages, one line each."""
    problems = []
    for name, count in Counter(report.app for report in reports).items():
        if count > 1:
            problems.append(f"{count} packages are called {name!r}: an app's name is unique in a fabric")
    owners: dict[tuple[str, str], str] = {}
    for report in reports:
        problems += [
            f"{report.app}: importing it tries to {effect.what} ({effect.where});"
            " move that into a function registered with app.on_startup"
            for effect in report.side_effects
        ]
        for handler in report.handlers:
            shape = "/".join("{}" if part.startswith("{") else part for part in handler.path.split("/"))
            for method in handler.methods:
                owner = owners.setdefault((method, shape), report.app)
                if owner != report.app:
                    problems.append(
                        f"{method} {handler.path} is served by {owner} and by {report.app}: only the newest is called"
                    )
    return problems


def check(named: list[str], directory: Path, *, as_json: bool, output: Path | None) -> int:
    """Print what the packages offer; returns the exit code: 1 when something is wrong.

    Args:
        output: a file that takes the JSON as well.
    """
    reports = read_reports(named, directory)
    data = msgspec.json.format(msgspec.json.encode(reports, order="sorted"), indent=2) + b"\n"
    if output is not None:
        try:
            output.write_bytes(data)
        except OSError as exc:
            raise CliError(f"{output}: {exc.strerror}", exit_code=2) from exc
    problems = problems_of(reports)
    if as_json:
        sys.stdout.write(data.decode())
    else:
        _print(reports)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _print(reports: list[PackageReport]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    for report in reports:
        version = f" {report.version}" if report.version else ""
        handlers = "1 handler" if len(report.handlers) == 1 else f"{len(report.handlers)} handlers"
        types = "1 type" if len(report.schemas) == 1 else f"{len(report.schemas)} types"
        console.print(f"{report.app}{version}: {handlers}, {types}", style="bold", markup=False)
        console.print(_table(report.handlers))


def _table(handlers: list[HandlerManifest]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("METHOD", "PATH", "HANDLER", "TYPES", "HOOKS", "ROLES", "MODULES", "VERSION", "SOURCE"):
        table.add_column(column, overflow="fold", no_wrap=column in ("METHOD", "VERSION"))
    for handler in handlers:
        refs = msgspec.to_builtins(handler.gtypes)
        table.add_row(
            ",".join(handler.methods),
            escape(handler.path),
            handler.id,
            ",".join(area for area in ("params", "query", "headers", "request", "response") if refs.get(area)) or "-",
            str(len(handler.hooks)),
            ",".join(handler.policies.roles) or "-",
            ",".join(handler.dependencies.modules) or "-",
            handler.fingerprint[:12],
            escape(handler.source),
        )
    return table
