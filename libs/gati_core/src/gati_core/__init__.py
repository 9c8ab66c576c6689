"""Gati: what a handler author imports, and nothing else."""

from gati_core.app import App, Request, Response, Route
from gati_core.contexts import Bucket, Event, GlobalContext, LocalContext, Priority, Snapshot, WebSocket
from gati_core.errors import (
    ChannelClosed,
    EventTimeout,
    Forbidden,
    GatiError,
    HandlerError,
    HookTimeout,
    KeyConflict,
    ModuleError,
    RateLimited,
    TooLate,
    Unauthenticated,
)
from gati_core.lifecycle import VersionedRequest, VersionedResponse

__version__ = "0.1.0"

__all__ = [
    "App",
    "Bucket",
    "ChannelClosed",
    "Event",
    "EventTimeout",
    "Forbidden",
    "GatiError",
    "GlobalContext",
    "HandlerError",
    "HookTimeout",
    "KeyConflict",
    "LocalContext",
    "ModuleError",
    "Priority",
    "RateLimited",
    "Request",
    "Response",
    "Route",
    "Snapshot",
    "TooLate",
    "Unauthenticated",
    "VersionedRequest",
    "VersionedResponse",
    "WebSocket",
]
