"""OpenAPI 3.1 from manifests and types."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any
from urllib.parse import quote

from gati_core.codegen._model import Api, Operation
from gati_core.codegen._names import method_names, segments
from gati_core.codegen._types import TypeRegistry
from gati_core.gtype import (
    ArrayOf,
    Document,
    GType,
    ObjectOf,
    expand_brands,
    is_required,
    resolve,
    schema_object,
)

_PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "Problem details (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "For people; may change."},
        "code": {"type": "string", "description": "Stable and dotted; for programs."},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["in", "path", "expected", "actual", "message"],
                "properties": {
                    "in": {"enum": ["body", "query", "path", "header"]},
                    "path": {"type": "string"},
                    "expected": {"type": "string"},
                    "actual": {"type": "string"},
                    "message": {"type": "string"},
                },
            },
        },
    },
}
_REASONS = {
    "400": "The request is not valid; `errors` lists every place.",
    "401": "Credentials are missing or not accepted.",
    "403": "The caller has none of the roles.",
    "415": "The body is no JSON.",
    "4XX": "The request is refused; `code` says why.",
    "5XX": "The handler failed, nobody could run it, or it took too long.",
}
_BODILESS = ("GET", "HEAD", "DELETE", "OPTIONS")
_NOT_DESCRIBED = ("accept", "content-type", "authorization")
"""Headers that are no parameters in OpenAPI, which says them elsewhere."""


def openapi(
    apis: Api | Sequence[Api], *, title: str = "Gati", version: str = "", servers: Sequence[str] = ()
) -> dict[str, Any]:
    """An OpenAPI 3.1 document. WebSockets are left out: OpenAPI has no words for them.

    Handlers choose the status when they run, so successful answers stand under `2XX`.

    Args:
        apis: of several, the first that serves a method on a path describes it.
        version: of the whole; of a single API its own when empty.
        servers: their URLs.
    """
    given = [apis] if isinstance(apis, Api) else list(apis)
    builder = _Builder(given)
    result: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version or (given[0].version if len(given) == 1 else "") or "0"},
    }
    if servers:
        result["servers"] = [{"url": url} for url in servers]
    result["tags"] = [{"name": name} for name in dict.fromkeys(api.name for api in given)]
    result["paths"] = builder.paths()
    result["components"] = {
        "schemas": {"Problem": _PROBLEM, **builder.schemas()},
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
    }
    return result


class _Builder:
    def __init__(self, apis: Sequence[Api]) -> None:
        self._apis = apis
        self._registry = TypeRegistry(taken=["Problem"])
        self._ids: set[str] = set()
        self._known: dict[int, tuple[Document, dict[str, str]]] = {}

    def schemas(self) -> dict[str, Any]:
        """The components that the paths refer to."""
        types = self._registry.types
        return {name: _schema(types[name].schema, types[name].document, types[name].names) for name in sorted(types)}

    def paths(self) -> dict[str, Any]:
        """Path items by path; parameters that differ in name alone are one path."""
        found: dict[str, dict[str, Any]] = {}
        shapes: dict[str, str] = {}
        for api in self._apis:
            names = method_names(api)
            for operation in api.operations:
                path = operation.manifest.path
                shape = "/".join("{}" if part.startswith("{") else part for part in path.split("/"))
                for method in operation.http_methods:
                    item = found.setdefault(shapes.setdefault(shape, path), {})
                    if method.lower() not in item:
                        id = self._unique_id(f"{api.name}_{names[operation.manifest.id, method]}")
                        described = self._operation(api, operation, method, id)
                        item[method.lower()] = _renamed(described, path, shapes[shape])
        return {_template(path): found[path] for path in sorted(found)}

    def _unique_id(self, wanted: str) -> str:
        """Two versions of one app may have operations that are called alike."""
        id, numbers = wanted, count(2)
        while id in self._ids:
            id = f"{wanted}_{next(numbers)}"
        self._ids.add(id)
        return id

    def _operation(self, api: Api, operation: Operation, method: str, id: str) -> dict[str, Any]:
        manifest = operation.manifest
        result: dict[str, Any] = {"operationId": id, "tags": [api.name]}
        if manifest.summary:
            result["summary"] = manifest.summary
        parameters = self._parameters(api, operation)
        if parameters:
            result["parameters"] = parameters
        # Requests of some methods have no body, unless the handler cannot do without.
        if operation.request is not None and (method not in _BODILESS or not operation.request.root.nullable):
            schema = self._schema(api, operation.request)
            result["requestBody"] = {
                "required": not operation.request.root.nullable,
                "content": {"application/json": {"schema": schema}},
            }
        result["responses"] = self._responses(api, operation, method)
        if manifest.policies.roles:
            result["security"] = [{"bearer": []}]
            result["x-gati-roles"] = manifest.policies.roles
        result["x-gati-handler"] = f"{api.name}:{manifest.id}"
        result["x-gati-delivery"] = manifest.mode
        return result

    def _parameters(self, api: Api, operation: Operation) -> list[dict[str, Any]]:
        typed = self._fields(api, operation.params)
        found = [
            {"name": name, "in": "path", "required": True, **_described(typed.get(name, (True, {"type": "string"}))[1])}
            for name in segments(operation.manifest.path)[1]
        ]
        for name, (required, schema) in self._fields(api, operation.query).items():
            exploded = {"style": "form", "explode": True} if _is_list(operation.query, name) else {}
            found.append({"name": name, "in": "query", "required": required, **_described(schema), **exploded})
        headers = {
            name.replace("_", "-").lower(): field for name, field in self._fields(api, operation.headers).items()
        }
        return found + [
            {"name": name, "in": "header", "required": required, **_described(schema)}
            for name, (required, schema) in headers.items()
            if name not in _NOT_DESCRIBED
        ]

    def _fields(self, api: Api, document: Document | None) -> dict[str, tuple[bool, dict[str, Any]]]:
        """The fields of a type that is no body: whether they are required, and their schemas."""
        if document is None:
            return {}
        document, names = self._named(api, document)
        root = resolve(document.root, document.definitions)
        if not isinstance(root, ObjectOf):
            return {}
        return {
            name: (is_required(root, name), _schema(schema, document, names))
            for name, schema in root.properties.items()
        }

    def _responses(self, api: Api, operation: Operation, method: str) -> dict[str, Any]:
        success: dict[str, Any] = {"description": "Done."}
        if operation.response is not None and method != "HEAD":
            success["content"] = {"application/json": {"schema": self._schema(api, operation.response)}}
        found: dict[str, Any] = {"2XX": success}
        typed = (operation.request, operation.query, operation.params, operation.headers)
        codes = ["400"] if any(each is not None for each in typed) else []
        codes += ["415"] if operation.request is not None else []
        codes += ["401", "403"] if operation.manifest.policies.roles else []
        for code in [*sorted(codes), "4XX", "5XX"]:
            content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
            found[code] = {"description": _REASONS[code], "content": content}
        return found

    # -- types --------------------------------------------------------------------------------------

    def _schema(self, api: Api, document: Document) -> dict[str, Any]:
        document, names = self._named(api, document)
        return _schema(document.root, document, names)

    def _named(self, api: Api, document: Document) -> tuple[Document, dict[str, str]]:
        """The document with its brands written out, and the components of its definitions."""
        found = self._known.get(id(document))
        if found is None:
            found = expand_brands(document), self._registry.add(document, prefix=api.name)
            self._known[id(document)] = found
        return found


def _schema(schema: GType, document: Document, names: dict[str, str]) -> dict[str, Any]:
    return schema_object(schema, document.definitions, refs=lambda name: f"#/components/schemas/{names[name]}")


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as part of a parameter, which itself says what it is for and whether it is deprecated."""
    rest = {name: value for name, value in schema.items() if name not in ("description", "deprecated")}
    return {**{name: value for name, value in schema.items() if name not in rest}, "schema": rest}


def _template(path: str) -> str:
    """A path of a route as one of OpenAPI: what is no parameter is written as in URLs."""
    parts = path.split("/")
    return "/".join(part if part.startswith("{") else quote(part, safe="!$&'()*+,;=:@") for part in parts)


def _is_list(document: Document | None, name: str) -> bool:
    if document is None:
        return False
    root = resolve(document.root, document.definitions)
    return isinstance(root, ObjectOf) and isinstance(resolve(root.properties[name], document.definitions), ArrayOf)


def _renamed(operation: dict[str, Any], own: str, path: str) -> dict[str, Any]:
    """The operation with its path parameters named as those of the path under which it stands."""
    names = dict(zip(segments(own)[1], segments(path)[1], strict=True))
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            parameter["name"] = names[parameter["name"]]
    return operation
