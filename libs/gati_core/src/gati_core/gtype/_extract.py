"""From annotations to documents.

msgspec's own inspection reads the annotations, so what a type means here is what its decoder does with it:
the fast path of validation and the documents cannot drift apart. What it cannot say, brands and checks of
ours, travels in `Meta(extra=…)`.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from msgspec import NODEFAULT, UNSET
from msgspec import inspect as mi

from gati_core.errors import UnsupportedType
from gati_core.gtype._brands import brand as brand_rule
from gati_core.gtype._brands import expand_brands
from gati_core.gtype._document import MAX_BYTES, MAX_DEPTH, WARN_BYTES, WARN_DEPTH, write_document
from gati_core.gtype._model import (
    AnyOf,
    ArrayOf,
    Document,
    Enumeration,
    GType,
    LiteralOf,
    ObjectOf,
    Primitive,
    Ref,
    Scalar,
    TupleOf,
    UnionOf,
    Validator,
)
from gati_core.gtype._pattern_limits import with_pattern_limits


class Extracted(NamedTuple):
    """A type read from annotations."""

    document: Document
    native_up_to: int
    """JSON of at most so many bytes is checked in full by msgspec's decoder alone; for longer texts, or
    always where it is 0, the validator must look before."""
    warnings: tuple[str, ...] = ()


def extract(annotation: Any, *, where: str = "", is_strict: bool = False) -> Extracted:
    """Read a type.

    Args:
        annotation: anything that msgspec decodes: structs, dataclasses, TypedDict, NamedTuple, enums,
            unions, `Annotated[…, Meta(…)]`, generics, builtins, dates, UUID, Decimal.
        where: what it is the type of, for messages: `body`, `query`.
        is_strict: objects may have no fields beside those that they declare.
    Raises:
        UnsupportedType: part of it cannot be expressed; names the path to the field and says what to do.
    """
    try:
        info = mi.type_info(annotation)
    except (TypeError, NameError, ValueError, RecursionError) as exc:
        # A sloppy path is better than none: find the field that is to blame by reading each alone.
        path, reason = _blame(annotation, where or "type", exc)
        raise UnsupportedType(f"{path}: {reason}") from exc
    reader = _Reader(is_strict)
    root = reader.read(info, where or "type", 0)
    document = Document(root=root, definitions=reader.finished(), metadata={"name": _type_name(annotation)})
    document, shortest = with_pattern_limits(expand_brands(document), where or "type")
    warnings = [*reader.warnings]
    size = len(write_document(document))
    if size > MAX_BYTES:
        raise UnsupportedType(f"{where or 'type'}: its document of {size} bytes exceeds the limit of {MAX_BYTES}")
    if size > WARN_BYTES:
        warnings.append(f"{where or 'type'}: its document is large: {size} bytes (a warning from {WARN_BYTES} on)")
    return Extracted(document, shortest if reader.is_native else 0, tuple(warnings))


class _Reader:
    def __init__(self, is_strict: bool) -> None:
        self._is_strict = is_strict
        self._names: dict[Any, str] = {}
        self._definitions: dict[str, GType | None] = {}
        self.is_native = not is_strict
        self.warnings: list[str] = []

    def finished(self) -> dict[str, GType]:
        """The named types that were met."""
        return {name: schema for name, schema in self._definitions.items() if schema is not None}

    def read(self, info: mi.Type, path: str, depth: int) -> GType:
        """One type, at `path`."""
        if depth > MAX_DEPTH:
            raise UnsupportedType(f"{path}: types are nested more than {MAX_DEPTH} deep")
        if depth == WARN_DEPTH + 1:
            self.warnings.append(f"{path}: types are nested more than {WARN_DEPTH} deep")
        if isinstance(info, mi.Metadata):
            return self._annotated(info, path, depth)
        read = _READERS.get(type(info))
        if read is None:
            raise UnsupportedType(f"{path}: {_described(info)} cannot be expressed; {_advice(info)}")
        return read(self, info, path, depth)

    # -- values -----------------------------------------------------------------------------------

    def _annotated(self, info: mi.Metadata, path: str, depth: int) -> GType:
        schema = self.read(info.type, path, depth)
        changes: dict[str, Any] = {}
        told = info.extra_json_schema or {}
        if "description" in told:
            changes["description"] = told["description"]
        metadata = {key: told[key] for key in ("title", "examples", "deprecated") if key in told}
        if metadata:
            changes["metadata"] = {**schema.metadata, **metadata}
        extra = info.extra or {}
        if "brand" in extra:
            changes["brand"] = extra["brand"]
            rule = brand_rule(extra["brand"])
            self.is_native = self.is_native and (rule is None or not rule.validators)
        if "checks" in extra:
            added = [Validator("custom", name, message) for name, message in extra["checks"]]
            changes["validators"] = [*schema.validators, *added]
            self.is_native = False
        if extra.get("unique_items"):
            if not isinstance(schema, ArrayOf):
                raise UnsupportedType(f"{path}: UniqueItems is for lists")
            changes["unique_items"] = True
            self.is_native = False
        return msgspec.structs.replace(schema, **changes) if changes else schema

    def _number(self, info: mi.IntType | mi.FloatType, path: str, depth: int) -> GType:
        bounds = (
            ("exclusive_min", info.gt),
            ("min", info.ge),
            ("exclusive_max", info.lt),
            ("max", info.le),
            ("multiple_of", info.multiple_of),
        )
        validators = [Validator(name, _plain(bound)) for name, bound in bounds if bound is not None]  # type: ignore[arg-type]
        name = "integer" if isinstance(info, mi.IntType) else "number"
        return Primitive(primitive_type=name, validators=validators)  # type: ignore[arg-type]  # one of the two

    def _text(self, info: mi.StrType, path: str, depth: int) -> GType:
        validators = _lengths(info.min_length, info.max_length)
        if info.pattern is not None:
            validators.append(Validator("pattern", info.pattern))
        return Primitive(primitive_type="string", validators=validators)

    def _bytes(self, info: mi.BytesType, path: str, depth: int) -> GType:
        return Primitive(primitive_type="bytes", validators=_lengths(info.min_length, info.max_length))

    def _decimal(self, info: mi.Type, path: str, depth: int) -> GType:
        self.is_native = False  # the decoder also takes NaN, infinities and underscores
        text = Primitive(primitive_type="string", validators=[Validator("format", "decimal")])
        return UnionOf(types=[text, Primitive(primitive_type="number")], brand="decimal")

    def _literal(self, info: mi.LiteralType, path: str, depth: int) -> GType:
        values: list[Scalar] = [value for value in info.values if value is not None]
        has_null = len(values) < len(info.values)
        if not values:
            return Primitive(primitive_type="null")
        if len(values) == 1:
            return LiteralOf(value=values[0], nullable=has_null)
        return Enumeration(values=_sorted(values), base_type=_base_of(values), nullable=has_null)

    def _enum(self, info: mi.EnumType, path: str, depth: int) -> GType:
        values: list[Scalar] = [member.value for member in info.cls]
        if not values:
            raise UnsupportedType(f"{path}: the enum {info.cls.__name__} has no members")
        if "_missing_" in info.cls.__dict__:
            raise UnsupportedType(f"{path}: the enum {info.cls.__name__} has `_missing_`: its values cannot be listed")
        schema = Enumeration(values=values, base_type=_base_of(values), metadata={"names": list(info.cls.__members__)})
        return self._named(info.cls, info.cls, lambda: schema)

    # -- collections ------------------------------------------------------------------------------

    def _list(self, info: mi.ListType | mi.VarTupleType | mi.SetType, path: str, depth: int) -> GType:
        items = self.read(info.item_type, f"{path}[]", depth + 1)
        return ArrayOf(items=items, min_items=info.min_length, max_items=info.max_length)

    def _tuple(self, info: mi.TupleType, path: str, depth: int) -> GType:
        return TupleOf(items=[self.read(each, f"{path}[{n}]", depth + 1) for n, each in enumerate(info.item_types)])

    def _dict(self, info: mi.DictType, path: str, depth: int) -> GType:
        names = self._key(info.key_type, path, depth)
        values = self.read(info.value_type, f"{path}{{}}", depth + 1)
        return ObjectOf(
            additional_properties=True if values == AnyOf() else values,
            property_names=names,
            min_properties=info.min_length,
            max_properties=info.max_length,
        )

    def _key(self, info: mi.Type, path: str, depth: int) -> GType | None:
        if isinstance(info, mi.IntType):
            if any(each is not None for each in (info.gt, info.ge, info.lt, info.le, info.multiple_of)):
                raise UnsupportedType(f"{path}: keys that are integers cannot have bounds; use str keys with a pattern")
            return Primitive(primitive_type="string", validators=[Validator("pattern", r"^-?(?:0|[1-9][0-9]*)\Z")])
        schema = self.read(info, f"{path}{{name}}", depth + 1)
        if isinstance(schema, AnyOf) or schema == Primitive(primitive_type="string"):
            return None
        target = self._definitions.get(schema.ref) if isinstance(schema, Ref) else schema
        is_text = isinstance(target, Primitive) and target.primitive_type in ("string", "bytes")
        is_text = is_text or (isinstance(target, Enumeration) and target.base_type == "string")
        is_text = is_text or (isinstance(target, LiteralOf) and isinstance(target.value, str))
        if not is_text:
            raise UnsupportedType(f"{path}: keys of a JSON object are text, {_described(info)} is not")
        return schema

    # -- objects ----------------------------------------------------------------------------------

    def _struct(self, info: mi.StructType, path: str, depth: int) -> GType:
        if info.array_like:
            raise UnsupportedType(
                f"{path}: {_described(info)} is array_like, which ignores extra items; use a NamedTuple or an object"
            )
        return self._named(
            info.cls, info.cls, lambda: self._fields(info, path, depth, is_open=not info.forbid_unknown_fields)
        )

    def _record(self, info: mi.DataclassType | mi.TypedDictType, path: str, depth: int) -> GType:
        return self._named(info.cls, info.cls, lambda: self._fields(info, path, depth, is_open=True))

    def _fields(
        self, info: mi.StructType | mi.DataclassType | mi.TypedDictType, path: str, depth: int, *, is_open: bool
    ) -> GType:
        properties: dict[str, GType] = {}
        required: list[str] = []
        if isinstance(info, mi.StructType) and info.tag_field is not None and info.tag is not None:
            properties[info.tag_field] = LiteralOf(value=info.tag)
        hints = dict(_fields_of(info.cls))
        for field in info.fields:
            name = field.encode_name
            place = f"{path}.{name}"
            schema = self.read(_without_unset(field.type), place, depth + 1)
            default = _default_of(field, place)
            if default is not UNSET:
                schema = msgspec.structs.replace(schema, default=default)
            properties[name] = _with_new_types(schema, hints.get(field.name))
            if field.required:
                required.append(name)
        return ObjectOf(
            properties=properties,
            required=required,
            additional_properties=is_open and not self._is_strict,
            description=_summary(info.cls),
        )

    def _named_tuple(self, info: mi.NamedTupleType, path: str, depth: int) -> GType:
        items = []
        for field in info.fields:
            schema = self.read(field.type, f"{path}.{field.name}", depth + 1)
            items.append(schema if field.required else msgspec.structs.replace(schema, optional=True))
        names = [field.name for field in info.fields]
        return self._named(info.cls, info.cls, lambda: TupleOf(items=items, metadata={"names": names}))

    def _named(self, key: Any, cls: Any, make: Callable[[], GType]) -> GType:
        """A reference to the definition of a named type, which is made when it is met first."""
        name = self._names.get(key)
        if name is None:
            name = _free_name(_type_name(cls), self._definitions)
            self._names[key] = name
            self._definitions[name] = None  # met again inside itself, it is a reference already
            self._definitions[name] = make()
        return Ref(ref=name)

    # -- unions -----------------------------------------------------------------------------------

    def _union(self, info: mi.UnionType, path: str, depth: int) -> GType:
        members = [each for each in info.types if not isinstance(each, mi.NoneType) and not _is_unset(each)]
        is_nullable = any(isinstance(each, mi.NoneType) for each in info.types)
        if not members:
            return Primitive(primitive_type="null")
        if len(members) == 1:
            schema = self.read(members[0], path, depth)
            return msgspec.structs.replace(schema, nullable=True) if is_nullable else schema
        types: list[GType] = []
        for number, each in enumerate(members):
            read = self.read(each, f"{path}|{number}", depth + 1)
            # A Decimal is a union itself; its members belong among the others.
            types += read.types if isinstance(read, UnionOf) and not read.brand else [read]
        tag = self._require_tags(members)
        return UnionOf(types=types, nullable=is_nullable, discriminator=tag)

    def _require_tags(self, members: list[mi.Type]) -> str:
        """In a union the decoder tells structs apart by their tags, which are then no longer optional."""
        structs = [each for each in map(_unwrapped, members) if isinstance(each, mi.StructType)]
        if len(structs) < 2:
            return ""
        tag = structs[0].tag_field or ""
        for each in structs:
            name = self._names[each.cls]
            schema = self._definitions[name]
            if isinstance(schema, ObjectOf) and tag in schema.properties and tag not in schema.required:
                self._definitions[name] = msgspec.structs.replace(schema, required=[tag, *schema.required])
        return tag


_READERS: dict[type, Callable[[_Reader, Any, str, int], GType]] = {
    mi.AnyType: lambda *_: AnyOf(),
    mi.RawType: lambda *_: AnyOf(),
    mi.NoneType: lambda *_: Primitive(primitive_type="null"),
    mi.BoolType: lambda *_: Primitive(primitive_type="boolean"),
    mi.IntType: _Reader._number,
    mi.FloatType: _Reader._number,
    mi.StrType: _Reader._text,
    mi.BytesType: _Reader._bytes,
    mi.ByteArrayType: _Reader._bytes,
    mi.DateTimeType: lambda _r, info, _p, _d: _dated("date-time", info.tz),
    mi.TimeType: lambda _r, info, _p, _d: _dated("time", info.tz),
    mi.DateType: lambda *_: _formatted("date"),
    mi.TimeDeltaType: lambda *_: _formatted("duration"),
    mi.UUIDType: lambda *_: _formatted("uuid"),
    mi.DecimalType: _Reader._decimal,
    mi.LiteralType: _Reader._literal,
    mi.EnumType: _Reader._enum,
    mi.ListType: _Reader._list,
    mi.SetType: _Reader._list,
    mi.FrozenSetType: _Reader._list,
    mi.CollectionType: _Reader._list,
    mi.VarTupleType: _Reader._list,
    mi.TupleType: _Reader._tuple,
    mi.DictType: _Reader._dict,
    mi.StructType: _Reader._struct,
    mi.DataclassType: _Reader._record,
    mi.TypedDictType: _Reader._record,
    mi.NamedTupleType: _Reader._named_tuple,
    mi.UnionType: _Reader._union,
}


# -- parts -------------------------------------------------------------------------------------------


def _formatted(name: str) -> Primitive:
    return Primitive(primitive_type="string", validators=[Validator("format", name)])


def _dated(name: str, tz: bool | None) -> Primitive:
    return _formatted({None: f"{name}-or-local", True: name, False: f"local-{name}"}[tz])


def _lengths(least: int | None, most: int | None) -> list[Validator]:
    found = [Validator("min_length", least)] if least is not None else []
    return [*found, Validator("max_length", most)] if most is not None else found


def _plain(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) and bound.is_integer() and abs(bound) < 2**53 else bound


def _sorted(values: list[Scalar]) -> list[Scalar]:
    """In an order that does not depend on how they were written: `Literal["b", "a"]` is `Literal["a", "b"]`."""
    return sorted(values, key=lambda value: (type(value).__name__, value))


def _base_of(values: list[Scalar]) -> Any:
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return "string"
    return "integer" if kinds == {int} else "mixed"


def _is_unset(info: mi.Type) -> bool:
    return isinstance(info, mi.CustomType) and info.cls is msgspec.UnsetType


def _without_unset(info: mi.Type) -> mi.Type:
    """`T | UnsetType` means that the field may be absent, which its default says already."""
    if not isinstance(info, mi.UnionType) or not any(map(_is_unset, info.types)):
        return info
    rest = tuple(each for each in info.types if not _is_unset(each))
    return rest[0] if len(rest) == 1 else mi.UnionType(rest)


def _with_new_types(schema: GType, hint: Any) -> GType:
    """Brand what was declared with `NewType`: the decoder does not know, type checkers do."""
    if isinstance(hint, typing.NewType):
        return schema if schema.brand else msgspec.structs.replace(schema, brand=hint.__name__)
    if typing.get_origin(hint) is typing.Annotated:
        return _with_new_types(schema, typing.get_args(hint)[0])
    arguments = [each for each in typing.get_args(hint) if each is not type(None)]
    if isinstance(schema, ArrayOf) and arguments:
        return msgspec.structs.replace(schema, items=_with_new_types(schema.items, arguments[0]))
    if len(arguments) == 1 and typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _with_new_types(schema, arguments[0])
    return schema


def _unwrapped(info: mi.Type) -> mi.Type:
    while isinstance(info, mi.Metadata):
        info = info.type
    return info


def _default_of(field: mi.Field, path: str) -> Any:
    if field.default is not NODEFAULT and field.default is not UNSET:
        value = field.default
    elif field.default_factory in (list, dict, set, tuple):
        value = field.default_factory()
    else:
        return UNSET  # none, or one that is made anew each time
    try:
        # What JSON makes of it: text for dates, lists for tuples.
        return msgspec.json.decode(msgspec.json.encode(value))
    except (TypeError, ValueError) as exc:
        raise UnsupportedType(f"{path}: its default {value!r} has no JSON form: {exc}") from exc


def _type_name(annotation: Any) -> str:
    name = getattr(annotation, "__name__", None) or re.sub(r"\w+\.", "", str(annotation))
    arguments = getattr(annotation, "__args__", ())
    if arguments and not isinstance(annotation, type) and getattr(annotation, "__origin__", None) is not None:
        name = "_".join([name.partition("[")[0], *(_type_name(each) for each in arguments)])
    return re.sub(r"\W+", "_", name).strip("_")[:100] or "type"


def _free_name(wanted: str, taken: dict[str, GType | None]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def _summary(cls: Any) -> str:
    """The first line of a class's own docstring; dataclasses write one by themselves that says nothing new."""
    doc = getattr(cls, "__dict__", {}).get("__doc__") or ""
    line = str(doc).strip().partition("\n")[0]
    return "" if line.startswith(f"{getattr(cls, '__name__', '')}(") else line


def _described(info: mi.Type) -> str:
    cls = getattr(info, "cls", None)
    name = (
        getattr(cls, "__qualname__", None) or str(cls) if cls is not None else type(info).__name__.removesuffix("Type")
    )
    return f"the type {name}"


def _advice(info: mi.Type) -> str:
    if isinstance(info, mi.CustomType):
        return "use a Struct, a dataclass, a builtin, or Any and convert it in the handler"
    return "it has no JSON form"


def _blame(annotation: Any, path: str, error: Exception) -> tuple[str, str]:
    """The innermost field whose type alone cannot be read, and why."""
    for name, inner in _fields_of(annotation):
        try:
            mi.type_info(inner)
        except (TypeError, NameError, ValueError, RecursionError) as exc:
            return _blame(inner, f"{path}.{name}", exc)
    text = str(error)
    if isinstance(error, NameError):
        text = f"{text}; types must be importable at run time (not only under TYPE_CHECKING)"
    return path, text


def _fields_of(annotation: Any) -> list[tuple[str, Any]]:
    try:
        return list(typing.get_type_hints(annotation, include_extras=True).items())
    except Exception:  # not a class, or one of the names in it is not there
        return []
