"""Formats of text: what `format`, `email`, `url`, `uuid` and base64 mean, in one table.

Each is a regular expression that Python and ECMAScript read alike (ASCII only), so that generated code in
both languages says the same, and for dates a check of the calendar that no expression can make.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import msgspec

_DATE = r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
_OFFSET = r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9])"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_N = r"[0-9]+"
_F = r"[0-9]+(?:\.[0-9]+)?"


class Format(msgspec.Struct, frozen=True):
    """One format: `source` must match the whole text; `is_dated` texts begin with a date that must exist."""

    name: str
    source: str
    expected: str
    """What a message says was expected."""
    is_dated: bool = False


def _format(name: str, source: str, expected: str, *, is_dated: bool = False) -> tuple[str, Format]:
    return name, Format(name, source, expected, is_dated)


FORMATS: dict[str, Format] = dict(
    [
        _format("date", _DATE, "a date such as 2026-01-31", is_dated=True),
        _format("time", _TIME + _OFFSET, "a time with its offset, such as 12:30:00Z"),
        _format("local-time", _TIME, "a time without offset, such as 12:30:00"),
        _format("time-or-local", f"{_TIME}{_OFFSET}?", "a time such as 12:30:00"),
        _format(
            "date-time",
            f"{_DATE}[Tt ]{_TIME}{_OFFSET}",
            "a date and time with its offset, such as 2026-01-31T12:30:00Z",
            is_dated=True,
        ),
        _format(
            "local-date-time",
            f"{_DATE}[Tt ]{_TIME}",
            "a date and time without offset, such as 2026-01-31T12:30:00",
            is_dated=True,
        ),
        _format(
            "date-time-or-local",
            f"{_DATE}[Tt ]{_TIME}{_OFFSET}?",
            "a date and time such as 2026-01-31T12:30:00Z",
            is_dated=True,
        ),
        _format(
            "duration",
            # The last number alone may have a fraction.
            rf"[+-]?[Pp](?:{_F}[Dd]|(?:{_N}[Dd])?[Tt](?:{_F}[Hh]|(?:{_N}[Hh])?(?:{_F}[Mm]|(?:{_N}[Mm])?{_F}[Ss])))",
            "a duration such as P1DT2H30M",
        ),
        _format(
            "uuid",
            r"(?:[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}|[0-9A-Fa-f]{32})",
            "a UUID",
        ),
        _format(
            "uuid4",
            r"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-4[0-9A-Fa-f]{3}-[89ABab][0-9A-Fa-f]{3}-[0-9A-Fa-f]{12}",
            "a UUID of version 4",
        ),
        _format(
            "decimal",
            r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[Ee][+-]?[0-9]{1,6})?",
            "a decimal number such as 29.99",
        ),
        _format("base64", r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", "base64 text"),
        _format("email", rf"[^@\s]+@(?:{_LABEL}\.)+{_LABEL}", "an email address"),
        _format(
            "url",
            r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^\s/?#@\[\]]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\[\]]+)(?::[0-9]{1,5})?"
            r"(?:[/?#]\S*)?",
            "an absolute URL",
        ),
        _format("timestamp", f"{_DATE}T{_TIME}{_OFFSET}", "an ISO 8601 time with its offset", is_dated=True),
        _format("cuid", r"[a-z0-9]{24}", "a cuid"),
        _format("phone", r"\+[1-9][0-9]{6,14}", "a phone number such as +4930123456"),
        _format("jwt", r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", "a JSON web token"),
        _format("object-id", r"[0-9a-fA-F]{24}", "an object id of 24 hexadecimal digits"),
        _format("slug", r"[a-z0-9-]+", "a slug of a-z, 0-9 and -"),
        _format("hex", r"[0-9a-fA-F]+", "hexadecimal digits"),
        _format("username", r"[A-Za-z0-9_]{3,30}", "3 to 30 letters, digits or _"),
        _format("trimmed", r"\S(?:[\s\S]*\S)?", "text without spaces at its ends"),
    ]
)

_MATCHERS = {name: re.compile(each.source).fullmatch for name, each in FORMATS.items()}
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def is_of_format(name: str, text: str) -> bool:
    """Whether `text` is of the format; `name` must be in `FORMATS`."""
    if _MATCHERS[name](text) is None:
        return False
    return not FORMATS[name].is_dated or is_calendar_date(text)


def format_check(name: str) -> Callable[[str], bool]:
    """`is_of_format` for one format, as generated code calls it."""
    return lambda text: is_of_format(name, text)


def is_calendar_date(text: str) -> bool:
    """Whether the date that `text` begins with, `YYYY-MM-DD`, exists; years from 1 on."""
    year, month, day = int(text[:4]), int(text[5:7]), int(text[8:10])
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    return year > 0 and day <= _DAYS[month - 1] + (month == 2 and is_leap)
