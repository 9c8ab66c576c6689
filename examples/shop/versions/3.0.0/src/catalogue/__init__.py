"""The catalogue of a small shop."""

from catalogue.api import app

__all__ = ["app"]
