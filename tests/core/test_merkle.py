from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core import merkle
from ledger.core.errors import CorruptError, InvalidError, TallystickError

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "merkle_rfc6962.json").read_text())
LEAVES = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf in VECTORS["leaves"]]
MANY = [merkle.leaf_hash(b"leaf %d" % i) for i in range(300)]


# The definitions of RFC 6962 section 2.1, word by word; slow on purpose.
def mth(leaves: list[bytes]) -> bytes:
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = largest_power_below(len(leaves))
    return sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = largest_power_below(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], complete: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if complete else [mth(leaves)]
    k = largest_power_below(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], complete), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def largest_power_below(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


sizes = st.integers(1, len(MANY))


@pytest.mark.parametrize("size", range(1, 9))
def test_reference_roots(size):
    assert merkle.root(LEAVES[:size]).hex() == VECTORS["roots"][size - 1]


@pytest.mark.parametrize("vector", VECTORS["inclusion"], ids=lambda v: f"{v['index']}-of-{v['size']}")
def test_reference_inclusion_proofs(vector):
    index, size = vector["index"], vector["size"]
    expected = [bytes.fromhex(each) for each in vector["path"]]
    assert merkle.inclusion_path(LEAVES[:size], index) == expected
    root = bytes.fromhex(VECTORS["roots"][size - 1])
    merkle.verify_inclusion(LEAVES[index], index, size, expected, root)


@pytest.mark.parametrize("vector", VECTORS["consistency"], ids=lambda v: f"{v['old']}-to-{v['new']}")
def test_reference_consistency_proofs(vector):
    old, new = vector["old"], vector["new"]
    expected = [bytes.fromhex(each) for each in vector["path"]]
    assert merkle.consistency_path(LEAVES[:new], old) == expected
    roots = [bytes.fromhex(each) for each in VECTORS["roots"]]
    merkle.verify_consistency(old, new, roots[old - 1], roots[new - 1], expected)


def test_the_empty_tree():
    assert merkle.EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle.root([]) == merkle.EMPTY_ROOT == merkle.CompactRange().root()


def test_every_small_tree_agrees_with_the_definition():
    for size in range(1, 70):
        leaves = MANY[:size]
        root = mth(leaves)
        assert merkle.root(leaves) == merkle.root(tuple(leaves)) == root
        for index in range(size):
            proof = merkle.inclusion_path(leaves, index)
            assert proof == path(index, leaves)
            merkle.verify_inclusion(leaves[index], index, size, proof, root)
        for old in range(1, size + 1):
            proof = merkle.consistency_path(leaves, old)
            assert proof == subproof(old, leaves, True)
            merkle.verify_consistency(old, size, mth(leaves[:old]), root, proof)


@given(sizes)
def test_roots_of_any_size(size):
    assert merkle.root(MANY[:size]) == mth(MANY[:size])


@given(sizes, st.data())
def test_proofs_of_any_size(size, data):
    leaves = MANY[:size]
    index = data.draw(st.integers(0, size - 1))
    assert merkle.inclusion_path(leaves, index) == path(index, leaves)
    old = data.draw(st.integers(1, size))
    assert merkle.consistency_path(leaves, old) == subproof(old, leaves, True)


@given(st.lists(st.integers(0, 60), max_size=8))
def test_a_range_grown_in_steps_has_the_root_of_the_whole(steps):
    compact = merkle.CompactRange()
    done = 0
    for step in steps:
        step = min(step, len(MANY) - done)
        if step == 1:
            compact.append(MANY[done])
        else:
            compact.extend(MANY[done : done + step])
        done += step
        assert (compact.size, compact.root()) == (done, mth(MANY[:done]))
        assert len(compact.hashes) == done.bit_count()
    appended = merkle.CompactRange()
    for leaf in MANY[:done]:
        appended.append(leaf)
    assert appended.hashes == compact.hashes


def test_a_copied_range_is_independent():
    original = merkle.CompactRange()
    original.extend(MANY[:5])
    copy = original.copy()
    copy.extend(MANY[5:9])
    assert (original.size, original.root()) == (5, mth(MANY[:5]))
    assert copy.root() == mth(MANY[:9])


def test_a_range_refuses_hashes_that_do_not_fit_its_size():
    with pytest.raises(InvalidError, match="has 2 subtrees, not 1"):
        merkle.CompactRange(5, [MANY[0]])
    with pytest.raises(InvalidError, match="32 bytes"):
        merkle.CompactRange(1, [b"short"])


@given(sizes, st.data())
def test_ranges_name_the_subtrees_of_the_proofs(size, data):
    leaves = MANY[:size]
    index = data.draw(st.integers(0, size - 1))
    ranges = merkle.inclusion_ranges(index, size)
    assert [mth(leaves[start:end]) for start, end in ranges] == path(index, leaves)
    # Sibling subtrees and the leaf cover the tree without overlap.
    covered = sorted([*ranges, (index, index + 1)])
    assert [start for start, _ in covered] == [0, *(end for _, end in covered[:-1])]
    assert covered[-1][1] == size
    old = data.draw(st.integers(1, size))
    ranges = merkle.consistency_ranges(old, size)
    assert [mth(leaves[start:end]) for start, end in ranges] == subproof(old, leaves, True)


def test_plans_of_the_largest_trees_stay_short():
    assert len(merkle.inclusion_ranges(merkle.MAX_SIZE - 1, merkle.MAX_SIZE)) <= merkle.MAX_PATH
    assert len(merkle.inclusion_ranges(0, merkle.MAX_SIZE)) == 63
    longest = max(
        len(merkle.consistency_ranges(old, merkle.MAX_SIZE))
        for old in (1, 3, 2**61 + 1, 2**62 - 1, 2**62 + 1)
    )
    assert 63 <= longest <= merkle.MAX_PATH


@given(sizes, st.data())
def test_a_flipped_bit_breaks_inclusion(size, data):
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_path(MANY[:size], index)
    parts = [MANY[index], *proof, mth(MANY[:size])]
    which = data.draw(st.integers(0, len(parts) - 1))
    parts[which] = flip(parts[which], data.draw(st.integers(0, 255)))
    with pytest.raises(CorruptError):
        merkle.verify_inclusion(parts[0], index, size, parts[1:-1], parts[-1])


@given(st.integers(2, len(MANY)), st.data())
def test_a_flipped_bit_breaks_consistency(size, data):
    old = data.draw(st.integers(1, size))
    proof = merkle.consistency_path(MANY[:size], old)
    parts = [mth(MANY[:old]), mth(MANY[:size]), *proof]
    which = data.draw(st.integers(0, len(parts) - 1))
    parts[which] = flip(parts[which], data.draw(st.integers(0, 255)))
    with pytest.raises(CorruptError):
        merkle.verify_consistency(old, size, parts[0], parts[1], parts[2:])


@given(sizes, sizes, st.data())
def test_inclusion_at_another_place_fails(size, other_size, data):
    index = data.draw(st.integers(0, size - 1))
    other = data.draw(st.integers(0, size))
    proof = merkle.inclusion_path(MANY[:size], index)
    root = mth(MANY[:size])
    if other != index:
        with pytest.raises(CorruptError):
            merkle.verify_inclusion(MANY[index], other, size, proof, root)
    # A size is bound only through its root: with the root of another tree the proof must fail.
    if other_size != size:
        with pytest.raises(CorruptError):
            merkle.verify_inclusion(MANY[index], index, size, proof, mth(MANY[:other_size]))


@pytest.mark.parametrize("garbage", [[b""], [b"garbage"], [MANY[0]], [merkle.EMPTY_ROOT]])
def test_proofs_with_something_more_or_less_fail(garbage):
    leaves, root = MANY[:11], mth(MANY[:11])
    inclusion = merkle.inclusion_path(leaves, 5)
    consistency = merkle.consistency_path(leaves, 6)
    for wrong in (inclusion + garbage, garbage + inclusion, inclusion[1:], inclusion[:-1], []):
        with pytest.raises(TallystickError):
            merkle.verify_inclusion(leaves[5], 5, 11, wrong, root)
    for wrong in (consistency + garbage, garbage + consistency, consistency[1:], consistency[:-1], []):
        with pytest.raises(TallystickError):
            merkle.verify_consistency(6, 11, mth(leaves[:6]), root, wrong)


@given(sizes, st.data())
def test_a_root_is_only_computed_from_a_path_of_the_right_length(size, data):
    index = data.draw(st.integers(0, size - 1))
    proof = merkle.inclusion_path(MANY[:size], index)
    assert merkle.root_from_inclusion(MANY[index], index, size, proof) == mth(MANY[:size])
    for wrong in ([*proof, MANY[0]], [*proof, *proof, MANY[0]], proof[1:]):
        if len(wrong) != len(proof):
            with pytest.raises(CorruptError, match="hashes instead of"):
                merkle.root_from_inclusion(MANY[index], index, size, wrong)


def test_a_longer_proof_fails_even_with_roots_made_to_fit_it():
    proof, extra = merkle.consistency_path(MANY[:4], 3), MANY[9]
    old_root, new_root = (merkle.node_hash(extra, mth(MANY[:size])) for size in (3, 4))
    with pytest.raises(CorruptError, match="too many hashes"):
        merkle.verify_consistency(3, 4, old_root, new_root, [*proof, extra])


def test_a_rewritten_tree_is_not_consistent():
    rewritten = [*MANY[:3], merkle.leaf_hash(b"another"), *MANY[4:12]]
    for old in range(4, 12):
        with pytest.raises(CorruptError):
            merkle.verify_consistency(
                old, 12, mth(MANY[:old]), mth(rewritten), merkle.consistency_path(rewritten, old)
            )


def test_consistency_at_the_edges():
    root = mth(MANY[:7])
    merkle.verify_consistency(0, 7, merkle.EMPTY_ROOT, root, [])
    merkle.verify_consistency(0, 0, merkle.EMPTY_ROOT, merkle.EMPTY_ROOT, [])
    merkle.verify_consistency(7, 7, root, root, [])
    refused = [
        (0, 7, root, root, []),
        (0, 7, merkle.EMPTY_ROOT, root, [MANY[0]]),
        (0, 0, merkle.EMPTY_ROOT, root, []),
        (7, 7, root, MANY[0], []),
        (7, 7, root, root, [MANY[0]]),
        (7, 6, root, mth(MANY[:6]), []),
        (8, 9, mth(MANY[:8]), mth(MANY[:8]), []),
    ]
    for arguments in refused:
        with pytest.raises(CorruptError):
            merkle.verify_consistency(*arguments)


def test_impossible_questions_are_refused():
    for index, size in ((-1, 3), (3, 3), (0, 0), (0, 2**63)):
        with pytest.raises(InvalidError):
            merkle.inclusion_ranges(index, size)
    for old, new in ((-1, 3), (4, 3), (1, 2**63)):
        with pytest.raises(InvalidError):
            merkle.consistency_ranges(old, new)
    with pytest.raises(InvalidError, match="at most 64 hashes"):
        merkle.root_from_inclusion(MANY[0], 0, 2, [MANY[1]] * 65)
    with pytest.raises(InvalidError, match="leaf hash"):
        merkle.root_from_inclusion(b"", 0, 1, [])
    with pytest.raises(CorruptError, match="outside a tree"):
        merkle.root_from_inclusion(MANY[0], 1, 1, [])


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)
