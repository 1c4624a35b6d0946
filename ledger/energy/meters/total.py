"""Owns the sum of several meters, for a host whose parts are counted apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ledger.core.errors import InvalidError
from ledger.core.records import Method
from ledger.energy.meters.counting import Meter, MeterReset

__all__ = ["TotalMeter"]

_ORDER: tuple[Method, ...] = ("measured", "modelled", "estimated")


class TotalMeter:
    """Counts what all its meters count.

    They must not count the same thing twice: a host's power includes its CPUs.
    The least certain of them decides method and accuracy. While one does not answer, none does.

    Args:
        meters: at least one.
        again: asked before each reading; returns meters that replace these where they are no longer valid.
    """

    def __init__(
        self, meters: Sequence[Meter], *, again: Callable[[], Sequence[Meter]] | None = None
    ) -> None:
        if not meters:
            raise InvalidError("a sum needs at least one meter", code="bad-setting")
        self._meters = list(meters)
        self._again = again
        names = [meter.name for meter in meters]
        self.name = " + ".join(
            f"{names.count(name)} x {name}" if names.count(name) > 1 else name
            for name in dict.fromkeys(names)
        )[:200]
        self.method: Method = max((meter.method for meter in meters), key=_ORDER.index)
        accuracies = [meter.accuracy_milli for meter in meters]
        known = [each for each in accuracies if each is not None]
        self.accuracy_milli = max(known) if len(known) == len(accuracies) else None

    def read(self) -> int:
        """See ``Meter.read``."""
        replaced = [] if self._again is None else list(self._again())
        if replaced:
            self._meters = replaced
            raise MeterReset("the meters were opened anew", where=self.name)
        return sum([meter.read() for meter in self._meters])
