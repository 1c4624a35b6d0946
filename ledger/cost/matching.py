"""Owns how the lines of one model are held against what was logged, and which error explains what differs.

Pure arithmetic on vectors: one number for each kind of token that lines tell together. A *cell* is a period
with what was logged in it, and the lines for it. Cells that add up are settled; for the others the simplest
explanation is sought, in this order: a line that is there more than once; a line too much, which another cell
lacks (a wrong day); lines whose days were exchanged; then what is left: lines too much, cells with nothing,
cells whose count is another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

__all__ = ["Cell", "Doubled", "Finding", "Moved", "Short", "Surplus", "Vector", "Wrong", "explain"]

Vector = tuple[int, ...]
_MAX_COPIES = 12
"""Copies of lines in one cell among which subsets are tried."""
_MAX_SUBSET = 3


@dataclass
class Cell:
    """A period, what was logged in it, and its lines: (line number, fingerprint, counts)."""

    period: tuple[int, int]
    logged: Vector
    lines: list[tuple[int, object, Vector]] = field(default_factory=list)

    @property
    def billed(self) -> Vector:
        """The sum of its lines."""
        return tuple(map(sum, zip(*(counts for _, _, counts in self.lines), strict=True))) or tuple(
            0 for _ in self.logged
        )


@dataclass(frozen=True)
class Doubled:
    """Line ``number`` is there again: ``first`` is the same."""

    cell: Cell
    number: int
    first: int
    counts: Vector


@dataclass(frozen=True)
class Moved:
    """Line ``number`` stands in ``cell`` and belongs to ``home``."""

    cell: Cell
    number: int
    home: Cell
    counts: Vector


@dataclass(frozen=True)
class Surplus:
    """Line ``number`` bills what was not logged."""

    cell: Cell
    number: int
    counts: Vector


@dataclass(frozen=True)
class Short:
    """A cell lacks ``counts``, and has no line for them."""

    cell: Cell
    counts: Vector


@dataclass(frozen=True)
class Wrong:
    """A cell's lines count something else than was logged."""

    cell: Cell


Finding = Doubled | Moved | Surplus | Short | Wrong


def explain(cells: Iterable[Cell], tolerance: Vector) -> list[Finding]:
    """What explains that cells do not add up; nothing if they do.

    Args:
        cells: of one model; their vectors all have the same kinds.
        tolerance: by how much a cell's sum may differ, for each kind.
    """
    found: list[Finding] = []
    surplus: list[Surplus] = []
    short: list[Cell] = []
    open_cells: list[Cell] = []
    for cell in cells:
        rest = _minus(cell.billed, cell.logged)
        if _is_zero(rest, tolerance):
            continue
        doubled = _doubled(cell, rest, tolerance)
        if doubled:
            found += doubled
            continue
        extra = _surplus(cell, rest, tolerance)
        if extra:
            surplus += extra
        elif not cell.lines or all(each <= t for each, t in zip(rest, tolerance, strict=True)):
            short.append(cell)
        else:
            open_cells.append(cell)

    for each in list(surplus):
        home = _nearest(each, short, tolerance)
        if home is not None:
            found.append(Moved(each.cell, each.number, home, each.counts))
            surplus.remove(each)
            short.remove(home)

    moved, settled = _exchanged([*open_cells, *short, *_cells_of(surplus)], tolerance)
    found += moved
    taken = {each.number for each in moved}
    found += [each for each in surplus if each.number not in taken]
    for cell in [*short, *open_cells]:
        if id(cell) in settled:
            continue
        left = [counts for number, _, counts in cell.lines if number not in taken]
        lacking = _minus(cell.logged, _sum(left, len(cell.logged)))
        found.append(Wrong(cell) if left else Short(cell, lacking))
    return found


