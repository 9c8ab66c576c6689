"""`gati rollout`: who gets which version of those who ask for none."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import msgspec

from gati_cli._errors import CliError
from gati_cli.target import Target
from gati_cli.versions import find_handler, find_version, run_on
from gati_core.errors import KeyConflict
from gati_core.fabric import Fabric, KvBucket
from gati_core.timescape import Rollout, Timeline, fabric_registry, read_rollout, rollout_key

_ATTEMPTS = 10


def show(target: Target, handler: str, *, as_json: bool) -> None:
    """Print it."""

    async def read(fabric: Fabric) -> tuple[Timeline, Rollout]:
        timeline = await find_handler(fabric_registry(fabric), handler)
        key = rollout_key(timeline.app, timeline.handler)
        entry = await KvBucket(fabric.connection, fabric.subjects.config_bucket).get(key)
        return timeline, read_rollout(key, entry.value) if entry is not None else Rollout()

    timeline, found = run_on(target, read)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    newest = timeline.newest.tsv if timeline.newest is not None else "nothing, no version is active"
    print(f"{timeline.app}:{timeline.handler}: {describe(found, newest)}")
    if found.actor:
        print(f"  by {found.actor}{f': {found.note}' if found.note else ''}")


def describe(rollout: Rollout, newest: str) -> str:
    """Who gets what, in a line."""
    if rollout.strategy == "pin":
        return f"all get {rollout.version}"
    if rollout.strategy == "canary":
        ahead = ", ".join(f"{share:g} %" for share in rollout.steps)
        growing = f"; then {ahead}, each after {rollout.step_s:g} s" if ahead else ""
        return f"{rollout.percent:g} % of the callers get {rollout.version}, the others {rollout.baseline}{growing}"
    if rollout.strategy == "weighted":
        shares = [f"{share:g} % get {name}" for name, share in sorted(rollout.weights.items())]
        left = 100 - sum(rollout.weights.values())
        return ", ".join([*shares, f"the other {left:g} % the newest, {newest}"] if left > 0 else shares)
    return f"all get the newest, {newest}"


def to_all(target: Target, handler: str, *, actor: str) -> None:
    """Everybody the newest."""
    _set(target, handler, lambda _timeline: Rollout(strategy="all", actor=actor))


def pin(target: Target, handler: str, version: str, *, actor: str) -> None:
    """Everybody one version."""
    _set(
        target,
        handler,
        lambda timeline: Rollout(strategy="pin", version=_lasting(timeline, version), actor=actor),
    )


def canary(
    target: Target,
    handler: str,
    version: str,
    baseline: str,
    *,
    percent: float,
    steps: str,
    step_s: float,
    max_error_rate: float,
    max_latency_ratio: float,
    min_requests: int,
    actor: str,
) -> None:
    """A share of the callers one version, the others another."""
    ahead = _steps(steps, percent)

    def make(timeline: Timeline) -> Rollout:
        chosen = _lasting(timeline, version)
        other = _lasting(timeline, baseline) if baseline else find_version(timeline, chosen).parent
        if not other:
            raise CliError(f"{chosen} is the first version: name what the others get with --baseline", exit_code=2)
        if find_version(timeline, other).tsv == find_version(timeline, chosen).tsv:
            raise CliError(f"{chosen} and {other} are the same version", exit_code=2)
        return Rollout(
            strategy="canary",
            version=chosen,
            baseline=other,
            percent=percent,
            steps=ahead,
            step_s=step_s,
            max_error_rate=max_error_rate,
            max_latency_ratio=max_latency_ratio,
            min_requests=min_requests,
            actor=actor,
        )

    _set(target, handler, make)


def _steps(text: str, percent: float) -> list[float]:
    """Shares, each larger than the one before."""
    try:
        steps = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        steps = [-1.0]
    if any(not before < after <= 100 for before, after in pairwise([percent, *steps])):
        raise CliError(
            f"--steps {text!r}: write shares that grow from {percent:g} on, for example 25,50,100", exit_code=2
        )
    return steps


def weighted(target: Target, handler: str, shares: list[str], *, actor: str) -> None:
    """Several versions."""

    def make(timeline: Timeline) -> Rollout:
        weights: dict[str, float] = {}
        for share in shares:
            name, _, percent = share.rpartition("=")
            try:
                value = float(percent)
            except ValueError:
                value = -1.0
            if not name or not 0 <= value <= 100:
                raise CliError(f"{share!r} is no share: write VERSION=PERCENT, for example stable=90", exit_code=2)
            chosen = _lasting(timeline, name)
            if chosen in weights:
                raise CliError(f"{name!r} is named twice", exit_code=2)
            weights[chosen] = value
        if sum(weights.values()) > 100:
            raise CliError(f"the shares come to {sum(weights.values()):g} %, more than 100", exit_code=2)
        return Rollout(strategy="weighted", weights=weights, actor=actor)

    _set(target, handler, make)


def _lasting(timeline: Timeline, name: str) -> str:
    """What to write down for a version: a tag stays one; all else is what it means now."""
    found = find_version(timeline, name)
    if not found.is_active:
        raise CliError(f"{found.tsv} is deactivated: take it back first (gati versions reactivate)")
    return name if any(tag.label == name for tag in timeline.tags) else found.tsv


def _set(target: Target, handler: str, make: Callable[[Timeline], Rollout]) -> None:
    async def write(fabric: Fabric) -> tuple[Timeline, Rollout]:
        timeline = await find_handler(fabric_registry(fabric), handler)
        made = msgspec.structs.replace(make(timeline), stepped_ms=time.time_ns() // 1_000_000)
        bucket = KvBucket(fabric.connection, fabric.subjects.config_bucket)
        key, data = rollout_key(timeline.app, timeline.handler), msgspec.json.encode(made)
        for _ in range(_ATTEMPTS):
            entry = await bucket.get(key)
            try:
                if entry is None:
                    await bucket.create(key, data)
                else:
                    await bucket.update(key, data, revision=entry.revision)
            except KeyConflict:
                continue
            return timeline, made
        raise CliError(f"the rollout of {timeline.handler} was changed by others {_ATTEMPTS} times in a row")

    timeline, made = run_on(target, write)
    newest = timeline.newest.tsv if timeline.newest is not None else "nothing, no version is active"
    print(f"{timeline.app}:{timeline.handler}: {describe(made, newest)}")
