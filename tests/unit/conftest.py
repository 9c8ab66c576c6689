"""Settings of the unit suite."""

from __future__ import annotations

from hypothesis import settings

# A busy machine makes any example slow now and then; a test that hangs ends at pytest's own limit.
settings.register_profile("gati", deadline=None)
settings.load_profile("gati")
