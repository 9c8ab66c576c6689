"""Types from JSON Schema 2020-12.

A schema is read as the parts that must all hold (`type` and what belongs to it, `$ref`, `enum`, `anyOf`, …).
One part is the type; several are merged, where all are plain objects, or become an intersection.

Read for what their authors mean: `properties` or `items` without a `type` describe objects and arrays, and
`oneOf` is `anyOf`. Formats that `FORMATS` knows are checked, which JSON Schema leaves open; others are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from gati_core.errors import MalformedGType, UnsupportedType
from gati_core.gtype._document import MAX_BYTES, MAX_DEPTH, check_document, write_document
from gati_core.gtype._json_keywords import NULL, PREFIX, placed, validators_in
from gati_core.gtype._json_parts import (
    are_scalars,
    choice,
    is_base64,
    negation,
    pattern_properties,
    shared_tag,
    type_names,
    undeclared,
    values_of,
    whole,
    with_annotations,
)
from gati_core.gtype._json_schema import pointer_step
from gati_core.gtype._json_shapes import check_keywords
from gati_core.gtype._model import (
    AnyOf,
    ArrayOf,
    Document,
    GType,
    NeverOf,
    ObjectOf,
    Primitive,
    Ref,
    TupleOf,
    UnionOf,
    Validator,
)

_MAX_BYTES = 4 * MAX_BYTES
_MAX_DEPTH = 4 * MAX_DEPTH
_WORDS = {
    "object": frozenset(
        [
            "properties",
            "required",
            "additionalProperties",
            "patternProperties",
            "propertyNames",
            "minProperties",
            "maxProperties",
        ]
    ),
    "array": frozenset(["items", "prefixItems", "minItems", "maxItems", "uniqueItems"]),
}
_DEFINITIONS = ("$defs", "definitions")


def from_json_schema(schema: Mapping[str, Any] | bytes, *, name: str = "") -> Document:
    """Read a schema; of what `to_json_schema` wrote, the same type with the checks of its brands.

    Args:
        schema: JSON, or what JSON decodes to.
        name: of the type, for the document's metadata; else the title.
    Raises:
        UnsupportedType: a keyword asks for what no type can say; names the JSON pointer to it.
        MalformedGType: it is no JSON Schema, or refers to what is not there; names the JSON pointer.
    """
    if isinstance(schema, bytes) and len(schema) > _MAX_BYTES:
        raise MalformedGType(f"the schema of {len(schema)} bytes exceeds the limit of {_MAX_BYTES}")
    try:
        raw = msgspec.json.decode(schema) if isinstance(schema, bytes) else schema
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedGType(f"not JSON: {exc}") from exc
    reader = _Reader(raw, name)
    document = reader.document()
    check_document(document)
    size = len(write_document(document))
    if size > MAX_BYTES:
        raise MalformedGType(f"the type that the schema describes takes {size} bytes, the limit is {MAX_BYTES}")
    return document


class _Reader:
    def __init__(self, raw: Any, name: str) -> None:
        self._raw = raw
        top: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}
        title = top.get("title")
        self._name = name or (title if isinstance(title, str) else "")
        self._id = top.get("$id", "") if isinstance(top.get("$id", ""), str) else ""
        self._names: dict[str, str] = {}  # by the JSON pointer to the definition
        self._taken: set[str] = set()
        self._definitions: dict[str, GType] = {}
        self._waiting: list[str] = []
        for word in _DEFINITIONS:
            found = top.get(word, {})
            for each in found if isinstance(found, Mapping) else ():
                self._name_for(f"/{word}/{pointer_step(each)}", each)

    def document(self) -> Document:
        """The whole type."""
        root = self.read(self._raw, "", 0)
        while self._waiting:
            place = self._waiting.pop(0)
            self._definitions[self._names[place]] = self.read(self._at(place), place, 0)
        if "" in self._names:
            root = Ref(ref=self._names[""])
        # As they were met, whatever the order of reading.
        definitions = {name: self._definitions[name] for name in self._names.values()}
        return Document(root=root, definitions=definitions, metadata={"name": self._name} if self._name else {})

    def read(self, raw: Any, at: str, depth: int) -> GType:
        """The type that a schema at a JSON pointer describes."""
        if isinstance(raw, bool):
            return AnyOf() if raw else NeverOf()
        if depth > _MAX_DEPTH:
            raise MalformedGType(f"{at[:200]}…: schemas are nested more than {_MAX_DEPTH} deep")
        check_keywords(raw, at)
        own, rest = _without_hinted(raw, at)
        parts = self._parts(rest, at, depth)
        schema = whole(parts, rest)
        validators = [] if is_base64(rest) else _validators(rest, at)
        values = values_of(rest)
        if values is not None and not are_scalars(values):
            validators.append(Validator("enum", values))
        if own:
            _check_hinted(raw, own, schema.nullable, at)
        return with_annotations(schema, raw, [*validators, *own], at)

    # -- parts --------------------------------------------------------------------------------------

    def _parts(self, raw: Mapping[str, Any], at: str, depth: int) -> list[GType]:
        values = values_of(raw)
        is_choice = values is not None and are_scalars(values)
        parts = [choice(raw, values)] if values is not None and is_choice else self._typed(raw, at, depth)
        if "$ref" in raw:
            parts.append(self._ref(raw["$ref"], f"{at}/$ref"))
        parts += [self._union(raw, word, at, depth) for word in ("anyOf", "oneOf") if word in raw]
        parts += [self.read(each, f"{at}/allOf/{n}", depth + 1) for n, each in enumerate(raw.get("allOf", ()))]
        if "not" in raw:
            parts.append(negation(raw, at))
        return parts

    def _typed(self, raw: Mapping[str, Any], at: str, depth: int) -> list[GType]:
        """The part that `type` and the keywords of objects and arrays make: one type, or none."""
        names = type_names(raw)
        if not names:
            names = [each for each, words in _WORDS.items() if not words.isdisjoint(raw.keys())]
            if len(names) > 1:
                raise UnsupportedType(f"{at}: keywords of objects and of arrays, and no type; say which is meant")
        if is_base64(raw):
            schema = Primitive(primitive_type="bytes", validators=_validators(raw, at), nullable="null" in names)
            return [schema]
        if not names:
            return []
        # A number may be an integer anyway.
        wanted = [name for name in names if name != "null" and not (name == "integer" and "number" in names)]
        types = [self._of_type(name, raw, at, depth) for name in wanted]
        nullable = "null" in names
        if not types:
            return [Primitive(primitive_type="null")]
        if len(types) == 1:
            return [msgspec.structs.replace(types[0], nullable=True) if nullable else types[0]]
        return [UnionOf(types=types, nullable=nullable)]

    def _of_type(self, name: str, raw: Mapping[str, Any], at: str, depth: int) -> GType:
        if name == "object":
            return self._object(raw, at, depth)
        if name == "array":
            return self._array(raw, at, depth)
        return Primitive(primitive_type=name)  # type: ignore[arg-type]  # `type` was checked

    def _object(self, raw: Mapping[str, Any], at: str, depth: int) -> GType:
        properties = {
            name: self.read(inner, f"{at}/properties/{pointer_step(name)}", depth + 1)
            for name, inner in raw.get("properties", {}).items()
        }
        more = raw.get("additionalProperties", True)
        if not isinstance(more, bool):
            more = self.read(more, f"{at}/additionalProperties", depth + 1)
        names = self._property_names(raw, properties, at, depth)
        found = pattern_properties(raw, at)
        if found is not None:
            pattern, inner = found
            more = self.read(inner, f"{at}/patternProperties/{pointer_step(pattern)}", depth + 1)
            if pattern:
                names = self.read({"type": "string", "pattern": pattern}, f"{at}/patternProperties", depth + 1)
        required = list(dict.fromkeys(raw.get("required", ())))
        for name in required:
            # A name that is asked for but not declared is one of the additional ones.
            if name not in properties:
                properties[name] = undeclared(more, names, f"{at}/required")
        return ObjectOf(
            properties=properties,
            required=required,
            additional_properties=more,
            property_names=names,
            min_properties=_count(raw.get("minProperties")),
            max_properties=_count(raw.get("maxProperties")),
        )

    def _property_names(
        self, raw: Mapping[str, Any], properties: Mapping[str, GType], at: str, depth: int
    ) -> GType | None:
        names, place = raw.get("propertyNames"), f"{at}/propertyNames"
        if names is None:
            return None
        if properties and isinstance(names, Mapping):
            match names.get("anyOf"):
                case [{"enum": declared, **rest}, others] if not rest and declared == sorted(properties):
                    return self.read(others, f"{place}/anyOf/1", depth + 1)
        return self.read(names, place, depth + 1)

    def _array(self, raw: Mapping[str, Any], at: str, depth: int) -> GType:
        least, most = _count(raw.get("minItems")), _count(raw.get("maxItems"))
        if "prefixItems" in raw or raw.get(f"{PREFIX}kind") == "tuple":
            return self._tuple(raw, least or 0, most, at, depth)
        items = self.read(raw.get("items", True), f"{at}/items", depth + 1)
        return ArrayOf(items=items, min_items=least, max_items=most, unique_items=raw.get("uniqueItems", False))

    def _tuple(self, raw: Mapping[str, Any], least: int, most: int | None, at: str, depth: int) -> GType:
        prefix = raw.get("prefixItems", [])
        if raw.get("items", True) is not False and (most is None or most > len(prefix)):
            raise UnsupportedType(
                f"{at}/{'items' if 'items' in raw else 'prefixItems'}: a tuple has no items beyond its own;"
                ' add "items": false'
            )
        if raw.get("uniqueItems"):
            raise UnsupportedType(f"{at}/uniqueItems: items of a tuple cannot be told to differ")
        if least > min(len(prefix), len(prefix) if most is None else most):
            return NeverOf()
        items = [self.read(each, f"{at}/prefixItems/{n}", depth + 1) for n, each in enumerate(prefix[:most])]
        items[least:] = [msgspec.structs.replace(each, optional=True) for each in items[least:]]
        return TupleOf(items=items)

    def _union(self, raw: Mapping[str, Any], word: str, at: str, depth: int) -> GType:
        members, nullable = raw[word], raw.get(f"{PREFIX}nullable")
        if nullable is None:
            nullable = NULL in members
            numbered = [(n, each) for n, each in enumerate(members) if each != NULL]
        else:
            numbered = list(enumerate(members[:-1] if nullable else members))
        types = [self.read(each, f"{at}/{word}/{n}", depth + 1) for n, each in numbered]
        if not types:
            return Primitive(primitive_type="null")
        if len(types) == 1 and raw.get(f"{PREFIX}kind") != "union":
            return msgspec.structs.replace(types[0], nullable=True) if nullable else types[0]
        tag = raw.get(f"{PREFIX}discriminator")
        if tag is None:
            told = raw.get("discriminator", {}).get("propertyName")
            tag = told if isinstance(told, str) else shared_tag([each for _, each in numbered], self._resolved)
        return UnionOf(types=types, nullable=nullable, discriminator=tag)

    # -- references ---------------------------------------------------------------------------------

    def _ref(self, ref: str, at: str) -> Ref:
        return Ref(ref=self._name_for(self._pointer(ref, at)))

    def _pointer(self, ref: str, at: str) -> str:
        place = ref.removeprefix(self._id.partition("#")[0]) if self._id else ref
        if place and not place.startswith("#"):
            raise UnsupportedType(f"{at}: {ref!r} is in another document; put it into this one, under $defs")
        place = place[1:]
        if place and not place.startswith("/"):
            raise UnsupportedType(f"{at}: {ref!r} is no JSON pointer; write #/$defs/…")
        if not isinstance(self._at(place), (Mapping, bool)):
            raise MalformedGType(f"{at}: there is no schema at {ref!r}")
        return "".join(f"/{pointer_step(step)}" for step in _steps(place))

    def _resolved(self, raw: Any) -> Any:
        """What a member of a union stands for."""
        seen = set()
        while isinstance(raw, Mapping) and isinstance(raw.get("$ref"), str) and raw["$ref"] not in seen:
            seen.add(raw["$ref"])
            raw = self._at(self._pointer(raw["$ref"], ""))
        return raw

    def _name_for(self, place: str, wanted: str = "") -> str:
        """The name of the definition for a pointer; one that is new is read later."""
        name = self._names.get(place)
        if name is None:
            last = wanted or (_steps(place)[-1] if place else self._name or "Root")
            name, number = last, 1
            while name in self._taken:
                number += 1
                name = f"{last}_{number}"
            self._names[place] = name
            self._taken.add(name)
            self._waiting.append(place)
        return name

    def _at(self, place: str) -> Any:
        found = self._raw
        for step in _steps(place):
            if isinstance(found, Mapping):
                found = found.get(step)
            elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            else:
                return None
        return found


# -- parts of one schema -----------------------------------------------------------------------------


def _without_hinted(raw: Mapping[str, Any], at: str) -> tuple[list[Validator], Mapping[str, Any]]:
    """The validators that a schema lists beside its keywords, and the schema without the keywords they stand for."""
    listed = raw.get(f"{PREFIX}validators")
    if listed is None:
        return [], raw
    try:
        own = msgspec.convert(listed, list[Validator])
        top, more = placed(own, of_bytes=is_base64(raw), nullable=False)
    except (msgspec.ValidationError, TypeError, ValueError) as exc:
        raise MalformedGType(f"{at}/{PREFIX}validators: {exc}") from exc
    rest = {word: value for word, value in raw.items() if word not in top}
    if more:
        rest["allOf"] = raw.get("allOf", [])[: -len(more)]
        if not rest["allOf"]:
            del rest["allOf"]
    return own, rest


def _check_hinted(raw: Mapping[str, Any], own: list[Validator], nullable: bool, at: str) -> None:
    top, more = placed(own, of_bytes=is_base64(raw), nullable=nullable)
    is_same = all(raw.get(word) == value for word, value in top.items())
    if not is_same or (more and raw.get("allOf", [])[-len(more) :] != more):
        raise MalformedGType(
            f"{at}/{PREFIX}validators: they say other things than the keywords beside them; change both, or drop them"
        )


def _validators(raw: Mapping[str, Any], at: str) -> list[Validator]:
    try:
        return validators_in(raw, of_bytes=is_base64(raw))
    except UnsupportedType as exc:
        raise UnsupportedType(f"{at}/pattern: {exc}") from exc
    except MalformedGType as exc:
        raise MalformedGType(f"{at}/{PREFIX}pattern: {exc}") from exc


def _count(value: int | float | None) -> int | None:
    return None if value is None else int(value)


def _steps(place: str) -> list[str]:
    """The steps of a JSON pointer that stands in a URI."""
    return [unquote(step).replace("~1", "/").replace("~0", "~") for step in place.split("/")[1:]]
