"""What a type accepts, gathered in one place: references followed, null and constraints collected.

`Ref → Ref → string` with a flag here and a constraint there, `string | null`, `Literal["a"] | Literal["b"]`: each
has one shape, so that the rules need not know in how many ways the same can be said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from msgspec import UNSET, structs

from gati_core.gtype._brands import brand as brand_rule
from gati_core.gtype._brands import is_secret
from gati_core.gtype._interpreter import errors_of
from gati_core.gtype._model import (
    AnyOf,
    ArrayOf,
    Document,
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

Kind: TypeAlias = Literal[
    "string",
    "bytes",
    "integer",
    "number",
    "boolean",
    "choices",
    "object",
    "array",
    "tuple",
    "union",
    "intersection",
    "any",
    "never",
]
_CHOOSABLE = ("string", "bytes", "integer", "number", "boolean", "choices", "any")
_SCALARS = (str, int, float, bool, type(None))


class Shape(NamedTuple):
    """One type without its references."""

    kind: Kind
    """Of the values that are not null; `never` where there are none."""
    node: GType
    """The type behind the references."""
    nullable: bool = False
    validators: tuple[Validator, ...] = ()
    """Of the references on the way too, with those of the brands."""
    values: tuple[Any, ...] = ()
    """Of `choices`, in order; those that constraints rule out are left out."""
    members: tuple[GType, ...] = ()
    """Of `union` and `intersection`. Unions inside unions are opened, null is no member."""
    discriminator: str = ""
    brand: str = ""
    default: Any = UNSET
    is_secret: bool = False


class Shapes:
    """The shapes of the types of one document, each made once."""

    def __init__(self, names: Mapping[str, GType]) -> None:
        self.names = names
        # Types are told apart by identity; each is kept, so that no other can get its number.
        self._known: dict[int, tuple[GType, Shape]] = {}
        self._made: list[GType] = []
        self._begun: set[int] = set()
        self._met_circle = False

    def of(self, schema: GType) -> Shape:
        """The shape of a type of this document."""
        key = id(schema)
        known = self._known.get(key)
        if known is not None:
            return known[1]
        if key in self._begun:
            self._met_circle = True
            return Shape("never", schema)  # a circle of unions adds nothing to what its other members accept
        self._begun.add(key)
        shape = self._shape(schema)
        self._begun.discard(key)
        if not self._begun:
            self._met_circle = False
        if not self._met_circle:  # else it lacks what the circle was cut off from, and holds only inside it
            self._known[key] = (schema, shape)
        return shape

    def _shape(self, schema: GType) -> Shape:
        node = schema
        if isinstance(node, Primitive) and not (node.brand or node.metadata):  # most are so plain
            kind = node.primitive_type
            if kind != "null" and kind != "undefined" and not any(each.type == "enum" for each in node.validators):
                return Shape(kind, node, node.nullable, tuple(node.validators), default=node.default)
        validators: list[Validator] = []
        brand, secret = "", False
        default: Any = UNSET
        nullable = refuses_null = False
        passed: set[str] = set()
        while True:
            nullable = nullable or (node.nullable and not refuses_null)
            if node.validators or node.brand:
                own = validators_of(node)
                validators += own
                refuses_null = refuses_null or any(map(_refuses_null, own))
                brand = brand or node.brand
            default = node.default if default is UNSET else default
            secret = secret or (bool(node.brand or node.metadata) and is_secret(node))
            if isinstance(node, Ref):
                if node.ref in passed:
                    node = NeverOf()
                    break
                passed.add(node.ref)
                node = self.names[node.ref]
            elif isinstance(node, (UnionOf, IntersectionOf)) and len(node.types) == 1:
                node = node.types[0]
            else:
                break
        bare = self._bare(node, tuple(validators))
        if not (nullable or brand or secret) and default is UNSET and not (bare.nullable and refuses_null):
            return bare
        return bare._replace(
            nullable=nullable or (bare.nullable and not refuses_null),
            brand=brand or bare.brand,
            default=bare.default if default is UNSET else default,
            is_secret=secret or bare.is_secret,
        )

    def _bare(self, node: GType, validators: tuple[Validator, ...]) -> Shape:
        """The shape of what is behind the references; `nullable` is whether the kind takes null."""
        shape = Shape("never", node)
        match node:
            case Primitive():
                if node.primitive_type == "null" or node.primitive_type == "undefined":
                    return shape._replace(nullable=node.primitive_type == "null")
                shape = Shape(node.primitive_type, node, False, validators)
            case LiteralOf() | Enumeration():
                values = [node.value] if isinstance(node, LiteralOf) else node.values
                return _choices(node, values, validators, None in values)
            case ObjectOf():
                shape = Shape("object", node, False, validators)
            case ArrayOf():
                shape = Shape("array", node, False, validators)
            case TupleOf():
                shape = Shape("tuple", node, False, validators)
            case UnionOf():
                return self._union(node, validators)
            case IntersectionOf():
                if not node.types:
                    return Shape("any", node, True, validators)
                takes_null = all(self.of(each).nullable for each in node.types)
                return Shape("intersection", node, takes_null, validators, members=tuple(node.types))
            case AnyOf() | UnknownOf():
                shape = Shape("any", node, True, validators)
            case Ref() | NeverOf():
                return shape
        allowed = [each.value for each in validators if each.type == "enum"]
        if allowed and shape.kind in _CHOOSABLE and all(isinstance(each, _SCALARS) for each in allowed[0]):
            return _choices(node, allowed[0], validators, shape.nullable)
        return shape

    def _union(self, node: UnionOf, validators: tuple[Validator, ...]) -> Shape:
        opened: list[GType] = []
        takes_null = False
        for each in node.types:
            takes_null = self._open(each, opened, frozenset()) or takes_null
        shapes = [self.of(each) for each in opened]
        takes_null = takes_null or any(each.nullable for each in shapes)
        if any(each.kind == "any" and not each.validators for each in shapes):
            return Shape("any", node, True, validators)
        members = [each for each, shape in zip(opened, shapes, strict=True) if shape.kind != "never"]
        plain = [each for each in members if (it := self.of(each)).kind == "choices" and not it.validators]
        if len(plain) > 1:
            # Choices beside each other are one choice: `Literal["a"] | Literal["b"]`.
            values = [value for each in plain for value in self.of(each).values]
            members = [each for each in members if not any(each is one for one in plain)]
            members.insert(0, Enumeration(values=values, base_type="mixed"))
            self._made.append(members[0])
        if not members:
            return Shape("never", node, takes_null)
        if len(members) == 1 and not validators:
            return self.of(members[0])._replace(nullable=takes_null)
        return Shape("union", node, takes_null, validators, members=tuple(members), discriminator=node.discriminator)

    def _open(self, schema: GType, opened: list[GType], passed: frozenset[str]) -> bool:
        """The members of a union, and those of unions among them that have no constraints of their own.

        Returns:
            Whether a union that was opened takes null itself.
        """
        node, nullable = schema, schema.nullable
        while isinstance(node, Ref) and not validators_of(node):
            if node.ref in passed:
                return nullable  # the union itself: it adds nothing
            passed |= {node.ref}
            node = self.names[node.ref]
            nullable = nullable or node.nullable
        if not isinstance(node, UnionOf) or validators_of(node):
            opened.append(schema)
            return False
        for each in node.types:
            nullable = self._open(each, opened, passed) or nullable
        return nullable


def required_of(schema: ObjectOf) -> set[str]:
    """The names for which `is_required` holds, to look up many."""
    return {name for name in schema.required if not schema.properties[name].optional}


def validators_of(schema: GType) -> Sequence[Validator]:
    """The constraints of a type, those of its brand included."""
    rule = brand_rule(schema.brand) if schema.brand else None
    if rule is None:
        return schema.validators
    return [*schema.validators, *(each for each in rule.validators if each not in schema.validators)]


def _refuses_null(validator: Validator) -> bool:
    """Whether a constraint that stands outside a nullable type may keep null out."""
    return validator.type == "custom" or (validator.type == "enum" and None not in validator.value)


def _choices(node: GType, values: Sequence[Any], validators: tuple[Validator, ...], takes_null: bool) -> Shape:
    """A shape of values that can be listed: what constraints leave of them. Only checks of others stay constraints."""
    checks = tuple(each for each in validators if each.type == "custom")
    rules = [each for each in validators if each.type != "custom"]
    left = [value for value in dict.fromkeys(map(_Exactly, values)) if value.value is not None]
    if rules:
        plain = structs.replace(node, validators=rules, brand="", metadata={}, nullable=False)
        left = [each for each in left if not errors_of(each.value, Document(root=plain))]
    shape = Shape("choices", node, takes_null, checks, tuple(each.value for each in left))
    return shape if left else Shape("never", node, takes_null)


class _Exactly(NamedTuple):
    """A value that is told apart by its type too: 1, 1.0 and true are three."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Exactly) and type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))
