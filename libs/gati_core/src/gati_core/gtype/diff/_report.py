"""A comparison for people."""

from __future__ import annotations

from gati_core.gtype.diff._records import Diff

_RED, _GREEN, _BOLD, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[1m", "\x1b[0m"
_SIGNS = {"add": "+", "remove": "-", "modify": "~"}
_WIDEST = 48
"""Characters that a path may push the descriptions to the right."""


def render(diff: Diff, *, colour: bool = False) -> str:
    """Breaking changes first, one line each, and what they come to.

    Characters that a terminal would act on, from names of fields for example, are written as escapes.
    """

    def paint(text: str, code: str) -> str:
        return f"{code}{text}{_PLAIN}" if colour else text

    lines: list[str] = []
    for title, changes, code in (
        ("breaking", diff.breaking, _RED),
        ("non-breaking", diff.non_breaking, _GREEN),
    ):
        if changes:
            lines.append(paint(f"{title}:", _BOLD))
            rows = [(_SIGNS[each.operation], _harmless(each.path), _harmless(each.description)) for each in changes]
            width = min(_WIDEST, max(len(path) for _, path, _ in rows))
            lines += [paint(f"  {sign} {path:<{width}}  {text}", code) for sign, path, text in rows]
    lines.append(paint(diff.summary, _BOLD))
    return "\n".join(lines)


def _harmless(text: str) -> str:
    return text if text.isprintable() else "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
