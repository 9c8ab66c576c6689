"""Route paths as authors write them."""

from __future__ import annotations

import re

from gati_core.errors import RegistrationError

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}|:([A-Za-z_][A-Za-z0-9_]*)")
_BRACES = re.compile(r"[{}]|^:")
_MAX_LENGTH = 1024  # what a manifest may hold


def normalize_route(path: str) -> tuple[str, tuple[str, ...]]:
    """A route in its one spelling, and the names of its parameters.

    `{name}` and `:name` each match one whole segment; everything else is literal. A leading slash
    is added, repeated slashes become one, a trailing slash goes.

    Raises:
        RegistrationError: a parameter that is not a whole segment, has no proper name or repeats;
            a query, a fragment or a control character; longer than a manifest may say.

    >>> normalize_route("users//:id/")
    ('/users/{id}', ('id',))
    """
    if "?" in path or "#" in path:
        raise RegistrationError(f"route {path!r}: a path has no query and no fragment")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in path):
        raise RegistrationError(f"route {path!r}: control characters cannot be part of a path")
    segments: list[str] = []
    names: list[str] = []
    for segment in path.split("/"):
        if not segment:
            continue
        match = _PARAMETER.fullmatch(segment)
        if match is not None:
            name = match[1] or match[2]
            if name in names:
                raise RegistrationError(f"route {path!r}: parameter {name!r} occurs twice")
            names.append(name)
            segments.append("{" + name + "}")
            continue
        if _BRACES.search(segment):
            raise RegistrationError(
                f"route {path!r}: segment {segment!r} must be literal or exactly one {{name}} or :name"
                " of letters, digits and underscores"
            )
        segments.append(segment)
    route = "/" + "/".join(segments)
    if len(route) > _MAX_LENGTH:
        raise RegistrationError(f"route {path[:40]!r}…: {len(route)} characters exceed the limit of {_MAX_LENGTH}")
    return route, tuple(names)
