"""The router: matches a request to a handler, picks the pool that runs it, and hands it over.

May import: gati_core. `matching` and `catalogue` decide and never wait; `app` wires them to the
fabric; `__main__` is the composition root.
"""
