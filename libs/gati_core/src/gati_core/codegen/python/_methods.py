"""The methods of a client: one for every handler and HTTP method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias
from urllib.parse import quote

from gati_core.codegen._model import Api, Operation
from gati_core.codegen._names import method_names, snake
from gati_core.codegen._types import NamedType
from gati_core.codegen.python._annotations import Annotation, choices, docstring, literal, union
from gati_core.codegen.python.types import is_never
from gati_core.gtype import (
    ArrayOf,
    Document,
    Enumeration,
    GType,
    LiteralOf,
    ObjectOf,
    Primitive,
    Ref,
    TupleOf,
    UnionOf,
    is_required,
    resolve,
)

_WIDTH = 88
_BODIES = ("POST", "PUT", "PATCH")
_BODILESS = ("GET", "HEAD", "OPTIONS")
_TAKEN = ("self", "body", "timeout_s", "types", "answer")
_TEXTS = {"integer": "int", "number": "float", "boolean": "bool", "null": "None", "undefined": "None"}
_NONE = Annotation(("None",))
_ID = Annotation(("str", "int"))
"""A path parameter of which nothing is known."""
_ANY_TEXT = Annotation(("str", "float"))
Part: TypeAlias = "str | tuple[str, list[str], str]"
"""Of a list in code: text, or what is in brackets of its own."""
Roots: TypeAlias = dict[tuple[str, str], NamedType]


class Method(NamedTuple):
    """One method of the generated client, as text but for what differs between sync and async."""

    name: str
    arguments: list[str]
    """Of the definition, after `self`."""
    passed: list[Part]
    """What `_call` gets."""
    answer: str
    """The annotation of what it returns."""
    summary: str

    def text(self, *, is_async: bool) -> str:
        """The method's definition."""
        call = f"{'await ' if is_async else ''}self._call("
        if self.answer == "Any":
            call = f"return {call}"
        elif self.answer != "None":
            call = f"answer: {self.answer} = {call}"
        start = f"{'async ' if is_async else ''}def {self.name}("
        lines = _spread(start, ["self", *self.arguments], f") -> {self.answer}:", 4)
        lines += [f"        {docstring(self.summary)}"] if self.summary.strip() else []
        lines += _spread(call, self.passed, ")", 8)
        lines += ["        return answer"] if call.startswith("answer") else []
        return "\n".join(lines) + "\n"


def methods(api: Api, roots: Roots) -> list[Method]:
    """The methods of an API.

    Args:
        roots: the declared types by handler id and area.
    """
    names = _names(api)
    return [
        _method(operation, method, names[operation.manifest.id, method], roots)
        for operation in api.operations
        for method in operation.http_methods
    ]


def _names(api: Api) -> dict[tuple[str, str], str]:
    """Unique in snake case too, where `getAB` and `getAb` are spelled alike."""
    names = {key: snake(name) for key, name in method_names(api).items()}
    counts = Counter(names.values())
    for key in sorted(names):
        wanted, number = names[key], 1
        if counts[wanted] > 1:
            name = base = f"{wanted}_as_{snake(key[0])}"
            while counts[name]:
                number += 1
                name = f"{base}_{number}"
            counts[name] += 1
            names[key] = name
    return names


def _method(operation: Operation, method: str, name: str, roots: Roots) -> Method:
    manifest = operation.manifest
    free = _Arguments()
    path, arguments = _path(operation, free, roots)
    passed: list[Part] = [literal(method), path]
    request, answer = roots.get((manifest.id, "request")), roots.get((manifest.id, "response"))
    if _has_body(operation, method):
        if request is None:
            arguments.append("body: Any = _ABSENT")
        else:
            arguments.append(f"body: types.{request.name}{' = None' if request.schema.nullable else ''}")
    required, optional = [], []
    for area, wire_name in (("query", str), ("headers", _header)):
        sent: dict[str, str] = {}
        for field, (annotation, is_needed) in _fields(operation, area, roots).items():
            argument = free(field)
            sent[wire_name(field)] = argument
            if is_needed:
                required.append(f"{argument}: {annotation}")
            else:
                optional.append(f"{argument}: {union([annotation, _NONE])} = None")
        if sent:
            passed.append((f"{area}={{", [f"{literal(wire)}: {each}" for wire, each in sent.items()], "}"))
    arguments += ["*", *required, *optional, "timeout_s: float | None = None"]
    passed += [*(["body=body"] if _has_body(operation, method) else []), "timeout_s=timeout_s"]
    said = "None" if method == "HEAD" else "Any" if answer is None or is_never(answer) else f"types.{answer.name}"
    return Method(name, arguments, passed, said, manifest.summary)


