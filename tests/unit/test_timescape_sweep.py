"""Hot, warm and cold, and which versions end: each rule at its boundary."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gati_core.timescape import (
    HandlerUsage,
    Rollout,
    SweepPolicy,
    Tag,
    Timeline,
    Verdict,
    VersionRecord,
    VersionUsage,
    classify,
    plan_sweep,
)

NOW_S = 2_000_000_000.0
DAY_S = 86_400
POLICY = SweepPolicy()
OLD, NEW = "tsv:1-h-001", "tsv:2-h-002"


def record(tsv: str = OLD, *, age_s: float = 30 * DAY_S, **fields: Any) -> VersionRecord:
    registered_ms = int((NOW_S - age_s) * 1000)
    return VersionRecord(tsv=tsv, fingerprint=tsv, methods=["GET"], path="/h", registered_ms=registered_ms, **fields)


def used(count: int, *, ago_s: float = 0.0) -> VersionUsage:
    usage = VersionUsage()
    if count:
        usage.add(count, NOW_S - ago_s)
    return usage


def verdict(
    old: VersionRecord,
    usage: VersionUsage,
    policy: SweepPolicy = POLICY,
    *,
    tags: tuple[str, ...] = (),
    rollout: Rollout | None = None,
) -> Verdict:
    """Of the older of two versions."""
    timeline = Timeline(
        app="shop",
        handler="h",
        versions=[old, record(NEW)],
        tags=[Tag(label=label, tsv=OLD) for label in tags],
    )
    found = plan_sweep(
        timeline, HandlerUsage(app="shop", handler="h", versions={OLD: usage}), policy, now_s=NOW_S, rollout=rollout
    )
    assert [each.tsv for each in found][-1] == NEW
    assert (found[-1].status != "deactivated", found[-1].tsv) == (True, NEW)
    return found[0]


# -- how a version is used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "ago_s", "status"),
    [
        (100, 0, "hot"),
        (99, 0, "warm"),
        (100, 3 * DAY_S, "warm"),
        (1, 7 * DAY_S, "warm"),
        (1, 7 * DAY_S + 1, "cold"),
        (0, 0, "cold"),
    ],
    ids=["hot", "just not hot", "was hot once", "just not cold", "cold", "never asked for"],
)
def test_a_version_is_classified_by_its_last_requests(count: int, ago_s: float, status: str) -> None:
    assert classify(record(), used(count, ago_s=ago_s), POLICY, now_s=NOW_S) == status


def test_a_version_that_is_new_is_not_cold_although_nobody_asked_yet() -> None:
    assert classify(record(age_s=6 * DAY_S), used(0), POLICY, now_s=NOW_S) == "warm"


# -- what ends ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "status", "reason"),
    [
        (used(50, ago_s=8 * DAY_S), "deactivated", "cold"),
        (used(9), "deactivated", "low_usage"),
        (used(10), "warm", "warm"),
        (used(500), "hot", "hot"),
    ],
    ids=["nobody for a week", "hardly ever", "just enough", "plenty"],
)
def test_what_is_cold_or_hardly_used_ends(usage: VersionUsage, status: str, reason: str) -> None:
    found = verdict(record(), usage)

    assert (found.status, found.reason, found.spared) == (status, reason, "")


def test_what_was_ended_by_hand_ends_however_much_it_is_used() -> None:
    found = verdict(record(override="deactivate"), used(500), tags=("stable",))

    assert (found.status, found.reason) == ("deactivated", "manual")


@pytest.mark.parametrize(
    ("case", "spared"),
    [
        ({"old": record(age_s=DAY_S - 1)}, "it is fresh"),
        ({"old": record(override="keep")}, "it is kept by hand"),
        ({"tags": ("production",)}, "it has the tag production"),
        ({"policy": SweepPolicy(excluded=("shop",))}, "its handler is excluded"),
        ({"policy": SweepPolicy(excluded=("shop:h",))}, "its handler is excluded"),
        ({"policy": SweepPolicy(enabled=False)}, "sweeping is off"),
        ({"rollout": Rollout(strategy="pin", version=OLD)}, "its handler's rollout names it"),
        ({"rollout": Rollout(strategy="canary", version=NEW, baseline=OLD)}, "its handler's rollout names it"),
        (
            {"rollout": Rollout(strategy="weighted", weights={"mine": 5}), "tags": ("mine",)},
            "its handler's rollout names it",
        ),
        ({"policy": SweepPolicy(protected_tags=("mine",)), "tags": ("mine",)}, "it has the tag mine"),
    ],
)
def test_what_is_hardly_used_goes_on_for_a_reason_that_is_told(case: dict[str, Any], spared: str) -> None:
    found = verdict(case.pop("old", record()), used(0), **case)

    assert (found.spared, found.status != "deactivated") == (spared, True)


@pytest.mark.parametrize(
    "case",
    [
        {"old": record(age_s=DAY_S)},
        {"tags": ("mine",)},
        {"policy": SweepPolicy(excluded=("shop:other", "other"))},
        {"rollout": Rollout(strategy="pin", version=NEW)},
        {"policy": SweepPolicy(protected_tags=()), "tags": ("stable",)},
    ],
    ids=["no longer fresh", "a tag that protects nothing", "others are excluded", "another is pinned", "no protection"],
)
def test_what_nothing_spares_ends(case: dict[str, Any]) -> None:
    assert verdict(case.pop("old", record()), used(0), **case).status == "deactivated"


def test_the_newest_goes_on_although_nobody_asks_for_it() -> None:
    alone = Timeline(app="shop", handler="h", versions=[record()])

    (found,) = plan_sweep(alone, HandlerUsage(app="shop", handler="h", versions={}), POLICY, now_s=NOW_S)

    assert (found.status, found.spared, found.is_change) == ("cold", "it is the newest", True)


def test_the_newest_that_is_active_is_spared_and_those_that_have_ended_are_left_alone() -> None:
    both = Timeline(app="shop", handler="h", versions=[record(), replace(record(NEW), status="deactivated")])

    (found,) = plan_sweep(both, HandlerUsage(app="shop", handler="h", versions={}), POLICY, now_s=NOW_S)

    assert (found.tsv, found.spared) == (OLD, "it is the newest")


# -- counting -------------------------------------------------------------------------------------


def test_requests_are_counted_by_the_hour_and_hours_are_forgotten_after_eight_days() -> None:
    usage = VersionUsage()
    for hour in range(10 * 24, -1, -1):
        usage.add(2, NOW_S - hour * 3600)

    assert (usage.total, usage.last_s, len(usage.hours)) == (2 * (10 * 24 + 1), int(NOW_S), 8 * 24)
    assert [usage.within(days * DAY_S, NOW_S) for days in (1, 2, 30)] == [2 * 24, 2 * 48, 2 * 8 * 24]
