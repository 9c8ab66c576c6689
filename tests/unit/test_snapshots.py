"""Snapshots: copied deeply, stored without loss, compared strictly."""

from __future__ import annotations

import datetime
import threading
import uuid
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from gati_core.contexts import Change, Operation, Snapshot, apply, diff, from_bytes, take_snapshot, to_bytes
from gati_core.contexts._snapshots import MAX_SNAPSHOT_BYTES, copy_state
from gati_core.contexts._values import is_same
from gati_core.errors import SnapshotError

NAN = float("nan")


def _snapshot(state: Any = None, **fields: Any) -> Snapshot:
    return take_snapshot(request_id="r-1", state=state, timestamp=5, **fields)


# -- taking -------------------------------------------------------------------------------------


def test_a_snapshot_has_everything_that_restoring_needs() -> None:
    operation = Operation("o-1", "fulfilled", {"rows": 3})

    snapshot = take_snapshot(
        request_id="r-1",
        state={"a": 1},
        outstanding=[operation, Operation("o-2", "rejected", error="gone")],
        last_hook_index=2,
        handler_version="v2",
        phase="processing",
        trace_id="t-1",
        client_id="c-1",
        timestamp=5,
    )

    assert snapshot == Snapshot(
        request_id="r-1",
        timestamp=5,
        state={"a": 1},
        outstanding=[operation, Operation("o-2", "rejected", None, "gone")],
        last_hook_index=2,
        handler_version="v2",
        phase="processing",
        trace_id="t-1",
        client_id="c-1",
    )
    assert take_snapshot(request_id="r", state=None).timestamp > 1_700_000_000_000


def test_what_happens_later_does_not_show() -> None:
    class Cart:
        def __init__(self) -> None:
            self.items = ["a"]

    state: dict[str, Any] = {
        "list": [1, {"x": [2]}],
        "tuple": ([3],),
        "set": {4},
        "cart": Cart(),
        "bytes": bytearray(b"5"),
    }
    result: list[int] = [1]
    snapshot = _snapshot(state, outstanding=[Operation("o", "fulfilled", result)])

    state["list"][1]["x"].append(9)
    state["tuple"][0].append(9)
    state["set"].add(9)
    state["cart"].items.append("b")
    state["bytes"].append(9)
    result.append(9)

    taken = snapshot.state
    assert (taken["list"], taken["tuple"], taken["set"]) == ([1, {"x": [2]}], ([3],), {4})
    assert (taken["cart"].items, taken["bytes"]) == (["a"], bytearray(b"5"))
    assert snapshot.outstanding[0].result == [1]


def test_a_restored_copy_leaves_the_snapshot_as_it_was() -> None:
    snapshot = _snapshot({"a": [1]})

    copy_state(snapshot.state)["a"].append(2)

    assert snapshot.state == {"a": [1]}


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"lock": threading.Lock()}, r"^state\.lock cannot be copied: lock: "),
        ({"a": {"b.c": [1, (2, threading.Lock())]}}, r"^state\.a\.b\\\.c\[1\]\[1\] cannot be copied"),
        ({"a": (each for each in "x")}, r"^state\.a cannot be copied: generator"),
    ],
)
def test_what_cannot_be_copied_is_refused_with_its_path(state: Any, named: str) -> None:
    with pytest.raises(SnapshotError, match=named):
        _snapshot(state)


def test_a_result_that_cannot_be_copied_is_refused_with_its_path() -> None:
    with pytest.raises(SnapshotError, match=r"^outstanding\.o\.result\.x cannot be copied"):
        _snapshot(outstanding=[Operation("o", "fulfilled", {"x": threading.Lock()})])


def test_a_state_that_contains_itself_is_refused() -> None:
    state: dict[str, Any] = {"a": []}
    state["a"].append(state)

    with pytest.raises(SnapshotError, match="contains itself"):
        _snapshot(state)


