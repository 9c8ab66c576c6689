"""Regular expressions as JSON Schema has them (ECMA-262), in Python's words."""

from __future__ import annotations

import re
import warnings

from gati_core.errors import UnsupportedType

_TOKEN = re.compile(
    r"\\u\{(?P<code>[0-9A-Fa-f]{1,6})\}"
    r"|\\k<(?P<back>\w+)>"
    r"|\\c(?P<control>[A-Za-z])"
    r"|\\(?P<escape>[\s\S])"
    r"|\(\?<(?P<group>[A-Za-z_]\w*)>"
    r"|(?P<nothing>\[\])|(?P<anything>\[\^\])"
    r"|(?P<plain>[\s\S])"
)
_SETS = {"d": "0-9", "w": "A-Za-z0-9_"}
# Letters that mean the same to both, and two of Python's own that its tools write into JSON Schema.
_SHARED = frozenset("bBsSnrtvfxuAZ")


def from_ecmascript(pattern: str) -> str:
    r"""A pattern of ECMA-262 for Python's `re.search`.

    `$` becomes `\Z` (Python's also matches before a last newline), `\d` and `\w` stay ASCII. What differs
    is left in three places: `.` also takes `\r`, U+2028 and U+2029; `\s` and `\b` follow Python's idea of
    spaces and words.

    Raises:
        UnsupportedType: it uses what Python does not have, such as `\p{L}`.

    >>> from_ecmascript("^(?<year>\\d{4})$")
    '^(?P<year>[0-9]{4})\\Z'
    """
    parts: list[str] = []
    in_class = False
    for match in _TOKEN.finditer(pattern):
        kind, text = match.lastgroup, match.group()
        if kind == "plain" or (in_class and kind in ("group", "nothing", "anything")):
            for char in text:
                parts.append(_plain(char, in_class, parts[-1] if parts else ""))
                in_class = (in_class or char == "[") and char != "]"
        else:
            parts.append(_special(kind, match, in_class, pattern))
    python = "".join(parts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            re.compile(python)
    except (re.error, OverflowError, RecursionError, FutureWarning) as exc:
        raise UnsupportedType(f"the pattern {pattern!r} is none that Python can use: {exc}") from exc
    return python


def _plain(char: str, in_class: bool, before: str) -> str:
    if char == "$" and not in_class:
        return r"\Z"
    # Python reserves these for sets of sets.
    return f"\\{char}" if in_class and (char == "[" or (char in "-&~|" and char == before[-1:])) else char


def _special(kind: str | None, match: re.Match[str], in_class: bool, pattern: str) -> str:
    text = match[kind or 0]
    match kind:
        case "code" if int(text, 16) <= 0x10FFFF:
            return re.escape(chr(int(text, 16)))
        case "control":
            return f"\\x{ord(text) % 32:02x}"
        case "back" if not in_class:
            return f"(?P={text})"
        case "group":
            return f"(?P<{text}>"
        case "nothing":
            return "(?!)"
        case "anything":
            return r"[\s\S]"
        case "escape" if text in _SETS:
            return _SETS[text] if in_class else f"[{_SETS[text]}]"
        case "escape" if text.lower() in _SETS and not in_class:
            return f"[^{_SETS[text.lower()]}]"
        case "escape" if text in _SHARED or not (text.isascii() and text.isalpha()):
            return match.group()
        case _:
            raise UnsupportedType(f"the pattern {pattern!r} uses {match.group()}, which Python does not have")
