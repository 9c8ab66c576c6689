"""Identifiers: request ids (UUIDv7) and short instance ids.

This module imports nothing else of ours.
"""

from __future__ import annotations

import os
import random
import secrets
import time

# Seeded from the operating system and again after a fork: two processes never share a sequence.
_random = random.Random(secrets.randbits(256))  # noqa: S311  (ids must be distinct, not secret)
os.register_at_fork(after_in_child=lambda: _random.seed(secrets.randbits(256)))


def new_request_id(now_ms: int | None = None) -> str:
    """A UUIDv7 (RFC 9562) as 36 characters: 48 bits of Unix milliseconds, then 74 random bits.

    Sorts by time of creation to the millisecond, and is safe as one token of a subject.

    >>> new_request_id(0)[:15]
    '00000000-0000-7'
    """
    ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    bits = _random.getrandbits(74)
    text = f"{(ms << 80) | 0x7000_8000_0000_0000_0000 | (bits >> 62) << 64 | (bits & 0x3FFF_FFFF_FFFF_FFFF):032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_instance_id() -> str:
    """Twelve hexadecimal digits that name one process; safe as one token of a subject."""
    return secrets.token_hex(6)
