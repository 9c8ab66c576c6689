"""What the command says when it cannot go on: one message for people, and an exit code."""

from __future__ import annotations


class CliError(Exception):
    """Ends the command with its message on standard error and no traceback.

    Args:
        message: what is wrong and what to do about it.
        exit_code: 2 when nothing was begun (a wrong argument, a taken port), else 1.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
