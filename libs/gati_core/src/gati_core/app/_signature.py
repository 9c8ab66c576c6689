"""The rule for handlers: exactly `(req, res, gctx, lctx)`, returning nothing or an awaitable (P1)."""

from __future__ import annotations

import asyncio
import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from gati_core.errors import RegistrationError
from gati_core.lifecycle import Request, Response

NAMES = ("req", "res", "gctx", "lctx")
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_AWAITABLES = (
    collections.abc.Awaitable,
    collections.abc.Coroutine,
    asyncio.Future,
)


def describe(function: object) -> str:
    """`name (file:line)` of a function, for messages."""
    name = getattr(function, "__qualname__", None) or repr(function)
    where = source_of(function)
    return f"{name} ({where})" if where else str(name)


def source_of(function: object) -> str:
    """`file:line` of a function, or nothing when Python does not know."""
    target = inspect.unwrap(function) if callable(function) else function
    code = getattr(target, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def check_handler(function: Any) -> bool:
    """Accept a handler, or refuse it with the reason; returns whether it is async.

    Raises:
        RegistrationError: not callable; not exactly four positional parameters; the known names in
            another order; a generator; or an annotated return value that is neither None nor an
            awaitable of None.
    """
    if not callable(function) or inspect.isclass(function):
        raise RegistrationError(f"a handler must be a function, not {function!r}")
    target = _target(function)
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise RegistrationError(f"{describe(function)}: a handler may not be a generator; use res to answer")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError) as exc:
        raise RegistrationError(f"{describe(function)}: its parameters are not known to Python") from exc
    _check_parameters(function, list(signature.parameters.values()))
    _check_return(function, signature.return_annotation)
    return inspect.iscoroutinefunction(target)


def _target(function: Any) -> Any:
    """The function behind partial objects and objects with `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def _check_parameters(function: Any, parameters: list[inspect.Parameter]) -> None:
    wanted = "a handler takes exactly (req, res, gctx, lctx)"
    if len(parameters) != 4 or any(parameter.kind not in _POSITIONAL for parameter in parameters):
        found = ", ".join(str(parameter) for parameter in parameters)
        raise RegistrationError(f"{describe(function)}: {wanted}, not ({found})")
    for place, parameter in enumerate(parameters):
        if parameter.default is not inspect.Parameter.empty:
            raise RegistrationError(f"{describe(function)}: {wanted}; {parameter.name!r} may have no default")
        if parameter.name in NAMES and NAMES.index(parameter.name) != place:
            found = ", ".join(each.name for each in parameters)
            raise RegistrationError(f"{describe(function)}: {wanted} in this order, not ({found})")


def _check_return(function: Any, annotation: Any) -> None:
    if isinstance(annotation, str):
        annotation = _hints(_target(function)).get("return", annotation)
    if not _is_nothing(annotation):
        raise RegistrationError(
            f"{describe(function)}: a handler answers through res and returns None, not {_name(annotation)}"
        )


def _is_nothing(annotation: Any) -> bool:
    """Whether it means None or an awaitable of None."""
    if annotation in (inspect.Signature.empty, None, type(None), typing.NoReturn, typing.Never, Any):
        return True
    origin = typing.get_origin(annotation) or annotation
    arguments = typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return all(_is_nothing(each) for each in arguments)
    if inspect.isclass(origin) and issubclass(origin, _AWAITABLES):
        return not arguments or _is_nothing(arguments[-1])  # of Coroutine[Y, S, R], the R
    return False


class RequestTypes(NamedTuple):
    """What a handler's `Request[…]` declares; None for parts that are not typed."""

    body: Any = None
    query: Any = None
    params: Any = None
    headers: Any = None


def request_types(function: Callable[..., Any]) -> RequestTypes:
    """The types of the handler's `Request[Body, Query, Params, Headers]`.

    Raises:
        RegistrationError: the annotation names something that cannot be found, or has too many types.
    """
    given = _arguments(function, 0, Request)
    if len(given) > len(RequestTypes._fields):
        raise RegistrationError(
            f"{describe(function)}: Request takes up to four types (body, query, params, headers), not {len(given)}"
        )
    body = None if given and given[0] is type(None) else given[0] if given else None
    return RequestTypes(body, *given[1:])


def response_type(function: Callable[..., Any]) -> Any:
    """The `T` of the handler's `Response[T]`, or None when the response is not typed.

    Raises:
        RegistrationError: the annotation names something that cannot be found.
    """
    (declared,) = _arguments(function, 1, Response) or [None]
    return declared


def _arguments(function: Callable[..., Any], place: int, generic: type) -> list[Any]:
    parameter = list(inspect.signature(function).parameters.values())[place]
    annotation = parameter.annotation
    if isinstance(annotation, str):
        annotation = _hints(_target(function)).get(parameter.name)
    if typing.get_origin(annotation) is not generic:
        return []
    given = [type(None) if each is None else each for each in typing.get_args(annotation)]
    return [None if each is Any or isinstance(each, typing.TypeVar) else each for each in given]


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except NameError as exc:
        raise RegistrationError(
            f"{describe(function)}: the annotations name {exc.name!r}, which is not defined at module level;"
            " types of handlers must be importable at run time (not only under TYPE_CHECKING)"
        ) from exc
    except (TypeError, AttributeError, SyntaxError) as exc:
        raise RegistrationError(f"{describe(function)}: the annotations cannot be evaluated: {exc}") from exc


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)
