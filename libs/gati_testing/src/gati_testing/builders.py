"""Requests and contexts for tests, with predictable defaults."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from gati_core.contexts import GlobalContext, Instance, LocalContext, Registry, Topics
from gati_core.lifecycle import Request, Response
from gati_core.wire import PROTOCOL, HeaderPairs, Principal, RequestDescriptor
from gati_ingress.head import read_head
from gati_testing._memory_bucket import MemoryBucket
from gati_testing._memory_topics import MemoryTopics

FIRST_MS = 1_700_000_000_000
"""The instant at which built requests are received: predictable, and no test depends on today."""
CLIENT_IP = "127.0.0.1"
HOST = "gati.test"
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_numbers = itertools.count(1)


class BuiltRequest(msgspec.Struct, kw_only=True):
    """An HTTP request as a client would send it."""

    method: str = "GET"
    path: str = "/"
    """Percent-encoded, without the query."""
    query: str = ""
    headers: HeaderPairs = []
    """Lower-case names."""
    body: bytes = b""
    params: dict[str, str] = {}
    """Path parameters, for a handler that is run without routing."""
    principal: Principal | None = None

    def descriptor(self, *, request_id: str, now_ms: int, timeout_s: float, reply_to: str) -> RequestDescriptor:
        """The request as an ingress would publish it, with the headers that every client adds."""
        head = read_head([(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.as_sent()])
        return RequestDescriptor(
            PROTOCOL,
            request_id,
            reply_to,
            now_ms + int(timeout_s * 1000),
            now_ms,
            self.method,
            self.path,
            head.priority,
            head.version,
            self.principal,
            self.query,
            head.pairs,
            self.body,
            "",
            CLIENT_IP,
            head.traceparent,
            head.flags,
            head.idempotency_key,
        )

    def as_sent(self) -> HeaderPairs:
        """The headers, with those that every client adds."""
        names = {name for name, _ in self.headers}
        added = [] if "host" in names else [("host", HOST)]
        if (self.body or self.method in _WITH_BODY) and "content-length" not in names:
            added.append(("content-length", str(len(self.body))))
        return [*added, *self.headers]


class RequestBuilder:
    """Builds a request step by step; every step returns the builder.

    >>> RequestBuilder("POST", "/orders").json({"sku": "ada"}).header("x-one", "1").build().method
    'POST'
    """

    def __init__(self, method: str = "GET", path: str = "/") -> None:
        self._request = BuiltRequest(headers=[])
        self.method(method).path(path)

    def method(self, method: str) -> RequestBuilder:
        """`GET`, `POST`, …"""
        self._request.method = method.upper()
        return self

    def path(self, path: str) -> RequestBuilder:
        """The path; what follows a question mark is the query."""
        self._request.path, _, query = path.partition("?")
        self._request.path = quote(self._request.path, safe="/%:@!$&'()*+,;=~-._")
        self._request.query = query or self._request.query
        return self

    def query(self, query: str | Mapping[str, Any] | Iterable[tuple[str, Any]]) -> RequestBuilder:
        """Query parameters, of which a list repeats its key; or the query as it is sent."""
        if not isinstance(query, str):
            query = urlencode(list(query.items()) if isinstance(query, Mapping) else list(query), doseq=True)
        self._request.query = query
        return self

    def header(self, name: str, value: str) -> RequestBuilder:
        """One more header.

        Raises:
            ValueError: no client could send it.
        """
        sent = value.strip(" \t")  # as the parser of a server does
        if not name or _BAD_VALUE.search(value) or any(ord(each) > 255 for each in name + value):
            raise ValueError(f"no client can send a header {name!r} of {value!r}")
        self._request.headers.append((name.lower(), sent))
        return self

    def json(self, value: Any) -> RequestBuilder:
        """A JSON body with its content type."""
        return self.body(msgspec.json.encode(value), "application/json")

    def body(self, body: bytes | str, content_type: str = "") -> RequestBuilder:
        """The raw body."""
        self._request.body = body.encode() if isinstance(body, str) else body
        return self.header("content-type", content_type) if content_type else self

    def auth(self, subject: str, *, roles: Iterable[str] = (), scheme: str = "jwt") -> RequestBuilder:
        """Who calls, as the ingress would have authenticated it."""
        self._request.principal = Principal(subject, list(roles), scheme)
        return self

    def params(self, **params: object) -> RequestBuilder:
        """Path parameters, for a handler that is run without routing; text, as those of a path are."""
        self._request.params = {name: str(value) for name, value in params.items()}
        return self

    def flags(self, *flags: str) -> RequestBuilder:
        """`x-gati-flags`."""
        return self.header("x-gati-flags", ",".join(flags)) if flags else self

    def build(self) -> BuiltRequest:
        """The request."""
        return msgspec.structs.replace(self._request, headers=list(self._request.headers))


def as_request(request: BuiltRequest | RequestBuilder | Mapping[str, Any] | None) -> BuiltRequest:
    """A request from any of the forms in which tests write one.

    Args:
        request: a mapping has the keys `method`, `path`, `query` (text or a mapping), `headers` (a
            mapping), `body` (bytes and text as they are, anything else as JSON), `params`, `flags`, `user`.
    Raises:
        ValueError: a key that is none of these.
    """
    if isinstance(request, BuiltRequest):
        return request
    if isinstance(request, RequestBuilder):
        return request.build()
    given = dict(request or {})
    builder = RequestBuilder(given.pop("method", "GET"), given.pop("path", "/"))
    query = given.pop("query", None)
    if query:
        builder.query(query)
    headers = given.pop("headers", {})
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        builder.header(name, value)
    body = given.pop("body", None)
    if isinstance(body, (bytes, str)):
        builder.body(body)
    elif body is not None:
        builder.json(body)
    builder.params(**given.pop("params", {}))
    builder.flags(*given.pop("flags", ()))
    if user := given.pop("user", None):
        builder.auth(user)
    if given:
        raise ValueError(f"a request has no {sorted(given)}")
    return builder.build()


def next_request_id() -> str:
    """`request-1`, `request-2`, …: distinct within the process, and readable in a failed test."""
    return f"request-{next(_numbers)}"


class FakeLocalContextBuilder:
    """Builds a real `LocalContext` for tests of what takes one.

    Built inside of an event loop it can publish and subscribe, to topics in memory.
    """

    def __init__(self) -> None:
        self._request = RequestBuilder()
        self._request_id = ""
        self._state: dict[str, Any] = {}
        self._trace_id = ""
        self._client: Principal | None = None

    def with_request_id(self, request_id: str) -> FakeLocalContextBuilder:
        """The request's id; `request-<n>` by default."""
        self._request_id = request_id
        return self

    def with_trace_id(self, trace_id: str) -> FakeLocalContextBuilder:
        """A trace id of 32 hexadecimal digits."""
        self._trace_id = trace_id
        return self

    def with_client_id(self, client_id: str) -> FakeLocalContextBuilder:
        """Who calls."""
        self._client = Principal(client_id, [], "test")
        return self

    def with_state(self, state: Mapping[str, Any]) -> FakeLocalContextBuilder:
        """What `lctx.get` finds."""
        self._state = dict(state)
        return self

    def with_metadata(
        self, *, method: str = "GET", path: str = "/", flags: Iterable[str] = ()
    ) -> FakeLocalContextBuilder:
        """What `lctx.meta` says."""
        self._request = RequestBuilder(method, path).flags(*flags)
        return self

    def build(self) -> LocalContext:
        """The context."""
        descriptor = self._request.build().descriptor(
            request_id=self._request_id or next_request_id(), now_ms=FIRST_MS, timeout_s=10.0, reply_to="memory.reply.r"
        )
        if self._trace_id:
            descriptor.traceparent = f"00-{self._trace_id}-{'0' * 15}1-01"
        descriptor.principal = self._client or descriptor.principal
        topics = _topics("test")
        lctx = LocalContext(
            descriptor,
            started_ms=FIRST_MS,
            version="test",
            instance_id="test",
            clock=lambda: FIRST_MS / 1000,
            topics=topics.local if topics is not None else None,
        )
        lctx.request = Request(descriptor, {}, descriptor.body)
        lctx.response = Response()
        for key, value in self._state.items():
            lctx.set(key, value)
        return lctx


