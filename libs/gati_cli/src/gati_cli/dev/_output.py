"""The terminal of `gati dev`: lines in order, coloured where somebody looks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from gati_cli.dev._banner import Served, route_table
from gati_cli.dev._lines import Line

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Output:
    """Prints to standard output; an output that is gone (a closed terminal) is no reason to fail."""

    def __init__(self) -> None:
        self._is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str, style: str = "") -> None:
        """One line. `style` is a list of names, for example `bold red`."""
        codes = ";".join(_CODES[name] for name in style.split() if name in _CODES)
        if codes and self._is_coloured:
            text = f"\x1b[{codes}m{text}\x1b[0m"
        try:
            print(text, flush=True)
        except (OSError, ValueError):
            # Stopping in order matters more than being heard.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - stays open until the process ends

    def say_all(self, lines: Iterable[Line]) -> None:
        """Several lines."""
        for line in lines:
            self.say(line.text, line.style)

    def routes(self, routes: Sequence[Served]) -> None:
        """The routes as a table."""
        from rich.console import Console

        console = Console(highlight=False, no_color=not self._is_coloured)
        if not console.is_terminal:
            console.width = 140
        with console.capture() as captured:
            console.print(route_table(routes))
        for line in captured.get().splitlines():
            self.say("  " + line.rstrip())
