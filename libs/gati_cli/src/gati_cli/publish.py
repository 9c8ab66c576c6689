"""`gati publish`: wheels go into a running fabric, whose workers run them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gati_cli._errors import CliError
from gati_cli.target import Target
from gati_cli.versions import run_on
from gati_core.app.publishing import PackageRecord, publish_wheel, wait_until_served
from gati_core.fabric import Fabric


def publish(
    target: Target,
    wheels: list[Path],
    *,
    actor: str,
    reason: str,
    keep_old: bool,
    wait: bool,
    within_s: float,
    as_json: bool,
) -> None:
    """Publish wheels one after another, and wait for each to be served.

    Raises:
        CliError: one was refused or does not start; those before it are published.
    """
    for wheel in wheels:
        if not wheel.is_file():
            what = "is no file" if wheel.exists() else "does not exist: build it with `gati build`"
            raise CliError(f"{wheel} {what}", exit_code=2)
    for wheel in wheels:
        began = time.monotonic()

        async def work(fabric: Fabric, wheel: Path = wheel) -> PackageRecord:
            with _bar(f"storing {wheel.name}", hidden=as_json) as progress:
                record = await publish_wheel(
                    fabric, wheel, actor=actor, reason=reason, keep_old=keep_old, progress=progress
                )
            return await wait_until_served(fabric, record, within_s=within_s) if wait else record

        record = run_on(target, work)
        if as_json:
            told = {**msgspec.structs.asdict(record), "took_s": round(time.monotonic() - began, 3)}
            sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
        else:
            took = f" after {time.monotonic() - began:.1f} s" if wait else ""
            state = "is served" if record.state == "active" else f"is {record.state}"
            print(f"{record.app} {record.version} {state}{took}: {', '.join(sorted(record.handlers))}")


@contextmanager
def _bar(what: str, *, hidden: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal; nothing elsewhere."""
    if hidden or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
