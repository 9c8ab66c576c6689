"""Which code runs: every row of the table, on a timeline small enough to see."""

from __future__ import annotations

from typing import Any

import pytest

from gati_core.errors import RequestError, TagNotFound, VersionNotFound
from gati_core.timescape import MAX_HOPS, Choice, Rollout, Tag, Timeline, VersionRecord, Versions, is_chosen


def version(number: int, **fields: Any) -> VersionRecord:
    """The version `tsv:<n>00-h-<n>`; its parent is the one before it, its fingerprint `f<n>`."""
    return VersionRecord(
        tsv=f"tsv:{number}00-h-{number:03}",
        fingerprint=f"f{number}",
        methods=["GET"],
        path="/h",
        **{"parent": f"tsv:{number - 1}00-h-{number - 1:03}" if number > 1 else "", **fields},
    )


FIRST, SECOND, THIRD = (f"tsv:{n}00-h-{n:03}" for n in (1, 2, 3))
BREAKS = {"breaking": True}
ENDED: dict[str, Any] = {"status": "deactivated"}


def versions(
    *records: VersionRecord, live: str = "123", tags: dict[str, str] | None = None, **options: Any
) -> Versions[str]:
    """What runs where: `live` has the numbers of the versions that do; the target of version n is `pool n`."""
    timeline = Timeline(
        app="shop",
        handler="h",
        versions=list(records),
        tags=[Tag(label=label, tsv=tsv) for label, tsv in sorted((tags or {}).items())],
    )
    return Versions(timeline, {f"f{n}": f"pool {n}" for n in live}, **options)


def seen(choice: Choice[str]) -> tuple[str, str | None, tuple[str, ...]]:
    """The version that the client gets, where it runs, and the way between them."""
    return choice.resolved.tsv, choice.target, choice.hops


# -- the table ------------------------------------------------------------------------------------


def test_no_version_asked_the_newest_runs() -> None:
    latest = versions(version(1), version(2), version(3, **BREAKS)).latest

    assert latest is not None
    assert (seen(latest), latest.source) == ((THIRD, "pool 3", ()), "latest")


def test_no_version_asked_the_newest_that_lives_runs() -> None:
    latest = versions(version(1), version(2), version(3), live="12").latest

    assert latest is not None
    assert seen(latest) == (SECOND, "pool 2", ())


def test_no_version_asked_one_that_was_deactivated_is_never_the_newest() -> None:
    latest = versions(version(1), version(2), version(3, **ENDED)).latest

    assert latest is not None
    assert seen(latest) == (SECOND, "pool 2", ())


def test_an_old_version_with_a_chain_is_served_by_the_newest_translated_on_the_way() -> None:
    chosen = versions(
        version(1), version(2, **BREAKS, transforms=[FIRST]), version(3, **BREAKS, transforms=[FIRST, SECOND])
    ).choose(FIRST)

    assert seen(chosen) == (FIRST, "pool 3", (FIRST, SECOND, THIRD))
    assert chosen.tsv == THIRD
    assert chosen.fallback == "pool 1"


def test_a_change_that_breaks_nobody_needs_no_transformer_in_a_chain() -> None:
    chosen = versions(version(1), version(2), version(3, **BREAKS, transforms=[SECOND])).choose(FIRST)

    assert seen(chosen) == (FIRST, "pool 3", (FIRST, SECOND, THIRD))


def test_an_old_version_without_a_complete_chain_runs_itself() -> None:
    chosen = versions(version(1), version(2, **BREAKS), version(3, **BREAKS, transforms=[SECOND])).choose(FIRST)

    assert seen(chosen) == (FIRST, "pool 1", ())


def test_a_chain_to_an_older_living_version_is_taken_where_the_newest_does_not_live() -> None:
    chosen = versions(
        version(1),
        version(2, **BREAKS, transforms=[FIRST]),
        version(3, **BREAKS, transforms=[FIRST, SECOND]),
        live="12",
    ).choose(FIRST)

    assert seen(chosen) == (FIRST, "pool 2", (FIRST, SECOND))


def test_an_old_version_that_does_not_run_is_served_by_the_newest_where_nothing_breaks() -> None:
    for ended in ({}, ENDED):
        chosen = versions(version(1, **ended), version(2), version(3), live="3").choose(FIRST)
        assert seen(chosen) == (FIRST, "pool 3", ())


