"""What a running fabric says of itself: `/openapi.json`, `/docs`, and clients that are made from its packages."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import validate

from tests.helpers import node
from tests.helpers.gati_dev import gati
from tests.helpers.processes import FabricUnderTest, running_fabric
from tests.helpers.waiting import eventually

SHOP = str(Path(__file__).parents[3] / "examples" / "shop")
GUARDED = """
from gati_core import App

app = App("guarded")


@app.get("/guarded/books", roles=["auditor"])
async def books(req, res, gctx, lctx) -> None:
    res.json("books")
"""


@pytest.fixture(scope="module")
async def described(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FabricUnderTest]:
    directory = tmp_path_factory.mktemp("described")
    (directory / "guarded.py").write_text(GUARDED)
    packages = [SHOP, str(directory / "guarded.py")]
    async with running_fabric(directory, packages=packages) as fabric:
        yield fabric


@pytest.fixture
async def http(described: FabricUnderTest) -> AsyncIterator[httpx.AsyncClient]:
    async with described.client() as client:
        yield client


async def test_the_routes_that_are_served_are_described(http: httpx.AsyncClient) -> None:
    answer = await http.get("/openapi.json")
    document = answer.json()

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    validate(document)
    assert {"/orders", "/orders/{id}", "/stock/{sku}", "/guarded/books"} <= set(document["paths"])
    place = document["paths"]["/orders"]["post"]
    assert place["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/NewOrder"}
    assert document["components"]["schemas"]["NewOrder"]["additionalProperties"] is False


async def test_the_page_reads_the_document(http: httpx.AsyncClient) -> None:
    answer = await http.get("/docs")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "/openapi.json" in answer.text


async def test_a_new_version_of_a_package_is_described_soon(described: FabricUnderTest, tmp_path: Path) -> None:
    more = tmp_path / "more.py"
    more.write_text(GUARDED.replace("guarded", "later"))
    async with described.client() as http:
        assert "/later/books" not in (await http.get("/openapi.json")).json()["paths"]
        described.start_worker(str(more))

        async def is_described() -> bool:
            return "/later/books" in (await http.get("/openapi.json")).json()["paths"]

        await eventually(is_described, within_s=20)


async def test_a_route_with_roles_wants_credentials(http: httpx.AsyncClient) -> None:
    answer = await http.get("/guarded/books")

    assert (answer.status_code, answer.json()["code"]) == (401, "auth.unauthenticated")


async def test_both_paths_can_be_switched_off(tmp_path: Path) -> None:
    environment = {"GATI_INGRESS_OPENAPI_PATH": ""}
    async with running_fabric(tmp_path, packages=[SHOP], environment=environment) as fabric, fabric.client() as http:
        assert (await http.get("/openapi.json")).status_code == 404
        assert (await http.get("/docs")).status_code == 404


async def test_a_generated_python_client_calls_the_fabric(
    described: FabricUnderTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gati("generate", "client", SHOP, "--output", str(tmp_path), directory=tmp_path)
    assert made.returncode == 0, made.stderr
    monkeypatch.syspath_prepend(str(tmp_path / "client"))
    client: Any = importlib.import_module("shop_client")
    try:
        async with client.AsyncShopClient(described.url) as shop:
            order = await shop.create_orders({"sku": "ada-7", "quantity": 2})
            assert await shop.get_orders(order["id"]) == order
            with pytest.raises(client.GatiError) as missing:
                await shop.get_orders("nobody")
            with pytest.raises(client.GatiError) as refused:
                await shop.create_orders({"sku": "ada-7", "quantity": 0})
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "shop_client"]:
            del sys.modules[name]

    assert (missing.value.status, missing.value.code) == (404, "shop.no_such_order")
    assert (refused.value.status, [error["path"] for error in refused.value.errors]) == (400, ["quantity"])


def test_a_generated_typescript_client_calls_the_fabric(described: FabricUnderTest, tmp_path: Path) -> None:
    node.typescript()
    made = gati("generate", "sdk", SHOP, "--output", str(tmp_path), directory=tmp_path)
    assert made.returncode == 0, made.stderr
    sources = sorted((tmp_path / "sdk" / "shop").glob("*.ts"))
    assert node.compiled(sources, to=tmp_path / "js") == ""

    calls = f"""
        const {{ ShopClient, GatiError }} = require({json.dumps(str(tmp_path / "js" / "index.js"))});
        const shop = new ShopClient({{ baseUrl: {json.dumps(described.url)} }});
        const refusal = (call) => call.then(() => "none", (error) => error instanceof GatiError ? error : "other");
        (async () => {{
            const order = await shop.createOrders({{ sku: "ada-8", quantity: 2 }});
            const again = await shop.getOrders(order.id);
            const missing = await refusal(shop.getOrders("nobody"));
            const refused = await refusal(shop.createOrders({{ sku: "ada-8", quantity: 0 }}));
            console.log(JSON.stringify([order, again, missing.code, refused.problem.errors[0].path]));
        }})();
    """
    order, again, missing, refused = json.loads(node.run(calls))

    assert (order["sku"], order["quantity"], again) == ("ada-8", 2, order)
    assert (missing, refused) == ("shop.no_such_order", "quantity")
