"""`gati dev`: a broker, an ingress, a router and a worker as children of one command.

May import: gati_core, and only once the services have been started: loading it takes as long as
starting them. Never imports a service. `_session` runs everything; `_processes` is one child,
`_guard` stops what a killed `gati dev` leaves, `_lines` and `_banner` are what people read.
"""

from __future__ import annotations

from collections.abc import Mapping

from gati_cli.dev._options import DevOptions

__all__ = ["DevOptions", "run_dev"]


def run_dev(options: DevOptions, environ: Mapping[str, str]) -> int:
    """Run until a signal; returns the exit code.

    Raises:
        CliError: it could not start, or could not go on; everything it started is gone.
    """
    from gati_cli.dev._session import run

    return run(options, environ)