def test_an_old_version_that_has_ended_is_404_where_some_change_breaks() -> None:
    router = versions(version(1, **ENDED), version(2), version(3, **BREAKS), live="3", tags={"v3": THIRD})

    with pytest.raises(VersionNotFound, match="does not run any more, and no other takes its clients") as missing:
        router.choose(FIRST)

    assert missing.value.status == 404
    assert missing.value.available == ["v3", THIRD, SECOND]


def test_without_a_fallback_the_chain_still_leads_on_and_nothing_is_left_if_it_fails() -> None:
    chosen = versions(version(1, **ENDED), version(2, **BREAKS, transforms=[FIRST]), live="12").choose(FIRST)

    assert (seen(chosen), chosen.fallback) == ((FIRST, "pool 2", (FIRST, SECOND)), None)


def test_a_version_that_vanished_is_served_by_an_older_one_that_takes_its_clients() -> None:
    chosen = versions(version(1), version(2), version(3, **BREAKS), live="1").choose(SECOND)

    assert seen(chosen) == (SECOND, "pool 1", ())


def test_a_version_that_vanished_waits_where_the_older_one_does_not_take_its_clients() -> None:
    chosen = versions(version(1), version(2, breaking_back=True), version(3, **BREAKS), live="1").choose(SECOND)

    assert seen(chosen) == (SECOND, None, ())


# -- chains ---------------------------------------------------------------------------------------


def test_the_package_that_runs_must_bring_every_transformer_on_the_way() -> None:
    chosen = versions(
        version(1), version(2, **BREAKS, transforms=[FIRST]), version(3, **BREAKS, transforms=[SECOND]), live="13"
    ).choose(FIRST)

    assert seen(chosen) == (FIRST, "pool 1", ())


@pytest.mark.parametrize(("steps", "is_translated"), [(MAX_HOPS, True), (MAX_HOPS + 1, False)])
def test_a_chain_has_at_most_ten_transformers(steps: int, is_translated: bool) -> None:
    records = [version(1)]
    for number in range(2, steps + 2):
        records.append(version(number, **BREAKS, transforms=[each.tsv for each in records]))
    timeline = Timeline(app="shop", handler="h", versions=records)
    router = Versions(timeline, {"f1": "pool 1", f"f{steps + 1}": "newest"})

    assert bool(router.choose(FIRST).hops) is is_translated


def test_sockets_are_never_translated() -> None:
    chosen = versions(version(1), version(2, **BREAKS, transforms=[FIRST]), transforms=False).choose(FIRST)

    assert seen(chosen) == (FIRST, "pool 1", ())


def test_a_version_that_was_passed_over_is_on_no_way() -> None:
    # The second was deactivated when the third came, so the third was compared with the first.
    chosen = versions(
        version(1), version(2, **BREAKS), version(3, parent=FIRST, **BREAKS, transforms=[SECOND]), live="23"
    ).choose(SECOND)

    assert seen(chosen) == (SECOND, "pool 2", ())


# -- asking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preference", "tsv", "source"),
    [
        (FIRST, FIRST, "header"),
        ("?" + FIRST, FIRST, "query"),
        ("stable", SECOND, "tag"),
        ("?stable", SECOND, "tag"),
        ("0000000250", SECOND, "timestamp"),
        ("0000000300", THIRD, "timestamp"),
        ("1970-01-01T00:03:20Z", SECOND, "timestamp"),
        ("v1.4.0", FIRST, "tag"),
        ("1.4.0", FIRST, "tag"),
        ("v1", FIRST, "tag"),
        ("2", SECOND, "tag"),
        ("2.1", SECOND, "tag"),
    ],
)
def test_each_way_of_asking_finds_its_version_and_says_how(preference: str, tsv: str, source: str) -> None:
    router = versions(
        version(1),
        version(2, **BREAKS),
        version(3, **BREAKS),
        tags={"stable": SECOND, "v1.4.0": FIRST, "v2.1.0": SECOND, "v2.2.0-beta.1": THIRD},
    )

    record, found = router.resolve(preference)

    assert (record.tsv, found) == (tsv, source)


