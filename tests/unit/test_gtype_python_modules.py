"""Generated validator modules: that they stand alone, say where they come from, and are fit to be read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_core.errors import MalformedGType, RegistrationError
from gati_core.gtype import (
    AnyOf,
    ArrayOf,
    Document,
    Enumeration,
    IntersectionOf,
    LiteralOf,
    NeverOf,
    ObjectOf,
    Primitive,
    Ref,
    TupleOf,
    UnionOf,
    UnknownOf,
    Validator,
    compile_validator,
    errors_of,
    register_check,
    shown,
)
from gati_core.gtype._python import python_module
from gati_core.gtype._python_text import literal, quoted, raw
from gati_testing import gtypes

TEXT = Primitive(primitive_type="string")
INTEGER = Primitive(primitive_type="integer")
NUMBER = Primitive(primitive_type="number")

register_check("test_gtype_python_modules.even", lambda value: len(value) % 2 == 0)


def text(*validators: Validator, **flags: Any) -> Primitive:
    return Primitive(primitive_type="string", validators=list(validators), **flags)


def loaded(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "generated"}
    exec(compile(source, "generated.py", "exec"), names)
    return names


LINE = ObjectOf(
    properties={
        "sku": text(Validator("max_length", 40), Validator("pattern", r"^[a-z0-9-]+$")),
        "quantity": Primitive(primitive_type="integer", validators=[Validator("min", 1), Validator("max", 1000)]),
        "price": Primitive(primitive_type="number", validators=[Validator("min", 0), Validator("multiple_of", 0.5)]),
    },
    required=["sku", "quantity"],
    additional_properties=False,
)
ORDER = Document(
    root=Ref(ref="Order"),
    definitions={
        "Order": ObjectOf(
            properties={
                "id": text(Validator("min_length", 1, message='the "id"\nis needed')),
                "lines": ArrayOf(items=Ref(ref="Line"), min_items=1, max_items=50, unique_items=True),
                "note": text(nullable=True),
                "day": text(Validator("format", "date")),
                "mail": text(brand="email", nullable=True),
                "password": text(brand="password"),
                "photo": Primitive(primitive_type="bytes", validators=[Validator("max_length", 6)]),
                "kind": Enumeration(values=["web", "shop", "phone", "fax", "mail", 1, 1.0, True, None]),
                "payment": UnionOf(types=[Ref(ref="Card"), Ref(ref="Cash")], discriminator="by"),
                "place": TupleOf(items=[NUMBER, NUMBER, Primitive(primitive_type="string", optional=True)]),
                "either": UnionOf(types=[TEXT, ArrayOf(items=INTEGER), LiteralOf(value=False)]),
                "both": IntersectionOf(types=[ObjectOf(properties={"a": INTEGER}), ObjectOf(properties={"b": TEXT})]),
                "labels": ObjectOf(
                    additional_properties=text(Validator("custom", "test_gtype_python_modules.even")),
                    property_names=text(Validator("pattern", "^[a-z]+$")),
                    max_properties=5,
                ),
                "extra": AnyOf(),
                "gone": Primitive(primitive_type="undefined"),
                "nothing": NeverOf(),
                "unknown": UnknownOf(validators=[Validator("enum", [[1], {"a": None}, "x"])]),
                "tree": Ref(ref="Tree", nullable=True),
                'say "it\'s"\n': LiteralOf(value="\\'\""),
            },
            required=["id", "lines", "kind", "payment", "extra"],
        ),
        "Line": LINE,
        "Card": ObjectOf(
            properties={"by": LiteralOf(value="card"), "digits": text(Validator("min_length", 12), brand="secret")},
            required=["by", "digits"],
        ),
        "Cash": ObjectOf(properties={"by": LiteralOf(value="cash")}, required=["by"]),
        "Tree": UnionOf(
            types=[
                ObjectOf(properties={"left": Ref(ref="Tree"), "right": Ref(ref="Tree")}, required=["left"]),
                ObjectOf(properties={"left": Ref(ref="Tree"), "leaf": INTEGER}, required=["left"]),
                INTEGER,
            ]
        ),
    },
    metadata={"name": "Order"},
)
"""A type with something of everything."""
NODE = Document(
    root=Ref(ref="Node"),
    definitions={"Node": ObjectOf(properties={"next": Ref(ref="Node", nullable=True), "v": INTEGER}, required=["v"])},
)
GOOD: dict[str, Any] = {
    "id": "o-1",
    "lines": [{"sku": "ada", "quantity": 2, "price": 9.5}, {"sku": "bob", "quantity": 1}],
    "kind": "web",
    "payment": {"by": "card", "digits": "123456789012"},
    "extra": None,
    "tree": {"left": {"left": 1, "right": 2}, "leaf": 3},
}


def test_every_error_is_listed_in_the_order_of_the_type() -> None:
    value = {
        **GOOD,
        "id": "",
        "lines": [{"sku": "Ada", "quantity": 0}, {"sku": 1, "price": 0.3, "x": 2}, {"sku": 1, "price": 0.3, "x": 2}],
        "kind": 2,
        "mail": "nobody",
        "labels": {"ab": "x", "Q": "xy"},
        "both": {"a": "x", "b": 1},
    }

    found = compile_validator(ORDER).errors(value)

    assert found == errors_of(value, ORDER)
    assert [error.where for error in found] == [
        "id", "lines[0].sku", "lines[0].quantity", "lines[1].sku", "lines[1].quantity", "lines[1].price", "lines[1].x",
        "lines[2].sku", "lines[2].quantity", "lines[2].price", "lines[2].x", "lines[2]", "mail", "kind", "both.a",
        "both.b", "labels.ab", "labels.Q",
    ]  # fmt: skip


def test_a_module_is_given_its_checks_by_its_user() -> None:
    names = loaded(python_module({"Isbn": Document(root=text(Validator("custom", "isbn")))}))

    with pytest.raises(KeyError, match="no check 'isbn': set CHECKS"):
        names["is_Isbn"]("x")

    names["CHECKS"]["isbn"] = lambda value: value == "978"
    assert (names["is_Isbn"]("978"), names["is_Isbn"]("x")) == (True, False)
    assert names["is_Isbn"](5) is False


def test_a_module_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "validators.py").write_text(python_module({"Order": ORDER, "Node": NODE}), encoding="utf-8")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from validators import CHECKS, UNSET, is_Node, is_Order, validate_Order\n"
        "CHECKS['test_gtype_python_modules.even'] = lambda text: len(text) % 2 == 0\n"
        f"print(is_Order({GOOD!r}), is_Node({{'v': 1}}), is_Order(UNSET))\n"
        "print([(error.where, error.message) for error in validate_Order({'id': 5})][:2])"
    )

    ran = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=False)

    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [
        "True True False",
        "[('id', 'expected string, got 5'), ('lines', 'value is required')]",
    ]


def test_a_module_passes_the_type_checker_the_linter_and_the_formatter(tmp_path: Path) -> None:
    path = tmp_path / "validators.py"
    path.write_text(python_module({"Order": ORDER, "Node": NODE}, source="shop"), encoding="utf-8")
    commands = [
        ["mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}/cache", str(path)],
        ["ruff", "check", "--isolated", "--target-version=py311", str(path)],
        ["ruff", "format", "--isolated", "--line-length=120", "--diff", str(path)],
    ]

    for command in commands:
        ran = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert (ran.returncode, command) == (0, command), ran.stdout + ran.stderr


def test_equal_documents_make_equal_modules() -> None:
    one = python_module({"Order": ORDER, "Node": NODE}, source="shop")

    assert python_module({"Node": NODE, "Order": ORDER}, source="shop") == one


def test_the_header_says_where_a_module_comes_from() -> None:
    lines = python_module({"Node": NODE}, source="shop.app\nimport os").splitlines()

    assert lines[0].startswith("# Generated by gati-core ")
    assert lines[0].endswith(" from shop.app import os.")
    assert "Do not edit" in lines[1]


def test_words_of_a_type_import_nothing() -> None:
    words = ["date", "json.", "re.", "fmod", "Callable", "CHECKS"]
    module = python_module({"It": Document(root=ObjectOf(properties=dict.fromkeys(words, INTEGER)))})

    imports = [line for line in module.splitlines() if line.startswith(("import", "from"))]
    assert imports == [
        "from __future__ import annotations",
        "import enum",
        "import json",
        "from collections.abc import Sequence",
        "from typing import Any, NamedTuple, TypeAlias",
    ]


@pytest.mark.parametrize("name", ["a\0b", "\ud800", 5])
def test_the_name_of_a_type_may_be_anything(name: Any) -> None:
    assert compile_validator(Document(root=LiteralOf(value=repr(name)), metadata={"name": name})).accepts(repr(name))


@pytest.mark.parametrize("name", ["", "a-b", "a b", "x\n", "ä", "a.b"])
def test_a_name_that_cannot_be_part_of_a_python_name_is_refused(name: str) -> None:
    with pytest.raises(RegistrationError, match="cannot be part of a Python name"):
        python_module({name: NODE})


def test_nothing_that_a_document_says_becomes_code() -> None:
    evil = 'x"\n"""\nraise SystemExit  # \\'
    schema = ObjectOf(
        properties={
            evil: text(Validator("enum", [evil, {evil: [evil]}], message=evil), default=evil, description=evil)
        },
        required=[evil],
        additional_properties=Ref(ref=evil),
        property_names=text(Validator("pattern", 'x"\n|"""|')),
    )
    document = Document(
        root=UnionOf(types=[schema, LiteralOf(value=evil)], discriminator=evil),
        definitions={evil: LiteralOf(value=evil)},
        metadata={"name": evil},
    )

    names = loaded(python_module({"Evil": document}, source=evil))

    assert names["is_Evil"]({evil: evil}) is True
    assert compile_validator(document).errors({evil: "y"}) == errors_of({evil: "y"}, document)
    assert [tuple(error) for error in names["validate_Evil"]({evil: "y"})] == errors_of({evil: "y"}, document)


