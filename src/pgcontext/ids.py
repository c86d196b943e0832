"""Ids that the client chooses, so that a retry is recognised by them."""

from __future__ import annotations

import os
import time
from uuid import UUID


def uuid7() -> UUID:
    """Make a UUIDv7: 48 bits of Unix milliseconds, then 74 random bits.

    Source: RFC 9562, section 5.7. Python has its own from 3.14 on.
    """
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | noise
    value = value & ~(0xF << 76) | 0x7 << 76  # version
    value = value & ~(0b11 << 62) | 0b10 << 62  # variant
    return UUID(int=value)
