"""P5 and P38: generated clients, for any types and any sets of handlers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gati_core.codegen import Api, Operation, python_client
from gati_core.gtype import Document, NeverOf, Ref, UnionOf
from gati_core.manifests import METHODS, HandlerManifest
from gati_testing.gtypes import documents, wild_documents

AREAS = ("request", "response", "params", "query", "headers")
Types = dict[str, Document]


# -- P5: what is generated compiles --------------------------------------------------------------------


@pytest.mark.prop(5)
def test_clients_for_any_types_pass_the_type_checker_and_the_linter(tmp_path: Path) -> None:
    """P5 (R1.5). One run of each tool looks at all of them: starting it takes longer than the work."""
    operations: list[Operation] = []

    @settings(max_examples=120, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        types=st.dictionaries(st.sampled_from(AREAS), documents() | wild_documents(), min_size=1, max_size=3),
        method=st.sampled_from(METHODS),
    )
    @example(types={"response": Document(root=NeverOf())}, method="GET")
    @example(
        types={"response": Document(root=Ref(ref="A"), definitions={"A": UnionOf(types=[NeverOf()])})}, method="GET"
    )
    def collect(types: Types, method: Any) -> None:
        number = len(operations)
        manifest = HandlerManifest(id=f"h{number}", methods=[method], path=f"/h{number}/{{a}}", mode="at_most_once")
        operations.append(Operation(manifest=manifest, **types))

    collect()
    assert len(operations) >= 100
    package = tmp_path / "some_client"
    package.mkdir()
    for name, text in python_client(Api(name="some", operations=operations)).items():
        (package / name).write_text(text, encoding="utf-8")

    assert _said(tmp_path, "mypy", "--strict", "--no-incremental") == ""
    assert _said(tmp_path, "ruff", "check", "--isolated", "--no-cache") == ""


def _said(directory: Path, tool: str, *arguments: str) -> str:
    command = [sys.executable, "-m", tool, *arguments, "."]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr if done.returncode else ""


# -- P38: a typed method per handler -------------------------------------------------------------------

_ids = st.sampled_from(["show", "Show", "show-it", "show_it", "showIt", "a-b", "aB", "AB", "x1", "class"])
_parts = st.sampled_from(
    ["a", "b", "AB", "a-b", "ab", "aB", "v1", "ü", "a b", "%41", "{id}", "{ID}", "{self}", "{a_b}"]
)


@st.composite
def manifests(draw: st.DrawFn) -> list[HandlerManifest]:
    """Handlers of one package: ids are unique, and so is a method on a path; spellings are nearly alike."""
    found: list[HandlerManifest] = []
    served: set[tuple[str, str]] = set()
    for id in draw(st.lists(_ids, min_size=1, max_size=8, unique=True)):
        path = "/" + "/".join(draw(st.lists(_parts, max_size=3, unique=True)))
        methods = draw(st.lists(st.sampled_from([*METHODS, "WEBSOCKET"]), min_size=1, max_size=3, unique=True))
        free = [method for method in methods if (method, _template(path)) not in served]
        served |= {(method, _template(path)) for method in free}
        if free:
            found.append(HandlerManifest(id=id, methods=free, path=path, mode="at_most_once"))
    return found


def _template(path: str) -> str:
    return "/".join("{}" if part.startswith("{") else part for part in path.split("/"))


@pytest.mark.prop(38)
@settings(max_examples=200, deadline=None)
@given(handlers=manifests())
def test_a_client_has_a_typed_method_for_every_handler_and_http_method(handlers: list[HandlerManifest]) -> None:
    """P38 (R11.3)."""
    wanted = sorted(
        (method, _template(manifest.path))
        for manifest in handlers
        for method in manifest.methods
        if method != "WEBSOCKET"
    )
    api = Api(name="shop", operations=[Operation(manifest=manifest) for manifest in handlers])

    files = python_client(api)

    for client, kind in (("ShopClient", ast.FunctionDef), ("AsyncShopClient", ast.AsyncFunctionDef)):
        (found,) = (
            each
            for each in ast.parse(files["client.py"]).body
            if isinstance(each, ast.ClassDef) and each.name == client
        )
        methods = [each for each in found.body if isinstance(each, kind)]
        assert len({each.name for each in methods}) == len(methods)
        assert sorted(map(_call, methods)) == wanted
        assert all(map(_is_typed, methods))
    assert files == python_client(api)


def _call(method: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, str]:
    """The HTTP method and the path that a method of the client calls."""
    (call,) = (
        node
        for node in ast.walk(method)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_call"
    )
    verb, path = call.args[:2]
    assert isinstance(verb, ast.Constant)
    parts = path.values if isinstance(path, ast.JoinedStr) else [path]
    text = "".join(unquote(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
    return verb.value, text


def _is_typed(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = [*method.args.args[1:], *method.args.kwonlyargs]
    return method.returns is not None and all(each.annotation is not None for each in arguments)


# -- what it says is the same whoever asks, and in whatever order types are written ---------------------


@settings(max_examples=100, deadline=None)
@given(types=st.dictionaries(st.sampled_from(AREAS), documents(), min_size=1))
def test_the_order_in_which_types_are_defined_makes_no_difference(types: Types) -> None:
    manifest = HandlerManifest(id="h", methods=["POST"], path="/", mode="at_most_once")
    turned = {
        area: Document(root=each.root, definitions=dict(reversed(each.definitions.items())), metadata=each.metadata)
        for area, each in types.items()
    }

    first = python_client(Api(name="shop", operations=[Operation(manifest=manifest, **types)]))

    assert python_client(Api(name="shop", operations=[Operation(manifest=manifest, **turned)])) == first
