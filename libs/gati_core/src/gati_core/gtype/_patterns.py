"""How long a text a pattern may be matched against: regular expressions that cannot block a worker.

Patterns are matched by Python's `re`, which tries one way after another, and cannot be stopped. So each is
analysed once, when a type that has it is read: as an automaton whose states are the places of the pattern that
take a character. How many ways there are to read the same text decides how long a failing match may take.

- Two ways round the same loop for the same text: exponential, refused (`^(a+)+$`).
- Two loops that can share a text between them in many ways: polynomial, the text gets a limit (`^a*a*b`).
- Searching from every place, and running far before failing: one power more (`[a-z]+@`).
- Else the time is proportional to the text, and any length is fine (`^[a-z]+@[a-z]+$`).

Variable repetitions of any count are taken for endless ones, so what is said here may be too careful.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from gati_core.errors import UnsupportedType
from gati_core.gtype._ecmascript import to_ecmascript as to_ecmascript

try:
    from re import _constants as sre  # type: ignore[attr-defined]  # private, and the same since Python 3.11
    from re import _parser  # type: ignore[attr-defined]
except ImportError as exc:  # pragma: no cover - a Python that moved it
    raise ImportError("this version of Gati reads regular expressions of Python 3.11 to 3.14") from exc

MAX_STEPS = 10_000_000
"""A match may take about as many steps: some tenths of a second."""
MIN_LIMIT = 20
"""A pattern that is safe for shorter texts only is of no use, and refused."""
_MAX_PLACES = 400
_MAX_VISITED = 50_000


def pattern_limit(pattern: str) -> int | None:
    """The longest text, in characters, that the pattern may be searched in; None when any length is fine.

    Raises:
        UnsupportedType: not a regular expression, one that may take exponential time, or one that cannot be
            analysed (references to groups, more than 400 places that take a character).
    """
    degree = _degree(pattern)
    if degree <= 1:
        return None
    limit = int(MAX_STEPS ** (1 / degree) + 1e-9)
    if limit < MIN_LIMIT:
        raise UnsupportedType(f"the pattern {pattern!r} takes too long even on {MIN_LIMIT} characters: {_ADVICE}")
    return limit


_ADVICE = "let what repeats begin with a character that cannot come before it, or say it in several patterns"


@functools.lru_cache(maxsize=1024)
def _degree(pattern: str) -> int:
    """The power of the text's length that bounds the time of a search."""
    try:
        parsed = _parser.parse(pattern)
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as exc:
        raise UnsupportedType(f"the pattern {pattern!r} is no regular expression: {exc}") from exc
    flags = parsed.state.flags
    try:
        return _Analysis(parsed, flags).degree(is_anchored=_is_anchored(parsed, flags))
    except _Refused as exc:
        raise UnsupportedType(f"the pattern {pattern!r} {exc}") from exc
    except RecursionError as exc:
        raise UnsupportedType(f"the pattern {pattern!r} is nested too deeply") from exc


class _Refused(Exception):
    """Why a pattern is not accepted."""


def _is_anchored(items: Any, flags: int) -> bool:
    """Whether it can match at the beginning of the text only."""
    for op, argument in items:
        if op is sre.AT:
            if argument is sre.AT_BEGINNING_STRING:
                return True
            return argument is sre.AT_BEGINNING and not flags & re.MULTILINE
        if op is sre.SUBPATTERN:
            return _is_anchored(argument[3], flags)
        if op is sre.BRANCH:
            return all(_is_anchored(each, flags) for each in argument[1])
        if op not in (sre.ASSERT, sre.ASSERT_NOT):
            return False
    return False


# -- characters as bits: 0 to 127 are ASCII, the others stand for all that is not ----------------------

_ASCII = 128
_DIGIT, _WORD, _SPACE, _OTHER = (1 << (_ASCII + number) for number in range(4))
_BEYOND = _DIGIT | _WORD | _SPACE | _OTHER
_ALL = (1 << _ASCII) - 1 | _BEYOND


def _bits(characters: Iterable[int]) -> int:
    found = 0
    for each in characters:
        found |= 1 << each if each < _ASCII else _kind(each)
    return found


