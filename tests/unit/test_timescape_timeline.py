"""Timelines are values: what each change makes of one, what it writes down, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from gati_core.errors import InvalidVersion, VersionConflict, VersionNotFound
from gati_core.timescape import (
    MAX_VERSIONS,
    PROTECTED_TAGS,
    Timeline,
    VersionRecord,
    with_deprecation,
    with_keep,
    with_status,
    with_tag,
    with_transforms,
    with_version,
    without_tag,
)

BY = {"actor": "user:ann"}
EMPTY = Timeline(app="shop", handler="h")


def content(fingerprint: str, **fields: Any) -> VersionRecord:
    return VersionRecord(tsv="", fingerprint=fingerprint, methods=["GET"], path="/h", **fields)


def timeline(count: int = 3) -> Timeline:
    """Versions registered at 1 s, 2 s, …"""
    made = EMPTY
    for number in range(1, count + 1):
        made = with_version(made, content(f"f{number}"), now_ms=number * 1000, **BY)
    return made


THREE = timeline()
FIRST, SECOND, THIRD = (each.tsv for each in THREE.versions)


def last(changed: Timeline) -> tuple[str, str, str]:
    change = changed.changes[-1]
    return change.type, change.tsv, change.actor


# -- registering ------------------------------------------------------------------------------------


def test_versions_get_names_parents_and_dates_in_their_order() -> None:
    assert [each.tsv for each in THREE.versions] == ["tsv:1-h-001", "tsv:2-h-002", "tsv:3-h-003"]
    assert [each.parent for each in THREE.versions] == ["", FIRST, SECOND]
    assert [each.registered_ms for each in THREE.versions] == [1000, 2000, 3000]
    assert [(each.n, each.type, each.tsv) for each in THREE.changes] == [
        (1, "registered", FIRST),
        (2, "registered", SECOND),
        (3, "registered", THIRD),
    ]


def test_content_that_is_known_changes_nothing_unless_it_is_to_be_the_newest_again() -> None:
    assert with_version(THREE, content("f1"), now_ms=9000, **BY) is THREE
    assert with_version(THREE, content("f3"), now_ms=9000, anew=True, **BY) is THREE

    again = with_version(THREE, content("f1"), now_ms=9000, anew=True, **BY)

    assert [each.fingerprint for each in again.versions] == ["f1", "f2", "f3", "f1"]
    assert again.with_fingerprint("f1") is again.versions[-1]


def test_a_publisher_whose_clock_is_behind_does_not_push_a_version_into_the_past() -> None:
    late = with_version(THREE, content("f4"), now_ms=1500, **BY)

    assert late.versions[-1].tsv == "tsv:3-h-004"
    assert late.versions[-1].registered_ms == 1500
    assert [each.order for each in late.versions] == sorted(each.order for each in late.versions)


def test_what_comes_after_a_deactivated_version_is_compared_with_the_one_before_it() -> None:
    ended = with_status(THREE, THIRD, "deactivated", now_ms=1, force=True, **BY)

    assert with_version(ended, content("f4"), now_ms=9000, **BY).versions[-1].parent == SECOND


def test_the_oldest_that_has_ended_makes_room_and_its_tags_go_with_it() -> None:
    full = replace(
        EMPTY,
        versions=[
            replace(content(f"f{n}"), tsv=f"tsv:{n}-h-{n:03}", status="deactivated" if n in (2, 3, 4) else "warm")
            for n in range(1, MAX_VERSIONS + 1)
        ],
        registered=MAX_VERSIONS,
    )
    full = with_tag(full, "tsv:2-h-002", "wanted", now_ms=1, **BY)
    full = with_keep(full, "tsv:3-h-003", now_ms=1, **BY)

    after = with_version(full, content("new"), now_ms=10_000_000, reason="release", **BY)

    assert len(after.versions) == MAX_VERSIONS
    assert after.get("tsv:4-h-004") is None
    assert after.get("tsv:2-h-002") is not None
    assert after.versions[-1].tsv == f"tsv:10000-h-{MAX_VERSIONS + 1}"
    assert [(each.type, each.reason) for each in after.changes[-2:]] == [
        ("dropped", f"more than {MAX_VERSIONS} versions"),
        ("registered", "release"),
    ]


def test_a_timeline_that_is_full_of_active_versions_takes_no_more() -> None:
    full = replace(EMPTY, versions=[replace(content(f"f{n}"), tsv=f"tsv:1-h-{n:03}") for n in range(MAX_VERSIONS)])

    with pytest.raises(VersionConflict, match="has 1000 versions, as many as may be: deactivate some"):
        with_version(full, content("new"), now_ms=1, **BY)


def test_only_the_last_changes_are_kept_and_they_are_counted_on() -> None:
    changed = timeline(40)

    assert [each.n for each in changed.changes] == list(range(25, 41))


# -- tags -------------------------------------------------------------------------------------------


def test_a_tag_is_given_once_and_moves_only_after_it_was_taken_off() -> None:
    tagged = with_tag(THREE, SECOND, "stable", now_ms=5, **BY)

    assert (tagged.tags_of(SECOND), tagged.is_protected(SECOND)) == (["stable"], True)
    assert last(tagged) == ("tagged", SECOND, "user:ann")
    assert with_tag(tagged, SECOND, "stable", now_ms=9, **BY) is tagged
    with pytest.raises(VersionConflict, match=rf"'stable' on {SECOND}; take it off first"):
        with_tag(tagged, THIRD, "stable", now_ms=9, **BY)

    moved = with_tag(without_tag(tagged, "stable", now_ms=6, **BY), THIRD, "stable", now_ms=7, **BY)
    assert (moved.tags_of(SECOND), moved.tags_of(THIRD)) == ([], ["stable"])


def test_tags_are_for_versions_that_are_there_and_have_names_that_can_be_asked_for() -> None:
    with pytest.raises(VersionNotFound) as missing:
        with_tag(THREE, "tsv:9-h-009", "stable", now_ms=1, **BY)
    assert missing.value.available == [FIRST, SECOND, THIRD]
    with pytest.raises(InvalidVersion, match="cannot be a tag"):
        with_tag(THREE, FIRST, "1735689600", now_ms=1, **BY)
    with pytest.raises(VersionNotFound, match="has no tag 'nobody'") as none:
        without_tag(with_tag(THREE, FIRST, "old", now_ms=1, **BY), "nobody", now_ms=1, **BY)
    assert none.value.available == ["old"]


# -- status -----------------------------------------------------------------------------------------


def test_the_newest_and_what_a_tag_protects_end_only_by_force() -> None:
    with pytest.raises(VersionConflict, match=rf"{THIRD} is the newest version of shop:h: use --force"):
        with_status(THREE, THIRD, "deactivated", now_ms=1, **BY)
    for label in sorted(PROTECTED_TAGS):
        tagged = with_tag(THREE, FIRST, label, now_ms=1, **BY)
        with pytest.raises(VersionConflict, match=f"protected by its tag {label}: untag it, or use --force"):
            with_status(tagged, FIRST, "deactivated", now_ms=1, **BY)
        assert not with_status(tagged, FIRST, "deactivated", now_ms=1, force=True, **BY).require(FIRST).is_active

    ended = with_status(THREE, THIRD, "deactivated", now_ms=1, force=True, **BY)
    assert (ended.newest, last(ended)) == (ended.require(SECOND), ("deactivated", THIRD, "user:ann"))


def test_what_was_ended_by_hand_stays_so_until_it_is_taken_back() -> None:
    ended = with_status(THREE, FIRST, "deactivated", now_ms=1, by_hand=True, reason="unused", **BY)
    assert (ended.require(FIRST).override, ended.changes[-1].reason) == ("deactivate", "unused")

    back = with_status(ended, FIRST, "warm", now_ms=2, by_hand=True, **BY)

    assert (back.require(FIRST).override, back.require(FIRST).status) == ("", "warm")
    assert last(back) == ("reactivated", FIRST, "user:ann")


def test_the_same_status_again_changes_nothing() -> None:
    assert with_status(THREE, FIRST, "warm", now_ms=1, **BY) is THREE
    hot = with_status(THREE, FIRST, "hot", now_ms=1, **BY)
    assert (last(hot), hot.changes[-1].payload) == (
        ("reclassified", FIRST, "user:ann"),
        {"before": "warm", "status": "hot"},
    )


# -- the others -------------------------------------------------------------------------------------


def test_a_version_is_kept_and_left_to_the_sweep_again() -> None:
    kept = with_keep(THREE, FIRST, now_ms=1, **BY)

    assert (kept.require(FIRST).override, with_keep(kept, FIRST, now_ms=1, **BY)) == ("keep", kept)
    assert with_keep(kept, FIRST, keep=False, now_ms=2, **BY).require(FIRST).override == ""


def test_clients_are_told_to_move_on_before_a_version_vanishes_and_not_after() -> None:
    told = with_deprecation(THREE, FIRST, since_s=100, sunset_s=200, now_ms=1, **BY)

    assert (told.require(FIRST).deprecated_s, told.require(FIRST).sunset_s) == (100, 200)
    assert with_deprecation(told, FIRST, since_s=0, now_ms=2, **BY).require(FIRST).deprecated_s == 0
    with pytest.raises(VersionConflict, match="the sunset lies before the deprecation"):
        with_deprecation(THREE, FIRST, since_s=200, sunset_s=100, now_ms=1, **BY)


def test_transformers_of_a_version_are_replaced_and_noted() -> None:
    changed = with_transforms(THREE, THIRD, [FIRST, SECOND], now_ms=1, **BY)

    assert changed.require(THIRD).transforms == [FIRST, SECOND]
    assert (last(changed), with_transforms(changed, THIRD, [FIRST, SECOND], now_ms=2, **BY)) == (
        ("transformers", THIRD, "user:ann"),
        changed,
    )


def test_nothing_that_was_changed_is_seen_in_the_timeline_before() -> None:
    before = replace(THREE)

    with_tag(THREE, FIRST, "x", now_ms=1, **BY)
    with_status(THREE, FIRST, "hot", now_ms=1, **BY)
    with_version(THREE, content("new"), now_ms=9000, **BY)

    assert before == THREE
