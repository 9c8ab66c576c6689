"""A package with a client: typed methods for every handler and HTTP method, sync and async."""

from __future__ import annotations

from functools import cache
from importlib import resources

from gati_core.codegen._model import Api
from gati_core.codegen._names import pascal
from gati_core.codegen._types import api_types, header_lines
from gati_core.codegen.python._annotations import comment, docstring, names_in
from gati_core.codegen.python._methods import Method, methods
from gati_core.codegen.python.types import TAKEN, Declarations

_FUTURE = "from __future__ import annotations\n"
_IMPORTS = """import json
from collections.abc import Mapping
from contextlib import suppress
from typing import {typing}
from urllib.parse import quote

import httpx
"""


def python_client(api: Api, *, source: str = "") -> dict[str, str]:
    """The files of a package, by name: `__init__.py`, `types.py`, `client.py`, `py.typed`. It needs httpx alone.

    Args:
        source: what the API was read from, for the header of every file.
    """
    name = f"{pascal(api.name)}Client"
    registry, roots = api_types(api, TAKEN)
    head = "".join(f"{comment(line, '#')}\n" for line in header_lines(source))
    title = f"{head}{docstring(f'The handlers of {api.name} {api.version}'.rstrip() + '.')}\n"
    exported = sorted([f"Async{name}", "GatiError", name])
    listed = ", ".join(f'"{each}"' for each in exported)
    declared = Declarations(registry, roots.values()).text()
    return {
        "__init__.py": f"{title}\nfrom .client import {', '.join(exported)}\n\n__all__ = [{listed}]\n",
        "client.py": f"{title}\n{_FUTURE}\n{_client(api, name, methods(api, roots))}",
        "types.py": f"{head}{docstring(f'Types of {api.name}.')}\n\n{_FUTURE}" + (f"\n{declared}" if declared else ""),
        "py.typed": "",
    }


def _client(api: Api, name: str, found: list[Method]) -> str:
    sockets = [each.manifest for each in api.operations if "WEBSOCKET" in each.manifest.methods]
    left_out = "".join(
        f"{comment(f'{each.path} ({each.id}) is a WebSocket: use a library for those.', '#')}\n" for each in sockets
    )
    classes = ""
    for prefix, is_async in (("", False), ("Async", True)):
        says = docstring(f"Calls the handlers of {api.name}{', to be awaited' if is_async else ''}.")
        bodies = [f"    {says}\n", *(method.text(is_async=is_async) for method in found)]
        classes += f"\n\nclass {prefix}{name}(_{prefix}Client):\n" + "\n".join(bodies)
    used = names_in(classes)
    imports = _IMPORTS.format(typing=", ".join(sorted({"Any", "Self", *used & {"Literal", "Never"}})))
    imports += "\nfrom . import types\n" if "types" in used else ""
    return "\n\n".join([imports, _runtime(), *([left_out] if left_out else [])]) + classes


@cache
def _runtime() -> str:
    return resources.files(__package__).joinpath("runtime.txt").read_text(encoding="utf-8")
