"""The words of diagnostics: what was expected, and what was there. Interpreter and generated code use the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET

from gati_core.gtype._formats import FORMATS
from gati_core.gtype._model import (
    AnyOf,
    ArrayOf,
    Enumeration,
    GType,
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
)

MAX_ERRORS = 500
"""As many errors of one value are listed; what comes after is not looked for."""
REDACTED = "(not shown)"
NOTHING = "nothing"
"""How an absent value is called."""
_MAX_SHOWN = 60

Step: TypeAlias = "str | int"


class FieldError(NamedTuple):
    """One thing that is wrong with a value."""

    path: tuple[Step, ...]
    """Names and indexes from the root to the place."""
    expected: str
    actual: str
    """What is there, shortened; secrets are not shown."""
    message: str

    @property
    def where(self) -> str:
        """The path as text."""
        return path_text(self.path)


def path_text(path: Sequence[Step]) -> str:
    """`(root)` when empty, else `a.b[0].c`.

    >>> path_text(("lines", 0, "sku"))
    'lines[0].sku'
    """
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") or "(root)"


def shown(value: Any) -> str:
    """A short rendering of a value: `"text"`, `5`, `array[3]`, `object`, `null`, `nothing`."""
    if value is UNSET:
        return NOTHING
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}…"
        return msgspec.json.encode(text.encode("utf-8", "replace").decode()).decode()
    if isinstance(value, int):
        # Turning a number of many thousand digits into text takes long, and Python refuses it.
        return str(value) if value.bit_length() <= 200 else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list):
        return f"array[{len(value)}]"
    return "object" if isinstance(value, dict) else type(value).__name__


def expected(schema: GType, definitions: Mapping[str, GType]) -> str:
    """What a message says a type expects: `string`, `array of 2 items`, `"a" or "b"`, …"""
    text = _expected(schema, definitions, 0)
    return f"{text} or null" if schema.nullable and text != "null" else text


def _expected(schema: GType, definitions: Mapping[str, GType], depth: int) -> str:
    match schema:
        case Primitive():
            if schema.primitive_type == "undefined":
                return NOTHING
            return "base64 text" if schema.primitive_type == "bytes" else schema.primitive_type
        case LiteralOf():
            return shown(schema.value)
        case Enumeration():
            return "one of " + ", ".join(shown(value) for value in schema.values)
        case ObjectOf():
            return "object"
        case ArrayOf():
            return "array"
        case TupleOf():
            least, most = tuple_lengths(schema)
            return f"array of {counted(most, 'item')}" if least == most else f"array of {least} to {most} items"
        case UnionOf() | IntersectionOf():
            if depth > 3:
                return "another type"
            parts = [_expected(each, definitions, depth + 1) for each in schema.types]
            return (" or " if isinstance(schema, UnionOf) else " and ").join(dict.fromkeys(parts))
        case Ref():
            return _expected(definitions[schema.ref], definitions, depth + 1) if depth <= 3 else "another type"
        case AnyOf() | UnknownOf():
            return "anything"
        case NeverOf():
            return "no value at all"


def tuple_lengths(schema: TupleOf) -> tuple[int, int]:
    """The least and the most items that a tuple may have: trailing optional ones may be left out."""
    least = len(schema.items)
    while least and schema.items[least - 1].optional:
        least -= 1
    return least, len(schema.items)


def counted(number: int, noun: str) -> str:
    """`1 item`, `2 items`, `2 properties`."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def rule_text(validator: Validator, *, unit: str = "character") -> str:
    """What a validator expects: `at least 3`, `at most 20 characters`, `text matching ^[a-z]+$`."""
    value = validator.value
    match validator.type:
        case "min":
            return f"at least {value}"
        case "max":
            return f"at most {value}"
        case "exclusive_min":
            return f"more than {value}"
        case "exclusive_max":
            return f"less than {value}"
        case "multiple_of":
            return f"a multiple of {value}"
        case "integer":
            return "a number without a fraction"
        case "positive":
            return "more than 0"
        case "negative":
            return "less than 0"
        case "min_length":
            return f"at least {counted(value, unit)}"
        case "max_length":
            return f"at most {counted(value, unit)}"
        case "pattern":
            return f"text matching {value}"
        case "format":
            return FORMATS[value].expected if value in FORMATS else f"text in format {value}"
        case "email" | "url" | "uuid":
            return FORMATS[validator.type].expected
        case "enum":
            return "one of " + ", ".join(shown(each) for each in value)
        case "custom":
            return f"a value that passes {value!r}"


def failure(path: tuple[Step, ...], expects: str, value: Any, *, secret: bool = False, message: str = "") -> FieldError:
    """The error for a value that is not what was expected."""
    actual = REDACTED if secret and value is not UNSET else shown(value)
    if not message:
        message = "value is required" if value is UNSET else f"expected {expects}, got {actual}"
    return FieldError(path, expects, actual, message)
