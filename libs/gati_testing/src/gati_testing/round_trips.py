"""Transformers against values that nobody thought of: there and back again must give what was there."""

from __future__ import annotations

import asyncio
import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings

from gati_core import VersionedRequest, VersionedResponse
from gati_core.gtype import Document, errors_of, extract
from gati_core.lifecycle import Transformer
from gati_testing._gtype_values import values_of

__all__ = ["check_round_trip"]


def check_round_trip(
    functions: Any,
    *,
    old_request: Any = None,
    new_request: Any = None,
    old_response: Any = None,
    new_response: Any = None,
    examples: int = 100,
    same: Callable[[Any, Any], bool] = operator.eq,
) -> None:
    """Check a transformer with generated bodies; what it has no function for is taken as it is.

    Requests of the old type go forward, must fit the new type, and back again, where there is a `backward_request`.
    Answers of the new type go backward, must fit the old type, and forward again, where there is a
    `forward_response`.

    Args:
        functions: the class that `@app.transformer` decorates.
        old_request, new_request: types of the bodies of requests; both or none.
        old_response, new_response: types of the bodies of answers; both or none.
        examples: how many bodies of each kind are tried.
        same: whether what came back is what left; for transformers that may lose something.
    Raises:
        AssertionError: with the smallest body for which it does not hold.
        TypeError: only one type of a pair is given, or none at all.
    """
    transformer = Transformer("handler", functions, from_version="v1")
    pairs = ((old_request, new_request), (old_response, new_response))
    if any((one is None) != (other is None) for one, other in pairs) or all(one is None for one, _ in pairs):
        raise TypeError("give both types of the requests, both types of the answers, or all four")
    if old_request is not None:
        _Way(transformer, VersionedRequest, "forward_request", "backward_request").check(
            extract(old_request).document, extract(new_request).document, examples, same
        )
    if old_response is not None:
        _Way(transformer, VersionedResponse, "backward_response", "forward_response").check(
            extract(new_response).document, extract(old_response).document, examples, same
        )


class _Way:
    """There with one function, and back with the other."""

    def __init__(self, transformer: Transformer, kind: type[Any], there: str, back: str) -> None:
        self._transformer = transformer
        self._kind = kind
        self._there = there
        self._back = back

    def check(self, start: Document, end: Document, examples: int, same: Callable[[Any, Any], bool]) -> None:
        name = self._transformer.name

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(values_of(start))
        def goes_there_and_back(body: Any) -> None:
            arrived = self._run(self._there, body)
            wrong = errors_of(arrived, end)
            assert not wrong, (
                f"{name}.{self._there} made {arrived!r} of {body!r}, which does not fit: /{wrong[0].where}"
                f" {wrong[0].message}"
            )
            if self._back in self._transformer.functions:
                returned = self._run(self._back, arrived)
                assert same(body, returned), (
                    f"{body!r} became {arrived!r} with {name}.{self._there}, and came back as {returned!r} with"
                    f" {name}.{self._back}"
                )

        goes_there_and_back()

    def _run(self, name: str, body: Any) -> Any:
        function = self._transformer.functions.get(name)
        if function is None:
            return body
        own = copy.deepcopy(body)
        carried = VersionedRequest(own, {}, {}) if self._kind is VersionedRequest else VersionedResponse(200, own)
        result = function(carried)
        if inspect.isawaitable(result):
            result = asyncio.run(_awaited(result))
        return (carried if result is None else result).body


async def _awaited(result: Any) -> Any:
    return await result
