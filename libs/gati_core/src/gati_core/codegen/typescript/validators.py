"""Validators that say the same as those in Python, made of the functions in `runtime.ts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

from msgspec import UNSET

from gati_core.codegen._names import pascal
from gati_core.codegen._types import NamedType, TypeRegistry, header_lines
from gati_core.codegen.typescript.types import FLAVOR, TAKEN, declarations, literal
from gati_core.gtype import (
    FORMATS,
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
    is_required,
    is_secret,
)
from gati_core.gtype.texts import counted, endless, expected, rule_text, tag_of, to_ecmascript, tuple_lengths

_COMPARISONS = {"min": ">=", "max": "<=", "exclusive_min": ">", "exclusive_max": "<"}


def typescript_validators(documents: Mapping[str, Document], *, source: str = "") -> str:
    """One file with `validate<Name>(value)` and `is<Name>(value)` for each document, and the declarations.

    What differs from Python: `1.0` is an integer, integers beyond 2^53 are rounded, and `custom` checks must be
    registered in `checks`.

    Raises:
        UnsupportedType: a pattern has no equivalent in ECMAScript.
    """
    registry = TypeRegistry(TAKEN)
    for name in sorted(documents):
        registry.add(documents[name], prefix=name)
    roots = [registry.root(pascal(name), documents[name], prefix=name) for name in sorted(documents)]
    parts = [*(f"// {line}" for line in header_lines(source)), "", FLAVOR, declarations(registry, roots), _runtime()]
    parts += [
        f"const check{each.name}: Check = {_Writer(each).check(each.schema)};" for each in registry.types.values()
    ]
    for root in roots:
        function = f"root{root.name}"
        parts.append(f"const {function}: Check = {_Writer(root).check(root.schema)};")
        parts.append(
            f"/** Everything that is wrong with a value; nothing when it is a {root.name}. */\n"
            f"export const validate{root.name} = (value: unknown): FieldError[] => collect({function}, value, []);\n"
            f"export const is{root.name} = (value: unknown): value is {root.name} =>"
            f" collect({function}, value, []).length === 0;\n"
        )
    return "\n".join(parts)


@cache
def _runtime() -> str:
    return resources.files(__package__).joinpath("runtime.ts").read_text(encoding="utf-8")


class _Writer:
    def __init__(self, named: NamedType) -> None:
        self._names = named.names
        self._definitions = named.document.definitions
        self._endless = endless(self._definitions)

    def check(self, schema: GType) -> str:
        """An expression for the check of a type."""
        if isinstance(schema, Primitive) and schema.primitive_type == "undefined":
            return f"absent({self._flags(schema)})"
        unit = "byte" if isinstance(schema, Primitive) and schema.primitive_type == "bytes" else "character"
        rules = [self._rule(each, unit) for each in schema.validators]
        parts = [self._flags(schema), self._kind(schema), *(rule for rule in rules if rule)]
        return f"type({', '.join(parts)})"

    def _flags(self, schema: GType) -> str:
        flags = {"expected": literal(expected(schema, self._definitions))}
        for name, value in (
            ("optional", schema.optional),
            ("nullable", schema.nullable),
            ("secret", is_secret(schema)),
        ):
            if value:
                flags[name] = "true"
        return "{ " + ", ".join(f"{name}: {value}" for name, value in flags.items()) + " }"

    def _kind(self, schema: GType) -> str:
        flags = self._flags(schema)
        match schema:
            case Primitive():
                return f"simple({flags}, {_primitive(schema.primitive_type)})"
            case LiteralOf():
                return f"simple({flags}, (value) => value === {literal(schema.value)})"
            case Enumeration():
                return f"simple({flags}, (value) => {_one_of(schema.values)})"
            case ObjectOf():
                return self._object(schema, flags)
            case ArrayOf():
                return self._array(schema, flags)
            case TupleOf():
                least, _ = tuple_lengths(schema)
                return f"tuple({flags}, {least}, [{', '.join(map(self.check, schema.items))}])"
            case UnionOf():
                tags = [tag_of(each, schema.discriminator, self._definitions) for each in schema.types]
                known = ["undefined" if each is UNSET else literal(each) for each in tags]
                listed = f"[{', '.join(known if schema.discriminator else [])}]"
                members = ", ".join(map(self.check, schema.types))
                return f"union({flags}, [{members}], {literal(schema.discriminator)}, {listed})"
            case IntersectionOf():
                return f"intersection([{', '.join(map(self.check, schema.types))}])"
            case Ref():
                is_endless = "true" if schema.ref in self._endless else "false"
                return f"named({flags}, () => check{self._names[schema.ref]}, {is_endless})"
            case AnyOf() | UnknownOf():
                return "anything"
            case NeverOf():
                return f"simple({flags}, () => false)"

    def _object(self, schema: ObjectOf, flags: str) -> str:
        properties = [
            f"[{literal(name)}, {self.check(inner)}, "
            f"{literal(expected(inner, self._definitions)) if is_required(schema, name) else 'null'}]"
            for name, inner in schema.properties.items()
        ]
        more = schema.additional_properties
        rules = [
            f"properties: [{', '.join(properties)}]",
            f"more: {literal(more) if isinstance(more, bool) else self.check(more)}",
        ]
        if schema.property_names is not None:
            rules.append(f"names: {self.check(schema.property_names)}")
        rules += _sizes(schema.min_properties, schema.max_properties, "property")
        return f"object({flags}, {{ {', '.join(rules)} }})"

    def _array(self, schema: ArrayOf, flags: str) -> str:
        rules = _sizes(schema.min_items, schema.max_items, "item")
        if schema.unique_items:
            rules.append("unique: true")
        return f"array({flags}, {self.check(schema.items)}, {{ {', '.join(rules)} }})"

    def _rule(self, validator: Validator, unit: str) -> str:
        test = _test(validator, unit)
        if not test:
            return ""
        text = [literal(rule_text(validator, unit=unit)), f"(value) => {test}"]
        message = validator.message or ("custom validation failed" if validator.type == "custom" else "")
        if message:
            text.append(literal(message))
        return f"[{', '.join(text)}]"


def _sizes(least: int | None, most: int | None, noun: str) -> list[str]:
    rules = []
    if least is not None:
        rules.append(f"min: [{least}, {literal(f'at least {counted(least, noun)}')}]")
    if most is not None:
        rules.append(f"max: [{most}, {literal(f'at most {counted(most, noun)}')}]")
    return rules


def _primitive(name: str) -> str:
    tests: dict[str, str] = {
        "string": "isText",
        "integer": "Number.isInteger",
        "number": "Number.isFinite",
        "boolean": '(value) => typeof value === "boolean"',
        "null": "(value) => value === null",
        "bytes": f"(value) => isText(value) && {_matches('base64')}",
    }
    return tests[name]


def _one_of(values: Sequence[object]) -> str:
    return f"([{', '.join(map(literal, values))}] as unknown[]).includes(value)"


def _matches(name: str) -> str:
    return f"/^(?:{_slashed(FORMATS[name].source)})$/u.test(value)"


def _slashed(source: str) -> str:
    return source.replace("/", "\\/").replace("\\\\/", "\\/")


def _on_text(test: str) -> str:
    return f"!isText(value) || ({test})"


def _test(validator: Validator, unit: str) -> str:
    value = validator.value
    match validator.type:
        case "min" | "max" | "exclusive_min" | "exclusive_max":
            return f"!isNumber(value) || value {_COMPARISONS[validator.type]} {literal(value)}"
        case "positive" | "negative":
            return f"!isNumber(value) || value {'>' if validator.type == 'positive' else '<'} 0"
        case "multiple_of":
            return f"!isNumber(value) || value % {literal(value)} === 0"
        case "integer":
            return "!isNumber(value) || Number.isInteger(value)"
        case "min_length" | "max_length":
            sign = ">=" if validator.type == "min_length" else "<="
            return _on_text(f"{'bytes' if unit == 'byte' else 'length'}(value) {sign} {value}")
        case "pattern":
            return _on_text(f'new RegExp({literal(to_ecmascript(value))}, "u").test(value)')
        case "format" if value not in FORMATS:
            return ""
        case "format" | "email" | "url" | "uuid":
            name = value if validator.type == "format" else validator.type
            return _on_text(_matches(name) + (" && isDate(value)" if FORMATS[name].is_dated else ""))
        case "enum":
            return _one_of(value)
        case "custom":
            return f"custom({literal(value)}, value)"
