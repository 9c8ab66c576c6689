"""The ingress: HTTP in, request descriptors out, replies back. The only part that clients talk to.

`protocol` guards the head of a request, `app` is the plain ASGI path of one request, whose headers
`head` reads. After a first reply that says `more`, `channels` keeps the frames in order and in their
windows, for `streaming` (HTTP) and `sockets` (WebSockets; `handshake` has their rules and
`socket_protocol` their connections). `operations` are the endpoints for probes and metrics, `stats`
what they count, `server` runs one process, `__main__` one or several.

May import: gati_core.
"""
