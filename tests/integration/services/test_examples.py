"""The example packages, as a newcomer meets them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.processes import FabricUnderTest, running_fabric

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
async def examples(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    """Two workers with both examples, so that requests really race."""
    packages = [str(EXAMPLES / "hello"), str(EXAMPLES / "shop")]
    async with running_fabric(tmp_path_factory.mktemp("examples"), packages=packages, workers=2) as fabric:
        yield fabric


@pytest.fixture(scope="module")
async def shop(examples: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client for the examples."""
    async with examples.client() as client:
        yield client


async def test_hello_greets_by_name_also_with_escapes_in_it(shop: httpx.AsyncClient) -> None:
    assert (await shop.get("/hello/World")).json() == {"message": "Hello, World!"}
    assert (await shop.get("/hello/Ren%C3%A9e%20%26%20Co")).json() == {"message": "Hello, Renée & Co!"}


async def test_a_placed_order_can_be_looked_up_where_its_location_says(shop: httpx.AsyncClient) -> None:
    placed = await shop.post("/orders", json={"sku": "ada-42", "quantity": 3})

    assert placed.status_code == 201
    order = placed.json()
    assert (order["sku"], order["quantity"]) == ("ada-42", 3)
    found = await shop.get(placed.headers["location"])
    assert (found.status_code, found.json()) == (200, order)


@pytest.mark.parametrize("name", ["never-placed", "no%2Fkey", "%20"])
async def test_an_order_that_was_never_placed_is_a_404(shop: httpx.AsyncClient, name: str) -> None:
    answer = await shop.get(f"/orders/{name}")

    assert answer.status_code == 404
    assert answer.json()["code"].startswith("shop.")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"quantity": 1}, "sku"),
        ({"sku": "ada-42", "quantity": 0}, "quantity: expected"),
        ({"sku": "ada-42", "quantity": "3"}, "quantity: expected"),
        ({"sku": "a b", "quantity": 1}, "sku: expected"),
        ({"sku": "ada-42", "quantity": 1, "price": 1}, "price"),
    ],
)
async def test_an_order_that_does_not_fit_is_refused_with_the_field(
    shop: httpx.AsyncClient, body: dict[str, object], where: str
) -> None:
    answer = await shop.post("/orders", json=body)

    assert (answer.status_code, answer.json()["code"]) == (400, "request.invalid_body")
    assert where in answer.json()["detail"]


async def test_the_last_piece_is_sold_once(shop: httpx.AsyncClient) -> None:
    assert (await shop.put("/stock/rare-1", json={"quantity": 5})).status_code == 200

    answers = await asyncio.gather(*(shop.post("/orders", json={"sku": "rare-1", "quantity": 1}) for _ in range(12)))

    assert sorted(answer.status_code for answer in answers) == [201] * 5 + [409] * 7
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"shop.sold_out"}
    assert (await shop.get("/stock/rare-1")).json() == {"quantity": 0}


async def test_an_article_without_a_stock_level_is_always_available(shop: httpx.AsyncClient) -> None:
    assert (await shop.get("/stock/plenty")).status_code == 404
    assert (await shop.post("/orders", json={"sku": "plenty", "quantity": 1000})).status_code == 201


async def test_the_handler_in_the_readme_answers_as_the_readme_calls_it(tmp_path: Path) -> None:
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    call = next(line for line in text.splitlines() if "/visits/london" in line)
    package = tmp_path / "greet.py"
    package.write_text(code, encoding="utf-8")

    async with running_fabric(tmp_path, packages=[str(package)]) as fabric, fabric.client() as client:
        body = call.partition("-d '")[2].partition("'")[0]
        answer = await client.post("/visits/london", content=body, headers={"content-type": "application/json"})

    assert (answer.status_code, answer.json()) == (201, {"hello": ["Ada", "Ada"], "in": "london"})
