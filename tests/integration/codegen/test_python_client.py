"""The generated Python client at work: what it sends to an HTTP server, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gati_core.codegen import Api, Operation, python_client
from gati_core.gtype import extract
from gati_core.manifests import HandlerManifest

PACKAGE = "gati_things_client"
PROBLEM = {
    "type": "about:blank",
    "title": "The request is not valid",
    "status": 400,
    "detail": "2 errors",
    "code": "request.invalid",
    "request_id": "r-1",
    "errors": [{"in": "query", "path": "limit", "expected": "an integer", "actual": "text", "message": "no"}],
}


class Thing(msgspec.Struct):
    name: str
    size: float = 1.0


class Search(msgspec.Struct):
    text: str | None = None
    kinds: list[int] = []
    exact: bool | None = None
    near: float | None = None
    from_: str = msgspec.field(default="", name="from")


class Wanted(msgspec.Struct):
    x_tenant: str = ""
    x_tag: list[str] = []


def operation(id: str, method: Any, path: str, **types: Any) -> Operation:
    manifest = HandlerManifest(id=id, methods=[method], path=path, mode="at_most_once")
    return Operation(manifest=manifest, **{area: extract(each, where=area).document for area, each in types.items()})


THINGS = Api(
    name="things",
    operations=[
        operation("find", "GET", "/things", query=Search, headers=Wanted),
        operation("show", "GET", "/things/{id}/parts/{part}", response=Thing | None),
        operation("make", "POST", "/things", request=Thing | None, response=Thing),
        operation("drop", "DELETE", "/things/{id}", response=None),
        operation("odd", "POST", "/ü/a b/%61"),
    ],
)


class Sent(NamedTuple):
    """A request as the server saw it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each.lower() == name]


class Server(ThreadingHTTPServer):
    """Keeps what it gets, and answers what it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.sent: list[Sent] = []
        self.answer: tuple[int, str, bytes] = (200, "application/json", b"{}")
        self.may_answer = threading.Event()
        self.may_answer.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that have stopped waiting are part of the tests."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for each answer: two would wait for each other's acknowledgement
    server: Server

    def _take(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.sent.append(Sent(self.command, self.path, self.headers.items(), body))
        self.server.may_answer.wait(30)
        status, content_type, answer = self.server.answer
        self.send_response(status)
        if content_type:
            self.send_header("content-type", content_type)
        if status != 204:
            self.send_header("content-length", str(len(answer)))
        self.end_headers()
        if status != 204:
            self.wfile.write(answer)

    do_GET = do_POST = do_DELETE = _take

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.may_answer.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    running.sent.clear()
    running.answer = (200, "application/json", b"{}")
    yield running
    running.may_answer.set()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The generated package, imported."""
    directory: Path = tmp_path_factory.mktemp("generated")
    (directory / PACKAGE).mkdir()
    for name, text in python_client(THINGS).items():
        (directory / PACKAGE / name).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(directory))
    try:
        yield importlib.import_module(PACKAGE)
    finally:
        sys.path.remove(str(directory))
        for name in [each for each in sys.modules if each.split(".")[0] == PACKAGE]:
            del sys.modules[name]


Call = Callable[..., Any]
"""Makes a client with `options`, and calls one of its methods."""


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest, package: Any, server: Server) -> Call:
    def in_sync(method: str, *arguments: Any, options: dict[str, Any] | None = None, **named: Any) -> Any:
        with package.ThingsClient(server.url, **(options or {})) as client:
            return getattr(client, method)(*arguments, **named)

    async def awaited(method: str, *arguments: Any, options: dict[str, Any] | None = None, **named: Any) -> Any:
        async with package.AsyncThingsClient(server.url, **(options or {})) as client:
            return await getattr(client, method)(*arguments, **named)

    if request.param == "sync":
        return in_sync
    return lambda *arguments, **named: asyncio.run(awaited(*arguments, **named))


