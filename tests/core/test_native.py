"""The optional native part against the Python reference: what it accepts and returns must be the same."""

from __future__ import annotations

import gc
import hashlib
import hmac
import random
import subprocess
import sys
from array import array

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmarks.workload import make_records as bench_records
from ledger import native
from ledger.audit import batches
from ledger.core import commitments, merkle, records
from ledger.core.errors import InvalidError, TallystickError
from tests.build import make_record, make_uuid7
from tests.core import strategies
from tests.fuzz.targets_native import FULL, check_commitment, check_lines

needs_native = pytest.mark.skipif(
    native.parsing is None, reason="the native part is not built, or switched off"
)
needs_hashes = pytest.mark.skipif(native.hashing is None, reason="the native part does not hash here")
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
SALT = bytes(range(32))
HEX = "0f" * 32


def variable(text: str) -> int:
    """The module ``ledger.native`` of a fresh process, with ``TALLYSTICK_NO_NATIVE`` set to ``text``."""
    script = "import sys, ledger.native as n; sys.exit(10 + (n.parsing is not None))"
    return subprocess.run([sys.executable, "-c", script], env={"TALLYSTICK_NO_NATIVE": text}).returncode - 10


def test_a_variable_switches_it_off():
    assert variable("1") == 0
    assert variable("") == variable("0")


@needs_native
def test_it_is_used_unless_switched_off():
    assert variable("") == 1


# --- records ---


def is_plain(record: records.Record) -> bool:
    """Whether the only free text of a record is in characters that JSON spells plainly."""
    source = "x" if record.energy is msgspec.UNSET else record.energy.source
    return source.isascii() and source.isprintable() and not set(source) & set('"\\')


@needs_native
@unhurried
@given(st.lists(strategies.records(), min_size=1, max_size=12))
def test_generated_records(made):
    lines = records.encode_record_lines(made)
    facts = check_lines(lines)
    assert (facts is not None) == all(map(is_plain, made))
    for record, line in zip(made, lines.split(b"\n")[:-1], strict=True):
        assert native.parsing.is_record(line) == is_plain(record)
        check_lines(line + b"\n")


@needs_native
@settings(unhurried, max_examples=1000)
@given(strategies.records(), st.randoms(use_true_random=False))
def test_broken_records(record, chance):
    data = bytearray(records.encode_record(record))
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[at] = chance.choice(b'0123456789abcdefAZ"\\{}:,._-\n \x00\x7f\xc3')
        elif kind == 1:
            del data[at : at + chance.randint(1, 3)]
        elif kind == 2:
            data[at:at] = bytes(chance.choice(b'019af"{},:-') for _ in range(chance.randint(1, 2)))
        else:
            other = chance.randrange(len(data))
            data[at], data[other] = data[other], data[at]
    check_lines(bytes(data) + b"\n")


NUMBERS = [
    "0",
    "1",
    "00",
    "01",
    "-0",
    "-1",
    "9007199254740991",
    "9007199254740992",
    "90071992547409910",
    "1.0",
]
NUMBERS += ["1e3", "", "null", '"1"', "18446744073709551616", "99999999999999999999", "0x1", " 1", "1 "]
TEXTS = [
    "",
    "a",
    "a" * 32,
    "a" * 33,
    "a" * 64,
    "a" * 65,
    "a" * 256,
    "a" * 257,
    "A",
    "-",
    "_",
    "a b",
    "a_b",
    "é",
]
TEXTS += [
    "\\u0061",
    "\\n",
    "a\x7f",
    "a\x1f",
    "EUR",
    "EURO",
    "EU",
    "eur",
    "a~",
    "a:b",
    "0",
    "measured",
    "text",
]
TEXTS += [
    "0F" * 32,
    "0g" * 32,
    "0198c0de-0000-7000-c000-000000000000",
    "0198c0de-0000-7000-a000-00000000000G",
]


