"""The rules: what each kind of change means to those who send requests and those who read answers.

| change | request | response |
|---|---|---|
| a required field is added | breaking | non-breaking |
| an optional field is added | non-breaking | non-breaking |
| a field is removed | breaking only where unknown fields are refused | breaking if it was required |
| optional becomes required | breaking | non-breaking |
| required becomes optional | non-breaking | breaking |
| null becomes possible | non-breaking | breaking |
| null is no longer possible | breaking | non-breaking |
| a constraint is tightened, a choice removed, unknown fields refused | breaking | non-breaking |
| a constraint is loosened, a choice added | non-breaking | breaking |
| unknown fields are allowed | non-breaking | non-breaking |
| the type takes more than before | non-breaking | breaking |
| the type takes less than before | breaking | non-breaking |
| the type takes other values than before | breaking | breaking |
| other status codes | | breaking |

Who declared nothing takes everything. Whether another type takes more or less is decided by assignability: `integer`
to `number`, `T` to `T | U` and a literal to its type take more. In a map, every name stands for a field of the type
of its values: a field that takes its place breaks who sends, or reads, values of that type. Descriptions, metadata
and the defaults of answers are no changes; another default of a request, and another brand, are non-breaking ones.

Fields that a type does not declare are taken for absent: whoever sends a field before it exists may break when it
comes. A type that is used in many places is reported at the first `MAX_PLACES` of them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET

from gati_core.gtype._expected import REDACTED, expected, shown, tuple_lengths
from gati_core.gtype._model import (
    AnyOf,
    ArrayOf,
    Document,
    GType,
    IntersectionOf,
    ObjectOf,
    Ref,
    TupleOf,
    UnknownOf,
    is_required,
)
from gati_core.gtype.diff._assign import Assignment, may_be_absent
from gati_core.gtype.diff._constraints import moves
from gati_core.gtype.diff._members import Relation, label, matched
from gati_core.gtype.diff._records import Change, Operation, Side, escaped
from gati_core.gtype.diff._shapes import Shape, Shapes, required_of

MAX_PLACES = 20
_Pair: TypeAlias = "tuple[int, int]"

Effect: TypeAlias = Literal["takes more", "takes less", "takes other", "harmless"]
_encode = msgspec.json.Encoder().encode
_BREAKS: dict[Side, tuple[Effect, ...]] = {
    "request": ("takes less", "takes other"),
    "response": ("takes more", "takes other"),
}


def diff_documents(old: Document, new: Document, side: Side, *, path: str = "", is_exact: bool = False) -> list[Change]:
    """What differs between two types, in the order of their paths.

    Args:
        side: whether clients send values of these types or read them.
        path: put before every path; `/request/body` or `/response/body` when empty.
        is_exact: no value has fields beside those that its type declares, so who refuses others refuses nothing.
    """
    comparison = _Comparison(old, new, side, is_exact=is_exact)
    comparison.run(old.root, new.root, path or f"/{side}/body")
    return sorted(comparison.changes, key=lambda each: (each.path, each.operation, each.description))


class _Place(NamedTuple):
    """Two types to compare."""

    old: GType
    new: GType
    path: str
    inside: frozenset[_Pair]
    """What is being compared around them: a type that is met again inside itself is not looked at twice."""
    with_null: bool = True


class _Comparison:
    def __init__(self, old: Document, new: Document, side: Side, *, is_exact: bool) -> None:
        self._old, self._new = Shapes(old.definitions), Shapes(new.definitions)
        forward = Assignment(self._old, self._new, is_exact=is_exact)
        backward = Assignment(self._new, self._old, is_exact=is_exact)
        self._relation = Relation(self._old, self._new, forward, backward)
        self._side: Side = side
        self._is_exact = is_exact
        self._waiting: list[_Place] = []
        self._places: Counter[_Pair] = Counter()
        self._has_same_names = _encode(old.definitions) == _encode(new.definitions)
        self.changes: list[Change] = []

    def run(self, old: GType, new: GType, path: str) -> None:
        """Compare two types and all that is inside them."""
        if not (_is_unchecked(old) or _is_unchecked(new)):
            self._presence(not may_be_absent(old), not may_be_absent(new), path, "value")
        self._waiting = [] if self._is_same(old, new) else [_Place(old, new, path, frozenset())]
        while self._waiting:
            self._compare(self._waiting.pop())

    def _compare(self, place: _Place) -> None:
        old, new = self._old.of(place.old), self._new.of(place.new)
        self._labels(old, new, place.path)
        if not self._is_alike(old, new, place):
            self._kinds(place)
            return
        if place.with_null:
            self._nullability(old.nullable, new.nullable, place.path)
        if old.kind == "union" or new.kind == "union":
            self._within(old, new, place)
        elif old.kind != new.kind or old.kind == "choices":
            self._choices(old, new, place.path)
        elif old.kind in ("object", "array", "tuple", "intersection"):
            self._within(old, new, place)
        for moved in moves(old, new):
            effect: Effect = "takes less" if moved.move == "tightened" else "takes more"
            text = f"constraint {moved.move}: {moved.description}"
            self._note(effect, "modify", place.path, text, moved.old, moved.new)

    def _is_alike(self, old: Shape, new: Shape, place: _Place) -> bool:
        """Whether two types are compared part by part; else one of them takes more than the other, or they differ."""
        if old.kind == "intersection" and new.kind == "intersection":
            return len(old.members) == len(new.members)
        if old.kind == new.kind or {old.kind, new.kind} == {"choices", "boolean"}:
            return True
        if "union" not in (old.kind, new.kind) or old.validators or new.validators:
            return False
        return "never" not in (old.kind, new.kind) and not any(self._takes(place))

    # -- one place --------------------------------------------------------------------------------

    def _note(
        self, effect: Effect, operation: Operation, path: str, text: str, old: Any = None, new: Any = None
    ) -> None:
        breaks = effect in _BREAKS[self._side]
        severity: Literal["breaking", "non-breaking"] = "breaking" if breaks else "non-breaking"
        self.changes.append(Change(type=severity, operation=operation, path=path, description=text, old=old, new=new))

    def _presence(self, before: bool, after: bool, path: str, what: str) -> None:
        """Whether something had, and has, to be there."""
        if after and not before:
            self._note("takes less", "modify", path, f"optional {what} became required", False, True)
        elif before and not after:
            self._note("takes more", "modify", path, f"required {what} became optional", True, False)

    def _nullability(self, before: bool, after: bool, path: str) -> None:
        if after and not before:
            self._note("takes more", "modify", path, "may be null now", False, True)
        elif before and not after:
            self._note("takes less", "modify", path, "may no longer be null", True, False)

    def _labels(self, old: Shape, new: Shape, path: str) -> None:
        if old.brand != new.brand:
            text = f"its brand is {new.brand or 'none'}, was {old.brand or 'none'}"
            self._note("harmless", "modify", path, text, old.brand or None, new.brand or None)
        if self._side == "request" and (old.default is not UNSET or new.default is not UNSET):
            (was, before), (now, after) = _default(old), _default(new)
            if was != now:
                text = f"its default is {_said(new, now)}, was {_said(old, was)}"
                self._note("harmless", "modify", path, text, before, after)

    def _takes(self, place: _Place) -> tuple[bool, bool]:
        """Whether the new type takes all values of the old one, and the old one all of the new."""
        return (
            self._relation.forward.holds(place.old, place.new, with_null=place.with_null),
            self._relation.backward.holds(place.new, place.old, with_null=place.with_null),
        )

    def _kinds(self, place: _Place) -> None:
        was, now = expected(place.old, self._old.names), expected(place.new, self._new.names)
        match self._takes(place):
            case True, True:
                return  # said in other words
            case True, False:
                self._note("takes more", "modify", place.path, f"type widened from {was} to {now}", was, now)
            case False, True:
                self._note("takes less", "modify", place.path, f"type narrowed from {was} to {now}", was, now)
            case _:
                self._note("takes other", "modify", place.path, f"type changed from {was} to {now}", was, now)

    def _choices(self, old: Shape, new: Shape, path: str) -> None:
        # By type as well: 1, 1.0 and true are three.
        before, after = ({(type(value), value): value for value in each.values or (False, True)} for each in (old, new))
        for value in [value for key, value in before.items() if key not in after]:
            self._note("takes less", "remove", path, f"no longer one of the choices: {shown(value)}", value, None)
        for value in [value for key, value in after.items() if key not in before]:
            self._note("takes more", "add", path, f"one more choice: {shown(value)}", None, value)

    # -- what is inside ---------------------------------------------------------------------------

    def _within(self, old: Shape, new: Shape, place: _Place) -> None:
        pair = (id(old.node), id(new.node))
        if pair in place.inside:
            return
        if isinstance(place.old, Ref) or isinstance(place.new, Ref):
            self._places[pair] += 1
            if self._places[pair] > MAX_PLACES:
                return
        place = place._replace(inside=place.inside | {pair})
        if old.kind == "union" or new.kind == "union":
            self._unions(place)
            return
        match old.node, new.node:
            case ObjectOf(), ObjectOf():
                self._objects(old.node, new.node, place)
            case ArrayOf(), ArrayOf():
                self._later(place, old.node.items, new.node.items, "[]")
            case TupleOf(), TupleOf():
                self._tuples(old.node, new.node, place)
            case IntersectionOf(), IntersectionOf():
                for index, (before, after) in enumerate(zip(old.members, new.members, strict=True)):
                    self._later(place, before, after, f"&{index}")

    def _later(self, place: _Place, old: GType, new: GType, step: str, *, with_null: bool = True) -> None:
        if not self._is_same(old, new):
            self._waiting.append(_Place(old, new, f"{place.path}/{step}", place.inside, with_null))

    def _is_same(self, old: GType, new: GType) -> bool:
        """Whether two types are the same to the letter, and so are those that they refer to: most are."""
        text = _encode(old)
        return text == _encode(new) and (self._has_same_names or b'"$ref"' not in text)

    def _objects(self, old: ObjectOf, new: ObjectOf, place: _Place) -> None:
        needed, demanded = self._demanded(old), self._demanded(new)
        # The last is put first on the pile, and taken from it last.
        for name in sorted({*old.properties, *new.properties}, reverse=True):
            if name not in old.properties:
                self._added(old, new, name, name in demanded, f"{place.path}/{escaped(name)}")
            elif name not in new.properties:
                self._removed(old, new, name, f"{place.path}/{escaped(name)}")
            else:
                was, now = name in needed, name in demanded
                if was != now:
                    self._presence(was, now, f"{place.path}/{escaped(name)}", "field")
                self._later(place, old.properties[name], new.properties[name], escaped(name))
        self._additional(old, new, place)

    def _demanded(self, schema: ObjectOf) -> set[str]:
        """Fields that have to be there; clients may leave out what has a default."""
        names = required_of(schema)
        if self._side == "response":
            return names
        return {name for name in names if schema.properties[name].default is UNSET}

    def _added(self, old: ObjectOf, new: ObjectOf, name: str, is_demanded: bool, path: str) -> None:
        given, more = new.properties[name], old.additional_properties
        kind = expected(given, self._new.names)
        effect: Effect = "harmless"
        if not isinstance(more, bool) and self._relation.backward.takes_name(name, old.property_names):
            # In a map every name was a field before.
            if self._side == "request":
                fits = self._relation.forward.holds(more, given)
            else:
                fits = self._relation.backward.holds(given, more)
            effect = "harmless" if fits else "takes other"
        what = "optional field"
        if is_demanded:
            what = "required field"
            effect = "takes less" if self._side == "request" else effect
        elif is_required(new, name):
            what = "field with a default"
        self._note(effect, "add", path, f"{what} added: {kind}", None, kind)

    def _removed(self, old: ObjectOf, new: ObjectOf, name: str, path: str) -> None:
        given, more = old.properties[name], new.additional_properties
        kind = expected(given, self._old.names)
        relation = self._relation
        is_named = relation.forward.takes_name(name, new.property_names)
        if self._side == "request":
            fits = is_named and (more if isinstance(more, bool) else relation.forward.holds(given, more))
        else:
            fits = isinstance(more, bool) or not is_named or relation.backward.holds(more, given)
            fits = fits and not is_required(old, name)
        what = "required" if is_required(old, name) else "optional"
        self._note("harmless" if fits else "takes other", "remove", path, f"{what} field removed: {kind}", kind, None)

    def _additional(self, old: ObjectOf, new: ObjectOf, place: _Place) -> None:
        """What becomes of fields that are not declared."""
        more, then = old.additional_properties, new.additional_properties
        before, after = _openness(more, self._old), _openness(then, self._new)
        path = place.path
        if not isinstance(more, bool) and not isinstance(then, bool):
            self._later(place, more, then, "{}")
        elif before == after or (self._is_exact and more is True):
            pass
        elif after == "closed":
            self._note("takes less", "modify", path, "unknown fields are refused now", True, False)
        elif before == "closed":
            self._note("harmless", "modify", path, "unknown fields are allowed now", False, True)
        elif not isinstance(then, bool):
            kind = expected(then, self._new.names)
            self._note("takes less", "modify", f"{path}/{{}}", f"unknown fields have a type now: {kind}", None, kind)
        elif not isinstance(more, bool):
            kind = expected(more, self._old.names)
            text = f"unknown fields may be anything now, were: {kind}"
            self._note("takes more", "modify", f"{path}/{{}}", text, kind, None)
        if "closed" in (before, after) or (self._is_exact and more is True):
            return
        if old.property_names is not None and new.property_names is not None:
            self._later(place, old.property_names, new.property_names, "{name}")
        elif old.property_names is not None:
            was = expected(old.property_names, self._old.names)
            self._note("takes more", "modify", path, "names of fields may be any text now", was, None)
        elif new.property_names is not None:
            now = expected(new.property_names, self._new.names)
            self._note("takes less", "modify", path, "names of fields are limited now", None, now)

    def _tuples(self, old: TupleOf, new: TupleOf, place: _Place) -> None:
        (fewest, most), (least, largest) = tuple_lengths(old), tuple_lengths(new)
        for index in range(max(most, largest)):
            path = f"{place.path}/{index}"
            # Who reads a tuple does not skip what is too much.
            if index >= most:
                kind = expected(new.items[index], self._new.names)
                what, effect = ("required", "takes other") if index < least else ("optional", "takes more")
                self._note(effect, "add", path, f"{what} item added: {kind}", None, kind)  # type: ignore[arg-type]
            elif index >= largest:
                kind = expected(old.items[index], self._old.names)
                what, effect = ("required", "takes other") if index < fewest else ("optional", "takes less")
                self._note(effect, "remove", path, f"{what} item removed: {kind}", kind, None)  # type: ignore[arg-type]
            else:
                self._presence(index < fewest, index < least, path, "item")
                self._later(place, old.items[index], new.items[index], str(index))

    def _unions(self, place: _Place) -> None:
        found = matched(place.old, place.new, self._relation, self._side)
        for before, after in found.pairs:
            step = label(before, self._old.of(before))
            self._later(place, before, after, f"|{step}", with_null=False)
        for before in found.gone:
            kind = expected(before, self._old.names)
            step = label(before, self._old.of(before))
            self._note("takes less", "remove", f"{place.path}/|{step}", f"no longer {kind}", kind, None)
        for after in found.come:
            kind = expected(after, self._new.names)
            step = label(after, self._new.of(after))
            self._note("takes more", "add", f"{place.path}/|{step}", f"may be {kind} now", None, kind)


def _is_unchecked(root: GType) -> bool:
    """Whether this stands for no declaration at all: anything, even nothing."""
    return root.optional and isinstance(root, (AnyOf, UnknownOf)) and not root.validators


def _openness(more: bool | GType, shapes: Shapes) -> Literal["open", "closed", "typed"]:
    if isinstance(more, bool):
        return "open" if more else "closed"
    shape = shapes.of(more)
    return "open" if shape.kind == "any" and not shape.validators else "typed"


def _default(shape: Shape) -> tuple[str, Any]:
    """A default as JSON, and as changes have it: what has an inside as its JSON, so that nobody can change it."""
    if shape.default is UNSET:
        return "", None
    text = msgspec.json.encode(shape.default, order="sorted").decode()
    if shape.is_secret:
        return text, REDACTED
    return text, text if isinstance(shape.default, (list, dict)) else shape.default


def _said(shape: Shape, text: str) -> str:
    return REDACTED if shape.is_secret and text else text or "none"
