"""Transformers: requests of an old version made into those of a newer one, and its answers made into old ones.

The router plans the way, hop by hop; here it is gone. A hop without a transformer changes nothing: it is between
versions that do not break each other's clients. What a client sends is compared with its own version's types before
the first hop, and what it gets with them after the last: transformers see only what they were written for.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec
import structlog

from gati_core.contexts import is_async_callable
from gati_core.errors import GatiError, InvalidBody, InvalidRequest, RegistrationError, TransformFailed
from gati_core.gtype import CompiledValidator, FieldError
from gati_core.lifecycle.bounding import bounded
from gati_core.lifecycle.shared import HopCounts, Lifecycle
from gati_core.limits import check_timeout
from gati_core.wire import RequestDescriptor

log = structlog.get_logger(__name__)

HOP_TIMEOUT_S = 5.0
_MAX_QUERY_FIELDS = 1000
_FUNCTIONS = ("forward_request", "forward_response", "backward_request", "backward_response")
_encode = msgspec.json.Encoder().encode


class VersionedRequest:
    """What a transformer of requests gets: change it in place, or return another."""

    __slots__ = ("body", "headers", "params", "query")

    def __init__(
        self, body: Any, params: dict[str, str], query: dict[str, list[str]], headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.body = body
        """The JSON value; bytes where it is no JSON, None where there is none."""
        self.params = params
        """Path parameters by name."""
        self.query = query
        """All values of each parameter."""
        self.headers = tuple(headers)
        """As they came: what is changed here has no effect."""


class VersionedResponse:
    """What a transformer of answers gets: change it in place, or return another."""

    __slots__ = ("body", "status")

    def __init__(self, status: int, body: Any) -> None:
        self.status = status
        """2xx; what is changed here has no effect."""
        self.body = body
        """The JSON value."""


class Transformer:
    """Leads between two neighbouring versions of one handler. What it has no function for stays as it is.

    Args:
        handler: the handler's id.
        from_version: the older version: a TSV, a tag, or the version of a package.
        to_version: the newer one; the version that the package itself brings where it is empty.
        functions: an object with any of `forward_request`, `forward_response`, `backward_request` and
            `backward_response`, each of one argument, plain or async.
        timeout_s: for each of the functions. An async or threaded one is cancelled then; a plain one, which nobody
            can interrupt, fails when it returns too late.
        threaded: run plain functions in a thread, because they wait or compute for long.
    Raises:
        RegistrationError: it has none of them, or one that is no such function; the limit is none; `threaded` with
            async functions alone.
    """

    __slots__ = ("_in_threads", "from_version", "functions", "handler", "name", "timeout_s", "to_version")

    def __init__(
        self,
        handler: str,
        functions: Any,
        *,
        from_version: str,
        to_version: str = "",
        timeout_s: float = HOP_TIMEOUT_S,
        threaded: bool = False,
    ) -> None:
        self.handler = handler
        self.from_version = from_version
        self.to_version = to_version
        self.timeout_s = timeout_s
        self.name: str = getattr(functions, "__qualname__", type(functions).__qualname__)
        check_timeout(timeout_s, f"transformer {self.name}")
        self.functions: dict[str, Callable[[Any], Any]] = {}
        known = [name for name in dir(functions) if name.startswith(("forward_", "backward_"))]
        unknown = [name for name in known if name not in _FUNCTIONS]
        if unknown:
            raise RegistrationError(f"transformer {self.name}: {unknown[0]} is none of {', '.join(_FUNCTIONS)}")
        for name in known:
            function = getattr(functions, name)
            try:
                inspect.signature(function).bind(None)
            except (TypeError, ValueError) as exc:
                raise RegistrationError(
                    f"transformer {self.name}: {name} must be a static method that takes one argument, the request or"
                    f" the response ({exc})"
                ) from exc
            self.functions[name] = function
        if not self.functions:
            raise RegistrationError(f"transformer {self.name} has none of {', '.join(_FUNCTIONS)}")
        plain = {name for name, function in self.functions.items() if not is_async_callable(function)}
        self._in_threads = frozenset(plain if threaded else ())
        if threaded and not plain:
            raise RegistrationError(f"transformer {self.name}: threaded=True is for plain functions; these are async")

    async def run(self, lifecycle: Lifecycle, name: str, value: Any) -> Any:
        """One hop.

        Raises:
            TransformFailed: the function raised, took too long, or returned something else than it was given.
        """
        function = self.functions.get(name)
        if function is None:
            return value
        began = time.perf_counter()
        try:
            result: Any = lifecycle.threads.run(function, value) if name in self._in_threads else function(value)
            if inspect.isawaitable(result):
                result = await bounded(lifecycle, result, timeout_s=self.timeout_s, name=f"{self.name}.{name}")
            elif (took := time.perf_counter() - began) > self.timeout_s:
                raise TimeoutError(
                    f"it held up the event loop for {took:.1f} s, and may take {self.timeout_s:g} s: make it async, or"
                    " declare the transformer with threaded=True"
                )
        except Exception as exc:
            raise TransformFailed(f"transformer {self.name}.{name}: {type(exc).__name__}: {exc}") from exc
        if result is None:
            return value
        if not isinstance(result, type(value)):
            raise TransformFailed(
                f"transformer {self.name}.{name} returned {type(result).__name__}; it must return nothing or a"
                f" {type(value).__name__}"
            )
        return result


class VersionTypes(msgspec.Struct, frozen=True, kw_only=True):
    """The validators of one version of a handler; None where it declares nothing."""

    request: CompiledValidator | None = None
    response: CompiledValidator | None = None


class Hop(msgspec.Struct, frozen=True):
    """One step between two versions."""

    older: str
    newer: str
    transformer: Transformer | None
    """None where nothing needs to be changed."""


class Chain:
    """The way between the version that a client uses and the one that runs. One for each request.

    Args:
        hops: in the order in which the request takes them.
        is_forward: whether the version that runs is the newer one.
        types: of the client's version.
    """

    __slots__ = ("_hops", "_is_forward", "_types", "resolved", "spent_s")

    def __init__(self, hops: Sequence[Hop], types: VersionTypes, *, is_forward: bool = True) -> None:
        self._hops = hops
        self._is_forward = is_forward
        self._types = types
        self.resolved = hops[0].older if is_forward else hops[0].newer
        """The client's version."""
        self.spent_s = 0.0
        """Seconds that transformers took."""

    @property
    def length(self) -> int:
        """How many transformers there are on the way."""
        return sum(hop.transformer is not None for hop in self._hops)

    async def inbound(
        self, lifecycle: Lifecycle, descriptor: RequestDescriptor, params: dict[str, str], body: bytes
    ) -> tuple[RequestDescriptor, dict[str, str], bytes]:
        """The request as the version that runs knows it.

        Raises:
            InvalidBody: it is not what the client's own version takes.
            TransformFailed: a transformer did not do its part.
        """
        began = time.perf_counter()
        try:
            value = self._read(body, descriptor)
            query: dict[str, list[str]] = {}
            for name, text in parse_qsl(descriptor.query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS):
                query.setdefault(name, []).append(text)
            request = VersionedRequest(value, dict(params), query, descriptor.headers)
            name = "forward_request" if self._is_forward else "backward_request"
            for hop in self._hops:
                if hop.transformer is not None:
                    request = await self._hop(lifecycle, hop, name, request)
            return self._changed(descriptor, request, body, value)
        except (UnicodeDecodeError, ValueError) as exc:
            raise InvalidRequest(f"the query cannot be read: {exc}") from exc
        finally:
            self.spent_s += time.perf_counter() - began

    def blamed_for(self, error: InvalidBody) -> GatiError:
        """What is to be raised where the version that runs refuses the body.

        The client has sent what its own version takes, as far as that says so: then a transformer has failed.
        """
        if self._types.request is None:
            return error
        failure = TransformFailed(f"what transformers made of the request is refused by the version that runs: {error}")
        failure.has_run = False
        return failure

    async def outbound(self, lifecycle: Lifecycle, status: int, body: bytes) -> bytes:
        """The JSON of an answer as the client's version knows it.

        Raises:
            TransformFailed: a transformer did not do its part, or what came out is not of the version's type.
        """
        began = time.perf_counter()
        try:
            response = VersionedResponse(status, msgspec.json.decode(body))
            name = "backward_response" if self._is_forward else "forward_response"
            for hop in reversed(self._hops):
                if hop.transformer is not None:
                    response = await self._hop(lifecycle, hop, name, response)
            try:
                data = _encode(response.body)
            except Exception as exc:
                raise TransformFailed(f"what {name} made of the answer is no JSON: {exc}") from exc
            validator = self._types.response
            if validator is not None and (errors := _errors(validator, data)):
                raise TransformFailed(f"the answer is not what the client's version promises: {_first(errors)}")
            return data
        finally:
            self.spent_s += time.perf_counter() - began

    async def _hop(self, lifecycle: Lifecycle, hop: Hop, name: str, value: Any) -> Any:
        if hop.transformer is None:
            return value
        ends = (hop.older, hop.newer) if name.startswith("forward") else (hop.newer, hop.older)
        counts = lifecycle.transforms.get(ends)
        if counts is None:
            counts = lifecycle.transforms[ends] = HopCounts()
        began = time.perf_counter()
        try:
            value = await hop.transformer.run(lifecycle, name, value)
        except BaseException:
            counts.failed += 1
            raise
        finally:
            counts.durations.add(time.perf_counter() - began)
        counts.done += 1
        return value

    def _read(self, body: bytes, descriptor: RequestDescriptor) -> Any:
        if not body:
            return None
        content_type = next((value for name, value in descriptor.headers if name == "content-type"), "")
        kind = content_type.partition(";")[0].strip().lower()
        if kind and kind != "application/json" and not kind.endswith("+json"):
            return body
        try:
            value = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            if self._types.request is None and not kind:
                return body
            raise InvalidBody(f"the body is not JSON: {exc}") from exc
        validator = self._types.request
        if validator is not None and not validator.accepts(value):
            errors = validator.errors(value)
            told = [
                {
                    "in": "body",
                    "path": error.where,
                    "expected": error.expected,
                    "actual": error.actual,
                    "message": error.message,
                }
                for error in errors
            ]
            raise InvalidBody(f"the body is not valid: {_first(errors)}", errors=told)
        return value

    @staticmethod
    def _changed(
        descriptor: RequestDescriptor, request: VersionedRequest, body: bytes, value: Any
    ) -> tuple[RequestDescriptor, dict[str, str], bytes]:
        params: Any = request.params  # whatever their annotations promise
        given: Any = request.query
        if not isinstance(params, dict) or not isinstance(given, dict):
            raise TransformFailed("a transformer left params or query that are no dictionaries")
        try:
            if isinstance(request.body, bytes):
                body = request.body
            elif request.body is not None or value is not None:
                body = _encode(request.body)
            query = urlencode(given, doseq=True)
        except Exception as exc:
            raise TransformFailed(f"what a transformer made of the request cannot be sent: {exc}") from exc
        return msgspec.structs.replace(descriptor, query=query, body=b"", body_ticket=""), params, body


def _errors(validator: CompiledValidator, data: bytes) -> list[FieldError]:
    value = msgspec.json.decode(data)
    return [] if validator.accepts(value) else validator.errors(value)


def _first(errors: Sequence[FieldError]) -> str:
    if not errors:
        return "it does not fit"
    told = f"{errors[0].where}: {errors[0].message}"
    return told if len(errors) == 1 else f"{len(errors)} errors; the first: {told}"
