"""Names, OpenAPI and the page that shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from gati_core.codegen import Api, Operation, docs_page, openapi, python_client, typescript_sdk, typescript_validators
from gati_core.codegen._names import method_names, pascal, snake
from gati_core.gtype import ArrayOf, Document, ObjectOf, Primitive, Ref
from gati_core.manifests import METHODS, HandlerManifest
from tests.helpers.apis import rich_api

_ORDER = Document(
    root=Ref(ref="Order"),
    definitions={"Order": ObjectOf(properties={"id": Primitive(primitive_type="string")}, required=["id"])},
)
_LIST = Document(root=ArrayOf(items=Ref(ref="Order")), definitions=_ORDER.definitions)
_TYPES = st.sampled_from([None, _ORDER, _LIST, Document(root=Primitive(primitive_type="integer"))])
_parts = st.sampled_from(["users", "user-groups", "{id}", "{name}", "v1", "orders", "Orders", "class"])


@st.composite
def apis(draw: st.DrawFn) -> Api:
    """Sets of handlers, some with routes that are spelled alike."""
    operations = []
    for number in range(draw(st.integers(1, 6))):
        parts = draw(st.lists(_parts, max_size=3, unique=True))
        methods = draw(st.lists(st.sampled_from(METHODS), min_size=1, max_size=2, unique=True))
        manifest = HandlerManifest(
            id=draw(st.sampled_from(["show", "Show", "show-it", "show_it"])) + (str(number) if number else ""),
            methods=methods,  # type: ignore[arg-type]  # drawn from METHODS
            path="/" + "/".join(parts),
            mode="at_least_once",
        )
        types = {area: draw(_TYPES) for area in ("request", "response")}
        operations.append(Operation(manifest=manifest, **types))
    return Api(name="shop", operations=operations)


@pytest.mark.prop(38)
@settings(max_examples=100, deadline=None)
@given(api=apis())
def test_every_handler_and_method_has_a_method_of_its_own(api: Api) -> None:
    """P38 (R11.3)."""
    names = method_names(api)

    wanted = [(each.manifest.id, method) for each in api.operations for method in each.http_methods]
    assert sorted(names) == sorted(wanted)
    assert len(set(names.values())) == len(wanted)
    client = typescript_sdk(api)["client.ts"]
    python = python_client(api)["client.py"]
    for name in names.values():
        assert client.count(f"  {name}(") + client.count(f"  {name}_(") == 1
        assert len(re.findall(rf"    def {snake(name)}\(\s*self", python)) == 1
        assert len(re.findall(rf"    async def {snake(name)}\(\s*self", python)) == 1


def test_names_say_what_is_done_and_only_as_much_as_it_takes() -> None:
    assert method_names(rich_api()) == {
        ("place_order", "POST"): "createOrders",
        ("list_orders", "GET"): "getOrders",
        ("show_order", "GET"): "getOrdersById",
        ("cancel_order", "DELETE"): "deleteOrders",
        ("item", "GET"): "getShopsItems",
        ("item", "PUT"): "updateShopsItems",
        ("untyped", "GET"): "getUntyped",
    }


def test_a_type_is_declared_and_validated_under_the_name_that_its_author_gave() -> None:
    validators = typescript_validators({"Order": _ORDER, "Orders": _LIST})

    assert re.findall(r"export type (\w+) =", validators) == ["Order", "Orders"]
    assert re.findall(r"export const validate(\w+)", validators) == ["Order", "Orders"]


@pytest.mark.parametrize(
    ("text", "wide", "narrow"),
    [("place-order", "PlaceOrder", "place_order"), ("9lives", "N9lives", "n9lives"), ("class", "Class", "class_")],
)
def test_names_are_those_of_their_language(text: str, wide: str, narrow: str) -> None:
    assert (pascal(text), snake(text)) == (wide, narrow)


@settings(max_examples=25, deadline=None)
@given(first=apis(), second=apis())
def test_every_openapi_document_is_valid(first: Api, second: Api) -> None:
    document = openapi([first, Api(name="other", operations=second.operations)])

    validate(document)
    ids = [each["operationId"] for item in document["paths"].values() for each in item.values()]
    assert len(ids) == len(set(ids))


def test_an_openapi_document_says_all_that_a_client_needs() -> None:
    document = openapi(rich_api(), title="Rich", servers=["https://api.example.org"])

    validate(document)
    place = document["paths"]["/orders"]["post"]
    assert (place["operationId"], place["summary"]) == ("rich_createOrders", "Place an order.")
    assert place["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/NewOrder"}
    assert sorted(place["responses"]) == ["2XX", "400", "415", "4XX", "5XX"]
    show = document["paths"]["/orders/{id}"]["get"]
    assert (show["security"], show["x-gati-roles"]) == ([{"bearer": []}], ["reader"])
    assert {"401", "403"} <= set(show["responses"])
    item = document["paths"]["/shops/{shop}/items/{sku}"]["get"]["parameters"]
    assert [(each["name"], each["in"], each["required"]) for each in item] == [
        ("shop", "path", True),
        ("sku", "path", True),
        ("text", "query", False),
        ("limit", "query", False),
        ("tags", "query", False),
        ("exact", "query", False),
        ("x-request-source", "header", True),
    ]
    assert "/live" not in document["paths"]
    assert {"NewOrder", "Order", "Line", "Card", "Cash", "Problem"} <= set(document["components"]["schemas"])


def test_two_types_of_one_name_are_two_components() -> None:
    def api(name: str, kind: Any) -> Api:
        order = ObjectOf(properties={"id": Primitive(primitive_type=kind)}, required=["id"])
        document = Document(root=Ref(ref="Order"), definitions={"Order": order})
        manifest = HandlerManifest(id="h", methods=["POST"], path=f"/{name}", mode="at_most_once")
        return Api(name=name, operations=[Operation(manifest=manifest, request=document, response=document)])

    schemas = openapi([api("a", "string"), api("b", "integer"), api("c", "string")])["components"]["schemas"]

    assert sorted(schemas) == ["BOrder", "Order", "Problem"]


def test_the_same_input_gives_the_same_bytes() -> None:
    for make in (typescript_sdk, python_client, openapi):
        assert json.dumps(make(rich_api())) == json.dumps(make(rich_api()))  # type: ignore[operator]


def test_the_page_needs_nothing_from_elsewhere_and_its_script_parses(tmp_path: Path) -> None:
    page = docs_page("/openapi.json?x=</script>")

    assert re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", page) == []
    assert "<\\/script>" in page or "\\u003c/script>" in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert "innerHTML" not in script
    if shutil.which("node"):
        (tmp_path / "page.js").write_text(script)
        assert subprocess.run(["node", "--check", str(tmp_path / "page.js")], timeout=30).returncode == 0
