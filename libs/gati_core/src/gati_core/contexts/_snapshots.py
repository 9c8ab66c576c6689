"""Snapshots of a request: taken, stored, compared, and changed from one into the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from gati_core.contexts._values import copied, escaped, is_same, restored_extension, storable
from gati_core.errors import SnapshotError

OperationStatus = Literal["pending", "fulfilled", "rejected"]
ChangeOp = Literal["add", "remove", "replace"]

MAX_SNAPSHOT_BYTES = 1_000_000
"""What one message of the fabric can hold."""
_COMPARED = ("phase", "last_hook_index", "outstanding")


class Operation(msgspec.Struct, frozen=True):
    """One operation that a request started: a module call, a query."""

    id: str
    status: OperationStatus = "pending"
    result: Any = None
    error: str | None = None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A request at one moment. Made by `take_snapshot`, which copies; nothing changes it afterwards."""

    request_id: str
    timestamp: int
    """Unix time in milliseconds."""
    state: dict[str, Any] = {}
    """What `lctx.set` had stored."""
    outstanding: list[Operation] = []
    last_hook_index: int = -1
    """Position of the hook that ran last, counted from 0 over the whole sequence; -1 before the first."""
    handler_version: str = ""
    phase: str = "received"
    trace_id: str = ""
    client_id: str = ""


class Change(msgspec.Struct, frozen=True):
    """One difference between two snapshots."""

    op: ChangeOp
    path: tuple[str, ...]
    """From the snapshot's field on: `("state", "user", "name")`."""
    old: Any = None
    """None for `add`."""
    new: Any = None
    """None for `remove`."""

    @property
    def dotted(self) -> str:
        r"""The path as text: `state.user.name`; a dot or backslash within a key has a backslash in front."""
        return ".".join(map(escaped, self.path))


def take_snapshot(
    *,
    request_id: str,
    state: Mapping[str, Any] | None,
    outstanding: Iterable[Operation] = (),
    last_hook_index: int = -1,
    handler_version: str = "",
    phase: str = "received",
    trace_id: str = "",
    client_id: str = "",
    timestamp: int | None = None,
) -> Snapshot:
    """Copy a request's state deeply, so that what happens later does not show.

    Args:
        timestamp: Unix time in milliseconds; now by default.
    Raises:
        SnapshotError: a value cannot be copied, like a lock or an open file; names its path.
    """
    return Snapshot(
        request_id=request_id,
        timestamp=time.time_ns() // 1_000_000 if timestamp is None else timestamp,
        state=copied(dict(state or {}), "state"),
        outstanding=_copied_operations(outstanding),
        last_hook_index=last_hook_index,
        handler_version=handler_version,
        phase=phase,
        trace_id=trace_id,
        client_id=client_id,
    )


