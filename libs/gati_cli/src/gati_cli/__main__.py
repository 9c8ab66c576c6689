"""The `gati` command: reads the environment, runs one command, turns errors into one clear line.

Imports stay small here and in `_app`: `gati --help` should not wait for a NATS client, and
`gati dev` starts its processes before it loads what it needs itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gati_cli._app import app
from gati_cli._errors import CliError
from gati_cli._options import Surroundings


def main() -> None:
    """Entry point. Exit code 0 when done, 1 when it failed, 2 when it could not even begin."""
    surroundings = Surroundings(environ=dict(os.environ), directory=Path.cwd())
    try:
        app(prog_name="gati", obj=surroundings)
    except CliError as exc:
        print(f"gati: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # `gati routes | head`: whoever read has seen enough. Nothing may be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as exc:
        from gati_core.errors import GatiError  # only now: importing gati_core takes a while

        if not isinstance(exc, GatiError):
            raise
        print(f"gati: {exc}", file=sys.stderr)
        sys.exit(2 if exc.code.startswith("settings") else 1)


if __name__ == "__main__":
    main()