def test_a_tag_beats_every_other_reading() -> None:
    # Such tags cannot be given any more; a registry may have one from before.
    router = versions(version(1), version(2), tags={"0000000150": SECOND, "v1": SECOND, "v1.0.0": FIRST})

    assert [router.resolve(text)[0].tsv for text in ("0000000150", "v1")] == [SECOND, SECOND]


@pytest.mark.parametrize(
    ("preference", "error", "code"),
    [
        ("0000000099", VersionNotFound, "version.not_found"),
        ("tsv:100-h-009", VersionNotFound, "version.not_found"),
        ("tsv:100-other-001", VersionNotFound, "version.not_found"),
        ("nobody", TagNotFound, "version.tag_not_found"),
        ("v9", TagNotFound, "version.tag_not_found"),
    ],
)
def test_what_is_not_there_is_404_with_what_is(preference: str, error: type[RequestError], code: str) -> None:
    router = versions(version(1), version(2, **ENDED), version(3), tags={"stable": FIRST})

    with pytest.raises(error) as missing:
        router.choose(preference)

    assert (missing.value.status, missing.value.code) == (404, code)
    assert getattr(missing.value, "available", None) == ["stable", THIRD, FIRST]


def test_an_answer_is_kept_and_is_the_same_one() -> None:
    router = versions(version(1), version(2))

    assert router.choose(FIRST) is router.choose(FIRST)


def test_clients_are_told_what_they_got_what_ran_and_when_it_ends() -> None:
    router = versions(
        version(1, deprecated_s=1_735_689_600, sunset_s=1_767_225_600), version(2, **BREAKS, transforms=[FIRST])
    )

    assert router.choose(FIRST).version_headers == [
        ("x-gati-version", FIRST),
        ("x-gati-version-source", "header"),
        ("x-gati-handler-version", SECOND),
        ("deprecation", "@1735689600"),
        ("sunset", "Thu, 01 Jan 2026 00:00:00 GMT"),
    ]


# -- rollouts -------------------------------------------------------------------------------------


def rolled(rollout: Rollout, *, live: str = "123", caller: str = "ann") -> str | None:
    router = versions(version(1), version(2), version(3), live=live, rollout=rollout, tags={"stable": FIRST})
    return (router.latest or router.latest_for(caller)).target


def test_a_pin_decides_for_those_who_ask_for_none() -> None:
    assert rolled(Rollout(strategy="pin", version="stable")) == "pool 1"


def test_a_pinned_version_that_does_not_live_gives_way_to_the_newest() -> None:
    assert rolled(Rollout(strategy="pin", version="stable"), live="23") == "pool 3"


def test_a_canary_gets_its_share_and_each_caller_always_the_same() -> None:
    rollout = Rollout(strategy="canary", version=THIRD, baseline=SECOND, percent=30)
    callers = [f"caller {number}" for number in range(500)]

    first, again = ([rolled(rollout, caller=each) for each in callers] for _ in range(2))

    assert first == again
    assert set(first) == {"pool 2", "pool 3"}
    assert first == ["pool 3" if is_chosen(each, THIRD, 30) else "pool 2" for each in callers]


@pytest.mark.parametrize(("percent", "pool"), [(0, "pool 2"), (100, "pool 3")])
def test_a_canary_of_none_or_all(percent: float, pool: str) -> None:
    assert rolled(Rollout(strategy="canary", version=THIRD, baseline=SECOND, percent=percent)) == pool


def test_a_canary_that_does_not_live_leaves_its_share_to_the_baseline() -> None:
    assert rolled(Rollout(strategy="canary", version=THIRD, baseline=SECOND, percent=100), live="12") == "pool 2"


def test_weights_share_the_callers_and_the_rest_goes_to_the_newest() -> None:
    rollout = Rollout(strategy="weighted", weights={FIRST: 25, SECOND: 25})

    found = {rolled(rollout, caller=f"caller {number}") for number in range(200)}

    assert found == {"pool 1", "pool 2", "pool 3"}


def test_a_rollout_decides_nothing_for_those_who_ask_for_a_version() -> None:
    router = versions(version(1), version(2, **BREAKS), rollout=Rollout(strategy="pin", version=SECOND))

    assert router.choose(FIRST).target == "pool 1"
