"""Owns the Merkle tree hash, its proofs and their verification (RFC 6962 section 2, RFC 9162 section 2.1).

SHA-256; a leaf is hashed with prefix 0x00, a node with prefix 0x01. ``MTH(D[start:end])`` is the tree hash
of the leaves from ``start`` up to, not including, ``end``. A proof is a list of such hashes: which ones is
planned by :func:`inclusion_ranges` and :func:`consistency_ranges`, so that a proof can be read from stored
nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from ledger.core.errors import CorruptError, InvalidError
from ledger.native import hashing as _native

__all__ = [
    "EMPTY_ROOT",
    "HASH_SIZE",
    "MAX_PATH",
    "MAX_SIZE",
    "CompactRange",
    "consistency_path",
    "consistency_ranges",
    "fold_pairs",
    "hash_lines",
    "inclusion_path",
    "inclusion_ranges",
    "leaf_hash",
    "leaf_hashes",
    "node_hash",
    "root",
    "root_from_inclusion",
    "verify_consistency",
    "verify_inclusion",
]

HASH_SIZE = 32
# The checkpoint and cosignature formats carry sizes in a signed 64-bit range.
MAX_SIZE = 2**63 - 1
# A tree within MAX_SIZE has at most 63 levels above its leaves; a consistency proof names one subtree more.
MAX_PATH = 64
EMPTY_ROOT = sha256(b"").digest()

_LEAF_PREFIX = b"\x00"
_NODE_PREFIX = b"\x01"


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of the leaf ``data``."""
    if _native is not None:
        return _native.leaf_hash(data)
    return sha256(_LEAF_PREFIX + data).digest()


def leaf_hashes(leaves: Iterable[bytes]) -> list[bytes]:
    """Return the hash of each leaf: :func:`leaf_hash`, for many at once in less time."""
    if _native is not None and (found := _native.leaf_hashes(leaves)) is not None:
        return found
    begun = sha256(_LEAF_PREFIX).copy  # cheaper than beginning anew, and than joining prefix and leaf
    hashes = []
    for leaf in leaves:
        hasher = begun()
        hasher.update(leaf)
        hashes.append(hasher.digest())
    return hashes


def hash_lines(data: bytes) -> tuple[bytes, bytes]:
    """Return the leaf hashes, joined, of the newline-ended lines of ``data``, and the tree hash over them."""
    if _native is not None and (found := _native.lines_hash(data)) is not None:
        return found
    hashes = leaf_hashes(data[:-1].split(b"\n")) if data else []
    return b"".join(hashes), root(hashes)


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of the node above ``left`` and ``right``."""
    if _native is not None and (found := _native.node_hash(left, right)) is not None:
        return found
    return sha256(_NODE_PREFIX + left + right).digest()


def fold_pairs(hashes: Sequence[bytes]) -> list[bytes]:
    """Hash neighbours pair by pair: the next level of the tree. A last hash without neighbour is left out."""
    if _native is not None and (found := _native.fold_pairs(hashes)) is not None:
        return found
    hasher = sha256
    prefix = _NODE_PREFIX
    each = iter(hashes)
    return [hasher(prefix + left + right).digest() for left, right in zip(each, each, strict=False)]


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Return the tree hash over ``leaf_hashes``.

    Works level by level; a last node without neighbour rises unhashed, which gives the tree that RFC 6962
    defines by splitting at the largest power of two.
    """
    level = leaf_hashes
    if not level:
        return EMPTY_ROOT
    if _native is not None and (found := _native.root(level)) is not None:
        return found
    while len(level) > 1:
        above = fold_pairs(level)
        if len(level) & 1:
            above.append(level[-1])
        level = above
    return level[0]


