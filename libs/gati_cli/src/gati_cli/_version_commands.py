"""The commands `gati versions …` and `gati rollout …` and their help texts."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from gati_cli._options import Json, NatsUrl, Surroundings
from gati_cli.target import Target

versions = typer.Typer(
    help="Versions of handlers: which there are, their tags, and which of them end.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
rollout = typer.Typer(
    help="Which version those get who ask for none: the newest, or a share of the callers another one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Handler = Annotated[
    str, typer.Argument(metavar="HANDLER", help="`app:handler`, or the handler alone where one app has it.")
]
Version = Annotated[
    str, typer.Argument(metavar="VERSION", help="A tag, a TSV, a semantic version, a time, or `newest`.")
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept in the change log.")]
Force = Annotated[bool, typer.Option("--force", help="Also a version that a tag protects, or the newest one.")]


def target_of(context: typer.Context, nats_url: str) -> Target:
    """The fabric that a command is about."""
    from gati_cli.target import find_target

    around: Surroundings = context.obj
    return find_target(nats_url, around.environ, around.directory)


def current_actor() -> str:
    """Who changes something, for the change log."""
    try:
        return f"user:{getpass.getuser()}"
    except (KeyError, OSError):
        return "user:unknown"  # a container may run under a number that has no name


@versions.command("list")
def list_versions(
    context: typer.Context,
    handler: Annotated[str, typer.Argument(metavar="[HANDLER]", help="Of this handler alone.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Also those that are deactivated.")] = False,
    nats_url: NatsUrl = "",
    as_json: Json = False,
) -> None:
    """List the versions of all handlers, the newest first, with their status, tags and requests."""
    from gati_cli import versions as run

    run.list_versions(target_of(context, nats_url), handler, everything=everything, as_json=as_json)


@versions.command()
def show(
    context: typer.Context, handler: Handler, version: Version, nats_url: NatsUrl = "", as_json: Json = False
) -> None:
    """Show one version: what it is, who uses it, whether it breaks clients, and what happened to it."""
    from gati_cli import versions as run

    run.show(target_of(context, nats_url), handler, version, as_json=as_json)


@versions.command()
def tag(
    context: typer.Context,
    handler: Handler,
    version: Version,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="1 to 64 letters, digits and . _ + - are.")],
    nats_url: NatsUrl = "",
) -> None:
    """Give a version a name that clients can ask for. `stable`, `production` and `latest` protect it."""
    from gati_cli import versions as run

    run.tag(target_of(context, nats_url), handler, version, label, actor=current_actor())


@versions.command()
def untag(
    context: typer.Context,
    handler: Handler,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="As `gati versions list` shows it.")],
    nats_url: NatsUrl = "",
) -> None:
    """Take a tag off its version."""
    from gati_cli import versions as run

    run.untag(target_of(context, nats_url), handler, label, actor=current_actor())


@versions.command()
def diff(
    context: typer.Context,
    handler: Handler,
    old: Version,
    new: Annotated[str, typer.Argument(metavar="VERSION", help="Compared with it; the newest by default.")] = "newest",
    as_json: Json = False,
    nats_url: NatsUrl = "",
) -> None:
    """Compare two versions of a handler. Exit code 1 if the change breaks clients."""
    from gati_cli import versions as run

    raise typer.Exit(run.diff(target_of(context, nats_url), handler, old, new, as_json=as_json))


@versions.command()
def deactivate(
    context: typer.Context,
    handler: Handler,
    version: Version,
    reason: Reason = "",
    force: Force = False,
    nats_url: NatsUrl = "",
) -> None:
    """End a version: routers send it nothing any more. Its clients get what the versioning guide says."""
    from gati_cli import versions as run

    run.deactivate(target_of(context, nats_url), handler, version, actor=current_actor(), reason=reason, force=force)


@versions.command()
def reactivate(
    context: typer.Context, handler: Handler, version: Version, reason: Reason = "", nats_url: NatsUrl = ""
) -> None:
    """Take a deactivated version back; it serves as soon as a worker runs it."""
    from gati_cli import versions as run

    run.reactivate(target_of(context, nats_url), handler, version, actor=current_actor(), reason=reason)


@versions.command()
def deprecate(
    context: typer.Context,
    handler: Handler,
    version: Version,
    sunset: Annotated[
        str, typer.Option("--sunset", metavar="TIME", help="When it may vanish, for example 2026-12-31T00:00:00Z.")
    ] = "",
    undo: Annotated[bool, typer.Option("--undo", help="Take it back.")] = False,
    reason: Reason = "",
    nats_url: NatsUrl = "",
) -> None:
    """Tell a version's clients to move on, in the headers `deprecation` and `sunset` of their answers."""
    from gati_cli import versions as run

    run.deprecate(
        target_of(context, nats_url), handler, version, sunset=sunset, undo=undo, reason=reason, actor=current_actor()
    )


