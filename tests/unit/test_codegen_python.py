"""The generated Python client as text: it compiles, it is typed, and nothing that an author writes breaks it."""

from __future__ import annotations

import ast
import enum
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Meta

from gati_core.codegen import Api, Operation, python_client
from gati_core.codegen.python._annotations import choices, comment, docstring, literal
from gati_core.gtype import Document, Enumeration, NeverOf, ObjectOf, Primitive, Ref, UnionOf, extract
from gati_core.manifests import HandlerManifest
from tests.helpers.apis import rich_api


class Kind(enum.Enum):
    BIG = "big"
    SMALL = "it's small"


class Tree(msgspec.Struct):
    """Any tree; says "so"."""

    name: Annotated[str, Meta(description='What it is called, in """quotes"""')]
    kind: Kind | None = None
    children: list[Tree] = []


class Search(msgspec.Struct):
    text: str
    kinds: list[Kind] = []
    sort: Literal["up", "down = up"] = "up"
    exact: bool = False
    near: float | int | None = None
    types: str = ""
    cast: str = ""
    body: str = ""
    answer: str = ""


class Place(msgspec.Struct):
    id: int


class Wanted(msgspec.Struct):
    x_tenant: str
    if_match: list[str] = []


# Fields that no class can have, or that hide what other fields need.
Odd = TypedDict("Odd", {"class": int, "a b": NotRequired[str], "😀": bool, '"\\\n': int, "__x": int})
Hiding = TypedDict(  # noqa: UP013 - in a class, its fields would hide its types
    "Hiding", {"str": int, "list": "list[str]", "Hiding": "NotRequired[Hiding]"}
)
# `None` names a type as well as any other word does, elsewhere.
Nothing: Any = TypedDict(  # type: ignore[misc]
    "None", {"Any": Any, "Literal": Literal["Any", "NotRequired", "] | None", "😀"]}
)


def operation(id: str, methods: list[Any], path: str, *, summary: str = "", **types: Any) -> Operation:
    manifest = HandlerManifest(id=id, methods=methods, path=path, mode="at_most_once", summary=summary)
    return Operation(manifest=manifest, **{area: extract(each, where=area).document for area, each in types.items()})


def api(*operations: Operation, name: str = "shop", version: str = "1.2") -> Api:
    return Api(name=name, version=version, operations=list(operations))


ODD = api(
    operation("plant", ["POST"], "/trees", summary='Say "hi"', request=Tree, response=Tree, headers=Wanted),
    operation("find", ["GET"], "/trees", summary="Back\\slash\\", query=Search, response=list[Tree]),
    operation("show", ["GET", "HEAD", "DELETE"], "/trees/{id}", params=Place, response=Tree | None),
    operation("graft", ["PUT", "PATCH"], "/trees/{self}/{body}/{class}", request=Tree | None, response=Odd),
    operation("hide", ["POST"], "/x-ray", summary='"""', request=Hiding, response=Nothing),
    operation("seek", ["POST", "OPTIONS"], "/xray", summary="type: ignore", query=Odd),
    operation("ask", ["GET"], "/ü/a b/%61/{x}", summary="\0\x85\u2028\u202e", request=Nothing),
    operation("live", ["WEBSOCKET"], "/live\n#"),
    name="odd",
)
BARE = api(operation("ping", ["GET"], "/"), name="bare", version="")
EMPTY = api(name="empty")


def written(api: Api, directory: Path) -> Path:
    package = directory / f"{api.name}_client"
    package.mkdir()
    for name, text in python_client(api, source=f"the handlers of {api.name}").items():
        (package / name).write_text(text, encoding="utf-8")
    return package


