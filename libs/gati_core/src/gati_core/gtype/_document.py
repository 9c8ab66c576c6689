"""Reading and writing documents, and what makes two of them the same type."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from gati_core.errors import MalformedGType
from gati_core.gtype._model import DOCUMENT_VERSION, Document, GType, ObjectOf, Primitive, Ref, Validator, walk

MAX_DEPTH = 50
"""Types nested deeper than this are refused."""
WARN_DEPTH = 20
MAX_BYTES = 512_000
"""Documents larger than this, as JSON, are refused."""
WARN_BYTES = 51_200

_decode = msgspec.json.Decoder(Document).decode
_encoder = msgspec.json.Encoder(order="sorted")


def canonical_json(value: Any) -> bytes:
    """Compact JSON with sorted keys: equal values give equal bytes."""
    return _encoder.encode(value)


def fingerprint(document: Document) -> str:
    """SHA-256, in hex, of what the type means; equal types have equal fingerprints.

    The version of the format and the document's metadata (name, source) do not count.
    """
    content = msgspec.to_builtins({"root": document.root, "definitions": document.definitions})
    _sort_required(content)
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _sort_required(content: Any) -> None:
    """The order of required names means nothing."""
    waiting = [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if each.get("kind") == "object" and "required" in each:
                each["required"] = sorted(each["required"])
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each


def write_document(document: Document) -> bytes:
    """As canonical JSON."""
    return canonical_json(document)


def read_document(data: bytes | str | Mapping[str, Any]) -> Document:
    """Read a document and check that it makes sense.

    Args:
        data: JSON, or what JSON decodes to. A missing `version` means 1.0.
    Raises:
        MalformedGType: not a document, of a newer version, too large or too deep, or it refers to a
            definition that it does not have; names the place.
    """
    size = len(data) if isinstance(data, (bytes, str)) else 0
    if size > MAX_BYTES:
        raise MalformedGType(f"the document of {size} bytes exceeds the limit of {MAX_BYTES}")
    try:
        raw = msgspec.json.decode(data) if isinstance(data, (bytes, str)) else data
        _check_version(raw)
        document = msgspec.convert(raw, Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise MalformedGType(f"not a GType document: {exc}") from exc
    check_document(document)
    return document


def _check_version(raw: Any) -> None:
    version = raw.get("version", DOCUMENT_VERSION) if isinstance(raw, Mapping) else DOCUMENT_VERSION
    if version != DOCUMENT_VERSION:
        raise MalformedGType(
            f"the document is of version {version!r}, this process reads {DOCUMENT_VERSION}: upgrade it before it reads"
            " what a newer one has written"
        )


def check_document(document: Document) -> None:
    """What the shape of a document cannot say.

    Raises:
        MalformedGType: names the place and what is wrong there.
    """
    for where, depth, schema in walk(document):
        if depth > MAX_DEPTH:
            raise MalformedGType(f"{where[:200]}…: types are nested more than {MAX_DEPTH} deep")
        if isinstance(schema, Ref) and schema.ref not in document.definitions:
            known = ", ".join(sorted(document.definitions)) or "none"
            raise MalformedGType(f"{where}: there is no definition {schema.ref!r}; defined: {known}")
        if isinstance(schema, ObjectOf):
            missing = [name for name in schema.required if name not in schema.properties]
            if missing:
                raise MalformedGType(f"{where}: required names no property: {', '.join(missing)}")
    for name in document.definitions:
        _refuse_empty_circle(document, name)


def _refuse_empty_circle(document: Document, name: str) -> None:
    """A definition that is only a reference to itself has no meaning."""
    seen = [name]
    schema: GType = document.definitions[name]
    while isinstance(schema, Ref):
        if schema.ref in seen:
            raise MalformedGType(f"#{name}: refers only to itself, by {' → '.join([*seen, schema.ref])}")
        seen.append(schema.ref)
        schema = document.definitions[schema.ref]


def clone(document: Document) -> Document:
    """A deep copy."""
    return _decode(_encoder.encode(document))


def resolve(schema: GType, definitions: Mapping[str, GType]) -> GType:
    """The type behind references; flags of the references (`nullable`, `optional`) are not merged in."""
    while isinstance(schema, Ref):
        schema = definitions[schema.ref]
    return schema


def string(*validators: Validator, **flags: Any) -> Primitive:
    """A text type with these constraints."""
    return Primitive(primitive_type="string", validators=list(validators), **flags)
