"""From HTTP through the fabric to a handler and back: what arrives, and what the client sees."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time

import httpx
import pytest

from tests.helpers.processes import FabricUnderTest

MAX_PAYLOAD = 1_048_576
SIZES = [0, 1, 262_143, 262_144, 262_145, MAX_PAYLOAD - 200, MAX_PAYLOAD, MAX_PAYLOAD + 1, 2 * MAX_PAYLOAD]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_every_method_reaches_its_handler(client: httpx.AsyncClient, method: str) -> None:
    answer = await client.request(method, "/echo")

    assert (answer.status_code, answer.json()["method"]) == (200, method)


async def test_head_runs_the_get_handler_and_has_its_headers_without_the_body(client: httpx.AsyncClient) -> None:
    whole = await client.get("/text")

    answer = await client.head("/text")

    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == whole.headers["content-type"]
    assert answer.headers["content-length"] == str(len(whole.content))


async def test_a_handler_that_says_nothing_answers_204_without_a_body(client: httpx.AsyncClient) -> None:
    answer = await client.get("/nothing")

    assert (answer.status_code, answer.content) == (204, b"")
    assert "content-length" not in answer.headers


async def test_text_arrives_as_utf_8(client: httpx.AsyncClient) -> None:
    answer = await client.get("/text")

    assert answer.text == "grüße, 世界"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_the_handlers_status_and_headers_arrive_even_repeated_ones(client: httpx.AsyncClient) -> None:
    answer = await client.get("/headers")

    assert (answer.status_code, answer.headers["x-one"]) == (203, "1")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]


async def test_a_redirect_arrives_as_one(client: httpx.AsyncClient) -> None:
    answer = await client.get("/elsewhere")

    assert (answer.status_code, answer.headers["location"]) == (302, "/text")


async def test_headers_query_and_cookies_reach_the_handler(client: httpx.AsyncClient) -> None:
    answer = await client.get(
        "/echo?a=1&a=2&b=%C3%BC&empty=",
        headers=[("X-Twice", "one"), ("x-twice", "two"), ("Cookie", 'session="abc"; theme=dark')],
    )

    seen = answer.json()
    assert seen["query"] == {"a": ["1", "2"], "b": "ü", "empty": ""}
    assert seen["headers"]["x-twice"] == ["one", "two"]
    assert seen["cookies"] == {"session": "abc", "theme": "dark"}
    assert seen["client_ip"] == "127.0.0.1"


async def test_the_request_id_is_ours_and_the_clients_travels_beside_it(client: httpx.AsyncClient) -> None:
    answer = await client.get("/echo", headers={"x-request-id": "mine"})

    seen = answer.json()
    assert answer.headers["x-request-id"] == seen["request_id"] != "mine"
    assert seen["headers"]["x-client-request-id"] == "mine"


async def test_headers_of_one_hop_stay_behind(client: httpx.AsyncClient) -> None:
    answer = await client.get("/echo", headers={"te": "trailers", "proxy-connection": "keep-alive"})

    assert {"te", "proxy-connection", "connection"}.isdisjoint(answer.json()["headers"])


@pytest.mark.parametrize(
    ("content", "content_type", "expected"),
    [
        (b'{"a": [1, null]}', "application/json", {"a": [1, None]}),
        (b'{"a": 1}', "application/merge-patch+json", {"a": 1}),
        (b"a=1&b=2&a=3", "application/x-www-form-urlencoded", {"a": ["1", "3"], "b": "2"}),
        ("grüße".encode(), "text/plain; charset=utf-8", "grüße"),
        (b"\x00\xff\x00", "application/octet-stream", {"bytes": 3}),
        (b"", "application/json", None),
    ],
)
async def test_an_untyped_body_follows_its_content_type(
    client: httpx.AsyncClient, content: bytes, content_type: str, expected: object
) -> None:
    answer = await client.post("/echo", content=content, headers={"content-type": content_type})

    assert (answer.status_code, answer.json()["body"]) == (200, expected)


@pytest.mark.parametrize(
    ("content", "content_type"),
    [(b"{", "application/json"), (b"\xff", "text/plain"), (b"[" * 100_000, "application/json")],
)
async def test_an_untyped_body_that_is_not_what_it_claims_gets_400(
    client: httpx.AsyncClient, content: bytes, content_type: str
) -> None:
    answer = await client.post("/echo", content=content, headers={"content-type": content_type})

    assert (answer.status_code, answer.json()["code"]) == (400, "request.invalid_body")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"sku": "", "quantity": 1}', "sku: expected"),
        (b'{"sku": "a", "quantity": 0}', "quantity: expected"),
        (b'{"sku": "a", "quantity": "three"}', "quantity: expected"),
        (b'{"quantity": 1}', "sku"),
        (b"[]", "object"),
        (b"{", "JSON"),
        (b'{"sku": "\xff"}', "UTF-8: byte 9 cannot be read"),
        (b"", "required"),
    ],
)
async def test_a_typed_body_that_does_not_fit_gets_400_and_says_where(
    client: httpx.AsyncClient, content: bytes, says: str
) -> None:
    answer = await client.post("/orders", content=content, headers={"content-type": "application/json"})

    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (400, "request.invalid_body")
    assert says in problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_typed_body_arrives_as_its_type_with_defaults(client: httpx.AsyncClient) -> None:
    order = await client.post("/orders", json={"sku": "ada-42"})
    points = await client.post("/points", json=[{"x": 1, "y": 2}, {"x": 3}])

    assert (order.status_code, order.json()) == (201, {"sku": "ada-42", "quantity": 1})
    assert (points.status_code, points.json()) == (200, 6)


async def test_a_typed_body_of_another_media_type_gets_415(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", content=b"<order/>", headers={"content-type": "application/xml"})

    assert (answer.status_code, answer.json()["code"]) == (415, "request.unsupported_media_type")


@pytest.mark.parametrize("size", SIZES)
async def test_a_body_of_any_size_arrives_whole(client: httpx.AsyncClient, size: int) -> None:
    body = os.urandom(size)

    answer = await client.post("/digest", content=body)

    assert answer.json() == {"bytes": size, "sha256": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize("size", SIZES)
async def test_an_answer_of_any_size_comes_back_whole(client: httpx.AsyncClient, size: int) -> None:
    answer = await client.get(f"/bytes/{size}")

    assert answer.status_code == 200
    assert answer.content == bytes(size)


async def test_a_large_body_sent_in_chunks_comes_back_as_it_went(client: httpx.AsyncClient) -> None:
    parts = [os.urandom(100_000) for _ in range(15)]

    async def chunks() -> object:
        for part in parts:
            yield part

    answer = await client.post("/mirror", content=chunks())

    assert answer.content == b"".join(parts)


async def test_path_parameters_are_decoded_and_static_segments_win(client: httpx.AsyncClient) -> None:
    decoded = await client.get("/items/a%2Fb/%C3%BC%20x")
    static = await client.get("/items/special/7")

    assert decoded.json() == {"item": "a/b", "part": "ü x"}
    assert static.text == "special 7"


async def test_def_handlers_run_in_threads_beside_each_other_and_beside_async_ones(client: httpx.AsyncClient) -> None:
    started = time.monotonic()
    sleepers = [asyncio.create_task(client.get("/thread/0.5")) for _ in range(8)]

    quick = await client.get("/text")
    quick_s = time.monotonic() - started
    answers = await asyncio.gather(*sleepers)
    all_s = time.monotonic() - started

    assert (quick.status_code, quick_s < 0.5) == (200, True)
    assert all(answer.json()["is_main"] is False for answer in answers)
    assert all_s < 2.0, "eight threads of half a second took as long as one after the other"


async def test_a_handler_past_its_own_limit_is_cancelled_and_answers_504(client: httpx.AsyncClient) -> None:
    late = await client.get("/slow/5")
    in_time = await client.get("/slow/0")

    assert (late.status_code, late.json()["code"]) == (504, "handler.timeout")
    assert late.elapsed.total_seconds() < 2
    assert (in_time.status_code, in_time.text) == (200, "in time")


@pytest.mark.parametrize("status", [400, 404, 409, 422, 503, 599])
async def test_a_handler_error_keeps_its_status_code_and_message(client: httpx.AsyncClient, status: int) -> None:
    answer = await client.get(f"/refuse/{status}")

    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, "echo.refused")
    assert problem["detail"] == "the tea is for somebody else"
    assert "secret" not in answer.text


async def test_an_unexpected_exception_answers_500_and_tells_nothing_of_the_inside(
    client: httpx.AsyncClient, shared: FabricUnderTest
) -> None:
    answer = await client.get("/broken")

    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (500, "internal")
    assert not any(word in answer.text for word in ("hunter2", "LookupError", "Traceback", "echo_app"))
    failed = [
        each for each in shared.workers[0].events("handler_failed") if each["request_id"] == problem["request_id"]
    ]
    assert "hunter2" in str(failed), "the log has what the client must not see"


async def test_an_exception_after_the_answer_does_not_change_it(client: httpx.AsyncClient) -> None:
    answer = await client.get("/broken-late")

    assert (answer.status_code, answer.text) == (200, "answered before")


async def test_an_answer_that_cannot_be_encoded_is_a_500(client: httpx.AsyncClient) -> None:
    answer = await client.get("/unencodable")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")


async def test_requests_sent_at_once_are_all_answered_each_its_own(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(*(client.get(f"/items/{number}/x") for number in range(200)))

    assert [answer.json()["item"] for answer in answers] == [str(number) for number in range(200)]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 200
