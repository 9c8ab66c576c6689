"""What the generator knows of a whole document before it writes the validators of it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from msgspec import UNSET

from gati_core.errors import MalformedGType
from gati_core.gtype._interpreter import tag_of
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
    walk,
)
from gati_core.gtype._nesting import circling, endless, references, references_here
from gati_core.gtype._python_module import Module


class Program:
    """One document on its way into a module.

    Functions are named by numbers and written one after the other, each when somebody has called it.
    """

    def __init__(self, module: Module, document: Document) -> None:
        self.module = module
        self.document = document
        self.definitions = document.definitions
        _refuse_standing_still(document)
        self.endless = endless(self.definitions)
        """Definitions that values of any depth can be of; their functions count."""
        self._references: dict[int, frozenset[str]] = {}
        self._reach: dict[str, frozenset[str]] = {}
        self._here: dict[str, frozenset[str]] = {}
        self._remembers: dict[int, bool] = {}
        self.remembered = self._visited_twice()
        """Definitions that one value may be compared with more than once: their functions remember. Else types
        such as `A = {x: A} | {x: A, y?: …}` would take twice the time for every level of a value."""
        self._waiting: deque[Callable[[], None]] = deque()
        self._numbers: dict[Any, int] = {}

    # -- functions --------------------------------------------------------------------------------

    def number(self, key: Any, write: Callable[[int], None]) -> int:
        """The number of the function with this key, which is written later by `write(number)`."""
        if key not in self._numbers:
            number = self._numbers[key] = self.module.function_number()
            self._waiting.append(lambda: write(number))
        return self._numbers[key]

    def finish(self) -> None:
        """Write all that was called."""
        while self._waiting:
            self._waiting.popleft()()

    def counts(self, schema: GType) -> bool:
        """Whether a function for this type has to know how deep it is."""
        return not self.endless.isdisjoint(self.references(schema))

    def remembers(self, schema: GType) -> bool:
        """Whether a function for this type passes on what was found out already."""
        if not self.remembered:
            return False
        found = self._remembers.get(id(schema))
        if found is None:
            found = any(not self.remembered.isdisjoint(self.reach(name)) for name in self.references(schema))
            self._remembers[id(schema)] = found
        return found

    # -- the graph of definitions -----------------------------------------------------------------

    def references(self, schema: GType) -> frozenset[str]:
        """Definitions that the type names."""
        found = self._references.get(id(schema))
        if found is None:
            found = self._references[id(schema)] = frozenset(references(schema))
        return found

    def reach(self, name: str) -> frozenset[str]:
        """A definition and all that it leads to."""
        return self._closure(name, self.references, self._reach)

    def _reach_here(self, name: str) -> frozenset[str]:
        """A definition and all that the same value is compared with for its sake."""
        return self._closure(name, references_here, self._here)

    def _closure(
        self, name: str, step: Callable[[GType], Iterable[str]], known: dict[str, frozenset[str]]
    ) -> frozenset[str]:
        if name not in known:
            found: set[str] = set()
            waiting = [name]
            while waiting:
                each = waiting.pop()
                if each not in found:
                    found.add(each)
                    waiting += step(self.definitions[each])
            known[name] = frozenset(found)
        return known[name]

    def target(self, schema: GType) -> GType:
        """What references stand for in the end."""
        while isinstance(schema, Ref):
            schema = self.definitions[schema.ref]
        return schema

    def _visited_twice(self) -> frozenset[str]:
        found: set[str] = set()
        for _, _, schema in walk(self.document):
            if not isinstance(schema, (UnionOf, IntersectionOf)) or not self.references(schema):
                continue
            found |= _repeated([_all(references_here(each), self._reach_here) for each in schema.types])
            for kind in ("object", "array"):
                members = [each for each in schema.types if kind in self._looks_into(each)]
                if len(members) > 1:
                    found |= self._common(schema, members)
        return frozenset(name for name in found if not self.is_leaf(self.definitions[name]))

    def _common(self, schema: UnionOf | IntersectionOf, members: list[GType]) -> set[str]:
        """Definitions that more than one member leads to."""
        reached: list[set[str]] = []
        tagged: set[str] = set()
        for member in members:
            names = _all(self.references(member), self.reach)
            if isinstance(schema, UnionOf) and self.is_tagged(member, schema.discriminator):
                tagged |= names  # of these members, at most one is looked at
            else:
                reached.append(names)
        return _repeated([*reached, tagged])

    def _looks_into(self, schema: GType) -> set[str]:
        """The kinds of values whose insides a type is compared with."""
        here = [schema, *(self.definitions[name] for name in _all(references_here(schema), self._reach_here))]
        found: set[str] = set()
        while here:
            each = here.pop()
            if isinstance(each, ObjectOf):
                found.add("object")
            elif isinstance(each, (ArrayOf, TupleOf)):
                found.add("array")
            elif isinstance(each, (UnionOf, IntersectionOf)):
                here += each.types
        return found

    # -- questions about a type -------------------------------------------------------------------

    def is_leaf(self, schema: GType) -> bool:
        """Whether one condition says all, without looking into the value."""
        return isinstance(schema, (Primitive, LiteralOf, Enumeration, AnyOf, UnknownOf, NeverOf))

    def refuses_absence(self, schema: GType) -> bool:
        """Whether its condition fails by itself for a value that is not there."""
        return not isinstance(schema, (AnyOf, UnknownOf, UnionOf, IntersectionOf, Ref))

    def tags(self, schema: UnionOf) -> list[tuple[Any, GType]]:
        """The literals by which members are told apart, each with the first member of that literal."""
        found: dict[tuple[type, Any], tuple[Any, GType]] = {}
        for member in schema.types:
            tag = tag_of(member, schema.discriminator, self.definitions)
            if tag is not UNSET:
                found.setdefault((type(tag), tag), (tag, member))
        return list(found.values())

    def all_tags(self, schema: UnionOf) -> list[Any]:
        """The literal of each member, where every one has its own; else nothing."""
        found = [tag_of(member, schema.discriminator, self.definitions) for member in schema.types]
        return [] if UNSET in found else found

    def is_tagged(self, schema: GType, discriminator: str) -> bool:
        """Whether no object without its tag can be of this type."""
        schema = self.target(schema)
        tag = schema.properties.get(discriminator) if discriminator and isinstance(schema, ObjectOf) else None
        return (
            isinstance(schema, ObjectOf)
            and isinstance(tag, LiteralOf)
            and not tag.nullable
            and discriminator in required_names(schema)
        )

    def inlined(self, schema: GType) -> GType:
        """The definition itself in place of a reference that adds nothing, where it is not needed as a function."""
        while isinstance(schema, Ref) and not (schema.nullable or schema.validators):
            if schema.ref in self.endless or schema.ref in self.remembered:
                break
            schema = self.definitions[schema.ref]
        return schema

    def is_nullable(self, schema: GType) -> bool:
        """Whether null is accepted by a reference or by what it stands for."""
        while isinstance(schema, Ref) and not schema.nullable:
            schema = self.definitions[schema.ref]
        return schema.nullable


def required_names(schema: ObjectOf) -> frozenset[str]:
    """The properties that an object must have; all at once, for there may be thousands."""
    return frozenset(name for name in schema.required if not schema.properties[name].optional)


def is_undefined(schema: GType) -> bool:
    """Whether only absence is of the type."""
    return isinstance(schema, Primitive) and schema.primitive_type == "undefined"


def _all(names: Iterable[str], reach: Callable[[str], frozenset[str]]) -> set[str]:
    return set[str]().union(*map(reach, names))


def _repeated(groups: Iterable[set[str]]) -> set[str]:
    """What is in more than one of them."""
    count = Counter(name for group in groups for name in group)
    return {name for name, times in count.items() if times > 1}


def _refuse_standing_still(document: Document) -> None:
    """A definition must not lead to itself at the same place, as in `A = A | string`: nothing would decide it."""
    left = circling({name: references_here(schema) for name, schema in document.definitions.items()})
    if left:
        raise MalformedGType(f"#{min(left)}: leads back to itself without an object or an array between")
