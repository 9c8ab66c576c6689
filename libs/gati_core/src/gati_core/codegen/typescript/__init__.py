"""TypeScript: declarations, validators, and a client over `fetch`."""

from gati_core.codegen.typescript.sdk import typescript_sdk
from gati_core.codegen.typescript.types import typescript_types
from gati_core.codegen.typescript.validators import typescript_validators

__all__ = ["typescript_sdk", "typescript_types", "typescript_validators"]
