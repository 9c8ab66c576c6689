"""Hypothesis strategies for types as data: documents, values that fit them, and values that nearly do.

    @given(data=st.data(), document=gtypes.documents())
    def test_validators_agree(data, document):
        value = data.draw(gtypes.near_values(document))

Every document of `documents()` has values, and `values_of` finds them without trying many. Recursive
definitions are among them; what recurs can always be left out, be null, or be no item of an array.
`wild_documents()` makes less sense: bounds that exclude each other, constraints on values of another kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from hypothesis import strategies as st
from msgspec import structs

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
    Validator,
    resolve,
)
from gati_testing._gtype_values import (
    BOOLEANS,
    FORMATS,
    NAMES,
    NUMBER_BRANDS,
    PATTERNS,
    TEXT_BRANDS,
    Draw,
    below,
    json_values,
    near_values,
    pick,
    values_of,
)

__all__ = ["documents", "json_values", "near_values", "values_of", "wild_documents"]

_SCALARS: tuple[Any, ...] = ("a", "b", "", "it's", 1, 2, 1.0, 2.5, -1, True, False, 2**70)
_SOME_NAMES = st.lists(st.sampled_from(NAMES), max_size=3, unique=True)
_DEEPEST = 3
"""Types inside types, references aside."""


def documents(*, checks: Sequence[str] = ()) -> st.SearchStrategy[Document]:
    """Types of every kind that have values.

    Args:
        checks: registered checks for `custom` constraints on texts; some short texts of `a` to `c` must pass.
    """
    return _documents(tuple(checks), False)


def wild_documents(*, checks: Sequence[str] = ()) -> st.SearchStrategy[Document]:
    """Types that are well formed, though they may accept nothing."""
    return _documents(tuple(checks), True)


@st.composite
def _documents(draw: Draw, checks: tuple[str, ...], is_wild: bool) -> Document:
    names = draw(_SOME_NAMES)
    definitions: dict[str, GType] = {}
    for index in reversed(range(len(names))):  # so that those that come later can be looked at
        types = _Types(draw, checks, is_wild, earlier=names[: index + 1], later=names[index + 1 :], known=definitions)
        definitions[names[index]] = types.schema(_Place())
    root = _Types(draw, checks, is_wild, earlier=[], later=names, known=definitions).schema(_Place())
    if draw(below(10)) == 9:
        root = structs.replace(root, optional=True)
    return Document(
        root=root,
        definitions={name: definitions[name] for name in names},
        metadata={"name": pick(draw, ("Order", "it's", ""))},
    )


class _Place(NamedTuple):
    """Where a type stands in the one that is drawn."""

    depth: int = 0
    is_inside: bool = False
    """In an object, array or tuple."""
    may_be_left_out: bool = False


class _Types:
    """Draws the types of one definition.

    At its own place it refers only to definitions that come later; inside, what refers to an earlier one or to
    itself can be left out or be null. So there is no circle without an end.
    """

    def __init__(
        self,
        draw: Draw,
        checks: tuple[str, ...],
        is_wild: bool,
        *,
        earlier: list[str],
        later: list[str],
        known: Mapping[str, GType],
    ) -> None:
        self._draw = draw
        self._checks = checks
        self._is_wild = is_wild
        self._earlier = earlier
        self._later = later
        self._known = known

    def schema(self, place: _Place) -> GType:
        """One type."""
        kinds: list[Callable[[_Place], GType]] = [self._text, self._number, self._plain, self._choice]
        if place.depth > 0:
            kinds += [self._text, self._number]
        if place.depth < _DEEPEST:
            kinds += [self._object, self._object, self._object, self._array, self._tuple, self._union]
            kinds += [self._tagged_union, self._intersection]
        if self._later or (self._earlier and place.is_inside):
            kinds += [self._reference, self._reference, self._reference]
        return self._with_flags(pick(self._draw, kinds)(place))

    def _inside(self, place: _Place, *, may_be_left_out: bool = False) -> GType:
        return self.schema(_Place(place.depth + 1, True, may_be_left_out))

    def _with_flags(self, schema: GType) -> GType:
        draw = self._draw
        changes: dict[str, Any] = {}
        if self._one_in(5):
            changes["nullable"] = True
        if self._one_in(12):
            changes["metadata"] = {"secret": True}
        if schema.validators and self._one_in(6):
            changes["validators"] = [structs.replace(each, message='look at "it"') for each in schema.validators]
        if self._is_wild and self._one_in(4):
            changes["validators"] = [*schema.validators, *draw(st.lists(_validators(self._checks), max_size=3))]
        return structs.replace(schema, **changes) if changes else schema

    def _one_in(self, many: int) -> bool:
        return bool(self._draw(below(many)) == many - 1)

    # -- values without an inside -----------------------------------------------------------------

    def _text(self, place: _Place) -> GType:
        draw = self._draw
        styles = ["length", "pattern", "format", "named", "bytes", "brand", "plain"]
        if self._checks:
            styles.append("custom")
        style = pick(draw, styles)
        rules: list[Validator] = []
        if style in ("length", "bytes"):
            least = draw(below(4))
            rules = [Validator("min_length", least), Validator("max_length", least + draw(st.integers(1, 3)))]
        elif style == "pattern":
            rules = [Validator("max_length", 6), Validator("pattern", pick(draw, list(PATTERNS)))]
        elif style == "format":
            rules = [Validator("format", pick(draw, list(FORMATS)))]
        elif style == "named":
            rules = [Validator(pick(draw, ("email", "url", "uuid")))]
        elif style == "custom":
            rules = [Validator("custom", pick(draw, self._checks))]
        elif style == "brand":
            return Primitive(primitive_type="string", brand=pick(draw, list(TEXT_BRANDS)))
        return Primitive(primitive_type="bytes" if style == "bytes" else "string", validators=rules)

    def _number(self, place: _Place) -> GType:
        draw = self._draw
        kind = pick(draw, ("integer", "number"))
        least = draw(st.integers(-5, 5))
        most = least + draw(st.integers(2, 6))
        rules: dict[str, list[Validator]] = {
            "bounds": [Validator("min", least), Validator("max", most)],
            "open bounds": [Validator("exclusive_min", least), Validator("exclusive_max", float(most))],
            "multiple": [Validator("multiple_of", pick(draw, (2, 3, 0.5, 1.5)))],
            "sign": [Validator(pick(draw, ("positive", "negative")))],
            "whole": [Validator("integer")],
            "choice": [Validator("enum", [1, 2.0, 3, -1])],
            "none": [],
        }
        if self._one_in(6):
            return Primitive(primitive_type=kind, brand=pick(draw, list(NUMBER_BRANDS)))
        return Primitive(primitive_type=kind, validators=rules[pick(draw, list(rules))])

    def _plain(self, place: _Place) -> GType:
        draw = self._draw
        primitives = [Primitive(primitive_type="boolean"), Primitive(primitive_type="null")]
        others: list[GType] = [AnyOf(), UnknownOf()]
        if self._is_wild:
            others += [NeverOf(), Primitive(primitive_type="undefined")]
        return pick(draw, [*primitives, *others])  # type: ignore[no-any-return]

    def _choice(self, place: _Place) -> GType:
        draw = self._draw
        values = draw(st.lists(st.sampled_from((*_SCALARS, None)), min_size=1, max_size=6))
        if len(values) == 1:
            return LiteralOf(value=values[0])
        return Enumeration(values=values, base_type="mixed")

    # -- values with an inside --------------------------------------------------------------------

    def _reference(self, place: _Place) -> GType:
        draw = self._draw
        if self._earlier and place.is_inside and (not self._later or draw(BOOLEANS)):
            is_nullable = not place.may_be_left_out or draw(BOOLEANS)
            return Ref(ref=pick(draw, self._earlier), nullable=is_nullable)
        return Ref(ref=pick(draw, self._later))

    def _object(self, place: _Place) -> GType:
        draw = self._draw
        names = draw(_SOME_NAMES)
        properties: dict[str, GType] = {}
        required = []
        for name in names:
            is_required_here = draw(BOOLEANS)
            inner = self._inside(place, may_be_left_out=not is_required_here)
            if is_required_here:
                required.append(name)
            elif self._one_in(3):
                inner = structs.replace(inner, optional=True)
                required += [name] * draw(below(2))
            elif self._one_in(6):
                inner = pick(draw, (Primitive(primitive_type="undefined"), NeverOf()))
            properties[name] = inner
        more: bool | GType = draw(BOOLEANS)
        names_are: GType | None = None
        if self._one_in(3):
            more = self._inside(place, may_be_left_out=True)
        if more is not False and self._one_in(4):
            names_are = Primitive(primitive_type="string", validators=[Validator("pattern", "^[a-z]+$")])
        least = draw(st.integers(0, 3 if self._is_wild else len(required))) if self._one_in(4) else None
        most = len(names) + draw(below(3)) if self._one_in(4) else None
        return ObjectOf(
            properties=properties,
            required=required,
            additional_properties=more,
            property_names=names_are,
            min_properties=least if self._is_wild or not _may_be_absent(properties) else None,
            max_properties=most,
        )

    def _array(self, place: _Place) -> GType:
        items = self._inside(place, may_be_left_out=True)
        most = self._draw(st.integers(1, 3)) if self._one_in(3) else None
        least = None
        if self._is_wild or isinstance(items, Primitive):  # a reference may have no end, so there may be no items
            least = self._draw(st.integers(0, 3 if self._is_wild else 1)) if self._one_in(3) else None
        return ArrayOf(items=items, min_items=least, max_items=most, unique_items=self._one_in(3))

    def _tuple(self, place: _Place) -> GType:
        items = [self._inside(place) for _ in range(self._draw(below(4)))]
        for index in reversed(range(len(items))):
            if not self._one_in(3):
                break
            items[index] = structs.replace(items[index], optional=True)
        if self._is_wild and items and self._one_in(4):
            items[0] = structs.replace(items[0], optional=True)
        return TupleOf(items=items)

    def _union(self, place: _Place) -> GType:
        place = place._replace(depth=place.depth + 1, may_be_left_out=False)
        types = [self.schema(place) for _ in range(self._draw(st.integers(1, 3)))]
        return UnionOf(types=types, discriminator="kind" if self._is_wild and self._one_in(4) else "")

    def _tagged_union(self, place: _Place) -> GType:
        draw = self._draw
        tags = draw(st.lists(st.sampled_from(_SCALARS), min_size=1, max_size=3, unique_by=repr))
        types: list[GType] = []
        for tag in tags:
            member = self._object(place._replace(depth=_DEEPEST - 1, may_be_left_out=False))
            assert isinstance(member, ObjectOf)
            literal = LiteralOf(value=tag, nullable=self._is_wild and self._one_in(4))
            required = member.required if self._is_wild and self._one_in(4) else [*member.required, "kind"]
            properties = {**member.properties, "kind": literal}
            types.append(
                structs.replace(
                    member,
                    properties=properties,
                    required=list(dict.fromkeys(required)),
                    max_properties=None,
                    nullable=self._one_in(6),
                )
            )
        types += [Ref(ref=name) for name in self._later if self._is_tagged(name, tags)]
        if self._one_in(4):
            types.append(self._number(place))
        return UnionOf(types=types, discriminator="kind")

    def _is_tagged(self, name: str, tags: list[Any]) -> bool:
        """Whether the definition is an object that has a tag of its own, or any when types may be wild."""
        found = resolve(self._known[name], self._known)
        tag = found.properties.get("kind") if isinstance(found, ObjectOf) else None
        return isinstance(tag, LiteralOf) and (self._is_wild or repr(tag.value) not in map(repr, tags))

    def _intersection(self, place: _Place) -> GType:
        place = place._replace(depth=place.depth + 1)
        first = self.schema(place)
        if self._is_wild:
            return IntersectionOf(types=[first, *(self.schema(place) for _ in range(self._draw(below(3))))])
        others: list[GType] = [AnyOf()]
        if isinstance(first, Primitive):
            others.append(Primitive(primitive_type=first.primitive_type, nullable=True))
        if isinstance(first, ObjectOf):
            others.append(ObjectOf(properties={"z": Primitive(primitive_type="integer")}))
        return IntersectionOf(types=[first, *self._draw(st.lists(st.sampled_from(others), max_size=2))])


def _may_be_absent(properties: Mapping[str, GType]) -> bool:
    return any(each.optional for each in properties.values())


@lru_cache
def _validators(checks: tuple[str, ...]) -> st.SearchStrategy[Validator]:
    """Any constraint, whatever it stands at."""
    bounds = st.sampled_from(("min", "max", "exclusive_min", "exclusive_max"))
    several = [
        st.builds(Validator, bounds, st.integers(-2, 2) | st.sampled_from((0.5, 2**70))),
        st.builds(Validator, st.just("multiple_of"), st.sampled_from((2, 0.5, -3))),
        st.sampled_from([Validator(each) for each in ("integer", "positive", "negative", "email", "url", "uuid")]),
        st.builds(Validator, st.sampled_from(("min_length", "max_length")), st.integers(0, 3)),
        st.builds(Validator, st.just("pattern"), st.sampled_from(list(PATTERNS))),
        st.builds(Validator, st.just("format"), st.sampled_from(list(FORMATS))),
        st.builds(Validator, st.just("enum"), st.lists(json_values().filter(_is_json), max_size=3)),
    ]
    if checks:
        several.append(st.builds(Validator, st.just("custom"), st.sampled_from(checks), st.sampled_from(("", "no!"))))
    return st.one_of(several)


def _is_json(value: Any) -> bool:
    """Whether JSON has it: no infinity, no NaN."""
    if isinstance(value, float):
        return value - value == 0.0
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(map(_is_json, inside))