class CompactRange:
    """The least a log must remember to go on growing: the roots of its perfect subtrees, left to right.

    Mutable; owned by whoever holds it, not safe to share between threads without a lock.

    Args:
        size: number of leaves so far.
        hashes: one hash for each bit set in ``size``, the largest subtree first.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: Iterable[bytes] = ()) -> None:
        self.size = size
        self.hashes = list(hashes)
        _check_size(size)
        if len(self.hashes) != size.bit_count():
            raise InvalidError(
                f"A range of {size} leaves has {size.bit_count()} subtrees, not {len(self.hashes)}",
                where="compact range",
                remedy="pass one hash for each bit set in the size",
            )
        for each in self.hashes:
            _check_hash(each, "compact range")

    def append(self, leaf_hash: bytes) -> None:
        """Add one leaf at the right."""
        rest = self.size
        while rest & 1:
            leaf_hash = node_hash(self.hashes.pop(), leaf_hash)
            rest >>= 1
        self.hashes.append(leaf_hash)
        self.size += 1

    def extend(self, leaf_hashes: Sequence[bytes]) -> None:
        """Add many leaves at the right, as fast as :func:`root` hashes them."""
        level = list(leaf_hashes)
        added = len(level)
        rest = self.size
        unpaired: list[bytes] = []
        while level:
            if rest & 1:
                level.insert(0, self.hashes.pop())
            if len(level) & 1:
                unpaired.append(level.pop())
            level = fold_pairs(level)
            rest >>= 1
        self.hashes.extend(reversed(unpaired))
        self.size += added

    def root(self) -> bytes:
        """Return the tree hash over all leaves so far."""
        if not self.hashes:
            return EMPTY_ROOT
        *left, result = self.hashes
        for each in reversed(left):
            result = node_hash(each, result)
        return result

    def copy(self) -> CompactRange:
        """Return an independent copy."""
        return CompactRange(self.size, self.hashes)


def inclusion_ranges(index: int, size: int) -> list[tuple[int, int]]:
    """Plan the inclusion proof of leaf ``index`` in a tree of ``size``: subtrees, leaf's sibling first."""
    _check_size(size)
    if not 0 <= index < size:
        raise InvalidError(
            f"Leaf {index} is not in a tree of {size} leaves",
            where="inclusion proof",
            remedy="ask for an index below the tree size",
        )
    start, end = 0, size
    ranges = []
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    ranges.reverse()
    return ranges


def consistency_ranges(old_size: int, new_size: int) -> list[tuple[int, int]]:
    """Plan the consistency proof between two sizes: the subtrees, in the order of RFC 6962 section 2.1.2.

    Nothing needs proving when the old tree is empty or the sizes are equal: the plan is then empty.
    """
    _check_size(new_size)
    if not 0 <= old_size <= new_size:
        raise InvalidError(
            f"A tree of {new_size} leaves cannot extend one of {old_size}",
            where="consistency proof",
            remedy="pass sizes with 0 <= old <= new",
        )
    if old_size in {0, new_size}:
        return []
    start, end = 0, new_size
    whole_old_tree = True  # the subtree at hand starts with the old tree, whose root the verifier knows
    ranges = []
    while end != old_size:
        middle = start + _split(end - start)
        if old_size <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
            whole_old_tree = False
    if not whole_old_tree:
        ranges.append((start, end))
    ranges.reverse()
    return ranges


