"""Where an audit reads a log from: what a source implements. Nothing that a source says is believed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TypeAlias

__all__ = ["Leaf", "Row", "Source", "StoredColumns"]

Row: TypeAlias = tuple[Any, ...]
"""A database row. A column can hold a value of any type: it may have been tampered with."""


@dataclass(frozen=True, slots=True)
class StoredColumns:
    """What a database stores beside a leaf's entry. Types are as they should be, not as they must be."""

    leaf_hash: Any
    kind: Any
    issuer: Any
    seq: Any
    tree_size: Any
    registered_s: Any
    receipt_signature: Any
    record_count: Any
    first_us: Any
    last_us: Any
    records_sha256: Any


@dataclass(frozen=True, slots=True)
class Leaf:
    """One leaf as a source gives it.

    Args:
        index: its index.
        entry: its bytes.
        columns: what a database stores beside them; None from other sources.
        block: its records as one zstd frame, as a database stores them.
        lines: its records as newline-ended lines, as a service gives them.
        receipt: its receipt, as a service gives it.
        missing: what of these the source could not give, and why.
    """

    index: int
    entry: Any
    columns: StoredColumns | None = None
    block: Any = None
    lines: bytes | None = None
    receipt: bytes | None = None
    missing: tuple[tuple[str, str], ...] = ()


class Source(Protocol):
    """A log to audit. Entering the context takes one snapshot, leaving it lets go of it.

    Every method raises UnavailableError for what cannot be read: the audit then says what it did not check.
    """

    @property
    def name(self) -> str:
        """What is audited, for the report."""

    @property
    def has_tables(self) -> bool:
        """Whether the source has the derived tables of a database (``rows``, ``open_index``)."""

    def __enter__(self) -> Source: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def newest_notes(self) -> Iterator[bytes]:
        """Checkpoint notes, newest first: the first one that verifies says how large the tree is."""

    def checkpoints(self) -> Iterator[tuple[Any, Any]]:
        """Every stored checkpoint as (size, note), sizes ascending."""

    def witnessed(self) -> Iterator[bytes]:
        """Notes of checkpoints with cosignatures that are kept beside the stored ones, newest first."""

    def leaves(self, size: int) -> Iterator[Leaf]:
        """The leaves, indexes ascending. A database gives all it has, a service those below ``size``."""

    def tile(self, level: int, index: int, width: int) -> Any:
        """The bytes of a tile, None if there is none. A database gives the whole row, whatever its width."""

    def tile_keys(self) -> Iterator[tuple[Any, Any]]:
        """(level, index) of every stored tile; nothing from a source that cannot list them."""

    def rows(self, table: str) -> Iterator[Row]:
        """The rows of a derived table, columns in the order of ``tables.COLUMNS``."""

    def settings(self, table: str) -> Iterator[Row]:
        """The rows of a table that acts in the log set, columns in the order of ``tables.SETTINGS``."""

    def open_index(self) -> Callable[[int], list[Row]]:
        """Begin to read ``record_index``; the function returns its next rows by id, [] at the end."""

    def unexpected(self) -> Iterator[str]:
        """Places of the source that this auditor does not know, such as a table of a later version."""
