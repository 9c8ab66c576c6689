"""Conditions of Python code for what a type says of one value: its kind, and its constraints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from gati_core.errors import MalformedGType
from gati_core.gtype._expected import rule_text, tuple_lengths
from gati_core.gtype._formats import FORMATS
from gati_core.gtype._model import (
    ArrayOf,
    Document,
    Enumeration,
    GType,
    LiteralOf,
    NeverOf,
    ObjectOf,
    Primitive,
    TupleOf,
    Validator,
    walk,
)
from gati_core.gtype._python_module import Module
from gati_core.gtype._python_text import ALWAYS, NEVER, Atom, Condition, all_of, literal, negated, some_of

Known: TypeAlias = Literal["text", "bytes", "integer", "number", "other", "anything"]
"""What is known of a value by the time that its constraints are looked at."""
_FEW = 4
"""As many choices are compared one by one; more are looked up in a set."""


class Rule(NamedTuple):
    """One constraint: the condition under which it holds, and what is said when it does not."""

    holds: Condition
    expects: str
    message: str


def known_of(schema: GType) -> Known:
    """What the kind of a type says of its values, null aside."""
    match schema:
        case Primitive():
            by_name: dict[str, Known] = {"string": "text", "bytes": "bytes", "integer": "integer", "number": "number"}
            return by_name.get(schema.primitive_type, "other")
        case ObjectOf() | ArrayOf() | TupleOf() | NeverOf():
            return "other"
        case _:
            return "anything"


# -- kinds ---------------------------------------------------------------------------------------------


def primitive(schema: Primitive, var: str, module: Module) -> Condition:
    """For values that are there; `undefined` never holds for them."""
    match schema.primitive_type:
        case "string":
            return _is(var, "str")
        case "integer":
            return _is(var, "int")
        case "number":
            limit = module.huge()  # also no NaN is less than it
            is_number = some_of(_is(var, "int"), _is(var, "float"))
            return all_of(is_number, Atom(f"abs({var}) < {limit}", f"not abs({var}) < {limit}"))
        case "boolean":
            return _is(var, "bool")
        case "bytes":
            return all_of(_is(var, "str"), _found(f"{module.format('base64')}({var})"))
        case "null":
            return Atom(f"{var} is None", f"{var} is not None")
        case "undefined":
            return NEVER


def one_of(values: Sequence[Any], var: str, module: Module) -> Condition:
    """Equality with one of the values, where `1`, `1.0` and `true` are three things."""
    found: list[Condition] = []
    for kind in (str, int, float):
        alike = list(dict.fromkeys(literal(value) for value in values if type(value) is kind))
        if not alike:
            continue
        typed = _is(var, kind.__name__)
        if len(alike) > _FEW:
            name = module.choices(alike)
            found.append(all_of(typed, Atom(f"{var} in {name}", f"{var} not in {name}")))
        else:
            equal = some_of(*(Atom(f"{var} == {each}", f"{var} != {each}") for each in alike))
            found.append(equal if kind is str else all_of(typed, equal))
    for value in values:
        if value is None or type(value) is bool:
            found.append(Atom(f"{var} is {value}", f"{var} is not {value}"))
        elif type(value) not in (str, int, float):
            found.append(_call("_is_same", var, module.value(literal(value))))
    return some_of(*found)


def _is(var: str, kind: str) -> Atom:
    return Atom(f"type({var}) is {kind}", f"type({var}) is not {kind}")


def _call(name: str, *arguments: str) -> Atom:
    text = f"{name}({', '.join(arguments)})"
    return Atom(text, f"not {text}")


def _found(match: str) -> Atom:
    return Atom(f"{match} is not None", f"{match} is None")


# -- constraints ---------------------------------------------------------------------------------------


def rules_of(schema: GType, var: str, module: Module) -> list[Rule]:
    """The constraints of a type on a value of its kind; those that cannot fail, or cannot fail first, are left out.

    Raises:
        MalformedGType: a constraint makes no sense.
    """
    known = known_of(schema)
    unit = "byte" if known == "bytes" else "character"
    rules: list[Rule] = []
    seen: set[Condition] = {ALWAYS}
    for validator in schema.validators:
        try:
            holds = _holds(validator, var, known, module)
        except MalformedGType as exc:
            raise MalformedGType(f"{validator.type}: {exc}") from exc
        if holds not in seen:
            seen.add(holds)
            message = validator.message or ("custom validation failed" if validator.type == "custom" else "")
            rules.append(Rule(holds, rule_text(validator, unit=unit), message))
    return rules


def check_sense(document: Document) -> None:
    """What is written as code must make sense as a constraint or a value.

    Raises:
        MalformedGType: names the place and what is wrong there.
    """
    for where, _, schema in walk(document):
        try:
            rules_of(schema, "value", Module())
            match schema:
                case LiteralOf():
                    literal(schema.value)
                case Enumeration():
                    literal(schema.values)
                case ObjectOf():
                    bounds = [schema.min_properties, schema.max_properties]
                    _ = [_length(bound) for bound in bounds if bound is not None]
                case ArrayOf():
                    _ = [_length(bound) for bound in (schema.min_items, schema.max_items) if bound is not None]
                case _:
                    pass
        except MalformedGType as exc:
            raise MalformedGType(f"{where}: {exc}") from exc


def _holds(validator: Validator, var: str, known: Known, module: Module) -> Condition:
    value = validator.value
    match validator.type:
        case "enum":
            if not isinstance(value, list):
                raise MalformedGType(f"{value!r:.80} is no list of values")
            return one_of(value, var, module)
        case "custom":
            return _call(module.check(_text(value)), var)
        case "min_length" | "max_length" | "pattern" | "format" | "email" | "url" | "uuid":
            holds = _text_holds(validator, var, known, module)
            if known in ("text", "bytes"):
                return holds
            return some_of(negated(_is(var, "str")), holds) if known == "anything" else ALWAYS
        case _:
            holds = _number_holds(validator, var, known)
            if known in ("integer", "number"):
                return holds
            other = all_of(negated(_is(var, "int")), negated(_is(var, "float")))
            return some_of(other, holds) if known == "anything" else ALWAYS


def _text_holds(validator: Validator, var: str, known: Known, module: Module) -> Condition:
    value = validator.value
    match validator.type:
        case "min_length" | "max_length":
            # Base64 has four characters for three bytes, less one for every padding character.
            length = f'len({var}) // 4 * 3 - {var}.count("=")' if known == "bytes" else f"len({var})"
            return _compared(length, ">=" if validator.type == "min_length" else "<=", _length(value))
        case "pattern":
            try:
                re.compile(_text(value))
            except (re.error, RecursionError, OverflowError) as exc:
                raise MalformedGType(f"{value!r:.80} is no regular expression: {exc}") from exc
            return _found(f"{module.pattern(value)}({var})")
        case "format":
            name = _text(value)
        case _:
            name = validator.type
    if name not in FORMATS:
        return ALWAYS
    matches = _found(f"{module.format(name)}({var})")
    return all_of(matches, _call("_is_date", var)) if FORMATS[name].is_dated else matches


_COMPARISONS = {"min": ">=", "max": "<=", "exclusive_min": ">", "exclusive_max": "<"}
_OPPOSITES = {">=": "<", "<=": ">", ">": "<=", "<": ">="}


def _number_holds(validator: Validator, var: str, known: Known) -> Condition:
    match validator.type:
        case "positive" | "negative":
            return _bounded(var, ">" if validator.type == "positive" else "<", "0", known)
        case "integer":
            fraction = Atom(f"{var}.is_integer()", f"not {var}.is_integer()")
            return ALWAYS if known == "integer" else some_of(negated(_is(var, "float")), fraction)
        case "multiple_of":
            bound = _number(validator.value)
            if validator.value == 0 or (type(validator.value) is int and validator.value.bit_length() > 1000):
                raise MalformedGType("must be a number other than 0 that a double can hold")
            if known == "integer" and type(validator.value) is int:
                return Atom(f"{var} % {bound} == 0", f"{var} % {bound} != 0")
            return _call("_is_multiple", var, bound)
        case _:
            return _bounded(var, _COMPARISONS[validator.type], _number(validator.value), known)


def _bounded(var: str, sign: str, bound: str, known: Known) -> Atom:
    # No comparison holds for NaN, which only a type that is not sure to be a number lets come so far.
    if known == "anything":
        return Atom(f"{var} {sign} {bound}", f"not {var} {sign} {bound}")
    return _compared(var, sign, bound)


def _compared(left: str, sign: str, right: str) -> Atom:
    return Atom(f"{left} {sign} {right}", f"{left} {_OPPOSITES[sign]} {right}")


def size(var: str, sign: str, bound: int) -> Atom:
    """The condition on the number of things in an object or array."""
    return _compared(f"len({var})", sign, _length(bound))


def length_of(schema: TupleOf, var: str) -> Atom:
    """The condition on the length of a tuple."""
    least, most = tuple_lengths(schema)
    if least == most:
        return Atom(f"len({var}) == {most}", f"len({var}) != {most}")
    return Atom(f"{least} <= len({var}) <= {most}", f"not {least} <= len({var}) <= {most}")


def _number(value: Any) -> str:
    if type(value) not in (int, float):
        raise MalformedGType(f"{value!r:.80} is no number")
    return literal(value)


def _length(value: Any) -> str:
    if type(value) is not int:
        raise MalformedGType(f"{value!r:.80} is no length")
    return literal(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise MalformedGType(f"{value!r:.80} is no text")
    return value
