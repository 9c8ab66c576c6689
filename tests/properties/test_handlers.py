"""Properties of handlers: what may be registered."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import event, given, settings

from gati_core import App, Response
from gati_core.errors import RegistrationError
from gati_testing import strategies
from gati_testing.strategies import HANDLER_PARAMETERS, HandlerShape, Parameter
from tests.helpers.names import steady

_NAMES = {"Awaitable": Awaitable, "Coroutine": Coroutine, "Any": Any, "Response": Response}
_numbers = itertools.count()


def source(shape: HandlerShape) -> str:
    """The shape as Python text; the callable is `build(…)`'s `made`."""
    parts: list[str] = []
    kinds = [parameter.kind for parameter in shape.parameters]
    last_only = max((place for place, kind in enumerate(kinds) if kind == "positional only"), default=-1)
    star_written = False
    for place, parameter in enumerate(shape.parameters):
        if parameter.kind == "keyword only" and not star_written and "var positional" not in kinds:
            parts.append("*")
            star_written = True
        prefix = {"var positional": "*", "var keyword": "**"}.get(parameter.kind, "")
        parts.append(prefix + parameter.name + (" = None" if parameter.has_default else ""))
        if place == last_only:
            parts.append("/")
    is_bound = shape.form in ("method", "callable object")
    name = "__call__" if shape.form == "callable object" else "made"
    if is_bound:
        parts.insert(0, "self_")
    word = "async def" if shape.form.startswith("async") else "def"
    returns = f" -> {shape.returns}" if shape.returns else ""
    body = "yield" if "generator" in shape.form else "pass"
    function = f"{word} {name}({', '.join(parts)}){returns}:\n    {body}\n"
    if not is_bound:
        return function
    indented = "".join(f"    {line}\n" for line in function.splitlines())
    return f"class Owner:\n{indented}\nmade = Owner(){'' if shape.form == 'callable object' else '.made'}\n"


def build(shape: HandlerShape) -> Callable[..., Any]:
    """The callable itself, as a real function or object, not one with a faked signature."""
    scope: dict[str, Any] = dict(_NAMES)
    exec(compile(source(shape), "<generated>", "exec"), scope)
    made: Callable[..., Any] = scope["made"]
    return made


def is_a_handler(shape: HandlerShape) -> bool:
    """The rule, said once more: four positional parameters in their places, and nothing returned but an awaitable."""

    def fits(place: int, parameter: Parameter) -> bool:
        is_positional = parameter.kind in ("positional only", "positional") and not parameter.has_default
        is_elsewhere = parameter.name in HANDLER_PARAMETERS and HANDLER_PARAMETERS[place] != parameter.name
        return is_positional and not is_elsewhere

    return (
        len(shape.parameters) == 4
        and all(fits(place, parameter) for place, parameter in enumerate(shape.parameters))
        and "generator" not in shape.form
        and shape.returns in ("", "None", "Awaitable[None]", "Coroutine[Any, Any, None]")
    )


@pytest.mark.prop(1)
@settings(max_examples=400, deadline=None)
@given(shape=strategies.handler_shapes())
def test_registration_accepts_exactly_what_is_a_handler(shape: HandlerShape) -> None:
    """P1 (R1.1): accepted if and only if it takes (req, res, gctx, lctx) and returns nothing or an awaitable."""
    app = App("shapes")
    register = app.post(f"/{next(_numbers)}", id="made")
    handler = build(shape)

    try:
        register(handler)
    except RegistrationError:
        is_accepted = False
    else:
        is_accepted = True

    event("accepted" if is_accepted else "refused")
    assert is_accepted == is_a_handler(shape), source(shape)
    assert ("made" in app.handlers) == is_accepted


@pytest.mark.prop(1)
@pytest.mark.parametrize("thing", [None, 7, "handler", object(), App, dict, [], print, len], ids=steady)
def test_what_is_no_function_of_four_parameters_is_refused(thing: Any) -> None:
    """P1 (R1.1), for things that nobody would generate."""
    with pytest.raises(RegistrationError):
        App("shapes").get("/x", id="made")(thing)
