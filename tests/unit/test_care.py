"""What a supervisor does about a child whose loop stands still, by clocks that the test sets."""

from __future__ import annotations

import itertools

import pytest
from structlog.testing import capture_logs

from gati_core.fabric.topology import WORK_ACK_WAIT_S
from gati_worker.care import Care, Findings, must_end
from gati_worker.ledger import LedgerEntry
from gati_worker.settings import WorkerSettings

SETTINGS = WorkerSettings(block_grace_s=5, block_limit_s=60)
START_S = 1000.0
START_MS = 1_700_000_000_000
LOOK_S = 0.5


def _entry(name: str, *, deadline_s: float, is_once: bool = False) -> LedgerEntry:
    deadline_ms = int(START_MS + deadline_s * 1000)
    return LedgerEntry(f"r-{name}", "gati.reply.i.r", name, is_once, f"$ACK.{name}".encode(), 1, deadline_ms)


class FakeChild:
    """A child that shows what the test sets."""

    def __init__(self, *entries: LedgerEntry) -> None:
        self.app = "shop"
        self.pid = 4711
        self.is_alive = True
        self.is_leaving = False
        self.heartbeat_s = START_S
        self.entries = list(entries)
        self.killed = 0

    def unfinished(self) -> list[LedgerEntry]:
        """Its ledger."""
        return list(self.entries)

    def strike(self) -> None:
        """Count what would kill it; it lives on until the test says otherwise."""
        self.killed += 1


class Ward:
    """A child, and the supervisor's looks at it, half a second apart."""

    def __init__(self, child: FakeChild) -> None:
        self.child = child
        self.now_s = 0.0
        self.renewals: list[tuple[float, bytes]] = []
        self._care = Care(settings=SETTINGS, children=lambda: [child], publish=self._publish)

    def _publish(self, subject: bytes, command: bytes) -> None:
        assert command == b"+WPI"
        self.renewals.append((self.now_s, subject))

    def look(self, at_s: float, *, was_late: bool = False) -> None:
        """One look, `at_s` seconds after the child's first heartbeat."""
        self.now_s = at_s
        self._care.look(now_s=START_S + at_s, now_ms=START_MS + at_s * 1000, was_late=was_late)

    def look_until(self, at_s: float) -> list[dict[str, object]]:
        """Look as often as is due; returns what was logged."""
        with capture_logs() as lines:
            while self.now_s < at_s:
                self.look(self.now_s + LOOK_S)
        return [dict(line) for line in lines]

    def killed_at(self, *, within_s: float) -> float:
        """When it was killed first."""
        while self.now_s < within_s:
            self.look(self.now_s + LOOK_S)
            if self.child.killed:
                return self.now_s
        raise AssertionError(f"not killed within {within_s} s")


def test_a_child_whose_loop_turns_is_left_alone() -> None:
    ward = Ward(FakeChild(_entry("slow", deadline_s=100)))

    with capture_logs() as lines:
        for step in range(100):
            ward.child.heartbeat_s = START_S + step * LOOK_S
            ward.look(step * LOOK_S + 0.05)

    assert (ward.renewals, lines, ward.child.killed) == ([], [], 0)


def test_the_leases_of_a_blocked_child_outlive_the_block_up_to_the_deadline() -> None:
    """Leases may be a third of their time old when the block begins."""
    ward = Ward(FakeChild(_entry("again", deadline_s=12), _entry("once", deadline_s=12, is_once=True)))

    ward.look_until(20)

    assert {subject for _, subject in ward.renewals} == {b"$ACK.again"}
    times = [-WORK_ACK_WAIT_S / 3, *(at for at, _ in ward.renewals)]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < WORK_ACK_WAIT_S * 0.75
    assert 12 - WORK_ACK_WAIT_S * 0.75 < times[-1] <= 12


def test_a_block_is_logged_once_with_its_handlers_and_so_is_its_end() -> None:
    ward = Ward(FakeChild(_entry("b", deadline_s=30), _entry("a", deadline_s=30), _entry("a", deadline_s=30)))

    lines = ward.look_until(9)
    ward.child.heartbeat_s = START_S + 9.2
    lines += ward.look_until(9.5)

    assert [line["event"] for line in lines] == ["worker_blocked", "worker_unblocked"]
    assert (lines[0]["app"], lines[0]["pid"], lines[0]["handlers"]) == ("shop", 4711, ["a", "b"])
    assert lines[1]["blocked_s"] == 9.2


