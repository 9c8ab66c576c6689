"""What a child was running can be read after it died."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gati_testing import strategies
from gati_worker.ledger import CrashLedger, LedgerEntry

CHILD = """
import os, signal, sys
from pathlib import Path
from gati_worker.ledger import CrashLedger, LedgerEntry

ledger = CrashLedger(Path(sys.argv[1]), 8)
slots = [
    ledger.open_entry(LedgerEntry(f"r-{n}", "gati.reply.i.r", "h", n % 2 == 0, b"$JS.ACK.x", n, 1000 + n))
    for n in range(4)
]
ledger.clear(slots[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


def _entry(request_id: str = "r-1", **changes: object) -> LedgerEntry:
    fields = {
        "reply_to": "gati.reply.i.r",
        "handler": "h",
        "is_once": True,
        "ack_subject": b"$JS.ACK.x",
        "attempt": 1,
        "deadline_ms": 1000,
    }
    return LedgerEntry(request_id, **(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "child.ledger"


def test_a_new_ledger_is_empty(path: Path) -> None:
    assert CrashLedger(path, 4).entries() == []


def test_what_was_opened_and_not_cleared_is_there(path: Path) -> None:
    ledger = CrashLedger(path, 4)
    slots = [ledger.open_entry(_entry(f"r-{number}")) for number in range(3)]

    ledger.clear(slots[1])

    assert sorted(entry.request_id for entry in ledger.entries()) == ["r-0", "r-2"]


def test_every_field_survives(path: Path) -> None:
    entry = _entry("r-9", is_once=False, ack_subject=b"\x00\xff", attempt=7, deadline_ms=2**48)
    ledger = CrashLedger(path, 1)

    ledger.open_entry(entry)

    assert ledger.entries() == [entry]


def test_another_process_that_opens_the_file_sees_the_entries_at_once(path: Path) -> None:
    writer = CrashLedger(path, 4)
    reader = CrashLedger(path, 4)
    slot = writer.open_entry(_entry())
    assert reader.entries() == [_entry()]

    writer.clear(slot)

    assert reader.entries() == []


def test_a_child_killed_by_sigkill_leaves_what_it_was_running(path: Path) -> None:
    supervisor = CrashLedger(path, 8)

    child = subprocess.run([sys.executable, "-c", CHILD, str(path)], check=False, timeout=30)

    assert child.returncode == -signal.SIGKILL
    found = sorted(supervisor.entries(), key=lambda entry: entry.request_id)
    assert found == [
        LedgerEntry(f"r-{number}", "gati.reply.i.r", "h", number % 2 == 0, b"$JS.ACK.x", number, 1000 + number)
        for number in (0, 2, 3)
    ]


def test_a_slot_that_was_cleared_is_used_again_and_shows_only_the_new_entry(path: Path) -> None:
    ledger = CrashLedger(path, 1)
    ledger.clear(ledger.open_entry(_entry("a-long-request-id" * 10)))

    assert ledger.open_entry(_entry("r-2")) == 0

    assert ledger.entries() == [_entry("r-2")]


def test_a_full_ledger_counts_what_it_could_not_hold_and_goes_on(path: Path) -> None:
    ledger = CrashLedger(path, 2)
    slots = [ledger.open_entry(_entry(f"r-{number}")) for number in range(4)]
    assert (slots[2:], ledger.overflows, len(ledger.entries())) == ([-1, -1], 2, 2)

    for slot in slots:
        ledger.clear(slot)

    assert ledger.entries() == []
    assert sorted(ledger.open_entry(_entry(f"r-{number}")) for number in range(3)) == [-1, 0, 1]


def test_an_entry_too_large_for_a_slot_is_counted_and_takes_none(path: Path) -> None:
    ledger = CrashLedger(path, 1)

    assert ledger.open_entry(_entry("r" * 2000)) == -1
    assert (ledger.overflows, ledger.entries()) == (1, [])

    assert ledger.open_entry(_entry()) == 0


def test_the_largest_entry_does_not_touch_its_neighbour(path: Path) -> None:
    ledger = CrashLedger(path, 2)
    size = 1024
    while ledger.open_entry(_entry("r" * size)) < 0:
        size -= 1
    ledger.open_entry(_entry("neighbour"))

    assert [len(entry.request_id) for entry in ledger.entries()] == [size, len("neighbour")]


@pytest.mark.parametrize(
    "damage", [b"\x01\xff\xff", b"\x01\x00\x00", b"\x01\x00\x05\xff\xff\xff\xff\xff", b"\x02\x00\x01x"]
)
def test_a_slot_that_was_only_half_written_is_skipped(path: Path, damage: bytes) -> None:
    ledger = CrashLedger(path, 2)
    ledger.open_entry(_entry("whole"))
    with path.open("r+b") as file:
        file.seek(64 + 1024)
        file.write(damage)

    assert [entry.request_id for entry in ledger.entries()] == ["whole"]


def test_a_ledger_that_was_never_used_has_no_heartbeat(path: Path) -> None:
    assert CrashLedger(path, 1).heartbeat_s == 0


def test_another_process_sees_the_heartbeat_by_the_clock_that_it_shares(path: Path) -> None:
    supervisor = CrashLedger(path, 8)
    supervisor.open_entry(_entry())
    program = "import sys; from pathlib import Path; from gati_worker.ledger import CrashLedger; "
    began = time.monotonic()

    subprocess.run(
        [sys.executable, "-c", program + "CrashLedger(Path(sys.argv[1]), 8).beat()", str(path)], check=True, timeout=30
    )

    assert began - 0.001 <= supervisor.heartbeat_s <= time.monotonic()
    assert supervisor.entries() == [_entry()]


def test_a_ledger_at_rest_promises_no_heartbeat(path: Path) -> None:
    ledger = CrashLedger(path, 1)
    ledger.beat()

    ledger.rest()

    assert ledger.heartbeat_s == 0


def test_the_file_stays_when_the_ledger_is_closed(path: Path) -> None:
    ledger = CrashLedger(path, 1)
    ledger.open_entry(_entry())

    ledger.close()

    assert CrashLedger(path, 1).entries() == [_entry()]


@settings(max_examples=30)
@given(
    steps=st.lists(st.tuples(st.booleans(), strategies.request_ids(), st.integers(0, 3)), max_size=30),
)
def test_the_ledger_holds_exactly_what_is_open(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, str, int]]
) -> None:
    ledger = CrashLedger(tmp_path_factory.getbasetemp() / "any.ledger", 4)
    for slot in range(4):  # left by the example before
        ledger._map[64 + slot * 1024] = 0
    open_now: dict[int, str] = {}

    for opens, request_id, which in steps:
        if opens:
            slot = ledger.open_entry(_entry(request_id))
            assert (slot == -1) is (len(open_now) == 4)
            if slot >= 0:
                open_now[slot] = request_id
        elif which in open_now:
            ledger.clear(which)
            del open_now[which]

    assert sorted(entry.request_id for entry in ledger.entries()) == sorted(open_now.values())
    ledger.close()
