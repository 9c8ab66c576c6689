"""The commands `gati versions snapshot …` and their help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gati_cli._options import Json, NatsUrl, Surroundings
from gati_cli._version_commands import current_actor, target_of

snapshot = typer.Typer(
    help="Snapshots of all versions: take one, restore one, keep one in a file.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Id = Annotated[str, typer.Argument(metavar="ID", help="As `gati versions snapshot list` shows it, or `latest`.")]


@snapshot.command()
def create(
    context: typer.Context,
    heavy: Annotated[
        bool, typer.Option("--heavy", help="Also the manifests, types and transformers of all versions.")
    ] = False,
    nats_url: NatsUrl = "",
    as_json: Json = False,
) -> None:
    """Take a snapshot now.

    It has all versions with their tags and status, rollouts, what was counted, and what was published.
    """
    from gati_cli import snapshots as run

    run.create(target_of(context, nats_url), heavy=heavy, actor=current_actor(), as_json=as_json)


@snapshot.command("list")
def list_snapshots(context: typer.Context, nats_url: NatsUrl = "", as_json: Json = False) -> None:
    """List the snapshots in the fabric, the newest first."""
    from gati_cli import snapshots as run

    run.list_snapshots(target_of(context, nats_url), as_json=as_json)


@snapshot.command()
def show(context: typer.Context, id: Id, nats_url: NatsUrl = "", as_json: Json = False) -> None:
    """Read one snapshot, check all of it, and show what is in it."""
    from gati_cli import snapshots as run

    run.show(target_of(context, nats_url), id, as_json=as_json)


@snapshot.command()
def restore(
    context: typer.Context,
    id: Id,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Give up versions that were registered since.")] = False,
    nats_url: NatsUrl = "",
    as_json: Json = False,
) -> None:
    """Bring back what a snapshot has, after saying what that changes. Nothing that it does not have is deleted.

    Versions that were registered since are in the way, unless you give them up with --force.
    """
    from gati_cli import snapshots as run

    run.restore(
        target_of(context, nats_url), id, dry_run=dry_run, yes=yes, force=force, actor=current_actor(), as_json=as_json
    )


@snapshot.command()
def prune(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would delete.")] = False,
    nats_url: NatsUrl = "",
    as_json: Json = False,
) -> None:
    """Delete snapshots that are too old, as routers do.

    The newest of each type stays. How old the others may be is read from GATI_SNAPSHOT_RETENTION_S, as routers read
    it: 90 days by default.
    """
    from gati_cli import snapshots as run

    around: Surroundings = context.obj
    run.prune(target_of(context, nats_url), around.environ, dry_run=dry_run, as_json=as_json)


@snapshot.command()
def delete(context: typer.Context, id: Id, nats_url: NatsUrl = "") -> None:
    """Delete one snapshot."""
    from gati_cli import snapshots as run

    run.delete(target_of(context, nats_url), id)


@snapshot.command("export")
def export_file(
    context: typer.Context,
    id: Id,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it there, if nothing is there yet."),
    ] = None,
    nats_url: NatsUrl = "",
) -> None:
    """Write a snapshot to a file, for another fabric or another place."""
    from gati_cli import snapshots as run

    around: Surroundings = context.obj
    run.export_file(target_of(context, nats_url), id, directory=around.directory, output=output)


@snapshot.command("import")
def import_file(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As `gati versions snapshot export` wrote it.")],
    nats_url: NatsUrl = "",
    as_json: Json = False,
) -> None:
    """Check a file and put its snapshot into the fabric. It changes no version: `restore` does."""
    from gati_cli import snapshots as run

    around: Surroundings = context.obj
    run.import_file(target_of(context, nats_url), around.directory / file, as_json=as_json)
