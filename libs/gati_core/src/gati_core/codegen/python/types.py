"""Declarations: TypedDicts and aliases, as JSON has them."""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Callable, Iterable

from gati_core.codegen._names import pascal
from gati_core.codegen._types import NamedType, TypeRegistry
from gati_core.codegen.python._annotations import (
    Annotation,
    choices,
    comment,
    docstring,
    literal,
    names_in,
    union,
)
from gati_core.gtype import (
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
    is_required,
)

TYPING = ("Any", "Literal", "Never", "NotRequired", "TypeAlias", "TypedDict")
TAKEN = (*TYPING, *(name for name in dir(builtins) if name[0].isupper()))
"""Names that no declaration may have: `None` is a type's name as good as any, elsewhere."""
_PRIMITIVES = {
    "string": "str",
    "integer": "int",
    "number": "float",
    "boolean": "bool",
    "null": "None",
    "undefined": "None",
    "bytes": "str",
}
_Names = Callable[[str], str]


class Declarations:
    """The text of a module of types, as it grows."""

    def __init__(self, registry: TypeRegistry, roots: Iterable[NamedType]) -> None:
        everything = {each.name: each for each in (*registry.types.values(), *roots)}
        self._taken = {*everything, *TAKEN}
        self._parts: dict[str, str] = {}
        self._used: set[str] = set()
        for name in sorted(everything):
            self._declare(everything[name])

    def text(self) -> str:
        """All declarations, by name, after the import that they need."""
        used = sorted(self._used & {*TYPING})
        text = f"from typing import {', '.join(used)}\n" if used else ""
        follows_class = False
        for name in sorted(self._parts):
            is_class = self._parts[name].startswith("class ")
            text += ("\n\n" if is_class or follows_class else "\n") + self._parts[name]
            follows_class = is_class
        return text

    def _declare(self, named: NamedType) -> None:
        schema, name_of = named.schema, named.names.__getitem__
        if isinstance(schema, ObjectOf) and schema.properties and not schema.nullable:
            self._typed_dict(named.name, schema, name_of)
            return
        # Checkers refuse a union with itself as a member, which says nothing anyway.
        is_circle = _is_circle(schema, named.document)
        text = "Any" if is_circle else str(self._annotation(schema, name_of, named.name))
        if text != named.name:
            self._used |= {"TypeAlias", *names_in(text)}
            said = f"{comment(schema.description)}\n" if schema.description.strip() else ""
            self._parts[named.name] = f"{said}{named.name}: TypeAlias = {literal(text)}\n"

    def _typed_dict(self, name: str, schema: ObjectOf, name_of: _Names) -> None:
        self._parts[name] = ""  # its own place, whatever is declared for its fields
        fields: dict[str, str] = {}
        for field, inner in schema.properties.items():
            text = str(self._annotation(inner, name_of, f"{name}{pascal(field)}"))
            fields[field] = text if is_required(schema, field) else f"NotRequired[{text}]"
        used = set().union(*map(names_in, fields.values()))
        self._used |= {"TypedDict", *used}
        # In a class a field that is called like a type would hide it, and some names cannot be written.
        if all(each.isidentifier() and each[:2] != "__" and not keyword.iskeyword(each) for each in fields) and not (
            used & fields.keys()
        ):
            self._parts[name] = _class(name, schema, fields)
        else:
            said = f"{comment(schema.description)}\n" if schema.description.strip() else ""
            body = "".join(f"        {literal(field)}: {literal(text)},\n" for field, text in fields.items())
            self._parts[name] = f'{said}{name} = TypedDict(\n    "{name}",\n    {{\n{body}    }},\n)\n'

    def _annotation(self, schema: GType, name_of: _Names, owner: str) -> Annotation:
        """A type as an annotation; objects inside get declarations named after `owner`."""
        found = self._plain(schema, name_of, owner)
        return union([found, Annotation(("None",))]) if schema.nullable else found

    def _plain(self, schema: GType, name_of: _Names, owner: str) -> Annotation:
        match schema:
            case Primitive():
                return Annotation((_PRIMITIVES[schema.primitive_type],))
            case LiteralOf():
                return choices([schema.value])
            case Enumeration():
                return choices(schema.values)
            case ObjectOf():
                return Annotation((self._object(schema, name_of, owner),))
            case ArrayOf():
                return Annotation((f"list[{self._annotation(schema.items, name_of, f'{owner}Item')}]",))
            case TupleOf():
                return Annotation((f"list[{self._any_of(schema.items, name_of, owner)}]",))
            case UnionOf():
                return self._any_of(schema.types, name_of, owner)
            case Ref():
                return Annotation((name_of(schema.ref),))
            case NeverOf():
                return Annotation(("Never",))
            case AnyOf() | UnknownOf() | IntersectionOf():
                return Annotation(("Any",))

    def _any_of(self, types: list[GType], name_of: _Names, owner: str) -> Annotation:
        return union(self._annotation(each, name_of, f"{owner}{n}") for n, each in enumerate(types, start=1))

    def _object(self, schema: ObjectOf, name_of: _Names, owner: str) -> str:
        more = schema.additional_properties
        if not schema.properties:
            return f"dict[str, {'Any' if isinstance(more, bool) else self._annotation(more, name_of, f'{owner}Value')}]"
        name, number = owner, 1
        while name in self._taken:
            number += 1
            name = f"{owner}{number}"
        self._taken.add(name)
        self._typed_dict(name, schema, name_of)
        return name


def _class(name: str, schema: ObjectOf, fields: dict[str, str]) -> str:
    lines = [f"class {name}(TypedDict):"]
    if schema.description.strip():
        lines += [f"    {docstring(schema.description)}", ""]
    for field, text in fields.items():
        lines.append(f"    {field}: {text}")
        said = schema.properties[field].description
        if said.strip():
            lines.append(f"    {docstring(said)}")
    return "\n".join(lines) + "\n"


def is_never(named: NamedType) -> bool:
    """Whether checkers take the declared type for `Never`: a function that returns it may not return."""
    return not _is_circle(named.schema, named.document) and not any(
        each.nullable
        or not (isinstance(each, UnionOf | Ref | NeverOf) or (isinstance(each, Enumeration) and not each.values))
        for each in _alternatives(named.schema, named.document)
    )


def _is_circle(schema: GType, document: Document) -> bool:
    """Whether a type leads to a union that is a member of itself, with no object or list in between."""
    reached = _members(schema, document)
    return any(name in _members(document.definitions[name], document) for name in reached)


def _members(schema: GType, document: Document) -> set[str]:
    """The definitions that a type is, or is a union of."""
    return {each.ref for each in _alternatives(schema, document) if isinstance(each, Ref)}


def _alternatives(schema: GType, document: Document) -> list[GType]:
    """The type, and all that it is another name or a union of; each definition once."""
    found: list[GType] = []
    followed: set[str] = set()
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        found.append(each)
        if isinstance(each, UnionOf):
            waiting += each.types
        elif isinstance(each, Ref) and each.ref not in followed:
            followed.add(each.ref)
            waiting.append(document.definitions[each.ref])
    return found