def _path(operation: Operation, free: _Arguments, roots: Roots) -> tuple[str, list[str]]:
    """The path as an expression, and the arguments that it takes."""
    typed = _fields(operation, "params", roots)
    text, arguments = "", []
    for part in operation.manifest.path.split("/")[1:]:
        if part.startswith("{"):
            argument = free(part[1:-1])
            annotation, _ = typed.get(part[1:-1], (_ID, True))
            arguments.append(f"{argument}: {annotation}")
            text += f"/{{_segment({argument})}}"
        else:
            text += f"/{quote(part, safe=':@!$&()*+,;=')}"
    return ("f" if arguments else "") + literal(text), arguments


class _Arguments:
    """Names of arguments, unique within a method."""

    def __init__(self) -> None:
        self._taken = {*_TAKEN}

    def __call__(self, wanted: str) -> str:
        name = snake(wanted)
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _has_body(operation: Operation, method: str) -> bool:
    if operation.request is None:
        return method in _BODIES
    # Requests of these methods have no body, unless the handler cannot do without.
    return method not in _BODILESS or not operation.request.root.nullable


def _header(field: str) -> str:
    """The header that a field is read from."""
    return field.replace("_", "-").lower()


def _fields(operation: Operation, area: str, roots: Roots) -> dict[str, tuple[Annotation, bool]]:
    """The fields of a type that travel as text: their annotations, and whether they must be given."""
    document: Document | None = getattr(operation, area)
    if document is None:
        return {}
    root = resolve(document.root, document.definitions)
    if not isinstance(root, ObjectOf):
        return {}
    name_of = roots[operation.manifest.id, area].names.__getitem__
    return {
        name: (_as_text(schema, document, name_of, 0).without("None"), is_required(root, name))
        for name, schema in root.properties.items()
    }


def _as_text(schema: GType, document: Document, name_of: Callable[[str], str], depth: int) -> Annotation:
    target = resolve(schema, document.definitions)
    match target:
        case Primitive():
            return Annotation((_TEXTS.get(target.primitive_type, "str"),))
        case Enumeration() if isinstance(schema, Ref):
            return Annotation((f"types.{name_of(schema.ref)}",))
        case Enumeration() | LiteralOf():
            return choices(target.values if isinstance(target, Enumeration) else [target.value])
        case ArrayOf() | TupleOf() if depth < 8:
            items = [target.items] if isinstance(target, ArrayOf) else target.items
            return Annotation((f"list[{union(_as_text(each, document, name_of, depth + 1) for each in items)}]",))
        case UnionOf() if depth < 8:
            return union(_as_text(each, document, name_of, depth + 1) for each in target.types)
        case _:
            return _ANY_TEXT


def _spread(start: str, parts: Sequence[Part], end: str, margin: int) -> list[str]:
    """Lines of code: one where that is short enough, else one for each part."""
    whole = ", ".join(part if isinstance(part, str) else f"{part[0]}{', '.join(part[1])}{part[2]}" for part in parts)
    if margin + len(start) + len(whole) + len(end) <= _WIDTH:
        return [f"{' ' * margin}{start}{whole}{end}"]
    lines = [f"{' ' * margin}{start}"]
    for part in parts:
        if isinstance(part, str):
            lines.append(f"{' ' * (margin + 4)}{part},")
        else:
            lines += _spread(part[0], part[1], f"{part[2]},", margin + 4)
    return [*lines, f"{' ' * margin}{end}"]
