"""Owns the table of problem types: every code that the API can answer with, its title, status and remedy.

A problem's ``type`` is ``/problems/<code>``; that address explains it. Codes never change their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.core.errors import CorruptError, InvalidError, RefusedError, TallystickError, UnavailableError
from ledger.service._local_problem_table import LOCAL_TABLE
from ledger.service._problem_table import TABLE

__all__ = ["PROBLEM_TYPES", "ProblemType", "problem_type_of"]


@dataclass(frozen=True)
class ProblemType:
    """One kind of problem. ``status`` is the HTTP status code that goes with it."""

    code: str
    status: int
    title: str
    explanation: str
    remedy: str

    @property
    def path(self) -> str:
        """Where the service explains it, and the problem's ``type``."""
        return f"/problems/{self.code}"


PROBLEM_TYPES: dict[str, ProblemType] = {row[0]: ProblemType(*row) for row in (*TABLE, *LOCAL_TABLE)}
"""Every problem type by its code."""

_BY_CLASS = (InvalidError, RefusedError, UnavailableError, CorruptError, TallystickError)


def problem_type_of(error: TallystickError) -> ProblemType:
    """The problem type of an error: by its code, else by its class."""
    found = PROBLEM_TYPES.get(error.code)
    if found is not None:
        return found
    return next(PROBLEM_TYPES[each.default_code] for each in _BY_CLASS if isinstance(error, each))
