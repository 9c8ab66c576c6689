"""Writes functions that list everything that is wrong with a value.

    def _errors_4(value: Any, path: tuple[Step, ...], errors: list[FieldError]) -> None:

They follow the type as the reference does and find the same errors in the same order. Whether a member of a
union fits they ask the functions that only accept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from gati_core.gtype._brands import is_secret
from gati_core.gtype._expected import counted, expected, shown, tuple_lengths
from gati_core.gtype._model import (
    ArrayOf,
    GType,
    IntersectionOf,
    ObjectOf,
    Ref,
    TupleOf,
    UnionOf,
)
from gati_core.gtype._python_accept import Acceptance, Depth
from gati_core.gtype._python_module import Scope, comment
from gati_core.gtype._python_program import Program, is_undefined, required_names
from gati_core.gtype._python_rules import Rule, length_of, one_of, rules_of, size
from gati_core.gtype._python_text import (
    ALWAYS,
    NEVER,
    Atom,
    Condition,
    all_of,
    branch,
    negated,
    quoted,
    some_of,
)

_MANY_RULES = 10
"""More constraints than this are not written as one chain of `elif`, which Python nests."""

Link: TypeAlias = "tuple[Condition, Callable[[Scope], None]]"
"""When something is wrong, and what writes the error then."""


class Path(NamedTuple):
    """The way to a value, as code: `(*path, "lines", index_1)`."""

    base: str
    steps: tuple[str, ...] = ()

    def to(self, step: str) -> Path:
        """The way on, by a name or index that is code itself."""
        return Path(self.base, (*self.steps, step))

    @property
    def depth(self) -> Depth:
        """How far it is, as code."""
        return Depth(f"len({self.base})", len(self.steps))

    def __str__(self) -> str:
        return f"(*{self.base}, {', '.join(self.steps)})" if self.steps else self.base


class Diagnosis:
    """Writes what lists errors, for one document."""

    def __init__(self, program: Program, acceptance: Acceptance) -> None:
        self._program = program
        self._module = program.module
        self._acceptance = acceptance

    def root(self, name: str) -> None:
        """Write `validate_<name>`."""
        root = self._program.document.root
        scope = Scope(self._module)
        scope.line(f"if is_{name}(value):")
        scope.line("    return []")
        scope.line("errors: list[FieldError] = []")
        number = self._program.number("errors of the root", self._root_function)
        seen = ", {}" if self._program.remembers(root) else ""
        call = f"_errors_{number}(value, (), errors{seen})"
        if self._program.counts(root):
            scope.line("try:")
            scope.line(f"    {call}")
            scope.line("except RecursionError:")
            scope.line("    errors.clear()")
            with scope.block():
                said = ['message="nested too deep to be checked"', *_secret(root)]
                scope.call("_too_deep", "errors", "()", "value", *said)
        else:
            scope.line(call)
        scope.line("return errors[:MAX_ERRORS]")
        head = f"def validate_{name}(value: Any) -> list[FieldError]:"
        self._module.function(head, "Everything that is wrong with a value; nothing when it is valid.", scope)

    # -- functions --------------------------------------------------------------------------------

    def _root_function(self, number: int) -> None:
        root = self._program.document.root
        scope = Scope(self._module)
        self._statements(scope, root, "value", Path("path"), may_be_absent=not root.optional)
        self._write(number, root, scope)

    def _definition_function(self, number: int, reference: Ref) -> None:
        name = reference.ref
        schema = self._program.definitions[name]
        scope = Scope(self._module)
        if name in self._program.endless:
            scope.line("if len(path) > MAX_NESTING:")
            with scope.block():
                scope.call("_too_deep", "errors", "path", "value", *_secret(schema))
            scope.line("    return")
        if name in self._program.remembered:
            # A value that comes by again and again is looked into only as long as that finds something.
            accepted = self._acceptance.kind(reference, "value", Path("path").depth)
            full = Atom("len(errors) >= MAX_ERRORS", "len(errors) < MAX_ERRORS")
            scope.lines += branch("if", some_of(full, accepted), scope.depth)
            scope.line("    return")
        self._statements(scope, schema, "value", Path("path"))
        self._write(number, reference, scope)

    def _kind_function(self, number: int, schema: GType) -> None:
        scope = Scope(self._module)
        self._kind_statements(scope, schema, "value", Path("path"))
        self._write(number, schema, scope)

    def _whole_function(self, number: int, schema: GType) -> None:
        scope = Scope(self._module)
        self._statements(scope, schema, "value", Path("path"))
        self._write(number, schema, scope)

    def _union_function(self, number: int, schema: UnionOf) -> None:
        scope = Scope(self._module)
        self._told_apart(scope, schema, "value", Path("path"))
        self._write(number, schema, scope)

    def _rules_function(self, number: int, schema: GType) -> None:
        scope = Scope(self._module)
        for rule in rules_of(schema, "value", self._module):
            with scope.when(negated(rule.holds)):
                self._broken(scope, schema=schema, rule=rule, var="value", path=Path("path"))
                scope.line("return")
        self._write(number, schema, scope)

    def _write(self, number: int, schema: GType, scope: Scope) -> None:
        parameters = "value: Any, path: tuple[Step, ...], errors: list[FieldError]"
        if self._program.remembers(schema):
            parameters += ", seen: _Seen"
        head = f"def _errors_{number}({parameters}) -> None:"
        if isinstance(schema, Ref):
            head += comment(schema.ref)
        if not scope.lines:
            scope.line("return")
        self._module.function(head, "", scope)

    def _call(
        self, scope: Scope, write: Callable[[int, Any], None], schema: GType, var: str, path: Path, into: str = "errors"
    ) -> None:
        """Call a function that `write` writes later, once for a definition or type."""
        key = ("errors", write.__name__, schema.ref if isinstance(schema, Ref) else id(schema))
        number = self._program.number(key, lambda number: write(number, schema))
        seen = ["seen"] if self._program.remembers(schema) else []
        scope.call(f"_errors_{number}", var, str(path), into, *seen)

    # -- one value --------------------------------------------------------------------------------

    def _statements(self, scope: Scope, schema: GType, var: str, path: Path, *, may_be_absent: bool = False) -> None:
        """Statements that add to `errors` what is wrong with the value."""
        if is_undefined(schema):
            self._unfit(scope, schema, var, path)
        elif may_be_absent and not self._program.refuses_absence(schema):
            scope.line(f"if {var} is UNSET:")
            with scope.block():
                self._unfit(scope, schema, var, path)
            with scope.block("else:"):
                self._statements(scope, schema, var, path)
        else:
            with scope.when(Atom(f"{var} is not None", f"{var} is None") if schema.nullable else ALWAYS):
                self._not_null(scope, schema, var, path)

    def _not_null(self, scope: Scope, schema: GType, var: str, path: Path) -> None:
        """The same for a value that is neither absent nor null, where the type makes something of that."""
        rules = self._rules(schema, var, path)
        if self._program.is_leaf(schema) or (isinstance(schema, UnionOf) and not schema.discriminator):
            fails = negated(self._acceptance.kind(schema, var, path.depth))
            self._chain(scope, [(fails, lambda scope: self._unfit(scope, schema, var, path)), *rules])
        elif not rules:
            self._kind_statements(scope, schema, var, path)
        else:
            before = scope.local("before")
            scope.line(f"{before} = len(errors)")
            self._kind_statements(scope, schema, var, path)
            with scope.when(Atom(f"len(errors) == {before} < MAX_ERRORS", f"not len(errors) == {before} < MAX_ERRORS")):
                self._chain(scope, rules)

    def _unfit(self, scope: Scope, schema: GType, var: str, path: Path) -> None:
        """The value is not of the kind, or not there."""
        function = "_wrong_union" if isinstance(schema, UnionOf) and self._program.counts(schema) else "_wrong"
        text = self._module.text(expected(schema, self._program.definitions))
        scope.call(function, "errors", str(path), text, var, *_secret(schema))

    def _rules(self, schema: GType, var: str, path: Path) -> list[Link]:
        rules = rules_of(schema, var, self._module)
        if len(rules) > _MANY_RULES:
            return [(ALWAYS, lambda scope: self._call(scope, self._rules_function, schema, var, path))]
        return [
            (negated(rule.holds), partial(self._broken, schema=schema, rule=rule, var=var, path=path)) for rule in rules
        ]

    def _broken(self, scope: Scope, *, schema: GType, rule: Rule, var: str, path: Path) -> None:
        """The value does not keep to a constraint."""
        message = [f"message={self._module.text(rule.message)}"] if rule.message else []
        scope.call("_wrong", "errors", str(path), self._module.text(rule.expects), var, *message, *_secret(schema))

    @staticmethod
    def _chain(scope: Scope, links: list[Link]) -> None:
        """The first of these that applies."""
        arms: list[Link] = []
        texts: list[list[str]] = []
        for applies, write in links:
            if applies == NEVER:
                continue
            with scope.apart() as text:
                write(scope)
            if texts and texts[-1] == text:  # the same is said, for one more reason
                arms[-1] = (some_of(arms[-1][0], applies), write)
            else:
                arms.append((applies, write))
                texts.append(text)
            if applies == ALWAYS:
                break
        for number, (applies, write) in enumerate(arms):
            if applies != ALWAYS:
                with scope.when(applies, "elif" if number else "if"):
                    write(scope)
            else:
                with scope.block("else:") if number else nullcontext():
                    write(scope)

    def _kind_statements(self, scope: Scope, schema: GType, var: str, path: Path) -> None:
        """Statements for what is inside a value, or for a reference."""
        if isinstance(schema, Ref):
            if self._program.is_leaf(self._program.target(schema)):
                self._statements(scope, self._program.definitions[schema.ref], var, path)
            else:
                self._call(scope, self._definition_function, schema, var, path)
        elif isinstance(schema, UnionOf):
            self._call(scope, self._union_function, schema, var, path)
        elif scope.is_deep:
            self._call(scope, self._kind_function, schema, var, path)
        elif isinstance(schema, IntersectionOf):
            for each in schema.types:
                self._statements(scope, each, var, path)
        else:
            self._container(scope, schema, var, path)

    def _container(self, scope: Scope, schema: GType, var: str, path: Path) -> None:
        kind = "dict" if isinstance(schema, ObjectOf) else "list"
        is_kind: Condition = Atom(f"type({var}) is {kind}", f"type({var}) is not {kind}")
        if isinstance(schema, TupleOf):
            is_kind = all_of(is_kind, length_of(schema, var))
        with scope.when(negated(is_kind)):
            self._unfit(scope, schema, var, path)
        with scope.block("else:"):
            match schema:
                case ObjectOf():
                    self._object(scope, schema, var, path)
                case ArrayOf():
                    self._array(scope, schema, var, path)
                case TupleOf():
                    self._tuple(scope, schema, var, path)
                case _:
                    raise AssertionError(f"{type(schema).__name__} has nothing inside")

    # -- what is inside ---------------------------------------------------------------------------

    def _object(self, scope: Scope, schema: ObjectOf, var: str, path: Path) -> None:
        required = required_names(schema)
        for name, inner in schema.properties.items():
            local = scope.local("value")
            further = path.to(quoted(name))
            if name in required:
                with scope.after(f"{local} = {var}.get({quoted(name)}, UNSET)"):
                    self._statements(scope, inner, local, further, may_be_absent=True)
            elif inner.nullable and not is_undefined(inner):  # null does as well as absence
                there = Atom(f"{local} is not None", f"{local} is None")
                with scope.after(f"{local} = {var}.get({quoted(name)})"), scope.when(there):
                    self._not_null(scope, inner, local, further)
            else:
                there = Atom(f"{local} is not UNSET", f"{local} is UNSET")
                with scope.after(f"{local} = {var}.get({quoted(name)}, UNSET)"), scope.when(there):
                    self._statements(scope, inner, local, further)
        self._others(scope, schema, var, path)
        self._sizes(scope, var, path, schema.min_properties, schema.max_properties, "property")

    def _others(self, scope: Scope, schema: ObjectOf, var: str, path: Path) -> None:
        """Properties that the type does not name."""
        more, names = schema.additional_properties, schema.property_names
        if more is True and names is None:
            return
        name, item = scope.local("name"), scope.local("item")
        unnamed: Condition = ALWAYS
        if schema.properties:
            known = self._module.choices([quoted(each) for each in schema.properties])
            unnamed = Atom(f"{name} not in {known}", f"{name} in {known}")
        with scope.items(name, item, var):
            with scope.when(unnamed):
                if names is not None:
                    found = scope.local("found")
                    scope.line(f"{found}: list[FieldError] = []")
                    self._call(scope, self._whole_function, names, name, Path("()"), found)
                    scope.call("_wrong_name", "errors", str(path), name, found)
                if more is False:
                    scope.call("_unknown", "errors", str(path), name, item, *_secret(schema))
                elif more is not True:
                    self._statements(scope, more, item, path.to(name))
            self._stop_when_full(scope)

    def _array(self, scope: Scope, schema: ArrayOf, var: str, path: Path) -> None:
        index, item = scope.local("index"), scope.local("item")
        with scope.block(f"for {index}, {item} in enumerate({var}):"):
            self._statements(scope, schema.items, item, path.to(index))
            self._stop_when_full(scope)
        self._sizes(scope, var, path, schema.min_items, schema.max_items, "item")
        if schema.unique_items:
            again = scope.local("index")
            with scope.block(f"for {again} in _repeated({var}):"):
                said = ['"items that differ"', f"{var}[{again}]", 'message="the same item is there twice"']
                scope.call("_wrong", "errors", str(path.to(again)), *said, *_secret(schema.items))
                self._stop_when_full(scope)

    @staticmethod
    def _stop_when_full(scope: Scope) -> None:
        """End a loop that does something."""
        if scope.lines:
            scope.line("if len(errors) >= MAX_ERRORS:")
            scope.line("    break")

    @staticmethod
    def _sizes(scope: Scope, var: str, path: Path, least: int | None, most: int | None, noun: str) -> None:
        for bound, sign, word in ((least, ">=", "least"), (most, "<=", "most")):
            if bound is not None:
                with scope.when(negated(size(var, sign, bound))):
                    text = quoted(f"at {word} {counted(bound, noun)}")
                    scope.call("_wrong_size", "errors", str(path), text, f"len({var})")

    def _tuple(self, scope: Scope, schema: TupleOf, var: str, path: Path) -> None:
        least, _ = tuple_lengths(schema)
        for index, inner in enumerate(schema.items):
            item = scope.local("item")
            there = ALWAYS if index < least else Atom(f"len({var}) > {index}", f"len({var}) <= {index}")
            with scope.when(there), scope.after(f"{item} = {var}[{index}]"):
                self._statements(scope, inner, item, path.to(str(index)))

    # -- unions whose members are told apart ------------------------------------------------------

    def _told_apart(self, scope: Scope, schema: UnionOf, var: str, path: Path) -> None:
        """Leave the function with the errors of the member that the value names, or ask those without a name."""
        tag, name = scope.local("tag"), quoted(schema.discriminator)
        untagged = self._acceptance.untagged(schema, var, path.depth)
        with scope.block(f"if type({var}) is dict:"), scope.after(f"{tag} = {var}.get({name})"):
            for value, member in self._program.tags(schema):
                with scope.when(one_of([value], tag, self._module)):
                    self._statements(scope, member, var, path)
                    scope.line("return")
            named = self._program.all_tags(schema)
            if named:
                text = self._module.text(f"one of {', '.join(map(shown, named))}")
                with scope.when(negated(untagged)):
                    actual = f"{var}.get({name}, UNSET)"
                    scope.call("_wrong", "errors", str(path.to(name)), text, actual, *_secret(schema))
                scope.line("return")
        with scope.when(negated(untagged)):
            self._unfit(scope, schema, var, path)


def _secret(schema: GType) -> list[str]:
    """The argument that hides the value."""
    return ["secret=True"] if is_secret(schema) else []
