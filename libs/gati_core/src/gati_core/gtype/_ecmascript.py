"""Python's regular expressions in the words of ECMAScript, for JSON Schema and generated TypeScript."""

from __future__ import annotations

import re

from gati_core.errors import UnsupportedType

_TOKEN = re.compile(
    r"\\U(?P<long>[0-9A-Fa-f]{8})"
    r"|\\(?P<octal>0[0-7]{0,2}|[0-3][0-7]{2})"
    r"|\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}"
    r"|\\(?P<escape>[\s\S])"
    r"|\(\?#[^)]*\)(?P<comment>)"
    r"|\(\?P<(?P<group>\w+)>"
    r"|\(\?P=(?P<back>\w+)\)"
    r"|(?P<extension>\(\?(?:[aiLmsux-]+[:)]|>|\())"
    r"|(?P<possessive>(?:[*+?]|\{[0-9,]+\})\+)"
    r"|(?P<count>\{[0-9]+(?:,[0-9]*)?\}|\{,[0-9]+\})"
    r"|(?P<plain>[\s\S])"
)
_SYNTAX = frozenset("^$\\.*+?()[]{}|/")
"""What may be escaped when ECMAScript reads Unicode."""
_SAME = frozenset("bBdDsSwWfnrtv")


def to_ecmascript(pattern: str) -> str:
    r"""A pattern for `new RegExp(pattern, "u")` that means what it means to Python's `re.search`.

    Three things differ and are left: Python's `$` also matches before one last newline; its `\d`, `\w`, `\s` and
    `\b` know letters and digits of all scripts; and `.` there takes `\r`, U+2028 and U+2029.

    Raises:
        UnsupportedType: flags inside the pattern, possessive or atomic parts, conditions: there is no equivalent.

    >>> to_ecmascript(r"\A(?P<year>\d{,4})\-\Z")
    '^(?<year>\\d{0,4})-$'
    """
    parts: list[str] = []
    in_class = False
    class_began_at = -1
    for match in _TOKEN.finditer(pattern):
        kind, text = match.lastgroup, match.group()
        if in_class and kind not in ("long", "octal", "escape", None):
            # Inside a class, all else is a character of its own; a bracket that comes first is one as well.
            for character in text:
                is_first = len(parts) == class_began_at or (len(parts) == class_began_at + 1 and parts[-1] == "^")
                if character == "]" and not is_first:
                    in_class = False
                    parts.append("]")
                else:
                    parts.append("\\]" if character == "]" else character)
        elif kind == "plain" and text == "[":
            in_class = True
            parts.append("[")
            class_began_at = len(parts)
        else:
            parts.append(_translated(kind, text, match, in_class, pattern))
    return "".join(parts)


def _translated(kind: str | None, text: str, match: re.Match[str], in_class: bool, pattern: str) -> str:
    match kind:
        case "long":
            return f"\\u{{{match['long'].lstrip('0') or '0'}}}"
        case "octal":
            return f"\\x{int(match['octal'], 8):02x}"
        case "escape":
            return _escape(match["escape"], in_class, pattern)
        case "comment":
            return ""
        case "group":
            return f"(?<{match['group']}>"
        case "back":
            return f"\\k<{match['back']}>"
        case "count":
            return "{0" + text[1:] if text.startswith("{,") else text
        case "plain" if text in "{}]":
            return f"\\{text}"
        case "extension" | "possessive":
            raise UnsupportedType(f"the pattern {pattern!r} uses {text}, which has no equivalent in ECMAScript")
        case _:
            return text


def _escape(character: str, in_class: bool, pattern: str) -> str:
    if character == "A" and not in_class:
        return "^"
    if character == "Z" and not in_class:
        return "$"
    if character == "a":
        return "\\x07"
    if character in _SAME or character in _SYNTAX or (character.isdigit() and not in_class):
        return f"\\{character}"
    if character == "-" and in_class:
        return "\\-"
    if character.isalnum():
        raise UnsupportedType(f"the pattern {pattern!r} uses \\{character}, which has no equivalent in ECMAScript")
    return character
