"""What is generated from manifests and types: clients, declarations, OpenAPI.

Everything here turns data into text: same input, same bytes. No I/O, no clock, nothing about a running fabric.

May import: `errors`, `gtype`, `manifests`.
"""

from gati_core.codegen._model import Api, Operation, make_api
from gati_core.codegen.docs_page import docs_page
from gati_core.codegen.openapi import openapi
from gati_core.codegen.python import python_client
from gati_core.codegen.typescript import typescript_sdk, typescript_types, typescript_validators

__all__ = [
    "Api",
    "Operation",
    "docs_page",
    "make_api",
    "openapi",
    "python_client",
    "typescript_sdk",
    "typescript_types",
    "typescript_validators",
]
