"""What a handler's declared types mean at run time: decoding what fits, and saying what does not.

msgspec's decoder is the fast path. Where it refuses, or where a type asks for what it does not check, the
validator that is generated from the type looks, and lists every error with its place.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from gati_core.errors import (
    InvalidBody,
    InvalidRequest,
    InvalidResponse,
    RequestError,
    UnsupportedMedia,
    UnsupportedType,
)
from gati_core.gtype import (
    Coercion,
    CompiledValidator,
    Document,
    FieldError,
    ObjectOf,
    compile_validator,
    extract,
    resolve,
)
from gati_core.lifecycle.request import Request
from gati_core.lifecycle.response import Response

_MAX_QUERY_FIELDS = 1000
_SAID_IN_A_LOG = 10
_PLACE = re.compile(r"^(?P<reason>.*?)(?: - at (?:`key` in )?`\$(?P<place>[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")


class DeclaredType:
    """One type that a handler declares: its document, and how values of it are read; made once per handler.

    Args:
        where: `body`, `query`, `params`, `headers` or `response`, for messages.
        is_strict: fields that the type does not declare are errors.
    Raises:
        UnsupportedType: the type cannot be expressed; names the field.
    """

    def __init__(self, annotation: Any, *, where: str, is_strict: bool = False) -> None:
        extracted = extract(annotation, where=where, is_strict=is_strict)
        self.annotation = annotation
        self.where = where
        self.document: Document = extracted.document
        self.warnings = extracted.warnings
        self._native_up_to = extracted.native_up_to
        self._decode = msgspec.json.Decoder(annotation).decode
        self._validator: CompiledValidator | None = None
        if self._native_up_to < sys.maxsize:
            self._validator = compile_validator(self.document)  # now, so that what it lacks is told now

    @property
    def validator(self) -> CompiledValidator:
        """The generated validator; made when it is needed first."""
        if self._validator is None:
            self._validator = compile_validator(self.document)
        return self._validator

    @property
    def is_optional(self) -> bool:
        """Whether null is a value of it."""
        return self.document.root.nullable

    def from_json(self, data: bytes) -> Any:
        """An instance of the type.

        Raises:
            Mismatch: it is JSON and does not fit.
            msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is not JSON, or nested without end.
        """
        if len(data) <= self._native_up_to:
            try:
                return self._decode(data)
            except msgspec.ValidationError as exc:
                raise Mismatch(self._errors(msgspec.json.decode(data), exc)) from exc
        return self.from_value(msgspec.json.decode(data))

    def from_value(self, value: Any) -> Any:
        """An instance of the type, from what JSON decodes to.

        Raises:
            Mismatch: it does not fit.
        """
        if self._native_up_to < sys.maxsize and not self.validator.accepts(value):
            raise Mismatch(self.validator.errors(value))
        try:
            return msgspec.convert(value, self.annotation, str_keys=True)
        except msgspec.ValidationError as exc:
            raise Mismatch(self._errors(value, exc)) from exc

    def _errors(self, value: Any, refusal: msgspec.ValidationError) -> list[FieldError]:
        """All that is wrong; what a type's own `__post_init__` refuses only its message says."""
        return self.validator.errors(value) or [_from_message(str(refusal))]


class Mismatch(Exception):
    """A value is not of the declared type; `errors` says where and why."""

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__(summary(errors))
        self.errors = errors


def summary(errors: Sequence[FieldError], *, at_most: int = 1) -> str:
    """One line for people: how many errors, and the first ones."""
    told = "; ".join(f"{error.where}: {error.message}" for error in errors[:at_most])
    if len(errors) <= at_most:
        return told
    return f"{len(errors)} errors; {'the first: ' if at_most == 1 else ''}{told}"


def _from_message(text: str) -> FieldError:
    """What msgspec says, `… - at `$.lines[0].sku``, as an error of ours."""
    found = _PLACE.match(text)
    reason, place = (found["reason"], found["place"] or "") if found is not None else (text, "")
    path = tuple(
        int(index) if index.isdigit() else (name or index)
        for name, index in (m.groups("") for m in _STEP.finditer(place))
    )
    return FieldError(path, "a value that the type's own check accepts", "a value that it refuses", reason)


# -- requests ------------------------------------------------------------------------------------------


