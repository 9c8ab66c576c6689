"""Annotations as handlers write them, of every kind that can be expressed, made at random."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import uuid
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
from hypothesis import strategies as st
from msgspec import Meta

from gati_core.gtype import Brand, UniqueItems

_NAMES = st.sampled_from(["id", "name", "i", "value", "class_", "path", "x1", "self_", "errors"])


def _bounded(kind: Any) -> st.SearchStrategy[Any]:
    least = st.none() | st.integers(-5, 5)
    room = st.none() | st.integers(0, 10)
    return st.builds(
        lambda ge, more: (
            Annotated[kind, Meta(ge=ge, le=None if more is None else (ge or 0) + more)]
            if ge is not None or more is not None
            else kind
        ),
        least,
        room,
    )


def _sized(kind: Any) -> Any:
    return st.builds(
        lambda least, more: Annotated[kind, Meta(min_length=least, max_length=least + more)],
        st.integers(0, 3),
        st.integers(0, 5),
    )


scalars: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [str, int, float, bool, bytes, datetime.datetime, datetime.date, datetime.time, uuid.UUID, decimal.Decimal]
    ),
    st.sampled_from(
        [datetime.timedelta, Any, Annotated[str, Brand("email")], Annotated[str, Meta(pattern="^[a-z]+$")]]
    ),
    _bounded(int),
    _bounded(float),
    _sized(str),
    _sized(bytes),
    st.sampled_from([Annotated[int, Meta(multiple_of=3)], Annotated[datetime.datetime, Meta(tz=True)]]),
    st.sampled_from([Literal["a"], Literal["a", "b"], Literal[1, 2, "c"], Literal[1], Literal[None, "x"]]),
    st.sampled_from(
        [enum.Enum("Letters", {"A": "a", "B": "b"}), enum.IntEnum("Numbers", {"ONE": 1, "FIVE": 5})],
    ),
)


@st.composite
def _structs(draw: st.DrawFn, inner: st.SearchStrategy[Any]) -> Any:
    names = draw(st.lists(_NAMES, min_size=1, max_size=4, unique=True))
    fields: list[Any] = []
    for name in names:
        kind = draw(inner)
        is_optional = draw(st.booleans())
        fields.append((name, kind | None, None) if is_optional and not isinstance(kind, str) else (name, kind))
    fields.sort(key=len)
    shape = draw(st.sampled_from(["struct", "struct", "strict", "renamed", "dataclass", "typeddict", "namedtuple"]))
    if shape == "dataclass":
        return dataclasses.make_dataclass("Record", fields)
    if shape == "typeddict":
        return TypedDict("Record", {field[0]: field[1] for field in fields})  # type: ignore[operator]  # made at run time
    if shape == "namedtuple":
        return NamedTuple("Record", [field[:2] for field in fields])  # made at run time
    options: dict[str, Any] = {
        "forbid_unknown_fields": shape == "strict",
        "rename": "camel" if shape == "renamed" else None,
    }
    return msgspec.defstruct("Record", fields, **options)


def _collections(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda kind: list[kind]),  # type: ignore[valid-type]  # made at run time
        inner.map(lambda kind: Annotated[list[kind], UniqueItems]),  # type: ignore[valid-type]
        inner.map(lambda kind: Annotated[list[kind], Meta(min_length=1, max_length=3)]),  # type: ignore[valid-type]
        inner.map(lambda kind: dict[str, kind]),  # type: ignore[valid-type]
        inner.map(lambda kind: tuple[int, kind]),  # type: ignore[valid-type]
        inner.map(lambda kind: kind | None),
        _structs(inner),
    )


@st.composite
def _tagged_unions(draw: st.DrawFn) -> Any:
    members = [
        msgspec.defstruct(
            f"Member{number}", [("value", draw(scalars))], tag=draw(st.sampled_from(["", "m"])) + str(number)
        )
        for number in range(draw(st.integers(2, 3)))
    ]
    union: Any = members[0]
    for member in members[1:]:
        union = union | member
    return union


_SIMPLE_UNIONS = st.sampled_from([int | str, int | float, bool | str | None, list[int] | int, dict[str, int] | str])
declared_types = st.recursive(scalars | _SIMPLE_UNIONS | _tagged_unions(), _collections, max_leaves=6)
