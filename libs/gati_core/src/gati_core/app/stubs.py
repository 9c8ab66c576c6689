"""The beginning of a transformer: what changed between two versions, as functions that somebody has to write."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gati_core.gtype.diff import Change, Diff

_ACTIONS = {"add": "add", "remove": "remove", "modify": "transform"}
_FUNCTIONS = (
    ("forward_request", "request", "an old client's request becomes a new one"),
    ("backward_response", "response", "a new answer becomes an old one"),
    ("backward_request", "request", "a new client's request becomes an old one"),
    ("forward_response", "response", "an old answer becomes a new one"),
)


def transformer_stub(*, app: str, handler: str, module: str, from_version: str, forward: Diff, backward: Diff) -> str:
    """Python source with a `TODO` for each breaking change; each function raises until it is written.

    Args:
        module: where the package's `app` is, for the import.
        from_version: a TSV or a tag of the version that clients come from.
        forward: from that version to the package's.
        backward: the other way round.

    The same input gives the same text.
    """
    functions = []
    for name, side, what in _FUNCTIONS:
        diff = forward if name in ("forward_request", "backward_response") else backward
        changes = [each for each in diff.breaking if _side_of(each) == side]
        if changes:
            functions.append(_function(name, side, what, changes))
    name = "".join(part.capitalize() for part in re.split(r"[^A-Za-z0-9]+", handler)) or "Handler"
    body = (
        "\n".join(functions) or "    # Nothing that breaks clients has changed: this needs no transformer.\n    pass\n"
    )
    return (
        f'"""Between {from_version} of {app}:{handler} and the version that this package brings.\n\n'
        "Once published, a transformer is never changed: test it first (gati_testing.check_round_trip).\n"
        '"""\n\n'
        "from gati_core import VersionedRequest, VersionedResponse\n\n"
        f"from {module} import app\n\n\n"
        f'@app.transformer("{handler}", from_version="{from_version}")\n'
        f"class {name}FromOlder:\n"
        f"{body}"
    )


def _side_of(change: Change) -> str:
    return "response" if change.path.startswith("/response") else "request"


def _function(name: str, side: str, what: str, changes: Sequence[Change]) -> str:
    kind = "VersionedRequest" if side == "request" else "VersionedResponse"
    lines = [
        "    @staticmethod",
        f"    def {name}({side}: {kind}) -> None:",
        f'        """{what[0].upper()}{what[1:]}."""',
    ]
    for change in changes:
        words = change.description.replace("\n", " ")
        lines.append(f"        # TODO {_ACTIONS[change.operation]} {change.path}: {words}")
    lines.append(f'        raise NotImplementedError("{name} is not written yet")')
    return "\n".join(lines) + "\n"
