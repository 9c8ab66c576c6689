"""Fake modules: what they answer, what they remember, and what they pass for."""

from __future__ import annotations

import asyncio
import functools
from typing import Any, Protocol, runtime_checkable
from unittest.mock import AsyncMock

import pytest

from gati_testing import create_mock_module, create_stub_module


class Orders:
    """A module as production has it."""

    async def create(self, sku: str) -> str:
        return sku


@runtime_checkable
class Creates(Protocol):
    async def create(self, sku: str) -> str: ...


async def create(sku: str, *, pieces: int = 1) -> str:
    """One that is awaited."""
    if not sku:
        raise ValueError("no sku")
    return f"{pieces} {sku}"


async def test_calls_are_answered_and_recorded_in_their_order() -> None:
    module = create_mock_module({"create": create, "count": lambda: 7})

    assert await module.create("ada", pieces=2) == "2 ada"
    assert module.count() == 7
    assert await module.create("bob") == "1 bob"

    assert [call.method for call in module.all_calls] == ["create", "count", "create"]
    first, second = module.calls["create"]
    assert (first.args, first.kwargs, first.result, first.error) == (("ada",), {"pieces": 2}, "2 ada", None)
    assert (second.result, module.calls["count"][0].result) == ("1 bob", 7)
    assert 0 < first.timestamp <= second.timestamp
    module.reset()
    assert (module.calls, module.all_calls) == ({"create": [], "count": []}, [])
    assert module.module is module


async def test_what_raises_is_recorded_as_well() -> None:
    def fails() -> None:
        raise KeyError("x")

    module = create_mock_module({"create": create, "fails": fails})
    with pytest.raises(ValueError, match="no sku"):
        await module.create("")
    with pytest.raises(KeyError):
        module.fails()

    assert [type(call.error) for call in module.all_calls] == [ValueError, KeyError]
    assert [call.result for call in module.all_calls] == [None, None]


async def test_a_call_that_is_cancelled_says_so() -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    module = create_mock_module({"hangs": hangs})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await module.hangs()

    assert isinstance(module.calls["hangs"][0].error, asyncio.CancelledError)


@pytest.mark.parametrize(
    "method", [create, functools.partial(create), lambda sku: create(sku), AsyncMock(return_value="1 ada")]
)
async def test_whatever_is_awaitable_may_be_awaited(method: Any) -> None:
    module = create_mock_module({"create": method})

    assert await module.create("ada") == "1 ada"
    assert [call.result for call in module.calls["create"]] == ["1 ada"]


async def test_arguments_are_kept_as_they_were_passed() -> None:
    module = create_mock_module({"save": lambda order: None})
    order = {"lines": [1]}
    module.save(order)
    order["lines"].append(2)
    unique = asyncio.Lock()
    module.save(unique)

    assert module.calls["save"][0].args == ({"lines": [1]},)
    assert len(module.calls["save"]) == 2, "what cannot be copied is no reason to fail"


async def test_a_stub_answers_and_raises() -> None:
    module = create_stub_module({"level": 7, "broken": LookupError("gone"), "kind": TimeoutError, "none": None})

    assert await module.level("anything", at="all") == 7
    assert await module.none() is None
    with pytest.raises(LookupError, match="gone"):
        await module.broken()
    with pytest.raises(TimeoutError):
        await module.kind()
    assert module.calls["level"][0].kwargs == {"at": "all"}


def test_a_method_that_is_not_there_is_named_with_those_that_are() -> None:
    module = create_mock_module({"create": create})

    with pytest.raises(AttributeError, match=r"no method 'delete' \(it has: create\)"):
        _ = module.delete
    assert not hasattr(create_mock_module({}), "create")


@pytest.mark.parametrize("name", ["calls", "all_calls", "reset", "module", "_record", "__len__", "__init__", "_kind"])
def test_names_that_the_fake_needs_itself_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        create_mock_module({name: create})


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="'create'"):
        create_mock_module({"create": 7})  # type: ignore[dict-item]


def test_a_fake_passes_for_what_it_has_the_methods_of_or_claims_to_be() -> None:
    methods = {"create": create}

    assert isinstance(create_mock_module(methods), Creates)
    assert not isinstance(create_mock_module({"other": create}), Creates)
    assert isinstance(create_mock_module(methods, kind=Orders), Orders)
    assert isinstance(create_stub_module({"create": 1}, kind=Orders), Orders)
    assert not isinstance(create_mock_module(methods), Orders)
