"""What is reached by name: modules, services, and what the global context says of the rest."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import pytest

from gati_core.contexts import GlobalContext, InProcessMetrics, Instance, ProcessLifecycle, Registry
from gati_core.contexts._registry import MAX_NAMES
from gati_core.errors import NotConfigured, NotRegistered, RegistrationError, WrongKind

INSTANCE = Instance("i-1", "shop", "shop-1", "host", 5)


class _Database:
    size = 3

    def find_user(self, id: int) -> str:
        return f"user {id}"


@runtime_checkable
class _Users(Protocol):
    size: int

    def find_user(self, id: int) -> str: ...


@runtime_checkable
class _Orders(Protocol):
    limit: int

    def find_order(self, id: int) -> str: ...


class _Unchecked(Protocol):
    def find_user(self, id: int) -> str: ...


@pytest.fixture
def modules() -> Registry[Any]:
    """One module, named db."""
    return Registry("module", {"db": _Database()})


def test_what_was_registered_is_found_by_name(modules: Registry[Any]) -> None:
    modules.register("cache", 7)

    assert modules["cache"] == 7
    assert (list(modules), len(modules), "db" in modules, "x" in modules) == (["db", "cache"], 2, True, False)
    assert (modules.get("x"), modules.get("x", 1)) == (None, 1)


def test_a_name_is_registered_once(modules: Registry[Any]) -> None:
    with pytest.raises(RegistrationError, match="module 'db' is registered already"):
        modules.register("db", 7)

    assert isinstance(modules["db"], _Database)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "-a", "a" * 65, "ä", 7, None])
def test_a_bad_name_is_refused(modules: Registry[Any], name: Any) -> None:
    with pytest.raises(RegistrationError, match="module name"):
        modules.register(name, 7)


def test_the_number_of_names_is_bounded() -> None:
    modules = Registry("module", {f"m{number}": number for number in range(MAX_NAMES)})

    with pytest.raises(RegistrationError, match=f"{MAX_NAMES} are registered already"):
        modules.register("more", 7)


def test_a_missing_name_is_an_error_that_lists_what_there_is(modules: Registry[Any]) -> None:
    modules.register("cache", 7)

    with pytest.raises(NotRegistered) as caught:
        modules["x"]

    assert str(caught.value) == "no module 'x' (there is: cache, db)"
    assert isinstance(caught.value, KeyError)


def test_handlers_cannot_change_it_as_a_mapping(modules: Any) -> None:
    with pytest.raises(TypeError):
        modules["x"] = 7
    with pytest.raises(TypeError):
        del modules["db"]
    with pytest.raises(AttributeError):
        modules.x = 7


# -- get_module ---------------------------------------------------------------------------------


def test_a_module_is_given_as_what_was_asked_for(modules: Registry[Any]) -> None:
    gctx = GlobalContext(INSTANCE, modules=modules)

    assert gctx.get_module("db") is modules["db"]
    assert gctx.get_module("db", _Database).find_user(1) == "user 1"
    assert gctx.get_module("db", _Users).find_user(2) == "user 2"


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (int, "module 'db' is a _Database, which is no int$"),
        (_Orders, "module 'db' is a _Database, which is no _Orders: it lacks find_order, limit"),
        (_Unchecked, "decorate it with @runtime_checkable"),
        (len, "cannot be checked against"),
    ],
)
def test_a_module_of_another_kind_is_an_error_that_says_why(modules: Registry[Any], kind: Any, named: str) -> None:
    with pytest.raises(WrongKind, match=named):
        GlobalContext(INSTANCE, modules=modules).get_module("db", kind)


def test_a_module_that_is_not_there_is_an_error() -> None:
    with pytest.raises(NotRegistered, match=r"no module 'db' \(there is: none\)"):
        GlobalContext(INSTANCE).get_module("db", int)


# -- the rest of the global context -------------------------------------------------------------


def test_a_global_context_has_everything_without_being_given_anything() -> None:
    gctx = GlobalContext(INSTANCE)

    assert (dict(gctx.modules), dict(gctx.services), gctx.state, gctx.config) == ({}, {}, {}, {})
    assert isinstance(gctx.metrics, InProcessMetrics)
    assert isinstance(gctx.lifecycle, ProcessLifecycle)
    assert (gctx.instance.region, gctx.instance.zone) == ("", "")


def test_a_global_context_hands_out_what_it_was_given(modules: Registry[Any]) -> None:
    services: Registry[Any] = Registry("service", {"cache": 7})
    metrics, lifecycle = InProcessMetrics(), ProcessLifecycle()
    timescape: Any = object()

    gctx = GlobalContext(
        INSTANCE, modules=modules, services=services, metrics=metrics, lifecycle=lifecycle, timescape=timescape
    )

    assert (gctx.modules, gctx.services["cache"]) == (modules, 7)
    assert gctx.metrics is metrics
    assert gctx.lifecycle is lifecycle
    assert gctx.timescape is timescape


def test_no_process_shares_state_with_another() -> None:
    one, two = GlobalContext(INSTANCE), GlobalContext(INSTANCE)

    one.state["x"] = 1

    assert two.state == {}


def test_a_timescape_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(NotConfigured, match="without a Timescape client"):
        _ = GlobalContext(INSTANCE).timescape