def checked(tool: str, *arguments: str, directory: Path) -> str:
    command = [sys.executable, "-m", tool, *arguments, "."]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr if done.returncode else ""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the clients of four APIs."""
    directory = tmp_path_factory.mktemp("clients")
    for each in (rich_api(), ODD, BARE, EMPTY):
        written(each, directory)
    return directory


# -- what is written compiles, and types what it should ------------------------------------------------


@pytest.mark.prop(5)
def test_clients_pass_the_type_checker_and_wrong_calls_do_not(packages: Path) -> None:
    """P5 (R1.5)."""
    consumer = packages / "consumer.py"
    consumer.write_text(
        """
from __future__ import annotations

import asyncio

import httpx

from odd_client import AsyncOddClient, GatiError, OddClient
from odd_client.types import Odd, Tree

client = OddClient("http://shop", token="t", timeout_s=1, headers={}, version="1.2", http=httpx.Client())
tree: Tree = {"name": "oak", "children": [{"name": "acorn", "kind": "big"}]}
planted = client.create_trees(tree, x_tenant="acme", if_match=["a"])
text: str = planted["name"]
found = client.get_trees(text="oak", kinds=["big"], sort="up", near=1, types_="x", cast="y", timeout_s=0.5)
shown: Tree | None = client.get_trees_by_id(7)
client.call_trees(7)
odd: Odd = client.update_trees("a", 2, "c")
emoji: bool = odd["😀"]


async def main() -> None:
    async with AsyncOddClient("http://shop", http=httpx.AsyncClient()) as client:
        planted = await client.create_trees(tree, x_tenant="acme")
        print(planted.get("kind"), planted["nam"])  # wrong
        await client.create_trees(tree)  # wrong
        client.create_trees(tree, x_tenant="acme")["name"]  # wrong


client.create_trees({"name": 7}, x_tenant="acme")  # wrong
client.create_trees({"name": "oak", "colour": "green"}, x_tenant="acme")  # wrong
client.create_trees({"name": "oak", "kind": "huge"}, x_tenant="acme")  # wrong
client.create_trees(tree)  # wrong
client.get_trees("oak")  # wrong
client.get_trees(text="oak", sort="sideways")  # wrong
client.get_trees(text="oak", colour="green")  # wrong
client.get_trees_by_id("seven")  # wrong
client.get_trees_by_id(7)["name"]  # wrong
client.get_treez()  # wrong
OddClient("http://shop", tokn="t")  # wrong
OddClient("http://shop", http=httpx.AsyncClient())  # wrong

try:
    asyncio.run(main())
except GatiError as error:
    status: int = error.status
    code: int = error.code  # wrong
