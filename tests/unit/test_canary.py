"""What becomes of a canary, from what was seen of it and of its baseline."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gati_core.timescape import Observed, Rollout, next_step

START_MS = 1_000_000
CANARY = Rollout(
    strategy="canary",
    version="v2",
    baseline="v1",
    percent=5,
    steps=[50, 100],
    step_s=10,
    min_requests=10,
    stepped_ms=START_MS,
)
WELL = Observed(answers=100, errors=0, seconds=1.0)


def decide(
    canary: Observed, baseline: Observed = WELL, *, rollout: Rollout = CANARY, after_s: float = 10
) -> Rollout | None:
    return next_step(rollout, canary, baseline, now_ms=START_MS + round(after_s * 1000), is_newest=True)


def test_a_canary_that_is_well_steps_up_when_its_time_has_passed_and_not_before() -> None:
    assert decide(WELL, after_s=9.9) is None
    after = decide(WELL)

    assert after is not None
    assert (after.strategy, after.percent, after.steps) == ("canary", 50, [100])
    assert (after.version, after.baseline, after.stepped_ms) == ("v2", "v1", START_MS + 10_000)


def test_too_few_answers_decide_nothing() -> None:
    assert decide(Observed(answers=9, errors=9, seconds=99.0)) is None
    assert decide(Observed(), after_s=1e6) is None


def test_errors_take_it_back_at_once_and_pin_the_baseline() -> None:
    after = decide(Observed(answers=100, errors=6, seconds=1.0), after_s=0.1)

    assert after is not None
    assert (after.strategy, after.version) == ("pin", "v1")
    assert "6 of 100 answers failed, more than 5 %" in after.note
    assert decide(Observed(answers=100, errors=5, seconds=1.0), after_s=0.1) is None


def test_slowness_takes_it_back_when_the_baseline_has_answered_enough_to_compare() -> None:
    slow = Observed(answers=100, errors=0, seconds=2.1)
    after = decide(slow, after_s=0.1)

    assert after is not None
    assert after.version == "v1"
    assert "21.0 ms, more than 2 times 10.0 ms" in after.note
    assert decide(slow, Observed(answers=9, seconds=0.09), after_s=0.1) is None
    # Twice as slow as next to nothing is nothing yet.
    assert decide(Observed(answers=100, seconds=0.09), Observed(answers=100, seconds=0.01), after_s=0.1) is None


@pytest.mark.parametrize(("is_newest", "strategy", "version"), [(True, "all", ""), (False, "pin", "v2")])
def test_the_last_step_gives_it_to_all(is_newest: bool, strategy: str, version: str) -> None:
    last = replace(CANARY, percent=50, steps=[100])

    after = next_step(last, WELL, WELL, now_ms=START_MS + 10_000, is_newest=is_newest)

    assert after is not None
    assert (after.strategy, after.version) == (strategy, version)


def test_without_steps_it_stays_as_it_is_and_is_watched_all_the_same() -> None:
    still = replace(CANARY, steps=[])

    assert decide(WELL, rollout=still, after_s=1e6) is None
    after = decide(Observed(answers=10, errors=10), rollout=still)
    assert after is not None
    assert after.strategy == "pin"


@pytest.mark.parametrize("strategy", ["all", "pin", "weighted"])
def test_other_rollouts_are_left_alone(strategy: str) -> None:
    other = Rollout(strategy=strategy, version="v2", baseline="v1")  # type: ignore[arg-type]

    assert decide(Observed(answers=100, errors=100), rollout=other) is None
