"""Which member of the new union stands for which member of the old one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from msgspec import UNSET

from gati_core.gtype._interpreter import is_same, tag_of
from gati_core.gtype._model import GType, Ref
from gati_core.gtype.diff._assign import Assignment
from gati_core.gtype.diff._records import Side, escaped
from gati_core.gtype.diff._shapes import Shape, Shapes


class Relation(NamedTuple):
    """The types of two documents, and which of them take the values of which."""

    old: Shapes
    new: Shapes
    forward: Assignment
    """From the old to the new."""
    backward: Assignment


class Matched(NamedTuple):
    """Members of two unions."""

    pairs: list[tuple[GType, GType]]
    gone: list[GType]
    """Old ones whose values the new union does not take in another member either."""
    come: list[GType]


def matched(old: GType, new: GType, relation: Relation, side: Side) -> Matched:
    """Match two unions, of which one may be a single type.

    By the literal that tells members apart, then those that mean the same, then by name, then where one takes all
    values of the other, and at last the only one of a kind that is left on each side.
    """
    before, after = relation.old.of(old), relation.new.of(new)
    left = list(before.members) if before.kind == "union" else [old]
    right = list(after.members) if after.kind == "union" else [new]
    pairs: list[tuple[GType, GType]] = []

    def pair_up(is_pair: Callable[[GType, GType], bool]) -> None:
        for one in [*left]:
            for other in right:
                if is_pair(one, other):
                    pairs.append((one, other))
                    left[:] = [each for each in left if each is not one]
                    right[:] = [each for each in right if each is not other]
                    break

    def is_widened(one: GType, other: GType) -> bool:
        return relation.forward.holds(one, other, with_null=False)

    def is_narrowed(one: GType, other: GType) -> bool:
        return relation.backward.holds(other, one, with_null=False)

    old_tags = _tags(left, before.discriminator or after.discriminator, relation.old)
    new_tags = _tags(right, after.discriminator or before.discriminator, relation.new)
    pair_up(lambda one, other: id(one) in old_tags and is_same(old_tags[id(one)], new_tags.get(id(other), UNSET)))
    pair_up(lambda one, other: is_widened(one, other) and is_narrowed(one, other))
    pair_up(lambda one, other: isinstance(one, Ref) and isinstance(other, Ref) and one.ref == other.ref)
    # What breaks nobody is tried first.
    for is_pair in (is_widened, is_narrowed) if side == "request" else (is_narrowed, is_widened):
        pair_up(is_pair)
    left[:] = [each for each in left if not relation.forward.holds(each, new, with_null=False)]
    right[:] = [each for each in right if not relation.backward.holds(each, old, with_null=False)]
    pairs += _only_ones(left, right, relation)
    return Matched(pairs, left, right)


def _tags(members: Sequence[GType], discriminator: str, shapes: Shapes) -> dict[int, Any]:
    if not discriminator:
        return {}
    found = {id(each): tag_of(each, discriminator, shapes.names) for each in members}
    return {key: tag for key, tag in found.items() if tag is not UNSET}


def _only_ones(left: list[GType], right: list[GType], relation: Relation) -> Iterator[tuple[GType, GType]]:
    for kind in sorted({relation.old.of(each).kind for each in left}):
        ones = [each for each in left if relation.old.of(each).kind == kind]
        others = [each for each in right if relation.new.of(each).kind == kind]
        if len(ones) == len(others) == 1:
            left.remove(ones[0])
            right.remove(others[0])
            yield ones[0], others[0]


def label(member: GType, shape: Shape) -> str:
    """How a member is called in paths: the name of its definition, or its kind."""
    return escaped(member.ref) if isinstance(member, Ref) else shape.kind
