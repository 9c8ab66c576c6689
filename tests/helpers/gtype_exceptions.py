"""Where other validators are known to judge a value otherwise than ours, and why. The types guide lists the same."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from msgspec import UNSET

from gati_core.errors import UnsupportedType
from gati_core.gtype import (
    FORMATS,
    ArrayOf,
    Document,
    Enumeration,
    GType,
    LiteralOf,
    Primitive,
    UnionOf,
    Validator,
    expand_brands,
    is_of_format,
    resolve,
    walk,
)
from gati_core.gtype._interpreter import identity, tag_of
from gati_core.gtype._patterns import to_ecmascript

_ONE_OF_MANY_SCRIPTS = re.compile(r"\\[dDwWsSbB]|(?<!\\)\.")


def is_documented_exception(document: Document, value: Any) -> bool:
    """Whether other validators may judge this value otherwise."""
    return bool(reasons(document, value))


def reasons(document: Document, value: Any) -> list[str]:
    """Why they may; empty when they must not."""
    case = _case(expand_brands(document), value)
    return [reason for reason, applies in _EXCEPTIONS if applies(case)]


class _Case(NamedTuple):
    """A type and a value, taken apart."""

    document: Document
    kinds: list[GType]
    rules: list[Validator]
    numbers: list[float]
    texts: list[str]
    """Names of properties too."""

    @property
    def patterns(self) -> list[str]:
        """Of Python."""
        return [rule.value for rule in self.rules if rule.type == "pattern"]

    @property
    def formats(self) -> list[str]:
        """Those that are checked."""
        found = [rule.value if rule.type == "format" else rule.type for rule in self.rules]
        is_bytes = any(isinstance(each, Primitive) and each.primitive_type == "bytes" for each in self.kinds)
        return [each for each in [*found, *["base64"] * is_bytes] if each in FORMATS]


def _case(document: Document, value: Any) -> _Case:
    kinds = [schema for _, _, schema in walk(document)]
    parts = list(_parts(value))
    return _Case(
        document,
        kinds,
        rules=[each for schema in kinds for each in schema.validators],
        numbers=[each for each in parts if isinstance(each, (int, float)) and not isinstance(each, bool)],
        texts=[each for each in parts if isinstance(each, str)],
    )


def _parts(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            waiting += [*each.keys(), *each.values()]
        elif isinstance(each, list):
            waiting += each
        else:
            yield each


def _is_whole(number: Any) -> bool:
    return isinstance(number, float) and number.is_integer()


def _has_two_kinds_of_number(case: _Case) -> bool:
    wanted: list[Any] = [rule.value for rule in case.rules if rule.type == "enum"]
    wanted += [each.values if isinstance(each, Enumeration) else each.value for each in _choices(case)]
    integers = any(isinstance(each, Primitive) and each.primitive_type == "integer" for each in case.kinds)
    unique = any(isinstance(each, ArrayOf) and each.unique_items for each in case.kinds)
    if any(map(_is_whole, case.numbers)) and (wanted or integers or unique):
        return True
    return bool(case.numbers) and any(map(_is_whole, _parts(wanted)))


def _choices(case: _Case) -> Iterator[Enumeration | LiteralOf]:
    for each in case.kinds:
        if isinstance(each, (Enumeration, LiteralOf)):
            yield each


def _divides_fractions(case: _Case) -> bool:
    steps = [rule.value for rule in case.rules if rule.type == "multiple_of"]
    return bool(case.numbers) and any(isinstance(each, float) for each in (*steps, *(case.numbers if steps else ())))


def _has_a_date_of_no_calendar(case: _Case) -> bool:
    return any(
        re.fullmatch(FORMATS[name].source, text) and not is_of_format(name, text)
        for name in case.formats
        for text in case.texts
    )


def _is_of_another_script(case: _Case) -> bool:
    sources = [*case.patterns, *(FORMATS[name].source for name in case.formats)]
    # Beyond ASCII, and among its controls, the languages sort characters differently.
    is_special = any(not text.isascii() or re.search(r"[\x1c-\x1f\r]", text) for text in case.texts)
    return is_special and any(map(_ONE_OF_MANY_SCRIPTS.search, sources))


def _has_no_equivalent(pattern: str) -> bool:
    try:
        to_ecmascript(pattern)
    except UnsupportedType:
        return True
    return False


def _has_tags_that_decide_otherwise(case: _Case) -> bool:
    names = case.document.definitions
    for union in case.kinds:
        if not isinstance(union, UnionOf) or not union.discriminator:
            continue
        members = [each for each in union.types if not _is_never_an_object(resolve(each, names))]
        tags = [tag_of(each, union.discriminator, names) for each in members]
        if UNSET in tags or None in tags or len(set(map(identity, tags))) < len(tags):
            return True
    return False


def _is_never_an_object(schema: GType) -> bool:
    return isinstance(schema, (Primitive, LiteralOf, Enumeration, ArrayOf))


_EXCEPTIONS: list[tuple[str, Callable[[_Case], bool]]] = [
    ("JSON has one kind of number: elsewhere 1.0 is an integer, and equals 1", _has_two_kinds_of_number),
    (
        "a number that no double holds, or not exactly",
        lambda case: any(not math.isfinite(each) or abs(each) > 2**53 for each in map(_bounded, case.numbers)),
    ),
    ("the division of fractions is not the same everywhere", _divides_fractions),
    ("no expression knows the calendar", _has_a_date_of_no_calendar),
    ("a check of one's own is in one place only", lambda case: any(rule.type == "custom" for rule in case.rules)),
    (
        "Python's `$` also matches before a last newline, that of ECMAScript does not",
        lambda case: bool(case.patterns or case.formats) and any(text.endswith("\n") for text in case.texts),
    ),
    (r"Python's `\d`, `\w`, `\s`, `\b` and `.` know all scripts, those of ECMAScript do not", _is_of_another_script),
    ("ECMAScript has no such pattern", lambda case: any(map(_has_no_equivalent, case.patterns))),
    ("a tag decides which member of a union is meant, whichever others fit", _has_tags_that_decide_otherwise),
]


def _bounded(number: float) -> float:
    """As a double, infinite where it is too large for one."""
    try:
        return float(number)
    except OverflowError:
        return math.inf
