"""The one schema model: what a JSON value may look like, as data.

A `Document` is a root type and the named types that it refers to. Everything else works on it: the
extraction from annotations, the validators, the comparison of versions, JSON Schema, generated code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

DOCUMENT_VERSION = "1.0"
"""Of the documents that this code writes and reads."""

PrimitiveName = Literal["string", "integer", "number", "boolean", "null", "undefined", "bytes"]
ValidatorName = Literal[
    "min",
    "max",
    "exclusive_min",
    "exclusive_max",
    "multiple_of",
    "integer",
    "positive",
    "negative",
    "min_length",
    "max_length",
    "pattern",
    "format",
    "email",
    "url",
    "uuid",
    "enum",
    "custom",
]
Scalar: TypeAlias = "str | int | float | bool | None"


class Validator(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One constraint on a value whose kind has been checked already.

    A validator passes for a value of a kind that it is not about: `min` for a string.
    """

    type: ValidatorName
    value: Any = None
    """The bound, the pattern, the name of the format or custom check, the allowed values; None for
    validators that need none."""
    message: str = ""
    """Shown in place of the usual text."""


class _Common(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    optional: bool = False
    """May be absent. For a property, `required` of its object says the same; either is enough."""
    nullable: bool = False
    """May be null as well."""
    description: str = ""
    default: Any | UnsetType = UNSET
    """What stands for an absent value, as JSON."""
    metadata: dict[str, Any] = {}
    brand: str = ""
    """The meaning of a value (`email`, `user_id`, …); a registered brand brings its own checks."""
    validators: list[Validator] = []
    """Checked in order after the kind, until one fails."""


class Primitive(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="primitive"):
    """`integer` is a number without a fraction, `number` takes integers too, a boolean is neither;
    `bytes` is base64 text; `undefined` is absence itself."""

    primitive_type: PrimitiveName


class LiteralOf(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="literal"):
    """Exactly this value."""

    value: Scalar


class Enumeration(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="enum"):
    """One of these values."""

    values: list[Scalar]
    base_type: Literal["string", "integer", "number", "boolean", "mixed"] = "string"


class ObjectOf(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="object"):
    """A JSON object. Names that `properties` does not know are its additional properties."""

    properties: dict[str, GType] = {}
    required: list[str] = []
    additional_properties: bool | GType = True
    property_names: GType | None = None
    """What the names of additional properties must be, where they are not any text."""
    min_properties: int | None = None
    max_properties: int | None = None


class ArrayOf(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="array"):
    """A list of any length whose items are alike."""

    items: GType
    min_items: int | None = None
    max_items: int | None = None
    unique_items: bool = False


class TupleOf(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="tuple"):
    """A list of exactly these items; trailing `optional` ones may be left out."""

    items: list[GType]


class UnionOf(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="union"):
    """At least one of these."""

    types: list[GType]
    discriminator: str = ""
    """The property whose literal says which member an object is, where there is one."""


class IntersectionOf(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="intersection"):
    """Every one of these."""

    types: list[GType]


class Ref(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="ref"):
    """A named type of the document's definitions."""

    ref: str = msgspec.field(name="$ref")


class AnyOf(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="any"):
    """Everything."""


class UnknownOf(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="unknown"):
    """Everything; who reads it has to look first."""


class NeverOf(_Common, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="never"):
    """Nothing."""


GType: TypeAlias = (
    Primitive
    | LiteralOf
    | Enumeration
    | ObjectOf
    | ArrayOf
    | TupleOf
    | UnionOf
    | IntersectionOf
    | Ref
    | AnyOf
    | UnknownOf
    | NeverOf
)


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A whole type: JSON of this shape is what is stored, published, compared and generated from."""

    version: str = msgspec.field(default=DOCUMENT_VERSION)
    root: GType
    definitions: dict[str, GType] = {}
    metadata: dict[str, Any] = {}
    """`name` and `source` of the type; no part of its identity."""


ANY = Document(root=AnyOf())
"""The type that everything is of."""


def children(schema: GType) -> Iterator[tuple[str, GType]]:
    """The types directly inside, each with a step for messages: `.name`, `[]`, `[0]`, `|1`, `&1`, `{}`, `{name}`."""
    match schema:
        case ObjectOf():
            for name, inner in schema.properties.items():
                yield f".{name}", inner
            if not isinstance(schema.additional_properties, bool):
                yield "{}", schema.additional_properties
            if schema.property_names is not None:
                yield "{name}", schema.property_names
        case ArrayOf():
            yield "[]", schema.items
        case TupleOf():
            for index, inner in enumerate(schema.items):
                yield f"[{index}]", inner
        case UnionOf() | IntersectionOf():
            sign = "|" if isinstance(schema, UnionOf) else "&"
            for index, inner in enumerate(schema.types):
                yield f"{sign}{index}", inner
        case _:
            return


def walk(document: Document) -> Iterator[tuple[str, int, GType]]:
    """Every type of a document once: where it is, how deep, and the type.

    Places read `$.items[]`, or `#Name.items[]` inside a definition; depth counts from there.
    """
    waiting = [("$", 0, document.root), *((f"#{name}", 0, inner) for name, inner in document.definitions.items())]
    while waiting:
        where, depth, schema = waiting.pop()
        yield where, depth, schema
        waiting += [(where + step, depth + 1, inner) for step, inner in children(schema)]


def is_required(schema: ObjectOf, name: str) -> bool:
    """Whether an object must have this property."""
    return name in schema.required and not schema.properties[name].optional