def copy_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of a snapshot's state, to restore from: the snapshot can be used again.

    Raises:
        SnapshotError: a value cannot be copied; names its path.
    """
    made: dict[str, Any] = copied(dict(state), "state")
    return made


# -- bytes --------------------------------------------------------------------------------------


def to_bytes(snapshot: Snapshot) -> bytes:
    """The snapshot as MessagePack.

    Holds None, bool, int, float, str, bytes, dict with string keys, list, tuple, set, frozenset,
    Decimal, UUID and the types of `datetime`; each comes back as what it was, a time zone as its
    offset.

    Raises:
        SnapshotError: something else is in it (names its path), or it exceeds 1,000,000 bytes.
    """
    document = {
        name: storable(getattr(snapshot, name), name) for name in snapshot.__struct_fields__ if name != "outstanding"
    }
    document["outstanding"] = [
        {
            "id": storable(each.id, "outstanding.id"),
            "status": each.status,
            "result": storable(each.result, f"outstanding.{escaped(each.id)}.result"),
            "error": storable(each.error, f"outstanding.{escaped(each.id)}.error"),
        }
        for each in snapshot.outstanding
    ]
    try:
        data = msgspec.msgpack.encode(document)
    except RecursionError as exc:
        raise SnapshotError("state is nested too deeply") from exc
    if len(data) > MAX_SNAPSHOT_BYTES:
        raise SnapshotError(f"a snapshot of {len(data)} bytes exceeds the limit of {MAX_SNAPSHOT_BYTES}")
    return data


def from_bytes(data: bytes) -> Snapshot:
    """Read what `to_bytes` wrote; fields of a newer version are skipped.

    Raises:
        SnapshotError: it is none; says what is wrong where.
    """
    if len(data) > MAX_SNAPSHOT_BYTES:
        raise SnapshotError(f"a snapshot of {len(data)} bytes exceeds the limit of {MAX_SNAPSHOT_BYTES}")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, ValueError, TypeError, ArithmeticError, RecursionError) as exc:
        raise SnapshotError(f"{len(data)} bytes are no snapshot: {exc}") from exc


_decoder = msgspec.msgpack.Decoder(Snapshot, ext_hook=restored_extension)


# -- differences --------------------------------------------------------------------------------


def diff(before: Snapshot, after: Snapshot) -> list[Change]:
    """What changed in state, phase, hook index and outstanding operations.

    Nested maps are compared key by key; lists, and maps with a key that is no string, as a whole.
    Compared strictly, by type as well: True, 1 and 1.0 differ, as do 0.0 and -0.0 and a list and a
    tuple, which is finer than JSON; one NaN is like another. The order of a map's keys is no
    difference. Removals come first, in the order of `before`.

    Raises:
        SnapshotError: a value is nested too deeply, or contains itself.
    """
    changes: list[Change] = []
    try:
        _compare(before.state, after.state, ("state",), changes)
        for name in _COMPARED:
            old, new = getattr(before, name), getattr(after, name)
            if not _is_same_field(old, new):
                changes.append(Change("replace", (name,), old, new))
    except RecursionError as exc:
        raise SnapshotError("state is nested too deeply, or contains itself") from exc
    return changes


def apply(snapshot: Snapshot, changes: Iterable[Change]) -> Snapshot:
    """The snapshot with these changes made; `apply(a, diff(a, b))` has b's state, phase and position.

    Neither the snapshot nor the changes are touched, and the result shares nothing with them.

    Raises:
        SnapshotError: a change does not fit: what it adds is there already, or what it removes or
            replaces is not; names its path.
    """
    fields: dict[str, Any] = {"state": copy_state(snapshot.state)}
    for change in changes:
        new = _copied_operations(change.new) if change.path == ("outstanding",) else copied(change.new, change.dotted)
        if len(change.path) == 1 and change.path[0] in _COMPARED and change.op == "replace":
            fields[change.path[0]] = new
        elif len(change.path) > 1 and change.path[0] == "state":
            _change(fields["state"], change, new)
        else:
            raise SnapshotError(f"{change.dotted}: {change.op} does not fit a snapshot")
    if "outstanding" not in fields:
        fields["outstanding"] = _copied_operations(snapshot.outstanding)
    return msgspec.structs.replace(snapshot, **fields)


def _compare(old: dict[str, Any], new: dict[str, Any], path: tuple[str, ...], changes: list[Change]) -> None:
    changes += [Change("remove", (*path, key), old[key]) for key in old if key not in new]
    for key, value in new.items():
        if key not in old:
            changes.append(Change("add", (*path, key), None, value))
            continue
        was = old[key]
        if _is_map(was) and _is_map(value):
            _compare(was, value, (*path, key), changes)
        elif not is_same(was, value):
            changes.append(Change("replace", (*path, key), was, value))


def _is_map(value: Any) -> bool:
    return type(value) is dict and all(type(key) is str for key in value)


def _is_same_field(old: Any, new: Any) -> bool:
    if isinstance(old, list):
        return len(old) == len(new) and all(
            (one.id, one.status, one.error) == (other.id, other.status, other.error)
            and is_same(one.result, other.result)
            for one, other in zip(old, new, strict=True)
        )
    return bool(old == new)


def _change(state: dict[str, Any], change: Change, new: Any) -> None:
    target: Any = state
    for key in change.path[1:-1]:
        target = target.get(key) if type(target) is dict else None
    last = change.path[-1]
    if type(target) is not dict or (last in target) == (change.op == "add"):
        found = "something is" if type(target) is dict and last in target else "nothing is"
        raise SnapshotError(f"{change.dotted}: cannot {change.op}, {found} there", path=change.dotted)
    if change.op == "remove":
        del target[last]
    else:
        target[last] = new


def _copied_operations(operations: Iterable[Operation]) -> list[Operation]:
    try:
        return [
            Operation(each.id, each.status, copied(each.result, f"outstanding.{escaped(each.id)}.result"), each.error)
            for each in operations
        ]
    except (TypeError, AttributeError) as exc:
        raise SnapshotError(f"outstanding: a list of operations is needed: {exc}") from exc