@needs_native
def test_every_value_at_its_limits():
    """Each number and each string of a record with every field, in turn, by each of many others."""
    line = records.encode_record(FULL)
    accepted = 0
    for begin, end in spans(line, b"0123456789"):
        for number in NUMBERS:
            accepted += check_lines(line[:begin] + number.encode() + line[end:] + b"\n") is not None
    for begin, end in spans(line, b'"'):
        for text in TEXTS:
            accepted += (
                check_lines(line[:begin] + b'"' + text.encode() + b'"' + line[end:] + b"\n") is not None
            )
    assert accepted > 100


def spans(line: bytes, kind: bytes) -> list[tuple[int, int]]:
    """Where numbers or strings, by their first character, begin and end."""
    found, at = [], 0
    while at < len(line):
        end = at + 1
        if line[at] in b'"':
            end = line.index(b'"', end) + 1
        elif line[at] in b"0123456789":
            while line[end] in b"0123456789":
                end += 1
        if line[at] in kind:
            found.append((at, end))
        at = end
    return found


@needs_native
def test_every_field_left_out_or_doubled_or_moved():
    line = records.encode_record(FULL).decode()
    parsed = msgspec.json.decode(line)

    def told(pairs):
        return (
            "{"
            + ",".join(f'"{k}":{msgspec.json.encode(v, order="sorted").decode()}' for k, v in pairs)
            + "}\n"
        )

    for path in [(), ("usage",), ("energy",), ("input",), ("quality",), ("quality", "a")]:
        part = parsed
        for step in path:
            part = part[step]
        pairs = list(part.items())
        for i in range(len(pairs)):
            variants = [pairs[:i] + pairs[i + 1 :], [*pairs[:i], pairs[i], *pairs[i:]], [pairs[i]]]
            variants += [
                pairs[:i] + pairs[i + 1 :] + [pairs[i]],
                [*pairs[:i], ("x" + pairs[i][0], 1), *pairs[i:]],
            ]
            for variant in variants:
                text = told(variant)[:-1]
                for step in reversed(path):
                    outer = parsed
                    for each in path[: path.index(step)]:
                        outer = outer[each]
                    text = told(
                        [(k, msgspec.Raw(text.encode()) if k == step else v) for k, v in outer.items()]
                    )[:-1]
                check_lines(text.encode() + b"\n")


@needs_native
def test_every_shorter_line():
    line = records.encode_record(FULL)
    for cut in range(len(line)):
        assert check_lines(line[:cut] + b"\n") is None
        assert check_lines(line[:cut]) is None
        check_lines(line[cut:] + b"\n")


@needs_native
def test_lines_and_blocks_that_are_odd():
    line = records.encode_record(FULL)
    for odd in (
        b"",
        b"\n",
        line,
        line + b"\n\n",
        b"\n" + line + b"\n",
        line + b"\r\n",
        line + b" \n",
        b"\xff\n",
    ):
        check_lines(odd)
    assert native.parsing.batch_facts((line + b"\n") * 4097) is None  # the bound on what a group can cost
    assert native.parsing.batch_facts(bytearray(line + b"\n")) is None


@needs_native
def test_as_many_metrics_as_allowed_and_one_more():
    quality = {f"{n:02}{'m' * 62}": records.Quality(value=-(2**53 - 1), scale=9) for n in range(33)}
    assert check_lines(records.encode_record_lines([make_record(HEX, quality=quality)])) is None
    del quality[f"32{'m' * 62}"]
    assert check_lines(records.encode_record_lines([make_record(HEX, quality=quality)])) is not None