# -- what is sent --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a/b", "a b", "ü", "100%", "%2F", "?x=1#y", "a;b,c+d", "..x", "{part}", "\n"])
def test_a_path_parameter_is_one_segment_whatever_it_holds(call: Call, server: Server, text: str) -> None:
    call("get_things_parts", text, 7)

    (sent,) = server.sent
    assert [unquote(part) for part in sent.target.split("/")] == ["", "things", text, "parts", "7"]


@pytest.mark.parametrize("text", ["", ".", ".."])
def test_a_path_parameter_that_would_lead_elsewhere_is_refused(call: Call, server: Server, text: str) -> None:
    with pytest.raises(ValueError, match="the URL would lead elsewhere"):
        call("delete_things", text)

    assert server.sent == []


def test_what_is_no_parameter_of_a_path_arrives_as_the_route_says(call: Call, server: Server) -> None:
    call("create_nabn61")

    assert [unquote(part) for part in server.sent[0].target.split("/")] == ["", "ü", "a b", "%61"]


def test_the_query_repeats_lists_writes_booleans_as_json_and_leaves_none_out(call: Call, server: Server) -> None:
    call("get_things", text="a&b ü", kinds=[1, 2], exact=True, near=0.5, from_="x")
    call("get_things", text=None, kinds=[], exact=False)
    call("get_things")

    first, second, third = (each.target.partition("?") for each in server.sent)
    assert parse_qsl(first[2]) == [
        ("text", "a&b ü"),
        ("kinds", "1"),
        ("kinds", "2"),
        ("exact", "true"),
        ("near", "0.5"),
        ("from", "x"),
    ]
    assert second == ("/things", "?", "exact=false")
    assert third == ("/things", "", "")


def test_headers_go_by_their_own_names_and_those_of_a_call_win(call: Call, server: Server) -> None:
    options = {"token": "t-1", "version": "1.2", "headers": {"X-Tenant": "all", "X-Other": "o"}}

    call("get_things", options=options, x_tenant="acme", x_tag=["a", "b"])
    call("get_things", options=options)

    first, second = server.sent
    assert first.all("x-tenant") == ["acme"]
    assert first.all("x-tag") == ["a", "b"]
    assert (second.all("x-tenant"), second.all("x-tag")) == (["all"], [])
    for sent in server.sent:
        assert (sent.all("authorization"), sent.all("x-gati-version")) == (["Bearer t-1"], ["1.2"])
        assert (sent.all("x-other"), sent.all("content-type"), sent.body) == (["o"], [], b"")


def test_a_body_is_json(call: Call, server: Server) -> None:
    options = {"headers": {"Content-Type": "text/plain"}}

    call("create_things", {"name": "ü", "size": 2}, options=options)
    call("create_things")
    call("create_nabn61", [1, None])
    call("create_nabn61", None)

    assert [json.loads(each.body) for each in server.sent] == [{"name": "ü", "size": 2}, None, [1, None], None]
    assert [each.all("content-type") for each in server.sent] == [["application/json"]] * 4


def test_what_json_cannot_say_is_not_sent(call: Call, server: Server) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        call("create_things", {"name": "x", "size": float("nan")})

    assert server.sent == []


def test_whatever_is_given_arrives_as_it_is(package: Any, running: Server) -> None:
    texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
    segments = texts.filter(lambda text: text not in (".", ".."))

    with package.ThingsClient(running.url) as client:

        @settings(max_examples=150, deadline=None)
        @given(segment=segments, text=texts, kinds=st.lists(st.integers()))
        def send(segment: str, text: str, kinds: list[int]) -> None:
            running.sent.clear()
            client.get_things_parts(segment, text if text not in (".", "..") else "x")
            client.get_things(text=text, kinds=kinds)

            shown, found = running.sent
            assert unquote(shown.target.split("/")[2]) == segment
            query = parse_qsl(found.target.partition("?")[2], keep_blank_values=True)
            assert query == [("text", text), *(("kinds", str(each)) for each in kinds)]

        running.answer = (200, "application/json", b"{}")
        send()


