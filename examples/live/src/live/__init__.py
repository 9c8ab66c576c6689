"""What goes on for longer than one answer: a ticker, chat rooms, and tickets that are paid or given back."""

from live.api import app

__all__ = ["app"]
