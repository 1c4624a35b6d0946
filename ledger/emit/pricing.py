"""Owns which price books records get their cost by: given ones, or files, read anew when they change."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from ledger.core.canonical import encode_canonical
from ledger.core.errors import InvalidError, TallystickError
from ledger.core.price_books import PriceBook, decode_price_book
from ledger.core.records import Deployment, Usage
from ledger.cost.prices import load_price_book
from ledger.cost.rating import Rated, Rater

__all__ = ["PriceSource", "Prices"]

_logger = logging.getLogger("tallystick.emit")

Prices: TypeAlias = PriceBook | str | Path | Sequence[PriceBook | str | Path]
"""What ``Recorder(prices=...)`` takes."""
_MAX_BOOK_BYTES = 61_440
"""A statement has at most 65,535 bytes, of which header and ML-DSA-44 signature take less than 3,000."""


class PriceSource:
    """Rates requests by the books of now. Used by one thread.

    Args:
        prices: text is paths of files, separated as PATH is.

    Raises:
        InvalidError: a book is none, or too large to be logged.
    """

    def __init__(self, prices: Prices) -> None:
        if isinstance(prices, str):
            prices = prices.split(os.pathsep)
        given: Sequence[PriceBook | str | Path]
        given = [prices] if isinstance(prices, PriceBook | Path) else prices
        self._fixed = [_checked(each) for each in given if isinstance(each, PriceBook)]
        self._paths = [Path(each) for each in given if not isinstance(each, PriceBook) and str(each)]
        self._complained = ""
        self._seen = [_state(path) for path in self._paths]
        self._rater = self._read()

    def refresh(self) -> None:
        """Read files that changed. Where that fails, the last good books stay, and the log says so."""
        if not self._paths:
            return
        try:
            now = [_state(path) for path in self._paths]
            if now != self._seen:
                self._seen = now
                self._rater = self._read()
            self._complained = ""
        except TallystickError as error:
            self._seen = []  # look again next time
            if self._complained != str(error):
                self._complained = str(error)
                _logger.warning("a price book cannot be read anew, so the last one is used: %s", error)

    def rate(self, deployment: Deployment, digest: str, usage: Usage, started_us: int) -> Rated | None:
        """What a request costs; None without a book that holds then and knows the model.

        Raises:
            InvalidError: the usage is none.
        """
        try:
            return self._rater.rate(deployment, digest, usage, started_us)
        except (AttributeError, TypeError):
            raise InvalidError(
                "the usage is not one, or its counts are not integers", code="schema"
            ) from None

    def _read(self) -> Rater:
        return Rater([*self._fixed, *(_checked(load_price_book(path)) for path in self._paths)])


def _checked(book: PriceBook) -> PriceBook:
    data = encode_canonical(book)
    if len(data) > _MAX_BOOK_BYTES:
        raise InvalidError(
            f"the price book {book.name!r} has {len(data)} bytes, more than the {_MAX_BOOK_BYTES} "
            "that can be logged",
            remedy="keep only the rates that you use",
            code="bad-price-book",
        )
    return decode_price_book(data)


def _state(path: Path) -> tuple[int, int, int]:
    """Differs whenever the file was written anew."""
    try:
        found = path.stat()
    except OSError as error:
        raise InvalidError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            remedy="name a price book's JSON file in TALLYSTICK_PRICES",
            code="bad-price-book",
        ) from None
    return found.st_mtime_ns, found.st_size, found.st_ino