def inclusion_path(leaf_hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Return the inclusion proof of leaf ``index`` in the tree over ``leaf_hashes``."""
    return [root(leaf_hashes[start:end]) for start, end in inclusion_ranges(index, len(leaf_hashes))]


def consistency_path(leaf_hashes: Sequence[bytes], old_size: int) -> list[bytes]:
    """Return the proof that the tree over ``leaf_hashes`` extends the one over its first ``old_size``."""
    return [root(leaf_hashes[start:end]) for start, end in consistency_ranges(old_size, len(leaf_hashes))]


def root_from_inclusion(leaf_hash: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to.

    Raises:
        InvalidError: a hash or number is malformed.
        CorruptError: no tree of this size has a proof of this length for this leaf.
    """
    _check_position(index)
    _check_size(size)
    _check_path(path)
    _check_hash(leaf_hash, "leaf hash")
    if index >= size:
        raise CorruptError(
            f"Leaf {index} is outside a tree of {size} leaves",
            where="inclusion proof",
            remedy="fetch the proof for a checkpoint that covers the leaf",
        )
    # Below the level where leaf and last leaf meet, each bit of the index says on which side the sibling is;
    # above it the leaf's subtree is at the right edge, where only left siblings exist.
    inner = (index ^ (size - 1)).bit_length()
    expected = inner + (index >> inner).bit_count()
    if len(path) != expected:
        raise CorruptError(
            f"The proof of leaf {index} of {size} has {len(path)} hashes instead of {expected}",
            where="inclusion proof",
            remedy="fetch the proof again",
        )
    result = leaf_hash
    for level, sibling in enumerate(path):
        if level >= inner or (index >> level) & 1:
            result = node_hash(sibling, result)
        else:
            result = node_hash(result, sibling)
    return result


def verify_inclusion(leaf_hash: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that a leaf is in the tree that ``root`` commits to; raise CorruptError if that is not shown."""
    _check_hash(root, "root")
    if root_from_inclusion(leaf_hash, index, size, path) != root:
        raise CorruptError(
            f"The proof does not lead from leaf {index} to the root of {size} leaves",
            where="inclusion proof",
            remedy="do not trust the leaf, the proof or the root until it is known which is wrong",
        )


def verify_consistency(
    old_size: int, new_size: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]
) -> None:
    """Check that the new tree only appends to the old (RFC 9162 section 2.1.4.2), else raise CorruptError.

    An empty old tree is a prefix of every tree, and a tree of itself; either needs an empty path.
    """
    _check_position(old_size)
    _check_size(new_size)
    _check_hash(old_root, "old root")
    _check_hash(new_root, "new root")
    _check_path(path)
    if old_size > new_size:
        raise _inconsistent(old_size, new_size, "the newer tree is smaller")
    if old_size in {0, new_size}:
        if path:
            raise _inconsistent(old_size, new_size, "nothing needs proving, yet the proof has hashes")
        if old_root != (new_root if old_size else EMPTY_ROOT) or (new_size == 0 and new_root != EMPTY_ROOT):
            raise _inconsistent(old_size, new_size, "the roots differ")
        return
    fn, sn = old_size - 1, new_size - 1
    shift = (~fn & (fn + 1)).bit_length() - 1  # the ones at the end of fn: the levels inside the last subtree
    fn >>= shift
    sn >>= shift
    hashes = list(path)
    if fn == 0:  # the old size is a power of two: its root is a node of the new tree and starts both chains
        hashes.insert(0, old_root)
    if not hashes:
        raise _inconsistent(old_size, new_size, "the proof is empty")
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if sn == 0:
            raise _inconsistent(old_size, new_size, "the proof has too many hashes")
        if fn & 1 or fn == sn:
            old = node_hash(sibling, old)
            new = node_hash(sibling, new)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            new = node_hash(new, sibling)
        fn >>= 1
        sn >>= 1
    if sn:
        raise _inconsistent(old_size, new_size, "the proof has too few hashes")
    if old != old_root:
        raise _inconsistent(old_size, new_size, "the proof does not lead to the old root")
    if new != new_root:
        raise _inconsistent(old_size, new_size, "the proof does not lead to the new root")


def _split(count: int) -> int:
    """Return the largest power of two below ``count``, where RFC 6962 splits a tree of ``count`` leaves."""
    return 1 << ((count - 1).bit_length() - 1)


def _inconsistent(old_size: int, new_size: int, why: str) -> CorruptError:
    return CorruptError(
        f"Not shown that the tree of {new_size} leaves extends the one of {old_size}: {why}",
        where="consistency proof",
        remedy="fetch the proof again; if it stays so, keep both checkpoints as evidence of a rewritten log",
    )


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_SIZE:
        raise InvalidError(f"Tree size {size} is out of range", where="tree size", remedy="use 0 to 2^63 - 1")


def _check_position(position: int) -> None:
    if not 0 <= position <= MAX_SIZE:
        raise InvalidError(f"Position {position} is out of range", where="proof", remedy="use 0 to 2^63 - 1")


def _check_hash(value: bytes, where: str) -> None:
    if len(value) != HASH_SIZE:
        raise InvalidError(
            f"A SHA-256 hash has {HASH_SIZE} bytes, not {len(value)}",
            where=where,
            remedy="pass the whole hash",
        )


def _check_path(path: Sequence[bytes]) -> None:
    if len(path) > MAX_PATH:
        raise InvalidError(
            f"A proof has at most {MAX_PATH} hashes, not {len(path)}", where="proof", remedy="fetch it again"
        )
    for each in path:
        _check_hash(each, "proof")
