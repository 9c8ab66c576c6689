"""The authoring API: `App`, its route decorators, `Request` and `Response`.

May import: everything else in gati_core.
"""

from gati_core.app._app import App, Handler
from gati_core.app._route import Route
from gati_core.lifecycle.request import Request
from gati_core.lifecycle.response import Response

__all__ = ["App", "Handler", "Request", "Response", "Route"]