def test_a_blocked_child_is_killed_once_after_the_last_deadline_and_the_grace() -> None:
    ward = Ward(FakeChild(_entry("early", deadline_s=2), _entry("late", deadline_s=8, is_once=True)))

    lines = ward.look_until(30)

    killed = [line for line in lines if line["event"] == "worker_blocked_killed"]
    assert [(line["log_level"], line["handlers"]) for line in killed] == [("error", ["early", "late"])]
    assert 13 < float(str(killed[0]["silent_s"])) <= 13 + 2 * LOOK_S
    assert ward.child.killed == 1


def test_work_that_is_long_overdue_does_not_shorten_the_grace_of_a_block() -> None:
    ward = Ward(FakeChild(_entry("stubborn", deadline_s=-500)))

    assert 5 < ward.killed_at(within_s=10) <= 5 + 2 * LOOK_S


def test_a_blocked_child_without_requests_is_killed_after_the_limit() -> None:
    ward = Ward(FakeChild())

    assert 60 < ward.killed_at(within_s=70) <= 60 + 2 * LOOK_S


def test_a_child_that_leaves_keeps_its_leases_and_is_not_killed_for_blocking() -> None:
    ward = Ward(FakeChild(_entry("again", deadline_s=3)))
    ward.child.is_leaving = True

    ward.look_until(100)

    assert ward.renewals
    assert ward.child.killed == 0


def test_a_child_that_promises_no_heartbeat_is_not_judged() -> None:
    ward = Ward(FakeChild(_entry("again", deadline_s=3)))
    ward.child.heartbeat_s = 0.0

    assert ward.look_until(100) == []
    assert (ward.child.killed, ward.renewals) == (0, [])


def test_a_supervisor_that_was_stopped_itself_gives_a_fresh_chance() -> None:
    ward = Ward(FakeChild(_entry("frozen", deadline_s=10)))
    ward.look(0.3)

    with capture_logs() as lines:
        ward.look(600.0, was_late=True)
        ward.look(600.5)
    assert (lines, ward.child.killed) == ([], 0)
    ward.child.heartbeat_s = START_S + 600.6

    assert ward.look_until(601) == []
    assert ward.child.killed == 0


def test_after_the_fresh_chance_a_child_that_stays_blocked_is_killed() -> None:
    ward = Ward(FakeChild(_entry("stuck", deadline_s=10)))
    ward.look(600.0, was_late=True)

    assert 605 < ward.killed_at(within_s=610) <= 605 + 2 * LOOK_S


def test_leases_are_renewed_even_by_a_look_that_came_late() -> None:
    ward = Ward(FakeChild(_entry("again", deadline_s=10)))

    ward.look(2.5, was_late=True)

    assert ward.renewals == [(2.5, b"$ACK.again")]


def test_a_second_block_is_a_new_one() -> None:
    ward = Ward(FakeChild())
    first = ward.look_until(50)
    ward.child.heartbeat_s = START_S + 50
    ward.look_until(50.5)

    second = ward.look_until(109)

    assert [line["event"] for line in first + second] == ["worker_blocked", "worker_blocked"]
    assert ward.child.killed == 0


def test_a_dead_child_is_forgotten() -> None:
    ward = Ward(FakeChild(_entry("again", deadline_s=1)))
    ward.look_until(3)
    ward.child.is_alive = False

    assert ward.look_until(100) == []
    assert ward.child.killed == 0


@pytest.mark.parametrize(
    ("silent_s", "deadlines_ms", "expected"),
    [
        (5.0, [0], False),
        (5.1, [0], True),
        (5.1, [0, 95_000], False),
        (5.1, [0, 94_999], True),
        (59.0, [], False),
        (60.1, [], True),
    ],
)
def test_a_child_must_end_when_nobody_waits_for_it_any_more(
    silent_s: float, deadlines_ms: list[int], expected: bool
) -> None:
    assert must_end(silent_s=silent_s, deadlines_ms=deadlines_ms, now_ms=100_000, grace_s=5, limit_s=60) is expected


def test_findings_ask_for_nothing_by_default() -> None:
    assert Findings() == Findings(renew=[], blocked=None, unblocked_after_s=0.0, must_end=False, entries=[])
