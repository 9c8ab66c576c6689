"""Time limits that authors of packages give."""

from __future__ import annotations

import math

from gati_core.errors import RegistrationError


def check_timeout(timeout_s: object, what: str) -> None:
    """Refuse a limit that limits nothing, or everything.

    Args:
        timeout_s: seconds.
        what: begins the message.
    Raises:
        RegistrationError: it is no number, not above 0, or not finite.
    """
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not is_number or not 0 < timeout_s < math.inf:  # type: ignore[operator]  # it is a number here
        raise RegistrationError(f"{what}: timeout_s must be above 0 and finite, not {timeout_s!r}")