# -- what comes back -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ((200, "application/json", b'{"name": "x"}'), {"name": "x"}),
        ((201, "application/json; charset=utf-8", '"ü"'.encode()), "ü"),
        ((200, "application/json", b"null"), None),
        ((204, "", b""), None),
        ((200, "application/json", b""), None),
        ((200, "text/plain; charset=utf-8", "ü".encode()), "ü"),
    ],
)
def test_an_answer_is_what_it_says(call: Call, server: Server, answer: tuple[int, str, bytes], value: Any) -> None:
    server.answer = answer

    assert call("get_things_parts", "a", "b") == value


def test_a_refusal_says_what_the_problem_document_says(call: Call, package: Any, server: Server) -> None:
    server.answer = (400, "application/problem+json", json.dumps(PROBLEM).encode())

    with pytest.raises(package.GatiError, match=r"^400 request\.invalid: 2 errors$") as caught:
        call("get_things", text="x")

    error = caught.value
    assert (error.status, error.code, error.detail, error.request_id) == (400, "request.invalid", "2 errors", "r-1")
    assert (error.errors, error.problem) == (PROBLEM["errors"], PROBLEM)


@pytest.mark.parametrize(
    "answer",
    [
        (502, "text/html", b"<h1>Bad gateway</h1>"),
        (503, "application/json", b"{"),
        (500, "application/json", b"[1]"),
        (500, "application/problem+json", b'{"errors": null}'),
        (302, "", b""),
        (404, "", b""),
    ],
)
def test_whoever_refuses_in_the_servers_place_is_an_error_too(
    call: Call, package: Any, server: Server, answer: tuple[int, str, bytes]
) -> None:
    server.answer = answer

    with pytest.raises(package.GatiError) as caught:
        call("get_things")

    error = caught.value
    assert (error.status, error.body, error.code, error.errors) == (answer[0], answer[2].decode(), "", [])


# -- time and connections ------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "named"), [({"timeout_s": 0.05}, {}), ({}, {"timeout_s": 0.05})])
def test_nobody_waits_longer_than_asked_for(
    call: Call, server: Server, options: dict[str, Any], named: dict[str, Any]
) -> None:
    server.may_answer.clear()

    with pytest.raises(httpx.ReadTimeout):
        call("get_things", options=options, **named)


def test_the_limit_of_a_call_wins_over_that_of_the_client(call: Call, server: Server) -> None:
    server.may_answer.clear()
    timer = threading.Timer(0.2, server.may_answer.set)
    timer.start()

    assert call("get_things", options={"timeout_s": 0.05}, timeout_s=20) == {}
    timer.join()


def test_a_client_that_was_given_is_used_and_left_open(package: Any, server: Server) -> None:
    with httpx.Client(headers={"x-mine": "yes"}) as http:
        with package.ThingsClient(f"{server.url}/", http=http) as client:
            client.get_things()

        assert not http.is_closed
    assert (server.sent[0].target, server.sent[0].all("x-mine")) == ("/things", ["yes"])


async def test_an_async_client_that_was_given_is_left_open_and_an_own_one_is_closed(
    package: Any, server: Server
) -> None:
    async with httpx.AsyncClient() as http:
        async with package.AsyncThingsClient(server.url, http=http) as client:
            await client.get_things()
        assert not http.is_closed

    async with package.AsyncThingsClient(server.url) as client:
        await client.get_things()
    with pytest.raises(RuntimeError, match="closed"):
        await client.get_things()


def test_a_client_of_its_own_is_closed_with_it(package: Any, server: Server) -> None:
    client = package.ThingsClient(server.url)
    client.get_things()

    client.close()

    with pytest.raises(RuntimeError, match="closed"):
        client.get_things()
