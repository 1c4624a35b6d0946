"""Owns how cells are written for spreadsheets: no reader may take what a log holds for a formula."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["safe_cell"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\0", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""The last four are the full-width forms, which some spreadsheets take for the others."""
_is_number = re.compile(r"-?[0-9]+(\.[0-9]+)?").fullmatch


def safe_cell(value: Any) -> str:
    """``value`` as text of a CSV cell; what a spreadsheet would compute gets an apostrophe before it (OWASP).

    Numbers stay numbers, negative ones too.
    """
    text = str(value)
    return f"'{text}" if text[:1] in _FORMULA and text and not _is_number(text) else text
