"""The commands and their help texts; each imports its own module when it runs."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from gati_cli._errors import CliError
from gati_cli._options import Json, NatsUrl, Surroundings
from gati_cli._snapshot_commands import snapshot
from gati_cli._version_commands import current_actor, rollout, versions

app = typer.Typer(
    name="gati",
    help="Run and look after a Gati fabric: HTTP requests become messages, messages run your handlers.",
    epilog="Start with: gati dev PATH_TO_YOUR_PACKAGE",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
dead = typer.Typer(
    help="Messages that could not be handled: list them, look at one, run them again.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(dead, name="dead")

versions.add_typer(snapshot, name="snapshot")
app.add_typer(versions, name="versions")
app.add_typer(rollout, name="rollout")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gati {version('gati-cli')}")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Run and look after a Gati fabric: HTTP requests become messages, messages run your handlers."""


@app.command()
def dev(
    context: typer.Context,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATHS]...",
            help="Handler packages: a .py file, a directory with __init__.py, or a project with pyproject.toml."
            " The current directory when none is given.",
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="HTTP port; 0 takes any free one. Otherwise GATI_INGRESS_PORT, or 8080."),
    ] = None,
    nats_url: Annotated[
        str,
        typer.Option(
            "--nats-url",
            metavar="URL",
            help="Use this broker, or the one in GATI_NATS_URL, instead of starting an embedded one.",
        ),
    ] = "",
) -> None:
    """Run your handler packages on this machine and reload them whenever you save.

    Starts a broker (its state stays in .gati/nats), an ingress, a router and a worker, prints the
    routes and how to call them, and runs until Ctrl-C, which stops everything it started.
    """
    from gati_cli.dev import DevOptions, run_dev

    around: Surroundings = context.obj
    options = DevOptions(
        paths=tuple(paths or [Path()]),
        port=port,
        nats_url=nats_url or around.environ.get("GATI_NATS_URL", ""),
        directory=around.directory,
    )
    raise typer.Exit(run_dev(options, around.environ))


Packages = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PACKAGES]...",
        help="A .py file, a directory with __init__.py, a project with pyproject.toml, the name of an installed"
        " package, or a file that `gati check --json` wrote. The current directory when none is given.",
    ),
]


@app.command()
def check(
    context: typer.Context,
    packages: Packages = None,
    as_json: Json = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the JSON to this file as well.")
    ] = None,
) -> None:
    """Read packages without running them: handlers, types, hooks, policies, and what is wrong with them.

    Their modules are imported in a process that may not open connections, start programs or change files;
    handlers, hooks and start-up functions do not run. Exit code 1 if anything is wrong.
    """
    from gati_cli.check import check as run_check

    around: Surroundings = context.obj
    raise typer.Exit(run_check(packages or [], around.directory, as_json=as_json, output=output))


@app.command()
def diff(
    context: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", help="A package, as for `gati check`, or its saved JSON.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The same, of the newer version.")],
    as_json: Json = False,
    colour: Annotated[
        bool | None, typer.Option("--colour/--no-colour", help="Colours; by default only on a terminal.")
    ] = None,
) -> None:
    """Compare two versions of a package: which changes break clients, and where. Exit code 1 if any does."""
    from gati_cli.diff import diff as run_diff

    around: Surroundings = context.obj
    raise typer.Exit(run_diff(old, new, around.directory, as_json=as_json, colour=colour))


@app.command()
def generate(
    context: typer.Context,
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="validators (Python, TypeScript), types (TypeScript), sdk (TypeScript client), client (Python"
            " client), openapi, schemas (JSON Schema), bundle, or all.",
        ),
    ],
    packages: Packages = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write.")] = Path("generated"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if a file is not up to date.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Write again whenever a source file changes.")] = False,
) -> None:
    """Generate code and documents from the types of packages. The same input gives the same files."""
    from gati_cli.generate import generate as run_generate

    around: Surroundings = context.obj
    raise typer.Exit(run_generate(kind, packages or [], around.directory, output, check=check, watch=watch))


