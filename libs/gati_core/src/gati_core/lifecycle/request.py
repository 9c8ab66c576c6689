"""The request as a handler sees it."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Generic, cast
from urllib.parse import parse_qs

import msgspec

from gati_core.errors import InvalidBody, RequestError
from gati_core.wire import HeaderPairs, RequestDescriptor

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Texts = dict[str, str | list[str]]
    B = TypeVar("B", default=Any)
    Q = TypeVar("Q", default=Texts)
    P = TypeVar("P", default=dict[str, str])
    H = TypeVar("H", default=Texts)

    class _Typed(Generic[B, Q, P, H]):
        __slots__ = ()
else:
    B = Q = P = H = Any

    class _Typed:
        __slots__ = ()
        # Any number of types, the later ones left out; a Generic would ask for all four before Python 3.13.
        __class_getitem__ = classmethod(types.GenericAlias)


_UNREAD: Any = object()


class Request(_Typed[B, Q, P, H]):
    """Given to a handler as `req`. Annotate it, `Request[NewOrder]`, to have the body validated.

    With a type, `body` is an instance of it and the handler never starts on a body that does not
    fit (400). Without one, `body` follows the content type: JSON → value, form → dict, `text/*` →
    str, anything else → bytes, nothing → None.

    `Request[Body, Query, Params, Headers]` types all parts, each from the left up to where it is wanted;
    `None` for a body that is not read, `Any` for a part that stays as it is. Texts become what the types
    ask for: numbers, booleans, dates, lists of repeated keys.
    """

    __slots__ = ("_body", "_cookies", "_descriptor", "_headers", "_query", "params", "raw_body")

    def __init__(self, descriptor: RequestDescriptor, params: dict[str, str], raw_body: bytes) -> None:
        self._descriptor = descriptor
        self.params: P = cast("P", params)
        """Decoded path parameters by name, or the declared type."""
        self.raw_body = raw_body
        """The body as received."""
        self._body: Any = _UNREAD
        self._headers: Any = None
        self._query: Any = None
        self._cookies: dict[str, str] | None = None

    @property
    def received_ms(self) -> int:
        """Unix milliseconds at which the ingress accepted it."""
        return self._descriptor.received_ms

    @property
    def reply_to(self) -> str:
        """The subject that its reply goes to."""
        return self._descriptor.reply_to

    @property
    def method(self) -> str:
        """`GET`, `POST`, …"""
        return self._descriptor.method

    @property
    def path(self) -> str:
        """The path as received, percent-encoded, without the query."""
        return self._descriptor.path

    @property
    def body(self) -> B:
        """The body, decoded. See the class.

        Raises:
            InvalidBody: it is JSON that does not parse (untyped bodies only; typed ones are checked
                before the handler starts).
        """
        if self._body is _UNREAD:
            self._body = read_untyped_body(self.raw_body, self.content_type)
        return cast("B", self._body)

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty when there is none."""
        for name, value in self._descriptor.headers:
            if name == "content-type":
                return value.partition(";")[0].strip().lower()
        return ""

    @property
    def header_pairs(self) -> HeaderPairs:
        """Lower-case names and values, in the order in which they came."""
        return self._descriptor.headers

    @property
    def headers(self) -> H:
        """Headers by lower-case name, where a repeated header is a list; or the declared type."""
        if self._headers is None:
            self._headers = _collect(self._descriptor.headers)
        return cast("H", self._headers)

    @property
    def raw_query(self) -> str:
        """The query as received, without the question mark."""
        return self._descriptor.query

    @property
    def query(self) -> Q:
        """Decoded query parameters, where a repeated key is a list; or the declared type.

        Raises:
            RequestError: more than 1000 of them.
        """
        if self._query is None:
            try:
                parsed = parse_qs(self._descriptor.query, keep_blank_values=True, max_num_fields=1000)
            except ValueError as exc:
                raise RequestError("the query has more than 1000 parameters") from exc
            self._query = {key: values[0] if len(values) == 1 else values for key, values in parsed.items()}
        return cast("Q", self._query)

    @property
    def cookies(self) -> dict[str, str]:
        """Cookies by name; the first wins where a name repeats."""
        if self._cookies is None:
            cookies: dict[str, str] = {}
            for name, value in self._descriptor.headers:
                if name == "cookie":
                    for part in value.split(";"):
                        key, found, text = part.strip().partition("=")
                        if found:
                            cookies.setdefault(key, text.strip('"'))
            self._cookies = cookies
        return self._cookies


def read_untyped_body(raw: bytes, content_type: str) -> Any:
    """A body by its content type alone.

    Raises:
        InvalidBody: it claims to be JSON, a form or text, and is not.
    """
    if not raw:
        return None
    try:
        if content_type == "application/json" or content_type.endswith("+json"):
            return msgspec.json.decode(raw)
        if content_type == "application/x-www-form-urlencoded":
            parsed = parse_qs(raw.decode(), keep_blank_values=True, max_num_fields=1000)
            return {key: values[0] if len(values) == 1 else values for key, values in parsed.items()}
        if content_type.startswith("text/"):
            return raw.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise InvalidBody(f"the body is not {content_type}: {exc}") from exc
    return raw


def _collect(pairs: list[tuple[str, str]]) -> dict[str, str | list[str]]:
    collected: dict[str, str | list[str]] = {}
    for name, value in pairs:
        known = collected.get(name)
        if known is None:
            collected[name] = value
        elif isinstance(known, list):
            known.append(value)
        else:
            collected[name] = [known, value]
    return collected
