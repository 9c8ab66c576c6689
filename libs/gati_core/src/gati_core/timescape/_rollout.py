"""Which share of the requests that ask for no version gets which one."""

from __future__ import annotations

import zlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from gati_core.errors import MalformedManifest
from gati_core.wire.subjects import key_token, read_key_token

_SHARES = 10_000
Percent = Annotated[float, Meta(ge=0, le=100)]


class Rollout(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the traffic of one handler is shared; key `rollout.<app>.<handler>` in `{ns}_config`."""

    strategy: Literal["all", "pin", "canary", "weighted"] = "all"
    """`all`: the newest version. `pin`: `version`. `canary`: `percent` of the callers get `version`, the others
    `baseline`. `weighted`: as in `weights`."""
    version: str = ""
    """A TSV or a tag."""
    baseline: str = ""
    """A TSV or a tag."""
    percent: Percent = 0.0
    weights: dict[str, Percent] = {}
    """TSV or tag to its share; what is left of 100 goes to the newest version."""
    steps: list[Percent] = []
    """Of a canary: the percentages still to come."""
    step_s: Annotated[float, Meta(gt=0)] = 60.0
    """Seconds that each of them is watched for."""
    max_error_rate: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Share of answers with a status from 500 on at which a canary is taken back."""
    max_latency_ratio: Annotated[float, Meta(gt=0)] = 2.0
    """Mean time against the baseline's at which a canary is taken back."""
    min_requests: Annotated[int, Meta(ge=1)] = 20
    """Answers of the canary before anything is concluded from them."""
    stepped_ms: int = 0
    """Unix time of the last step."""
    actor: str = ""
    note: str = ""
    """Why it is as it is, for people."""


class Observed(msgspec.Struct, kw_only=True):
    """What was seen of a version in a while."""

    answers: int = 0
    errors: int = 0
    """Of these, with a status from 500 on."""
    seconds: float = 0.0
    """Of all answers together."""

    @property
    def error_rate(self) -> float:
        """Share of the answers."""
        return self.errors / self.answers if self.answers else 0.0

    @property
    def mean_s(self) -> float:
        """Of an answer."""
        return self.seconds / self.answers if self.answers else 0.0


_LATENCY_FLOOR_S = 0.001
"""Below this nobody notices that something takes twice as long."""


def next_step(
    rollout: Rollout, canary: Observed, baseline: Observed, *, now_ms: int, is_newest: bool
) -> Rollout | None:
    """What becomes of a canary; None while it stays as it is.

    Args:
        canary, baseline: what was seen of both since the last step.
        is_newest: whether the canary is the handler's newest version.
    """
    if rollout.strategy != "canary" or canary.answers < rollout.min_requests:
        return None
    fault = ""
    if canary.error_rate > rollout.max_error_rate:
        fault = f"{canary.errors} of {canary.answers} answers failed, more than {rollout.max_error_rate * 100:g} %"
    elif baseline.answers >= rollout.min_requests and canary.mean_s > max(
        baseline.mean_s * rollout.max_latency_ratio, _LATENCY_FLOOR_S
    ):
        fault = (
            f"answers took {canary.mean_s * 1000:.1f} ms, more than {rollout.max_latency_ratio:g} times"
            f" {baseline.mean_s * 1000:.1f} ms"
        )
    if fault:
        note = f"the canary {rollout.version} was taken back at {rollout.percent:g} %: {fault}"
        return Rollout(strategy="pin", version=rollout.baseline, stepped_ms=now_ms, actor="canary", note=note)
    if not rollout.steps or now_ms - rollout.stepped_ms < rollout.step_s * 1000:
        return None
    percent = rollout.steps[0]
    if percent < 100:
        note = f"{canary.answers - canary.errors} of {canary.answers} answers were well at {rollout.percent:g} %"
        return replace(rollout, percent=percent, steps=rollout.steps[1:], stepped_ms=now_ms, actor="canary", note=note)
    note = f"the canary {rollout.version} has passed all its steps"
    if is_newest:
        return Rollout(strategy="all", stepped_ms=now_ms, actor="canary", note=note)
    return Rollout(strategy="pin", version=rollout.version, stepped_ms=now_ms, actor="canary", note=note)


def rollout_key(app: str, handler: str) -> str:
    """The key of a handler's rollout in `{ns}_config`."""
    return f"rollout.{key_token(app)}.{key_token(handler)}"


def rollout_names(key: str) -> tuple[str, str] | None:
    """App and handler that a key of `{ns}_config` belongs to; None for a key of another kind."""
    parts = key.split(".")
    if len(parts) != 3 or parts[0] != "rollout":
        return None
    return read_key_token(parts[1]), read_key_token(parts[2])


def read_rollout(key: str, value: bytes) -> Rollout:
    """A stored rollout.

    Raises:
        MalformedManifest: it is none; names the key and the field.
    """
    try:
        return msgspec.json.decode(value, type=Rollout)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise MalformedManifest(f"{key}: {exc}") from exc


def share_of(key: str, salt: str) -> int:
    """A caller's place among 10,000: the same for the same key and salt, in every process.

    >>> share_of("ann", "tsv:1-place_order-002") == share_of("ann", "tsv:1-place_order-002")
    True
    """
    return zlib.crc32(f"{salt}\0{key}".encode()) % _SHARES


def is_chosen(key: str, salt: str, percent: float) -> bool:
    """Whether a caller is among the first `percent` of all. Who is chosen stays so when the share grows."""
    return share_of(key, salt) < percent * (_SHARES / 100)