@app.command()
def build(
    context: typer.Context,
    project: Annotated[
        Path, typer.Argument(metavar="[PROJECT]", help="A directory with pyproject.toml; the current one by default.")
    ] = Path(),
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the wheel goes.")] = Path("dist"),
    offline: Annotated[
        bool, typer.Option("--offline", help="Use no network: take the build backend from uv's cache or from here.")
    ] = False,
    find_links: Annotated[
        Path | None, typer.Option("--find-links", metavar="DIR", help="A directory with wheels of build backends.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Build a project's wheel, check what is in it as `gati check` does, and write its manifest into it.

    The same project gives the same bytes. Exit code 1 if it cannot be built or anything is wrong with it; then
    no wheel is written.
    """
    from gati_cli.build import build as run_build

    around: Surroundings = context.obj
    run_build(project, around.directory, output, offline=offline, find_links=find_links, as_json=as_json)


@app.command()
def publish(
    context: typer.Context,
    wheels: Annotated[list[Path], typer.Argument(metavar="WHEEL...", help="What `gati build` wrote into dist/.")],
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Go on although clients break: theirs stays the old version.")
    ] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept with the package.")] = "",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until a worker serves it.")] = True,
    within: Annotated[float, typer.Option(min=1, max=3600, metavar="SECONDS", help="How long to wait.")] = 60.0,
    nats_url: NatsUrl = "",
    as_json: Json = False,
) -> None:
    """Publish wheels into a running fabric: its workers fetch them, and serve them beside what runs.

    A change that breaks clients and has no transformer is refused. What does not start changes nothing for anybody.
    """
    from gati_cli.publish import publish as run_publish
    from gati_cli.target import find_target

    around: Surroundings = context.obj
    run_publish(
        find_target(nats_url, around.environ, around.directory),
        [around.directory / wheel for wheel in wheels],
        actor=current_actor(),
        reason=reason,
        keep_old=keep_old,
        wait=wait,
        within_s=within,
        as_json=as_json,
    )


@app.command()
def routes(context: typer.Context, nats_url: NatsUrl = "", as_json: Json = False) -> None:
    """Show every route of the fabric: who serves it, how it is delivered, and whether a worker lives."""
    from gati_cli.routes import show_routes
    from gati_cli.target import find_target

    around: Surroundings = context.obj
    show_routes(find_target(nats_url, around.environ, around.directory), as_json=as_json)


@app.command()
def doctor(context: typer.Context, nats_url: NatsUrl = "", as_json: Json = False) -> None:
    """Check what is reachable and which versions run, and say what to do. Exit code 1 if anything fails."""
    from gati_cli.doctor import examine
    from gati_cli.target import find_target

    around: Surroundings = context.obj
    target = find_target(nats_url, around.environ, around.directory)
    raise typer.Exit(examine(target, around.environ, as_json=as_json))


@app.command()
def trace(
    context: typer.Context,
    request_id: Annotated[str, typer.Argument(help="As its answer's x-request-id says.")],
    nats_url: NatsUrl = "",
    as_json: Json = False,
) -> None:
    """Show what happened to a request that was sent with the header `x-gati-flags: trace`, for an hour."""
    from gati_cli.target import find_target
    from gati_cli.trace import show_trace

    around: Surroundings = context.obj
    show_trace(find_target(nats_url, around.environ, around.directory), request_id, as_json=as_json)


@dead.command("list")
def dead_list(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, newest first.")] = 20,
    nats_url: NatsUrl = "",
    as_json: Json = False,
) -> None:
    """List dead letters, the newest first, with the reason why each was given up."""
    from gati_cli.dead import list_dead
    from gati_cli.target import find_target

    around: Surroundings = context.obj
    list_dead(find_target(nats_url, around.environ, around.directory), limit=limit, as_json=as_json)


@dead.command("show")
def dead_show(
    context: typer.Context,
    number: Annotated[int, typer.Argument(min=1, help="The number that `gati dead list` shows.")],
    nats_url: NatsUrl = "",
) -> None:
    """Show one dead letter: its cause, its headers, and the message itself."""
    from gati_cli.dead import show_dead
    from gati_cli.target import find_target

    around: Surroundings = context.obj
    show_dead(find_target(nats_url, around.environ, around.directory), number)


@dead.command("requeue")
def dead_requeue(
    context: typer.Context,
    numbers: Annotated[list[int] | None, typer.Argument(min=1, help="Numbers that `gati dead list` shows.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Requeue every dead letter that can run again.")] = False,
    nats_url: NatsUrl = "",
) -> None:
    """Run what died again: a request under a new id and with a new deadline, or an event of a topic.

    Nobody waits for the answer of a request any more; what the handler does still happens. An event
    goes to the group that gave it up, and to no other.
    """
    from gati_cli.dead import requeue_dead
    from gati_cli.target import find_target

    if bool(numbers) == everything:
        raise CliError("name the dead letters to requeue, or pass --all", exit_code=2)
    around: Surroundings = context.obj
    requeue_dead(find_target(nats_url, around.environ, around.directory), numbers or [], everything=everything)
