"""The worker: a supervisor per container, and one child process per handler package.

`supervisor` starts, watches, reloads and buries children; `runner` is the child: it takes work,
runs handlers and replies. User code is only ever imported in a child.

May import: gati_core.
"""