# -- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        2**63,
        -(2**63) - 1,
        2**200,
        1.0,
        -0.0,
        NAN,
        float("inf"),
        "ä\0",
        b"\xff",
        [],
        (),
        (1, [2, (3,)]),
        {1, 2},
        pytest.param({(1, "a"), frozenset("x")}, id="a set of a tuple and a set"),
        frozenset(),
        {"": {"a.b": None}},
        datetime.datetime(2024, 2, 29, 1, 2, 3, 4),
        datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        datetime.date(2024, 2, 29),
        datetime.time(1, 2, 3, 4),
        datetime.timedelta(days=-3, seconds=5, microseconds=7),
        Decimal("1.50"),
        Decimal("NaN"),
        uuid.UUID(int=7),
    ],
    ids=repr,
)
def test_a_value_comes_back_from_bytes_as_what_it_was(value: Any) -> None:
    snapshot = _snapshot({"x": value}, outstanding=[Operation("o", "fulfilled", value)])

    back = from_bytes(to_bytes(snapshot))

    assert is_same(back.state, snapshot.state)
    assert is_same(back.outstanding[0].result, value)
    assert msgspec.structs.replace(back, state={}, outstanding=[]) == msgspec.structs.replace(
        snapshot, state={}, outstanding=[]
    )


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"a": {"b": [1, object()]}}, r"^state\.a\.b\[1\] cannot be stored: object"),
        ({"a": {"x": {1: 2}}}, r"^state\.a\.x\.1 cannot be stored: a key of type int"),
        ({"a": "\ud800"}, r"^state\.a cannot be stored: text with half of a surrogate pair"),
        ({"a": bytearray()}, r"^state\.a cannot be stored: bytearray"),
        ({"a": ValueError("x")}, r"^state\.a cannot be stored: ValueError"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path(state: Any, named: str) -> None:
    with pytest.raises(SnapshotError, match=named):
        to_bytes(_snapshot(state))


def test_a_snapshot_is_no_larger_than_a_message() -> None:
    with pytest.raises(SnapshotError, match=f"exceeds the limit of {MAX_SNAPSHOT_BYTES}"):
        to_bytes(_snapshot({"a": b"x" * MAX_SNAPSHOT_BYTES}))
    with pytest.raises(SnapshotError, match=f"exceeds the limit of {MAX_SNAPSHOT_BYTES}"):
        from_bytes(b"x" * (MAX_SNAPSHOT_BYTES + 1))


def _encoded(**fields: Any) -> bytes:
    return msgspec.msgpack.encode({"request_id": "r", "timestamp": 1, **fields})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\x80",
        to_bytes(_snapshot({"a": 1}))[:-1],
        _encoded(state=[1]),
        _encoded(outstanding=[{"id": "o", "status": "lost"}]),
        _encoded(state={"a": msgspec.msgpack.Ext(99, b"")}),
        _encoded(state={"a": msgspec.msgpack.Ext(1, b"\xff")}),
        _encoded(state={"a": msgspec.msgpack.Ext(2, msgspec.msgpack.encode([[1]]))}),
        _encoded(state={"a": msgspec.msgpack.Ext(9, b"much")}),
        _encoded(state={"a": msgspec.msgpack.Ext(7, b"1")}),
        _encoded(state={"a": msgspec.msgpack.Ext(8, b"99999999999 0 0")}),
        _encoded(state={"a": msgspec.msgpack.Ext(10, b"\xff")}),
        b"\x91" * 100_000,
    ],
)
def test_bytes_that_are_no_snapshot_are_refused(data: bytes) -> None:
    with pytest.raises(SnapshotError, match="are no snapshot"):
        from_bytes(data)


def test_fields_of_a_newer_version_are_skipped() -> None:
    assert from_bytes(_encoded(colour="blue")) == Snapshot(request_id="r", timestamp=1)


# -- differences --------------------------------------------------------------------------------


def test_a_difference_says_what_was_added_removed_and_replaced() -> None:
    before = _snapshot({"user": {"name": "a", "age": 1}, "gone": 1, "list": [1]})
    after = _snapshot({"user": {"name": "b", "age": 1}, "list": [1, 2], "new": {"x": 1}})

    assert diff(before, after) == [
        Change("remove", ("state", "gone"), 1, None),
        Change("replace", ("state", "user", "name"), "a", "b"),
        Change("replace", ("state", "list"), [1], [1, 2]),
        Change("add", ("state", "new"), None, {"x": 1}),
    ]


def test_a_difference_covers_phase_position_and_operations() -> None:
    before = _snapshot(phase="received", last_hook_index=0, outstanding=[Operation("o")])
    after = _snapshot(phase="processing", last_hook_index=1, outstanding=[Operation("o", "fulfilled", 1)])

    assert [(change.op, change.dotted) for change in diff(before, after)] == [
        ("replace", "phase"),
        ("replace", "last_hook_index"),
        ("replace", "outstanding"),
    ]
    assert apply(before, diff(before, after)) == after