def _kind(codepoint: int) -> int:
    """The class that a character beyond ASCII belongs to; a single one is taken for its whole class."""
    character = chr(codepoint)
    if character.isdecimal():
        return _DIGIT
    if character.isalnum():
        return _WORD
    return _SPACE if character.isspace() else _OTHER


_DIGITS = _bits(range(48, 58)) | _DIGIT
_WORDS = _bits([*range(48, 58), *range(65, 91), 95, *range(97, 123)]) | _DIGIT | _WORD
_SPACES = _bits([9, 10, 11, 12, 13, 28, 29, 30, 31, 32]) | _SPACE
_CATEGORIES = {
    sre.CATEGORY_DIGIT: _DIGITS,
    sre.CATEGORY_NOT_DIGIT: _ALL & ~_DIGITS,
    sre.CATEGORY_WORD: _WORDS,
    sre.CATEGORY_NOT_WORD: _ALL & ~_WORDS,
    sre.CATEGORY_SPACE: _SPACES,
    sre.CATEGORY_NOT_SPACE: _ALL & ~_SPACES,
}


def _characters(op: Any, argument: Any, flags: int) -> int:
    """The characters that a place takes."""
    if op is sre.ANY:
        return _ALL if flags & re.DOTALL else _ALL & ~(1 << 10)
    if op is sre.LITERAL:
        found = _bits([argument])
    elif op is sre.NOT_LITERAL:
        # A single character beyond ASCII is one of many of its class, which stays.
        return _ALL & ~(1 << argument) if argument < _ASCII else _ALL
    else:
        found = _members(argument)
    if flags & re.IGNORECASE:
        for upper, lower in zip(range(65, 91), range(97, 123), strict=True):
            both = 1 << upper | 1 << lower
            if found & both:
                found |= both
        found |= _WORD if found & _WORDS else 0  # the sign for Kelvin is a K
    return found


def _members(items: Any) -> int:
    found, is_negated = 0, False
    for op, argument in items:
        if op is sre.NEGATE:
            is_negated = True
        elif op is sre.LITERAL:
            found |= _bits([argument])
        elif op is sre.RANGE:
            low, high = argument
            found |= _bits(range(low, min(high, _ASCII - 1) + 1))
            found |= _BEYOND if high >= _ASCII else 0
        else:
            found |= _CATEGORIES[argument]
    if not is_negated:
        return found
    # What lies beyond ASCII was rounded up, so it may not be taken away.
    beyond = all(op is sre.CATEGORY or op is sre.NEGATE for op, _ in items) and found & _BEYOND
    return _ALL & ~(found & ~_BEYOND) & ~(beyond or 0)


# -- the automaton -------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """A piece of the pattern: whether it can match nothing, and the places where it begins and ends."""

    is_nullable: bool
    first: tuple[int, ...]
    last: tuple[int, ...]


_EMPTY = _Part(True, (), ())
_CHARACTERS = frozenset([sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN])
_REPEATS = frozenset([sre.MAX_REPEAT, sre.MIN_REPEAT, getattr(sre, "POSSESSIVE_REPEAT", sre.MAX_REPEAT)])


