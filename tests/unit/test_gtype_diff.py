"""The rules of compatibility, one by one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_core.gtype import (
    ANY,
    Document,
    GType,
    LiteralOf,
    ObjectOf,
    Primitive,
    Ref,
    Validator,
)
from gati_core.gtype.diff import (
    HandlerTypes,
    apply_changes,
    check_use,
    diff_documents,
    diff_handlers,
    is_assignable,
    render,
    value_diff,
)
from tests.helpers.diff_rules import INTEGER, NULLABLE, NUMBER, RULES, TEXT, B, N, choices, fields, limited, union


def found(old: GType, new: GType, side: Any) -> list[tuple[str, str, str]]:
    changes = diff_documents(Document(root=old), Document(root=new), side)
    return [(change.type, change.operation, change.path) for change in changes]


@pytest.mark.parametrize(
    ("old", "new", "operation", "path", "request_side", "response_side"),
    [rule[1:] for rule in RULES],
    ids=[rule[0] for rule in RULES],
)
def test_a_change_means_what_the_table_says(
    old: GType, new: GType, operation: str, path: str, request_side: str, response_side: str
) -> None:
    assert found(old, new, "request") == [(request_side, operation, f"/request/body{path}")]
    assert found(old, new, "response") == [(response_side, operation, f"/response/body{path}")]
    assert found(old, old, "request") == found(new, new, "response") == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (TEXT, Primitive(primitive_type="string", description="another", metadata={"title": "T"})),
        (
            limited(("min", 0), kind="integer"),
            Primitive(primitive_type="integer", validators=[Validator("min", 0, "no")]),
        ),
        (choices("a", "b"), choices("b", "a")),
        (union(TEXT, INTEGER), union(INTEGER, TEXT)),
        (LiteralOf(value="a"), choices("a")),
    ],
)
def test_what_is_only_said_in_other_words_is_no_change(old: GType, new: GType) -> None:
    assert found(old, new, "request") == found(old, new, "response") == []


def test_defaults_count_where_clients_leave_fields_out() -> None:
    old = fields(a=Primitive(primitive_type="string", default="x"))
    new = fields(a=Primitive(primitive_type="string", default="y"))
    required = fields("a", a=Primitive(primitive_type="string", default="x"))

    assert found(old, new, "request") == [(N, "modify", "/request/body/a")]
    assert found(old, new, "response") == []
    assert found(fields(), required, "request") == [(N, "add", "/request/body/a")]


def test_recursive_types_are_compared_once() -> None:
    def tree(value: GType) -> Document:
        node = ObjectOf(properties={"value": value, "next": Ref(ref="Node", nullable=True)}, required=["value"])
        return Document(root=Ref(ref="Node"), definitions={"Node": node})

    changes = diff_documents(tree(TEXT), tree(INTEGER), "request")

    assert [change.path for change in changes] == ["/request/body/value"]
    assert diff_documents(tree(TEXT), tree(TEXT), "response") == []
    assert is_assignable(tree(INTEGER), tree(NUMBER))
    assert not is_assignable(tree(NUMBER), tree(INTEGER))


def test_flags_of_references_count_as_those_of_their_targets() -> None:
    names: dict[str, GType] = {"Name": TEXT}
    plain, nullable = (Document(root=Ref(ref="Name", nullable=flag), definitions=names) for flag in (False, True))

    assert [each.type for each in diff_documents(plain, nullable, "response")] == [B]
    assert diff_documents(plain, Document(root=TEXT), "request") == []


# -- handlers ------------------------------------------------------------------------------------


def _handler(**areas: GType) -> HandlerTypes:
    return HandlerTypes(**{area: Document(root=schema) for area, schema in areas.items()})  # type: ignore[arg-type]


def test_a_handler_is_compared_on_both_sides_in_all_its_areas() -> None:
    old = _handler(request=fields(a=TEXT), response=fields("b", b=TEXT), query=fields(), params=fields("id", id=TEXT))
    new = _handler(
        request=fields(a=INTEGER), response=fields(), query=fields("q", q=TEXT), params=fields("id", id=INTEGER)
    )

    diff = diff_handlers(old, new)

    assert [(change.path, change.operation) for change in diff.breaking] == [
        ("/request/params/id", "modify"),
        ("/request/query/q", "add"),
        ("/request/body/a", "modify"),
        ("/response/body/b", "remove"),
    ]
    assert (diff.summary, diff.requires_transformer) == ("4 breaking changes", True)
    assert diff_handlers(old, new) is diff
    assert diff.hash == ":".join(reversed(diff_handlers(new, old).hash.split(":")))


def test_what_is_not_declared_takes_everything() -> None:
    typed, untyped = _handler(request=TEXT), HandlerTypes()

    assert diff_handlers(untyped, typed).requires_transformer
    assert diff_handlers(typed, untyped).summary == "1 non-breaking change"
    assert diff_handlers(untyped, HandlerTypes()).summary == "No changes detected"
    assert diff_handlers(HandlerTypes(request=ANY), untyped).summary == "No changes detected"


def test_other_status_codes_break() -> None:
    (change,) = diff_handlers(HandlerTypes(statuses=(200,)), HandlerTypes(statuses=(201, 200))).breaking

    assert (change.path, change.old, change.new) == ("/response/status", (200,), (200, 201))


def test_the_report_reads_well_and_is_coloured_only_when_asked() -> None:
    old = _handler(request=fields("price", price=TEXT), response=fields(a=limited(("max_length", 5))))
    new = _handler(request=fields("price", "currency", price=INTEGER, currency=TEXT), response=fields(a=TEXT, b=TEXT))
    diff = diff_handlers(old, new)

    assert render(diff).splitlines() == [
        "breaking:",
        "  + /request/body/currency  required field added: string",
        "  ~ /request/body/price     type changed from string to integer",
        "  ~ /response/body/a        constraint loosened: no limit to its characters, was at most 5 characters",
        "non-breaking:",
        "  + /response/body/b  optional field added: string",
        "3 breaking changes, 1 non-breaking change",
    ]
    assert "\x1b[31m" in render(diff, colour=True)
    assert msgspec.json.decode(msgspec.json.encode(diff), type=type(diff)) == diff


# -- contracts and values ------------------------------------------------------------------------


def test_a_use_of_a_module_is_checked_both_ways() -> None:
    takes, gives = Document(root=fields("sku", sku=TEXT)), Document(root=fields("id", id=TEXT, note=NULLABLE))
    sent = Document(root=fields("sku", "more", sku=LiteralOf(value="a"), more=INTEGER))
    read = Document(root=fields("id", id=TEXT))

    assert check_use(sent=sent, read=read, takes=takes, gives=gives) == []
    wrong = check_use(sent=read, read=Document(root=fields("note", note=TEXT)), takes=takes, gives=gives)
    assert [(change.path, change.description) for change in wrong] == [
        ("/input/sku", "required field added: string"),
        ("/output/note", "may be null now"),
        ("/output/note", "required field became optional"),
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "/", "~"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(old=json_values, new=json_values)
def test_the_changes_of_a_value_lead_from_the_old_to_the_new(old: Any, new: Any) -> None:
    changes = value_diff(old, new)

    assert _text(apply_changes(old, changes)) == _text(new)
    assert (changes == []) == (_text(old) == _text(new))


def _text(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")
