"""Names in generated code: of operations, types and parameters; unique, and the same every time."""

from __future__ import annotations

import keyword
import re
from collections import Counter, defaultdict

from gati_core.codegen._model import Api, Operation

VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
"""What a method does; any other is a `call`."""
_WORDS = re.compile(r"[A-Za-z0-9]+")
# fmt: off
_RESERVED = frozenset(
    (
        "arguments", "await", "break", "case", "catch", "class", "const", "continue", "debugger", "default",
        "delete", "do", "else", "enum", "export", "extends", "false", "finally", "for", "function", "if",
        "implements", "import", "in", "instanceof", "interface", "let", "new", "null", "package", "private",
        "protected", "public", "return", "static", "super", "switch", "this", "throw", "true", "try", "typeof",
        "undefined", "var", "void", "while", "with", "yield",
    )
)
# fmt: on


def pascal(text: str) -> str:
    """`place-order v2` as `PlaceOrderV2`; never empty, never a digit first."""
    name = "".join(word[:1].upper() + word[1:] for word in _WORDS.findall(text))
    return name if name and not name[0].isdigit() else f"N{name}"


def camel(text: str) -> str:
    """`place-order` as `placeOrder`."""
    name = pascal(text)
    return name[0].lower() + name[1:]


def snake(text: str) -> str:
    """`placeOrder` as `place_order`, and no word that Python reserves."""
    name = "_".join(_WORDS.findall(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text))).lower() or "n"
    name = f"n{name}" if name[0].isdigit() else name
    return f"{name}_" if keyword.iskeyword(name) else name


def ecma_safe(name: str) -> str:
    """A name that is no reserved word of ECMAScript."""
    return f"{name}_" if name in _RESERVED else name


def segments(path: str) -> tuple[list[str], list[str]]:
    """The static segments of a route, and the names of its parameters."""
    static, names = [], []
    for part in path.split("/"):
        if part.startswith("{"):
            names.append(part[1:-1])
        elif part:
            static.append(part)
    return static, names


def method_names(api: Api) -> dict[tuple[str, str], str]:
    """The name of every method of every operation, in camel case, by handler id and HTTP method.

    A verb and the static segments: `createOrders`. Where that is not unique, `By` and the parameters are
    appended, `getOrdersById`; where that is not either, the handler's id.
    """
    wanted: dict[tuple[str, str], list[str]] = {}
    for operation in api.operations:
        for method in operation.http_methods:
            wanted[operation.manifest.id, method] = _candidates(operation, method)
    chosen: dict[tuple[str, str], str] = {}
    left, level = dict(wanted), 0
    while left:
        names = {key: candidates[min(level, len(candidates) - 1)] for key, candidates in left.items()}
        counts = Counter([*names.values(), *chosen.values()])
        chosen |= {key: name for key, name in names.items() if counts[name] == 1}
        left = {key: candidates for key, candidates in left.items() if key not in chosen}
        level += 1
        if level > 3:  # ids of handlers are unique, but two may be spelled alike in camel case
            for number, key in enumerate(sorted(left), start=2):
                chosen[key] = f"{wanted[key][-1]}{number}"
            left = {}
    return chosen


def _candidates(operation: Operation, method: str) -> list[str]:
    static, parameters = segments(operation.manifest.path)
    base = VERBS.get(method, "call") + "".join(map(pascal, static))
    base = base if static else f"{base}Root"
    by = base + "By" + "And".join(map(pascal, parameters)) if parameters else base
    with_id = f"{by}As{pascal(operation.manifest.id)}"
    return [base, by, with_id, f"{with_id}Via{pascal(method.lower())}"]


def type_names(api: Api) -> dict[tuple[str, str], str]:
    """A name for the root type of every area of every operation, by handler id and area: `PlaceOrderRequest`."""
    found: dict[tuple[str, str], str] = {}
    taken: Counter[str] = Counter()
    groups: dict[str, list[str]] = defaultdict(list)
    for operation in api.operations:
        groups[pascal(operation.manifest.id)].append(operation.manifest.id)
    for name, ids in groups.items():
        for number, id in enumerate(ids):
            for area in ("request", "response", "params", "query", "headers"):
                wanted = f"{name}{number + 1 if number else ''}{pascal(area)}"
                taken[wanted] += 1
                found[id, area] = wanted if taken[wanted] == 1 else f"{wanted}{taken[wanted]}"
    return found
