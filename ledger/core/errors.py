"""The error hierarchy: one base, four subclasses by what the caller can do about it.

Every message says what was wrong, where, and the remedy. ``code`` is a stable kebab-case slug that names
the problem type in the API (RFC 9457) and in ``--json`` output.
"""

from __future__ import annotations

__all__ = ["CorruptError", "InvalidError", "RefusedError", "TallystickError", "UnavailableError"]


class TallystickError(Exception):
    """Base of every error raised on purpose.

    Args:
        what: what was wrong, one sentence without a full stop.
        where: the place (file, leaf index, field, key), empty if there is none.
        remedy: what the caller can do.
        code: stable slug of the problem type; the class gives a default.
    """

    default_code = "error"

    def __init__(self, what: str, *, where: str = "", remedy: str = "", code: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        self.code = code or self.default_code
        message = what
        if where:
            message += f" ({where})"
        if remedy:
            message += f": {remedy}"
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between processes; the default would keep the message alone.
        return _rebuild, (type(self), self.what, self.where, self.remedy, self.code)


class InvalidError(TallystickError):
    """The input is malformed. Repeating it unchanged cannot succeed."""

    default_code = "invalid"


class RefusedError(TallystickError):
    """The input is well formed, but policy or state forbids it (unknown issuer, gap in ``seq``)."""

    default_code = "refused"


class UnavailableError(TallystickError):
    """Something needed is not there now (ledger down, disk full). Repeating later can succeed."""

    default_code = "unavailable"


class CorruptError(TallystickError):
    """Evidence does not verify: it was changed, cut or mixed up. ``where`` names the place."""

    default_code = "corrupt"


def _rebuild(kind: type[TallystickError], what: str, where: str, remedy: str, code: str) -> TallystickError:
    return kind(what, where=where, remedy=remedy, code=code)
