"""Gati: what a handler author imports, and nothing else."""

from gati_core.app import App, Request, Response
from gati_core.contexts import Bucket, GlobalContext, LocalContext
from gati_core.errors import GatiError, HandlerError, KeyConflict

__version__ = "0.1.0"

__all__ = [
    "App",
    "Bucket",
    "GatiError",
    "GlobalContext",
    "HandlerError",
    "KeyConflict",
    "LocalContext",
    "Request",
    "Response",
]