@versions.command()
def stub(
    context: typer.Context,
    handler: Handler,
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="The changed package, as for `gati check`.")] = ".",
    version: Annotated[
        str, typer.Option("--from", metavar="VERSION", help="The version whose clients it is for.")
    ] = "newest",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there, if nothing is there yet.")
    ] = None,
    nats_url: NatsUrl = "",
) -> None:
    """Write the beginning of a transformer: a function for each direction, with a TODO for each breaking change."""
    from gati_cli import versions as run

    around: Surroundings = context.obj
    run.stub(target_of(context, nats_url), handler, version, package=package, directory=around.directory, output=output)


@versions.command()
def keep(
    context: typer.Context,
    handler: Handler,
    version: Version,
    undo: Annotated[bool, typer.Option("--undo", help="Leave it to the sweep again.")] = False,
    nats_url: NatsUrl = "",
) -> None:
    """Keep a version, however little it is used."""
    from gati_cli import versions as run

    run.keep(target_of(context, nats_url), handler, version, actor=current_actor(), wanted=not undo)


@versions.command("log")
def show_log(
    context: typer.Context,
    handler: Annotated[str, typer.Argument(metavar="[HANDLER]", help="Of this handler alone.")] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="From then on, for example 2026-12-31T00:00:00Z.")] = "",
    until: Annotated[str, typer.Option(metavar="TIME", help="Before then.")] = "",
    kinds: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Of this type, such as tagged (repeatable).")
    ] = None,
    actor: Annotated[str, typer.Option(metavar="NAME", help="By whom, or the beginning of that, such as user:.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the last ones.")] = 20,
    nats_url: NatsUrl = "",
    as_json: Json = False,
) -> None:
    """Show what was changed, by whom and why, the oldest first."""
    from gati_cli import versions as run

    wanted = run.filter_of(since=since, until=until, types=kinds or [], actor=actor)
    run.show_log(target_of(context, nats_url), handler, wanted, limit=limit, as_json=as_json)


@versions.command()
def sweep(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    nats_url: NatsUrl = "",
    as_json: Json = False,
) -> None:
    """Classify all versions by their use now, and end those that are hardly used, as routers do once an hour.

    The policy is read from GATI_SWEEP_* as routers read it.
    """
    from gati_cli import versions as run

    around: Surroundings = context.obj
    run.sweep(target_of(context, nats_url), around.environ, dry_run=dry_run, as_json=as_json)


@rollout.command("show")
def show_rollout(context: typer.Context, handler: Handler, nats_url: NatsUrl = "", as_json: Json = False) -> None:
    """Show who gets which version."""
    from gati_cli import rollout as run

    run.show(target_of(context, nats_url), handler, as_json=as_json)


@rollout.command("all")
def to_all(context: typer.Context, handler: Handler, nats_url: NatsUrl = "") -> None:
    """Everybody gets the newest version, at once."""
    from gati_cli import rollout as run

    run.to_all(target_of(context, nats_url), handler, actor=current_actor())


@rollout.command()
def pin(context: typer.Context, handler: Handler, version: Version, nats_url: NatsUrl = "") -> None:
    """Everybody gets this version, whatever is newer. A tag stays a tag: it may be moved later."""
    from gati_cli import rollout as run

    run.pin(target_of(context, nats_url), handler, version, actor=current_actor())


@rollout.command()
def canary(
    context: typer.Context,
    handler: Handler,
    version: Version,
    percent: Annotated[float, typer.Option(min=0, max=100, help="Share of the callers; the same ones each time.")],
    baseline: Annotated[str, typer.Option(metavar="VERSION", help="What the others get. By default its parent.")] = "",
    steps: Annotated[
        str, typer.Option(metavar="PERCENT,…", help="Shares that it steps up to by itself; the last may be 100.")
    ] = "",
    step_s: Annotated[float, typer.Option("--step-seconds", min=0.1, help="How long each share is watched.")] = 60.0,
    max_error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of failed answers (5xx) above which it is taken back.")
    ] = 0.05,
    max_latency_ratio: Annotated[
        float, typer.Option(min=0.1, help="Mean time over the baseline's above which it is taken back.")
    ] = 2.0,
    min_requests: Annotated[int, typer.Option(min=1, help="Answers before anything is concluded from them.")] = 20,
    nats_url: NatsUrl = "",
) -> None:
    """A share of the callers gets this version, the others the baseline.

    Routers take it back when it fails or is slow, and pin the baseline. With --steps they also let it grow.
    """
    from gati_cli import rollout as run

    run.canary(
        target_of(context, nats_url),
        handler,
        version,
        baseline,
        percent=percent,
        steps=steps,
        step_s=step_s,
        max_error_rate=max_error_rate,
        max_latency_ratio=max_latency_ratio,
        min_requests=min_requests,
        actor=current_actor(),
    )


@rollout.command()
def weighted(
    context: typer.Context,
    handler: Handler,
    shares: Annotated[
        list[str], typer.Argument(metavar="VERSION=PERCENT...", help="What is left of 100 gets the newest.")
    ],
    nats_url: NatsUrl = "",
) -> None:
    """Share the callers among several versions."""
    from gati_cli import rollout as run

    run.weighted(target_of(context, nats_url), handler, shares, actor=current_actor())
