"""Types as data: documents, what they accept, how they differ, and what is made of them.

`Document` is the canonical schema model. Everything that Gati says about a type (validation, manifests,
the comparison of versions, OpenAPI, generated clients) is derived from it.

May import: `errors`. Pure: no I/O, no clock, no broker.
"""

from gati_core.gtype._document import (
    canonical_json,
    check_document,
    clone,
    fingerprint,
    read_document,
    resolve,
    write_document,
)
from gati_core.gtype._model import (
    ANY,
    AnyOf,
    ArrayOf,
    Document,
    Enumeration,
    GType,
    IntersectionOf,
    LiteralOf,
    NeverOf,
    ObjectOf,
    Primitive,
    Ref,
    TupleOf,
    UnionOf,
    UnknownOf,
    Validator,
    children,
    is_required,
    walk,
)

__all__ = [
    "ANY",
    "AnyOf",
    "ArrayOf",
    "Document",
    "Enumeration",
    "GType",
    "IntersectionOf",
    "LiteralOf",
    "NeverOf",
    "ObjectOf",
    "Primitive",
    "Ref",
    "TupleOf",
    "UnionOf",
    "UnknownOf",
    "Validator",
    "canonical_json",
    "check_document",
    "children",
    "clone",
    "fingerprint",
    "is_required",
    "read_document",
    "resolve",
    "walk",
    "write_document",
]
