"""Writes functions that say whether a value is of a type: quickly, with the answer at the first mistake.

    def _is_3(value: Any, depth: int, seen: _Seen) -> bool:

`depth` counts the steps from the root where a type has no end, `seen` remembers what was found out where a
value may come by more than once; functions that need neither do not have them.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any, NamedTuple

from gati_core.gtype._expected import tuple_lengths
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
)
from gati_core.gtype._python_module import Scope, comment
from gati_core.gtype._python_program import Program, is_undefined, required_names
from gati_core.gtype._python_rules import length_of, one_of, primitive, rules_of, size
from gati_core.gtype._python_text import (
    ALWAYS,
    INDENT,
    NEVER,
    Atom,
    Condition,
    all_of,
    negated,
    quoted,
    some_of,
)


class Depth(NamedTuple):
    """How far from the root a value is, as code: `depth + 2`."""

    base: str
    steps: int = 0

    def further(self) -> Depth:
        """The depth of what is directly inside."""
        return Depth(self.base, self.steps + 1)

    def __str__(self) -> str:
        if not self.base:
            return str(self.steps)
        return f"{self.base} + {self.steps}" if self.steps else self.base


class Acceptance:
    """Writes what accepts values, for one document."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._module = program.module

    def root(self, name: str) -> None:
        """Write `is_<name>`."""
        root = self._program.document.root
        schema = self._program.inlined(root)
        scope = Scope(self._module)
        absence = Atom("value is UNSET", "value is not UNSET")
        is_nothing = self._program.is_leaf(root) and self.condition(root, "value", Depth("")) == NEVER
        if is_nothing and (root.optional or is_undefined(root)):
            scope.line("return value is UNSET")
        elif root.optional:
            with scope.when(absence):
                scope.line("return True")
        elif not self._program.refuses_absence(schema):
            scope.refuse_unless(negated(absence))
        with scope.after("seen: _Seen = {}") if self._program.remembers(schema) else nullcontext():
            start = len(scope.lines)
            with scope.block("try:") if self._program.counts(schema) else nullcontext():
                self.statements(scope, schema, "value", Depth(""))
            if self._program.counts(schema) and len(scope.lines) > start:
                scope.line("except RecursionError:")
                scope.line("    return False")
        scope.accept()
        self._module.function(f"def is_{name}(value: Any) -> bool:", f"Whether a value is of the type {name}.", scope)

    # -- conditions -------------------------------------------------------------------------------

    def condition(self, schema: GType, var: str, depth: Depth) -> Condition:
        """Holds when the value, which is not absent, is of the type."""
        if is_undefined(schema):
            return NEVER
        holds = all_of(self.kind(schema, var, depth), self._rules(schema, var))
        return some_of(Atom(f"{var} is None", f"{var} is not None"), holds) if schema.nullable else holds

    def kind(self, schema: GType, var: str, depth: Depth) -> Condition:
        """Holds when the value is of the type, null and constraints aside."""
        match schema:
            case Primitive():
                return primitive(schema, var, self._module)
            case LiteralOf():
                return one_of([schema.value], var, self._module)
            case Enumeration():
                return one_of(schema.values, var, self._module)
            case AnyOf() | UnknownOf():
                return ALWAYS
            case NeverOf():
                return NEVER
            case UnionOf() if not schema.discriminator:
                return self._any_of(schema.types, var, depth)
            case IntersectionOf():
                return all_of(*(self.condition(each, var, depth) for each in schema.types))
            case Ref() if self._program.is_leaf(self._program.target(schema)):
                return self.condition(self._program.definitions[schema.ref], var, depth)
            case Ref():
                return self._call(("definition", schema.ref), schema, var, depth)
            case _:
                return self._call(("kind", id(schema)), schema, var, depth)

    def _rules(self, schema: GType, var: str) -> Condition:
        return all_of(*(rule.holds for rule in rules_of(schema, var, self._module)))

    def _any_of(self, types: list[GType], var: str, depth: Depth) -> Condition:
        # Single values are compared in one go: there may be thousands of them.
        values: list[Any] = []
        others = []
        for each in types:
            if isinstance(each, LiteralOf) and not each.nullable and not each.validators:
                values.append(each.value)
            else:
                others.append(self.condition(each, var, depth))
        return some_of(one_of(values, var, self._module), *others)

    def _call(self, key: tuple[str, Any], schema: GType, var: str, depth: Depth) -> Atom:
        number = self._program.number(("accept", *key), lambda number: self._function(number, schema))
        arguments = [var]
        if self._program.counts(schema):
            arguments.append(str(depth))
        if self._program.remembers(schema):
            arguments.append("seen")
        text = f"_is_{number}({', '.join(arguments)})"
        return Atom(text, f"not {text}")

    # -- functions --------------------------------------------------------------------------------

    def _function(self, number: int, schema: GType) -> None:
        """Write the function of a definition, or that of a type inside one."""
        scope = Scope(self._module)
        parameters = ["value: Any"]
        if self._program.counts(schema):
            parameters.append("depth: int")
        if self._program.remembers(schema):
            parameters.append("seen: _Seen")
        head = f"def _is_{number}({', '.join(parameters)}) -> bool:"
        if isinstance(schema, Ref):
            head += comment(schema.ref)
            self._definition(scope, number, schema.ref)
        else:
            self._kind_statements(scope, schema, "value", Depth("depth"))
            scope.accept()
        self._module.function(head, "", scope)

    def _definition(self, scope: Scope, number: int, name: str) -> None:
        schema = self._program.definitions[name]
        if name in self._program.endless:
            scope.line("if depth > MAX_NESTING:")
            scope.line("    return False")
        if name in self._program.remembered:
            scope.line(f"key = ({number}, id(value))")
            scope.line("if key in seen:")
            scope.line("    return seen[key]")
            scope.line("seen[key] = False")
            self.statements(scope, schema, "value", Depth("depth"))
            scope.line("seen[key] = True")
            scope.line("return True")
            return
        if isinstance(schema, UnionOf) and schema.discriminator and not schema.nullable and not schema.validators:
            self._told_apart(scope, schema, "value", Depth("depth"))  # here, to save a call at every level
        else:
            self.statements(scope, schema, "value", Depth("depth"))
        scope.accept()

    def statements(self, scope: Scope, schema: GType, var: str, depth: Depth) -> None:
        """Statements that return False when the value, which is not absent, is not of the type."""
        if not self._has_statements(schema) or scope.is_deep:
            scope.refuse_unless(self.condition(schema, var, depth))
            return
        there = Atom(f"{var} is not None", f"{var} is None")
        with scope.when(there if schema.nullable else ALWAYS):
            self._kind_statements(scope, schema, var, depth)
            scope.refuse_unless(self._rules(schema, var))

    def _has_statements(self, schema: GType) -> bool:
        if isinstance(schema, IntersectionOf):
            return any(map(self._has_statements, schema.types))
        return isinstance(schema, (ObjectOf, ArrayOf, TupleOf))

    def _kind_statements(self, scope: Scope, schema: GType, var: str, depth: Depth) -> None:
        match schema:
            case ObjectOf():
                self._object(scope, schema, var, depth)
            case ArrayOf():
                self._array(scope, schema, var, depth)
            case TupleOf():
                self._tuple(scope, schema, var, depth)
            case UnionOf():
                self._told_apart(scope, schema, var, depth)
            case IntersectionOf():
                for each in schema.types:
                    self.statements(scope, each, var, depth)
            case _:
                raise AssertionError(f"{type(schema).__name__} is written as a condition")

    # -- objects ----------------------------------------------------------------------------------

    def _object(self, scope: Scope, schema: ObjectOf, var: str, depth: Depth) -> None:
        checks: list[Condition] = [Atom(f"type({var}) is dict", f"type({var}) is not dict")]
        if schema.min_properties is not None:
            checks.append(size(var, ">=", schema.min_properties))
        if schema.max_properties is not None:
            checks.append(size(var, "<=", schema.max_properties))
        must = required_names(schema)
        required = {name: scope.local("value") for name in schema.properties if name in must}
        with scope.apart() as body:
            for name, inner in schema.properties.items():
                if name in required:
                    self.statements(scope, inner, required[name], depth.further())
                else:
                    self._when_there(scope, name, inner, var, depth)
            self._others(scope, schema, var, depth)
        if (end := f"{INDENT * scope.depth}return False") in body:  # there is a property that no value can have
            del body[body.index(end) + 1 :]
        used = set(re.findall(r"\bvalue_\d+", "\n".join(body)))
        needed = {name: local for name, local in required.items() if local in used}
        checks += [_in(name, var) for name in required if name not in needed]
        scope.refuse_unless(all_of(*checks))
        self._fetch(scope, needed, var)
        if schema.additional_properties is False:
            scope.refuse_unless(self._closed(schema, var, len(required)))
        scope.add(body)

    @staticmethod
    def _fetch(scope: Scope, names: dict[str, str], var: str) -> None:
        """Set variables to the values of properties that must be there."""
        if names:
            scope.line("try:")
            for name, local in names.items():
                scope.line(f"    {local} = {var}[{quoted(name)}]")
            scope.line("except KeyError:")
            scope.line("    return False")

    def _when_there(self, scope: Scope, name: str, inner: GType, var: str, depth: Depth) -> None:
        """Check a property that may be absent."""
        local = scope.local("value")
        there = Atom(f"{local} is not UNSET", f"{local} is UNSET")
        fetch = f"{local} = {var}.get({quoted(name)}, UNSET)"
        if inner.nullable and not is_undefined(inner):
            there = Atom(f"{local} is not None", f"{local} is None")  # null does as well as absence
            fetch = f"{local} = {var}.get({quoted(name)})"
        with scope.after(fetch):
            if self._has_statements(inner):
                with scope.when(there):
                    self.statements(scope, inner, local, depth.further())
            else:
                scope.refuse_unless(some_of(negated(there), self.condition(inner, local, depth.further())))

    def _closed(self, schema: ObjectOf, var: str, required: int) -> Condition:
        """Holds when an object that has all it must have has nothing that it may not have."""
        if required == len(schema.properties):
            return Atom(f"len({var}) == {required}", f"len({var}) != {required}")
        text = f"{var}.keys() <= {self._module.choices([quoted(name) for name in schema.properties])}"
        return Atom(text, f"not {text}")

    def _others(self, scope: Scope, schema: ObjectOf, var: str, depth: Depth) -> None:
        """Check the properties that the type does not name."""
        more, names = schema.additional_properties, schema.property_names
        if more is False or (more is True and names is None):
            return
        name, item = scope.local("name"), scope.local("item")
        unnamed: Condition = ALWAYS
        if schema.properties:
            known = self._module.choices([quoted(each) for each in schema.properties])
            unnamed = Atom(f"{name} not in {known}", f"{name} in {known}")
        with scope.items(name, item, var), scope.when(unnamed):
            if names is not None:
                scope.refuse_unless(self.condition(names, name, Depth("")))
            if not isinstance(more, bool):
                self.statements(scope, more, item, depth.further())

    # -- arrays and tuples ------------------------------------------------------------------------

    def _array(self, scope: Scope, schema: ArrayOf, var: str, depth: Depth) -> None:
        checks: list[Condition] = [Atom(f"type({var}) is list", f"type({var}) is not list")]
        if schema.min_items is not None:
            checks.append(size(var, ">=", schema.min_items))
        if schema.max_items is not None:
            checks.append(size(var, "<=", schema.max_items))
        scope.refuse_unless(all_of(*checks))
        item = scope.local("item")
        with scope.block(f"for {item} in {var}:"):
            self.statements(scope, schema.items, item, depth.further())
        if schema.unique_items:
            is_text = isinstance(schema.items, Primitive) and schema.items.primitive_type == "string"
            if is_text and not schema.items.nullable:
                scope.refuse_unless(Atom(f"len(set({var})) == len({var})", f"len(set({var})) != len({var})"))
            else:
                scope.refuse_unless(Atom(f"not _repeated({var})", f"_repeated({var})"))

    def _tuple(self, scope: Scope, schema: TupleOf, var: str, depth: Depth) -> None:
        least, _ = tuple_lengths(schema)
        is_list = Atom(f"type({var}) is list", f"type({var}) is not list")
        scope.refuse_unless(all_of(is_list, length_of(schema, var)))
        for index, inner in enumerate(schema.items):
            item = scope.local("item")
            there = ALWAYS if index < least else Atom(f"len({var}) > {index}", f"len({var}) <= {index}")
            with scope.when(there), scope.after(f"{item} = {var}[{index}]"):
                self.statements(scope, inner, item, depth.further())

    # -- unions whose members are told apart ------------------------------------------------------

    def _told_apart(self, scope: Scope, schema: UnionOf, var: str, depth: Depth) -> None:
        """Leave the function with the answer of the member that the value names, or ask those without a name."""
        tag = scope.local("tag")
        with scope.block(f"if type({var}) is dict:"), scope.after(f"{tag} = {var}.get({quoted(schema.discriminator)})"):
            for value, member in self._program.tags(schema):
                with scope.when(one_of([value], tag, self._module)):
                    answer = self.condition(member, var, depth)
                    if isinstance(answer, Atom) and answer.opposite.startswith("not _is_"):
                        scope.line(f"return {answer.text}")
                    else:
                        scope.refuse_unless(answer)
                        scope.accept()
        scope.refuse_unless(self.untagged(schema, var, depth))

    def untagged(self, schema: UnionOf, var: str, depth: Depth) -> Condition:
        """Holds for values that are of one of the types, though they name none of them."""
        found = []
        for member in schema.types:
            if not self._program.is_tagged(member, schema.discriminator):
                found.append(self.condition(member, var, depth))
            elif self._program.is_nullable(member):  # an object is not of this type, then, but null may be
                is_null = Atom(f"{var} is None", f"{var} is not None")
                found.append(all_of(is_null, self.condition(member, var, depth)))
        return some_of(*found)


def _in(name: str, var: str) -> Atom:
    return Atom(f"{quoted(name)} in {var}", f"{quoted(name)} not in {var}")
