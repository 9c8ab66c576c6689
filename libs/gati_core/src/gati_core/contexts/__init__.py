"""What a handler is given beside the request: the local context of one request, the global context
of one process.

May import: everything below (`fabric`, `wire`, `errors`, …). Belongs here: state and access.
Running handlers and hooks is `lifecycle`'s business.
"""

from gati_core.contexts._global import Bucket, GlobalContext, Instance
from gati_core.contexts._local import LocalContext, RequestMeta

__all__ = ["Bucket", "GlobalContext", "Instance", "LocalContext", "RequestMeta"]