def test_when_it_was_taken_and_of_which_request_is_no_difference() -> None:
    one = take_snapshot(request_id="r-1", state={"a": 1}, timestamp=1, trace_id="t-1")
    other = take_snapshot(request_id="r-2", state={"a": 1}, timestamp=2, trace_id="t-2")

    assert diff(one, other) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (1, True),
        (0, False),
        (1, 1.0),
        (0.0, -0.0),
        (0, None),
        ([1], (1,)),
        ([1], [True]),
        ({"a": 1}, [1]),
        ({1}, {True}),
        ({1}, frozenset({1})),
        ({0.0}, {-0.0}),
        ({1: "x"}, {True: "x"}),
        ("1", 1),
        ("a", b"a"),
        (1.0, NAN),
        (Decimal("1.0"), Decimal("1.00")),
    ],
)
def test_a_change_of_type_or_sign_is_a_change(old: Any, new: Any) -> None:
    before, after = _snapshot({"x": old}), _snapshot({"x": new})

    assert [change.op for change in diff(before, after)] == ["replace"]
    assert [change.op for change in diff(after, before)] == ["replace"]
    assert is_same(apply(before, diff(before, after)).state, after.state)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (NAN, -NAN),
        ([NAN], [float("nan")]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1: "x", 2: "y"}, {2: "y", 1: "x"}),
        ({}, {}),
        (2**70, 2**70),
    ],
)
def test_what_is_the_same_is_no_change(old: Any, new: Any) -> None:
    assert diff(_snapshot({"x": old}), _snapshot({"x": new})) == []


def test_an_object_that_cannot_be_compared_counts_as_changed() -> None:
    class Odd:
        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    assert len(diff(_snapshot({"x": Odd()}), _snapshot({"x": Odd()}))) == 1


def test_keys_with_dots_stay_apart_in_text() -> None:
    paths = [("a", "b"), ("a.b",), ("a\\", "b"), ("a\\.b",), ("a", "", "b"), ("",), ("", "")]

    dotted = [Change("add", ("state", *path)).dotted for path in paths]

    assert dotted == [
        "state.a.b",
        "state.a\\.b",
        "state.a\\\\.b",
        "state.a\\\\\\.b",
        "state.a..b",
        "state.",
        "state..",
    ]
    assert len(set(dotted)) == len(dotted)


def test_applying_touches_neither_the_snapshot_nor_the_changes() -> None:
    before, after = _snapshot({"a": {"b": 1}}), _snapshot({"a": {"b": [1]}, "c": [2]})
    changes = diff(before, after)

    made = apply(before, changes)
    made.state["a"]["b"].append(9)
    made.state["c"].append(9)

    assert before == _snapshot({"a": {"b": 1}})
    assert apply(before, changes) == after


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (Change("add", ("state", "a"), None, 2), r"^state\.a: cannot add, something is there"),
        (Change("remove", ("state", "x")), r"^state\.x: cannot remove, nothing is there"),
        (Change("replace", ("state", "a", "b")), r"^state\.a\.b: cannot replace, nothing is there"),
        (Change("add", ("state", "x", "y", "z")), r"^state\.x\.y\.z: cannot add, nothing is there"),
        (Change("replace", ("state",), None, {}), "does not fit a snapshot"),
        (Change("remove", ("phase",)), "does not fit a snapshot"),
        (Change("replace", ("request_id",), "r", "q"), "does not fit a snapshot"),
        (Change("replace", (), None, 1), "does not fit a snapshot"),
        (Change("replace", ("outstanding",), None, [1]), "a list of operations is needed"),
        (Change("replace", ("outstanding",), None, 1), "a list of operations is needed"),
    ],
)
def test_a_change_that_does_not_fit_is_refused_with_its_path(change: Change, named: str) -> None:
    with pytest.raises(SnapshotError, match=named):
        apply(_snapshot({"a": 1}), [change])


@pytest.mark.parametrize("step", [to_bytes, lambda each: diff(each, each), lambda each: apply(each, [])])
def test_a_snapshot_that_contains_itself_is_an_error_and_no_crash(step: Callable[[Snapshot], Any]) -> None:
    state: dict[str, Any] = {}
    state["self"] = state

    with pytest.raises(SnapshotError, match="contains itself"):
        step(Snapshot(request_id="r", timestamp=1, state=state))