class _Analysis:
    """The places of a pattern, and which may follow which, in how many ways."""

    def __init__(self, items: Any, flags: int) -> None:
        self._flags = flags
        self._takes: list[int] = []
        self._follow: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._loops = 0
        self._asserted: list[tuple[int, bool]] = []
        """Of every assertion: the degree of its body, and whether it is inside a repetition."""
        self._has_conditions = False
        self._whole = self._sequence(items, flags)

    def degree(self, *, is_anchored: bool) -> int:
        """The power of the text's length that bounds the time of a match, or of a search."""
        components = list(_components(range(len(self._takes)), lambda place: self._follow[place]))
        loops = [each for each in components if len(each) > 1 or each[0] in self._follow[each[0]]]
        for loop in loops:
            self._refuse_exponential(frozenset(loop))
        degree = 1 + self._shared(loops) if loops else 0
        if not is_anchored and self._runs_far_before_failing(loops):
            degree += 1
        for inner, is_repeated in self._asserted:
            # Looked at once, it adds to the time; looked at again and again, it multiplies it.
            degree = max(degree, inner) if is_anchored and not is_repeated else degree + inner
        return degree

    # -- reading the pattern ----------------------------------------------------------------------

    def _sequence(self, items: Any, flags: int) -> _Part:
        whole = _EMPTY
        for op, argument in items:
            whole = self._joined(whole, self._part(op, argument, flags))
        return whole

    def _joined(self, left: _Part, right: _Part) -> _Part:
        for place in left.last:
            for after in right.first:
                self._follow[place][after] += 1
        return _Part(
            left.is_nullable and right.is_nullable,
            left.first + right.first if left.is_nullable else left.first,
            left.last + right.last if right.is_nullable else right.last,
        )

    def _part(self, op: Any, argument: Any, flags: int) -> _Part:
        if op in _CHARACTERS:
            return self._place(_characters(op, argument, flags))
        if op in _REPEATS:
            least, most, items = argument
            return self._repeat(least, most, items, flags)
        if op is sre.SUBPATTERN:
            _, added, removed, items = argument
            return self._sequence(items, (flags | added) & ~removed)
        if op is getattr(sre, "ATOMIC_GROUP", None):
            return self._sequence(argument, flags)
        if op is sre.BRANCH:
            parts = [self._sequence(each, flags) for each in argument[1]]
            return _Part(
                any(each.is_nullable for each in parts),
                tuple(place for each in parts for place in each.first),
                tuple(place for each in parts for place in each.last),
            )
        if op is sre.AT:
            self._has_conditions = self._has_conditions or argument is not sre.AT_BEGINNING
            return _EMPTY
        if op in (sre.ASSERT, sre.ASSERT_NOT):
            self._has_conditions = True
            self._asserted.append((_Analysis(argument[1], flags).degree(is_anchored=True), self._loops > 0))
            return _EMPTY
        raise _Refused("refers to one of its groups, which cannot be analysed: say it without")

    def _place(self, characters: int) -> _Part:
        if len(self._takes) >= _MAX_PLACES:
            raise _Refused(f"has more than {_MAX_PLACES} places that take a character: {_ADVICE}")
        self._takes.append(characters)
        place = (len(self._takes) - 1,)
        return _Part(False, place, place)

    def _repeat(self, least: int, most: int, items: Any, flags: int) -> _Part:
        if most == 0:
            return _EMPTY
        is_one_place = len(items) == 1 and items[0][0] in _CHARACTERS
        if least == most and (most == 1 or is_one_place):
            return self._sequence(items, flags)  # each time the same: nothing to choose
        self._loops += 1
        body = self._sequence(items, flags)
        self._loops -= 1
        if body.is_nullable and most not in (1, sre.MAXREPEAT):
            raise _Refused(f"counts repetitions of something that may be empty: {_ADVICE}")
        for place in body.last:
            for after in body.first:
                self._follow[place][after] += 1
        return _Part(body.is_nullable or least == 0, body.first, body.last)

    # -- how many ways there are ------------------------------------------------------------------

    def _refuse_exponential(self, loop: frozenset[int]) -> None:
        """Two different ways from a place back to it, for the same text."""
        if any(count > 1 for place in loop for after, count in self._follow[place].items() if after in loop):
            raise _Refused(f"can take exponential time, because a repetition repeats another one: {_ADVICE}")
        steps = {(place, place) for place in loop}
        ahead = self._reached(steps, loop, self._follow)
        before: dict[int, dict[int, int]] = defaultdict(dict)
        for place in loop:
            for after in self._follow[place]:
                before[after][place] = 1
        behind = self._reached(steps, loop, before)
        if any(one != other for one, other in ahead & behind):
            raise _Refused(
                f"can take exponential time, because what repeats can match the same text in several ways: {_ADVICE}"
            )

    def _reached(
        self, begin: set[tuple[int, int]], loop: frozenset[int], edges: dict[int, dict[int, int]]
    ) -> set[tuple[int, int]]:
        found, waiting = set(begin), list(begin)
        while waiting:
            one, other = waiting.pop()
            for a in edges[one]:
                for b in edges[other]:
                    if a in loop and b in loop and (a, b) not in found and self._can_pair(one, a, other, b, edges):
                        found.add((a, b))
                        waiting.append((a, b))
            if len(found) > _MAX_VISITED:
                raise _Refused(f"is too large to be analysed: {_ADVICE}")
        return found

    def _can_pair(self, one: int, a: int, other: int, b: int, edges: dict[int, dict[int, int]]) -> bool:
        """Whether one character leads along both edges; a place takes its character when it is entered."""
        if edges is self._follow:
            return bool(self._takes[a] & self._takes[b])
        return bool(self._takes[one] & self._takes[other])

    def _shared(self, loops: Sequence[Sequence[int]]) -> int:
        """The length of the longest chain of loops of which each can share a text with the next in many ways."""
        number = {place: index for index, loop in enumerate(loops) for place in loop}
        pairs: dict[int, set[int]] = defaultdict(set)
        for index, loop in enumerate(loops):
            for after in self._loops_after(loop, number):
                if after != index and self._can_share(loop, loops[after]):
                    pairs[index].add(after)
        reach = {index: self._loops_after(loop, number) | {index} for index, loop in enumerate(loops)}

        @functools.cache
        def longest(index: int) -> int:
            return max(
                (1 + longest(after) for start in reach[index] for after in pairs[start]),
                default=0,
            )

        return max(longest(index) for index in range(len(loops)))

    def _loops_after(self, loop: Sequence[int], number: dict[int, int]) -> set[int]:
        seen, waiting = set(loop), list(loop)
        while waiting:
            for after in self._follow[waiting.pop()]:
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
        return {number[place] for place in seen if place in number} - {number[loop[0]]}

    def _can_share(self, loop: Sequence[int], later: Sequence[int]) -> bool:
        """Whether some text leads from the one loop round to itself, across to the other, and round that one."""
        inside, beyond = frozenset(loop), frozenset(later)
        for p in loop:
            for q in later:
                if self._leads((p, p, q), (p, q, q), inside, beyond):
                    return True
        return False

    def _leads(
        self, start: tuple[int, int, int], goal: tuple[int, int, int], inside: frozenset[int], beyond: frozenset[int]
    ) -> bool:
        seen, waiting = {start}, [start]
        while waiting:
            x, y, z = waiting.pop()
            for a in self._follow[x]:
                if a not in inside:
                    continue
                for c in self._follow[z]:
                    common = self._takes[a] & self._takes[c] if c in beyond else 0
                    if not common:
                        continue
                    for b in self._follow[y]:
                        step = (a, b, c)
                        if not common & self._takes[b] or step in seen:
                            continue
                        if step == goal:
                            return True
                        seen.add(step)
                        waiting.append(step)
            if len(seen) > _MAX_VISITED:
                return True  # to be on the safe side
        return False

    def _runs_far_before_failing(self, loops: Sequence[Sequence[int]]) -> bool:
        """Whether an attempt can go round a loop and fail after that; one that has reached an end does not fail."""
        ends = frozenset() if self._has_conditions else frozenset(self._whole.last)
        if self._whole.is_nullable and not self._has_conditions:
            return False
        seen = {place for place in self._whole.first if place not in ends}
        waiting = list(seen)
        while waiting:
            for after in self._follow[waiting.pop()]:
                if after not in seen and after not in ends:
                    seen.add(after)
                    waiting.append(after)
        return any(
            len(each) > 1 or each[0] in self._follow[each[0]]
            for each in _components(sorted(seen), lambda place: [x for x in self._follow[place] if x in seen])
        )


def _components(places: Iterable[int], edges: Callable[[int], Iterable[int]]) -> Iterator[list[int]]:
    """Strongly connected components (Tarjan), without recursion."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    for root in places:
        if root in index:
            continue
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        work = [(root, iter(list(edges(root))))]
        while work:
            place, after = work[-1]
            for each in after:
                if each not in index:
                    index[each] = low[each] = len(index)
                    stack.append(each)
                    on_stack.add(each)
                    work.append((each, iter(list(edges(each)))))
                    break
                if each in on_stack:
                    low[place] = min(low[place], index[each])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[place])
                if low[place] == index[place]:
                    component: list[int] = []
                    while not component or component[-1] != place:
                        component.append(stack.pop())
                        on_stack.discard(component[-1])
                    yield component
