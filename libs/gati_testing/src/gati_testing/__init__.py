"""What tests of Gati and of handler packages share.

Belongs here: the pytest plugin (fixtures around a real broker), hypothesis strategies for whatever
travels or is declared, and the harness that runs a handler. Does not belong here: fakes of parts
that can be started, and helpers of a single test module.

May import: `gati_core`, and the pure parts of router and worker.
"""
