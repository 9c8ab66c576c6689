"""Which functions are handlers, by example."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, NoReturn, Optional

import msgspec
import pytest

from gati_core.app._signature import check_handler, describe, request_types, response_type, source_of
from gati_core.errors import RegistrationError
from gati_core.lifecycle import Request, Response


class Order(msgspec.Struct):
    sku: str


# -- accepted ----------------------------------------------------------------------------------


async def bare_async(req, res, gctx, lctx): ...
async def annotated_async(req: Request[Any], res: Any, gctx: Any, lctx: Any) -> None: ...
async def never_returns(req, res, gctx, lctx) -> NoReturn: ...
async def other_names(request, response, g, l): ...  # noqa: E741
async def positional_only(req, res, gctx, lctx, /): ...
def bare(req, res, gctx, lctx): ...
def annotated(req, res, gctx, lctx) -> None: ...
def awaitable(req, res, gctx, lctx) -> Awaitable[None]: ...
def coroutine(req, res, gctx, lctx) -> Coroutine[Any, Any, None]: ...
def future(req, res, gctx, lctx) -> asyncio.Future[None]: ...
def either(req, res, gctx, lctx) -> Awaitable[None] | None: ...
def optional(req, res, gctx, lctx) -> Optional[Awaitable[None]]: ...  # noqa: UP045
def anything(req, res, gctx, lctx) -> Any: ...
def with_setting(setting, req, res, gctx, lctx) -> None: ...
async def with_setting_async(setting, req, res, gctx, lctx) -> None: ...


class Methods:
    async def method(self, req, res, gctx, lctx) -> None: ...

    @staticmethod
    def static(req, res, gctx, lctx) -> None: ...

    @classmethod
    async def of_class(cls, req, res, gctx, lctx) -> None: ...


class AsyncCallable:
    async def __call__(self, req: Request[Order], res: Any, gctx: Any, lctx: Any) -> None: ...


class SyncCallable:
    def __call__(self, req, res, gctx, lctx) -> None: ...


def _wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> None:
        await function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("function", "is_async"),
    [
        (bare_async, True),
        (annotated_async, True),
        (never_returns, True),
        (other_names, True),
        (positional_only, True),
        (bare, False),
        (annotated, False),
        (awaitable, False),
        (coroutine, False),
        (future, False),
        (either, False),
        (optional, False),
        (anything, False),
        (lambda req, res, gctx, lctx: None, False),
        (Methods().method, True),
        (Methods.static, False),
        (Methods.of_class, True),
        (AsyncCallable(), True),
        (SyncCallable(), False),
        (functools.partial(with_setting, 1), False),
        (functools.partial(with_setting_async, 1), True),
        (_wrapped(bare_async), True),
    ],
)
def test_a_function_of_the_four_is_a_handler_and_known_as_async_or_not(
    function: Callable[..., Any], is_async: bool
) -> None:
    assert check_handler(function) is is_async


# -- refused -----------------------------------------------------------------------------------


def no_parameters() -> None: ...
def three(req, res, gctx) -> None: ...
def five(req, res, gctx, lctx, more) -> None: ...
def star(*args) -> None: ...
def four_and_star(req, res, gctx, lctx, *rest) -> None: ...
def four_and_keywords(req, res, gctx, lctx, **rest) -> None: ...
def keyword_only(req, res, gctx, *, lctx) -> None: ...
def with_default(req, res, gctx, lctx=None) -> None: ...
def swapped(res, req, gctx, lctx) -> None: ...
def swapped_contexts(req, res, lctx, gctx) -> None: ...
def late(a, req, gctx, lctx) -> None: ...
def generator(req, res, gctx, lctx) -> Iterator[None]:
    yield


async def async_generator(req, res, gctx, lctx) -> AsyncIterator[None]:
    yield


def returns_int(req, res, gctx, lctx) -> int: ...
def returns_text(req, res, gctx, lctx) -> str | None: ...
async def returns_order(req, res, gctx, lctx) -> Order: ...
def awaits_int(req, res, gctx, lctx) -> Awaitable[int]: ...
def coroutine_of_text(req, res, gctx, lctx) -> Coroutine[None, None, str]: ...
def generator_with_setting(setting, req, res, gctx, lctx) -> Any:
    yield


def undefined_type(req: Request[Missing], res, gctx, lctx) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def undefined_return(req, res, gctx, lctx) -> Missing: ...  # type: ignore[name-defined]  # noqa: F821
def undefined_attribute(req, res, gctx, lctx) -> msgspec.Missing: ...  # type: ignore[name-defined]


@pytest.mark.parametrize(
    "function",
    [no_parameters, three, five, star, four_and_star, four_and_keywords, keyword_only],
)
def test_anything_but_four_positional_parameters_is_refused_with_what_was_found(function: Callable[..., Any]) -> None:
    with pytest.raises(RegistrationError, match=r"exactly \(req, res, gctx, lctx\), not \("):
        check_handler(function)


def test_a_default_is_refused_with_its_name() -> None:
    with pytest.raises(RegistrationError, match="'lctx' may have no default"):
        check_handler(with_default)


@pytest.mark.parametrize("function", [swapped, swapped_contexts, late])
def test_the_known_names_in_another_order_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(RegistrationError, match=r"in this order, not \("):
        check_handler(function)


@pytest.mark.parametrize("function", [generator, async_generator, functools.partial(generator_with_setting, 1)])
def test_a_generator_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(RegistrationError, match="may not be a generator"):
        check_handler(function)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (returns_int, "int"),
        (returns_text, "str"),
        (returns_order, "Order"),
        (awaits_int, "Awaitable"),
        (coroutine_of_text, "Coroutine"),
    ],
)
def test_a_return_value_is_refused_and_named(function: Callable[..., Any], named: str) -> None:
    with pytest.raises(RegistrationError, match=f"answers through res and returns None, not .*{named}"):
        check_handler(function)


@pytest.mark.parametrize("thing", [None, 7, "handler", Order, Methods, object()])
def test_what_is_no_function_is_refused(thing: object) -> None:
    with pytest.raises(RegistrationError, match="must be a function, not"):
        check_handler(thing)


@pytest.mark.parametrize("check", [check_handler, request_types])
def test_a_type_that_is_not_there_at_run_time_is_refused_and_named(check: Callable[[Any], Any]) -> None:
    with pytest.raises(RegistrationError, match="'Missing', which is not defined at module level"):
        check(undefined_return if check is check_handler else undefined_type)


def test_an_annotation_that_fails_to_evaluate_is_refused() -> None:
    with pytest.raises(RegistrationError, match=r"cannot be evaluated: .*Missing"):
        check_handler(undefined_attribute)


@pytest.mark.parametrize("function", [three, with_default, swapped, generator, returns_int, undefined_return])
def test_every_refusal_names_function_file_and_line(function: Callable[..., Any]) -> None:
    line = function.__code__.co_firstlineno  # type: ignore[attr-defined]

    with pytest.raises(RegistrationError, match=rf"^{function.__name__} \({re.escape(__file__)}:{line}\): "):
        check_handler(function)


# -- the body's type ----------------------------------------------------------------------------


async def typed(req: Request[Order], res, gctx, lctx): ...
async def list_typed(req: Request[list[Order]], res, gctx, lctx): ...
async def untyped(req: Request, res, gctx, lctx): ...  # type: ignore[type-arg]
async def typed_any(req: Request[Any], res, gctx, lctx): ...
async def typed_none(req: Request[None], res, gctx, lctx): ...
async def other_type(req: dict[str, int], res, gctx, lctx): ...
async def typed_with_setting(setting, req: Request[Order], res, gctx, lctx): ...


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (typed, Order),
        (list_typed, list[Order]),
        (AsyncCallable(), Order),
        (functools.partial(typed_with_setting, 1), Order),
        (bare_async, None),
        (untyped, None),
        (typed_any, None),
        (typed_none, None),
        (other_type, None),
    ],
)
def test_the_body_type_is_what_the_request_is_annotated_with(function: Callable[..., Any], wanted: object) -> None:
    assert request_types(function).body == wanted


# -- the answer's type --------------------------------------------------------------------------


async def answers(req, res: Response[Order], gctx, lctx): ...
async def answers_list(req, res: Response[list[Order]], gctx, lctx): ...
async def answers_nothing(req, res: Response[None], gctx, lctx): ...
async def answers_anything(req, res: Response[Any], gctx, lctx): ...
async def request_in_its_place(req, res: Request[Order], gctx, lctx): ...
async def answers_with_setting(setting, req, res: Response[Order], gctx, lctx): ...


@pytest.mark.parametrize(
    ("function", "declared"),
    [
        (answers, Order),
        (answers_list, list[Order]),
        (answers_nothing, type(None)),
        (functools.partial(answers_with_setting, 1), Order),
        (answers_anything, None),
        (bare_async, None),
        (typed, None),
        (request_in_its_place, None),
    ],
)
def test_the_answers_type_is_what_the_response_is_annotated_with(
    function: Callable[..., Any], declared: object
) -> None:
    assert response_type(function) == declared


# -- where it is --------------------------------------------------------------------------------


def test_the_source_is_file_and_line_of_the_function_and_not_of_its_wrapper() -> None:
    assert source_of(_wrapped(bare_async)) == source_of(bare_async)
    assert source_of(bare_async) == f"{__file__}:{bare_async.__code__.co_firstlineno}"


def test_what_has_no_source_is_described_by_its_name_alone() -> None:
    assert (source_of(print), describe(print)) == ("", "print")
