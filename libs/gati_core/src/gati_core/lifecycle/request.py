"""The request as a handler sees it."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast
from urllib.parse import parse_qs

import msgspec

from gati_core.errors import InvalidBody, RequestError, UnsupportedMedia
from gati_core.wire import RequestDescriptor

B = TypeVar("B")
_UNREAD: Any = object()


class Request(Generic[B]):
    """Given to a handler as `req`. Annotate it, `Request[NewOrder]`, to have the body validated.

    With a type, `body` is an instance of it and the handler never starts on a body that does not
    fit (400). Without one, `body` follows the content type: JSON → value, form → dict, `text/*` →
    str, anything else → bytes, nothing → None.
    """

    __slots__ = ("_body", "_cookies", "_descriptor", "_headers", "_query", "params", "raw_body")

    def __init__(self, descriptor: RequestDescriptor, params: dict[str, str], raw_body: bytes) -> None:
        self._descriptor = descriptor
        self.params = params
        """Decoded path parameters by name."""
        self.raw_body = raw_body
        """The body as received."""
        self._body: Any = _UNREAD
        self._headers: dict[str, str | list[str]] | None = None
        self._query: dict[str, str | list[str]] | None = None
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
        return cast(B, self._body)

    @property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; empty when there is none."""
        for name, value in self._descriptor.headers:
            if name == "content-type":
                return value.partition(";")[0].strip().lower()
        return ""

    @property
    def headers(self) -> dict[str, str | list[str]]:
        """Headers by lower-case name; a repeated header is a list."""
        if self._headers is None:
            self._headers = _collect(self._descriptor.headers)
        return self._headers

    @property
    def query(self) -> dict[str, str | list[str]]:
        """Decoded query parameters; a repeated key is a list.

        Raises:
            RequestError: more than 1000 of them.
        """
        if self._query is None:
            try:
                parsed = parse_qs(self._descriptor.query, keep_blank_values=True, max_num_fields=1000)
            except ValueError as exc:
                raise RequestError("the query has more than 1000 parameters") from exc
            self._query = {key: values[0] if len(values) == 1 else values for key, values in parsed.items()}
        return self._query

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


class BodyReader:
    """Turns bytes into the handler's body type; made once per handler."""

    def __init__(self, body_type: Any) -> None:
        self._type = body_type
        self._decode = msgspec.json.Decoder(body_type).decode

    def fill(self, request: Request[Any]) -> None:
        """Decode and validate `raw_body` into `request.body`.

        Raises:
            UnsupportedMedia: the content type says that this is no JSON.
            InvalidBody: missing, not JSON, or not of the type; says which field and why.
        """
        content_type = request.content_type
        if content_type and content_type != "application/json" and not content_type.endswith("+json"):
            raise UnsupportedMedia(f"the body must be application/json, not {content_type}")
        if not request.raw_body:
            raise InvalidBody("a JSON body is required")
        try:
            request._body = self._decode(request.raw_body)
        except msgspec.ValidationError as exc:
            raise InvalidBody(str(exc)) from exc
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise InvalidBody(f"the body is not JSON: {exc}") from exc


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
