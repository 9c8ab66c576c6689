"""Python: a typed client over httpx, sync and async."""

from gati_core.codegen.python.client import python_client

__all__ = ["python_client"]
