"""Owns which factor set records get now: always the same one, or what a provider of live factors says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol, TypeAlias

from ledger.core.canonical import encode_canonical
from ledger.core.records import FactorSet, decode_factor_set, document_digest
from ledger.energy.factors import Rates, rates

__all__ = ["FactorSource", "Factors", "LiveFactorSource", "checked_factors"]

_logger = logging.getLogger("tallystick.emit")


class LiveFactorSource(Protocol):
    """Such as ``ledger.energy.live_intensity.LiveFactors``: asked often, so it must not wait."""

    def current(self) -> FactorSet:
        """The factors of now."""


Factors: TypeAlias = FactorSet | LiveFactorSource | Callable[[], FactorSet]
"""What ``Recorder(factors=...)`` takes."""


class FactorSource:
    """The factor set of now, its digest and its rates. Used by one thread.

    Args:
        factors: None records energy alone.

    Raises:
        InvalidError: it is a factor set that no reader accepts.
    """

    def __init__(self, factors: Factors | None) -> None:
        self.now: FactorSet | None = None
        self.digest = ""
        self.rates: Rates | None = None
        self._ask: Callable[[], FactorSet] | None = None
        self._complained = ""
        if isinstance(factors, FactorSet):
            self._use(factors)
        elif factors is not None:
            self._ask = factors if callable(factors) else factors.current

    def refresh(self) -> None:
        """Ask the provider, if there is one. Where it fails, the last good set stays, and the log says so."""
        if self._ask is None:
            return
        try:
            found = self._ask()
            if found is not self.now:
                self._use(found)
            self._complained = ""
        except Exception as error:
            if self._complained != str(error):
                self._complained = str(error)
                _logger.exception("the provider of factor sets failed; the last one is used")

    def _use(self, factors: FactorSet) -> None:
        checked = checked_factors(factors)
        self.now, self.digest, self.rates = checked, document_digest(checked), rates(checked)


def checked_factors(factors: FactorSet) -> FactorSet:
    """Return ``factors`` if every reader accepts it.

    Raises:
        InvalidError: a value has the wrong type or form.
    """
    decode_factor_set(encode_canonical(factors))
    return factors
