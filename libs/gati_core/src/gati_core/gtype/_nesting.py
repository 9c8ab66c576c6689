"""How deep a value may be, where its type sets no end to it.

Values of recursive types can be nested as deep as somebody likes to write them. Validators follow them
`MAX_NESTING` steps from the root; what is deeper is an error, so that no value can exhaust the stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gati_core.gtype._model import GType, IntersectionOf, Ref, UnionOf, children

MAX_NESTING = 200
"""Names and indexes in the path to a value of a recursive type. Other types end by themselves."""


def references(schema: GType) -> list[str]:
    """The definitions that a type names, anywhere inside it, each once."""
    found: dict[str, None] = {}
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Ref):
            found[each.ref] = None
        waiting += [inner for _, inner in children(each)]
    return list(found)


def references_here(schema: GType) -> list[str]:
    """The definitions that the same value has to be of as well, or may be: no object or array is between."""
    found: dict[str, None] = {}
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Ref):
            found[each.ref] = None
        elif isinstance(each, (UnionOf, IntersectionOf)):
            waiting += each.types
    return list(found)


def endless(definitions: Mapping[str, GType]) -> frozenset[str]:
    """The definitions that are recursive or lead to one that is."""
    return circling({name: references(schema) for name, schema in definitions.items()})


def circling(leads_to: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The names from which one can go on without end."""
    comes_from: dict[str, list[str]] = {name: [] for name in leads_to}
    left = {}
    for name, found in leads_to.items():
        left[name] = len(found)
        for each in found:
            comes_from[each].append(name)
    ending = [name for name, count in left.items() if count == 0]
    while ending:  # what leads only to ends is an end itself
        name = ending.pop()
        del left[name]
        for each in comes_from[name]:
            left[each] -= 1
            if left[each] == 0:
                ending.append(each)
    return frozenset(left)


def is_deeper(value: Any, steps: int) -> bool:
    """Whether anything inside a JSON value is more than so many steps away from it."""
    level = [value]
    for _ in range(steps + 1):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return False
    return True


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
