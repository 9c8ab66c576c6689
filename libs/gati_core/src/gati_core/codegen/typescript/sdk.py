"""A client over `fetch`, with a typed method for every handler and HTTP method."""

from __future__ import annotations

from functools import cache
from importlib import resources

from gati_core.codegen._model import Api, Operation
from gati_core.codegen._names import camel, ecma_safe, method_names, pascal, segments
from gati_core.codegen._types import NamedType, api_types, header_lines
from gati_core.codegen.typescript.types import FLAVOR, TAKEN, declarations, key, literal, type_text
from gati_core.gtype import Document, ObjectOf, is_required, resolve

_BODIES = ("POST", "PUT", "PATCH", "DELETE")


def typescript_sdk(api: Api, *, source: str = "") -> dict[str, str]:
    """The files of a client, by name: `types.ts`, `client.ts`, `index.ts`."""
    client = f"{pascal(api.name)}Client"
    registry, roots = api_types(api, [*TAKEN, client, "ClientOptions", "CallOptions", "GatiError"])
    head = "\n".join(f"// {line}" for line in header_lines(source)) + "\n\n"
    types = head + FLAVOR + "\n" + declarations(registry, roots.values())
    names = method_names(api)
    methods, left_out = [], []
    for operation in api.operations:
        methods += [
            _method(operation, method, names[operation.manifest.id, method], roots) for method in operation.http_methods
        ]
        if "WEBSOCKET" in operation.manifest.methods:
            left_out.append(f"// {operation.manifest.path} ({operation.manifest.id}) is a WebSocket: use `WebSocket`.")
    lines = [
        head + 'import type * as types from "./types";',
        "",
        _runtime(),
        *left_out,
        f"/** The handlers of {api.name}{f' {api.version}' if api.version else ''}. */",
        f"export class {client} extends Calls {{",
        "\n\n".join(methods),
        "}",
        "",
    ]
    index = f'{head}export * from "./types";\nexport * from "./client";\n'
    return {"types.ts": types, "client.ts": "\n".join(lines), "index.ts": index}


@cache
def _runtime() -> str:
    return resources.files(__package__).joinpath("client.ts").read_text(encoding="utf-8")


def _method(operation: Operation, method: str, name: str, roots: dict[tuple[str, str], NamedType]) -> str:
    manifest = operation.manifest

    def declared(area: str) -> str:
        root = roots.get((manifest.id, area))
        if root is None:
            return ""
        text = type_text(root.schema, root.names.__getitem__)
        return f"types.{text if text == root.names.get(getattr(root.schema, 'ref', ''), None) else root.name}"

    _, parameters = segments(manifest.path)
    arguments = [f"{_argument(each)}: {_parameter(operation.params, each)}" for each in parameters]
    call = [f"{key(each)}: {_argument(each)}" for each in parameters]
    body = declared("request")
    if method in _BODIES and (body or method not in ("DELETE",)):
        arguments.append(f"body: {body}" if body else "body?: unknown")
    query, headers = declared("query"), declared("headers")
    options = ["CallOptions"]
    if query:
        options.append(f"{{ query{_mark(operation.query)}: {query} }}")
    if headers:
        options.append(f"{{ headers{_mark(operation.headers)}: {headers} & Record<string, unknown> }}")
    wanted = (_mark(operation.query) == "" and query) or (_mark(operation.headers) == "" and headers)
    arguments.append(f"options: {' & '.join(options)}" if wanted else f"options: {' & '.join(options)} = {{}}")
    answer = declared("response") or "unknown"
    sends = "body" if any(each.startswith("body") for each in arguments) else "undefined"
    summary = f"  /** {' '.join(manifest.summary.replace('*/', '').split())} */\n" if manifest.summary else ""
    passed = f"{literal(method)}, {literal(manifest.path)}, {{ {', '.join(call)} }}, {sends}, options"
    return (
        f"{summary}  {ecma_safe(name)}({', '.join(arguments)}): Promise<{answer}> {{\n"
        f"    return this.call({passed});\n"
        "  }"
    )


def _argument(name: str) -> str:
    wanted = ecma_safe(camel(name))
    return f"{wanted}_" if wanted in ("body", "options") else wanted


def _parameter(document: Document | None, name: str) -> str:
    if document is not None:
        root = resolve(document.root, document.definitions)
        if isinstance(root, ObjectOf) and name in root.properties:
            text = type_text(root.properties[name], lambda _: "string | number")
            return text if text in ("string", "number", "boolean") else "string | number | boolean"
    return "string | number"


def _mark(document: Document | None) -> str:
    """`?` where nothing has to be given."""
    if document is None:
        return "?"
    root = resolve(document.root, document.definitions)
    if not isinstance(root, ObjectOf):
        return "?"
    return "" if any(is_required(root, name) for name in root.properties) else "?"