@needs_native
def test_sums_beyond_64_bits_are_left_to_python():
    most = 2**53 - 1
    record = make_record(HEX, usage=records.Usage(input_tokens=most, output_tokens=most), tenant="t")
    line = records.encode_record(record) + b"\n"
    assert check_lines(line * 2048) is not None
    assert native.parsing.batch_facts(line * 2049) is None
    assert (
        batches._read(line * 2049, "x").rollups[record.started_us // 3_600_000_000, "t", HEX][1]
        == 2049 * most
    )


@needs_native
@pytest.mark.parametrize("tenants", [1, 40, 10_000])
@pytest.mark.parametrize("count", [1, 2, 255, 256, 1000, 4096])
def test_batches_of_many_groups(count, tenants):
    chance = random.Random(count * tenants)
    made = [
        msgspec.structs.replace(
            each,
            started_us=each.started_us - chance.choice([0, 0, 3_600_000_000]),
            deployment=chance.choice([HEX, "1f" * 32, each.input.digest]),
            factors=chance.choice([msgspec.UNSET, HEX, "1f" * 32, each.output.digest]),
            tenant=chance.choice([msgspec.UNSET, each.tenant]),
        )
        for each in bench_records(count, 1_800_000_000_000_000, chance, tenants)
    ]
    assert check_lines(records.encode_record_lines(made)) is not None


# --- the index ---


@needs_native
@settings(unhurried, max_examples=500)
@given(st.randoms(use_true_random=False), st.integers(0, 40), st.integers(0, 2**62))
def test_what_is_unmatched(chance, count, first):
    """Whatever rows come, the sets that ``IndexAudit`` keeps end up the same."""
    ids = tuple(chance.choice([bytes(16), bytes([n]) * 16, n.to_bytes(16, "big")]) for n in range(count))
    rows = list(zip(ids, range(first, first + count), strict=True))
    odd = [(b"x", 1), (bytes(16), "1"), ("a", first), (bytes(16), first, 3), (bytes(16), None), (ids, ids)]
    odd += [(bytes(16), -0.5), (bytes(16), 2**64), (bytes(16), -1), [], (bytes(17), first)]
    for _ in range(chance.randrange(6)):
        at = chance.randrange(len(rows) + 1)
        kind = chance.randrange(5)
        if kind == 0:
            del rows[at : at + 1]
        elif kind == 1 and rows:
            rows.insert(at, chance.choice(rows))
        elif kind == 2:
            rows.insert(at, tuple(chance.choice(odd)))
        elif kind == 3 and ids:
            rows.insert(at, (chance.choice(ids), first + chance.randrange(50)))
        else:
            chance.shuffle(rows)
    pairs, left = native.parsing.unmatched(ids, first, rows)
    assert set(left) <= set(rows)
    for begin in ([], rows[:3], [(bytes(16), first)]):
        expected, found = set(begin), set(begin)
        expected.symmetric_difference_update(zip(ids, range(first, first + count), strict=True))
        expected.symmetric_difference_update(rows)
        found.symmetric_difference_update(pairs)
        found.symmetric_difference_update(left)
        assert found == expected


@needs_native
def test_matching_is_left_to_python_beyond_its_bounds():
    unmatched, one = native.parsing.unmatched, (bytes(16),)
    assert unmatched(one, 7, [(bytes(16), 7.0)]) == (
        [(bytes(16), 7)],
        [(bytes(16), 7.0)],
    )  # equal, as sets are
    assert unmatched(one, 0, [(bytes(16), 0)]) == ([], [])
    assert unmatched(one * 4096, 5, []) == ([(bytes(16), n + 5) for n in range(4096)], [])
    assert unmatched(one * 4097, 5, []) is unmatched([bytes(16)], 0, []) is unmatched((b"x",), 0, []) is None
    assert (
        unmatched(one, -1, [])
        is unmatched(one, 2**63, [])
        is unmatched(one, True, [])
        is unmatched(one, 0, ())
        is None
    )


# --- hashes ---

# SHA-256 alone is not offered, so its published vectors come by way of HMAC and of trees.
RFC_4231 = [
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (bytes(range(1, 26)), b"\xcd" * 50, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        b"\xaa" * 131,
        b"This is a test using a larger than block-size key and a larger than block-size data. The key needs "
        b"to be hashed before being used by the HMAC algorithm.",
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]
"""RFC 4231 sections 4.2 to 4.8, but for the truncated one."""

CT_LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""The example tree of certificate-transparency's tests, of one leaf to eight."""

SHAKE_EMPTY = "46b9dd2b0ba88d13233b3feb743eeb243fcd52ea62b81b82b50c27646ed5762f"
"""SHAKE256 of nothing, the first 32 bytes (NIST CSRC, "SHAKE256 example values")."""


@needs_hashes
@pytest.mark.parametrize(("key", "message", "digest"), RFC_4231)
def test_published_hmac_vectors(key, message, digest):
    assert native.hashing.hmac(key, message).hex() == digest


@needs_hashes
def test_published_trees():
    hashes = [native.hashing.leaf_hash(bytes.fromhex(leaf)) for leaf in CT_LEAVES]
    assert [native.hashing.root(hashes[:n]).hex() for n in range(1, 9)] == CT_ROOTS


@needs_native
def test_published_shake256():
    assert native.parsing.shake256(b"", 32).hex() == SHAKE_EMPTY


@needs_native
@unhurried
@given(st.binary(max_size=135), st.integers(0, 1200))
def test_shake256(data, size):
    assert native.parsing.shake256(data, size) == hashlib.shake_256(data).digest(size)


@needs_native
def test_shake256_refuses_what_it_cannot_take():
    with pytest.raises(TypeError):
        native.parsing.shake256(bytes(136), 1)
    with pytest.raises(ValueError):
        native.parsing.shake256(b"", -1)


@needs_hashes
def test_hashes_of_every_length():
    data = random.Random(7).randbytes(700)
    for size in range(len(data)):
        part = data[:size]
        assert native.hashing.leaf_hash(part) == hashlib.sha256(b"\0" + part).digest()
        assert native.hashing.hmac(part, data[size:]) == hmac.digest(part, data[size:], "sha256")
        assert (
            native.hashing.leaf_hash(memoryview(data)[size:]) == hashlib.sha256(b"\0" + data[size:]).digest()
        )
    big = data * 5000
    assert native.hashing.leaf_hash(big) == hashlib.sha256(b"\0" + big).digest()


@needs_hashes
def test_trees_of_every_size(monkeypatch):
    leaves = [b"%d" % n * (n % 200) for n in range(600)]
    hashes = merkle.leaf_hashes(leaves)
    natively = [merkle.root(hashes[:n]) for n in range(601)]
    folded = [merkle.fold_pairs(hashes[:n]) for n in range(40)]
    monkeypatch.setattr(merkle, "_native", None)
    assert merkle.leaf_hashes(leaves) == hashes == [merkle.leaf_hash(leaf) for leaf in leaves]
    assert [merkle.root(hashes[:n]) for n in range(601)] == natively
    assert [merkle.fold_pairs(hashes[:n]) for n in range(40)] == folded


@needs_hashes
def test_what_is_no_plain_list_of_hashes_is_left_to_python():
    n = native.hashing
    assert n.root([b"x"]) is n.root([]) is n.root([bytearray(32)]) is n.root(iter([bytes(32)])) is None
    assert n.fold_pairs([b"x", b"y"]) is n.node_hash(b"x", b"y") is n.leaf_hashes([bytearray(1)]) is None
    assert n.leaf_hashes(iter([b""])) is n.hmac(bytearray(3), b"") is n.commit(b"t", 4, b"", b"short") is None
    assert merkle.root([b"x", b"y"]) == merkle.node_hash(b"x", b"y") == hashlib.sha256(b"\1xy").digest()
    assert merkle.leaf_hashes(iter([b""])) == [merkle.leaf_hash(b"")]
    for wrong in (None, 3, "text"):
        with pytest.raises(TypeError):
            n.leaf_hash(wrong)


@needs_hashes
@pytest.mark.parametrize("name", ["leaf_hashes", "fold_pairs"])
def test_a_list_that_garbage_collection_empties(name):
    hashes = [bytes([n]) * 32 for n in range(200)]
    function = getattr(native.hashing, name)
    expected = function(list(hashes))

    class Garbage:
        def __del__(self):
            hashes.clear()

    threshold = gc.get_threshold()
    gc.collect()
    garbage = Garbage()
    garbage.itself = garbage
    del garbage
    gc.set_threshold(1)
    try:
        assert function(hashes) in (None, expected)
    finally:
        gc.set_threshold(*threshold)


# --- commitments ---

tokens = st.integers(0, 2**32 - 1) | st.sampled_from([0, 1, 2**15, 2**30 - 1, 2**30, 2**31, 2**32 - 1])
odd_items = st.sampled_from([-1, -(2**30), 2**32, 2**64, -(2**70), 1.0, "1", None, True, False, b"1"])


@needs_native
def test_other_objects_than_integers_are_not_read_as_such():
    # Small objects end before the place of an integer's size.
    for odd in (object(), None, 1.5, "7"):
        for at in range(8):
            tokens = [7] * 16
            tokens[at] = odd
            assert native.parsing.pack_tokens(tokens) is None


@needs_native
def test_commitments_of_every_size():
    chance = random.Random(3)
    for size in [*range(1001), 64 * 64, 64 * 64 + 1, 100_000]:
        check_commitment([chance.randrange(2**32) for _ in range(size)], chance.randbytes(32))


@needs_native
@unhurried
@given(st.lists(tokens, max_size=300), st.binary(min_size=32, max_size=32))
def test_commitments(ids, salt):
    check_commitment(ids, salt)
    check_commitment(tuple(ids), salt)


@needs_native
@unhurried
@given(st.lists(tokens | odd_items, max_size=20))
@example([True, False])
@example([2**32])
@example([-1])
def test_odd_ids(ids):
    check_commitment(ids, SALT)


@needs_native
@unhurried
@given(st.sampled_from("bBhHiIlLqQfd"), st.lists(st.integers(0, 127), max_size=100))
def test_arrays(code, ids):
    check_commitment(array(code, ids), SALT)
    check_commitment(memoryview(array(code, ids)), SALT)
    check_commitment(memoryview(array(code, ids))[::-1], SALT)


@needs_native
@pytest.mark.parametrize("code", "iIlLqQ")
@pytest.mark.parametrize(
    "value", [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, -1, -(2**31), -(2**63)]
)
def test_arrays_at_their_limits(code, value):
    try:
        ids = array(code, [5, value])
    except OverflowError:
        return
    check_commitment(ids, SALT)


class Index:
    def __index__(self) -> int:
        return 5


class Number(int):
    pass


@needs_native
@pytest.mark.parametrize(
    "ids",
    [
        [Index()],
        [Number(5)],
        range(200),
        b"\x01\x02",
        bytearray(b"\x05"),
        "12",
        iter([1]),
        {1: 2},
        {3},
        5,
        None,
    ],
)
def test_ids_in_other_clothes(ids):
    check_commitment(ids, SALT)


@needs_native
def test_numpy_arrays():
    numpy = pytest.importorskip("numpy")
    for kind in ("int8", "uint8", "int32", "uint32", "int64", "uint64", "float32", ">i4", ">u8", "bool"):
        check_commitment(numpy.array([1, 2, 100], dtype=kind), SALT)
    check_commitment(numpy.array([[1, 2]], dtype="int64"), SALT)
    check_commitment(numpy.arange(100)[::2], SALT)
    check_commitment(numpy.array(7), SALT)
    check_commitment(numpy.array([], dtype="int64"), SALT)


@needs_hashes
@unhurried
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=700))
def test_text_commitments(text):
    natively = commitments.commit_text(text, SALT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commitments, "_native", None)
        assert commitments.commit_text(text, SALT) == natively


@needs_hashes
@unhurried
@given(st.binary(max_size=100), st.text(max_size=40))
def test_salts(key, text):
    name = make_uuid7(1_800_000_000_000, text)
    natively = commitments.record_salt(key, name, "input")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commitments, "_native", None)
        assert commitments.record_salt(key, name, "input") == natively


@needs_hashes
def test_a_salt_of_another_length_is_refused():
    for salt in (b"", bytes(31), bytes(33)):
        with pytest.raises(InvalidError):
            commitments.commit_tokens([1], salt)


def test_every_error_is_the_reference_s():
    for ids in ([2**32], [-1], ["x"], [1.5]):
        with pytest.raises(TallystickError) as error:
            commitments.commit_tokens(ids, SALT)
        assert error.value.code == "bad-token"