class RequestReader:
    """Validates a request and turns its parts into the handler's types; made once per handler.

    Each argument is a declared type, or None where the part is not typed.
    """

    def __init__(
        self,
        *,
        body: DeclaredType | None = None,
        query: DeclaredType | None = None,
        params: DeclaredType | None = None,
        headers: DeclaredType | None = None,
    ) -> None:
        self._body = body
        self._query = _Fields(query) if query is not None else None
        self._params = _Fields(params) if params is not None else None
        self._headers = _Fields(headers, is_header=True) if headers is not None else None
        self._has_fields = any(each is not None for each in (query, params, headers))

    def fill(self, request: Request[Any, Any, Any, Any]) -> None:
        """Read everything that is typed into `request`.

        Raises:
            UnsupportedMedia: the content type says that the body is no JSON.
            InvalidBody: the body is missing, not JSON, or not of its type.
            InvalidRequest: path, query or headers are not of their types; with the body's errors, if any.
        """
        wrong: list[dict[str, Any]] = []
        if self._has_fields:
            self._fill_fields(request, wrong)
        if self._body is not None:
            try:
                request._body = self._read_body(self._body, request)
            except Mismatch as exc:
                told = [_told("body", error) for error in exc.errors]
                if not wrong:
                    raise InvalidBody(f"the body is not valid: {exc}", errors=told) from exc
                wrong += told
        if wrong:
            first = f"{wrong[0]['in']} {wrong[0]['path']}: {wrong[0]['message']}"
            text = first if len(wrong) == 1 else f"{len(wrong)} errors; the first: {first}"
            raise InvalidRequest(f"the request is not valid: {text}", errors=wrong)

    def _fill_fields(self, request: Request[Any, Any, Any, Any], wrong: list[dict[str, Any]]) -> None:
        if self._params is not None:
            given: Mapping[str, Sequence[str]] = {name: (text,) for name, text in request.params.items()}
            request.params = self._params.read(given, "path", wrong)
        if self._query is not None:
            request._query = self._query.read(query_fields(request.raw_query), "query", wrong)
        if self._headers is not None:
            found: dict[str, list[str]] = {}
            for name, text in request.header_pairs:
                found.setdefault(name, []).append(text)
            request._headers = self._headers.read(found, "header", wrong)

    @staticmethod
    def _read_body(declared: DeclaredType, request: Request[Any, Any, Any, Any]) -> Any:
        content_type = request.content_type
        if content_type and content_type != "application/json" and not content_type.endswith("+json"):
            raise UnsupportedMedia(f"the body must be application/json, not {content_type}")
        if not request.raw_body:
            if declared.is_optional:
                return None
            raise InvalidBody("a JSON body is required")
        try:
            return declared.from_json(request.raw_body)
        except UnicodeDecodeError as exc:
            raise InvalidBody(f"the body is not UTF-8: {_bad_bytes(request.raw_body)}") from exc
        except RecursionError as exc:
            raise InvalidBody("the body is nested too deeply") from exc
        except msgspec.ValidationError as exc:  # a number of thousands of digits
            raise InvalidBody(f"the body cannot be read: {exc}") from exc
        except msgspec.DecodeError as exc:
            raise InvalidBody(f"the body is not JSON: {exc}") from exc


class _Fields:
    """A type that is read from named texts."""

    def __init__(self, declared: DeclaredType, *, is_header: bool = False) -> None:
        root = resolve(declared.document.root, declared.document.definitions)
        if not isinstance(root, ObjectOf):
            raise UnsupportedType(f"{declared.where} are named fields: declare a Struct, a dataclass or a TypedDict")
        self._declared = declared
        self._coercion = Coercion(declared.document)
        self._names = {header_name(name): name for name in self._coercion.names} if is_header else None

    def read(self, given: Mapping[str, Sequence[str]], area: str, wrong: list[dict[str, Any]]) -> Any:
        if self._names is not None:  # of the headers, only those that are declared
            given = {self._names[name]: texts for name, texts in given.items() if name in self._names}
        try:
            return self._declared.from_value(self._coercion.values(given))
        except Mismatch as exc:
            wrong += [_told(area, error) for error in exc.errors]
            return None


def check_parameters(params: DeclaredType | None, names: Sequence[str]) -> None:
    """Raises:
    UnsupportedType: the type of the path parameters requires one that the route does not have.
    """
    root = resolve(params.document.root, params.document.definitions) if params is not None else None
    if isinstance(root, ObjectOf):
        missing = [name for name in root.required if name not in names]
        if missing:
            known = ", ".join(f"{{{name}}}" for name in names) or "none"
            raise UnsupportedType(f"params.{missing[0]}: the route has no such parameter; it has {known}")


def header_name(field: str) -> str:
    """The header that a field is read from: `x_request_id` from `x-request-id`."""
    return field.replace("_", "-").lower()


def query_fields(raw: str) -> dict[str, list[str]]:
    """Every occurrence of every key of a query string, in order.

    Raises:
        RequestError: more than 1000 of them.
    """
    fields: dict[str, list[str]] = {}
    try:
        for key, text in parse_qsl(raw, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS):
            fields.setdefault(key, []).append(text)
    except ValueError as exc:
        raise RequestError(f"the query has more than {_MAX_QUERY_FIELDS} parameters") from exc
    return fields


def _told(area: str, error: FieldError) -> dict[str, Any]:
    return {
        "in": area,
        "path": error.where,
        "expected": error.expected,
        "actual": error.actual,
        "message": error.message,
    }


# -- responses -----------------------------------------------------------------------------------------


class ResponseCheck:
    """Compares what a handler answered with the type it declared; made once per handler.

    Only successful answers (2xx) are compared, and by their bytes: what leaves is what was checked.
    """

    def __init__(self, declared: DeclaredType) -> None:
        self._declared = declared
        self._allows_text = declared.annotation is str
        self._allows_bytes = declared.annotation in (bytes, bytearray)

    def check(self, response: Response[Any]) -> None:
        """Raises:
        InvalidResponse: the body does not fit; says where and why. For the log, not for the client.
        """
        status, kind, body = response.checkable()
        if not 200 <= status < 300 or kind in ("none", "stream"):
            return
        if (kind == "text" and self._allows_text) or (kind == "bytes" and self._allows_bytes):
            return
        if kind != "json":
            raise InvalidResponse(f"the handler declares {self._name} and answered with {kind}")
        try:
            self._declared.from_json(body)
        except Mismatch as exc:
            told = summary(exc.errors, at_most=_SAID_IN_A_LOG)
            raise InvalidResponse(f"the answer is not the declared {self._name}: {told}") from exc
        except Exception as exc:  # also what the type's own checks raise, and nesting without end
            raise InvalidResponse(f"the answer is not the declared {self._name}: {exc}") from exc

    @property
    def _name(self) -> str:
        return getattr(self._declared.annotation, "__name__", None) or str(self._declared.annotation)


def _bad_bytes(body: bytes) -> str:
    # The decoder counts from the start of the text that it was reading.
    try:
        body.decode()
    except UnicodeDecodeError as exc:
        return f"byte {exc.start} cannot be read"
    return "some text cannot be read"