def _doubled(cell: Cell, rest: Vector, tolerance: Vector) -> list[Finding]:
    """Copies whose removal settles the cell."""
    first: dict[object, int] = {}
    copies: list[tuple[int, int, Vector]] = []
    for number, fingerprint, counts in cell.lines:
        if fingerprint in first:
            copies.append((number, first[fingerprint], counts))
        else:
            first[fingerprint] = number
    copies = copies[:_MAX_COPIES]
    for size in range(1, len(copies) + 1):
        for chosen in combinations(copies, size):
            if _is_zero(_minus(rest, _sum(counts for *_, counts in chosen)), tolerance):
                return [Doubled(cell, number, before, counts) for number, before, counts in chosen]
    return []


def _surplus(cell: Cell, rest: Vector, tolerance: Vector) -> list[Surplus]:
    """Lines whose removal settles the cell; as few as may be. Without anything logged, all of them."""
    if _is_zero(cell.logged, tolerance):
        return [Surplus(cell, number, counts) for number, _, counts in cell.lines]
    if any(each < -t for each, t in zip(rest, tolerance, strict=True)):
        return []
    fitting = [
        (number, counts)
        for number, _, counts in cell.lines
        if all(c <= r + t for c, r, t in zip(counts, rest, tolerance, strict=True))
    ]
    for number, counts in fitting:
        if len(cell.lines) > 1 and _is_zero(_minus(rest, counts), tolerance):
            return [Surplus(cell, number, counts)]
    fitting = fitting[:_MAX_COPIES]
    for size in range(2, min(_MAX_SUBSET, len(fitting), len(cell.lines) - 1) + 1):
        for chosen in combinations(fitting, size):
            if _is_zero(_minus(rest, _sum(counts for _, counts in chosen)), tolerance):
                return [Surplus(cell, number, counts) for number, counts in chosen]
    return []


def _nearest(extra: Surplus, short: Sequence[Cell], tolerance: Vector) -> Cell | None:
    fitting = [
        cell
        for cell in short
        if cell is not extra.cell
        and _is_zero(_minus(_minus(cell.logged, cell.billed), extra.counts), tolerance)
    ]
    at = extra.cell.period[0]
    return min(fitting, key=lambda cell: abs(cell.period[0] - at), default=None)


def _exchanged(cells: Sequence[Cell], tolerance: Vector) -> tuple[list[Moved], set[int]]:
    """Lines that settle each other's cells when each goes where its counts were logged."""
    cells = list({id(cell): cell for cell in cells}.values())
    moves: list[Moved] = []
    homes = [cell for cell in cells if not _is_zero(cell.logged, tolerance)]
    for cell in cells:
        for number, _, counts in cell.lines:
            if _is_zero(_minus(counts, cell.logged), tolerance):
                continue
            home = next(
                (
                    each
                    for each in homes
                    if each is not cell and _is_zero(_minus(each.logged, counts), tolerance)
                ),
                None,
            )
            if home is not None:
                homes.remove(home)
                moves.append(Moved(cell, number, home, counts))
    while True:  # keep the moves into cells that they settle; the others never were
        gone = {each.number for each in moves}
        came: dict[int, list[Vector]] = {}
        for each in moves:
            came.setdefault(id(each.home), []).append(each.counts)
        settled = set()
        for cell in cells:
            kept = [counts for number, _, counts in cell.lines if number not in gone]
            total = _sum([*kept, *came.get(id(cell), [])], len(cell.logged))
            if _is_zero(_minus(total, cell.logged), tolerance):
                settled.add(id(cell))
        sound = [each for each in moves if id(each.home) in settled]
        if len(sound) == len(moves):
            return moves, settled
        moves = sound


def _cells_of(surplus: Iterable[Surplus]) -> list[Cell]:
    return [each.cell for each in surplus]


def _sum(vectors: Iterable[Vector], width: int = 0) -> Vector:
    return tuple(map(sum, zip(*vectors, strict=True))) or (0,) * width


def _minus(one: Vector, other: Vector) -> Vector:
    return tuple(a - b for a, b in zip(one, other, strict=True))


def _is_zero(vector: Vector, tolerance: Vector) -> bool:
    return all(abs(each) <= t for each, t in zip(vector, tolerance, strict=True))
