"""The OpenAPI document: what it says, and that it is valid whatever the handlers are. The page that shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta
from openapi_spec_validator import validate

from gati_core.codegen import Api, Operation, docs_page, openapi
from gati_core.gtype import extract
from gati_core.manifests import METHODS, HandlerManifest, Policies
from gati_testing.gtypes import documents, wild_documents
from tests.helpers.apis import rich_api


class Tree(msgspec.Struct):
    """<img src=x onerror=alert(1)>"""

    name: Annotated[str, Meta(min_length=1, description="What it is called.")]
    children: list[Tree] = []
    parent: Tree | None = None


class Search(msgspec.Struct):
    text: Annotated[str, Meta(description="Words.", extra_json_schema={"deprecated": True})]
    kinds: list[int] = []
    limit: int = 10


class Wanted(msgspec.Struct):
    X_Tenant: str
    authorization: str = ""


class Place(msgspec.Struct):
    id: int


def operation(
    id: str, methods: list[Any], path: str, *, roles: tuple[str, ...] = (), summary: str = "", **types: Any
) -> Operation:
    policies = Policies(roles=list(roles))
    manifest = HandlerManifest(
        id=id, methods=methods, path=path, mode="at_least_once", summary=summary, policies=policies
    )
    return Operation(manifest=manifest, **{area: extract(each, where=area).document for area, each in types.items()})


def api(*operations: Operation, name: str = "shop", version: str = "") -> Api:
    return Api(name=name, version=version, operations=list(operations))


def described(*operations: Operation) -> dict[str, Any]:
    """The one operation of a document."""
    document = openapi(api(*operations))
    validate(document)
    ((_, item),) = document["paths"].items()
    ((_, found),) = item.items()
    return found  # type: ignore[no-any-return]


# -- what it says --------------------------------------------------------------------------------------


def test_an_operation_says_who_may_call_it_and_what_comes_back() -> None:
    found = described(operation("plant", ["POST"], "/trees", roles=("gardener",), summary="Plant.", request=Tree))

    assert (found["operationId"], found["tags"], found["summary"]) == ("shop_createTrees", ["shop"], "Plant.")
    assert (found["security"], found["x-gati-roles"]) == ([{"bearer": []}], ["gardener"])
    assert (found["x-gati-handler"], found["x-gati-delivery"]) == ("shop:plant", "at_least_once")
    assert list(found["responses"]) == ["2XX", "400", "401", "403", "415", "4XX", "5XX"]
    assert {status: list(each.get("content", {})) for status, each in found["responses"].items()} == {
        "2XX": [],
        **{status: ["application/problem+json"] for status in ("400", "401", "403", "415", "4XX", "5XX")},
    }


def test_parameters_are_read_from_where_the_fabric_reads_them() -> None:
    types = {"params": Place, "query": Search, "headers": Wanted}

    found = described(operation("find", ["GET"], "/trees/{id}/{leaf}", **types))["parameters"]

    assert found == [
        {"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}},
        {"name": "leaf", "in": "path", "required": True, "schema": {"type": "string"}},
        {
            "name": "text",
            "in": "query",
            "required": True,
            "description": "Words.",
            "deprecated": True,
            "schema": {"type": "string"},
        },
        {
            "name": "kinds",
            "in": "query",
            "required": False,
            "schema": {"type": "array", "items": {"type": "integer"}, "default": []},
            "style": "form",
            "explode": True,
        },
        {"name": "limit", "in": "query", "required": False, "schema": {"type": "integer", "default": 10}},
        {"name": "x-tenant", "in": "header", "required": True, "schema": {"type": "string"}},
    ]


@pytest.mark.parametrize(
    ("method", "body", "is_required"),
    [
        ("POST", Tree, True),
        ("POST", Tree | None, False),
        ("GET", Tree, True),  # the handler cannot do without
        ("GET", Tree | None, None),
        ("DELETE", Tree | None, None),
        ("PUT", None, None),
    ],
)
def test_a_body_is_asked_for_where_the_handler_reads_one(method: str, body: Any, is_required: bool | None) -> None:
    types = {} if body is None else {"request": body}

    found = described(operation("h", [method], "/h", **types))

    assert found.get("requestBody", {}).get("required") == is_required


def test_an_answer_to_head_has_no_body() -> None:
    found = openapi(api(operation("h", ["GET", "HEAD"], "/h", response=Tree)))["paths"]["/h"]

    assert "content" in found["get"]["responses"]["2XX"]
    assert "content" not in found["head"]["responses"]["2XX"]


def test_what_is_no_parameter_of_a_path_is_written_as_in_urls() -> None:
    (path,) = openapi(api(operation("h", ["GET"], "/ü/a b/%61/{x}")))["paths"]

    assert path == "/%C3%BC/a%20b/%2561/{x}"


def test_types_that_are_not_known_give_no_schema() -> None:
    found = openapi(api(operation("h", ["POST"], "/h")))

    assert "requestBody" not in found["paths"]["/h"]["post"]
    assert found["paths"]["/h"]["post"]["responses"]["2XX"] == {"description": "Done."}
    assert list(found["components"]["schemas"]) == ["Problem"]


def test_types_that_contain_themselves_refer_to_themselves() -> None:
    found = openapi(api(operation("h", ["POST"], "/h", request=Tree)))

    tree = found["components"]["schemas"]["Tree"]["properties"]
    assert tree["children"]["items"] == {"$ref": "#/components/schemas/Tree"}


# -- several apps, several versions --------------------------------------------------------------------


def test_the_first_that_serves_a_method_on_a_path_describes_it() -> None:
    first = api(operation("a", ["GET"], "/trees/{id}", summary="first"), name="first")
    second = api(operation("b", ["GET", "PUT"], "/trees/{tree}", summary="second", params=Place), name="second")

    document = openapi([first, second])

    validate(document)
    ((path, item),) = document["paths"].items()
    assert path == "/trees/{id}"
    assert {method: each["summary"] for method, each in item.items()} == {"get": "first", "put": "second"}
    assert [each["name"] for each in item["put"]["parameters"]] == ["id"]


def test_two_versions_of_an_app_are_described_side_by_side() -> None:
    old = msgspec.defstruct("Tree", [("name", str)])
    versions = [
        api(operation("show", ["GET"], "/trees/{id}", response=Tree), version="2"),
        api(
            operation("show", ["GET"], "/trees/{id}", response=old),
            operation("list", ["GET"], "/trees", response=list[old]),  # type: ignore[valid-type]
            operation("trees", ["GET"], "/Trees"),
            version="1",
        ),
    ]

    document = openapi(versions)

    validate(document)
    ids = [each["operationId"] for item in document["paths"].values() for each in item.values()]
    assert len(ids) == len(set(ids)) == 3
    assert document["tags"] == [{"name": "shop"}]
    assert sorted(document["components"]["schemas"]) == ["Problem", "ShopTree", "Tree"]
    assert document["paths"]["/trees"]["get"]["responses"]["2XX"]["content"]["application/json"]["schema"] == {
        "type": "array",
        "items": {"$ref": "#/components/schemas/ShopTree"},
    }


# -- validity ------------------------------------------------------------------------------------------

_parts = st.sampled_from(["a", "b", "a b", "ü", "%", "{id}", "{name}", "{ID}"])


@st.composite
def apis(draw: st.DrawFn) -> Api:
    """Handlers with any types, and names that are nearly alike."""
    operations = []
    for number in range(draw(st.integers(0, 2))):
        manifest = HandlerManifest(
            id=f"h{number}",
            methods=draw(st.lists(st.sampled_from([*METHODS, "WEBSOCKET"]), min_size=1, max_size=2, unique=True)),
            path="/" + "/".join(draw(st.lists(_parts, max_size=3, unique=True))),
            mode="at_most_once",
            policies=Policies(roles=draw(st.lists(st.just("admin"), max_size=1))),
        )
        areas = draw(
            st.lists(st.sampled_from(["request", "response", "params", "query", "headers"]), max_size=1, unique=True)
        )
        types = {area: draw(documents() | wild_documents()) for area in areas}
        operations.append(Operation(manifest=manifest, **types))
    return Api(name=draw(st.sampled_from(["shop", "stock"])), version="1", operations=operations)


def check(document: Any) -> None:
    """Have the library look at it; twice where it loops, which it does at lists of themselves below `allOf`."""
    try:
        validate(document)
    except RecursionError:
        schemas = {name: _without_references(each) for name, each in document["components"]["schemas"].items()}
        validate({**document, "components": {**document["components"], "schemas": schemas}})


def _without_references(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {} if "$ref" in schema else {name: _without_references(each) for name, each in schema.items()}
    return [_without_references(each) for each in schema] if isinstance(schema, list) else schema


@settings(max_examples=100, deadline=None)
@given(several=st.lists(apis(), max_size=2))
def test_every_document_is_valid_and_all_that_it_refers_to_is_there(several: list[Api]) -> None:
    document = openapi(several, servers=["https://shop.test"])

    check(document)
    text = json.dumps(document)
    used = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert used <= set(document["components"]["schemas"])
    assert json.dumps(openapi(several, servers=["https://shop.test"])) == text


# -- the page ------------------------------------------------------------------------------------------

# As much of a browser as the page needs. Whatever is not here fails, `innerHTML` among it.
BROWSER = """
class Node {
  constructor(tag) { this.tag = tag; this.childNodes = []; this.attributes = {}; this.listeners = {}; this.value = ""; }
  append(...nodes) { for (const n of nodes) this.childNodes.push(typeof n === "string" ? new Text(n) : n); }
  setAttribute(name, value) { this.attributes[name] = String(value); }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  set textContent(text) { this.childNodes = text === "" ? [] : [new Text(text)]; }
  get textContent() { return this.childNodes.map((each) => each.textContent).join(""); }
  set innerHTML(text) { throw new Error("HTML is read"); }
  all(tag) { return this.childNodes.flatMap((n) => n.all ? [...(n.tag === tag ? [n] : []), ...n.all(tag)] : []); }
}
class Text { constructor(text) { this.textContent = text; } }
const main = new Node("main"), sent = [];
const document = {
  createElement: (tag) => new Node(tag), createTextNode: (text) => new Text(text), querySelector: () => main,
};
const location = { href: "http://shop.test/docs" };
const fetch = async (url, options) => {
  if (options) sent.push([url, options]);
  const body = options ? '{"done":true}' : API;
  return { ok: true, status: 200, statusText: "OK", json: async () => JSON.parse(body), text: async () => body };
};
"""
READER = """
setTimeout(async () => {
  for (let turn = 0; turn < 4; turn++) {
    for (const box of main.all("details")) { box.open = true; box.listeners.toggle(); }
  }
  for (const form of main.all("form")) {
    for (const input of form.all("input")) input.value = "1,/";
    form.listeners.input();
    await form.listeners.submit({ preventDefault() {} });
  }
  console.log(JSON.stringify({ text: main.textContent, tags: [...new Set(main.all("img"))], sent }));
}, 10);
"""


def script() -> str:
    (found,) = re.findall(r"<script>(.*)</script>", docs_page("/openapi.json"), re.DOTALL)
    return str(found)


def shown(document: dict[str, Any], directory: Path) -> dict[str, Any]:
    """What the page shows with everything opened, and what its forms send."""
    if shutil.which("node") is None:
        pytest.skip("node is not on this machine")
    program = directory / "page.js"
    program.write_text(f"const API = {json.dumps(json.dumps(document))};{BROWSER}{{{script()}}}{READER}")
    done = subprocess.run(["node", str(program)], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr == ""
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_the_page_shows_every_operation_and_its_forms_send_it(tmp_path: Path) -> None:
    summary = "</script><img src=x>"
    given = api(
        operation("plant", ["POST"], "/trees/{id}", summary=summary, request=Tree, response=Tree, roles=("boss",)),
        operation("find", ["GET"], "/trees", query=Search, headers=Wanted),
        operation("away", ["DELETE"], "//elsewhere.test/x"),
    )

    page = shown(openapi(given, title="The <shop>"), tmp_path)

    for text in ("The <shop>", summary, "<img src=x onerror=alert(1)>", "needs one of the roles boss", "list of Tree"):
        assert text in page["text"]
    assert page["tags"] == []
    deleted, found, planted = page["sent"]
    assert deleted == ["http://shop.test//elsewhere.test/x", {"method": "DELETE", "headers": {}}]
    assert found[0] == "http://shop.test/trees?text=1%2C%2F&kinds=1&kinds=%2F&limit=1%2C%2F"
    assert found[1]["headers"] == {"x-tenant": "1,/"}
    assert planted[0] == "http://shop.test/trees/1%2C%2F"
    assert json.loads(planted[1]["body"]) == {"name": "text"}
    assert planted[1]["headers"] == {"content-type": "application/json", "authorization": "Bearer 1,/"}
    assert "curl -X POST 'http://shop.test/trees/1%2C%2F'" in page["text"]


def test_the_page_shows_an_api_with_everything(tmp_path: Path) -> None:
    document = openapi(rich_api())

    page = shown(document, tmp_path)

    for path, item in document["paths"].items():
        assert path in page["text"]
        for each in item.values():
            assert each["operationId"] in page["text"]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = docs_page("/openapi.json")

    assert re.findall(r"https?:|//[a-z0-9.-]+\.[a-z]{2,}|\bsrc=|\bhref=|@import|url\(", page) == []
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", page)
    assert len(page.encode()) < 25_000


@pytest.mark.parametrize("url", ["/openapi.json", "/a?x=</script><b>", '"+alert(1)+"', "\u2028\\", "</SCRIPT x>"])
def test_the_address_of_the_document_is_only_an_address(url: str) -> None:
    page = docs_page(url)

    (line,) = re.findall(r"const SOURCE = (.*);\n", page)
    assert json.loads(line) == url
    assert page.lower().count("</script") == 1
