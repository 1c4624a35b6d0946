"""Reads what a caller accepts (RFC 9110 section 12.5): how much it wants one thing that it names."""

from __future__ import annotations

__all__ = ["quality"]


def quality(header: str, name: str) -> float:
    """The weight that an ``Accept`` or ``Accept-Encoding`` header gives ``name``; 0 if it names it not."""
    for part in header.lower().split(","):
        found, *parameters = (each.strip() for each in part.split(";"))
        if found != name:
            continue
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    return float(parameter[2:])
                except ValueError:
                    return 0.0
        return 1.0
    return 0.0
