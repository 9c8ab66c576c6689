"""The event loop of async tests; a plugin of its own, so that it can be registered last."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Async tests run once, on plain asyncio, which debuggers and warnings know best."""
    return "asyncio", {"use_uvloop": False}
