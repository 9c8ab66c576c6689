"""What a client asks for: a tag, a point in time, a TSV, or a semantic version.

The string is a tag if the handler has one of that name. Else its form decides.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from gati_core.errors import InvalidTimestamp, InvalidVersion
from gati_core.timescape._tsv import parse_tsv

Kind = Literal["tsv", "timestamp", "label"]

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", re.ASCII)
_DIGITS = re.compile(r"\d{10,13}", re.ASCII)
_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\dT", re.ASCII)
_SEMVER = re.compile(
    r"v?(?P<major>0|[1-9]\d*)(?:\.(?P<minor>0|[1-9]\d*)(?:\.(?P<patch>0|[1-9]\d*)"
    r"(?:-(?P<pre>[0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?)?)?",
    re.ASCII,
)
_MAX_LENGTH = 200


class Preference(NamedTuple):
    """A preference that is no tag of the handler, by its form."""

    kind: Kind
    text: str
    seconds: float = 0.0
    """Unix time; of a timestamp."""


class Semver(NamedTuple):
    """A semantic version, or the beginning of one: `v2`, `v2.1`."""

    numbers: tuple[int, ...]
    pre: tuple[tuple[int, int, str], ...] = ()
    """Of a pre-release, what orders it: numbers before words."""

    @property
    def is_whole(self) -> bool:
        """Whether it names one version and not a range of them."""
        return len(self.numbers) == 3

    @property
    def order(self) -> tuple[tuple[int, ...], bool, tuple[tuple[int, int, str], ...]]:
        """Sorts as semantic versions do: a pre-release before its release."""
        return (self.numbers, not self.pre, self.pre)


def read_preference(text: str) -> Preference:
    """What a preference is by its form.

    Raises:
        InvalidVersion: it is of none of the known forms.
        InvalidTimestamp: it looks like a point in time and is none.

    >>> read_preference("2025-01-01T00:00:00Z")
    Preference(kind='timestamp', text='2025-01-01T00:00:00Z', seconds=1735689600.0)
    """
    if len(text) > _MAX_LENGTH:
        raise InvalidVersion(f"a version of {len(text)} characters is longer than {_MAX_LENGTH}")
    if text.startswith("tsv:"):
        parse_tsv(text)
        return Preference("tsv", text)
    if _DIGITS.fullmatch(text) is not None:
        if len(text) == 10:
            return Preference("timestamp", text, float(text))
        if len(text) == 13:
            return Preference("timestamp", text, int(text) / 1000)
        raise InvalidTimestamp(f"{text!r} has {len(text)} digits: seconds have 10, milliseconds 13")
    if _DATE_TIME.match(text) is not None:
        return Preference("timestamp", text, _iso_seconds(text))
    if LABEL.fullmatch(text) is None:
        raise InvalidVersion(
            f"{text[:100]!r} is no version: use a tag, a TSV (tsv:...), a time (2025-01-31T12:00:00Z, or Unix seconds"
            " or milliseconds), or leave it out for the newest"
        )
    return Preference("label", text)


def check_label(text: str) -> str:
    """`text` if it can be a tag.

    Raises:
        InvalidVersion: it cannot, or clients could not tell it from another kind of preference.
    """
    if LABEL.fullmatch(text) is None:
        raise InvalidVersion(
            f"{text[:100]!r} cannot be a tag: 1 to 64 letters, digits and . _ + - are, beginning with a letter or digit"
        )
    if re.fullmatch(r"\d{10,}", text, re.ASCII) is not None or _DATE_TIME.match(text) is not None:
        raise InvalidVersion(f"{text!r} cannot be a tag: it would be read as a point in time")
    return text


def read_semver(text: str) -> Semver | None:
    """A semantic version, with or without a leading `v`; None for what is none.

    >>> read_semver("v1.2.0-beta.1") < read_semver("1.2.1")
    True
    """
    found = _SEMVER.fullmatch(text)
    if found is None:
        return None
    numbers = tuple(int(found[name]) for name in ("major", "minor", "patch") if found[name] is not None)
    pre = found["pre"] or ""
    return Semver(numbers, tuple(_identifier(part) for part in pre.split(".")) if pre else ())


def _identifier(part: str) -> tuple[int, int, str]:
    return (0, int(part), "") if part.isdigit() else (1, 0, part)


def _iso_seconds(text: str) -> float:
    try:
        # `+` in a query string arrives as a space when it was not escaped.
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as exc:
        raise InvalidTimestamp(f"{text[:100]!r} is no time in ISO 8601, for example 2025-01-31T12:00:00Z") from exc
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
