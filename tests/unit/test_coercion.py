"""From text to values: the rules for paths, queries and headers."""

from __future__ import annotations

import datetime
import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gati_core.gtype import Brand, Coercion, extract


class Colour(enum.Enum):
    RED = "1"
    BLUE = "blue"


def coerced(annotation: Any, *texts: str) -> Any:
    """What the texts become in a field of this type."""
    fields = msgspec.defstruct("Fields", [("field", annotation)])
    return Coercion(extract(fields).document).values({"field": texts})["field"]


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (str, "5", "5"),
        (str, "", ""),
        (str | None, "null", "null"),
        (str | None, "", ""),
        (int, "5", 5),
        (int, "-5", -5),
        (int, "007", 7),
        (int, "5.0", "5.0"),
        (int, "+5", "+5"),
        (int, " 5", " 5"),
        (int, "5_000", "5_000"),
        (int, "٥", "٥"),
        (int, "", ""),
        (int, "9" * 1000, int("9" * 1000)),
        (int, "9" * 1001, "9" * 1001),
        (float, "5", 5),
        (float, "5.25", 5.25),
        (float, "+.5e3", 500.0),
        (float, "nan", "nan"),
        (float, "inf", "inf"),
        (bool, "true", True),
        (bool, "FALSE", False),
        (bool, "1", True),
        (bool, "0", False),
        (bool, "yes", "yes"),
        (bool, "", ""),
        (int | None, "null", None),
        (int | None, "", None),
        (int | None, "5", 5),
        (int | str, "5", "5"),
        (int | str, "x", "x"),
        (bool | int, "1", 1),
        (bool | int, "true", True),
        (Any, "5", "5"),
        (Literal[1, 2], "2", 2),
        (Literal["1", "2"], "2", "2"),
        (Colour, "1", "1"),
        (datetime.date, "2026-01-31", "2026-01-31"),
        (Annotated[int, Brand("port")], "8080", 8080),
        (dict[str, int], "5", "5"),
    ],
)
def test_one_text_becomes_what_the_type_asks_for_or_stays_text(annotation: Any, text: str, value: Any) -> None:
    found = coerced(annotation, text)

    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("annotation", "texts", "value"),
    [
        (list[int], ["1"], [1]),
        (list[int], ["1", "2", "x"], [1, 2, "x"]),
        (list[str], ["1", "null"], ["1", "null"]),
        (list[int] | None, ["1", "2"], [1, 2]),
        (set[bool], ["true", "0"], [True, False]),
        (tuple[int, bool], ["1", "true"], [1, True]),
        (int, ["1", "2"], ["1", "2"]),
        (str, ["a", "b"], ["a", "b"]),
    ],
)
def test_repeated_keys_are_lists(annotation: Any, texts: list[str], value: Any) -> None:
    assert coerced(annotation, *texts) == value


def test_fields_that_nobody_declared_stay_text() -> None:
    coercion = Coercion(extract(msgspec.defstruct("Fields", [("a", int)])).document)

    assert coercion.values({"a": ["1"], "b": ["1"], "c": ["1", "2"]}) == {"a": 1, "b": "1", "c": ["1", "2"]}
    assert coercion.names == ["a"]


def test_maps_coerce_all_their_values() -> None:
    assert Coercion(extract(dict[str, int]).document).values({"a": ["1"], "b": ["x"]}) == {"a": 1, "b": "x"}


@given(value=st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans())
def test_what_a_client_writes_for_a_value_is_read_as_that_value(value: float) -> None:
    text = msgspec.json.encode(value).decode() if isinstance(value, (bool, float)) else str(value)

    assert coerced(type(value), text) == value
