"""Properties of what a handler is given beside the request."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from gati_core.contexts import (
    Config,
    GlobalContext,
    Instance,
    LocalContext,
    Snapshot,
    apply,
    diff,
    from_bytes,
    take_snapshot,
    thaw,
    to_bytes,
)
from gati_core.contexts._snapshots import copy_state
from gati_core.contexts._values import is_same
from gati_core.errors import ConfigReadOnly
from gati_core.wire import RequestDescriptor
from gati_testing import strategies
from gati_testing.strategies import StateStep

INSTANCE = Instance("i", "shop", "shop-1", "host", 0)
REQUESTS = 3


def _or_in_place(node: Any, other: Any) -> None:
    node |= other


# -- the configuration --------------------------------------------------------------------------

ON_MAPS: list[Callable[[Any, str], Any]] = [
    lambda node, key: operator.setitem(node, key, 1),
    lambda node, key: operator.delitem(node, key),
    lambda node, key: _or_in_place(node, {key: 1}),
    lambda node, key: node.update({key: 1}),
    lambda node, key: node.setdefault(key, 1),
    lambda node, key: node.pop(key, None),
    lambda node, key: node.popitem(),
    lambda node, key: node.clear(),
    lambda node, key: setattr(node, key, 1),
    lambda node, key: delattr(node, key),
]
AROUND_MAPS: list[Callable[[Any, str], Any]] = [
    lambda node, key: object.__setattr__(node, "_values", {key: 1}),
    lambda node, key: object.__setattr__(node, key, 1),
    lambda node, key: object.__delattr__(node, "_values"),
    lambda node, key: node.__dict__.update({key: 1}),
    lambda node, key: operator.setitem(vars(node), key, 1),
    lambda node, key: node._values.update({key: 1}),
    lambda node, key: dict.__setitem__(node, key, 1),
    lambda node, key: dict.update(node, {key: 1}),
]
ON_SEQUENCES: list[Callable[[Any], Any]] = [
    lambda node: operator.setitem(node, 0, 1),
    lambda node: operator.delitem(node, 0),
    lambda node: node.append(1),
    lambda node: node.extend([1]),
    lambda node: node.sort(),
    lambda node: list.append(node, 1),
    lambda node: setattr(node, "x", 1),
]
ON_SETS: list[Callable[[Any], Any]] = [
    lambda node: node.add(1),
    lambda node: node.discard(1),
    lambda node: node.clear(),
    lambda node: set.add(node, 1),
]


def _nodes(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, (Config, tuple)):
        for each in value.values() if isinstance(value, Config) else value:
            yield from _nodes(each)


@pytest.mark.prop(32)
@settings(max_examples=200, deadline=None)
@given(source=strategies.configs(), key=strategies.text())
def test_every_attempt_to_change_the_configuration_is_rejected(source: dict[str, Any], key: str) -> None:
    """P32 (R8.5): at any depth, by every means that Python has for it, and nothing changed."""
    gctx = GlobalContext(INSTANCE, config=source)
    before = copy.deepcopy(source)
    assert thaw(gctx.config) == before

    for node in _nodes(gctx.config):
        if isinstance(node, Config):
            for name in {key, next(iter(node), key)}:
                for attempt in ON_MAPS:
                    with pytest.raises(ConfigReadOnly):
                        attempt(node, name)
                for attempt in AROUND_MAPS:
                    with pytest.raises((AttributeError, TypeError)):
                        attempt(node, name)
        for change in ON_SEQUENCES if isinstance(node, tuple) else ON_SETS if isinstance(node, frozenset) else ():
            with pytest.raises((AttributeError, TypeError)):
                change(node)
    for name in ("config", "_config"):
        for put in (setattr, object.__setattr__):
            with pytest.raises(AttributeError):
                put(gctx, name, {})
    source.clear()

    assert is_same(thaw(gctx.config), before)


# -- the local context --------------------------------------------------------------------------


@pytest.mark.prop(23)
@settings(max_examples=200, deadline=None)
@given(descriptor=strategies.request_descriptors(), steps=strategies.state_steps(REQUESTS))
def test_a_local_context_is_a_map_of_its_own(descriptor: RequestDescriptor, steps: list[StateStep]) -> None:
    """P23 (R7.1): get, set, delete and clean behave like a dict, whatever other requests do meanwhile."""
    contexts = [LocalContext(descriptor) for _ in range(REQUESTS)]
    models: list[dict[str, Any]] = [{} for _ in range(REQUESTS)]

    for step in steps:
        lctx, model = contexts[step.who], models[step.who]
        if step.do == "set":
            lctx.set(step.key, step.value)
            model[step.key] = step.value
        elif step.do == "delete":
            lctx.delete(step.key)
            model.pop(step.key, None)
        elif step.do == "clean":
            lctx.clean()
            model.clear()
        else:
            assert lctx.get(step.key) is model.get(step.key)
            assert lctx.get(step.key, step) is model.get(step.key, step)

    keys = {step.key for step in steps}
    found = [{key: lctx.get(key, model) for key in keys} for lctx, model in zip(contexts, models, strict=True)]
    assert found == [{key: model.get(key, model) for key in keys} for model in models]


# -- snapshots ----------------------------------------------------------------------------------


@pytest.mark.prop(21)
@settings(max_examples=200, deadline=None)
@given(source=strategies.snapshots())
def test_a_snapshot_keeps_everything_through_copying_and_storing(source: Snapshot) -> None:
    """P21 (R6.3): state, operations with status, hook position and version, as taken and as read back from bytes."""
    fields = {name: getattr(source, name) for name in source.__struct_fields__}

    taken = take_snapshot(**fields)
    back = from_bytes(to_bytes(taken))

    for each in (taken, back):
        assert _is_same_snapshot(each, source)


@settings(max_examples=200, deadline=None)
@given(source=strategies.snapshots())
def test_a_restored_state_is_equal_and_independent(source: Snapshot) -> None:
    """The part of P47 (R15.4) that needs no request: what is restored from is equal, and stays as it was."""
    before = from_bytes(to_bytes(source))

    restored = copy_state(source.state)
    assert is_same(restored, source.state)
    _spoil(restored)

    assert _is_same_snapshot(source, before)


@settings(max_examples=300, deadline=None)
@given(before=strategies.snapshots(), after=strategies.snapshots())
def test_applying_a_difference_gives_the_other_snapshot(before: Snapshot, after: Snapshot) -> None:
    """Differences of snapshots are complete: apply(a, diff(a, b)) is b, and nothing is left to change."""
    identity = ("request_id", "timestamp", "handler_version", "trace_id", "client_id")
    after = msgspec.structs.replace(after, **{name: getattr(before, name) for name in identity})

    changes = diff(before, after)
    made = apply(before, changes)

    assert _is_same_snapshot(made, after)
    assert diff(made, after) == []
    assert (changes == []) == _is_same_snapshot(before, after)
    assert len({change.dotted for change in changes}) == len(changes)


@settings(max_examples=200, deadline=None)
@given(snapshot=strategies.snapshots())
def test_a_snapshot_does_not_differ_from_itself(snapshot: Snapshot) -> None:
    """Nor from its copy by way of bytes."""
    assert diff(snapshot, from_bytes(to_bytes(snapshot))) == []


def _is_same_snapshot(one: Snapshot, other: Snapshot) -> bool:
    def plain(snapshot: Snapshot) -> list[Any]:
        operations = [[each.id, each.status, each.result, each.error] for each in snapshot.outstanding]
        rest = [getattr(snapshot, name) for name in snapshot.__struct_fields__ if name != "outstanding"]
        return [operations, *rest]

    return is_same(plain(one), plain(other))


def _spoil(value: Any) -> None:
    """Change every container in it that can be changed."""
    for each in list(value.values() if isinstance(value, dict) else value):
        if isinstance(each, (dict, list, tuple, set)):
            _spoil(each)
    if isinstance(value, dict):
        value["spoilt"] = object()
    elif isinstance(value, list):
        value.append(object())
    elif isinstance(value, set):
        value.add("spoilt")
