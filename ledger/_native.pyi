"""The optional native part, built from ``ledger/_c``. Use it through ``ledger.native``.

None as a result means: let the Python implementation decide.
"""

from collections.abc import Iterable, Sequence
from typing import Any

VERSION: int
HASHES: int
"""Whether the processor hashes; the functions below the line exist only then."""

def batch_facts(
    lines: bytes, /
) -> (
    tuple[
        tuple[bytes, ...],
        int,
        int,
        tuple[str, ...],
        dict[tuple[int, str, str], list[int]],
        bytes | None,
    ]
    | None
):
    """Ids, first start, last end, factor digests, roll-ups and root of newline-ended canonical records."""

def is_record(data: bytes, /) -> bool:
    """Whether ``data`` certainly is a canonical record that holds; False may also mean: not certain."""

def record_columns(data: bytes, /) -> list[tuple[Any, ...]] | None:
    """The columns of newline-ended canonical records as buffers of Arrow arrays, if all certainly hold.

    In the order of ``export_layout.record_columns``, then the records' bytes. Each is the number of nulls,
    the validity bitmap (None without nulls) and the buffers: of integers (int64) the values; of text the
    32-bit offsets and the bytes; of ``quality`` the lists' offsets, the names' offsets and bytes, values and
    scales.
    """

def record_id(now_ns: int, count: int, end: str, /) -> str:
    """A UUIDv7 of that time with the low 36 bits of ``count``; ``end``: variant and tail."""

def record_lines(data: bytes, /) -> list[bytes] | None:
    """The lines of newline-ended canonical records, if all of them certainly hold."""

def pack_pair(input: Any, output: Any, /) -> bytes | None:
    """Both's token ids as ``pack_tokens`` after their counts, two int64, little-endian; -1 for None."""

def pack_tokens(tokens: Iterable[int], /) -> bytes | None:
    """Token ids of a list, a tuple or an array as uint32, little-endian."""

def shake256(data: bytes, size: int, /) -> bytes:
    """``size`` bytes of SHAKE256 over fewer than 136 bytes."""

def unmatched(
    ids: tuple[bytes, ...], first: int, rows: list[tuple[Any, ...]], /
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]] | None:
    """The pairs (id, place), places from ``first``, and the rows that have no equal on the other side."""

# --- only if HASHES ---

def commit(kind: bytes, unit: int, content: bytes, salt: bytes, /) -> bytes | None:
    """The digest that commits to ``content``, which counts as ``len(content) // unit``."""

def commit_record(
    key: bytes, record_id: str, packed: bytes | None, request_id: str | None, /
) -> tuple[str | None, str | None, str | None] | None:
    """``commitments.commit_record``."""

def hmac(key: bytes, message: bytes, /) -> bytes | None:
    """HMAC-SHA256."""

def leaf_hash(data: Any, /) -> bytes:
    """``merkle.leaf_hash``."""

def leaf_hashes(leaves: Iterable[bytes], /) -> list[bytes] | None:
    """``merkle.leaf_hashes`` of a list or tuple."""

def lines_hash(data: bytes, /) -> tuple[bytes, bytes] | None:
    """The leaf hashes of newline-ended lines, joined, and the root over them."""

def node_hash(left: bytes, right: bytes, /) -> bytes | None:
    """``merkle.node_hash``."""

def fold_pairs(hashes: Sequence[bytes], /) -> list[bytes] | None:
    """``merkle.fold_pairs`` of a list or tuple."""

def root(hashes: Sequence[bytes], /) -> bytes | None:
    """``merkle.root`` of a list or tuple that is not empty."""
