"""Several versions of one package at once, on a whole fabric."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gati_core.fabric import open_fabric
from gati_core.timescape import (
    fabric_usage,
    with_deprecation,
    with_status,
)
from tests.helpers.two_versions import HANDLERS, OLD, Versioned, two_versions
from tests.helpers.waiting import eventually


@pytest.fixture(scope="module")
async def versioned(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Versioned]:
    """One for all tests that change nothing."""
    async with two_versions(tmp_path_factory.mktemp("versioned")) as it:
        yield it


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Versioned]:
    """One that a test may break."""
    async with two_versions(tmp_path) as it:
        yield it


async def test_without_a_version_the_newest_runs_and_the_answer_says_which(versioned: Versioned) -> None:
    answer = await versioned.client.get("/same")

    newest = (await versioned.timeline("same")).newest
    assert newest is not None
    assert answer.text == newest.tsv
    assert (answer.headers["x-gati-version"], answer.headers["x-gati-version-source"]) == (newest.tsv, "latest")
    assert "x-gati-handler-version" not in answer.headers


async def test_an_unchanged_handler_keeps_its_version(versioned: Versioned) -> None:
    assert [len((await versioned.timeline(each)).versions) for each in HANDLERS] == [2, 2, 1, 2]


async def test_an_old_client_is_translated_both_ways_and_the_handler_knows(versioned: Versioned) -> None:
    answer = await versioned.client.post("/items", json={"sku": "a", "price": "1.50"}, headers=OLD)

    first, second = (await versioned.timeline("add")).versions
    assert (answer.status_code, answer.json()) == (201, {"sku": "a", "price": "1.50"})
    assert answer.headers["x-ran"] == "two"
    assert answer.headers["x-chain"] == "v1 1 tag True"
    assert answer.headers["x-gati-version"] == first.tsv
    assert answer.headers["x-gati-handler-version"] == second.tsv
    assert second.breaking


async def test_an_old_client_is_told_its_mistakes_in_the_words_of_its_own_version(versioned: Versioned) -> None:
    answer = await versioned.client.post("/items", json={"sku": "a", "cents": 3}, headers=OLD)

    assert (answer.status_code, answer.json()["code"]) == (400, "request.invalid_body")
    assert [error["path"] for error in answer.json()["errors"]] == ["price"]


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("price", ["free", "hang", "refused"])
async def test_where_a_request_cannot_be_translated_the_old_version_runs(
    versioned: Versioned, method: str, price: str
) -> None:
    answer = await versioned.client.request(method, "/items", json={"sku": "a", "price": price}, headers=OLD)

    first, _ = (await versioned.timeline("add" if method == "POST" else "replace")).versions
    assert (answer.json(), answer.headers["x-ran"]) == ({"sku": "a", "price": price}, "one")
    assert answer.headers["x-gati-version"] == first.tsv
    assert "x-gati-handler-version" not in answer.headers


async def test_where_an_answer_cannot_be_translated_only_what_may_run_twice_does(versioned: Versioned) -> None:
    item = {"sku": "a", "price": "666"}

    once = await versioned.client.post("/items", json=item, headers=OLD)
    again = await versioned.client.put("/items", json=item, headers=OLD)

    assert (once.status_code, once.json()["code"]) == (500, "version.transform_failed")
    assert "no such price" not in once.text
    assert (again.status_code, again.headers["x-ran"], again.json()) == (200, "one", item)


async def test_a_transformer_that_blocks_has_failed_and_the_log_names_it(versioned: Versioned) -> None:
    item = {"sku": "a", "price": "777"}
    _, second = versioned.fabric.workers

    on_the_loop = await versioned.client.post("/items", json=item, headers=OLD)
    await eventually(lambda: second.events("loop_blocked"), within_s=5)
    in_a_thread = await versioned.client.put("/items", json=item, headers=OLD)

    assert (on_the_loop.status_code, on_the_loop.json()["code"]) == (500, "version.transform_failed")
    assert (in_a_thread.status_code, in_a_thread.headers["x-ran"], in_a_thread.json()) == (200, "one", item)
    assert [each["handler"] for each in second.events("loop_blocked")] == [
        "transformer CentsForText.backward_response or transformer CentsForTextInThreads.backward_response"
    ]


async def test_with_the_old_version_gone_its_clients_are_still_served(own: Versioned) -> None:
    own.first.kill()

    async def is_gone() -> bool:
        answer = await own.client.post("/items", json={"sku": "a", "price": "free"}, headers=OLD)
        return answer.status_code == 500 and answer.json()["code"] == "version.transform_failed"

    await eventually(is_gone, within_s=15)  # nothing to fall back to
    assert await own.runs(**OLD) == "two"


async def test_breaking_changes_without_a_transformer_leave_it_to_the_header(versioned: Versioned) -> None:
    newest = await versioned.client.get("/left")
    old = await versioned.client.get("/left", headers=OLD)
    by_query = await versioned.client.get(
        "/left", params={"version": "v1", "page": "2"}, headers={"x-gati-version": "v2"}
    )

    assert (newest.json(), old.text, by_query.text) == ({"ran": "two"}, "one", "one")
    assert by_query.headers["x-gati-version-source"] == "tag"


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ("v9", 404, "version.tag_not_found"),
        ("tsv:1-left-077", 404, "version.not_found"),
        ("1000000000", 404, "version.not_found"),
        ("tsv:nonsense", 400, "version.invalid_format"),
        ("a b", 400, "version.invalid_format"),
        ("2025-13-45T00:00:00Z", 400, "version.invalid_timestamp"),
        ("12345678901", 400, "version.invalid_timestamp"),
    ],
)
async def test_versions_that_cannot_be_had_are_refused(
    versioned: Versioned, asked: str, status: int, code: str
) -> None:
    answer = await versioned.client.get("/left", headers={"x-gati-version": asked})

    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code)
    assert (status == 400) or problem["available"][:2] == ["v1", "v2"]


async def test_what_operators_change_is_seen_by_every_router(own: Versioned) -> None:
    first, second = (await own.timeline("left")).versions
    soon = int(time.time()) + 86_400

    await own.registry.change(
        "priced",
        "left",
        lambda it: with_deprecation(it, first.tsv, since_s=1_700_000_000, sunset_s=soon, now_ms=1, actor="t"),
    )
    await own.registry.change(
        "priced", "left", lambda it: with_status(it, second.tsv, "deactivated", now_ms=1, actor="t", force=True)
    )

    async def have_all_seen() -> bool:
        answers = [await own.client.get("/left") for _ in range(8)]
        return all(
            answer.text == "one" and answer.headers.get("deprecation") == "@1700000000" and "sunset" in answer.headers
            for answer in answers
        )

    await eventually(have_all_seen, within_s=5)
    gone = await own.client.get("/left", headers={"x-gati-version": "v2"})
    assert (gone.status_code, gone.json()["code"]) == (404, "version.not_found")


@pytest.mark.prop(7)
async def test_an_unhealthy_version_gets_no_traffic(own: Versioned) -> None:
    assert (await own.client.post("/fall-ill")).text == "cough"

    async def has_moved() -> bool:
        return (await own.client.get("/left")).text == "one"

    await eventually(has_moved, within_s=10)
    answers = [await own.client.get("/left") for _ in range(20)]
    assert {answer.text for answer in answers} == {"one"}
    pinned = await own.client.get("/left", headers={"x-gati-version": "v2"})
    assert (pinned.status_code, pinned.json()["code"]) == (503, "route.no_live_worker")


async def test_all_routers_count_what_each_version_is_asked_for(own: Versioned) -> None:
    for _ in range(12):
        await own.client.get("/left")
    for _ in range(8):
        await own.client.get("/left", headers=OLD)

    first, second = (await own.timeline("left")).versions
    async with open_fabric(own.fabric.settings, name="test") as inside:
        usage = fabric_usage(inside)

        async def is_counted() -> bool:
            counted = await usage.read("priced", "left")
            return (counted.of(first.tsv).total, counted.of(second.tsv).total) == (8, 12)

        await eventually(is_counted, within_s=5)