class FakeGlobalContextBuilder:
    """Builds a real `GlobalContext` with fake modules and buckets in memory.

    Built inside of an event loop it can publish and subscribe, to topics in memory.
    """

    def __init__(self) -> None:
        self._modules: dict[str, Any] = {}
        self._services: dict[str, Any] = {}
        self._config: Mapping[str, Any] = {}
        self._buckets: list[str] = []
        self._instance_id = "test"
        self._region = ""

    def with_module(self, name: str, module: Any) -> FakeGlobalContextBuilder:
        """`gctx.modules[name]`."""
        self._modules[name] = module
        return self

    def with_service(self, name: str, service: Any) -> FakeGlobalContextBuilder:
        """`gctx.services[name]`."""
        self._services[name] = service
        return self

    def with_config(self, config: Mapping[str, Any]) -> FakeGlobalContextBuilder:
        """`gctx.config`."""
        self._config = config
        return self

    def with_bucket(self, *names: str) -> FakeGlobalContextBuilder:
        """`gctx.buckets[name]`, empty."""
        self._buckets.extend(names)
        return self

    def with_instance_id(self, instance_id: str) -> FakeGlobalContextBuilder:
        """`gctx.instance.id`."""
        self._instance_id = instance_id
        return self

    def with_region(self, region: str) -> FakeGlobalContextBuilder:
        """`gctx.instance.region`."""
        self._region = region
        return self

    def build(self) -> GlobalContext:
        """The context."""
        return GlobalContext(
            Instance(self._instance_id, "test", "test", "localhost", FIRST_MS, self._region),
            buckets={name: MemoryBucket(name) for name in self._buckets},
            config=self._config,
            modules=Registry("module", self._modules),
            services=Registry("service", self._services),
            topics=_topics(self._instance_id),
        )


def create_fake_local_context(**state: Any) -> LocalContext:
    """A local context that holds this state."""
    return FakeLocalContextBuilder().with_state(state).build()


def create_fake_global_context(**modules: Any) -> GlobalContext:
    """A global context that has these modules."""
    builder = FakeGlobalContextBuilder()
    for name, module in modules.items():
        builder.with_module(name, module)
    return builder.build()


def create_test_request(request: Mapping[str, Any] | None = None, **fields: Any) -> Request[Any]:
    """A `Request` for calling a function directly; see `as_request` for the keys."""
    built = as_request({**(request or {}), **fields})
    descriptor = built.descriptor(request_id=next_request_id(), now_ms=FIRST_MS, timeout_s=10.0, reply_to="memory.r")
    return Request(descriptor, built.params, built.body)


def create_test_response() -> Response[Any]:
    """An empty `Response`; read it with `parts()`."""
    return Response()


def _topics(publisher: str) -> Topics | None:
    return Topics(MemoryTopics(), publisher=publisher) if asyncio._get_running_loop() is not None else None
