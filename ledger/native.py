"""Tells whether the optional native part, ``ledger._native``, is used.

It is built from ``ledger/_c`` where a compiler is at hand when the package is installed. Without it, or with
``TALLYSTICK_NO_NATIVE=1``, everything works the same in Python, slower: the Python implementation beside each
call is the reference, and decides wherever the native part is not certain. See decision record 0012.
"""

from __future__ import annotations

import os

__all__ = ["hashing", "parsing"]

_VERSION = 8
"""Of the functions' signatures. What was built from other sources is not used."""

try:
    if os.environ.get("TALLYSTICK_NO_NATIVE", "") not in ("", "0"):
        raise ImportError("switched off")
    from ledger import _native as parsing

    if parsing.VERSION != _VERSION:
        raise ImportError("built from other sources")
except ImportError:
    parsing = None  # type: ignore[assignment]

# Without the processor's instructions for SHA-256, hashlib is faster than we would be.
if parsing is not None and parsing.HASHES:
    from ledger import _native as hashing
else:
    hashing = None  # type: ignore[assignment]