""",
        encoding="utf-8",
    )

    said = checked("mypy", "--strict", "--no-incremental", directory=packages)

    wrong = [n for n, line in enumerate(consumer.read_text().splitlines(), start=1) if line.endswith("# wrong")]
    assert sorted({int(n) for n in re.findall(r"^consumer\.py:(\d+): error", said, re.MULTILINE)}) == wrong, said
    assert [line for line in said.splitlines() if "_client" in line.split(":")[0]] == []


def test_clients_pass_the_linter(packages: Path) -> None:
    assert checked("ruff", "check", "--isolated", "--no-cache", "--exclude", "consumer.py", directory=packages) == ""


def test_every_file_says_what_it_is_and_the_same_input_gives_the_same_bytes() -> None:
    files = python_client(ODD, source="the handlers of odd")

    assert files == python_client(ODD, source="the handlers of odd")
    assert sorted(files) == ["__init__.py", "client.py", "py.typed", "types.py"]
    for name in ("__init__.py", "client.py", "types.py"):
        assert re.match(r"# Generated by gati \S+ from the handlers of odd\. Do not edit: ", files[name])
        assert files[name].endswith("\n")
        assert not files[name].endswith("\n\n")


def test_the_client_needs_httpx_and_the_standard_library_alone() -> None:
    imported = set()
    for text in python_client(ODD).values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                imported |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add("." * node.level + (node.module or ""))

    assert {each for each in imported if each[0] != "." and each.split(".")[0] not in sys.stdlib_module_names} == {
        "httpx"
    }


# -- methods -------------------------------------------------------------------------------------------


def methods(api: Api, client: str) -> dict[str, str]:
    """The methods of a client by name, each as a call: its arguments, and what it passes on."""
    module = ast.parse(python_client(api)["client.py"])
    (found,) = [each for each in module.body if isinstance(each, ast.ClassDef) and each.name == client]
    return {
        each.name: ast.unparse(each) for each in found.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_names_that_differ_only_in_camel_case_are_told_apart() -> None:
    found = methods(ODD, "OddClient")

    assert {"create_xray_as_hide", "create_xray_as_seek"} <= set(found)
    assert set(found) == set(methods(ODD, "AsyncOddClient"))


def test_a_method_has_the_handlers_parameters_and_says_what_it_does() -> None:
    place = methods(ODD, "AsyncOddClient")["create_trees"].splitlines()

    assert place[0] == (
        "async def create_trees(self, body: types.PlantRequest, *, x_tenant: str, if_match: list[str] | None=None, "
        "timeout_s: float | None=None) -> types.PlantResponse:"
    )
    assert ast.literal_eval(place[1].strip()) == 'Say "hi"'
    assert [line.strip() for line in place[2:]] == [
        "answer: types.PlantResponse = await self._call('POST', '/trees', "
        "headers={'x-tenant': x_tenant, 'if-match': if_match}, body=body, timeout_s=timeout_s)",
        "return answer",
    ]


def test_arguments_never_hide_what_a_method_needs() -> None:
    found = methods(ODD, "OddClient")

    assert (
        "(self, self_: str | int, body_: str | int, class_: str | int, body: types.GraftRequest=None, *"
        in (found["update_trees"])
    )
    assert "f'/trees/{_segment(self_)}/{_segment(body_)}/{_segment(class_)}'" in found["update_trees"]
    assert "'types': types_, 'cast': cast, 'body': body_, 'answer': answer_" in found["get_trees"]


def test_what_is_no_parameter_of_a_path_is_written_as_in_urls() -> None:
    assert "f'/%C3%BC/a%20b/%2561/{_segment(x)}'" in methods(ODD, "OddClient")["get_nabn61"]


@pytest.mark.parametrize(
    ("method", "request_type", "has_body"),
    [
        ("POST", None, True),
        ("DELETE", None, False),
        ("DELETE", Tree, True),
        ("GET", None, False),
        ("GET", Tree, True),  # the handler cannot do without
        ("GET", Tree | None, False),
    ],
)
def test_a_method_takes_a_body_where_the_handler_may_read_one(method: str, request_type: Any, has_body: bool) -> None:
    types = {} if request_type is None else {"request": request_type}

    (text,) = methods(api(operation("h", [method], "/h", **types)), "ShopClient").values()

    assert ("body=body" in text) == has_body


def test_an_answer_to_head_has_no_body() -> None:
    assert "-> None:" in methods(ODD, "OddClient")["call_trees"]


def test_websockets_are_left_out_and_that_is_said() -> None:
    text = python_client(ODD)["client.py"]

    assert "\n# /live   (live) is a WebSocket: use a library for those.\n" in text
    assert not any("live" in name for name in methods(ODD, "OddClient"))


# -- types ---------------------------------------------------------------------------------------------


def declared(api: Api) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "types"}
    exec(compile(python_client(api)["types.py"], "types.py", "exec"), names)
    return names


def test_any_name_can_be_a_field() -> None:
    found = declared(ODD)

    assert set(found["Odd"].__annotations__) == {"class", "a b", "😀", '"\\\n', "__x"}
    assert set(found["Hiding"].__annotations__) == {"str", "list", "Hiding"}
    assert found["OddNone"].__annotations__.keys() == {"Any", "Literal"}


def test_descriptions_become_docstrings() -> None:
    assert declared(ODD)["Tree"].__doc__ == 'Any tree; says "so".'


@pytest.mark.parametrize(
    ("values", "annotation"),
    [
        (["a", 1, True, "a"], 'Literal["a", 1, True]'),
        ([None, "a"], 'Literal["a"] | None'),
        ([1, 2.5], "Literal[1] | float"),
        ([1, 1.0], "Literal[1] | float"),
        ([2**70], "int"),
        ([2**70, 0.5], "float"),
        (["] | None", "it's", '"'], """Literal["] | None", "it's", '"']"""),
        (["😀", "\ud800"], 'Literal["😀", "\\ud800"]'),
        ([], "Never"),
    ],
)
def test_choices_are_literals_where_python_has_them(values: list[Any], annotation: str) -> None:
    assert str(choices(values)) == annotation


def test_a_union_that_is_a_member_of_itself_says_nothing() -> None:
    text = Primitive(primitive_type="string")
    circle = UnionOf(types=[Ref(ref="B"), text])
    document = Document(
        root=ObjectOf(properties={"a": Ref(ref="A")}),
        definitions={"A": circle, "B": UnionOf(types=[text, Ref(ref="A", nullable=True)])},
    )
    manifest = HandlerManifest(id="h", methods=["GET"], path="/", mode="at_most_once")

    found = declared(api(Operation(manifest=manifest, response=document)))

    assert (found["A"], found["B"]) == ("Any", "Any")


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        (NeverOf(), "Any"),
        (UnionOf(types=[Ref(ref="Nothing"), Enumeration(values=[])]), "Any"),
        (NeverOf(nullable=True), "types.HResponse"),
        (UnionOf(types=[NeverOf(), Primitive(primitive_type="string")]), "types.HResponse"),
    ],
)
def test_an_answer_that_cannot_be_is_no_type_of_a_function(schema: Any, answer: str) -> None:
    manifest = HandlerManifest(id="h", methods=["GET"], path="/", mode="at_most_once")
    document = Document(root=schema, definitions={"Nothing": NeverOf()})

    text = python_client(api(Operation(manifest=manifest, response=document)))["client.py"]

    assert re.findall(r"def get_root\(.*\) -> (.*):", text) == [answer, answer]


# -- text ----------------------------------------------------------------------------------------------

texts = st.text() | st.text(alphabet="\"'\\\n #a") | st.text(st.characters(categories=["Cf", "Cc", "Zl"]))


@settings(max_examples=300, deadline=None)
@given(text=texts)
@example(text='"')
@example(text='\\"""')
def test_literals_and_docstrings_are_read_as_what_they_were_made_from(text: str) -> None:
    assert ast.literal_eval(literal(text)) == text
    said = ast.literal_eval(docstring(text))
    assert said.isprintable()
    if text.isprintable():
        assert said == " ".join(text.split())


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_whatever_an_author_writes_the_client_is_the_same_but_for_what_it_says(text: str) -> None:
    def tree(said: str) -> list[str]:
        plain = Primitive(primitive_type="integer", description=said)
        root = ObjectOf(properties={"x": plain}, description=said)
        document = Document(root=Ref(ref="A"), definitions={"A": root, "B": plain})
        manifest = HandlerManifest(id="h", methods=["GET"], path="/", mode="at_most_once", summary=said)
        files = python_client(api(Operation(manifest=manifest, response=document)), source=said)
        return [ast.dump(without_docstrings(ast.parse(each.encode()))) for each in files.values()]

    assert tree(text) == tree("said")


def without_docstrings(module: ast.Module) -> ast.Module:
    for node in ast.walk(module):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not isinstance(each, ast.Expr) or not _is_text(each)]  # type: ignore[attr-defined]
    return module


def _is_text(node: ast.Expr) -> bool:
    return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@pytest.mark.parametrize("text", ["type: ignore", "mypy: ignore-errors", "noqa", "a # noqa", "fmt: off"])
def test_comments_give_tools_no_instructions(text: str) -> None:
    assert re.match(r"#: [^#]+$", comment(text))