@given(st.text() | st.text("'\"\\\n\ud800a", max_size=8))
def test_literals_of_text_read_back_as_what_they_were(value: str) -> None:
    assert ast.literal_eval(quoted(value)) == value
    assert ast.literal_eval(raw(value)) == value


@given(gtypes.json_values())
def test_literals_of_values_read_back_as_what_they_were(value: Any) -> None:
    try:
        code = literal(value)
    except MalformedGType:
        code = ""

    has_literal = "inf" not in repr(value) and "nan" not in repr(value)
    assert bool(code) is has_literal
    assert not code or _typed(ast.literal_eval(code)) == _typed(value)


def _typed(value: Any) -> Any:
    """The value, with `1`, `1.0` and `True` told apart."""
    if isinstance(value, dict):
        return {name: _typed(each) for name, each in value.items()}
    return [_typed(each) for each in value] if isinstance(value, list) else (type(value), value)


@given(gtypes.json_values())
def test_values_are_shown_alike_by_modules_that_stand_alone(value: Any) -> None:
    names = _node_module()

    assert names["_shown"](value) == shown(value)


_NODE_MODULE: dict[str, Any] = {}


def _node_module() -> dict[str, Any]:
    if not _NODE_MODULE:
        _NODE_MODULE.update(loaded(python_module({"Node": NODE})))
    return _NODE_MODULE
