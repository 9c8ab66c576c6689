"""P7, P15, P16, P17 and P33: which version a request means, and which code runs for it.

Timelines are made as publishers make them, change by change; what should come out of them is worked out here again,
slowly and without any of the router's shortcuts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gati_core import App, GlobalContext, LocalContext, Request, Response, VersionedRequest, VersionedResponse
from gati_core.errors import InvalidVersion, VersionConflict, VersionNotFound
from gati_core.timescape import (
    FROM_QUERY,
    Rollout,
    Timeline,
    VersionRecord,
    Versions,
    with_status,
    with_tag,
    with_version,
    without_tag,
)
from gati_testing import Simulation, simulate

EPOCH_S = 1_750_000_000
LABELS = ["stable", "v1.0.0", "v1.0.1", "v1.2.0", "v2.0.0", "v2.0.0-beta.1", "2.1.0", "canary", "1750000000x"]


@st.composite
def timelines(draw: st.DrawFn, *, breaking: bool | None = None, transforms: bool = True) -> Timeline:
    """Up to twelve versions, tags that moved, versions that ended.

    Args:
        breaking: of all versions; drawn for each when None.
        transforms: whether some bring transformers along.
    """
    timeline = Timeline(app="shop", handler="order")
    now_s = EPOCH_S
    for number in range(draw(st.integers(1, 12))):
        now_s += draw(st.sampled_from([-50, 0, 1, 100]))  # clocks of publishers differ
        earlier = [each.tsv for each in timeline.versions]
        brought = draw(st.lists(st.sampled_from(earlier), unique=True)) if transforms and earlier else []
        record = VersionRecord(
            tsv="",
            fingerprint=f"f{number}",
            methods=["POST"],
            path="/orders",
            breaking=draw(st.booleans()) if breaking is None else breaking,
            breaking_back=draw(st.booleans()) if breaking is None else breaking,
            transforms=brought,
        )
        timeline = with_version(timeline, record, now_ms=now_s * 1000, actor="test")
        for change in draw(st.lists(st.sampled_from(["tag", "untag", "end", "again"]), max_size=2)):
            timeline = _changed(draw, timeline, change)
    return timeline


def _changed(draw: st.DrawFn, timeline: Timeline, change: str) -> Timeline:
    tsv = draw(st.sampled_from([each.tsv for each in timeline.versions]))
    try:
        if change == "tag":
            return with_tag(timeline, tsv, draw(st.sampled_from(LABELS)), now_ms=1, actor="test")
        if change == "untag":
            return without_tag(timeline, draw(st.sampled_from(LABELS)), now_ms=1, actor="test")
        status = "deactivated" if change == "end" else "warm"
        return with_status(timeline, tsv, status, now_ms=1, actor="test", force=True)  # type: ignore[arg-type]
    except (VersionConflict, VersionNotFound):
        return timeline


@st.composite
def preferences(draw: st.DrawFn, timeline: Timeline) -> str:
    """What a client may write, sensible or not."""
    tsvs = [each.tsv for each in timeline.versions]
    seconds = draw(st.integers(EPOCH_S - 200, EPOCH_S + 1500))
    return draw(
        st.sampled_from([*tsvs, *LABELS, "v1", "1", "1.0", "v2", "2.0.0", "v3", "tsv:1750000000-order-999", "tsv:x"])
        | st.just(str(seconds))
        | st.just(str(seconds * 1000))
        | st.just(datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        | st.text("v1.0 -x", max_size=6)
    )


def reference(timeline: Timeline, text: str) -> VersionRecord | None:
    """The version that a preference means, step by step as the specification says; None where it means none."""
    for tag in timeline.tags:
        if tag.label == text:
            return timeline.get(tag.tsv)
    if text.startswith("tsv:"):
        return timeline.get(text)
    if text.isdigit() and len(text) in (10, 13):
        return _at(timeline, int(text) / (1 if len(text) == 10 else 1000))
    if "T" in text:
        return _at(timeline, datetime.fromisoformat(text).timestamp())
    asked = text.removeprefix("v").split("-")[0].split(".")
    found: tuple[tuple[int, int, int], int, int] | None = None
    for tag in timeline.tags:
        numbers, dash, _ = tag.label.removeprefix("v").partition("-")
        parts = numbers.split(".")
        if len(parts) != 3 or not all(part.isdigit() for part in parts):
            continue
        position = next(index for index, each in enumerate(timeline.versions) if each.tsv == tag.tsv)
        if not timeline.versions[position].is_active:
            continue
        is_same = text.removeprefix("v") == tag.label.removeprefix("v")
        is_prefix = not dash and "-" not in text and len(asked) < 3 and parts[: len(asked)] == asked
        if is_same or is_prefix:
            candidate = ((int(parts[0]), int(parts[1]), int(parts[2])), 0 if dash else 1, position)
            found = candidate if found is None else max(found, candidate)
    return timeline.versions[found[2]] if found is not None else None


def _at(timeline: Timeline, seconds: float) -> VersionRecord | None:
    return next((each for each in reversed(timeline.versions) if each.order.seconds <= seconds), None)


@pytest.mark.prop(33)
@settings(max_examples=600, deadline=None)
@given(st.data())
def test_the_resolver_agrees_with_a_naive_reference(data: st.DataObject) -> None:
    timeline = data.draw(timelines())
    text = data.draw(preferences(timeline))
    is_query = data.draw(st.booleans())
    versions = Versions[str](timeline, {each.fingerprint: each.fingerprint for each in timeline.versions})

    expected = reference(timeline, text)

    if expected is None:
        with pytest.raises((InvalidVersion, VersionNotFound)) as caught:
            versions.resolve(text)
        assert caught.value.status == (404 if isinstance(caught.value, VersionNotFound) else 400)
        if isinstance(caught.value, VersionNotFound):
            assert {each.tsv for each in timeline.versions if each.is_active} <= set(caught.value.available)
        return
    found, source = versions.resolve(FROM_QUERY + text if is_query else text)
    assert found == expected
    if any(tag.label == text for tag in timeline.tags):
        assert source == "tag"
    elif text.startswith("tsv:"):
        assert source == ("query" if is_query else "header")
    # The same again, from what is kept, and for every caller.
    assert versions.resolve(text)[0] == found


@pytest.mark.prop(33)
@settings(max_examples=300, deadline=None)
@given(timelines())
def test_without_a_preference_the_newest_active_version_is_meant(timeline: Timeline) -> None:
    versions = Versions[str](timeline, {each.fingerprint: each.fingerprint for each in timeline.versions})
    active = [each for each in timeline.versions if each.is_active]

    if not active:
        with pytest.raises(VersionNotFound):
            versions.latest_for("anybody")
        return
    choice = versions.latest_for("anybody")
    assert choice.resolved == active[-1]
    assert choice.source == "latest"
    assert choice.target == active[-1].fingerprint


@pytest.mark.prop(7)
@settings(max_examples=600, deadline=None)
@given(st.data())
def test_what_is_not_healthy_gets_no_request(data: st.DataObject) -> None:
    timeline = data.draw(timelines())
    healthy = {each.fingerprint for each in timeline.versions if data.draw(st.booleans())}
    versions = Versions[str](timeline, {each: each for each in healthy})
    able = [each for each in timeline.versions if each.is_active and each.fingerprint in healthy]

    if any(each.is_active for each in timeline.versions):
        latest = versions.latest_for("anybody")
        assert (latest.target in healthy) == bool(able)
        if able:
            assert latest.target == able[-1].fingerprint

    for version in timeline.versions:
        try:
            choice = versions.choose(version.tsv)
        except VersionNotFound:
            assert not version.is_active  # what may come back is waited for
            continue
        if choice.target is not None:
            runs = timeline.get(choice.tsv)
            assert runs is not None
            assert runs.is_active
            assert runs.fingerprint == choice.target
            assert choice.target in healthy
        assert choice.fallback is None or choice.fallback in healthy
        if version in able:
            assert choice.target is not None


@pytest.mark.prop(16)
@settings(max_examples=300, deadline=None)
@given(timelines(breaking=True, transforms=False), st.text(max_size=5))
def test_breaking_versions_without_transformers_stay_apart_and_the_preference_alone_decides(
    timeline: Timeline, caller: str
) -> None:
    versions = Versions[str](timeline, {each.fingerprint: each.fingerprint for each in timeline.versions})
    for version in timeline.versions:
        if version.is_active:
            choice = versions.choose(version.tsv)
            assert (choice.tsv, choice.target, choice.hops) == (version.tsv, version.fingerprint, ())
        else:
            with pytest.raises(VersionNotFound):
                versions.choose(version.tsv)
    if timeline.newest is not None:
        assert versions.latest_for(caller).tsv == timeline.newest.tsv


@pytest.mark.prop(15)
@settings(max_examples=300, deadline=None)
@given(timelines(breaking=False, transforms=False))
def test_a_version_that_breaks_nobody_is_active_at_once_and_serves_those_of_a_version_that_is_gone(
    timeline: Timeline,
) -> None:
    newest = timeline.newest
    if newest is None:
        return
    alone = Versions[str](timeline, {newest.fingerprint: newest.fingerprint})

    assert alone.latest_for("anybody").tsv == newest.tsv
    way = newest
    while way.parent:
        parent = timeline.get(way.parent)
        assert parent is not None
        choice = alone.choose(parent.tsv)
        assert (choice.tsv, choice.target, choice.hops) == (newest.tsv, newest.fingerprint, ())
        assert choice.resolved == parent
        way = parent


@pytest.mark.prop(15)
@settings(max_examples=100, deadline=None)
@given(st.floats(0, 100), st.floats(0, 100), st.integers(0, 10**6))
def test_a_canary_gets_its_share_of_callers_and_keeps_them_as_it_grows(first: float, second: float, seed: int) -> None:
    small, large = sorted((first, second))
    timeline = Timeline(app="shop", handler="order")
    for number in range(2):
        record = VersionRecord(tsv="", fingerprint=f"f{number}", methods=["GET"], path="/")
        timeline = with_version(timeline, record, now_ms=EPOCH_S * 1000, actor="test")
    baseline, canary = (each.tsv for each in timeline.versions)
    targets = {each.fingerprint: each.tsv for each in timeline.versions}
    callers = [f"{seed}-{number}" for number in range(1000)]

    def chosen(percent: float) -> set[str]:
        rollout = Rollout(strategy="canary", version=canary, baseline=baseline, percent=percent)
        here, elsewhere = (Versions[str](timeline, targets, rollout) for _ in range(2))
        got = {caller for caller in callers if here.latest_for(caller).target == canary}
        assert got == {caller for caller in callers if elsewhere.latest_for(caller).target == canary}
        share = percent / 100
        # Six standard deviations: one in a billion runs is further off by chance.
        assert abs(len(got) - 1000 * share) <= 6 * math.sqrt(1000 * share * (1 - share)) + 1
        return got

    assert chosen(small) <= chosen(large)


@pytest.mark.prop(15)
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=2), st.integers(0, 10**6))
def test_weights_share_the_callers_and_the_newest_gets_the_rest(weights: list[int], seed: int) -> None:
    timeline = Timeline(app="shop", handler="order")
    for number in range(3):
        record = VersionRecord(tsv="", fingerprint=f"f{number}", methods=["GET"], path="/")
        timeline = with_version(timeline, record, now_ms=EPOCH_S * 1000, actor="test")
    names = [each.tsv for each in timeline.versions]
    shares = {names[0]: float(weights[0]), names[1]: float(weights[1])}
    rollout = Rollout(strategy="weighted", weights=shares)
    versions = Versions[str](timeline, {each.fingerprint: each.tsv for each in timeline.versions}, rollout)

    got = [versions.latest_for(f"{seed}-{number}").target for number in range(1000)]

    for name, percent in {**shares, names[2]: 100.0 - sum(weights)}.items():
        share = percent / 100
        assert abs(got.count(name) - 1000 * share) <= 6 * math.sqrt(1000 * share * (1 - share)) + 1


# -- through a whole fabric --------------------------------------------------------------------------


class Old(msgspec.Struct):
    sku: str
    price: str


class New(msgspec.Struct):
    sku: str
    cents: int


def _old_and_new() -> tuple[App, App, list[dict[str, object]]]:
    old, new = App("shop"), App("shop")
    seen: list[dict[str, object]] = []

    @old.post("/items", id="add")
    async def add_old(req: Request[Old], res: Response[Old], gctx: GlobalContext, lctx: LocalContext) -> None:
        raise AssertionError("the old code ran")

    @new.post("/items", id="add")
    async def add(req: Request[New], res: Response[New], gctx: GlobalContext, lctx: LocalContext) -> None:
        seen.append({"sku": req.body.sku, "cents": req.body.cents})
        res.json(req.body)

    @new.transformer("add", from_version="v1")
    class Cents:
        @staticmethod
        def forward_request(request: VersionedRequest) -> None:
            whole, _, part = request.body.pop("price").partition(".")
            request.body["cents"] = int(whole) * 100 + int(part)

        @staticmethod
        def backward_response(response: VersionedResponse) -> None:
            cents = response.body.pop("cents")
            response.body["price"] = f"{cents // 100}.{cents % 100:02d}"

    return old, new, seen


@pytest.fixture(scope="module")
def old_and_new() -> Iterator[tuple[Simulation, list[dict[str, object]]]]:
    old, new, seen = _old_and_new()
    with simulate(old, new) as fabric:
        yield fabric, seen


@pytest.mark.prop(17)
@settings(max_examples=150, deadline=None)
@given(sku=st.text(max_size=20), cents=st.integers(0, 10**9), is_old=st.booleans())
def test_an_old_request_reaches_the_new_handler_translated_and_its_answer_comes_back_old(
    old_and_new: tuple[Simulation, list[dict[str, object]]], sku: str, cents: int, is_old: bool
) -> None:
    fabric, seen = old_and_new
    seen.clear()
    sent: dict[str, object] = {"sku": sku, "price": f"{cents // 100}.{cents % 100:02d}"}
    if not is_old:
        sent = {"sku": sku, "cents": cents}

    answer = fabric.post("/items", json=sent, headers={"x-gati-version": "v1"} if is_old else {})

    assert answer.status == 200
    assert seen == [{"sku": sku, "cents": cents}]
    assert answer.json() == sent
    told = dict(answer.headers)
    assert ("x-gati-handler-version" in told) == is_old
