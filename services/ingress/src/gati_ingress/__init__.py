"""The ingress: HTTP in, request descriptors out, replies back. The only part that clients talk to.

`protocol` guards the head of a request, `app` is the plain ASGI path of one request, `operations`
are the endpoints for probes and metrics, `server` runs one process, `__main__` one or several.

May import: gati_core.
"""
